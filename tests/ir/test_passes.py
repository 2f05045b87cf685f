"""Passes and pipelines. Cases with texts are in filetests/; here are properties over all dtypes and functions."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from graphc.ir.function import Builder, DenseArray, Function, Loc, Operation, Value
from graphc.ir.interpret import interpret
from graphc.ir.passes import DEFAULT, PASSES, Pass, observe, run_pipeline
from graphc.ir.passes.cast_rules import holds
from graphc.ir.passes.equation import Apply, Number, Rule, Term, parse_term
from graphc.ir.passes.rules import RULES
from graphc.ir.passes.simplify import simplify
from graphc.ir.text import parse_function
from graphc.ir.types import ALL_DTYPES, BOOL, DType, TensorType, size_of, substitute
from graphc.ir.verify import VerifyError, verify
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.exact import assert_equal_bits, special_values
from tests.ir.random_functions import random_function

SYMBOLS = {"B": 3}
F4 = TensorType.parse("f32[4]")
KEEPS = parse_function("func @f(%x: f32[4]) -> (f32[4]) { %0 = exp %x return %0 }")
NEG_NEG = parse_function("func @f(%x: f32[4]) -> (f32[4]) { %0 = neg %x %1 = neg %0 return %1 }")


# Pipelines.


def test_unknown_pass() -> None:
    with pytest.raises(
        ValueError, match=r"there is no pass 'simplfy'; the passes are inline, .*; did you mean simplify\?"
    ):
        run_pipeline(KEEPS, ("dce", "simplfy"))


def test_default_pipeline_is_of_known_passes() -> None:
    assert set(DEFAULT) <= set(PASSES)
    assert run_pipeline(NEG_NEG, DEFAULT).ops == ()


def test_passes_describe_themselves() -> None:
    for name, p in PASSES.items():
        assert p.name == name and p.doc


def test_callback_sees_every_pass() -> None:
    seen = []

    def callback(p: Pass, before: Function, after: Function, seconds: float) -> None:
        seen.append((p.name, len(before.ops), len(after.ops), after is before))
        assert seconds >= 0.0

    run_pipeline(NEG_NEG, ("cse", "simplify", "dce"), callback)
    assert seen == [("cse", 2, 2, True), ("simplify", 2, 1, False), ("dce", 1, 0, False)]


def test_observer_dumps_times_and_says_unchanged() -> None:
    stream, times = io.StringIO(), dict[str, float]()
    result = run_pipeline(NEG_NEG, ("cse", "simplify", "dce", "cse"), observe(dump=stream, times=times))
    parts = stream.getvalue().split("\n\n")
    heads = [part.splitlines()[0] for part in parts if part]
    assert heads[0] == "# input: 2 operations"
    assert [h.split(",")[0] for h in heads[1:]] == [
        "# cse: 2 -> 2 operations",
        "# simplify: 2 -> 1 operations",
        "# dce: 1 -> 0 operations",
        "# cse: 0 -> 0 operations",
    ]
    assert [h.endswith("ms (unchanged)") for h in heads] == [False, True, False, False, True]
    assert parse_function(parts[0]) == NEG_NEG
    assert parse_function(parts[3]) == result
    assert set(times) == {"cse", "simplify", "dce"}


def test_observer_verifies_and_names_the_pass() -> None:
    def wrong(f: Function) -> Function:
        return Function(f.name, f.params, [], f.results, f.param_names)

    p = Pass("wrong", "leaves out everything", wrong)
    observer = observe()
    with pytest.raises(VerifyError) as caught:
        observer(p, KEEPS, p.run(KEEPS), 0.0)
    assert caught.value.__notes__ == ["after the pass wrong"]
    observe(verify=False)(p, KEEPS, p.run(KEEPS), 0.0)


def test_importing_the_table_loads_no_pass() -> None:
    code = (
        "import sys, graphc.ir.passes; print([m for m in sys.modules if m.startswith('graphc.ir.passes.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['graphc.ir.passes.pipeline']"


# Properties of all passes.


def arguments(f: Function, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    args = []
    for t in f.param_types:
        shape = tuple(int(substitute(d, SYMBOLS)) for d in t.shape)
        args.append(rng.choice(special_values(t.dtype), int(size_of(shape))).reshape(shape))
    return args


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(p,) for p in PASSES] + [DEFAULT]))
def test_passes_keep_bits_and_signatures(seed: int, names: tuple[str, ...]) -> None:
    f = random_function(seed, 15, exact=True)
    g = run_pipeline(f, names, observe())
    assert (g.name, g.params, g.param_names) == (f.name, f.params, f.param_names)
    assert g.result_types == f.result_types
    args = arguments(f, seed)
    for before, after in zip(interpret(f, args, SYMBOLS), interpret(g, args, SYMBOLS), strict=True):
        assert_equal_bits(before, after)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(list(PASSES)))
def test_a_second_run_changes_nothing(seed: int, name: str) -> None:
    once = PASSES[name].run(random_function(seed, 15))
    assert PASSES[name].run(once) is once


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_source_lines_come_from_the_input(seed: int) -> None:
    f = random_function(seed, 15)
    lines: set[Loc | None] = set()

    def collect(f: Function) -> None:
        for op in f.ops:
            lines.add(op.loc)
            if op.name == "call":
                collect(op.attrs["function"])

    collect(f)
    assert {op.loc for op in run_pipeline(f, DEFAULT).ops} <= lines


def test_unchanged_functions_are_the_same_object() -> None:
    for p in PASSES.values():
        assert p.run(KEEPS) is KEEPS


@pytest.mark.parametrize("name", [*PASSES, "verify"])
def test_cost_grows_with_the_number_of_operations(name: str) -> None:
    b = Builder("f")
    x, w = b.param(TensorType.parse("f32[B, 64]"), "x"), b.param(TensorType.parse("f32[64, 64]"), "w")
    scale = b.param(TensorType.parse("f32[]"), "scale")
    for i in range(1250):
        b.loc = Loc("train.py", i)
        x = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
        x = b.add(x, b.full(scale, shape=x.type.shape))
        top = b.broadcast(b.max(x, axes=(1,)), shape=x.type.shape, axes=(0,))
        x = b.reshape(b.exp(b.sub(x, top)), shape=x.type.shape)
    f = b.build([x])
    assert len(f.ops) == 10_000
    run = verify if name == "verify" else PASSES[name].run
    begin = time.perf_counter()
    run(f)
    # Under 0.1 s on the machine that this was written on; quadratic passes take minutes.
    assert time.perf_counter() - begin < 2.0


# Rules.


EQUATIONS = [r for r in RULES if "->" in r.equation]


def instances(rule: Rule) -> Iterable[Function]:
    """The left side of an equation as a function, for every dtype of x, y, z."""
    left = parse_term(rule.equation.split("->")[0])
    for dtype in ALL_DTYPES:
        values = special_values(dtype)
        type = TensorType(dtype, (len(values) ** 2,))
        b = Builder("f")
        params: dict[str, Value] = {}

        def build(term: Term, type: TensorType, b: Builder = b, params: dict[str, Value] = params) -> Value:
            if isinstance(term, str):
                if term not in params:
                    params[term] = b.param(type.with_dtype(BOOL) if term == "c" else type, term)
                return params[term]
            if isinstance(term, Number):
                with np.errstate(all="ignore"):
                    held = np.array(term.value).astype(
                        (BOOL if isinstance(term.value, bool) else type.dtype).numpy
                    )
                return b.full(b.constant(value=held), shape=type.shape)  # type: ignore[no-any-return]
            return b.emit(term.operation, *(build(a, type) for a in term.arguments))  # type: ignore[no-any-return]

        try:
            yield b.build([build(left, type)])
        except (TypeError, OverflowError):
            continue


@pytest.mark.parametrize("rule", EQUATIONS, ids=lambda r: r.name)
def test_equations_hold_to_the_bit(rule: Rule) -> None:
    """For every dtype that the rule fires for, at all pairs of special values."""
    count = 0
    for f in instances(rule):
        fired: Counter[str] = Counter()
        g = simplify(f, fired)
        verify(g)
        if not fired[rule.name]:
            continue
        count += 1
        rng = np.random.default_rng(0)
        args = []
        for i, type in enumerate(f.param_types):
            values = special_values(type.dtype)
            n = int(type.size)
            order = np.arange(n) // len(values) if i % 2 else np.arange(n)
            picked = values[order % len(values)] if type.dtype is not BOOL else rng.choice(values, n)
            args.append(picked)
        with np.errstate(all="ignore"):
            for before, after in zip(interpret(f, args), interpret(g, args), strict=True):
                assert_equal_bits(before, after)
    assert count


@pytest.mark.parametrize(
    "text",
    [
        "add(x, 0.0) -> x",
        "mul(x, 0) -> 0",
        "sub(x, x) -> 0",
        "eq(x, x) -> true",
        "not(lt(x, y)) -> ge(x, y)",
        "neg(sub(x, y)) -> sub(y, x)",
        "sub(0.0, x) -> neg(x)",
        "maximum(x, y) -> maximum(y, x)",
        "abs(sqrt(x)) -> sqrt(x)",
    ],
)
def test_what_looks_like_an_equation_of_floats_and_is_none(text: str) -> None:
    """The check above would find these out."""
    left, right = (parse_term(side) for side in text.split("->"))
    values = special_values(TensorType.parse("f32[]").dtype)
    type = TensorType(F4.dtype, (len(values) ** 2,))
    sides = []
    for side in (left, right):
        b = Builder("f")
        names = {n: b.param(type, n) for n in ("x", "y")}

        def build(term: Term, b: Builder = b, names: dict[str, Value] = names) -> Value:
            if isinstance(term, str):
                return names[term]
            if isinstance(term, Number):
                dtype = np.bool_ if isinstance(term.value, bool) else np.float32
                return b.full(b.constant(value=np.array(term.value, dtype)), shape=type.shape)  # type: ignore[no-any-return]
            return b.emit(term.operation, *map(build, term.arguments))  # type: ignore[no-any-return]

        args = [np.tile(values, len(values)), np.repeat(values, len(values))]
        with np.errstate(all="ignore"):
            sides.append(interpret(b.build([build(side)]), args)[0])
    with pytest.raises(AssertionError):
        assert_equal_bits(*sides)


def many_values(dtype: DType) -> np.ndarray:
    """All values of dtypes up to 16 bits, and the hard ones of wider dtypes."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.bits <= 16:
        return np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.itemsize}").view(dtype.numpy)
    special = special_values(dtype)
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        around = np.array([2.0**e + d for e in range(0, 65, 4) for d in (-1, 0, 1)])
        clipped = around[around < 2.0 ** (dtype.bits - 1)] if dtype.is_integer else around
        return np.concatenate(
            [
                special,
                clipped.astype(dtype.numpy),
                rng.integers(0, 1 << 62, 500).astype(f"u{dtype.itemsize}").view(dtype.numpy),
            ]
        )


