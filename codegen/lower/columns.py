"""Reductions down columns: lanes run along the last kept dimension, which lies further in.

The 32 accumulators of every column are rows of a thread-private array.
"""

from __future__ import annotations

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, equal, index, load, select, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import (
    ceil_div,
    minimum,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.row_group import (
    CHUNK,
    LANES,
    RowGroup,
    accumulator,
    better,
    combine,
    finish,
    identity_of,
    stores_at,
)
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, size_of

COLUMN_WIDTH = 16


def lower_columns(row: RowGroup, targets: list[tuple[Value, Buffer]]) -> tuple[list[Stmt], Expr]:
    names = row.names
    lane_dim = max(d for d in row.kept_dims if row.shape[d] != 1)
    n = dim_expr(row.shape[lane_dim])
    outer = tuple(1 if d == lane_dim else row.shape[d] for d in row.kept_dims)
    blocks = ceil_div(n, COLUMN_WIDTH)
    item, lane = names.fresh("item"), names.fresh("l")
    rest, block = names.fresh("rest"), names.fresh("block")
    body: list[Stmt] = [Let(rest, item // blocks), Let(block, item % blocks)]
    stmts, coords = split_coords(rest, outer, names)
    body += stmts
    column = block * COLUMN_WIDTH + lane
    row.kept = tuple(column if d == lane_dim else c for d, c in zip(row.kept_dims, coords, strict=True))
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    inside: list[Stmt] = []
    allocs: list[Stmt] = []
    full = [(v, b) for v, b in targets if row.is_full(v)]
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [(v, b) for v, b in full if row.levels[v] == level - 1]
        full = [t for t in full if t not in ready]
        more, code = _column_level(row, ops, ready, lane)
        allocs += more
        inside += code
    if full:
        i = names.fresh("i")
        inside.append(For(i, index(0), row.length, tuple(stores_at(row, full, i)), index(1)))
    inside += row.store_kept([t for t in targets if not row.is_full(t[0])])
    body += [Vector(lane, COLUMN_WIDTH, (If(column < n, tuple(inside)),))]
    loop = For(item, var("begin"), var("end"), tuple(body), index(1))
    return [*allocs, loop], dim_expr(size_of(outer)) * blocks


def _column_level(
    row: RowGroup, ops: list[Operation], ready: list[tuple[Value, Buffer]], lane: Expr
) -> tuple[list[Stmt], list[Stmt]]:
    """One sweep down the columns; lane accumulators of the reduction live in a local array."""
    names = row.names
    plain = [op for op in ops if op.name not in ("argmax", "argmin")]
    allocs: list[Stmt] = []
    out: list[Stmt] = []
    totals: list[Expr] = []
    arrays: list[Buffer] = []
    for op in plain:
        identity, dtype = identity_of(op)
        total = names.fresh("total", dtype)
        array = Buffer(f"lanes_{total.data}", dtype, "local")
        totals.append(total)
        arrays.append(array)
        allocs.append(Alloc(array, LANES * COLUMN_WIDTH))
        out.append(Declare(total, identity))
    chunk, stop, i, j = names.fresh("chunk"), names.fresh("stop"), names.fresh("i"), names.fresh("j")

    def slot(k: Expr) -> Expr:
        return k * COLUMN_WIDTH + lane

    if plain or ready:
        k = names.fresh("k")
        clear = [Store(a, slot(k), identity_of(op)[0]) for a, op in zip(arrays, plain, strict=True)]
        accumulate: list[Stmt] = []
        for a, op in zip(arrays, plain, strict=True):
            accumulate.append(Store(a, slot(j), combine(op, load(a, slot(j)), row.element(op, i))))
        checks = take_reports(row.pull)
        stores = stores_at(row, ready, i)
        sweep_body: list[Stmt] = [Let(j, (i - chunk) % LANES), *checks, *accumulate, *stores]
        halve: list[Stmt] = []
        half = LANES // 2
        while half:
            h = names.fresh("h")
            halve.append(
                For(
                    h,
                    index(0),
                    index(half),
                    tuple(
                        Store(a, slot(h), combine(op, load(a, slot(h)), load(a, slot(h + half))))
                        for a, op in zip(arrays, plain, strict=True)
                    ),
                    index(1),
                )
            )
            half //= 2
        finishing = [
            Assign(t, combine(op, t, load(a, lane))) for a, t, op in zip(arrays, totals, plain, strict=True)
        ]
        body = [
            Let(stop, minimum(chunk + CHUNK, row.length)),
            *([For(k, index(0), index(LANES), tuple(clear), index(1))] if plain else []),
            For(i, chunk, stop, tuple(sweep_body), index(1)),
            *(halve if plain else []),
            *finishing,
        ]
        out.append(For(chunk, index(0), row.length, tuple(body), index(CHUNK)))
    for t, op in zip(totals, plain, strict=True):
        row.bind(op, finish(op, t, row.length))
    for op in ops:
        if op.name in ("argmax", "argmin"):
            out += _column_position(row, op)
    return allocs, out


def _column_position(row: RowGroup, op: Operation) -> list[Stmt]:
    names = row.names
    wide = accumulator(op.operands[0].type.dtype)
    best, where, i = names.fresh("best", wide), names.fresh("where"), names.fresh("i")
    x = row.element(op, i)
    is_better = names.fresh("better", BOOL)
    body = (
        *take_reports(row.pull),
        Let(is_better, better(op.name, x, best, equal(where, index(-1)))),
        Assign(where, select(is_better, i, where)),
        Assign(best, select(is_better, x, best)),
    )
    row.bind(op, where)
    start = reduction("max" if op.name == "argmax" else "min", wide)[0]
    return [Declare(best, start), Declare(where, index(-1)), For(i, index(0), row.length, body, index(1))]
