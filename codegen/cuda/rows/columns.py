"""Columns: kept dimensions lie further in than the reduced ones, threads run along the last of them.

A block is `across` threads along the columns (each `wide` columns: one access), times `down` threads that share the
contract's lanes of a column, times `items` items of the outer kept dimensions. Thread y of `down` has the lanes
y, y + down, y + 2*down, ..: `held` accumulators a column, so halving first meets lanes of the same thread, then
other threads, by shuffles where a team is a part of a warp, else through shared memory.

"columns registers": all lines are written out and held values stay in registers: memory is read once.
"columns loop": any length; what several sweeps need is read again.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.rows.accumulators import POSITIONAL, Accumulator, Extremum, Plain
from graphc.codegen.cuda.rows.sweeps import HEAVY, Held, Sweep, Sweeps
from graphc.codegen.expr import Expr, equal, index, load, logical_and, select, shuffle, var
from graphc.codegen.loops import (
    Alloc,
    Barrier,
    Buffer,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
    Vector,
)
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import ceil_div, minimum, split_coords
from graphc.codegen.lower.row_group import CHUNK, RowGroup, combine
from graphc.ir.function import Value
from graphc.ir.types import BOOL, I32, I64, DType, size_of

WARP = 32


class Columns:
    """Lowers one row group; both forms, and the chunks of `partials.py`."""

    def __init__(self, row: RowGroup, targets: Sequence[tuple[Value, Buffer]], choice: Choice) -> None:
        self.row, self.names, self.choice = row, row.names, choice
        self.targets = list(targets)
        self.sweeps = Sweeps(row, targets)
        self.registers = choice.form == "columns registers"
        self.lanes, self.wide, self.across = choice.number("lanes"), choice.number("wide"), choice.number("across")
        self.down, self.items = choice.number("down"), choice.number("items")
        self.slots = self.lanes // self.down  # accumulators a thread has for each column
        self.team = self.across * self.down
        self.shuffles = self.team <= WARP
        self.tx, self.ty, self.tz = (self.names.fresh(s) for s in ("tx", "ty", "tz"))
        self.v = self.names.fresh("v") if self.wide > 1 else index(0)
        self.allocs: list[Stmt] = []
        self.boards: dict[tuple[int, DType], Buffer] = {}
        self.lane_dim = max(d for d in row.kept_dims if row.shape[d] != 1)
        self.n = dim_expr(row.shape[self.lane_dim])
        self.outer = tuple(1 if d == self.lane_dim else row.shape[d] for d in row.kept_dims)
        self.rows = dim_expr(size_of(self.outer))
        self.column_blocks = ceil_div(self.n, self.across * self.wide)
        self.tiles = ceil_div(self.rows, self.items) * self.column_blocks

    @property
    def threads(self) -> int:
        return self.team * self.items

    @property
    def alone(self) -> int:
        """1 where a block may have a multiprocessor to itself: the compiler would spill registers for a second one."""
        return int(self.threads == 1024 and any(op.name in HEAVY for op in self.row.group.ops))

    def kernel(self, buffers: tuple[Buffer, ...], extents: tuple[str, ...], work: Expr) -> Kernel:
        return Kernel(
            name="columns",
            buffers=buffers,
            extents=extents,
            parallel=self.tiles,
            work=work,
            body=tuple(self.body()),
            grid=Grid(self.tiles, self.threads, self.choice.divides, self.choice.narrow, self.alone),
        )

    def place(self, tile: Expr) -> list[Stmt]:
        """Where this thread is, in block `tile`. Threads beyond the last column or item repeat it, and store nothing."""
        names, thread = self.names, var("thread")
        first, item, column = names.fresh("first"), names.fresh("item"), names.fresh("column")
        inside = names.fresh("inside", BOOL)
        out: list[Stmt] = [
            Let(self.tx, thread % self.across),
            Let(self.ty, thread // self.across % self.down),
            Let(self.tz, thread // self.team),
        ]
        start = tile % self.column_blocks * (self.across * self.wide) + self.tx * self.wide
        out.append(Let(first, tile // self.column_blocks * self.items + self.tz))
        if self.choice.number("even"):
            out.append(Let(column, start))
            item = first
        else:
            out += [
                Let(inside, (start < self.n) & (first < self.rows)),
                Let(column, minimum(start, self.n - self.wide)),
                Let(item, minimum(first, self.rows - 1)),
            ]
            self.sweeps.guard = inside
        stmts, coords = split_coords(item, self.outer, names)
        at = column + self.v
        self.row.kept = tuple(at if d == self.lane_dim else c for d, c in zip(self.row.kept_dims, coords, strict=True))
        return [*out, *stmts]

    def body(self) -> list[Stmt]:
        row = self.row
        self.sweeps.hold(self._hold)
        placed = self.place(var("block"))
        inside = [*placed, *self.name_kept(0)]
        for sweep in self.sweeps.all:
            inside += self._sweep(sweep)
            inside += self.name_kept(sweep.number) if sweep.ops else []
        kept = row.store_kept([t for t in self.targets if not row.is_full(t[0])])
        if kept:
            lead = logical_and(equal(self.ty, 0), self.sweeps.guard)
            inside.append(If(lead, tuple(self.vector(kept))))
        return [*self.allocs, *inside]

    def vector(self, body: Sequence[Stmt]) -> list[Stmt]:
        return [Vector(self.v, self.wide, tuple(body))] if self.wide > 1 else list(body)

    def name_kept(self, level: int) -> list[Stmt]:
        """What is the same for a whole column, in arrays of one element a column of the thread."""
        out: list[Stmt] = []

        def name(value: Expr) -> tuple[list[Stmt], Expr]:
            buffer = self.array("k", value, self.wide)
            return self.vector([Store(buffer, self.v, value)]), load(buffer, self.v)

        out += self.sweeps.name_kept(level, name)
        return out

    def array(self, stem: str, like: Expr, size: int) -> Buffer:
        buffer = Buffer(self.names.fresh(stem).data, like.dtype, "local")
        self.allocs.append(Alloc(buffer, size))
        return buffer

    def _hold(self, h: Held) -> Buffer | None:
        if not self.registers:
            return None
        buffer = Buffer(self.names.fresh("held").data, h.dtype, "local")
        self.allocs.append(Alloc(buffer, self.choice.number("lines") * self.slots * self.wide))
        return buffer

    # ---- a sweep

    def accumulators(self, sweep: Sweep) -> tuple[list[Plain], list[Extremum]]:
        places = I32 if self.choice.narrow else I64
        width = self.slots * self.wide
        plain = [Plain(self.row, op, width) for op in sweep.ops if op.name not in POSITIONAL]
        found = [Extremum(self.row, op, width, places) for op in sweep.ops if op.name in POSITIONAL]
        both: list[Accumulator] = [*plain, *found]
        for a in both:
            self.allocs += a.declare()
        return plain, found

    def _sweep(self, sweep: Sweep) -> list[Stmt]:
        row, names = self.row, self.names
        plain, found = self.accumulators(sweep)
        accs: list[Accumulator] = [*plain, *found]
        out = [s for e in found for s in e.clear()]
        if self.registers:
            out += [s for p in plain for s in p.clear()]
            out += self._written_out(sweep, accs)
            stmts, values = self.tree(plain)
            out += stmts
            for p, mine in zip(plain, values, strict=True):
                out += self._bind(p, [p.total(v) for v in mine])
        else:
            totals = [self.array("total", p.identity, self.wide) for p in plain]
            out += [Store(t, index(v), p.identity) for t, p in zip(totals, plain, strict=True) for v in range(self.wide)]
            start, stop = names.fresh("start"), names.fresh("stop")
            body: list[Stmt] = [
                Let(stop, minimum(start + CHUNK, row.length)),
                *(s for p in plain for s in p.clear()),
                *self.chunk(sweep, accs, start, stop),
            ]
            stmts, values = self.tree(plain)
            body += stmts
            for t, p, mine in zip(totals, plain, values, strict=True):
                body += [Store(t, index(v), combine(p.op, load(t, index(v)), x)) for v, x in enumerate(mine)]
            if plain and not self.shuffles:
                body.append(Barrier())  # before the next chunk writes
            out.append(For(start, index(0), row.length, tuple(body), index(CHUNK)))
            for t, p in zip(totals, plain, strict=True):
                out += self._bind(p, [p.total(load(t, index(v))) for v in range(self.wide)])
        for e in found:
            stmts, winners = self.winners(e)
            out += [*stmts, *self._bind(e, [where for _, where in winners])]
        return out

    def _bind(self, p: Plain | Extremum, values: Sequence[Expr]) -> list[Stmt]:
        """The values of this thread's columns are the reduction's result from now on."""
        done = self.array("value", values[0], self.wide)
        self.row.bind(p.op, load(done, self.v))
        return [Store(done, index(v), x) for v, x in enumerate(values)]

    def _line(self, sweep: Sweep, i: Expr, slot: int | Expr, lane: Expr, accs: Sequence[Accumulator], stop: Expr | None) -> list[Stmt]:
        at = index(slot) if isinstance(slot, int) else slot
        body, stores = self.sweeps.at(sweep, i, at * self.wide + self.v)
        for a in accs:
            body += a.step(i, lane * self.wide + self.v)
        inside = self.vector([*body, *stores])
        return inside if stop is None else [If(i < stop, tuple(inside))]

    def _written_out(self, sweep: Sweep, accs: Sequence[Accumulator]) -> list[Stmt]:
        lines, row = self.choice.number("lines"), self.row
        whole = lines if self.choice.number("full") else lines - 1
        out: list[Stmt] = []
        r, j = self.names.fresh("line"), self._lane()
        if whole:
            i = r * self.lanes + j * self.down + self.ty
            inner = self._line(sweep, i, r * self.slots + j, j, accs, None)
            out += self._unrolled(r, whole, self._unrolled(j, self.slots, inner))
        if whole < lines:
            j = self._lane()
            i = j * self.down + self.ty + whole * self.lanes
            inner = self._line(sweep, i, j + whole * self.slots, j, accs, row.length)
            out += self._unrolled(j, self.slots, inner)
        return out

    def _lane(self) -> Expr:
        return self.names.fresh("j") if self.slots > 1 else index(0)

    @staticmethod
    def _unrolled(var: Expr, count: int, body: Sequence[Stmt]) -> list[Stmt]:
        if var.op == "const":
            return list(body)
        return [For(var, index(0), index(count), tuple(body), index(1), unroll=True)]

    def chunk(self, sweep: Sweep, accs: Sequence[Accumulator], start: Expr, stop: Expr) -> list[Stmt]:
        """The lines of one chunk: several whole ones at a time, then one by one."""
        names = self.names
        main, line, rest, u = (names.fresh(s) for s in ("main", "line", "line", "u"))
        j, k = self._lane(), self._lane()
        ahead = max(1, 16 // (self.slots * self.wide))
        block = self.lanes * ahead
        whole = self._line(sweep, line + (u * self.lanes + j * self.down) + self.ty, 0, j, accs, None)
        last = self._line(sweep, rest + k * self.down + self.ty, 0, k, accs, stop)
        return [
            Let(main, select(start < stop, (stop - start) // block * block + start, start)),
            For(line, start, main, tuple(self._unrolled(u, ahead, self._unrolled(j, self.slots, whole))), index(block)),
            For(rest, main, stop, tuple(self._unrolled(k, self.slots, last)), index(self.lanes)),
        ]

    # ---- lanes

    def tree(self, plain: Sequence[Plain]) -> tuple[list[Stmt], list[list[Expr]]]:
        """For each reduction one value for each of the thread's columns, known to all threads of the column."""
        out: list[Stmt] = []
        found = []
        for p in plain:
            values = []
            for v in range(self.wide):
                mine = [load(p.array, index(j * self.wide + v)) for j in range(self.slots)]
                while len(mine) > 1:
                    half = len(mine) // 2
                    mine = [self._named(out, combine(p.op, mine[j], mine[j + half])) for j in range(half)]
                values.append(mine[0])
            found.append(values)
        if self.down == 1 or not plain:
            return out, found
        if not self.shuffles:
            return self._tree_in_memory(plain, found, out)
        for k, p in enumerate(plain):
            half, values = self.down // 2, found[k]
            while half:
                others = [self._named(out, shuffle(x, "down", half * self.across, self.team)) for x in values]
                values = [self._named(out, combine(p.op, x, o)) for x, o in zip(values, others, strict=True)]
                half //= 2
            found[k] = [self._named(out, shuffle(x, "from", self.tx, self.team)) for x in values]
        return out, found

    def _tree_in_memory(
        self, plain: Sequence[Plain], found: list[list[Expr]], out: list[Stmt]
    ) -> tuple[list[Stmt], list[list[Expr]]]:
        if any((k, p.dtype) in self.boards for k, p in enumerate(plain)):
            out.append(Barrier())  # the last readers of that memory are done
        boards = [self._board(k, p.dtype) for k, p in enumerate(plain)]
        for board, values in zip(boards, found, strict=True):
            out += [Store(board, self._own(v), x) for v, x in enumerate(values)]
        half = self.down // 2
        while half:
            step = half * self.across * self.wide
            own = [self._own(v) for v in range(self.wide)]
            meet = [
                Store(board, o, combine(p.op, load(board, o), load(board, o + step)))
                for board, p in zip(boards, plain, strict=True)
                for o in own
            ]
            out += [Barrier(), If(self.ty < half, tuple(meet))]
            half //= 2
        out.append(Barrier())
        return out, [[self._named(out, load(b, self._first(v))) for v in range(self.wide)] for b in boards]

    def _board(self, k: int, dtype: DType) -> Buffer:
        """Memory of the block for one value a column a thread, the k-th of a sweep; sweeps take turns."""
        if (k, dtype) not in self.boards:
            board = Buffer(self.names.fresh("board").data, dtype, "shared")
            self.allocs.append(Alloc(board, self.threads * self.wide))
            self.boards[k, dtype] = board
        return self.boards[k, dtype]

    def _named(self, out: list[Stmt], value: Expr) -> Expr:
        name = self.names.fresh("other", value.dtype)
        out.append(Let(name, value))
        return name

    def _own(self, v: int) -> Expr:
        return var("thread") * self.wide + v

    def _first(self, v: int) -> Expr:
        return (self.tz * self.team + self.tx) * self.wide + v

    def winners(self, e: Extremum) -> tuple[list[Stmt], list[tuple[Expr, Expr]]]:
        """For each of the thread's columns the best value and its place, known to all threads of the column."""
        out: list[Stmt] = []
        winners = []
        candidates = e.candidates()
        for v in range(self.wide):
            first, *others = candidates[v :: self.wide]
            for other in others:
                more, first = e.meet(first, other)
                out += more
            winners.append(first)
        half = self.down // 2
        if self.shuffles:
            while half:
                for v, (best, where) in enumerate(winners):
                    k = half * self.across
                    other = (
                        self._named(out, shuffle(best, "xor", k, self.team)),
                        self._named(out, shuffle(where, "xor", k, self.team)),
                    )
                    more, winners[v] = e.meet((best, where), other)
                    out += more
                half //= 2
            return out, winners
        bests = Buffer(self.names.fresh("bests").data, e.dtype, "shared")
        places = Buffer(self.names.fresh("places").data, e.place, "shared")
        self.allocs += [Alloc(bests, self.threads * self.wide), Alloc(places, self.threads * self.wide)]
        for v, (best, where) in enumerate(winners):
            out += [Store(bests, self._own(v), best), Store(places, self._own(v), where)]
        while half:
            meet: list[Stmt] = []
            for v in range(self.wide):
                own, far = self._own(v), self._own(v) + half * self.across * self.wide
                more, (best, where) = e.meet(
                    (load(bests, own), load(places, own)), (load(bests, far), load(places, far))
                )
                meet += [*more, Store(bests, own, best), Store(places, own, where)]
            out += [Barrier(), If(self.ty < half, tuple(meet))]
            half //= 2
        out.append(Barrier())
        return out, [(load(bests, self._first(v)), load(places, self._first(v))) for v in range(self.wide)]
