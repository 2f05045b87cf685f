"""Rows: the reduced dimensions are the innermost, threads run along them.

"rows registers": a row of at most 4096 elements belongs to P / V threads of one warp, each with V neighbouring lanes
of the contract (one access of V elements) in every line of P elements. The lines are written out, so what is held stays
in registers: memory is read once, all lines' loads are in flight together, and there is no barrier.

"rows loop": one warp takes a chunk of 4096, as the contract has it; as many warps as there are chunks share a row, and
exchange the chunks' values. Nothing is held: rows longer than shared memory (`staged.py`) are read again, from L2.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.rows.accumulators import POSITIONAL, Accumulator, Extremum, Plain
from graphc.codegen.cuda.rows.sweeps import Held, Rewrite, Sweep, Sweeps
from graphc.codegen.expr import Expr, equal, index, load, logical_and, select, var
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
    Vector,
)
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import ceil_div, minimum, split_coords
from graphc.codegen.lower.row_group import CHUNK, LANES, RowGroup, combine
from graphc.ir.function import Value
from graphc.ir.types import I32, I64, size_of

WARP = 32
# Lines of a rolled loop that are written out, so that so many loads are in flight.
AHEAD = 16


class Rows:
    """Lowers one row group; all forms of this file."""

    def __init__(self, row: RowGroup, targets: Sequence[tuple[Value, Buffer]], choice: Choice) -> None:
        self.row, self.names, self.choice = row, row.names, choice
        self.targets = list(targets)
        self.sweeps = Sweeps(row, targets)
        self.form = choice.form
        self.lanes, self.wide = choice.number("lanes"), choice.number("wide")
        self.threads = self.lanes // self.wide  # that share a chunk
        self.parts = choice.number("parts")  # chunks of a row at work at once, each in a warp of its own
        self.warps = choice.number("warps")  # of a block
        self.rows_a_block = self.warps * WARP // (self.threads * self.parts)
        self.t = self.names.fresh("t")  # of the threads that share a chunk
        self.part = self.names.fresh("part") if self.parts > 1 else index(0)
        self.local_row = self.names.fresh("r")
        self.allocs: list[Stmt] = []

    def kernel(self, buffers: tuple[Buffer, ...], extents: tuple[str, ...], work: Expr) -> Kernel:
        return Kernel(
            name="rows",
            buffers=buffers,
            extents=extents,
            parallel=dim_expr(size_of(self.row.kept_shape)),
            work=work,
            body=tuple(self.body()),
            grid=Grid(
                ceil_div(dim_expr(size_of(self.row.kept_shape)), self.rows_a_block),
                self.warps * WARP,
                self.choice.divides,
                self.choice.narrow,
            ),
        )

    def body(self) -> list[Stmt]:
        row, names = self.row, self.names
        rows = dim_expr(size_of(row.kept_shape))
        block, thread = var("block"), var("thread")
        first, item = names.fresh("first"), names.fresh("row")
        team = self.threads * self.parts
        out: list[Stmt] = [Let(self.local_row, thread // team), Let(self.t, thread % self.threads)]
        if self.parts > 1:
            out.append(Let(self.part, thread // self.threads))
        out.append(Let(first, block * self.rows_a_block + self.local_row))
        shared_warp = team < WARP
        # A warp of several rows runs whole: threads beyond the last row repeat it, and store nothing.
        out.append(Let(item, minimum(first, rows - 1) if shared_warp else first))
        if shared_warp:
            self.sweeps.guard = first < rows
        self.sweeps.hold(self._place)
        stmts, row.kept = split_coords(item, row.kept_shape, names)
        inside = [*stmts, *self.sweeps.name_kept(0)]
        for sweep in self.sweeps.all:
            inside += self._sweep(sweep)
            inside += self.sweeps.name_kept(sweep.number) if sweep.ops else []
        kept = row.store_kept([t for t in self.targets if not row.is_full(t[0]) or not row.axes])
        if kept:
            lead = equal(self.t, 0) if self.parts == 1 else equal(thread, 0)
            inside.append(If(logical_and(lead, self.sweeps.guard), tuple(kept)))
        if self.parts > 1:
            return [*self.allocs, *out, *inside]  # one row a block
        whole = block * self.rows_a_block + thread // WARP * (WARP // team) < rows
        return [*self.allocs, *out, If(whole, tuple(inside))]

    # ---- where values are held

    def _place(self, h: Held) -> Buffer | None:
        if self.form != "rows registers":
            return None
        buffer = Buffer(self.names.fresh("held").data, h.dtype, "local")
        self.allocs.append(Alloc(buffer, self.choice.number("lines") * self.wide))
        return buffer

    # ---- a sweep

    def accumulators(self, sweep: Sweep) -> tuple[list[Plain], list[Extremum]]:
        plain = [Plain(self.row, op, self.wide) for op in sweep.ops if op.name not in POSITIONAL]
        places = I32 if self.choice.narrow else I64
        found = [Extremum(self.row, op, self.wide, places) for op in sweep.ops if op.name in POSITIONAL]
        both: list[Accumulator] = [*plain, *found]
        for a in both:
            self.allocs += a.declare()
        return plain, found

    def _sweep(self, sweep: Sweep) -> list[Stmt]:
        plain, found = self.accumulators(sweep)
        if self.form == "rows registers":
            return self._written_out(sweep, plain, found)
        return self._rolled(sweep, plain, found)

    def _line(
        self,
        sweep: Sweep,
        start: Expr,
        slot: Expr,
        accs: Sequence[Accumulator],
        stop: Expr | None,
        rewrite: Rewrite | None = None,
    ) -> list[Stmt]:
        """One line: this thread's `wide` elements from `start`, those before `stop` (all, if None)."""
        v = self.names.fresh("v") if self.wide > 1 else index(0)
        body, stores = self.sweeps.at(sweep, start + v, slot + v)
        for a in accs:
            body += a.step(start + v, v)
        inside: list[Stmt] = [*body, *stores]
        if rewrite is not None:
            inside = rewrite(inside, v)
        if self.wide > 1:
            inside = [Vector(v, self.wide, tuple(inside))]
        return inside if stop is None else [If(start < stop, tuple(inside))]

    def _written_out(self, sweep: Sweep, plain: Sequence[Plain], found: Sequence[Extremum]) -> list[Stmt]:
        row, lines = self.row, self.choice.number("lines")
        accs: list[Accumulator] = [*plain, *found]
        whole = lines if self.choice.number("full") else lines - 1

        def loops(rewrite: Rewrite | None) -> list[Stmt]:
            out = [s for a in accs for s in a.clear()]
            if whole:
                r = self.names.fresh("line")
                start = r * self.lanes + self.t * self.wide
                body = self._line(sweep, start, r * self.wide, accs, None, rewrite)
                out.append(For(r, index(0), index(whole), tuple(body), index(1), unroll=True))
            if whole < lines:
                start = self.t * self.wide + whole * self.lanes
                out += self._line(sweep, start, index(whole * self.wide), accs, row.length, rewrite)
            return out

        arrays, out = self.sweeps.by_reciprocals(loops, self.wide)
        self.allocs += arrays
        for p in plain:
            stmts, value = p.tree(self.threads)
            total = self.names.fresh("total", p.dtype)
            out += [*stmts, Let(total, p.total(value))]
            self.sweeps.uniform.add(total)
            row.bind(p.op, total)
        for e in found:
            stmts, (_, where) = e.winner(self.threads)
            out += stmts
            row.bind(e.op, where)
        return out

    def _rolled(self, sweep: Sweep, plain: Sequence[Plain], found: Sequence[Extremum]) -> list[Stmt]:
        """Chunks in rounds of `parts`, each a warp's; the chunks of a round are exchanged, and combined in order."""
        row, names = self.row, self.names
        accs: list[Accumulator] = [*plain, *found]
        totals = [names.fresh("total", p.dtype) for p in plain]
        out: list[Stmt] = [Declare(t, p.identity) for t, p in zip(totals, plain, strict=True)]
        out += [s for e in found for s in e.clear()]
        base, start, stop = names.fresh("base"), names.fresh("start"), names.fresh("stop")
        body: list[Stmt] = [
            Let(start, base + self.part * CHUNK if self.parts > 1 else base),
            Let(stop, minimum(start + CHUNK, row.length)),
            *(s for p in plain for s in p.clear()),
            *self._chunk(sweep, accs, start, stop),
        ]
        exchange: list[Stmt] = []
        for t, p in zip(totals, plain, strict=True):
            stmts, value = p.tree(self.threads)
            body += stmts
            if self.parts == 1:
                body.append(Assign(t, combine(p.op, t, value)))
                continue
            board = Buffer(names.fresh("chunks").data, p.dtype, "shared")
            self.allocs.append(Alloc(board, self.parts))
            body.append(If(equal(self.t, 0), (Store(board, self.part, value),)))
            # A chunk past the end holds the identity.
            exchange += [Assign(t, combine(p.op, t, load(board, index(k)))) for k in range(self.parts)]
        if exchange:
            body += [Barrier(), *exchange]
            if not self.choice.number("once"):
                body.append(Barrier())  # before the next round writes
        if self.choice.number("once"):
            out += [Let(base, index(0)), *body]
        else:
            out.append(For(base, index(0), row.length, tuple(body), index(CHUNK * self.parts)))
        for t, p in zip(totals, plain, strict=True):
            known = names.fresh("value", p.dtype)
            out.append(Let(known, p.total(t)))
            row.bind(p.op, known)
        for e in found:
            out += self._winner(e)
        return out

    def _chunk(self, sweep: Sweep, accs: Sequence[Accumulator], start: Expr, stop: Expr) -> list[Stmt]:
        """The lines of one chunk: blocks of several whole ones, then one by one."""
        names = self.names
        main, line, rest, u = names.fresh("main"), names.fresh("line"), names.fresh("line"), names.fresh("u")
        ahead = AHEAD // self.wide
        block = LANES * ahead

        def at(base: Expr, last: Expr | None) -> tuple[Stmt, ...]:
            i = base + self.t * self.wide
            return tuple(self._line(sweep, i, i, accs, last))

        return [
            Let(main, select(start < stop, (stop - start) // block * block + start, start)),
            For(
                line,
                start,
                main,
                (For(u, index(0), index(ahead), at(line + u * LANES, None), index(1), unroll=True),),
                index(block),
            ),
            For(rest, main, stop, at(rest, stop), index(LANES)),
        ]

    def _winner(self, e: Extremum) -> list[Stmt]:
        out, (best, where) = e.winner(self.threads)
        if self.parts > 1:
            names = self.names
            values = Buffer(names.fresh("bests").data, e.dtype, "shared")
            places = Buffer(names.fresh("places").data, e.place, "shared")
            self.allocs += [Alloc(values, self.parts), Alloc(places, self.parts)]
            out.append(If(equal(self.t, 0), (Store(values, self.part, best), Store(places, self.part, where))))
            out.append(Barrier())
            first = (load(values, index(0)), load(places, index(0)))
            for k in range(1, self.parts):
                more, first = e.meet(first, (load(values, index(k)), load(places, index(k))))
                out += more
            where = first[1]
        name = self.names.fresh("where", e.place)
        out.append(Let(name, where))
        self.row.bind(e.op, name)
        return out
