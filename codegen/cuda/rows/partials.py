"""Few and long rows or columns: their chunks are spread over the device, level by level.

For each level of reductions one kernel writes the value of each chunk to scratch, laid out [chunk][kept element], and
stores the full-shape results that are ready; a second one combines the chunks. In it each of up to 32 threads of a block
takes the chunks of one kept element in ascending order: a chain as long as there are chunks, which runs at the latency
of the operation, because the block fetches the next tile while this one is combined. Later levels read the
totals from scratch, and the operands from memory again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphc.codegen.c.positions import expressions, statements
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.rows.accumulators import POSITIONAL, Accumulator, Extremum, Plain
from graphc.codegen.cuda.rows.columns import Columns
from graphc.codegen.cuda.rows.rows import WARP, Rows
from graphc.codegen.cuda.rows.sweeps import Sweep, Sweeps
from graphc.codegen.expr import Expr, cast, children_first, equal, index, load, logical_and, var
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
from graphc.codegen.lower.pull import Bound
from graphc.codegen.lower.row_group import CHUNK, RowGroup, combine, finish
from graphc.ir.function import Operation, Value
from graphc.ir.types import I32, I64, DType, size_of

TILE, COMBINERS = 2048, 256  # elements that a block of so many threads fetches at once
UNROLL = 8


@dataclass(frozen=True)
class Part:
    """A reduction, and the scratch with its value for each chunk; for argmax and argmin also the place of that value."""

    op: Operation
    buffers: tuple[Buffer, ...]


@dataclass
class Stages:
    """The kernels of a group while they are made."""

    row: RowGroup
    choice: Choice
    inputs: tuple[Buffer, ...]
    results: tuple[Buffer, ...]
    scratch: list[Scratch] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = size_of(self.row.kept_shape)
        self.chunks = ceil_div(self.row.length, CHUNK)

    def memory(self, stem: str, dtype: DType, whole: bool = False) -> Buffer:
        """Scratch of one element for each kept element, and for each of its chunks unless `whole`."""
        length = size_of(self.row.shape[a] for a in self.row.axes)
        count = 1 if whole else (length + (CHUNK - 1)) // CHUNK
        buffer = Buffer(f"{stem}{len(self.scratch)}", dtype, "scratch")
        self.scratch.append(Scratch(buffer, dtype, self.kept * count))
        return buffer

    def part(self, op: Operation) -> Part:
        if op.name in POSITIONAL:
            place = I32 if self.choice.narrow else I64
            value = Extremum(self.row, op, 1, place)
            return Part(op, (self.memory("partial", value.dtype), self.memory("place", place)))
        return Part(op, (self.memory("partial", Plain(self.row, op, 1).dtype),))

    def add(self, name: str, grid: Grid, work: Expr, body: Sequence[Stmt]) -> None:
        used: set[Buffer] = set()
        for s in statements(tuple(body)):
            used |= {n.data for n in children_first(tuple(expressions(s))) if n.op == "load"}
            used |= {s.buffer} if isinstance(s, Store) else set()
        every = (*self.inputs, *(s.buffer for s in self.scratch), *self.results)
        buffers = tuple(b for b in every if b in used)
        extents = group_extents(self.row.group)
        self.kernels.append(Kernel(name, buffers, extents, grid.blocks, work, tuple(body), grid=grid))


class RowPartials(Rows):
    def stage(self, stages: Stages, sweep: Sweep, parts: Sequence[Part], level: int) -> None:
        """The kernel of one level: every team takes a chunk of a row."""
        row, names, chunks = self.row, self.names, stages.chunks
        rows = dim_expr(size_of(row.kept_shape))
        block, thread = var("block"), var("thread")
        first, item, r, c, start, stop = (names.fresh(s) for s in ("first", "item", "row", "chunk", "start", "stop"))
        body: list[Stmt] = [
            Let(self.t, thread % self.threads),
            Let(first, block * self.rows_a_block + thread // self.threads),
            Let(item, minimum(first, rows * chunks - 1)),
            Let(r, item // chunks),
            Let(c, item % chunks),
        ]
        self.sweeps.guard = first < rows * chunks
        stmts, row.kept = split_coords(r, row.kept_shape, names)
        body += [*stmts, Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
        for k in range(level):
            body += self.sweeps.name_kept(k)
        plain, found = self.accumulators(sweep)
        accs: list[Accumulator] = [*plain, *found]
        body += [s for a in accs for s in a.clear()]
        body += self._chunk(sweep, accs, start, stop)
        values: dict[Operation, tuple[Expr, ...]] = {}
        for p in plain:
            stmts, value = p.tree(self.threads)
            body += stmts
            values[p.op] = (value,)
        for e in found:
            stmts, values[e.op] = e.winner(self.threads)
            body += stmts
        writes = [Store(b, c * rows + r, x) for p in parts for b, x in zip(p.buffers, values[p.op], strict=True)]
        if writes:
            body.append(If(logical_and(equal(self.t, 0), self.sweeps.guard), tuple(writes)))
        blocks = ceil_div(rows * chunks, self.rows_a_block)
        grid = Grid(blocks, self.warps * WARP, self.choice.divides, self.choice.narrow)
        stages.add("partials", grid, dim_expr(size_of(row.shape)) * work_of(row.group), [*self.allocs, *body])


class ColumnPartials(Columns):
    def stage(self, stages: Stages, sweep: Sweep, parts: Sequence[Part], level: int) -> None:
        """The kernel of one level: every block takes a chunk of its columns."""
        row, names, chunks = self.row, self.names, stages.chunks
        c, tile, start, stop = (names.fresh(s) for s in ("chunk", "tile", "start", "stop"))
        block = var("block")
        body: list[Stmt] = [Let(c, block % chunks), Let(tile, block // chunks), *self.place(tile)]
        body += [Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
        for k in range(level):
            body += self.name_kept(k)
        plain, found = self.accumulators(sweep)
        accs: list[Accumulator] = [*plain, *found]
        body += [s for a in accs for s in a.clear()]
        body += self.chunk(sweep, accs, start, stop)
        stmts, totals = self.tree(plain)
        body += stmts
        values = {p.op: [(x,) for x in mine] for p, mine in zip(plain, totals, strict=True)}
        columns: dict[Operation, Sequence[tuple[Expr, ...]]] = {**values}
        for e in found:
            stmts, columns[e.op] = self.winners(e)
            body += stmts
        writes: list[Stmt] = []
        at = c * dim_expr(size_of(row.kept_shape)) + row.flat_kept()
        for p in parts:
            for k, buffer in enumerate(p.buffers):
                mine = [x[k] for x in columns[p.op]]
                done = self.array("value", mine[0], self.wide)
                body += [Store(done, index(v), x) for v, x in enumerate(mine)]
                writes.append(Store(buffer, at, load(done, self.v)))
        if writes:
            body.append(If(logical_and(equal(self.ty, 0), self.sweeps.guard), tuple(self.vector(writes))))
        grid = Grid(self.tiles * chunks, self.threads, self.choice.divides, self.choice.narrow, self.alone)
        stages.add("partials", grid, dim_expr(size_of(row.shape)) * work_of(row.group), [*self.allocs, *body])


def lower_partials(
    row: RowGroup,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    targets: Sequence[tuple[Value, Buffer]],
    choice: Choice,
) -> Lowered:
    """The kernels of a group: two for each level, and one for what has the full shape and needs the last level."""
    stages = Stages(row, choice, params, results)
    kept = [t for t in targets if not row.is_full(t[0])]
    sweeps = Sweeps(row, targets).all
    depth = max(s.number for s in sweeps if s.ops)
    for sweep in sweeps:
        # What has a name in one kernel has none in the next.
        bound = dict(row.pull.bound)
        parts = [stages.part(op) for op in sweep.ops]
        form = ColumnPartials if choice.form == "partials columns" else RowPartials
        form(row, (), choice).stage(stages, sweep, parts, sweep.number)
        _restore(row, bound)
        if parts:
            last = sweep.number == depth
            read_again = any(s.number > sweep.number for s in sweeps)
            _together(stages, parts, kept if last else [], read_again)
    return Lowered(tuple(stages.kernels), params, results, tuple(stages.scratch), tuple(row.pull.sites))


def _restore(row: RowGroup, bound: dict[Value, Bound]) -> None:
    row.pull.bound.clear()
    row.pull.bound.update(bound)
    row.pull.take_reports()
    row.pull._memo.clear()


def _together(stages: Stages, parts: Sequence[Part], targets: Sequence[tuple[Value, Buffer]], read_again: bool) -> None:
    """The kernel that combines the chunks. targets: results of the kept shape, stored here; read_again: later kernels read
    the totals."""
    row, choice, chunks = stages.row, stages.choice, stages.chunks
    names, kept = row.names, dim_expr(stages.kept)
    across = choice.number("together")
    depth, each = TILE // across, TILE // COMBINERS
    block, thread = var("block"), var("thread")
    first = names.fresh("first")
    allocs: list[Stmt] = []
    staged: dict[Buffer, tuple[Buffer, Buffer]] = {}
    for buffer in (b for p in parts for b in p.buffers):
        fetched = Buffer(names.fresh("fetched").data, buffer.dtype, "local")
        tile = Buffer(names.fresh("tile").data, buffer.dtype, "shared")
        allocs += [Alloc(fetched, each), Alloc(tile, 2 * TILE)]
        staged[buffer] = fetched, tile

    def fetch(base: Expr) -> Stmt:
        k, e, column, c = (names.fresh(s) for s in ("k", "e", "column", "chunk"))
        body: list[Stmt] = [Let(e, k * COMBINERS + thread), Let(column, first + e % across), Let(c, base + e // across)]
        inside = (column < kept) & (c < chunks)
        body += [Store(fetched, k, load(part, c * kept + column, inside)) for part, (fetched, _) in staged.items()]
        return For(k, index(0), index(each), tuple(body), index(1), unroll=True)

    def put(half: Expr) -> Stmt:
        k = names.fresh("k")
        body = [Store(tile, half + (k * COMBINERS + thread), load(fetched, k)) for fetched, tile in staged.values()]
        return For(k, index(0), index(each), tuple(body), index(1), unroll=True)

    totals: list[tuple[Expr, ...]] = []
    start: list[Stmt] = []
    for p in parts:
        begin = _identity(row, p)
        totals.append(tuple(names.fresh("total", x.dtype) for x in begin))
        start += [Declare(t, x) for t, x in zip(totals[-1], begin, strict=True)]
    base, half, count, main, c, u, rest = (names.fresh(s) for s in ("base", "half", "count", "main", "chunk", "u", "chunk"))

    def chain(at: Expr) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for mine, p in zip(totals, parts, strict=True):
            given = tuple(load(staged[b][1], half + at * across + thread) for b in p.buffers)
            if len(mine) == 1:
                out.append(Assign(mine[0], combine(p.op, mine[0], given[0])))
                continue
            stmts, winner = Extremum(row, p.op, 1, mine[1].dtype).meet((mine[0], mine[1]), (given[0], given[1]))
            out += [*stmts, Assign(mine[0], winner[0]), Assign(mine[1], winner[1])]
        return tuple(out)

    combining: list[Stmt] = [
        Let(count, minimum(index(depth), chunks - base)),
        Let(main, count // UNROLL * UNROLL),
        For(c, index(0), main, (For(u, index(0), index(UNROLL), chain(c + u), index(1), unroll=True),), index(UNROLL)),
        For(rest, main, count, chain(rest), index(1)),
    ]
    body: list[Stmt] = [*allocs, Let(first, block * across), *start]
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
    finished: list[Stmt] = [Let(item, first + thread), *stmts]
    again: list[tuple[Operation, Buffer]] = []
    for p, mine in zip(parts, totals, strict=True):
        value = finish(p.op, mine[0], row.length) if len(mine) == 1 else mine[1]
        row.bind(p.op, value)
        if read_again:
            again.append((p.op, stages.memory("total", p.op.results[0].type.dtype, whole=True)))
            finished.append(Store(again[-1][1], item, cast(value, again[-1][1].dtype)))
    finished += row.store_kept(list(targets))
    body.append(If((thread < across) & (first + thread < kept), tuple(finished)))
    stages.add("combine", Grid(ceil_div(kept, across), COMBINERS, (), choice.narrow), kept * chunks, body)
    for op, buffer in again:
        row.pull.bind(op.results[0], _total(buffer))


def _identity(row: RowGroup, p: Part) -> tuple[Expr, ...]:
    if p.op.name in POSITIONAL:
        e = Extremum(row, p.op, 1, p.buffers[1].dtype)
        return e.identity, e.far
    return (Plain(row, p.op, 1).identity,)


def _total(buffer: Buffer) -> Bound:
    return lambda at: load(buffer, at.flat)
