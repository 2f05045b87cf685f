"""Maps that read an operand across its lines: squares of it are transposed in registers.

Of the result, dimension `inner` is contiguous; of the operand, dimension `across` of the same domain. An item is a
tile over both: the operand's part of it is turned, square by square, into a thread's own array, in which lanes
along `inner` are neighbours; then the tile is computed like any map. The squares at a tile's ends reach back into it
(or before it), so that every load is a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.donation import InPlace
from graphc.codegen.expr import Expr, index, load, logical_and, replace, var
from graphc.codegen.loops import Alloc, Buffer, For, If, Kernel, Let, Report, Stmt, Store, Transpose
from graphc.codegen.lower.across import Template, innermost, template
from graphc.codegen.lower.affine import Levels, depends, linear
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    minimum,
    split_coords,
    sweep,
)
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function
from graphc.ir.types import Shape, size_of, substitute

SIDE = 16  # of a square
# Of a tile, in elements along `across` and along `inner`; a tile's array has a margin for squares that reach back.
DOWN, RIGHT = 64, 64
PITCH = RIGHT + SIDE
MOST_LOADS = 4


def _squares_of(group: Function, found: Template) -> dict[int, list[Expr]]:
    """The loads of `found.across` that squares can be taken of: whole ones, of lines that lie equally far apart."""
    inner = found.coords[innermost(group.results[0].type.shape)]
    levels = Levels(())
    chosen: dict[int, list[Expr]] = {}
    for k, loads in found.across.items():
        for e in loads:
            along = linear(e.args[0], inner, levels)
            if len(e.args) == 1 and along is not None and not depends(along[0], found.coords[k]):
                chosen.setdefault(k, []).append(e)
    return chosen


def across_dim(group: Function, sizes: Mapping[str, int]) -> int | None:
    """The dimension along which a map reads most of what it reads across its lines; None if that is not worth squares."""
    shape = group.results[0].type.shape
    if sum(d != 1 for d in shape) < 2:
        return None
    params, _ = group_buffers(group)
    found = _squares_of(group, template(group, Pull(group, dict(zip(group.params, params, strict=True)))))
    found = {k: loads for k, loads in found.items() if _fits(shape, k, sizes)}
    return max(found, key=lambda k: sum(e.dtype.itemsize for e in found[k]), default=None)


def _fits(shape: Shape, k: int, sizes: Mapping[str, int]) -> bool:
    a, b = (substitute(shape[d], dict(sizes)) for d in (k, innermost(shape)))
    return isinstance(a, int) and isinstance(b, int) and min(a, b) >= SIDE


def lower_squares(group: Function, k: int, width: int, work: int, in_place: InPlace = ()) -> Lowered:
    """The kernel of a map group whose tiles lie over dimension k and the innermost one. work: of one element."""
    params, results = group_buffers(group, in_place)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    found = template(group, pull)
    shape = group.results[0].type.shape
    inner = innermost(shape)
    loads = _squares_of(group, found)[k][:MOST_LOADS]
    tiles = [Buffer(f"square{n}", e.dtype, "local") for n, e in enumerate(loads)]
    names = Names()
    outer = tuple(1 if i in (k, inner) else d for i, d in enumerate(shape))
    across, along = dim_expr(shape[k]), dim_expr(shape[inner])
    down, right = ceil_div(across, DOWN), ceil_div(along, RIGHT)
    item, rest, row, top, left, high, wide = (names.fresh(s) for s in ("item", "rest", "row", "top", "left", "high", "wide"))
    stmts, coords = split_coords(row, outer, names)

    def at(a: Expr, b: Expr) -> dict[Expr, Expr]:
        moved = {v: c for v, c in zip(found.coords, coords, strict=True) if v.op == "var"}
        return {**moved, found.coords[k]: a, found.coords[inner]: b}

    def place(a: Expr, b: Expr) -> Expr:
        return (a + SIDE) * PITCH + b + SIDE

    levels = Levels(())
    corner, a, b = at(top, left), names.fresh("a"), names.fresh("b")
    first_a, first_b = names.fresh("a"), names.fresh("b")
    squares: list[Stmt] = [Let(first_b, minimum(b, wide - SIDE)), Let(first_a, minimum(a, high - SIDE))]
    single: list[Stmt] = []
    for tile, e in zip(tiles, loads, strict=True):
        along_inner = linear(e.args[0], found.coords[inner], levels)
        assert along_inner is not None
        step = replace(along_inner[0], corner)
        start = replace(e.args[0], at(top + first_a, left + first_b))
        squares.append(Transpose(tile, place(first_a, first_b), index(PITCH), e.data, start, step, SIDE))
        single.append(Store(tile, place(a, b), load(e.data, replace(e.args[0], at(top + a, left + b)))))

    def fill(body: list[Stmt], step: int) -> Stmt:
        inside = For(a, index(0), high, tuple(body), index(step))
        return For(b, index(0), wide, (inside,), index(step))

    line = names.fresh("line")

    def compute(i: Expr, lane: Expr) -> list[Stmt]:
        here = at(top + line, left + i)
        for tile, e in zip(tiles, loads, strict=True):
            here[e] = load(tile, place(line, i))
        named = [names.fresh("v", v.dtype) for v in found.values]
        lets = [Let(n, replace(v, here)) for n, v in zip(named, found.values, strict=True)]
        stores = [Store(y, replace(p, here), n) for y, p, n in zip(results, found.places, named, strict=True)]
        reports = [
            Report(replace(r.cond, here), r.site, replace(r.value, here))
            for r in found.reports
            if isinstance(r, Report)
        ]
        return [*reports, *lets, *stores]

    body: list[Stmt] = [
        Let(left, item % right * RIGHT),
        Let(rest, item // right),
        Let(top, rest % down * DOWN),
        Let(row, rest // down),
        *stmts,
        Let(high, minimum(across - top, index(DOWN))),
        Let(wide, minimum(along - left, index(RIGHT))),
        # Nothing lies before a side that is shorter than a square.
        If(logical_and(across >= SIDE, along >= SIDE), (fill(squares, SIDE),), (fill(single, 1),)),
        For(line, index(0), high, tuple(sweep(index(0), wide, width, names, compute)), index(1)),
    ]
    images = dim_expr(size_of(outer))
    kernel = Kernel(
        name="squares",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=images * down * right,
        work=images * across * along * work,
        body=(
            *(Alloc(t, (DOWN + SIDE) * PITCH) for t in tiles),
            For(item, var("begin"), var("end"), tuple(body), index(1)),
        ),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
