"""Device groups: from group functions to kernels in built units, through memory and disk.

A group is made canonical first, as on the CPU. All groups of a program that no cache holds are written
as one translation unit and built by one call of a compiler, which costs far more to start than a kernel costs to
compile; later each is found on its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from graphc.codegen import cache
from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.cuda.lower import choose, lower
from graphc.codegen.cuda.target import Target
from graphc.codegen.donation import InPlace
from graphc.codegen.kernels import BufferRef, Site, evaluate_size, kernel_text, rename, site_of, size_text
from graphc.codegen.loops import Kernel
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import dtype


class Builder(Protocol):
    """Turns CUDA C into something that a driver loads. kind: "cubin" or "simulation"; part of all keys."""

    kind: str

    def build(self, text: str, kernels: Sequence[Kernel], target: Target) -> bytes: ...


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
    """The kernels of one canonical text under one choice. scratch: (dtype, number of elements as text)."""

    unit: Unit
    launches: tuple[GroupLaunch, ...]
    scratch: tuple[tuple[str, str], ...]
    sites: tuple[tuple[str, int], ...]

    def scratch_bytes(self, sizes: Mapping[str, int]) -> list[int]:
        return [dtype(d).itemsize * evaluate_size(text, sizes) for d, text in self.scratch]


@dataclass(frozen=True)
class BoundGroup:
    """A device group applied to one group function."""

    group: DeviceGroup
    sizes: dict[str, int]
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class _Request:
    """A group to bind, and the key of its kernels."""

    canonical: Canonical
    sizes: dict[str, int]
    choice: Any
    in_place: InPlace
    key: str


_canonical: dict[Any, Canonical] = {}
_choices: dict[Any, Any] = {}
_groups: dict[str, DeviceGroup] = {}
_units: dict[str, Unit] = {}


def bind_groups(
    groups: Sequence[tuple[Function, InPlace]], target: Target, builder: Builder
) -> list[BoundGroup]:
    """The kernels of several groups with concrete dimensions; those that no cache holds are built together."""
    requests = [_request(group, in_place, target, builder) for group, in_place in groups]
    missing: dict[str, _Request] = {}
    for r in requests:
        if r.key not in _groups and not _from_disk(r.key):
            missing.setdefault(r.key, r)
    if missing:
        _build(list(missing.values()), target, builder)
    bound = []
    for (group, _), r in zip(groups, requests, strict=True):
        found = _groups[r.key]
        bound.append(BoundGroup(found, r.sizes, tuple(site_of(group, *site) for site in found.sites)))
    return bound


def _request(group: Function, in_place: InPlace, target: Target, builder: Builder) -> _Request:
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
    return _Request(canonical, sizes, choice, in_place, key)


def describe(lowered: Lowered, kernels: Sequence[Kernel], canonical: Function) -> dict[str, Any]:
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
        )
    sites = []
    for op in lowered.sites:
        sites.append([op.name, [o for o in canonical.ops if o.name == op.name].index(op)])
    return {"launches": launches, "scratch": [[s.dtype.name, str(s.size)] for s in lowered.scratch], "sites": sites}


def _build(requests: Sequence[_Request], target: Target, builder: Builder) -> None:
    """Lower, write and build all of these as one unit."""
    from graphc.codegen.c.cuda import emit_kernels

    kernels: list[Kernel] = []
    heads: list[dict[str, Any]] = []
    for r in requests:
        lowered = lower(r.canonical.function, r.choice, target, r.in_place)
        named = rename(lowered.kernels, r.key)
        heads.append(describe(lowered, named, r.canonical.function))
        kernels += named
    text = emit_kernels(kernels, target) if kernels else ""
    digest = hashlib.sha256(f"{target.key()} {builder.kind}\n{text}".encode()).hexdigest()
    unit = _unit(digest)
    if unit is None:
        unit = Unit(digest, text, builder.build(text, kernels, target) if kernels else b"")
        _units[digest] = unit
        data = text.encode()
        cache.put(f"unit-{digest}", struct.pack("<Q", len(data)) + data + unit.binary)
    for r, head in zip(requests, heads, strict=True):
        _groups[r.key] = _group(unit, head)
        cache.put(r.key, json.dumps({"unit": unit.name, **head}).encode())


def _unit(name: str) -> Unit | None:
    unit = _units.get(name)
    if unit is None:
        data = cache.get(f"unit-{name}")
        if data is None:
            return None
        (length,) = struct.unpack_from("<Q", data)
        unit = _units[name] = Unit(name, data[8 : 8 + length].decode(), data[8 + length :])
    return unit


def _from_disk(key: str) -> bool:
    """Load a group if it and its unit are in the cache."""
    data = cache.get(key)
    if data is None:
        return False
    head = json.loads(data)
    unit = _unit(head["unit"])
    if unit is None:
        return False
    _groups[key] = _group(unit, head)
    return True


def _group(unit: Unit, head: dict[str, Any]) -> DeviceGroup:
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
    return DeviceGroup(
        unit, launches, tuple((d, n) for d, n in head["scratch"]), tuple((n, i) for n, i in head["sites"])
    )


def forget() -> None:
    """Forget all kernels of this process; the cache on disk stays."""
    for remembered in (_canonical, _choices, _groups, _units):
        remembered.clear()