@pytest.mark.parametrize("narrow", ALL_DTYPES, ids=str)
def test_holds_is_exact(narrow: DType) -> None:
    """`holds` is true where the cast keeps every value, and false where it changes one."""
    values = many_values(narrow)
    if len(values) > 4096:
        values = np.concatenate([values[::17], special_values(narrow)])
    for wide in ALL_DTYPES:
        b = Builder("f")
        x = b.param(TensorType(narrow, (len(values),)))
        (cast,) = interpret(b.build([b.cast(x, dtype=wide)]), [values])
        assert all(map(same_number, values, cast)) == holds(wide, narrow), f"{narrow} in {wide}"


def same_number(a: Any, b: Any) -> bool:
    """Whether two elements are the same number, zeros told apart by sign, in Python's exact comparison."""
    one, other = (int(v) if v.dtype.kind in "biu" else float(v) for v in (a, b))
    if one != one or other != other:
        return one != one and other != other
    signs_matter = isinstance(one, float)
    return one == other and (not signs_matter or math.copysign(1, one) == math.copysign(1, other))


@pytest.mark.parametrize("source", ALL_DTYPES, ids=str)
def test_chains_of_casts(source: DType) -> None:
    values = many_values(source)
    if len(values) > 4096:
        values = np.concatenate([values[::29], special_values(source)])
    shortened = 0
    for between, target in itertools.product(ALL_DTYPES, ALL_DTYPES):
        b = Builder("f")
        x = b.param(TensorType(source, (len(values),)))
        f = b.build([b.cast(b.cast(x, dtype=between), dtype=target)])
        fired: Counter[str] = Counter()
        g = simplify(f, fired)
        if fired["cast_cast"]:
            shortened += 1
            assert_equal_bits(interpret(f, [values])[0], interpret(g, [values])[0])
    assert bool(shortened) == any(holds(between, source) for between in ALL_DTYPES if between != source)


