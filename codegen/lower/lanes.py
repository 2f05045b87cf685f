"""Row groups with reductions down the columns of the same domain: all of it is read once.

The gradient of a layer norm reduces rows, for the gradient of its input, and columns, for those of gain and bias. The contract gives
column sums 32 lanes in each chunk of 4096 rows, so an item is one lane of one chunk: it goes through its rows in
ascending order and adds each to one line of accumulators, which stays in a cache. A second kernel combines the lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr, index, load, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import ceil_div, group_extents, minimum, split_coords, sweep
from graphc.codegen.lower.row_group import (
    CHUNK,
    LANES,
    REDUCE,
    Added,
    RowGroup,
    axes_of,
    combine,
    finish,
    identity_of,
)
from graphc.codegen.lower.rows import row_body
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import Dim, Shape, size_of

WIDTH = 32


def is_joined(group: Function) -> bool:
    """Whether a group reduces rows and columns of its domain."""
    return len({axes_of(op) for op in group.ops if op.name in REDUCE}) > 1


def row_axes(group: Function) -> tuple[int, ...]:
    """The reduced dimensions of the rows of such a group: those that lie innermost."""
    return max(axes_of(op) for op in group.ops if op.name in REDUCE)


def lower_lanes(
    row: RowGroup, params: tuple[Buffer, ...], results: tuple[Buffer, ...], targets: Sequence[tuple[Value, Buffer]]
) -> Lowered:
    """Two kernels: the rows of each lane of each chunk, and the lanes together. `row` has the axes of the rows."""
    downwards = [op for op in row.group.ops if op.name in REDUCE and axes_of(op) != row.axes]
    below = _that_need(row.group, downwards)
    rows: Dim = size_of(row.kept_shape)
    items: Dim = (rows + (CHUNK - 1)) // CHUNK * LANES
    lines = [Buffer(f"lanes{k}", identity_of(op)[1], "scratch") for k, op in enumerate(downwards)]
    scratch = tuple(Scratch(b, b.dtype, items * size_of(row.shape[a] for a in row.axes)) for b in lines)
    extents = group_extents(row.group)
    first = Kernel(
        "lanes",
        (*params, *(b for v, b in targets if v not in below), *lines),
        extents,
        dim_expr(items),
        dim_expr(size_of(row.shape)) * work_of(row.group),
        tuple(_rows_of_lanes(row, [t for t in targets if t[0] not in below], list(zip(downwards, lines, strict=True)))),
    )
    second = Kernel(
        "together",
        (*params, *(b for v, b in targets if v in below), *lines),
        extents,
        ceil_div(row.length, WIDTH),
        dim_expr(items) * row.length,
        tuple(_together(row, [t for t in targets if t[0] in below], list(zip(downwards, lines, strict=True)))),
    )
    return Lowered((first, second), params, results, scratch, tuple(row.pull.sites))


def _that_need(group: Function, roots: Sequence[Operation]) -> set[Value]:
    """The values that are computed from the results of `roots`."""
    found = {r for op in roots for r in op.results}
    for op in group.ops:
        if not found.isdisjoint(op.operands):
            found.update(op.results)
    return found


def _rows_of_lanes(
    row: RowGroup, targets: list[tuple[Value, Buffer]], lines: list[tuple[Operation, Buffer]]
) -> list[Stmt]:
    names = row.names
    chunk, low, high, near, stop = (names.fresh(s) for s in ("chunk", "low", "high", "near", "stop"))
    item, r, end = names.fresh("lane"), names.fresh("row"), names.fresh("end")
    rows = dim_expr(size_of(row.kept_shape))
    begin, done = var("begin") - chunk * LANES, var("end") - chunk * LANES

    def clear(i: Expr, lane: Expr) -> list[Stmt]:
        return [Store(b, base + i, identity_of(op)[0]) for op, b in lines]

    base = (chunk * LANES + item) * row.length
    cleared = For(item, low, high, tuple(sweep(index(0), row.length, WIDTH, names, clear)), index(1))
    coords, row.kept = split_coords(r, row.kept_shape, names)
    place = names.fresh("base")
    body = row_body(row, targets, [Added(op, b, place) for op, b in lines])
    line = (chunk * LANES + (r - near)) * row.length
    visit = For(r, near + low, end, (Let(place, line), *coords, *body), index(1))
    # Rows in the order in which they lie in memory: those of this thread's lanes in each 32.
    sweeps = For(near, chunk * CHUNK, stop, (Let(end, minimum(near + high, stop)), visit), index(LANES))
    head = [
        Let(low, select(begin < 0, index(0), begin)),
        Let(high, minimum(done, index(LANES))),
        Let(stop, minimum(chunk * CHUNK + CHUNK, rows)),
    ]
    return [For(chunk, var("begin") // LANES, ceil_div(var("end"), LANES), (*head, cleared, sweeps), index(1))]


def _together(
    row: RowGroup, targets: list[tuple[Value, Buffer]], lines: list[tuple[Operation, Buffer]]
) -> list[Stmt]:
    names = row.names
    b, lane, chunk = names.fresh("b"), names.fresh("l"), names.fresh("chunk")
    rows, column = dim_expr(size_of(row.kept_shape)), b * WIDTH + lane
    kept: Shape = tuple(row.shape[a] for a in row.axes)
    body: list[Stmt] = []
    totals = []
    for op, memory in lines:
        total = names.fresh("total", memory.dtype)
        body.append(Declare(total, identity_of(op)[0]))
        totals.append(total)
    each: list[Stmt] = []
    for (op, memory), total in zip(lines, totals, strict=True):
        at = [load(memory, (chunk * LANES + k) * row.length + column) for k in range(LANES)]
        while len(at) > 1:
            half = len(at) // 2
            at = [combine(op, at[k], at[k + half]) for k in range(half)]
        each.append(Assign(total, combine(op, total, at[0])))
        value = finish(op, total, rows)
        row.bind(op, value)
    body.append(For(chunk, index(0), ceil_div(rows, CHUNK), tuple(each), index(1)))
    here = Position(kept, delinearise(column, kept))
    places = [here.reshaped(v.type.shape) for v, _ in targets]
    named = [(names.fresh("v", v.type.dtype), buffer, at, row.pull.at(v, at)) for (v, buffer), at in zip(targets, places, strict=True)]
    body += row.pull.take_reports()
    body += [Let(name, value) for name, _, _, value in named]
    body += [Store(buffer, at.flat, name) for name, buffer, at, _ in named]
    masked = If(column < row.length, tuple(body))
    return [For(b, var("begin"), var("end"), (Vector(lane, WIDTH, (masked,)),), index(1))]
