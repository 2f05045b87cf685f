"""Copies of a convolution's operands with channels last: [first dimension][spatial dimensions][channels].

Channels are then neighbours in the depth of the product, so that a tensor-core kernel copies 16 bytes of them at a time, and one
check of a window's position serves them all. Producers that are fused in front of the operands are computed here, once,
and elements are rounded to the type that the tensor cores take.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.cuda.products.rounding import operand_type, rounded
from graphc.codegen.expr import Expr, index, load, var
from graphc.codegen.loops import Alloc, Barrier, Buffer, For, If, Kernel, Store
from graphc.codegen.lower.affine import ceil_div, least_of, logical_and, tidy
from graphc.codegen.lower.contraction import Contraction
from graphc.codegen.lower.index import Position, dim_expr, linearise
from graphc.ir.function import Value
from graphc.ir.types import DType, size_of

SIDE = 32  # of the squares that are turned in shared memory
DOWN = 8  # rows of threads


def is_pointwise(c: Contraction) -> bool:
    """Whether a conv is a product of matrices as its operands lie: windows of one element, at every place."""
    a = c.root.attrs
    steps = (*c.root.operands[1].type.shape[2:], *a["strides"], *a["lhs_dilation"])
    return all(n == 1 for n in steps) and all(n == 0 for pair in a["padding"] for n in pair)


def packs(c: Contraction, divides: Mapping[str, int]) -> bool:
    """Whether the operands of a convolution on tensor cores are copied first, with their channels last."""
    if c.root.name != "conv":
        return False
    w = c.root.operands[1].type
    dtype = operand_type(w.dtype, c.root.attrs.get("precision", ""))
    assert dtype is not None
    return not is_pointwise(c) and divisor(dim_expr(w.shape[1]), divides) * dtype.itemsize % 16 == 0


def pack_channels(p: Product, dtype: DType) -> list[Kernel]:
    """Kernels that copy both operands of a conv; from then on until the epilogue `p` reads the copies."""
    kernels, copies = [], {}
    for name, v in zip(("image", "weight"), p.c.root.operands, strict=True):
        if v not in copies:
            copies[v] = p.new_scratch(name, dtype, v.type.size)
            kernels.append(_pack(p, v, dtype, copies[v], name))
    for v, buffer in copies.items():
        _read_from(p, v, buffer)
    return kernels


def _read_from(p: Product, v: Value, buffer: Buffer) -> None:
    first, channels, *spatial = v.type.shape
    shape = (first, *spatial, channels)

    def at(position: Position) -> Expr:
        n, c, *rest = position.coords
        return load(buffer, linearise((n, *rest, c), shape))

    p.packed.append(v)
    p.c.pull.bind(v, at)


def _pack(p: Product, v: Value, dtype: DType, target: Buffer, name: str) -> Kernel:
    """Squares of channels x positions: read along the positions, written along the channels."""
    first, channels, *spatial = v.type.shape
    c_count, s_count = dim_expr(channels), dim_expr(size_of(spatial))
    square = Buffer("square", dtype, "shared")
    body: Body = [Alloc(square, SIDE * (SIDE + 1))]
    x, y = p.let(body, "x", var("thread") % SIDE), p.let(body, "y", var("thread") // SIDE)
    across, down = ceil_div(s_count, SIDE), ceil_div(c_count, SIDE)
    rest = p.let(body, "rest", var("block") // across)
    s0 = p.let(body, "s", (var("block") - rest * across) * SIDE)
    n = p.let(body, "n", rest // down)
    c0 = p.let(body, "c", (rest - n * down) * SIDE)
    s = p.let(body, "position", least_of(s0 + x, s_count - 1))
    places = p.coords(body, "at", s, tuple(spatial))
    i = p.name("i")
    inner: Body = []
    c = p.let(inner, "channel", least_of(c0 + (i * DOWN + y), c_count - 1))
    value = rounded(p.c.pull.at(v, Position(v.type.shape, (n, c, *places))), dtype)
    value = tidy(value, [n, *places, c])
    inner += [*p.checks(), Store(square, (i * DOWN + y) * (SIDE + 1) + x, value)]
    body.append(For(i, index(0), index(SIDE // DOWN), tuple(inner), index(1), unroll=True))
    body.append(Barrier())
    j = p.name("i")
    outer: Body = []
    row, column = p.let(outer, "row", s0 + (j * DOWN + y)), p.let(outer, "column", c0 + x)
    store = Store(target, (n * s_count + row) * c_count + column, load(square, x * (SIDE + 1) + (j * DOWN + y)))
    outer.append(If(logical_and(row < s_count, column < c_count), (store,)))
    body.append(For(j, index(0), index(SIDE // DOWN), tuple(outer), index(1), unroll=True))
    return p.kernel(f"pack_{name}", body, dim_expr(first) * across * down, SIDE * DOWN)
