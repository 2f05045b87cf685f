"""Rows in shared memory: a block takes a row, all of its warps what is elementwise, one warp each chain of a chunk.

A sweep has two phases with a barrier between them. In the first, threads run over the row in wide accesses: values that are
held, operands of reductions that cost something, and results are computed and stored. In the second, a warp takes
a chunk of a reduction from shared memory, in the order of the contract; the chunks' values are exchanged, and every thread
combines them. So as many warps as fit hide each other's waiting, whatever the number of chains.

Where a row is too long for two of them to hide each other's copies, and all work is chains, only its first chunks are held.

What comes from memory as it is, is copied past the registers, all of the row at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.rows.accumulators import POSITIONAL, Extremum, Plain, halve
from graphc.codegen.cuda.rows.sweeps import (
    HEAVY,
    Held,
    Rewrite,
    Sweep,
    Sweeps,
    held_values,
)
from graphc.codegen.expr import Expr, equal, index, load, select, var
from graphc.codegen.fuse import FREE
from graphc.codegen.loops import (
    Alloc,
    Barrier,
    Buffer,
    Call,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Place,
    Stmt,
    Store,
    Vector,
)
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import minimum, split_coords
from graphc.codegen.lower.row_group import CHUNK, REDUCE, RowGroup, accumulator, combine, domain_of, levels_of
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import I32, I64, DType, size_of

WARP = 32
CHAIN = 16  # elements of a lane that a chain reads ahead
AHEAD = 8  # elements that a thread has under way in the elementwise phase
MOST_CHEAP = 6  # operations that a chain may do itself for each element


def reads_in_chain(
    group: Function, op: Operation, number: int, held: Sequence[Held], heavy: bool
) -> frozenset[Held] | None:
    """The held values from which the chain of reduction `op` in sweep `number` computes its operand itself; None if the
    operand costs too much for one warp, or comes from memory. heavy: chains are many, and compute whatever they need."""
    shape, _ = domain_of(group)
    there = {h.value: h for h in held if h.first <= number <= h.last}
    producer = {r: o for o in group.ops for r in o.results}
    kept = size_of(d for i, d in enumerate(shape) if i not in domain_of(group)[1])
    found: set[Held] = set()
    count = 0
    stack, seen = [op.operands[0]], {op.operands[0]}
    while stack:
        v = stack.pop()
        if v in there:
            found.add(there[v])
            continue
        made = producer.get(v)
        if size_of(v.type.shape) in (1, kept) and v.type.shape != shape:
            continue  # the same for all of the row
        if made is None or made.name in REDUCE:
            if heavy:
                continue
            return None
        count += made.name not in FREE
        if not heavy and (made.name in HEAVY or count > MOST_CHEAP):
            return None
        stack += [o for o in made.operands if o not in seen]
        seen |= set(made.operands)
    return frozenset(found)


class Places:
    """Who lies where in shared memory. What begins in a sweep may take the place of what ends in it, unless a chain of
    that sweep still reads it.

    plan: 0 holds what costs much and what comes from memory, and operands of reductions for the chains; 1 leaves the operands
    to the chains; 2 holds only what comes from memory.
    """

    def __init__(self, group: Function, even: int, plan: int) -> None:
        self.group = group
        self.held = held_values(group, heavy=plan < 2)
        self.even = even
        self.early = [h for h in self.held if h.value in group.params and self.copy_bytes(h)]
        self.places: list[tuple[DType, int, bool]] = []  # dtype, the last sweep that reads it, whether a chain does
        self.of: dict[Held, int] = {}
        self.staged: dict[Operation, int] = {}
        levels = _sweep_of(group)
        self.chains = {op: reads_in_chain(group, op, s, self.held, plan > 0) for op, s in levels.items()}
        for h in self.early:
            self.of[h] = self._place(h.dtype, 0, self._last_chain(h, levels))
        numbers = sorted({*levels.values(), *(h.first for h in self.held)})
        for number in numbers:
            for h in (h for h in self.held if h.first == number and h not in self.of):
                self.of[h] = self._place(h.dtype, number, self._last_chain(h, levels))
            for op in (op for op, s in levels.items() if s == number and self.chains[op] is None):
                self.staged[op] = self._place(accumulator(op.operands[0].type.dtype), number, (number, True))

    def copy_bytes(self, h: Held) -> int:
        """Bytes of one copy past the registers, of neighbouring elements that are aligned; 0 if there is none so small."""
        size = min(16, self.even * h.dtype.itemsize)
        return size if size >= 4 else 0

    def _last_chain(self, h: Held, levels: Mapping[Operation, int]) -> tuple[int, bool]:
        """The last sweep that reads `h`, and whether a chain of it does."""
        return h.last, any(s == h.last and h in (self.chains[op] or ()) for op, s in levels.items())

    def _place(self, dtype: DType, first: int, last: tuple[int, bool]) -> int:
        for k, (d, end, chained) in enumerate(self.places):
            if d is dtype and first and (end < first or (end == first and not chained)):
                self.places[k] = (dtype, *last)
                return k
        self.places.append((dtype, *last))
        return len(self.places) - 1

    @property
    def only_chains(self) -> bool:
        """Whether there is no elementwise phase: then part of a row may be held, and the rest read again."""
        shape, _ = domain_of(self.group)
        full = any(r.type.shape == shape for r in self.group.results)
        return not full and not self.staged and len(self.early) == len(self.held)

    @property
    def itemsize(self) -> int:
        """Bytes for each element of a row."""
        return sum(d.itemsize for d, _, _ in self.places)


def _sweep_of(group: Function) -> dict[Operation, int]:
    level = levels_of(group)
    return {op: level[op.results[0]] for op in group.ops if op.name in REDUCE}


class Staged:
    """Lowers one row group."""

    def __init__(self, row: RowGroup, targets: Sequence[tuple[Value, Buffer]], choice: Choice) -> None:
        self.row, self.names, self.choice = row, row.names, choice
        self.targets = list(targets)
        self.sweeps = Sweeps(row, targets, heavy=choice.number("plan") < 2)
        self.wide, self.warps = choice.number("wide"), choice.number("warps")
        self.chunks = choice.number("chunks")
        self.kept = choice.number("kept")  # chunks that are held; the others are read again
        self.threads = self.warps * WARP
        self.plan = Places(row.group, choice.number("even"), choice.number("plan"))
        # The plan's values, as this lowering's.
        self.place = {h: self.plan.of[p] for h, p in zip(self.sweeps.held, self.plan.held, strict=True)}
        self.early = [h for h, p in zip(self.sweeps.held, self.plan.held, strict=True) if p in self.plan.early]
        room = choice.number("room")
        self.memory = [Buffer(self.names.fresh("held").data, d, "shared") for d, _, _ in self.plan.places]
        self.allocs: list[Stmt] = [Alloc(b, room) for b in self.memory]
        self.warp, self.lane = self.names.fresh("warp"), self.names.fresh("lane")

    def kernel(self, buffers: tuple[Buffer, ...], extents: tuple[str, ...], work: Expr) -> Kernel:
        row = self.row
        rows = dim_expr(size_of(row.kept_shape))
        thread, item = var("thread"), var("block")
        stmts, row.kept = split_coords(item, row.kept_shape, self.names)
        self.sweeps.hold(lambda h: self.memory[self.place[h]])
        self.sweeps.early = frozenset(self.early)
        body = [Let(self.warp, thread // WARP), Let(self.lane, thread % WARP), *stmts, *self._copies(item)]
        body += self.sweeps.name_kept(0)
        for sweep in self.sweeps.all:
            body += self._sweep(sweep)
            body += self.sweeps.name_kept(sweep.number) if sweep.ops else []
        kept = row.store_kept([t for t in self.targets if not row.is_full(t[0])])
        if kept:
            body.append(If(equal(thread, 0), tuple(kept)))
        # Left alone, the compiler spills rather than have only one block of so many threads on a multiprocessor.
        alone = int(self.threads == 1024)
        grid = Grid(rows, self.threads, self.choice.divides, self.choice.narrow, alone)
        return Kernel("rows", buffers, extents, rows, work, (*self.allocs, *body), grid=grid)

    def _copies(self, item: Expr) -> list[Stmt]:
        """Start all copies, in the order in which sweeps ask for them."""
        out: list[Stmt] = []
        for first in sorted({h.first for h in self.early}):
            for h in (h for h in self.early if h.first == first):
                size = self.plan.copy_bytes(h)
                count = size // h.dtype.itemsize
                k, i = self.names.fresh("k"), self.names.fresh("i")
                source = Place(self.row.pull.buffers[h.value], item * self.row.length + i)
                target = Place(self.sweeps.memory[h], i)
                call = Call(f"copy_async_{size}", (target, source, index(size)), (target.buffer,))
                stop = self.row.length if self.kept == self.chunks else minimum(index(self.kept * CHUNK), self.row.length)
                body = (Let(i, k + var("thread") * count), If(i < stop, (call,)))
                out.append(For(k, index(0), stop, body, index(count * self.threads)))
            out.append(Call("copy_async_commit", ()))
        return out

    def _arrived(self, sweep: Sweep) -> list[Stmt]:
        """Wait for what this sweep is the first to read; later copies may be under way."""
        firsts = sorted({h.first for h in self.early})
        if sweep.number not in firsts:
            return []
        pending = len(firsts) - 1 - firsts.index(sweep.number)
        return [Call(f"copy_async_wait_{min(pending, 7)}", ()), Barrier()]

    def _sweep(self, sweep: Sweep) -> list[Stmt]:
        staged = {op: self.memory[self.plan.staged[op]] for op in sweep.ops if op in self.plan.staged}
        out = self._arrived(sweep)
        if staged or sweep.stores or any(h not in self.early for h in sweep.held):
            out += self._elementwise(sweep, staged)
            if sweep.ops:
                out.append(Barrier())
        if not sweep.ops:
            return out
        exchanged: list[Stmt] = []
        for k, op in enumerate(sweep.ops):
            stmts, more = self._chain(sweep, op, k, staged.get(op))
            out += stmts
            exchanged += more
        return [*out, Barrier(), *exchanged]

    def _elementwise(self, sweep: Sweep, staged: Mapping[Operation, Buffer]) -> list[Stmt]:
        """All threads run over the row; every element stays with its thread."""
        line = self.threads * self.wide

        def loops(rewrite: Rewrite | None, ahead: int = max(1, AHEAD // self.wide)) -> list[Stmt]:
            names, row = self.names, self.row
            base, rest, u, main = (names.fresh(s) for s in ("base", "rest", "u", "main"))

            def at(start: Expr) -> list[Stmt]:
                v = names.fresh("v") if self.wide > 1 else index(0)
                i = start + var("thread") * self.wide + v
                body, stores = self.sweeps.at(sweep, i, i, staged.values())
                for op, buffer in staged.items():
                    x = row.element(op, i)
                    body += [*row.pull.take_reports(), Store(buffer, i, x)]
                inside = [*body, *stores]
                if rewrite is not None:
                    inside = rewrite(inside, v)
                return [Vector(v, self.wide, tuple(inside))] if self.wide > 1 else inside

            last = If(rest + var("thread") * self.wide < row.length, tuple(at(rest)))
            if ahead == 1:
                return [For(rest, index(0), row.length, (last,), index(line))]
            whole = For(u, index(0), index(ahead), tuple(at(base + u * line)), index(1), unroll=True)
            return [
                Let(main, row.length // (line * ahead) * (line * ahead)),
                For(base, index(0), main, (whole,), index(line * ahead)),
                For(rest, main, row.length, (last,), index(line)),
            ]

        written = {*staged.values(), *(self.sweeps.memory[h] for h in sweep.held if h not in self.early)}
        read = {self.sweeps.memory[h] for h in self.sweeps.held if h.first < sweep.number <= h.last or h in self.early}
        if written & read:
            return loops(None)  # what is overwritten could not be computed again
        arrays, out = self.sweeps.by_reciprocals(loops, self.wide, lambda: loops(None, 1))
        self.allocs += arrays
        return out

    def _chain(self, sweep: Sweep, op: Operation, k: int, staged: Buffer | None) -> tuple[list[Stmt], list[Stmt]]:
        """The chunks of one reduction, a warp each; then how every thread combines them."""
        names, row = self.names, self.row
        positional = op.name in POSITIONAL
        dtype = accumulator(op.operands[0].type.dtype)
        # Only sums and products of floats depend on how they are associated: others run as several chains.
        ways = 1 if op.name in ("sum", "prod") and dtype.is_float else 4
        a = Extremum(row, op, ways, I32 if self.choice.narrow else I64) if positional else Plain(row, op, ways)
        self.allocs += a.declare()
        c, start, stop, quarter, done = (names.fresh(s) for s in ("chunk", "start", "stop", "quarter", "done"))
        ahead = CHAIN // ways

        def lines(held: bool) -> list[Stmt]:
            line, rest, u = (names.fresh(s) for s in ("line", "rest", "u"))

            def step(i: Expr, way: int) -> list[Stmt]:
                if staged is None:
                    self.sweeps.look(sweep, i, held)
                return a.step(i, index(way), None if staged is None else load(staged, i))

            together = [s for w in range(ways) for s in step(start + (quarter * w + line + u) * WARP + self.lane, w)]
            after = If(rest + self.lane < stop, tuple(step(rest + self.lane, ways - 1)))
            whole = For(u, index(0), index(ahead), tuple(together), index(1), unroll=True)
            return [For(line, index(0), quarter, (whole,), index(ahead)), For(rest, done, stop, (after,), index(WARP))]

        body: list[Stmt] = [
            Let(start, c * CHUNK),
            Let(stop, minimum(start + CHUNK, row.length)),
            # Lines of each way, a multiple of those that are written out.
            Let(quarter, (stop - start) // (WARP * CHAIN) * ahead),
            Let(done, start + quarter * (WARP * ways)),
            *a.clear(),
        ]
        if self.kept == self.chunks:
            body += lines(True)
        else:
            body.append(If(c < self.kept, tuple(lines(True)), tuple(lines(False))))
        if isinstance(a, Extremum):
            stmts, winner = a.winner(WARP)
            values: tuple[Expr, ...] = winner
        else:
            mine = load(a.array, index(0))
            stmts = []
            for w in range(1, ways):
                both = names.fresh("both", dtype)
                stmts.append(Let(both, combine(op, mine, load(a.array, index(w)))))
                mine = both
            more, value = halve(op, [mine], WARP, names)
            stmts += more
            values = (value,)
        boards = [Buffer(names.fresh("chunks").data, x.dtype, "shared") for x in values]
        self.allocs += [Alloc(b, self.chunks) for b in boards]
        stores = tuple(Store(b, c, x) for b, x in zip(boards, values, strict=True))
        body += [*stmts, If(equal(self.lane, 0), stores)]
        # The warps take turns, over all reductions of the sweep.
        offset = (k * self.chunks) % self.warps
        own = select(self.warp < offset, self.warp + (self.warps - offset), self.warp - offset) if offset else self.warp
        if self.chunks == 1:
            found: list[Stmt] = [If(equal(self.warp, offset), (Let(c, index(0)), *body))]
        else:
            found = [For(c, own, index(self.chunks), tuple(body), index(self.warps))]
        return found, self._combined(op, a, boards)

    def _combined(self, op: Operation, a: Plain | Extremum, boards: Sequence[Buffer]) -> list[Stmt]:
        names = self.names
        out: list[Stmt] = []
        first = tuple(load(b, index(0)) for b in boards)
        for k in range(1, self.chunks):
            other = tuple(load(b, index(k)) for b in boards)
            if isinstance(a, Extremum):
                more, first = a.meet((first[0], first[1]), (other[0], other[1]))
                out += more
            else:
                both = names.fresh("both", a.dtype)
                out.append(Let(both, combine(op, first[0], other[0])))
                first = (both,)
        value = names.fresh("value", first[-1].dtype)
        out.append(Let(value, a.total(first[0]) if isinstance(a, Plain) else first[1]))
        self.sweeps.uniform.add(value)
        self.row.bind(op, value)
        return out
