"""Compiled groups: from a group function to loaded machine code, through memory and disk.

A group is made canonical first, so that one compiled kernel serves every group of the same text,
whatever its shapes, its names and the Python lines it came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.donation import InPlace
from graphc.codegen.expr import Expr, show
from graphc.ir.function import Function, Loc
from graphc.ir.types import Dim, DimExpr, dtype

# A buffer of a launch: ("p", i) parameter, ("r", i) result, ("s", i) scratch of the group.
BufferRef = tuple[str, int]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Launch:
    """One kernel of a compiled group. `parallel` and `work` are text over the extents."""

    symbol: str
    buffers: tuple[BufferRef, ...]
    extents: tuple[str, ...]
    parallel: str
    work: str
    address: int = 0


@dataclass(frozen=True)
class CompiledGroup:
    """Kernels of one canonical text, loaded. scratch: (dtype, number of elements as text).

    sites: for each `Report` site the operation: its name, and which of that name in the group.
    streams: results must be aligned to 64 bytes.
    """

    key: str
    launches: tuple[Launch, ...]
    scratch: tuple[tuple[str, str], ...]
    sites: tuple[tuple[str, int], ...]
    streams: bool = False

    def scratch_bytes(self, sizes: Sizes) -> list[int]:
        return [dtype(d).itemsize * evaluate_size(text, sizes) for d, text in self.scratch]


@dataclass(frozen=True)
class Site:
    """An operation that checks indices: its name and line, and the dimension that it indexes."""

    name: str
    loc: Loc | None
    axis: int | None
    size: Dim

    def message(self, value: int | None = None) -> str:
        """What to say of an index out of range, whose value may not be known."""
        where = f" at {self.loc.file}:{self.loc.line}" if self.loc else ""
        what = "a dimension" if self.axis is None else f"axis {self.axis}"
        low = -self.size if isinstance(self.size, int) else f"-({self.size})" if " " in str(self.size) else f"-{self.size}"
        return (
            f"{self.name}{where}: {'an index' if value is None else f'index {value}'} is out of range for {what} of size {self.size}; "
            f"it must be in [{low}, {self.size})"
        )


@dataclass(frozen=True)
class BoundGroup:
    """A compiled group applied to one group function: its extents' dimensions are known."""

    compiled: CompiledGroup
    extents: dict[str, Dim]
    sites: tuple[Site, ...] = ()

    def concrete(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.extents.items()}