@pytest.mark.parametrize("dtype", [d for d in ALL_DTYPES if d.is_float], ids=str)
def test_division_by_powers_of_two(dtype: DType) -> None:
    values = special_values(dtype)
    shortened = 0
    exponents = {16: range(-26, 17), 32: range(-150, 129), 64: range(-1075, 1024, 7)}[dtype.bits]
    for exponent in exponents:
        with np.errstate(over="ignore", under="ignore"):
            divisor = np.array(math.ldexp(1.0, exponent)).astype(dtype.numpy)
        b = Builder("f")
        x = b.param(TensorType(dtype, values.shape))
        f = b.build([b.div(x, b.full(b.constant(value=divisor), shape=values.shape))])
        fired: Counter[str] = Counter()
        g = simplify(f, fired)
        if fired["div_power_of_two"]:
            shortened += 1
            with np.errstate(all="ignore"):
                assert_equal_bits(interpret(f, [values])[0], interpret(g, [values])[0])
    assert shortened > len(exponents) // 2


# Passes by themselves.


def test_inlining_shares_nothing_between_copies() -> None:
    inner = KEEPS
    b = Builder("main")
    x = b.param(F4, "x")
    f = b.build([b.call(x, function=inner), b.call(x, function=inner)])
    g = PASSES["inline"].run(f)
    assert len({r for op in g.ops for r in op.results}) == 2
    verify(g)


