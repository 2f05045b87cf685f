"""Sums of blocks of k that different blocks of threads make, and the kernel that adds them in order.

The contract's blocks of 256 k are chains of their own, so who makes them changes no bit.
"""

from __future__ import annotations

from graphc.codegen.cuda.products.product import Body, Product
from graphc.codegen.expr import Expr, index, load, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let
from graphc.codegen.lower.affine import ceil_div
from graphc.codegen.lower.index import delinearise
from graphc.ir.types import size_of

BLOCK = 256  # of k, in the bit contract
THREADS = 256
AT_ONCE = 8  # sums that are loaded before they are added


def new_sums(p: Product) -> Buffer:
    """Memory for [block of k][batch][rows][columns]."""
    parts = (size_of(p.c.depth) + (BLOCK - 1)) // BLOCK
    return p.new_scratch("sums", p.dtype, parts * size_of(p.c.batch) * p.c.left.size * p.c.right.size)


def element_coords(p: Product, body: Body, flat: Expr) -> tuple[list[Expr], list[Expr], list[Expr], Expr]:
    """Coordinates of the element `flat` of batch x rows x columns, and its flat column."""
    column_flat, rest = p.let(body, "column", flat % p.columns), p.let(body, "rest", flat // p.columns)
    row_flat, batch_flat = p.let(body, "row", rest % p.rows), p.let(body, "batch", rest // p.rows)
    batch = p.coords(body, "b", batch_flat, p.c.batch)
    row = p.coords(body, "m", row_flat, p.c.left.free)
    return batch, row, list(delinearise(column_flat, p.c.right.free)), column_flat


def finish_kernel(p: Product, sums: Buffer) -> Kernel:
    """Adds the sums of the blocks of k in ascending order, an element a thread, and does the epilogue."""
    flat, total = p.name("item"), p.name("total", p.dtype)
    size = p.batches * p.rows * p.columns
    body: Body = []
    batch, row, column, column_flat = element_coords(p, body, flat)
    parts = p.let(body, "parts", ceil_div(p.depth, BLOCK))
    whole = p.let(body, "whole", (parts - 1) // AT_ONCE * AT_ONCE + 1)
    several, one = p.name("part"), p.name("part")
    names = [p.name("sum", p.dtype) for _ in range(AT_ONCE)]
    loads: Body = [Let(n, load(sums, (several + i) * size + flat)) for i, n in enumerate(names)]
    adds: Body = [Assign(total, total + n) for n in names]
    body += [
        Declare(total, load(sums, flat)),
        For(several, index(1), whole, (*loads, *adds), index(AT_ONCE)),
        For(one, whole, parts, (Assign(total, total + load(sums, one * size + flat)),), index(1)),
        *p.finish(total, batch, row, column, [*batch, *row, column_flat]),
    ]
    here: Body = [Let(flat, var("block") * THREADS + var("thread")), If(flat < size, tuple(body))]
    return p.kernel("finish", here, ceil_div(size, THREADS), THREADS)
