"""Plans: which launch works on which memory.

Inputs and outputs are the caller's; everything between lives in one arena, at offsets given by the
lifetimes of the values. The plan of a function is its order of launches with all sizes resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.codegen.dependences import Range
from graphc.codegen.donation import in_place
from graphc.codegen.kernels import BoundGroup, Launch, Site, Wanted, bind_groups, evaluate_size
from graphc.ir.function import Function, Loc, Module, Operation, Value

ALIGN = 64

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

    streams: outputs must be aligned to 64 bytes.
    """

    entry: Function
    launches: tuple[PlannedLaunch, ...]
    arena: int
    streams: bool = False

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

    def give(self, offset: int, size: int) -> None:
        self._insert(offset, max(ALIGN, -(-size // ALIGN) * ALIGN))

    def _insert(self, offset: int, size: int) -> None:
        merged = []
        for o, s in self.free:
            if o + s == offset:
                offset, size = o, s + size
            elif offset + size == o:
                size += s
            else:
                merged.append((o, s))
        self.free = sorted([*merged, (offset, size)])


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
) -> Layout:
    """Places by lifetime, for calls that run in order.

    scratch: the bytes of each scratch buffer of the entry's operation i; asked once, in order, for every
    operation that computes something. reserved: bytes at the start of the arena that are not given out.
    order: the operations as they run, those of a run at the same time; one after the other if not given.
    """
    place: dict[Value, Place] = {p: ("in", i) for i, p in enumerate(entry.params)}
    place.update({r: ("out", i) for i, r in enumerate(entry.results)})
    steps = [[i] for i in range(len(entry.ops))] if order is None else order
    last: dict[Value, int] = {}
    for n, step in enumerate(steps):
        for i in step:
            for v in entry.ops[i].operands:
                last[v] = n
    arena = Arena()
    if reserved:
        arena.take(reserved)
    offsets: dict[int, list[int]] = {}
    for n, step in enumerate(steps):
        ops = [entry.ops[i] for i in step]
        for r in (r for op in ops for r in op.results):
            if r not in place:
                place[r] = ("arena", arena.take(_bytes(r)))
        taken: list[tuple[int, int]] = []
        for i, op in zip(step, ops, strict=True):
            if any(map(_bytes, op.results)):  # else there is nothing to compute
                needs = scratch(i, op)
                offsets[i] = [arena.take(size) for size in needs]
                taken += zip(offsets[i], needs, strict=True)
        for offset, size in taken:
            arena.give(offset, size)
        for v in dict.fromkeys(v for op in ops for v in (*op.operands, *op.results)):
            kind, offset = place[v]
            if kind == "arena" and last.get(v, n) == n:
                arena.give(offset, _bytes(v))
    return Layout(place, offsets, arena.size)


def make_plan(
    module: Module, stream: bool = True, donated: frozenset[tuple[int, int]] = frozenset()
) -> Plan:
    """The plan of a fused module with concrete dimensions.

    stream: as in `Wanted`. donated: (input, output) that are the same memory.
    """
    entry = module.entry
    calls = [i for i, op in enumerate(entry.ops) if any(map(_bytes, op.results))]
    wanted = [Wanted(entry.ops[i].attrs["function"], stream, in_place(module, donated, i)) for i in calls]
    bound = dict(zip(calls, bind_groups(wanted), strict=True))

    def scratch(i: int, op: Operation) -> list[int]:
        return bound[i].compiled.scratch_bytes(bound[i].concrete())

    layout = lay_out(entry, scratch)
    memory = _Memory(layout.place, {("in", i): ("out", j) for i, j in donated})
    launches: list[PlannedLaunch] = []
    for i, group in bound.items():
        launches += _launches(entry.ops[i], group, memory, layout.scratch[i])
    streams = any(group.compiled.streams for group in bound.values())
    return Plan(entry, tuple(launches), layout.size, streams)


@dataclass(frozen=True)
class _Memory:
    """Where values are. same: inputs whose memory is an output's."""

    place: dict[Value, Place]
    same: dict[Place, Place]

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
                any(p in memory.same.values() for p in places),
            )
        )
    return out
