"""Device programs: a function as launches with places for their arguments. Nothing here knows a driver.

Launches run in order on one stream. Inputs on the host (numbers of rank 0) travel in one copy to the start of
the arena, before the first launch. Independent launches of one kernel (the updates of many parameters) become one launch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

from graphc.codegen.cuda.kernels import (
    BoundGroup,
    Builder,
    GroupLaunch,
    Unit,
    bind_group,
    build_kernels,
    joined_symbol,
)
from graphc.codegen.cuda.target import Target
from graphc.codegen.cuda.together import Launched, block_ends, runs
from graphc.codegen.cuda.together import Place as Range
from graphc.codegen.donation import accepted, in_place
from graphc.codegen.grouping import grouped
from graphc.codegen.groups import separate
from graphc.codegen.kernels import BufferRef, Site, evaluate_size
from graphc.codegen.plan import Layout, Place, lay_out
from graphc.codegen.prepare import prepare
from graphc.ir.function import Function, Loc, Module, Operation, Value
from graphc.ir.types import TensorType

# Where an argument is: ("in", i), ("out", i), ("const", i), ("arena", byte offset); or ("word", value, bytes),
# or ("map", i): a view that is made of the launch's `maps[i]`.
Argument = Union[tuple[str, int], tuple[str, int, int]]
_HOST_ALIGN = 16


@dataclass(frozen=True)
class DeviceMap:
    """A tensor map to be encoded for the address at `place` (see `loops.TensorMap`)."""

    place: Argument
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    box: tuple[int, ...]
    rounded: bool


@dataclass(frozen=True)
class DeviceLaunch:
    """One launch. arguments: in the order of the kernel's parameters, but for the last two, which every kernel
    has: the address of the error words and the number of the launch (an int).

    members: how many groups share the launch, or 0. If not 0 all arguments are 8-byte words of one parameter, and the last
    two follow them in it as words.
    """

    unit: Unit
    symbol: str
    blocks: int
    threads: int
    shared: int  # dynamic bytes
    arguments: tuple[Argument, ...]
    sites: tuple[Site, ...]
    group: str
    loc: Loc | None
    maps: tuple[DeviceMap, ...] = ()
    members: int = 0


@dataclass(frozen=True)
class DeviceProgram:
    """A compiled function.

    function: optimised, before fusion. module: fused. launches: in order. arena: bytes of memory for values between.
    host: (input, offset in the arena, bytes) of each input that is on the host; together they are the
    first `host_bytes` of the arena. constants: arrays that launches read. donated: pairs (input, output) that
    share memory.
    """

    function: Function
    module: Module
    target: Target
    launches: tuple[DeviceLaunch, ...]
    arena: int
    host: tuple[tuple[int, int, int], ...]
    host_bytes: int
    constants: tuple[Any, ...]
    donated: frozenset[tuple[int, int]]

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return self.function.param_types

    @property
    def output_types(self) -> tuple[TensorType, ...]:
        return self.function.result_types

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units that the launches need, each once."""
        return tuple({p.unit.name: p.unit for p in self.launches}.values())

    def __str__(self) -> str:
        lines = [f"program @{self.function.name}: {len(self.launches)} launches, arena {self.arena} bytes"]
        for i, p in enumerate(self.launches):
            places = ", ".join("+".join(map(str, a[:2])) if a[0] == "arena" else f"{a[0]}{a[1]}" for a in p.arguments)
            line = f"  {i}: {p.group} {p.symbol}<{p.blocks}, {p.threads}, {p.shared}>({places})"
            lines.append(line + (f" loc({p.loc})" if p.loc else ""))
        return "\n".join(lines)


def compile_function(
    f: Function,
    target: Target,
    builder: Builder,
    donate: Sequence[tuple[int, int]] = (),
    host: Collection[int] = (),
    optimise: bool = True,
    fused: bool = True,
) -> DeviceProgram:
    """Compile a function with concrete dimensions for a device.

    builder: makes binaries of CUDA C. donate: pairs (input, output) that may share memory. host: inputs of rank 0
    whose values are on the host. optimise, fused: as for the CPU; the results are the same to the bit either way.
    """
    from graphc.ir.passes import DEFAULT, run_pipeline

    optimised = run_pipeline(f, DEFAULT if optimise else ("inline",))
    prepared, constants = prepare(optimised)
    module = grouped(prepared, device=True) if fused else separate(prepared)
    donated = accepted(module, [pair for pair in donate if pair[0] not in host]) if donate else frozenset()
    entry = module.entry
    shared = in_place(module, donated)
    bound = {
        i: bind_group(op.attrs["function"], shared[i], target, builder)
        for i, op in enumerate(entry.ops)
        if any(r.type.nbytes for r in op.results)
    }
    order = _order(entry, bound, donated)
    host_places, host_bytes = _host_places(f, host)
    layout = lay_out(entry, lambda i, _: bound[i].group.scratch_bytes(bound[i].sizes), host_bytes, order)
    offsets = {number: offset for number, offset, _ in host_places}
    planned = [
        [p for i in run for p in _planned(entry.ops[i], bound[i], layout, layout.scratch[i], offsets, len(f.params))]
        for run in order
    ]
    launches = _built(planned, target, builder)
    return DeviceProgram(
        optimised, module, target, launches, layout.size, host_places, host_bytes, tuple(constants), donated
    )


