"""Plans: which launch works on which memory.

Inputs and outputs are the caller's; everything between lives in one arena, at offsets given by the
lifetimes of the values. The plan of a function is its order of launches with all sizes resolved.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphc.codegen.dependences import Range, reduced
from graphc.codegen.donation import in_place
from graphc.codegen.kernels import BoundGroup, Launch, Site, Wanted, bind_groups, evaluate_size
from graphc.ir.function import Function, Loc, Module, Operation, Value
from graphc.ir.types import TensorType, substitute

ALIGN = 64
# To keep operations apart an arena may grow by this fraction of it and so many bytes; operations further apart do not overlap.
SPARE = 8
SPARE_BYTES = 256 << 10
OVERLAP = 12

# Where a buffer is: ("in", i), ("out", i) or ("arena", byte offset).
Place = tuple[str, int]


@dataclass(frozen=True)
class PlannedLaunch:
    """One launch: its kernel, where its buffers are, the values of its extents.

    reads, writes: the memory that it touches; scratch counts as written by all that touch it. in_place: it writes over an input.
    """

    launch: Launch
    places: tuple[Place, ...]
    extents: tuple[int, ...]
    parallel: int
    work: int
    group: str
    loc: Loc | None
    sites: tuple[Site, ...]
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()
    in_place: bool = False

    @property
    def moved(self) -> int:
        """Bytes of the memory that it touches."""
        return sum(high - low for _, low, high in (*self.reads, *self.writes))


@dataclass(frozen=True)
class Plan:
    """The launches of a fused module in order, and the size of the arena in bytes.

    streams: outputs must be aligned to 64 bytes. borrowed: some kernels were chosen for other sizes.
    """

    entry: Function
    launches: tuple[PlannedLaunch, ...]
    arena: int
    streams: bool = False
    borrowed: bool = False

    def __str__(self) -> str:
        lines = [f"plan @{self.entry.name}: {len(self.launches)} launches, arena {self.arena} bytes"]
        for i, p in enumerate(self.launches):
            places = ", ".join(f"{kind}+{at}" if kind == "arena" else f"{kind}{at}" for kind, at in p.places)
            sizes = ", ".join(f"{n}={v}" for n, v in zip(p.launch.extents, p.extents, strict=True))
            line = f"  {i}: {p.group} {p.launch.symbol}({places}) {sizes} parallel={p.parallel} work={p.work}"
            lines.append(line + (f" loc({p.loc})" if p.loc else ""))
        return "\n".join(lines)


class Arena:
    """Offsets by lifetime: a freed range is given to the best-fitting request that comes later."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []  # (offset, size), ascending, never adjacent

    def take(self, size: int) -> int:
        size = max(ALIGN, -(-size // ALIGN) * ALIGN)
        fits = [(s, o) for o, s in self.free if s >= size]
        if fits:
            s, o = min(fits)
            self.free.remove((o, s))
            if s > size:
                self._insert(o + size, s - size)
            return o
        if self.free and self.free[-1][0] + self.free[-1][1] == self.size:
            o, s = self.free.pop()
            self.size = o + size
            return o
        o = self.size
        self.size += size
        return o

    def fits(self, size: int) -> bool:
        """Whether `take` would find room without growing."""
        return any(s >= size for _, s in self.free)

    def give(self, offset: int, size: int) -> None:
        self._insert(offset, max(ALIGN, -(-size // ALIGN) * ALIGN))

    def _insert(self, offset: int, size: int) -> None:
        free = self.free
        at = bisect_left(free, (offset, 0))
        if at < len(free) and offset + size == free[at][0]:
            size += free.pop(at)[1]
        if at and free[at - 1][0] + free[at - 1][1] == offset:
            at -= 1
            offset, before = free.pop(at)
            size += before
        free.insert(at, (offset, size))


@dataclass(frozen=True)
class Layout:
    """Where the values of a fused entry are, the arena offsets of each call's scratch, the arena's size in bytes."""

    place: dict[Value, Place]
    scratch: dict[int, list[int]]
    size: int


def lay_out(
    entry: Function,
    scratch: Callable[[int, Operation], Sequence[int]],
    reserved: int = 0,
    order: Sequence[Sequence[int]] | None = None,
    apart: bool = False,
) -> Layout:
    """Places by lifetime, for calls that run in order.

    scratch: the bytes of each scratch buffer of the entry's operation i; asked once, in order, for every
    operation that computes something. reserved: bytes at the start of the arena that are not given out.
    order: the operations as they run, those of a run at the same time; one after the other if not given.
    apart: operations that do not depend on each other should not share memory where that costs little (`SPARE`), so
    that they may overlap in time.
    """
    steps = [[i] for i in range(len(entry.ops))] if order is None else order
    needs: dict[int, Sequence[int]] = {}
    for i in (i for step in steps for i in step):
        if any(map(_bytes, entry.ops[i].results)):  # else there is nothing to compute
            needs[i] = scratch(i, entry.ops[i])
    if not apart:
        return _Placing(entry, needs, reserved, steps).all()
    limit = _with_spare(_most_alive(entry, needs, steps) + reserved)
    loose = _Placing(entry, needs, reserved, steps, limit).all()
    if loose.size <= limit:
        return loose
    # Ranges may not fit each other well even when they are given at once.
    tight = _Placing(entry, needs, reserved, steps).all()
    return loose if loose.size <= _with_spare(tight.size) else tight


def _with_spare(size: int) -> int:
    return size + size // SPARE + SPARE_BYTES


def _most_alive(entry: Function, needs: Mapping[int, Sequence[int]], steps: Sequence[Sequence[int]]) -> int:
    """Bytes of the arena that are in use at once, at most."""
    outside = {*entry.params, *entry.results}
    last = {v: n for n, step in enumerate(steps) for i in step for v in entry.ops[i].operands}
    ends: dict[int, int] = {}
    alive = most = 0
    for n, step in enumerate(steps):
        for i in step:
            for r in entry.ops[i].results:
                if r not in outside:
                    size = _bytes(r)
                    alive += size
                    ends[last.get(r, n)] = ends.get(last.get(r, n), 0) + size
        most = max(most, alive + sum(sum(needs.get(i, ())) for i in step))
        alive -= ends.get(n, 0)
    return most


class _Placing:
    """One pass over the operations.

    limit: the size up to which the arena may grow so that a range is not given at once to an operation that
    does not depend on those that used it last; 0: ranges are given at once.
    """

    def __init__(
        self,
        entry: Function,
        needs: dict[int, Sequence[int]],
        reserved: int,
        steps: Sequence[Sequence[int]],
        limit: int = 0,
    ) -> None:
        self.entry, self.needs, self.steps, self.limit = entry, needs, steps, limit
        self.arena = Arena()
        if reserved:
            self.arena.take(reserved)
        self.above = _ancestors(entry) if limit else []
        # Ranges that wait: the last operations that used them, offset, size.
        self.held: list[tuple[tuple[int, ...], int, int]] = []

    def all(self) -> Layout:
        entry = self.entry
        place: dict[Value, Place] = {p: ("in", i) for i, p in enumerate(entry.params)}
        place.update({r: ("out", i) for i, r in enumerate(entry.results)})
        last: dict[Value, int] = {}
        users: dict[Value, list[int]] = {}
        for n, step in enumerate(self.steps):
            for i in step:
                for v in entry.ops[i].operands:
                    last[v] = n
                if self.limit:
                    for v in (*entry.ops[i].operands, *entry.ops[i].results):
                        users.setdefault(v, []).append(i)
        offsets: dict[int, list[int]] = {}
        for n, step in enumerate(self.steps):
            ops = [entry.ops[i] for i in step]
            self._let_go(step)
            for r in (r for op in ops for r in op.results):
                if r not in place:
                    place[r] = ("arena", self._take(_bytes(r)))
            taken: list[tuple[tuple[int, ...], int, int]] = []
            for i in step:
                if i in self.needs:
                    offsets[i] = [self._take(size) for size in self.needs[i]]
                    taken += [((i,), o, size) for o, size in zip(offsets[i], self.needs[i], strict=True)]
            for v in dict.fromkeys(v for op in ops for v in (*op.operands, *op.results)):
                kind, offset = place[v]
                if kind == "arena" and last.get(v, n) == n:
                    recent = tuple(u for u in users.get(v, ()) if u > max(step) - OVERLAP)
                    taken.append((recent, offset, _bytes(v)))
            for by, offset, size in taken:
                if self.limit:
                    self.held.append((by, offset, size))
                else:
                    self.arena.give(offset, size)
        return Layout(place, offsets, self.arena.size)

    def _take(self, size: int) -> int:
        if self.held and not self.arena.fits(size) and self.arena.size + size > self.limit:
            for _, offset, held in self.held:
                self.arena.give(offset, held)
            self.held.clear()
        return self.arena.take(size)

    def _let_go(self, step: Sequence[int]) -> None:
        """What was last used by operations that those of this step wait for anyway, or that are long past."""
        held, self.held = self.held, []
        for each in held:
            if all(u <= i - OVERLAP or self.above[i] >> (i - u - 1) & 1 for i in step for u in each[0]):
                self.arena.give(each[1], each[2])
            else:
                self.held.append(each)


def _ancestors(entry: Function) -> list[int]:
    """For each operation those shortly before it whose results it needs, directly or not: bit k stands for k + 1 places before."""
    maker: dict[Value, int] = {}
    needs: list[set[int]] = []
    for i, op in enumerate(entry.ops):
        needs.append({maker[v] for v in op.operands if v in maker})
        maker.update((r, i) for r in op.results)
    return reduced(needs)[1]


def make_plan(
    module: Module,
    stream: bool = True,
    donated: frozenset[tuple[int, int]] = frozenset(),
    hurry: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of a fused module, of concrete dimensions but for those that `sizes` has the values of.

    stream: as in `Wanted`. donated: (input, output) that are the same memory. hurry, sizes: as in `bind_groups`.
    """
    entry = _at(module.entry, sizes) if sizes else module.entry
    calls = [i for i, op in enumerate(entry.ops) if any(map(_bytes, op.results))]
    shared = in_place(module, donated)
    wanted = [Wanted(entry.ops[i].attrs["function"], stream, shared[i]) for i in calls]
    bound = dict(zip(calls, bind_groups(wanted, hurry, sizes), strict=True))

    def scratch(i: int, op: Operation) -> list[int]:
        return bound[i].compiled.scratch_bytes(bound[i].concrete())

    layout = lay_out(entry, scratch, apart=True)
    same: dict[Place, Place] = {("in", i): ("out", j) for i, j in donated}
    memory = _Memory(layout.place, same, frozenset(same.values()))
    launches: list[PlannedLaunch] = []
    for i, group in bound.items():
        launches += _launches(entry.ops[i], group, memory, layout.scratch[i])
    streams = any(group.compiled.streams for group in bound.values())
    borrowed = any(group.borrowed for group in bound.values())
    return Plan(entry, tuple(launches), layout.size, streams, borrowed)


def _at(entry: Function, sizes: Mapping[str, int]) -> Function:
    """`entry` with symbols replaced by these values, but for those in the functions that it calls."""
    types: dict[TensorType, TensorType] = {}

    def made(v: Value) -> Value:
        t = v.type
        if t not in types:
            types[t] = t.with_shape(substitute(d, sizes) for d in t.shape)
        return Value(types[t])

    env = {p: made(p) for p in entry.params}
    ops = []
    for op in entry.ops:
        results = [made(r) for r in op.results]
        ops.append(Operation(op.name, [env[v] for v in op.operands], op.attrs, results, op.loc))
        env.update(zip(op.results, results, strict=True))
    return Function(entry.name, [env[p] for p in entry.params], ops, [env[r] for r in entry.results], entry.param_names)


@dataclass(frozen=True)
class _Memory:
    """Where values are. same: inputs whose memory is an output's."""

    place: dict[Value, Place]
    same: dict[Place, Place]
    written: frozenset[Place]  # the outputs among them

    def range(self, place: Place, size: int) -> Range:
        place = self.same.get(place, place)
        kind, at = place
        return (kind, at, at + size) if kind == "arena" else (place, 0, size)


def _bytes(v: Value) -> int:
    return int(v.type.nbytes)


def _launches(op: Operation, bound: BoundGroup, memory: _Memory, scratch: list[int]) -> list[PlannedLaunch]:
    out = []
    function: Function = op.attrs["function"]
    sizes = bound.concrete()
    room = bound.compiled.scratch_bytes(sizes)
    for launch in bound.compiled.launches:
        places: list[Place] = []
        reads: list[Range] = []
        writes: list[Range] = []
        for kind, k in launch.buffers:
            if kind == "s":
                places.append(("arena", scratch[k]))
                writes.append(memory.range(places[-1], room[k]))
                continue
            v = op.operands[k] if kind == "p" else op.results[k]
            places.append(memory.place[v])
            (reads if kind == "p" else writes).append(memory.range(places[-1], _bytes(v)))
        out.append(
            PlannedLaunch(
                launch,
                tuple(places),
                tuple(sizes.get(e, 0) for e in launch.extents),
                evaluate_size(launch.parallel, sizes),
                evaluate_size(launch.work, sizes),
                function.name,
                op.loc,
                bound.sites,
                tuple(reads),
                tuple(writes),
                not memory.written.isdisjoint(places),
            )
        )
    return out