_SIZE_NAMES: dict[str, Any] = {
    "true": True,
    "false": False,
    "select": lambda c, a, b: a if c else b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
_size_code: dict[str, list[tuple[str, Any]]] = {}


def evaluate_size(text: str, sizes: Sizes) -> int:
    """The value of a launch size: the text of an expression over extents, integers and the names above."""
    steps = _size_code.get(text)
    if steps is None:
        value, _, shared = text.partition(" where ")
        named = [part.split(" = ", 1) for part in shared.split("; ")] if shared else []
        steps = [(name, compile(part, "<size>", "eval")) for name, part in [*named, ("", value)]]
        _size_code[text] = steps
    names: dict[str, Any] = {"__builtins__": {}, **_SIZE_NAMES, **sizes}
    for name, code in steps:
        names[name] = eval(code, names)
    return int(names[""])


_memory: dict[Any, CompiledGroup] = {}
_canonical: dict[Any, Canonical] = {}
_choices: dict[Any, str] = {}


def bind_group(group: Function, stream: bool = True, in_place: InPlace = ()) -> BoundGroup:
    """The compiled kernels of a group, compiling what no cache holds.

    stream: kernels may ask for results that are aligned to 64 bytes (`CompiledGroup.streams`).
    in_place: parameters and results (of a map) that are one buffer.
    """
    key = group.key()
    canonical = _canonical.get(key)
    if canonical is None:
        canonical = _canonical[key] = canonicalise(group)
    hint = {name: d for name, d in canonical.extents if not isinstance(d, DimExpr)}
    compiled = compiled_group(canonical.function, hint, stream, in_place)
    sites = tuple(site_of(group, *site) for site in compiled.sites)
    return BoundGroup(compiled, dict(canonical.extents), sites)


def site_of(group: Function, name: str, nth: int) -> Site:
    """The site of the operation that is the `nth` of this name in a group."""
    op = [op for op in group.ops if op.name == name][nth]
    axis = op.attrs.get("axis")
    return Site(name, op.loc, axis, op.attrs["size"] if axis is None else op.operands[0].type.shape[axis])


def compiled_group(
    canonical: Function, hint: dict[str, int], stream: bool = True, in_place: InPlace = ()
) -> CompiledGroup:
    """The loaded kernels of a canonical group."""
    from graphc.codegen.llvm.target import host_target

    target = host_target()
    asked = (canonical.key(), tuple(sorted(hint.items())), stream, target)
    choice = _choices.get(asked)
    if choice is None:
        choice = _choices[asked] = _choice(canonical, hint, stream)
    if in_place:
        choice += f" in place {in_place}"
    key = (canonical.key(), choice, target)
    found = _memory.get(key)
    if found is None:
        found = _memory[key] = _from_disk_or_compile(canonical, choice, hint, in_place)
    return found


def _choice(canonical: Function, hint: dict[str, int], stream: bool) -> str:
    """The variant of a group's kernels. The schedule of a contraction takes long to choose and is remembered on disk."""
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import family, variant

    target = host_target()
    if family(canonical) != "contract":
        return variant(canonical, target, hint, stream)
    key = cache.key(kernel_text(canonical, f"schedule for {sorted(hint.items())}"), target.key())
    known = cache.get(key)
    if known is not None:
        return known.decode()
    choice = variant(canonical, target, hint, stream)
    cache.put(key, choice.encode())
    return choice


def kernel_text(canonical: Function, choice: str) -> str:
    """The text under which a kernel is cached on disk."""
    from graphc.ir.text import print_function

    return f"{choice}\n{print_function(canonical, locs=False)}"


def _from_disk_or_compile(
    canonical: Function, choice: str, hint: dict[str, int], in_place: InPlace
) -> CompiledGroup:
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target

    key = cache.key(kernel_text(canonical, choice), host_target().key())
    data = cache.get(key)
    if data is None:
        data = compile_group(canonical, hint, key, choice, in_place)
        cache.put(key, data)
    return _load(key, data)


def compile_group(
    canonical: Function, hint: dict[str, int], key: str, choice: str, in_place: InPlace = ()
) -> bytes:
    """Object code with its description, as one cache entry: a line of JSON, then one object."""
    from graphc.codegen.llvm.emit import emit_kernels
    from graphc.codegen.llvm.jit import compile_text
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import lower

    target = host_target()
    lowered = lower(canonical, target, hint, choice, in_place)
    references: dict[Any, BufferRef] = {}
    for stem, buffers in (("p", lowered.params), ("r", lowered.results)):
        references.update({b: (stem, i) for i, b in enumerate(buffers)})
    references.update({s.buffer: ("s", i) for i, s in enumerate(lowered.scratch)})
    kernels = rename(lowered.kernels, key)
    launches = [
        {
            "symbol": k.name,
            "buffers": [list(references[b]) for b in k.buffers],
            "extents": list(k.extents),
            "parallel": size_text(k.parallel),
            "work": size_text(k.work),
        }
        for k in kernels
    ]
    ordinal = []
    for op in lowered.sites:
        same = [o for o in canonical.ops if o.name == op.name]
        ordinal.append([op.name, same.index(op)])
    head: dict[str, Any] = {
        "launches": launches,
        "streams": choice.startswith("map stream"),
        "scratch": [[s.dtype.name, str(s.size)] for s in lowered.scratch],
        "sites": ordinal,
    }
    code = compile_text(emit_kernels(kernels, target), target) if kernels else b""
    return json.dumps(head).encode() + b"\n" + code


def rename(kernels: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """The kernels under symbols that are unique in the process."""
    from dataclasses import replace

    return tuple(replace(k, name=f"{k.name}_{key[:16]}_{i}") for i, k in enumerate(kernels))


def size_text(e: Expr) -> str:
    return show(e)


def _load(key: str, data: bytes) -> CompiledGroup:
    from graphc.codegen.llvm.jit import load_all

    head_text, code = data.split(b"\n", 1)
    head = json.loads(head_text)
    symbols = tuple(launch["symbol"] for launch in head["launches"])
    addresses = load_all(code, symbols) if code else {}
    launches = tuple(
        Launch(
            launch["symbol"],
            tuple((str(a), int(b)) for a, b in launch["buffers"]),
            tuple(launch["extents"]),
            launch["parallel"],
            launch["work"],
            addresses[launch["symbol"]],
        )
        for launch in head["launches"]
    )
    return CompiledGroup(
        key,
        launches,
        tuple((d, n) for d, n in head["scratch"]),
        tuple((n, i) for n, i in head["sites"]),
        head["streams"],
    )
