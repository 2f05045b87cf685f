"""linear_scan: lines along the axis, each sequential; lanes run across lines where they lie side by side."""

from __future__ import annotations

from graphc.codegen.expr import Expr, cast, const, equal, fma, index, select, var
from graphc.codegen.loops import Assign, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function
from graphc.ir.types import Shape, size_of

WIDTH = 16


def lower_scan(group: Function) -> Lowered:
    """The kernel of a group with one linear_scan, whose result is the group's only one."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    op = next(o for o in group.ops if o.results[0] is group.results[0])
    factor, addend = op.operands
    shape, axis = op.result.type.shape, op.attrs["axis"]
    dtype = op.result.type.dtype
    wide = accumulator(dtype)
    names = Names()
    inner = [d for d in range(axis + 1, len(shape)) if shape[d] != 1]
    lane_dim = inner[-1] if inner else None
    outer: Shape = tuple(1 if d in (axis, lane_dim) else n for d, n in enumerate(shape))
    blocks = ceil_div(dim_expr(shape[lane_dim]), WIDTH) if lane_dim is not None else index(1)
    item, rest, block, lane, i = (names.fresh(s) for s in ("item", "rest", "block", "l", "i"))
    stmts, coords = split_coords(rest, outer, names)
    body: list[Stmt] = [Let(rest, item // blocks), Let(block, item % blocks), *stmts]
    column = block * WIDTH + lane
    length = dim_expr(shape[axis])
    along = length - 1 - i if op.attrs["reverse"] else i
    at: list[Expr] = list(coords)
    at[axis] = along
    if lane_dim is not None:
        at[lane_dim] = column
    here = Position(shape, at)
    state, value = names.fresh("h", wide), names.fresh("v", wide)
    a, b = cast(pull.at(factor, here), wide), cast(pull.at(addend, here), wide)
    carried = fma(a, state, b) if wide.is_float else a * state + b
    loop = For(
        i,
        index(0),
        length,
        (
            *take_reports(pull),
            Let(value, select(equal(i, 0), b, carried)),
            Assign(state, value),
            Store(results[0], here.flat, cast(value, dtype)),
        ),
        index(1),
    )
    line: tuple[Stmt, ...] = (Declare(state, const(wide, 0)), loop)
    if lane_dim is None:
        body += line
    else:
        body.append(Vector(lane, WIDTH, (If(column < dim_expr(shape[lane_dim]), line),)))
    kernel = Kernel(
        name="scan",
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=dim_expr(size_of(outer)) * blocks,
        work=dim_expr(size_of(shape)) * 4,
        body=(For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