def _host_places(f: Function, host: Collection[int]) -> tuple[tuple[tuple[int, int, int], ...], int]:
    places = []
    offset = 0
    for i in sorted(host):
        places.append((i, offset, int(f.params[i].type.nbytes)))
        offset += _HOST_ALIGN
    return tuple(places), offset


def _order(entry: Function, bound: dict[int, BoundGroup], donated: frozenset[tuple[int, int]]) -> list[list[int]]:
    """The calls that compute something as they run, those of a run as one launch."""
    # A result in the place of an input is that input's memory.
    memory: dict[Any, Any] = {entry.results[j]: entry.params[i] for i, j in donated}

    def ranges(values: Iterable[Value]) -> tuple[Range, ...]:
        return tuple((memory.get(v, v), 0, 1) for v in dict.fromkeys(values))

    calls = list(bound)
    seen = []
    for i in calls:
        group, op = bound[i].group, entry.ops[i]
        joins = len(group.launches) == 1 and group.members
        seen.append(Launched(group.key if joins else None, group.members, ranges(op.operands), ranges(op.results)))
    return [[calls[k] for k in run] for run in runs(seen)]


@dataclass(frozen=True)
class _Planned:
    """A launch before its kernel is built."""

    bound: BoundGroup
    launch: GroupLaunch
    blocks: int
    buffers: tuple[Argument, ...]
    maps: tuple[DeviceMap, ...]
    name: str
    loc: Loc | None

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(self.bound.sizes[name] for name in self.launch.extents)


def _planned(
    op: Operation, bound: BoundGroup, layout: Layout, scratch: list[int], host: dict[int, int], inputs: int
) -> list[_Planned]:
    def place(at: Place) -> Argument:
        kind, i = at
        if kind == "in" and i in host:
            return "arena", host[i]
        return ("const", i - inputs) if kind == "in" and i >= inputs else at

    def of(buffer: BufferRef) -> Argument:
        stem, k = buffer
        if stem == "s":
            return "arena", scratch[k]
        return place(layout.place[(op.operands if stem == "p" else op.results)[k]])

    function: Function = op.attrs["function"]
    out = []
    for launch in bound.group.launches:
        blocks = evaluate_size(launch.blocks, bound.sizes)
        if not blocks:
            continue
        maps = tuple(
            DeviceMap(
                of(m.buffer),
                m.dtype,
                tuple(evaluate_size(text, bound.sizes) for text in m.sizes),
                tuple(evaluate_size(text, bound.sizes) for text in m.strides),
                m.box,
                m.rounded,
            )
            for m in launch.maps
        )
        out.append(_Planned(bound, launch, blocks, tuple(map(of, launch.buffers)), maps, function.name, op.loc))
    return out


def _built(planned: Sequence[Sequence[_Planned]], target: Target, builder: Builder) -> tuple[DeviceLaunch, ...]:
    """The launches of each run, with their kernels built: of one group, or one for several."""
    rooms = [_room(run) for run in planned]
    wanted = [(run[0].bound.group, room) for run, room in zip(planned, rooms, strict=True) if run]
    units = build_kernels(wanted, target, builder)
    launches: list[DeviceLaunch] = []
    for run, room in zip(planned, rooms, strict=True):
        if room:
            launches.append(_joined(units[run[0].bound.group.key, room], run, room))
        else:
            launches += [_single(units[p.bound.group.key, 0], p) for p in run]
    return tuple(launches)


def _room(run: Sequence[_Planned]) -> int:
    """The form of a kernel for these members: powers of two, so that few forms are built; 0 where each is launched alone."""
    if len(run) < 2 or not run[0].bound.group.members or run[0].bound is run[1].bound:
        return 0
    return min(run[0].bound.group.members, 1 << (len(run) - 1).bit_length())


def _single(unit: Unit, p: _Planned) -> DeviceLaunch:
    width = 4 if p.launch.narrow else 8
    maps: list[Argument] = [("map", i) for i in range(len(p.maps))]
    extents: list[Argument] = [("word", n, width) for n in p.extents]
    return DeviceLaunch(
        unit, p.launch.symbol, p.blocks, p.launch.threads, p.launch.shared, (*maps, *p.buffers, *extents), p.bound.sites,
        p.name, p.loc, p.maps,
    )  # fmt: skip


def _joined(unit: Unit, parts: Sequence[_Planned], members: int) -> DeviceLaunch:
    """One launch for several groups; members beyond them have no blocks."""
    first = parts[0]
    ends = block_ends([p.blocks for p in parts])
    arguments: list[Argument] = []
    for k in range(members):
        p = parts[min(k, len(parts) - 1)]
        words = (*p.extents, ends[min(k, len(ends) - 1)])
        arguments += [*p.buffers, *(("word", n, 8) for n in words)]
    return DeviceLaunch(
        unit, joined_symbol(first.launch.symbol, members), ends[-1], first.launch.threads, first.launch.shared,
        tuple(arguments), (), f"{first.name} and {len(parts) - 1} more", first.loc, (), members,
    )  # fmt: skip
