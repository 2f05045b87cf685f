"""Maps that read an operand across its lines: squares of it go through shared memory.

Of the result, dimension `inner` is contiguous; of the operand, dimension `across` of the same domain. A block takes a
square over both: it reads the operand along `across`, and computes and writes along `inner`. Lines of
the square in shared memory are one element longer than it, so that columns lie in different banks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.codegen.cuda.maps.sweep import BLOCK, COUNT, THREAD, THREADS, blocks_for
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, index, load, logical_and, replace
from graphc.codegen.loops import (
    Alloc,
    Barrier,
    Buffer,
    For,
    If,
    Let,
    Report,
    Stmt,
    Store,
    Vector,
)
from graphc.codegen.lower.across import template
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import Names, ceil_div, split_coords
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Value
from graphc.ir.types import BOOL, Shape, size_of, substitute

LANES = 32
# Smaller squares would be mostly empty, and smaller images fit the first cache.
LEAST_SIDE, LEAST_AREA = 16, 4096
MANY = 1 << 21  # elements of larger squares
MOST_SHARED = 40 << 10  # of the 48 KB that every block may have


def across_dim(group: Function, pull: Pull, sizes: Mapping[str, int]) -> int | None:
    """The dimension along which a map reads most of what it reads across its lines; None if that is not worth squares."""
    shape = group.results[0].type.shape
    found = {k: loads for k, loads in template(group, pull).across.items() if _fits(shape, k, sizes)}
    return max(found, key=lambda k: sum(e.dtype.itemsize for e in found[k]), default=None)


def _fits(shape: Shape, k: int, sizes: Mapping[str, int]) -> bool:
    inner = max(i for i, d in enumerate(shape) if d != 1)
    a, b = (int(substitute(shape[d], dict(sizes))) for d in (k, inner))
    return min(a, b) >= LEAST_SIDE and a * b >= LEAST_AREA


def elements_for(group: Function, k: int, sizes: Mapping[str, int]) -> int:
    """Elements of a line of the square that a thread takes: 2 where they are small, or where there are squares enough
    for all multiprocessors."""
    shape = group.results[0].type.shape
    inner = max(i for i, d in enumerate(shape) if d != 1)
    a, b, total = (int(substitute(d, dict(sizes))) for d in (shape[k], shape[inner], size_of(shape)))
    size = max(v.type.dtype.itemsize for v in group.results)
    return 2 if size <= 2 or (size == 4 and min(a, b) >= 2 * LANES and total >= MANY) else 1


def squares(
    group: Function, pull: Pull, targets: list[tuple[Value, Buffer]], k: int, elements: int, whole: bool, target: Target
) -> tuple[list[Stmt], Expr]:
    """The body of the kernel and its number of blocks. k: the dimension across; elements: of a line, for each
    thread; whole: both sides are multiples of `elements`."""
    found = template(group, pull)
    shape = group.results[0].type.shape
    inner = max(i for i, d in enumerate(shape) if d != 1)
    side = LANES * elements
    loads = found.across[k]
    most = MOST_SHARED // (side * (side + 1) * max(e.dtype.itemsize for e in loads))
    loads = loads[: max(1, most)]
    tiles = [Buffer(f"square{n}", e.dtype, "shared") for n, e in enumerate(loads)]
    names = Names()
    outer = tuple(1 if i in (k, inner) else d for i, d in enumerate(shape))
    across, along = dim_expr(shape[k]), dim_expr(shape[inner])
    down, right = ceil_div(across, side), ceil_div(along, side)
    item, rest, row, top, left = (names.fresh(s) for s in ("item", "rest", "row", "top", "left"))
    x, y = names.fresh("x"), names.fresh("y")
    stmts, coords = split_coords(row, outer, names)
    body: list[Stmt] = [
        Let(left, item % right * side),
        Let(rest, item // right),
        Let(top, rest % down * side),
        Let(row, rest // down),
        *stmts,
    ]
    shared = side * (side + 1)

    def at(a: Expr, b: Expr) -> dict[Expr, Expr]:
        moved = {v: c for v, c in zip(found.coords, coords, strict=True) if v.op == "var"}
        return {**moved, found.coords[k]: a, found.coords[inner]: b}

    step = names.fresh("r")

    def fetch(lane: Expr) -> list[Stmt]:
        here = at(top + x + lane, left + y + step)
        place = (y + step) * (side + 1) + x + lane
        return [Store(t, place, replace(e, here)) for t, e in zip(tiles, loads, strict=True)]

    def compute(lane: Expr) -> list[Stmt]:
        here = at(top + y + step, left + x + lane)
        place = (x + lane) * (side + 1) + y + step
        for t, e in zip(tiles, loads, strict=True):
            here[e] = load(t, place)
        named = [names.fresh("v", v.dtype) for v in found.values]
        lets = [Let(n, replace(v, here)) for n, v in zip(named, found.values, strict=True)]
        stores = [Store(b, replace(p, here), n) for (_, b), p, n in zip(targets, found.places, named, strict=True)]
        reports = [
            Report(replace(r.cond, here), r.site, replace(r.value, here))
            for r in found.reports
            if isinstance(r, Report)
        ]
        return [*reports, *lets, *stores]

    full = names.fresh("full", BOOL)

    def lines(inside: Callable[[Expr], list[Stmt]], first: Expr, stop: Expr, other: Expr, end: Expr) -> Stmt:
        """A thread's shares of all lines: `elements` from `first` on, of the lines from `other` on."""
        lane = names.fresh("l") if elements > 1 else index(0)
        stmts = tuple(inside(lane))
        there = other + step < end
        if elements == 1:
            plain, masked = stmts, (If(logical_and(first < stop, there), stmts),)
        else:
            plain = (Vector(lane, elements, stmts),)
            if whole:
                masked = (If(logical_and(first < stop, there), plain),)
            else:
                masked = (If(there, (Vector(lane, elements, (If(first + lane < stop, stmts),)),)),)
        apart = index(THREADS // LANES)
        every = [For(step, index(0), index(side), b, apart, unroll=u) for b, u in ((plain, True), (masked, False))]
        return If(full, (every[0],), (every[1],))

    body += [
        Let(full, logical_and(top + side <= across, left + side <= along)),
        lines(fetch, top + x, across, left + y, along),
        Barrier(),
        lines(compute, left + x, along, top + y, across),
        Barrier(),
    ]
    items = dim_expr(size_of(outer)) * down * right
    loop = For(item, BLOCK, items, tuple(body), COUNT)
    head: list[Stmt] = [Alloc(t, shared) for t in tiles]
    head += [Let(x, THREAD % LANES * elements), Let(y, THREAD // LANES), loop]
    return head, blocks_for(items, target)


