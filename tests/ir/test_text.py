"""The text form: `parse(print(f)) == f` for functions over all operations and for every kind of attribute."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from graphc.ir import registry
from graphc.ir.function import Builder, DenseArray, Function, Loc, Module
from graphc.ir.registry import REQUIRED, OpDef, operations
from graphc.ir.text import IRSyntaxError, parse_function, parse_module, print_function, print_module
from graphc.ir.types import ALL_DTYPES, DimExpr, TensorType, symbol
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.random_functions import random_function

F4 = TensorType.parse("f32[4]")


@pytest.fixture(scope="module")
def probe() -> Iterator[None]:
    """An operation that takes any operands and any attribute."""
    definition = OpDef(
        "probe",
        "control",
        lambda types, attrs: (),
        lambda args, attrs, types: (),
        "",
        attrs={"value": REQUIRED},
    )
    registry._TABLE["probe"] = definition
    yield
    del registry._TABLE["probe"]


def check_round_trip(f: Function) -> None:
    text = print_function(f)
    g = parse_function(text)
    assert g == f
    assert [op.loc for op in g.ops] == [op.loc for op in f.ops]
    assert print_function(g) == text
    bare = parse_function(print_function(f, locs=False))
    assert bare == f
    assert all(op.loc is None for op in bare.ops)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30))
def test_random_functions(seed: int, size: int) -> None:
    check_round_trip(random_function(seed, size))


def test_random_functions_reach_every_operation() -> None:
    """An operation that is missing here needs a recipe in random_functions.py."""
    seen: set[str] = set()
    for seed in range(400):
        seen.update(op.name for op in random_function(seed, 15).ops)
    assert set(operations()) - seen == set()


# Attributes of every kind.

names = st.one_of(
    st.sampled_from(["x", "x.1", "a b", "0", "", "f32", "nan", "%", "@f", 'q"q', "é"]), st.text(max_size=5)
)
symbols = st.sampled_from(["B", "N", "T_1", "f32", "nan", "true", "dense", "splat", "loc"]).map(symbol)


def dims(depth: int = 3) -> st.SearchStrategy[int | DimExpr]:
    leaf = st.one_of(symbols, st.integers(-3, 9))
    if depth == 0:
        return leaf
    inner = dims(depth - 1)
    return st.one_of(
        leaf,
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        st.tuples(inner, st.integers(1, 5)).map(lambda p: p[0] // p[1]),
    )


@st.composite
def arrays(draw: st.DrawFn) -> DenseArray:
    dtype = draw(st.sampled_from(ALL_DTYPES))
    shape = draw(st.sampled_from([(), (1,), (0,), (3,), (2, 2), (16,), (17,), (5, 4), (2, 0, 3)]))
    count = int(np.prod(shape))
    if draw(st.booleans()):
        raw = draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)) * count
    else:
        raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    bits = np.frombuffer(raw, f"u{dtype.itemsize}").reshape(shape)
    return DenseArray(bits != 0 if dtype.kind == "b" else bits.view(dtype.numpy))


@st.composite
def functions(draw: st.DrawFn) -> Function:
    b = Builder(draw(st.sampled_from(["f", "f.1", "g h"])))
    x = b.param(F4, "x")
    b.loc = draw(st.sampled_from([None, Loc("a.py", 1), Loc("b.py", 2)]))
    for _ in range(draw(st.integers(0, 2))):
        x = b.emit("neg", x)
    return b.build([x])


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(ALL_DTYPES),
        dims(),
        arrays(),
        functions(),
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=4))
def test_attributes(probe: None, attributes: list[object]) -> None:
    b = Builder("main")
    for value in attributes:
        b.emit("probe", value=value)
    check_round_trip(b.build([]))


@settings(max_examples=200, deadline=None)
@given(names, st.lists(names, max_size=5), st.text(max_size=5), st.integers(0, 10**6))
def test_names_and_lines(name: str, params: list[str], file: str, line: int) -> None:
    b = Builder("f")
    operands = [b.param(F4) for _ in params]
    b.loc = Loc(file, line)
    results = [b.emit("neg", v) for v in operands]
    f = b.build(results)
    check_round_trip(Function(name, f.params, f.ops, f.results, params))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(dims().filter(lambda d: not isinstance(d, int) or d >= 0), max_size=4),
    st.sampled_from(ALL_DTYPES),
)
def test_types(shape: list[int | DimExpr], dtype: object) -> None:
    b = Builder("f")
    x = b.param(TensorType(dtype, tuple(shape)), "x")  # type: ignore[arg-type]
    check_round_trip(b.build([x]))


# Functions inside functions.


def unary(name: str, opcode: str, loc: Loc | None = None) -> Function:
    b = Builder(name)
    x = b.param(F4, "x")
    b.loc = loc
    return b.build([b.emit(opcode, x)])


def calling(name: str, *callees: Function) -> Function:
    b = Builder(name)
    x = b.param(F4, "x")
    for f in callees:
        x = b.call(x, function=f)
    return b.build([x])


def test_different_functions_of_one_name() -> None:
    f = calling("f", unary("f", "exp"), unary("f", "neg"), calling("f.1", unary("f", "sin")))
    check_round_trip(f)
    text = print_function(f)
    for line in ('private func @f.1 "f"(', 'private func @f.2 "f"(', 'private func @f.1.1 "f.1"('):
        assert line in text


def test_equal_functions_print_once() -> None:
    f = calling("main", unary("act", "exp"), unary("act", "exp"))
    assert print_function(f).count("private func") == 1
    check_round_trip(f)


def test_equal_functions_keep_their_lines() -> None:
    f = calling("main", unary("act", "exp", Loc("a.py", 1)), unary("act", "exp", Loc("b.py", 2)))
    g = parse_function(print_function(f))
    assert [op.attrs["function"].ops[0].loc for op in g.ops] == [Loc("a.py", 1), Loc("b.py", 2)]
    assert print_function(f, locs=False).count("private func") == 1


def test_module_with_functions_inside() -> None:
    shared, hidden = unary("shared", "exp"), unary("hidden", "neg")
    m = Module([calling("main", shared, hidden, unary("shared", "sin")), shared])
    again = parse_module(print_module(m))
    assert again == m
    assert list(again.functions) == ["main", "shared"]
    assert print_module(again) == print_module(m)


def test_first_function_calls_the_others() -> None:
    two = print_function(unary("f", "exp")) + "\n" + print_function(unary("g", "exp"))
    assert list(parse_module(two).functions) == ["f", "g"]
    with pytest.raises(
        IRSyntaxError, match="@g is not called from @f; read several functions with parse_module"
    ):
        parse_function(two)


# Reading what people write.


def test_types_comments_and_line_breaks_are_free() -> None:
    f = parse_function(
        """
        # adds
        func @add(%a: f32[2*(B + 1)], %b: float32[2 + 2*B]) -> (f32[2*B + 2]) {  # two operands
          %sum = add %a,
                     %b   loc("a.py" : 3)
          return %sum }
        """
    )
    assert f.ops[0].loc == Loc("a.py", 3)
    assert f.param_types[0] == TensorType.parse("f32[B]").with_shape((2 * symbol("B") + 2,))


def test_defaults_are_filled_in() -> None:
    text = "func @f(%x: f32[2, 3], %y: f32[3, 4]) -> (f32[2, 4]) { %0 = dot %x, %y {lhs_contract=[1], rhs_contract=[0]} return %0 }"
    assert parse_function(text).ops[0].attrs["lhs_batch"] == ()


def test_error_has_its_place() -> None:
    with pytest.raises(IRSyntaxError) as caught:
        parse_function("func @f(%x: f32[2]) -> (f32[2]) {\n\t%0 = nog %x\n  return %0\n}", "net.gir")
    error = caught.value
    assert (error.line, error.column, error.source) == (2, 7, "net.gir")
    assert error.message == "there is no operation 'nog'; did you mean not or neg or log?"
    assert str(error).splitlines()[0] == f"net.gir:2:7: {error.message}"
    assert isinstance(error, ValueError)


def test_wrong_attribute_kinds_are_drawn() -> None:
    """A type rule may fail in its own way for values that it does not expect."""
    text = "func @f(%x: f32[2]) -> (f32[2]) {{ %0 = {} %x {{{}}} return %0 }}"
    for opcode, attrs in [
        ("slice", "start=1, limit=2, stride=none"),
        ("sum", 'axes="x"'),
        ("permute", "axes=[none]"),
    ]:
        with pytest.raises(IRSyntaxError, match=opcode):
            parse_function(text.format(opcode, attrs))


# Cost.


@pytest.mark.parametrize("statement", ["str(f)", "parse_function(str(f))"])
def test_lean_imports(statement: str) -> None:
    """Printing loads no parser generator, and neither printing nor parsing loads LLVM."""
    code = (
        "import sys\n"
        "from graphc.ir.function import Builder\n"
        "from graphc.ir.types import TensorType\n"
        "from graphc.ir.text import parse_function\n"
        "b = Builder('f'); f = b.build([b.neg(b.param(TensorType.parse('f32[4]')))])\n"
        f"{statement}\n"
        "print('lark' in sys.modules, 'llvmlite' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str("parse" in statement), "False"]


def test_printing_is_fast_enough_for_cache_keys() -> None:
    b = Builder("f")
    x, w = b.param(TensorType.parse("f32[B, 64]"), "x"), b.param(TensorType.parse("f32[64, 64]"), "w")
    for _ in range(250):
        x = b.exp(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)))
    f = b.build([x])
    best = min(_seconds(f) for _ in range(7))
    # About 4 ms on the machine that this was written on; busy machines get the rest.
    assert best < 0.05


def _seconds(f: Function) -> float:
    begin = time.perf_counter()
    print_function(f)
    return time.perf_counter() - begin


def test_unknown_objects_do_not_print() -> None:
    from graphc.ir.text.printer import attribute_text

    with pytest.raises(TypeError, match="cannot be an attribute"):
        attribute_text(object())
