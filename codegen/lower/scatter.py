"""Writing at computed positions: scatter_add, scatter, put_along_add, put_along.

One item owns some lines of the result (all positions along the axis): it copies them from x, then
applies its updates in ascending order. So the order is fixed, whatever the threads, and no two
items write the same element. Where lines lie side by side, an item is a vector of them, and a thread takes all of its
items at once: rows are copied and updates added in long stretches, and each index is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, index, load, select, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    minimum,
    split_coords,
    sweep,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function, Operation
from graphc.ir.types import Dim, Shape, size_of

WIDTH = 16


def lower_scatter(group: Function) -> Lowered:
    """The kernel of a group with one scattering operation, whose result is the group's only one."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    op = next(o for o in group.ops if o.results[0] is group.results[0])
    x, _, updates = op.operands
    shape, axis = x.type.shape, op.attrs["axis"]
    dtype = x.type.dtype
    wide = accumulator(dtype) if op.name.endswith("_add") else dtype
    out = results[0]
    scratch: tuple[Scratch, ...] = ()
    target = out
    if wide is not dtype:
        target = Buffer("wide", wide, "scratch")
        scratch = (Scratch(target, wide, size_of(shape)),)
    names = Names()
    along = op.name.startswith("put_along")
    inner = [d for d in range(axis + 1, len(shape)) if shape[d] != 1]
    lane_dim = inner[-1] if inner else None
    outer: Shape = tuple(1 if d in (axis, lane_dim) else n for d, n in enumerate(shape))
    count = dim_expr(shape[lane_dim]) if lane_dim is not None else index(1)
    blocks = ceil_div(count, WIDTH)
    rest, block, lane = (names.fresh(s) for s in ("rest", "block", "l"))
    stmts, coords = split_coords(rest, outer, names)
    body: list[Stmt] = [*stmts]
    column = block * WIDTH + lane

    def line(position: Expr) -> Expr:
        at = list(coords)
        at[axis] = position
        if lane_dim is not None:
            at[lane_dim] = column
        return Position(shape, at).flat

    def source(position: Expr) -> Position:
        at = list(coords)
        at[axis] = position
        if lane_dim is not None:
            at[lane_dim] = column
        return Position(shape, at)

    size = dim_expr(shape[axis])

    def copy(position: Expr, _: Expr) -> list[Stmt]:
        value = cast(pull.at(x, source(position)), wide)
        return [*take_reports(pull), Store(target, line(position), value)]

    def narrow(position: Expr, _: Expr) -> list[Stmt]:
        return [Store(out, line(position), cast(load(target, line(position)), dtype))]

    update = _updates(op, pull, names, coords, axis, column if lane_dim is not None else None, lane_dim, line, target, along)
    if lane_dim is None:
        body += sweep(index(0), size, WIDTH, names, copy)
        body += update
        if target is not out:
            body += sweep(index(0), size, WIDTH, names, narrow)
        kernel_body: Stmt = For(rest, var("begin"), var("end"), tuple(body), index(1))
    else:
        a, z, low, high, at = (names.fresh(s) for s in ("a", "a", "low", "high", "at"))

        def vectors(inside: Sequence[Stmt]) -> For:
            """`inside` for the vectors of this thread, masked where a line ends in one."""
            whole = If((block + 1) * WIDTH <= count, tuple(inside), (If(column < count, tuple(inside)),))
            return For(block, low, high, (whole,), index(1))

        # Positions that vary over the lines are looked up for each vector.
        applied = [vectors(update)] if along else [_over(update, vectors)]
        inside: list[Stmt] = [For(a, index(0), size, (vectors(copy(a, lane)),), index(1)), *applied]
        if target is not out:
            inside.append(For(z, index(0), size, (vectors(narrow(z, lane)),), index(1)))
        start, end = var("begin") - at, minimum(var("end") - at, blocks)
        body = [
            Let(at, rest * blocks),
            Let(low, select(start < 0, index(0), start)),
            Let(high, end),
            *body,
            *inside,
        ]
        lines = For(rest, var("begin") // blocks, (var("end") + blocks - 1) // blocks, tuple(body), index(1))
        # Without elements there are no items, but the kernel may be called.
        kernel_body = If(blocks > 0, (Vector(lane, WIDTH, (lines,)),))
    buffers = (*params, *(s.buffer for s in scratch), out)
    total: Dim = size_of(shape) + size_of(updates.type.shape) * 4
    kernel = Kernel(
        name="scatter",
        buffers=buffers,
        extents=group_extents(group),
        parallel=dim_expr(size_of(outer)) * blocks,
        work=dim_expr(total),
        body=(kernel_body,),
    )
    return Lowered((kernel,), params, results, scratch, tuple(pull.sites))


def _over(loops: Sequence[Stmt], vectors: Callable[[Sequence[Stmt]], For]) -> Stmt:
    """The loop over updates, whose index is one for all lanes, with the loop over vectors around what is stored."""
    (loop,) = loops
    assert isinstance(loop, For)
    stored = [s for s in loop.body if isinstance(s, Store)]
    return For(loop.var, loop.start, loop.stop, (*(s for s in loop.body if s not in stored), vectors(stored)), loop.step)


def _updates(
    op: Operation,
    pull: Pull,
    names: Names,
    coords: tuple[Expr, ...],
    axis: int,
    column: Expr | None,
    lane_dim: int | None,
    line: object,
    target: Buffer,
    along: bool,
) -> list[Stmt]:
    """The loop that applies the updates of one item, in ascending order of index position."""
    x, indices, updates = op.operands
    u = names.fresh("u")
    at = list(coords)
    if lane_dim is not None and column is not None:
        at[lane_dim] = column
    if along:
        count: Dim = indices.type.shape[axis]
        where = [*at[:axis], u, *at[axis + 1 :]]
        index_at = Position(indices.type.shape, where)
        update_at = Position(updates.type.shape, where)
    else:
        count = size_of(indices.type.shape)
        picked = delinearise(u, indices.type.shape)
        index_at = Position(indices.type.shape, picked)
        update_at = Position(updates.type.shape, [*at[:axis], *picked, *at[axis + 1 :]])
    raw = pull.at(indices, index_at)
    row = names.fresh("row")
    checked = pull.check(op, raw, dim_expr(x.type.shape[axis]))
    value = cast(pull.at(updates, update_at), target.dtype)
    position = line(row)  # type: ignore[operator]
    if op.name.endswith("_add"):
        value = load(target, position) + value
    body = (*take_reports(pull), Let(row, checked), Store(target, position, value))
    return [For(u, index(0), dim_expr(count), body, index(1))]
