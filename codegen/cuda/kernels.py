"""Device groups: from group functions to kernels in built units, through memory and disk.

A group is made canonical first, as on the CPU. What a launch needs to know of a group (`DeviceGroup`) is found
first, for all groups of a program; then those kernels that the program launches and no cache holds are written as a few
translation units, one for each processor, and built side by side: a compiler costs more to start than a small kernel to compile.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from graphc.codegen import cache
from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import choose, lower
from graphc.codegen.cuda.target import Target
from graphc.codegen.cuda.together import can_join, join, most_members
from graphc.codegen.donation import InPlace
from graphc.codegen.kernels import BufferRef, Site, evaluate_size, kernel_text, rename, site_of, size_text
from graphc.codegen.loops import Kernel
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import dtype


class Builder(Protocol):
    """Turns CUDA C into something that a driver loads. kind: "cubin" or "simulation ..."; part of all keys."""

    kind: str

    def build(self, text: str, kernels: Sequence[Kernel], target: Target) -> bytes: ...


class TooLarge(RuntimeError):
    """A kernel needs more shared memory than a block of the device may have."""


@dataclass(frozen=True)
class Unit:
    """One translation unit, built. name: the hash of all that decides it."""

    name: str
    text: str
    binary: bytes


@dataclass(frozen=True)
class GroupMap:
    """A `loops.TensorMap` of a kernel: sizes and strides are text over the extents."""

    buffer: BufferRef
    dtype: str
    sizes: tuple[str, ...]
    strides: tuple[str, ...]
    box: tuple[int, ...]
    rounded: bool


@dataclass(frozen=True)
class GroupLaunch:
    """One kernel of a group. `blocks` is text over the extents; `shared` counts dynamic bytes. `maps` are its
    first parameters."""

    symbol: str
    buffers: tuple[BufferRef, ...]
    extents: tuple[str, ...]
    blocks: str
    threads: int
    shared: int
    narrow: bool
    maps: tuple[GroupMap, ...] = ()


@dataclass(frozen=True)
class DeviceGroup:
    """The kernels of one canonical text under one choice, not built yet.

    scratch: (dtype, number of elements as text). members: how many groups like it may share one launch; 0 if none.
    """

    key: str
    function: Function
    choice: Choice
    in_place: InPlace
    launches: tuple[GroupLaunch, ...]
    scratch: tuple[tuple[str, str], ...]
    sites: tuple[tuple[str, int], ...]
    members: int

    def scratch_bytes(self, sizes: Mapping[str, int]) -> list[int]:
        return [dtype(d).itemsize * evaluate_size(text, sizes) for d, text in self.scratch]

    def kernels(self, target: Target) -> tuple[Kernel, ...]:
        """The kernels themselves, under symbols that are unique in the process."""
        return rename(lower(self.function, self.choice, target, self.in_place).kernels, self.key)


@dataclass(frozen=True)
class BoundGroup:
    """A device group applied to one group function."""

    group: DeviceGroup
    sizes: dict[str, int]
    sites: tuple[Site, ...]


_canonical: dict[Any, Canonical] = {}
_choices: dict[Any, Choice] = {}
_groups: dict[str, DeviceGroup] = {}
# (key of a group, members or 0) -> the unit of its kernels
_built: dict[tuple[str, int], Unit] = {}
_units: dict[str, Unit] = {}


def bind_group(group: Function, in_place: InPlace, target: Target, builder: Builder) -> BoundGroup:
    """What launches of a group with concrete dimensions need to know."""
    text = group.key()
    canonical = _canonical.get(text)
    if canonical is None:
        canonical = _canonical[text] = canonicalise(group)
    sizes = {name: int(d) for name, d in canonical.extents}
    asked = (canonical.function.key(), tuple(sizes.items()), target)
    choice = _choices.get(asked)
    if choice is None:
        choice = _choices[asked] = choose(canonical.function, sizes, target)
    named = f"{choice} in place {in_place}" if in_place else str(choice)
    key = cache.key(kernel_text(canonical.function, named), f"{target.key()} {builder.kind}")
    found = _groups.get(key)
    if found is None:
        found = _groups[key] = _described(key, canonical.function, choice, in_place, target)
    return BoundGroup(found, sizes, tuple(site_of(group, *site) for site in found.sites))


def _described(key: str, function: Function, choice: Choice, in_place: InPlace, target: Target) -> DeviceGroup:
    data = cache.get(key)
    if data is None:
        lowered = lower(function, choice, target, in_place)
        for kernel in lowered.kernels:
            _check_shared(function, kernel, target)
        data = json.dumps(_description(lowered, rename(lowered.kernels, key), function)).encode()
        cache.put(key, data)
    head = json.loads(data)
    launches = tuple(
        GroupLaunch(
            launch["symbol"],
            tuple((str(a), int(b)) for a, b in launch["buffers"]),
            tuple(launch["extents"]),
            launch["blocks"],
            launch["threads"],
            launch["shared"],
            launch["narrow"],
            tuple(
                GroupMap((str(b[0]), int(b[1])), d, tuple(sizes), tuple(strides), tuple(box), rounded)
                for b, d, sizes, strides, box, rounded in launch["maps"]
            ),
        )
        for launch in head["launches"]
    )
    scratch, sites = tuple((d, n) for d, n in head["scratch"]), tuple((n, i) for n, i in head["sites"])
    return DeviceGroup(key, function, choice, in_place, launches, scratch, sites, head["members"])


def _check_shared(function: Function, kernel: Kernel, target: Target) -> None:
    from graphc.codegen.c.cuda import shared_bytes

    needed = sum(shared_bytes(kernel))
    if needed > target.shared:
        names = ", ".join(dict.fromkeys(op.name for op in function.ops))
        types = ", ".join(str(p.type.dtype) for p in function.params)
        raise TooLarge(
            f"a kernel of {names} of {types} needs {needed} bytes of shared memory a block, and a device of compute capability "
            f"{target.capability // 10}.{target.capability % 10} has {target.shared}; use a narrower element type, or smaller heads"
        )


def _description(lowered: Lowered, kernels: Sequence[Kernel], canonical: Function) -> dict[str, Any]:
    """What a launch needs to know of a lowered group, as JSON."""
    from graphc.codegen.c.cuda import shared_bytes

    references: dict[Any, BufferRef] = {}
    for stem, buffers in (("p", lowered.params), ("r", lowered.results)):
        references.update({b: (stem, i) for i, b in enumerate(buffers)})
    references.update({s.buffer: ("s", i) for i, s in enumerate(lowered.scratch)})
    launches = []
    for k in kernels:
        assert k.grid is not None
        launches.append(
            {
                "symbol": k.name,
                "buffers": [list(references[b]) for b in k.buffers],
                "extents": list(k.extents),
                "blocks": size_text(k.grid.blocks),
                "threads": k.grid.threads,
                "shared": shared_bytes(k)[1],
                "narrow": k.grid.narrow,
                "maps": [
                    [list(references[m.buffer]), m.buffer.dtype.name, [*map(size_text, m.sizes)],
                     [*map(size_text, m.strides)], list(m.box), m.rounded]
                    for m in k.grid.maps
                ],
            }
        )  # fmt: skip
    sites = []
    for op in lowered.sites:
        sites.append([op.name, [o for o in canonical.ops if o.name == op.name].index(op)])
    scratch = [[s.dtype.name, str(s.size)] for s in lowered.scratch]
    members = most_members(kernels[0]) if can_join(lowered) else 0
    return {"launches": launches, "scratch": scratch, "sites": sites, "members": members}


def build_kernels(
    wanted: Sequence[tuple[DeviceGroup, int]], target: Target, builder: Builder
) -> dict[tuple[str, int], Unit]:
    """The units of kernels: (group, 0), or (group, members) for the form that runs so many members at once.

    What no cache holds is built as one unit. Keys of the result are (key of the group, members).
    """
    needed = {(group.key, members): group for group, members in wanted}
    missing = [k for k in needed if k not in _built and not _from_disk(k)]
    if missing:
        _build([(needed[k], k[1]) for k in missing], target, builder)
    return {k: _built[k] for k in needed}


def joined_symbol(symbol: str, members: int) -> str:
    """The symbol of a kernel in the form for so many members; see `together.join`."""
    return f"{symbol}_x{members}"


def _build(wanted: Sequence[tuple[DeviceGroup, int]], target: Target, builder: Builder) -> None:
    """Build kernels in as many units as there are processors to compile them, a few kernels each."""
    parts = max(1, min(os.cpu_count() or 1, len(wanted)))
    shares = [wanted[i::parts] for i in range(parts)]
    # Expressions are interned, which is for one thread.
    written = [_written(share, target) for share in shares]
    if parts == 1:
        units = [_unit_of(written[0][0], written[0][1], target, builder)]
    else:
        with ThreadPoolExecutor(parts) as pool:
            units = list(pool.map(lambda share: _unit_of(share[0], share[1], target, builder), written))
    for share, unit in zip(shares, units, strict=True):
        for group, members in share:
            _built[group.key, members] = unit
            cache.put(_place(group.key, members), unit.name.encode())


def _written(wanted: Sequence[tuple[DeviceGroup, int]], target: Target) -> tuple[str, list[Kernel]]:
    from graphc.codegen.c.cuda import emit_kernels

    kernels: list[Kernel] = []
    for group, members in wanted:
        own = group.kernels(target)
        kernels += [join(own[0], members)] if members else own
    return (emit_kernels(kernels, target) if kernels else ""), kernels


def _unit_of(text: str, kernels: Sequence[Kernel], target: Target, builder: Builder) -> Unit:
    digest = hashlib.sha256(f"{target.key()} {builder.kind}\n{text}".encode()).hexdigest()
    unit = _unit(digest)
    if unit is None:
        unit = _units[digest] = Unit(digest, text, builder.build(text, kernels, target) if kernels else b"")
        data = text.encode()
        cache.put(f"unit-{digest}", struct.pack("<Q", len(data)) + data + unit.binary)
    return unit


def _place(key: str, members: int) -> str:
    """The cache entry that names the unit of a kernel."""
    return hashlib.sha256(f"{key} x{members}".encode()).hexdigest()


def _unit(name: str) -> Unit | None:
    unit = _units.get(name)
    if unit is None:
        data = cache.get(f"unit-{name}")
        if data is None:
            return None
        (length,) = struct.unpack_from("<Q", data)
        unit = _units[name] = Unit(name, data[8 : 8 + length].decode(), data[8 + length :])
    return unit


def _from_disk(kernel: tuple[str, int]) -> bool:
    """Find the unit of a kernel in the cache."""
    name = cache.get(_place(*kernel))
    unit = _unit(name.decode()) if name is not None else None
    if unit is None:
        return False
    _built[kernel] = unit
    return True


def forget() -> None:
    """Forget all kernels of this process; the cache on disk stays."""
    remembered: tuple[dict[Any, Any], ...] = (_canonical, _choices, _groups, _built, _units)
    for known in remembered:
        known.clear()
