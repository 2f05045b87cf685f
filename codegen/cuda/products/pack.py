"""Packing: an operand that the bulk copy engine cannot address, written to memory in the form that it can.

The packed operand is [the batch dimensions that it depends on][free index][depth, padded to 16 bytes], in the element type of
the tensor cores. What producers are fused in front of the operand is computed here, once.
"""

from __future__ import annotations

from graphc.codegen.cuda.products.operand_view import View
from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.expr import Expr, cast, const, index, select, var
from graphc.codegen.loops import If, Kernel, Let, Store, Vector
from graphc.codegen.lower.affine import ceil_div, least_of, split_lanes, tidy
from graphc.codegen.lower.contraction import Operand, access
from graphc.codegen.lower.index import delinearise, dim_expr
from graphc.ir.types import Dim, DType, size_of

THREADS = 256


def packed_size(p: Product, side: Operand, element: DType) -> Dim:
    """Elements of the packed operand, which short rows make larger than the operand itself."""
    width = 16 // element.itemsize
    batch = tuple(p.c.batch[i] for i in access(p.c, side).batch)
    return size_of(batch) * side.size * ((size_of(p.c.depth) + (width - 1)) // width) * width


def pack(p: Product, side: Operand, element: DType, name: str) -> tuple[Kernel, View]:
    """The kernel that packs one side, and the packed view. A thread writes 16 bytes."""
    c = p.c
    found = access(c, side)
    batch = tuple(c.batch[i] for i in found.batch)
    width = 16 // element.itemsize
    depth = size_of(c.depth)
    chunks: Dim = (depth + (width - 1)) // width
    packed = p.new_scratch(name, element, packed_size(p, side, element))
    rows, columns = dim_expr(size_of(batch) * side.size), dim_expr(chunks)
    body: Body = []
    item = p.let(body, "item", var("block") * THREADS + var("thread"))
    inner: Body = []
    if found.unit_free and not found.unit_depth:
        # Neighbouring threads read neighbours.
        row, chunk = p.let(inner, "row", item % rows), p.let(inner, "chunk", item // rows)
    else:
        row, chunk = p.let(inner, "row", item // columns), p.let(inner, "chunk", item % columns)
    count = dim_expr(side.size)
    free = p.let(inner, "free", row % count) if batch else row
    outer = p.coords(inner, "b", row // count, batch) if batch else []
    coords = [index(0)] * len(c.batch)
    for i, e in zip(found.batch, outer, strict=True):
        coords[i] = e
    inner.append(_row(p, side, element, coords, free, chunk * width, (row * columns + chunk) * width, width, packed.name))
    body.append(If(item < rows * columns, tuple(inner)))
    kernel = p.kernel(f"pack_{name}", body, ceil_div(rows * columns, THREADS), THREADS)
    stride = columns * width
    sizes = (dim_expr(depth), count, *((dim_expr(size_of(batch)),) if batch else ()))
    strides = (stride, *((count * stride,) if batch else ()))
    view = View(packed, True, sizes, strides, tuple(index(0) for _ in sizes), (), found.batch if batch else ())
    return kernel, view


def _row(
    p: Product, side: Operand, element: DType, batch: list[Expr], free: Expr, start: Expr, at: Expr, width: int, name: str
) -> Vector:
    """`width` neighbours along the depth of one free index, from `start` on, to the packed place `at`."""
    c = p.c
    packed = next(s.buffer for s in p.scratch if s.buffer.name == name)
    lane = p.name("lane")
    depth = dim_expr(size_of(c.depth))
    whole = divisor(depth, p.divides) % width == 0
    if whole:
        k = split_lanes(start, lane, width, c.depth)
    else:
        k = delinearise(least_of(start + lane, depth - 1), c.depth)
    value = side.at(batch, delinearise(free, side.free), k)
    value = cast(value, element)
    if not whole:
        value = select(start + lane < depth, value, const(element, 0))
    value = tidy(value, [*(b for b in batch if b.op == "var"), free, start, lane])
    named = p.name("value", element)
    return Vector(lane, width, (*p.checks(), Let(named, value), Store(packed, at + lane, named)))
