"""Device programs: a function as launches with places for their arguments. Nothing here knows a driver.

Launches run in order on one stream. Inputs on the host (numbers of rank 0) travel in one copy to the start of
the arena, before the first launch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Union

from graphc.codegen.cuda.kernels import BoundGroup, Builder, Unit, bind_groups
from graphc.codegen.cuda.target import Target
from graphc.codegen.donation import accepted, in_place
from graphc.codegen.fuse import fuse
from graphc.codegen.groups import separate
from graphc.codegen.kernels import BufferRef, Site, evaluate_size
from graphc.codegen.plan import Layout, lay_out
from graphc.codegen.prepare import prepare
from graphc.ir.function import Function, Loc, Module, Operation
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
    has: the address of the error words and the number of the launch (an int)."""

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
    module = fuse(prepared) if fused else separate(prepared)
    donated = accepted(module, [pair for pair in donate if pair[0] not in host]) if donate else frozenset()
    entry = module.entry
    calls = [i for i, op in enumerate(entry.ops) if any(r.type.nbytes for r in op.results)]
    groups = [(entry.ops[i].attrs["function"], in_place(module, donated, i)) for i in calls]
    bound = dict(zip(calls, bind_groups(groups, target, builder), strict=True))
    places, host_bytes = _host_places(f, host)
    layout = lay_out(entry, lambda i, op: bound[i].group.scratch_bytes(bound[i].sizes), host_bytes)
    offsets = {number: offset for number, offset, _ in places}
    inputs = len(f.params)
    launches: list[DeviceLaunch] = []
    for i in calls:
        launches += _launches(entry.ops[i], bound[i], layout, layout.scratch[i], offsets, inputs)
    return DeviceProgram(
        optimised, module, target, tuple(launches), layout.size, places, host_bytes, tuple(constants), donated
    )


def _host_places(f: Function, host: Collection[int]) -> tuple[tuple[tuple[int, int, int], ...], int]:
    places = []
    offset = 0
    for i in sorted(host):
        places.append((i, offset, int(f.params[i].type.nbytes)))
        offset += _HOST_ALIGN
    return tuple(places), offset


def _launches(
    op: Operation, bound: BoundGroup, layout: Layout, scratch: list[int], host: dict[int, int], inputs: int
) -> list[DeviceLaunch]:
    def place(kind: str, at: int) -> Argument:
        if kind == "in" and at in host:
            return "arena", host[at]
        return ("const", at - inputs) if kind == "in" and at >= inputs else (kind, at)

    def of(buffer: BufferRef) -> Argument:
        stem, k = buffer
        if stem == "s":
            return "arena", scratch[k]
        return place(*layout.place[(op.operands if stem == "p" else op.results)[k]])

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
        arguments: list[Argument] = [("map", i) for i in range(len(maps))]
        arguments += map(of, launch.buffers)
        width = 4 if launch.narrow else 8
        arguments += [("word", bound.sizes[name], width) for name in launch.extents]
        function: Function = op.attrs["function"]
        out.append(
            DeviceLaunch(
                bound.group.unit, launch.symbol, blocks, launch.threads, launch.shared, tuple(arguments), bound.sites,
                function.name, op.loc, maps,
            )
        )
    return out
