"""Few and long rows or columns: their chunks are spread over the device, a second kernel combines them in order.

The first kernel writes the value of each chunk to scratch, laid out [chunk][kept element]. In the second one, each
of up to 32 threads of a block combines the chunks of one kept element in ascending order: a chain as long as there are
chunks, which runs at the latency of the operation, because the block fetches the next tile while this one is combined.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.accumulators import POSITIONAL
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.columns import Columns
from graphc.codegen.cuda.rows import WARP, Rows
from graphc.codegen.cuda.sweeps import Sweep, domain_of, levels_of
from graphc.codegen.expr import Expr, equal, index, load, logical_and, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Declare,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
)
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import ceil_div, group_extents, minimum, split_coords
from graphc.codegen.lower.row_group import CHUNK, RowGroup, combine, finish, identity_of
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import size_of

TILE, COMBINERS = 2048, 256  # elements that a block of so many threads fetches at once
UNROLL = 8

Parts = Sequence[tuple[Operation, Buffer]]


def divisible(group: Function) -> bool:
    """Whether a group's reductions may run chunk by chunk: none needs another's result, nothing is as large as the domain."""
    shape, _ = domain_of(group)
    names = {op.name for op in group.ops}
    return not names & set(POSITIONAL) and max(levels_of(group).values()) == 1 and all(r.type.shape != shape for r in group.results)


class RowPartials(Rows):
    def __init__(self, row: RowGroup, choice: Choice, parts: Parts) -> None:
        super().__init__(row, (), choice)
        self.parts_of = parts

    def kernel(self, buffers: tuple[Buffer, ...], extents: tuple[str, ...], work: Expr) -> Kernel:
        row = self.row
        chunks, rows = ceil_div(row.length, CHUNK), dim_expr(size_of(row.kept_shape))
        items = rows * chunks
        block, thread = var("block"), var("thread")
        first, item, r, c = (self.names.fresh(s) for s in ("first", "item", "row", "chunk"))
        body: list[Stmt] = [
            Let(self.t, thread % self.threads),
            Let(first, block * self.rows_a_block + thread // self.threads),
            Let(item, minimum(first, items - 1)),
            Let(r, item // chunks),
            Let(c, item % chunks),
        ]
        stmts, row.kept = split_coords(r, row.kept_shape, self.names)
        start, stop = self.names.fresh("start"), self.names.fresh("stop")
        body += [*stmts, Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
        sweep = Sweep(1, [op for op, _ in self.parts_of])
        plain, _ = self.accumulators(sweep)
        body += [s for p in plain for s in p.clear()]
        body += self._chunk(sweep, plain, start, stop)
        writes: list[Stmt] = []
        for p, (_, buffer) in zip(plain, self.parts_of, strict=True):
            stmts, value = p.tree(self.threads)
            body += stmts
            writes.append(Store(buffer, c * rows + r, value))
        body.append(If(logical_and(equal(self.t, 0), first < items), tuple(writes)))
        grid = Grid(ceil_div(items, self.rows_a_block), self.warps * WARP, self.choice.divides, self.choice.narrow)
        return Kernel("partials", buffers, extents, items, work, (*self.allocs, *body), grid=grid)


class ColumnPartials(Columns):
    def __init__(self, row: RowGroup, choice: Choice, parts: Parts) -> None:
        super().__init__(row, (), choice)
        self.parts_of = parts

    def kernel(self, buffers: tuple[Buffer, ...], extents: tuple[str, ...], work: Expr) -> Kernel:
        row, names = self.row, self.names
        chunks = ceil_div(row.length, CHUNK)
        c, tile, start, stop = (names.fresh(s) for s in ("chunk", "tile", "start", "stop"))
        block = var("block")
        body: list[Stmt] = [Let(c, block % chunks), Let(tile, block // chunks), *self.place(tile)]
        body += [Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
        sweep = Sweep(1, [op for op, _ in self.parts_of])
        plain, _ = self.accumulators(sweep)
        body += [s for p in plain for s in p.clear()]
        body += self.chunk(sweep, plain, start, stop)
        stmts, values = self.tree(plain)
        body += stmts
        writes: list[Stmt] = []
        at = c * dim_expr(size_of(row.kept_shape)) + row.flat_kept()
        for _p, (_, buffer), mine in zip(plain, self.parts_of, values, strict=True):
            done = self.array("value", mine[0], self.wide)
            body += [Store(done, index(v), x) for v, x in enumerate(mine)]
            writes.append(Store(buffer, at, load(done, self.v)))
        lead = logical_and(equal(self.ty, 0), self.sweeps.guard)
        body.append(If(lead, tuple(self.vector(writes))))
        grid = Grid(self.tiles * chunks, self.threads, self.choice.divides, self.choice.narrow)
        return Kernel("partials", buffers, extents, self.tiles * chunks, work, (*self.allocs, *body), grid=grid)


def lower_partials(
    row: RowGroup,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    targets: Sequence[tuple[Value, Buffer]],
    choice: Choice,
) -> Lowered:
    """The two kernels of a group."""
    length, kept = size_of(row.shape[a] for a in row.axes), size_of(row.kept_shape)
    parts: list[tuple[Operation, Buffer]] = []
    scratch: list[Scratch] = []
    for op in row.reductions:
        dtype = identity_of(op)[1]
        parts.append((op, Buffer(f"partial{len(parts)}", dtype, "scratch")))
        scratch.append(Scratch(parts[-1][1], dtype, kept * ((length + (CHUNK - 1)) // CHUNK)))
    extents = group_extents(row.group)
    buffers = tuple(b for _, b in parts)
    form = ColumnPartials if choice.form == "partials columns" else RowPartials
    work = dim_expr(size_of(row.shape)) * work_of(row.group)
    first = form(row, choice, parts).kernel((*params, *buffers), extents, work)
    second = _together(row, choice, parts, targets, (*params, *buffers, *results), extents)
    return Lowered((first, second), params, results, tuple(scratch), tuple(row.pull.sites))


def _together(
    row: RowGroup,
    choice: Choice,
    parts: Parts,
    targets: Sequence[tuple[Value, Buffer]],
    buffers: tuple[Buffer, ...],
    extents: tuple[str, ...],
) -> Kernel:
    names = row.names
    chunks, kept = ceil_div(row.length, CHUNK), dim_expr(size_of(row.kept_shape))
    across = choice.number("together")
    depth, each = TILE // across, TILE // COMBINERS
    block, thread = var("block"), var("thread")
    first = names.fresh("first")
    allocs: list[Stmt] = []
    staged: list[tuple[Buffer, Buffer, Buffer]] = []
    for _, buffer in parts:
        fetched = Buffer(names.fresh("fetched").data, buffer.dtype, "local")
        tile = Buffer(names.fresh("tile").data, buffer.dtype, "shared")
        allocs += [Alloc(fetched, each), Alloc(tile, 2 * TILE)]
        staged.append((buffer, fetched, tile))

    def fetch(base: Expr) -> Stmt:
        k, e, column, c = (names.fresh(s) for s in ("k", "e", "column", "chunk"))
        body: list[Stmt] = [Let(e, k * COMBINERS + thread), Let(column, first + e % across), Let(c, base + e // across)]
        inside = (column < kept) & (c < chunks)
        body += [Store(fetched, k, load(part, c * kept + column, inside)) for part, fetched, _ in staged]
        return For(k, index(0), index(each), tuple(body), index(1), unroll=True)

    def put(half: Expr) -> Stmt:
        k = names.fresh("k")
        body = [Store(tile, half + (k * COMBINERS + thread), load(fetched, k)) for _, fetched, tile in staged]
        return For(k, index(0), index(each), tuple(body), index(1), unroll=True)

    totals = [names.fresh("total", b.dtype) for b, _, _ in staged]
    base, half, count, main, c, u, rest = (names.fresh(s) for s in ("base", "half", "count", "main", "chunk", "u", "chunk"))

    def chain(at: Expr) -> tuple[Stmt, ...]:
        place = half + at * across + thread
        return tuple(
            Assign(t, combine(op, t, load(tile, place)))
            for t, (op, _), (_, _, tile) in zip(totals, parts, staged, strict=True)
        )

    combining: list[Stmt] = [
        Let(count, minimum(index(depth), chunks - base)),
        Let(main, count // UNROLL * UNROLL),
        For(c, index(0), main, (For(u, index(0), index(UNROLL), chain(c + u), index(1), unroll=True),), index(UNROLL)),
        For(rest, main, count, chain(rest), index(1)),
    ]
    body: list[Stmt] = [*allocs, Let(first, block * across)]
    body += [Declare(t, identity_of(op)[0]) for t, (op, _) in zip(totals, parts, strict=True)]
    body += [fetch(index(0)), put(index(0)), Barrier()]
    step: list[Stmt] = [
        Let(half, base // depth % 2 * TILE),
        fetch(base + depth),
        If(thread < across, tuple(combining)),
        put(TILE - half),
        Barrier(),
    ]
    body.append(For(base, index(0), chunks, tuple(step), index(depth)))
    item = names.fresh("item")
    stmts, row.kept = split_coords(item, row.kept_shape, names)
    for t, (op, _) in zip(totals, parts, strict=True):
        row.bind(op, finish(op, t, row.length))
    inside = (thread < across) & (first + thread < kept)
    body.append(If(inside, (Let(item, first + thread), *stmts, *row.store_kept(list(targets)))))
    grid = Grid(ceil_div(kept, across), COMBINERS, (), choice.narrow)
    return Kernel("combine", buffers, extents, kept, kept * chunks, tuple(body), grid=grid)
