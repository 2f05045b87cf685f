"""The direct form of a contraction: one thread for each element of the result, one chain of products.

For products with next to no reuse of their operands: depthwise convolutions, outer products, tiny depths. Where the
result has few elements and the depth is long, each block of k is a thread's (sums.py).
"""

from __future__ import annotations

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products.product import Body, Product, multiply_add
from graphc.codegen.cuda.products.sums import BLOCK, element_coords, finish_kernel, new_sums
from graphc.codegen.expr import Expr, const, equal, index, not_equal, select, var
from graphc.codegen.loops import Assign, Declare, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import least_of, tidy
from graphc.codegen.lower.contraction import widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import ceil_div
from graphc.ir.function import Function
from graphc.ir.types import size_of

THREADS = 256
UNROLL = 64  # products written out at most


def lower_direct(group: Function, choice: Choice) -> Lowered:
    """Thread t makes the element t of batch x rows x columns; number split: of blocks of k x batch x rows x columns."""
    p = Product(group, choice)
    return p.lowered(_split(p) if choice.number("split") else [_whole(p)])


def _threads(name: Expr, total: Expr, body: Body) -> Body:
    """`body` in the threads that have an item."""
    return [Let(name, var("block") * THREADS + var("thread")), If(name < total, tuple(body))]


def _whole(p: Product) -> Kernel:
    flat = p.name("item")
    body: Body = []
    batch, row, column, column_flat = element_coords(p, body, flat)
    loops = [flat, *batch, *row, column_flat]
    value, sums = _Chain(p, batch, row, column, loops).whole()
    body += [*sums, *p.finish(value, batch, row, column, loops)]
    total = p.batches * p.rows * p.columns
    return p.kernel("contract", _threads(flat, total, body), ceil_div(total, THREADS), THREADS)


def _split(p: Product) -> list[Kernel]:
    item = p.name("item")
    each = p.batches * p.rows * p.columns
    body: Body = []
    part = p.let(body, "part", item // each)
    flat = p.let(body, "element", item - part * each)
    batch, row, column, column_flat = element_coords(p, body, flat)
    start = p.let(body, "start", part * BLOCK)
    chain = _Chain(p, batch, row, column, [item, *batch, *row, column_flat, start])
    sums = new_sums(p)
    body += [*chain.block(start), Store(sums, item, chain.acc)]
    total = ceil_div(p.depth, BLOCK) * each
    first = p.kernel("contract", _threads(item, total, body), ceil_div(total, THREADS), THREADS)
    return [first, finish_kernel(p, sums)]


class _Chain:
    """The sum of one element: `acc` of a block of k, `total` of all."""

    def __init__(self, p: Product, batch: list[Expr], row: list[Expr], column: list[Expr], loops: list[Expr]) -> None:
        self.p, self.batch, self.row, self.column, self.loops = p, batch, row, column, loops
        self.acc, self.total = p.name("acc", p.dtype), p.name("total", p.dtype)
        self.zero = const(p.dtype, 0)

    def step(self, depth: tuple[Expr, ...], inner: list[Expr]) -> Body:
        c, levels = self.p.c, [*self.loops, *inner]
        a = tidy(widened(c, c.left.at(self.batch, self.row, depth)), levels)
        b = tidy(widened(c, c.right.at(self.batch, self.column, depth)), levels)
        return [*self.p.checks(), Assign(self.acc, multiply_add(a, b, self.acc))]

    def block(self, start: Expr) -> Body:
        """One block of k, its coordinates by division."""
        p, k = self.p, self.p.name("k")
        steps = self.step(delinearise(k, p.c.depth), [start, k])
        loop = For(k, start, least_of(start + BLOCK, p.depth), tuple(steps), index(1))
        return [Declare(self.acc, self.zero), loop]

    def add(self, first: Expr) -> Stmt:
        """A finished block's sum joins the total; the first one is the total."""
        return Assign(self.total, select(first, self.acc, self.total + self.acc))

    def whole(self) -> tuple[Expr, Body]:
        """The sum over the whole depth, and the statements that make it."""
        p, depth = self.p, self.p.c.depth
        size, inner_size = size_of(depth), size_of(depth[1:])
        if isinstance(size, int) and size <= BLOCK:
            return self.acc, [Declare(self.acc, self.zero), *self._nest(())]
        if len(depth) > 1 and isinstance(inner_size, int) and inner_size * 4 <= BLOCK:
            # Loops over the depth's dimensions need no divisions; blocks end wherever the flat index says so.
            names = [p.name("k") if d != 1 else index(0) for d in depth]
            flat = linearise(names, depth)
            ends = If(equal((flat + 1) % BLOCK, 0), (self.add(flat < BLOCK), Assign(self.acc, self.zero)))
            last = If(not_equal(p.depth % BLOCK, 0), (self.add(p.depth < BLOCK),))
            declared: Body = [Declare(self.total, self.zero), Declare(self.acc, self.zero)]
            return self.total, [*declared, *self._nest((ends,), names), last]
        start = p.name("start")
        blocks = For(start, index(0), p.depth, (*self.block(start), self.add(equal(start, 0))), index(BLOCK))
        return self.total, [Declare(self.total, self.zero), blocks]

    def _nest(self, after: tuple[Stmt, ...], names: list[Expr] | None = None) -> Body:
        """Loops over the depth's dimensions in order; the innermost few are written out."""
        p, depth = self.p, self.p.c.depth
        if names is None:
            names = [p.name("k") if d != 1 else index(0) for d in depth]
        nest: Body = [*self.step(tuple(names), [n for n in names if n.op == "var"]), *after]
        written = 1
        for name, d in reversed(list(zip(names, depth, strict=True))):
            if name.op == "var":
                written = written * d if isinstance(d, int) else UNROLL + 1
                nest = [For(name, index(0), dim_expr(d), tuple(nest), index(1), unroll=written <= UNROLL)]
        return nest