def test_deep_calls_inline() -> None:
    f = KEEPS
    for depth in range(60):
        b = Builder(f"level{depth}")
        f = b.build([b.call(b.param(F4, "x"), function=f)])
    assert [op.name for op in PASSES["inline"].run(f).ops] == ["exp"]


def test_fold_leaves_large_results() -> None:
    for n, folds in ((1024, True), (1025, False)):
        b = Builder("f")
        c = b.constant(value=np.arange(n, dtype=np.int32))
        g = PASSES["fold"].run(b.build([b.add(c, c)]))
        assert (g.ops[-1].name == "constant") == folds


def test_fold_takes_the_line_of_the_operation() -> None:
    f = parse_function(
        'func @f() -> (f32[]) { %0 = constant {value=dense<f32[]>(2.0)} loc("a.py":1) %1 = neg %0 loc("a.py":2) return %1 }'
    )
    assert PASSES["fold"].run(f).ops[-1].loc == Loc("a.py", 2)


def test_fold_keeps_shapes_without_elements() -> None:
    """The size of [0, B] is known, its shape is not."""
    text = "func @f() -> (f32[0, B]) { %0 = constant {value=dense<f32[]>(2.0)} %1 = full %0 {shape=[0, B]} %2 = reshape %1 {shape=[0, B]} return %2 }"
    verify(PASSES["fold"].run(parse_function(text)))


def test_cse_tells_attributes_apart_by_bits() -> None:
    b = Builder("f")
    zero, negative = (b.constant(value=DenseArray(np.array(v, np.float32))) for v in (0.0, -0.0))
    f = b.build([zero, negative])
    assert PASSES["cse"].run(f) is f


def test_dce_keeps_parameters_and_checks() -> None:
    f = parse_function(
        "func @f(%x: f32[4], %i: i32[2]) -> (f32[4]) { %0 = exp %x %1 = check_index %i {size=4} return %x }"
    )
    g = PASSES["dce"].run(f)
    assert g.params == f.params
    assert [op.name for op in g.ops] == ["check_index"]


def test_simplify_reports_a_rule_that_changes_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphc.ir.passes import simplify as module

    def wrong(b: object, op: Operation) -> Value:
        return op.operands[0]

    rule = Rule("wrong", "sum(x) = x", ("sum",), wrong)
    monkeypatch.setattr(module, "_rules", lambda: {"sum": (rule,)})
    with pytest.raises(AssertionError, match="the rule wrong made"):
        module.simplify(parse_function("func @f(%x: f32[4]) -> (f32[]) { %0 = sum %x {axes=[0]} return %0 }"))


def test_terms_of_equations() -> None:
    assert parse_term("select(not(c), -0.0, f(x, -inf))") == Apply(
        "select", (Apply("not", ("c",)), Number(-0.0), Apply("f", ("x", Number(-float("inf")))))
    )
