"""The direct form of a contraction: one thread for each element of the result, one chain of products.

For products with next to no reuse of their operands: depthwise convolutions, outer products, tiny depths.
"""

from __future__ import annotations

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.product import Body, Product, multiply_add
from graphc.codegen.expr import Expr, const, equal, index, not_equal, select, var
from graphc.codegen.loops import Assign, Declare, For, If, Let, Stmt
from graphc.codegen.lower.affine import least_of, tidy
from graphc.codegen.lower.contraction import widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import ceil_div
from graphc.ir.function import Function
from graphc.ir.types import size_of

THREADS = 256
BLOCK = 256  # of k, in the bit contract
UNROLL = 64  # products written out at most


def lower_direct(group: Function, choice: Choice) -> Lowered:
    """One kernel: thread t makes the element t of batch x rows x columns."""
    p = Product(group, choice)
    c = p.c
    flat = p.name("item")
    total = p.batches * p.rows * p.columns
    body: Body = []
    column_flat = p.let(body, "column", flat % p.columns)
    rest = p.let(body, "rest", flat // p.columns)
    row_flat = p.let(body, "row", rest % p.rows)
    batch_flat = p.let(body, "batch", rest // p.rows)
    batch = p.coords(body, "b", batch_flat, c.batch)
    row = p.coords(body, "m", row_flat, c.left.free)
    column = p.coords(body, "n", column_flat, c.right.free)
    loops = [flat, *batch, *row, *column]
    value, sums = _chain(p, batch, row, column, loops)
    body += [*sums, *p.finish(value, batch, row, column, loops)]
    here: list[Stmt] = [Let(flat, var("block") * THREADS + var("thread")), If(flat < total, tuple(body))]
    return p.lowered([p.kernel("contract", here, ceil_div(total, THREADS), THREADS)])


def _chain(
    p: Product, batch: list[Expr], row: list[Expr], column: list[Expr], loops: list[Expr]
) -> tuple[Expr, Body]:
    """The sum over the whole depth, and the statements that make it."""
    c, zero = p.c, const(p.dtype, 0)
    acc, total = p.name("acc", p.dtype), p.name("total", p.dtype)

    def step(depth: tuple[Expr, ...], inner: list[Expr]) -> Body:
        levels = [*loops, *inner]
        a = tidy(widened(c, c.left.at(batch, row, depth)), levels)
        b = tidy(widened(c, c.right.at(batch, column, depth)), levels)
        return [*p.checks(), Assign(acc, multiply_add(a, b, acc))]

    size = size_of(c.depth)
    if isinstance(size, int) and size <= BLOCK:
        names = [p.name("k") if d != 1 else index(0) for d in c.depth]
        nest = step(tuple(names), [n for n in names if n.op == "var"])
        written = 1
        for name, d in reversed(list(zip(names, c.depth, strict=True))):
            if name.op == "var":
                assert isinstance(d, int)
                written *= d
                nest = [For(name, index(0), index(d), tuple(nest), index(1), unroll=written <= UNROLL)]
        return acc, [Declare(acc, zero), *nest]
    if len(c.depth) > 1 and isinstance(inner_size := size_of(c.depth[1:]), int) and inner_size * 4 <= BLOCK:
        return _nested(p, step, acc, total)
    start, k = p.name("start"), p.name("k")
    inner = [For(k, start, least_of(start + BLOCK, p.depth), tuple(step(delinearise(k, c.depth), [start, k])), index(1))]
    return total, [
        Declare(total, zero),
        For(start, index(0), p.depth, (Declare(acc, zero), *inner, _add(total, acc, equal(start, 0))), index(BLOCK)),
    ]


def _nested(p: Product, step: object, acc: Expr, total: Expr) -> tuple[Expr, Body]:
    """Loops over the depth's dimensions without divisions: blocks end wherever the flat index says so."""
    c = p.c
    assert callable(step)
    names = [p.name("k") if d != 1 else index(0) for d in c.depth]
    flat = linearise(names, c.depth)
    zero = const(p.dtype, 0)
    ends = If(
        equal((flat + 1) % BLOCK, 0),
        (_add(total, acc, flat < BLOCK), Assign(acc, zero)),
    )
    nest: Body = [*step(tuple(names), [n for n in names if n.op == "var"]), ends]
    for name, d in reversed(list(zip(names, c.depth, strict=True))):
        if name.op == "var":
            nest = [For(name, index(0), dim_expr(d), tuple(nest), index(1))]
    last = If(not_equal(p.depth % BLOCK, 0), (_add(total, acc, p.depth < BLOCK),))
    return total, [Declare(total, zero), Declare(acc, zero), *nest, last]


def _add(total: Expr, acc: Expr, first: Expr) -> Stmt:
    """A finished block's sum joins the total; the first one is the total."""
    return Assign(total, select(first, acc, total + acc))
