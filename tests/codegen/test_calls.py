"""Calls that are not inlined: groups of their own, one object for all calls of a function, the bits of the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.grouping import grouped
from graphc.codegen.groups import separate
from graphc.codegen.prepare import prepare
from graphc.codegen.program import Program, compile_function
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.passes.inline import inline, inline_all
from graphc.ir.text import parse_function, print_function
from graphc.ir.types import TensorType


def update(shape: str, dtype: str = "f32") -> Function:
    """p - lr / (1 - b^t) g / (sqrt(v') + 1), v' = v + g g, t' = t + 1."""
    b = Builder("update")
    t = TensorType.parse(f"{dtype}[{shape}]")
    p, g, v = (b.param(t, n) for n in "pgv")
    step, lr, beta = b.param(TensorType.parse("i64[]")), b.param(TensorType.parse("f64[]")), b.param(TensorType.parse("f64[]"))
    one = b.constant(value=np.array(1, np.int64))
    step = b.add(step, one)
    count = b.cast(step, dtype=lr.type.dtype)
    rest = b.sub(b.cast(one, dtype=lr.type.dtype), b.pow(beta, count))
    size = b.full(b.cast(b.div(lr, rest), dtype=t.dtype), shape=t.shape)
    other = b.full(b.cast(b.sqrt(rest), dtype=t.dtype), shape=t.shape)
    v = b.add(v, b.mul(g, g))
    ones = b.full(b.cast(one, dtype=t.dtype), shape=t.shape)
    p = b.sub(p, b.div(b.mul(size, g), b.add(b.sqrt(v), b.add(other, ones))))
    return b.build([p, v, step])


def training(shapes: list[str], noinline: bool = True) -> Function:
    """An update for each shape; the gradients are made by elementwise operations and are results, too."""
    b = Builder("training")
    lr, beta = b.param(TensorType.parse("f64[]"), "lr"), b.param(TensorType.parse("f64[]"), "beta")
    results, bodies = [], {}
    for shape in shapes:
        f = bodies.setdefault(shape, update(shape))
        p, g, v, step = (b.param(t) for t in f.param_types[:4])
        g = b.mul(g, p)
        results += [g, *b.emit("call", p, g, v, step, lr, beta, function=f, noinline=noinline)]
    return b.build(results)


def arguments(f: Function, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = []
    for t in f.param_types:
        shape = tuple(int(d) for d in t.shape)
        low, high = (0, 9) if t.dtype.is_integer else (0.1, 0.9)
        made.append(np.asarray(rng.uniform(low, high, shape)).astype(t.dtype.numpy))
    return made


def run(program: Program, args: list[np.ndarray]) -> list[np.ndarray]:
    outs = [np.zeros(tuple(int(d) for d in t.shape), t.dtype.numpy) for t in program.output_types]
    for source, target in program.donated:
        outs[target] = args[source] = args[source].copy()
    program.run([a.ctypes.data for a in args], [o.ctypes.data for o in outs])
    return outs


def check(f: Function, **options: object) -> Program:
    program = compile_function(f, **options)  # type: ignore[arg-type]
    args = arguments(f)
    wanted = interpret(f, args)
    for got, want in zip(run(program, list(args)), wanted, strict=True):
        assert got.tobytes() == np.asarray(want).tobytes()
    return program


SHAPES = ["5", "3, 7", "5", "1", "", "64, 33", "3, 7"]


def test_bits() -> None:
    f = training(SHAPES)
    check(f)
    check(f, fused=False)
    check(f, optimise=False)
    check(f, grain=1)
    check(training(SHAPES, noinline=False))


def test_calls_of_a_function_share_their_groups() -> None:
    shapes = [s for s in SHAPES if s not in ("", "1")]  # where elements are numbers, too
    module = check(training(shapes)).module
    groups = [op.attrs["function"] for op in module.entry.ops]
    assert not any(op.name == "call" for g in groups for op in g.ops)
    # For each update: its gradient, its numbers, its elements.
    assert len(groups) == 3 * len(shapes)
    numbers = [g for g in groups if any(op.name == "pow" for op in g.ops)]
    assert len(numbers) == len(shapes) and len({id(g) for g in numbers}) == 1
    assert len({id(g) for g in groups if len(g.results) == 2}) == len(set(shapes))


def test_passes_see_one_operation() -> None:
    f = training(SHAPES)
    assert [op.name for op in run_pipeline(f, DEFAULT).ops] == ["mul", "call"] * len(SHAPES)
    assert not any(op.name == "call" for op in inline_all(f).ops)


def test_updates_are_in_place() -> None:
    f = training(["7, 3", "5"])
    pairs = [(2 + 4 * i + k, 4 * i + r) for i in range(2) for k, r in ((0, 1), (2, 2), (3, 3))]
    assert check(f, donate=pairs).donated == frozenset(pairs)


def test_what_lays_out_an_operand_comes_with_the_call() -> None:
    b = Builder("laid_out")
    f = update("4, 6")
    p, v, step, lr, beta = (b.param(t) for t in (f.param_types[0], *f.param_types[2:]))
    g = b.permute(b.reshape(b.param(TensorType.parse("f32[24]")), shape=(6, 4)), axes=(1, 0))
    made = check(b.build(b.emit("call", p, g, v, step, lr, beta, function=f, noinline=True)))
    assert len(made.module.entry.ops) == 2
    # An operand that is a constant, and one that is given twice.
    b = Builder("odd")
    p, v, step, lr, beta = (b.param(t) for t in (f.param_types[0], *f.param_types[2:]))
    half = b.full(b.constant(value=np.array(0.5, np.float32)), shape=(4, 6))
    first = b.emit("call", p, half, v, step, lr, beta, function=f, noinline=True)
    check(b.build(b.emit("call", first[0], first[1], first[1], first[2], lr, lr, function=f, noinline=True)))


def test_results_that_nobody_reads() -> None:
    f = update("9")
    b = Builder("partly")
    args = [b.param(t) for t in f.param_types]
    check(b.build([b.emit("call", *args, function=f, noinline=True)[1]]))
    check(b.build([args[0], args[0], b.emit("call", *args, function=f, noinline=True)[2]]))


def test_a_function_that_holds_an_array_is_inlined() -> None:
    b = Builder("held")
    x = b.param(TensorType.parse("f32[3]"))
    held = b.build([b.add(x, b.constant(value=np.array([1, 2, 3], np.float32)))])
    b = Builder("outer")
    x = b.param(TensorType.parse("f32[3]"))
    f = b.build([b.emit("call", x, function=held, noinline=True)])
    assert [op.name for op in inline(f).ops] == ["constant", "add"]
    check(f)


def test_an_array_that_folding_would_make_is_computed() -> None:
    b = Builder("joined")
    x = b.param(TensorType.parse("f32[2]"))
    parts = [b.reshape(b.constant(value=np.array([n], np.float32)), shape=(1,)) for n in (1, 2)]
    body = b.build([b.add(x, b.concat(*parts, axis=0))])
    b = Builder("outer")
    x = b.param(TensorType.parse("f32[2]"))
    check(b.build([b.emit("call", x, function=body, noinline=True)]))


def test_calls_inside_calls_and_reductions() -> None:
    f = update("4, 5")
    b = Builder("outer")
    args = [b.param(t) for t in f.param_types]
    inner = b.emit("call", *args, function=f, noinline=True)
    outer = b.build([b.sum(inner[0], axes=(1,)), b.sum(b.mul(inner[1], args[1]), axes=(0, 1)), inner[2]])
    b = Builder("outermost")
    args = [b.param(t) for t in outer.param_types]
    check(b.build(b.emit("call", *args, function=outer, noinline=True)))


def test_gradient() -> None:
    b = Builder("body")
    x = b.param(TensorType.parse("f32[4, 3]"))
    body = b.build([b.mul(b.exp(x), x)])
    b = Builder("f")
    x = b.param(TensorType.parse("f32[4, 3]"))
    f = b.build([b.sum(b.emit("call", x, function=body, noinline=True), axes=(0, 1))])
    check(vjp(f))


def test_text() -> None:
    f = training(["3"])
    text = print_function(f)
    assert "noinline=true" in text and parse_function(text) == f
    assert "noinline" not in print_function(training(["3"], noinline=False))


def test_symbols_and_devices() -> None:
    f = update("N, 3")
    b = Builder("symbolic")
    args = [b.param(t) for t in f.param_types]
    g = b.build(b.emit("call", *args, function=f, noinline=True))
    prepared, _ = prepare(run_pipeline(g, DEFAULT))
    for device in (False, True):
        assert len(grouped(prepared, device).entry.ops) == 2
    assert len(separate(inline_all(g)).entry.ops) == len(f.ops)


def test_noinline_is_true_or_false() -> None:
    f = update("2")
    b = Builder("wrong")
    with pytest.raises(TypeError, match="the attribute noinline must be true or false, not 1"):
        b.emit("call", *(b.param(t) for t in f.param_types), function=f, noinline=1)
