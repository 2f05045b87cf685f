"""Pooling windows and random bits inside kernels: the bits of the interpreter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.expr import children_first, var
from graphc.codegen.grouping import grouped
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import Buffer, Kernel
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.lower import lower
from graphc.codegen.lower.map import MOST_WINDOWS
from graphc.codegen.lower.pull import Pull
from graphc.codegen.prepare import prepare
from graphc.codegen.stages import fused
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.types import U64, TensorType, dtype, substitute

from tests.codegen.compiled import assert_compiled
from tests.codegen.kernel_oracle import same_bits
from tests.codegen.run_kernels import Native
from tests.codegen.values import mixed

Array = np.ndarray[Any, Any]
WINDOWS: dict[str, dict[str, Any]] = {
    "exact": {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)},
    "overlapping": {"window": (3, 3), "strides": (2, 1), "padding": ((1, 1), (0, 2)), "dilation": (1, 1)},
    "dilated": {"window": (2, 3), "strides": (1, 2), "padding": ((1, 0), (1, 2)), "dilation": (2, 2)},
    "gaps": {"window": (2, 1), "strides": (3, 2), "padding": ((0, 1), (0, 0)), "dilation": (1, 1)},
    "outside": {"window": (2, 2), "strides": (2, 2), "padding": ((3, 3), (2, 0)), "dilation": (1, 1)},
    "last dimension": {"window": (3,), "strides": (2,), "padding": ((1, 1),), "dilation": (1,)},
}
SHAPES = [("2, 3, 8, 8", {}), ("e0, 3, 7, 9", {"e0": 2}), ("2, 3, e0, e1", {"e0": 7, "e1": 9})]


def same(f: Function, extents: dict[str, int], args: list[Array]) -> list[Array]:
    got = Native(lower(f, host_target(), extents)).run(args, f.result_types, extents, 3)
    want = interpret(f, args, symbols=extents)
    for g, w in zip(got, want, strict=True):
        assert same_bits(g, w)
    return want


@pytest.mark.parametrize("element", ["f32", "i32", "f16", "u8"])
@pytest.mark.parametrize("shape", SHAPES, ids=[s for s, _ in SHAPES])
@pytest.mark.parametrize("window", WINDOWS)
def test_pooling(window: str, shape: tuple[str, dict[str, int]], element: str) -> None:
    attrs, (dims, extents) = WINDOWS[window], shape
    t = TensorType.parse(f"{element}[{dims}]")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, [substitute(d, extents) for d in t.shape]).astype(t.dtype.numpy)
    if t.dtype.is_float:
        x[rng.random(x.shape) < 0.05] = np.nan
        x[rng.random(x.shape) < 0.3] = -np.inf
        x[rng.random(x.shape) < 0.3] = -0.0

    b = Builder("pool")
    p = b.param(t)
    values, index = b.max_pool(p, **attrs)
    maxima, where = same(b.build([values, index]), extents, [x])

    b = Builder("pool")
    same(b.build([b.sum_pool(b.param(t), **attrs)]), extents, [x])

    dy = rng.integers(0, 5, maxima.shape).astype(maxima.dtype)
    b = Builder("pool")
    g, i = b.param(values.type), b.param(index.type)
    same(b.build([b.max_pool_grad(g, i, input_shape=t.shape, **attrs)]), extents, [dy, where])

    b = Builder("pool")
    same(b.build([b.sum_pool_grad(b.param(values.type), input_shape=t.shape, **attrs)]), extents, [dy])

    b = Builder("pool")
    g, i = b.param(t), b.param(index.type)
    same(b.build([b.max_pool_take(g, i, **attrs)]), extents, [x, where])


def test_index_that_is_no_window_position_takes_nothing() -> None:
    attrs = WINDOWS["exact"]
    b = Builder("pool")
    x, i = b.param(TensorType.parse("f32[4, 4]")), b.param(TensorType.parse("i32[2, 2]"))
    f = b.build([b.max_pool_take(x, i, **attrs)])
    args = [np.arange(1, 17, dtype=np.float32).reshape(4, 4), np.array([[-1, 4], [0, 3]], np.int32)]
    (taken,) = same(f, {}, args)
    assert taken.tolist() == [[0, 0], [9, 16]]


def test_fused_producers() -> None:
    b = Builder("pool")
    x = b.param(TensorType.parse("f32[2, 3, 6, 6]"))
    values, index = b.max_pool(b.exp(b.neg(x)), **WINDOWS["overlapping"])
    f = b.build([b.mul(values, values), index])
    rng = np.random.default_rng(0)
    arg = rng.integers(-2, 2, (2, 3, 6, 6)).astype(np.float32)
    _, where = Native(lower(f, host_target(), {})).run([arg], f.result_types, {})
    assert same_bits(where, interpret(f, [arg])[1])


@pytest.mark.parametrize("name", ["max_pool", "sum_pool", "max_pool_grad"])
def test_exact_windows_have_no_conditions(name: str) -> None:
    """Where padding is 0 and sizes fit, every element is read without a mask."""
    attrs = WINDOWS["exact"]
    b = Builder("pool")
    x = b.param(TensorType.parse("f32[2, 8, 8]"))
    if name == "max_pool_grad":
        args = (b.param(TensorType.parse("f32[2, 4, 4]")), b.param(TensorType.parse("i32[2, 4, 4]")))
        op = b.emit_op(name, *args, input_shape=(2, 8, 8), **attrs)
    else:
        op = b.emit_op(name, x, **attrs)
    f = b.build([op.results[0]])
    pull = Pull(f, {p: Buffer("x", p.type.dtype, "in") for p in f.params})
    e = pull.at(op.results[0], Position(op.results[0].type.shape, [var("b"), var("i"), var("j")]))
    loads = [n for n in children_first((e,)) if n.op == "load"]
    assert loads and all(len(n.args) == 1 for n in loads)
    assert len(loads) == (2 if name == "max_pool_grad" else 4)


@pytest.mark.parametrize("bits", ["u32", "u64"])
def test_random_bits(bits: str) -> None:
    b = Builder("bits")
    key, offset = b.param(TensorType(U64)), b.param(TensorType(U64))
    f = b.build([b.random_bits(key, offset, shape=(5, 67), dtype=dtype(bits))])
    for start in (0, 1, 2**34 - 100, 2**64 - 50):
        same(f, {}, [np.array(0x123456789ABCDEF1, np.uint64), np.array(start, np.uint64)])


LINES = {
    "no padding": ("f32[3, 2, 40, 70]", (2, 2), (2, 2), ((0, 0), (0, 0))),
    "rest of a line": ("f32[2, 41, 35]", (3, 2), (2, 2), ((0, 0), (0, 0))),
    "padded": ("f32[2, 56, 56]", (3, 3), (2, 2), ((1, 1), (1, 1))),
    "stride 1": ("f16[2, 28, 28]", (3, 3), (1, 1), ((1, 1), (1, 1))),
    "stride 3": ("f64[33, 101]", (2, 5), (1, 3), ((1, 0), (2, 4))),
    "larger stride": ("i32[2, 20, 131]", (1, 2), (2, 5), ((0, 0), (0, 1))),
    "far outside": ("f32[17, 67]", (2, 2), (2, 2), ((3, 5), (37, 33))),
    "one dimension": ("f32[5, 300]", (4,), (3,), ((2, 1),)),
    "a long line": ("f32[4500]", (3,), (2,), ((1, 1),)),
    "a volume": ("f32[2, 9, 10, 70]", (2, 3, 2), (2, 1, 2), ((0, 0), (1, 1), (0, 0))),
    "a side of one": ("f32[3, 1, 1, 600]", (1, 3), (1, 2), ((0, 0), (1, 1))),
}


@pytest.mark.parametrize("case", LINES)
def test_lines(case: str) -> None:
    """Images that do not fit a few vectors: forward, with what comes before and after, and the gradients."""
    text, window, strides, padding = LINES[case]
    attrs = {"window": window, "strides": strides, "padding": padding, "dilation": (1,) * len(window)}
    t = TensorType.parse(text)
    x = mixed(t.dtype, t.shape, 3)
    b = Builder("pool")
    p = b.param(t)
    values, index = b.max_pool(b.add(p, p), **attrs)
    cotangent = b.param(values.type)
    results = [b.mul(values, values), index, b.sum_pool(p, **attrs)]
    results.append(b.max_pool_grad(cotangent, index, input_shape=t.shape, **attrs))
    results.append(b.sub(b.sum_pool_grad(b.add(cotangent, values), input_shape=t.shape, **attrs), p))
    f = b.build(results)
    assert_compiled(f, [x, mixed(t.dtype, values.type.shape, 4)], ["maxima", "positions", "sums", "to maxima", "to sums"])
    assert sum(k.name == "pool" for k in kernels_of(f)) >= 4


def kernels_of(f: Function) -> list[Kernel]:
    found: list[Kernel] = []
    for op in fused(f).entry.ops:
        group = canonicalise(op.attrs["function"])
        found += lower(group.function, host_target(), dict(group.extents)).kernels
    return found


def test_a_maximum_is_not_computed_again_for_its_gradient() -> None:
    """Where windows overlap without strides, all of it has one shape."""
    b = Builder("pool")
    attrs = {"window": (3, 3), "strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    x = b.param(TensorType.parse("f32[2, 20, 20]"))
    values, index = b.max_pool(x, **attrs)
    f = b.build([b.max_pool_grad(values, index, input_shape=(2, 20, 20), **attrs)])
    assert [sum("pool" in o.name for o in op.attrs["function"].ops) for op in fused(f).entry.ops] == [1, 1]
    assert_compiled(f, [mixed(dtype("f32"), (2, 20, 20), 1)])


@pytest.mark.parametrize(
    "case, narrow", [("exact", "i8"), ("outside", "i8"), ("129 positions", "i16"), ("kept", ""), ("used otherwise", "")]
)
def test_positions_are_narrow_between_kernels(case: str, narrow: str) -> None:
    wide = {"window": (1, 129), "strides": (1, 100), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    attrs = WINDOWS.get(case, wide if narrow == "i16" else WINDOWS["exact"])
    b = Builder("step")
    x = b.param(TensorType.parse("f32[2, 3, 8, 300]"))
    values, index = b.emit_op("max_pool", x, **attrs).results
    dy = b.param(values.type)
    results = [values, b.emit("max_pool_grad", dy, index, input_shape=x.type.shape, **attrs)]
    if case == "kept":
        results.append(index)
    if case == "used otherwise":
        results.append(b.emit("sum", b.emit("cast", index, dtype=dtype("f32")), axes=(0, 1, 2, 3)))
    f = b.build(results)
    module = grouped(prepare(f)[0])
    between = {str(v.type.dtype) for op in module.entry.ops for v in op.operands} - {"f32"}
    assert between == ({narrow or "i32"})
    assert_compiled(f, [mixed(x.type.dtype, (2, 3, 8, 300), 1), mixed(x.type.dtype, tuple(map(int, values.type.shape)), 2)])


LARGE = {
    "a volume": ("f32[2, 16, 16, 16]", (5, 5, 3), (2, 2, 2), (1, 1, 1)),
    "dilated": ("f32[2, 3, 33, 33]", (5, 5), (1, 1), (3, 3)),
    "dilated with steps": ("f32[2, 3, 16, 16]", (7, 7), (2, 2), (2, 2)),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_windows_are_not_written_out(case: str) -> None:
    """Neither for every vector of an image, nor for many lanes whose elements are read one by one."""
    text, window, strides, dilation = LARGE[case]
    t = TensorType.parse(text)
    b = Builder("pool")
    x = b.param(t)
    attrs = {"window": window, "strides": strides, "padding": ((1, 1),) * len(window), "dilation": dilation}
    values, index = b.max_pool(x, **attrs)
    dy = b.param(values.type)
    f = b.build([values, index, b.max_pool_grad(dy, index, input_shape=t.shape, **attrs)])
    assert_compiled(f, [mixed(t.dtype, t.shape, 3), mixed(t.dtype, values.type.shape, 4)])
    terms = math.prod(window)
    for k in kernels_of(f):
        assert emit_kernel(k, host_target()).count("\n") < 100 + 30 * max(terms, MOST_WINDOWS)
