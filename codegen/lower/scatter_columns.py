"""Scatters whose owners have columns: all rows of some lines.

An item copies its lines from x, then applies its updates in ascending order. Where lines lie side by side, an item is a vector of
them, and a thread takes all of its items at once: rows are copied and updates added in long stretches, and each index is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, index, load, select, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_extents,
    minimum,
    split_coords,
    sweep,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.scattering import Scattering
from graphc.ir.function import Operation
from graphc.ir.types import Dim, Shape, size_of

WIDTH = 16


def lower_columns(s: Scattering, together: int = 1) -> Lowered:
    """One kernel, whose items are columns of a line of rows. together: vectors of an item, where lines lie side by side."""
    op, pull, names, x, updates = s.op, s.pull, s.names, s.x, s.updates
    shape, axis, dtype, wide, out, target = s.shape, s.axis, s.dtype, s.wide, s.out, s.target
    along = s.along
    inner = [d for d in range(axis + 1, len(shape)) if shape[d] != 1]
    lane_dim = inner[-1] if inner else None
    outer: Shape = tuple(1 if d in (axis, lane_dim) else n for d, n in enumerate(shape))
    count = dim_expr(shape[lane_dim]) if lane_dim is not None else index(1)
    blocks = ceil_div(count, WIDTH)
    items = ceil_div(blocks, together)
    rest, block, lane = (names.fresh(n) for n in ("rest", "block", "l"))
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
        a, z, low, high, at = (names.fresh(n) for n in ("a", "a", "low", "high", "at"))

        def vectors(inside: Sequence[Stmt]) -> For:
            """`inside` for the vectors of this thread, masked where a line ends in one."""
            whole = If((block + 1) * WIDTH <= count, tuple(inside), (If(column < count, tuple(inside)),))
            return For(block, low, high, (whole,), index(1))

        # Positions that vary over the lines are looked up for each vector.
        applied = [vectors(update)] if along else [_over(update, vectors)]
        inside: list[Stmt] = [For(a, index(0), size, (vectors(copy(a, lane)),), index(1)), *applied]
        if target is not out:
            inside.append(For(z, index(0), size, (vectors(narrow(z, lane)),), index(1)))
        start, end = var("begin") - at, minimum(var("end") - at, items)
        body = [
            Let(at, rest * items),
            Let(low, select(start < 0, index(0), start) * together),
            Let(high, minimum(end * together, blocks)),
            *body,
            *inside,
        ]
        lines = For(rest, var("begin") // items, (var("end") + items - 1) // items, tuple(body), index(1))
        # Without elements there are no items, but the kernel may be called.
        kernel_body = If(items > 0, (Vector(lane, WIDTH, (lines,)),))
    buffers = (*s.params, *(b.buffer for b in s.scratch), out)
    total: Dim = size_of(shape) + size_of(updates.type.shape) * 4
    kernel = Kernel(
        name="scatter",
        buffers=buffers,
        extents=group_extents(s.group),
        parallel=dim_expr(size_of(outer)) * items,
        work=dim_expr(total),
        body=(kernel_body,),
    )
    return s.lowered([kernel])


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
