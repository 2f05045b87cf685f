"""Few and long rows or columns: their chunks are spread over threads, then combined in ascending order."""

from __future__ import annotations

from graphc.codegen.expr import Expr, index, load, make, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.columns import Blocking, Columns
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import (
    ceil_div,
    group_extents,
    minimum,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.row_group import (
    CHUNK,
    LANE_OP,
    LANES,
    RowGroup,
    combine,
    finish,
    identity_of,
)
from graphc.ir.function import Operation, Value
from graphc.ir.types import Dim, size_of


def lower_partitioned(
    row: RowGroup,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    targets: list[tuple[Value, Buffer]],
    blocking: Blocking | None,
) -> Lowered:
    """Two kernels: partial results for each (item, chunk), then their combination in order."""
    chunks = ceil_div(row.length, CHUNK)
    partials: list[tuple[Operation, Buffer]] = []
    scratch: list[Scratch] = []
    total_rows: Dim = size_of(row.kept_shape)
    length: Dim = size_of(row.shape[a] for a in row.axes)
    for op in row.reductions:
        dtype = identity_of(op)[1]
        buffer = Buffer(f"partial{len(partials)}", dtype, "scratch")
        partials.append((op, buffer))
        scratch.append(Scratch(buffer, dtype, total_rows * ((length + (CHUNK - 1)) // CHUNK)))
    extents = group_extents(row.group)
    if blocking is not None:
        first, parallel = _column_partials(row, partials, chunks, blocking)
    else:
        first, parallel = _row_partials(row, partials, chunks)
    gather = Kernel(
        "partials",
        (*params, *(b for _, b in partials)),
        extents,
        parallel,
        dim_expr(size_of(row.shape)) * work_of(row.group),
        tuple(first),
    )
    # The second kernel: one item a row.
    item = row.names.fresh("row")
    body, row.kept = split_coords(item, row.kept_shape, row.names)
    c = row.names.fresh("chunk")
    flat = row.flat_kept()
    for op, buffer in partials:
        identity, dtype = identity_of(op)
        total = row.names.fresh("total", dtype)
        part = load(buffer, flat * chunks + c)
        body += [
            Declare(total, identity),
            For(c, index(0), chunks, (Assign(total, combine(op, total, part)),), index(1)),
        ]
        row.bind(op, finish(op, total, row.length))
    body += row.store_kept(targets)
    together = Kernel(
        "combine",
        (*params, *(b for _, b in partials), *results),
        extents,
        dim_expr(total_rows),
        dim_expr(total_rows) * chunks,
        (For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((gather, together), params, results, tuple(scratch), tuple(row.pull.sites))


def _row_partials(
    row: RowGroup, partials: list[tuple[Operation, Buffer]], chunks: Expr
) -> tuple[list[Stmt], Expr]:
    names = row.names
    item, r, c = names.fresh("item"), names.fresh("row"), names.fresh("chunk")
    start, stop, lane, i, main = (names.fresh(s) for s in ("start", "stop", "l", "i", "m"))
    body: list[Stmt] = [Let(r, item // chunks), Let(c, item % chunks)]
    stmts, row.kept = split_coords(r, row.kept_shape, names)
    body += [*stmts, Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
    registers = [names.fresh("acc", identity_of(op)[1]) for op, _ in partials]

    def step(position: Expr) -> tuple[Stmt, ...]:
        stmts = [
            Assign(a, combine(op, a, row.element(op, position)))
            for a, (op, _) in zip(registers, partials, strict=True)
        ]
        return (*take_reports(row.pull), *stmts)

    region: list[Stmt] = [
        Declare(a, identity_of(op)[0]) for a, (op, _) in zip(registers, partials, strict=True)
    ]
    region += [
        Let(main, (stop - start) // LANES * LANES + start),
        For(i, start, main, step(i + lane), index(LANES)),
        If(main < stop, (If(main + lane < stop, step(main + lane)),)),
    ]
    flat = row.flat_kept()
    for a, (op, buffer) in zip(registers, partials, strict=True):
        region.append(Store(buffer, flat * chunks + c, make("lanes", a.dtype, (a,), LANE_OP[op.name])))
    body.append(Vector(lane, LANES, tuple(region)))
    return [For(item, var("begin"), var("end"), tuple(body), index(1))], dim_expr(
        size_of(row.kept_shape)
    ) * chunks


def _column_partials(
    row: RowGroup, partials: list[tuple[Operation, Buffer]], chunks: Expr, blocking: Blocking
) -> tuple[list[Stmt], Expr]:
    columns = Columns(row, blocking, chunks)
    start, stop = row.names.fresh("start"), row.names.fresh("stop")
    head = columns.enter()
    head += [Let(start, columns.part * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
    ops = [op for op, _ in partials]
    arrays = [columns.array("lanes", identity_of(op)[1], columns.rows) for op in ops]
    flat = row.flat_kept()
    stores = tuple(
        Store(b, flat * chunks + columns.part, load(a, columns.slot(0)))
        for (_, b), a in zip(partials, arrays, strict=True)
    )
    body = [*columns.chunk(ops, arrays, start, stop), columns.vectors((If(columns.mask, stores),))]
    return columns.whole(head, body), columns.items
