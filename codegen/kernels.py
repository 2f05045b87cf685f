"""Compiled groups: from a group function to loaded machine code, through memory and disk.

A group is made canonical first, so that one compiled kernel serves every group of the same text,
whatever its shapes, its names and the Python lines it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.donation import InPlace
from graphc.codegen.expr import Expr, show
from graphc.codegen.report import current, stage
from graphc.ir.function import Function, Loc
from graphc.ir.types import Dim, DimExpr, dtype, substitute

# A buffer of a launch: ("p", i) parameter, ("r", i) result, ("s", i) scratch of the group.
BufferRef = tuple[str, int]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Launch:
    """One kernel of a compiled group, the one of that `number` in the cache entry `kernel`. `parallel` and `work` are text over the extents."""

    symbol: str
    buffers: tuple[BufferRef, ...]
    extents: tuple[str, ...]
    parallel: str
    work: str
    address: int = 0
    kernel: str = ""
    number: int = 0


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

    def at(self, sizes: Sizes) -> Site:
        """The site where symbols have these values."""
        return replace(self, size=substitute(self.size, sizes)) if isinstance(self.size, DimExpr) and sizes else self

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
    """A compiled group applied to one group function: its extents' dimensions are known.

    borrowed: its kernels were chosen for other sizes.
    """

    compiled: CompiledGroup
    extents: dict[str, Dim]
    sites: tuple[Site, ...] = ()
    borrowed: bool = False

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


# Groups of programs of ever other sizes are not remembered for ever; their kernels are.
MOST_REMEMBERED = 8192
_memory: dict[Any, CompiledGroup] = {}
_canonical: dict[Any, Canonical] = {}
_texts: dict[Any, Function] = {}
_choices: dict[Any, str] = {}


@dataclass(frozen=True)
class Wanted:
    """A group function that a program launches.

    stream: kernels may ask for results that are aligned to 64 bytes (`CompiledGroup.streams`).
    in_place: parameters and results (of a map) that are one buffer.
    """

    group: Function
    stream: bool = True
    in_place: InPlace = ()


def bind_group(group: Function, stream: bool = True, in_place: InPlace = ()) -> BoundGroup:
    """The compiled kernels of a group, compiling what no cache holds; see `Wanted`."""
    return bind_groups([Wanted(group, stream, in_place)])[0]


def bind_groups(
    wanted: Sequence[Wanted], hurry: bool = False, sizes: Mapping[str, int] | None = None
) -> list[BoundGroup]:
    """As `bind_group` for all the groups of a program; what no cache holds is compiled at once, by several processes.

    hurry: rather than that, borrow the kernels that were chosen for sizes nearby. sizes: the values of the symbols in groups
    of which other sizes will come: extents that depend on them are borrowed for at any distance, and never made literal.
    """
    values = sizes or {}
    with stage("canonical"):
        canonical = [_canonical_of(w.group) for w in wanted]
        extents = [{name: substitute(d, values) for name, d in c.extents} for c in canonical]
    asked = [
        Asked(
            c.function,
            {name: d for name, d in given.items() if not isinstance(d, DimExpr)},
            w.stream,
            w.in_place,
            frozenset(name for name, d in c.extents if isinstance(d, DimExpr)) if values else frozenset(),
        )
        for c, given, w in zip(canonical, extents, wanted, strict=True)
    ]
    return [
        BoundGroup(k, given, tuple(site_of(w.group, *site).at(values) for site in k.sites), borrowed)
        for (k, borrowed), given, w in zip(compiled_groups(asked, hurry), extents, wanted, strict=True)
    ]


def _canonical_of(group: Function) -> Canonical:
    # Without the names: layers of one kind differ in nothing else.
    key = group.structure()
    found = _canonical.get(key)
    if found is None:
        if len(_canonical) >= MOST_REMEMBERED:
            _canonical.clear()
            _texts.clear()
        made = canonicalise(group)
        # One object for each text, so that equal keys are the same one.
        function = _texts.setdefault(made.function.key(), made.function)
        found = _canonical[key] = replace(made, function=function)
    return found


def site_of(group: Function, name: str, nth: int) -> Site:
    """The site of the operation that is the `nth` of this name in a group."""
    op = [op for op in group.ops if op.name == name][nth]
    axis = op.attrs.get("axis")
    return Site(name, op.loc, axis, op.attrs["size"] if axis is None else op.operands[0].type.shape[axis])


@dataclass(frozen=True)
class Asked:
    """A canonical group of which kernels are asked for: its likely extents, and as in `Wanted`.

    changing: extents that will have other values.
    """

    canonical: Function
    hint: dict[str, int]
    stream: bool = True
    in_place: InPlace = ()
    changing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Missing:
    """Kernels that are in no memory: of which group, which of its variants."""

    canonical: Function
    hint: dict[str, int]
    choice: str
    in_place: InPlace
    stream: bool = True


def compiled_groups(asked: Sequence[Asked], hurry: bool = False) -> list[tuple[CompiledGroup, bool]]:
    """The loaded kernels of canonical groups, and whether they were borrowed (see `bind_groups`)."""
    from graphc.codegen import borrow
    from graphc.codegen.llvm.target import host_target

    target = host_target()
    found: dict[int, tuple[CompiledGroup, bool]] = {}
    keys: dict[int, Any] = {}
    missing: dict[Any, _Missing] = {}
    for i, a in enumerate(asked):
        if hurry and a.changing:
            # A schedule for these sizes need not be chosen.
            near = borrow.nearest(a.canonical, a.in_place, target, a.hint, a.stream, True)
            if near is not None:
                found[i] = near[0], not near[1]
                continue
        choice = _choice_of(a)
        key = keys[i] = (a.canonical.key(), choice, target)
        if key not in _memory and key not in missing:
            missing[key] = _Missing(a.canonical, a.hint, choice, a.in_place, a.stream)
    distinct = set(keys.values())
    report = current()
    if report is not None:
        report.groups += len(asked)
        near_by = len({k.key for k, _ in found.values()})
        report.kernels += len(distinct) + near_by
        report.from_memory += len(distinct) - len(missing) + near_by
    borrowed: dict[Any, CompiledGroup] = {}
    if missing and hurry:
        borrowed = {key: kernel for key, m in missing.items() if (kernel := _nearby(m, target)) is not None}
        for key in borrowed:
            del missing[key]
    if missing:
        _memory.update(zip(missing, _from_disk_or_compile(list(missing.values())), strict=True))
    for i, key in keys.items():
        if key in borrowed:
            found[i] = borrowed[key], True
            continue
        a, own = asked[i], not asked[i].changing
        borrow.remember(a.canonical, a.in_place, target, a.hint, key[1], _memory[key], own)
        # What is made so as to serve other sizes too is as good as borrowed.
        found[i] = _memory[key], not own
    return [found[i] for i in range(len(asked))]


def _nearby(m: _Missing, target: Any) -> CompiledGroup | None:
    """Kernels of the same group that were chosen for sizes nearby, unless the right ones are on disk."""
    from graphc.codegen import borrow, cache

    found = borrow.nearest(m.canonical, m.in_place, target, m.hint, m.stream, False)
    if found is None or cache.get(cache.key(kernel_text(m.canonical, m.choice), target.key())) is not None:
        return None
    compiled: CompiledGroup = found[0]
    return compiled


def _choice_of(a: Asked) -> str:
    from graphc.codegen.llvm.target import host_target

    key = (a.canonical.key(), tuple(sorted(a.hint.items())), a.stream, a.changing, host_target())
    choice = _choices.get(key)
    if choice is None:
        if len(_choices) >= MOST_REMEMBERED:
            _choices.clear()
        with stage("choose"):
            choice = _choices[key] = _choice(a.canonical, a.hint, a.stream, a.changing)
    return f"{choice} in place {a.in_place}" if a.in_place else choice


def _choice(canonical: Function, hint: dict[str, int], stream: bool, changing: frozenset[str]) -> str:
    """The variant of a group's kernels. The schedule of a contraction takes long to choose and is remembered on disk."""
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import family, variant

    target = host_target()
    if family(canonical) != "contract":
        return variant(canonical, target, hint, stream, changing)
    among = f" changing {sorted(changing)}" if changing else ""
    among += "" if stream else " unaligned"
    key = cache.key(kernel_text(canonical, f"schedule for {sorted(hint.items())}{among}"), target.key())
    known = cache.get(key)
    if known is not None:
        return known.decode()
    choice = variant(canonical, target, hint, stream, changing)
    cache.put(key, choice.encode())
    return choice


def kernel_text(canonical: Function, choice: str) -> str:
    """The text under which a kernel is cached on disk."""
    from graphc.ir.text import print_function

    return f"{choice}\n{print_function(canonical, locs=False)}"


def _from_disk_or_compile(missing: Sequence[_Missing]) -> list[CompiledGroup]:
    """Kernels that are in no memory, loaded."""
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target

    target = host_target().key()
    with stage("cache"):
        keys = [cache.key(kernel_text(m.canonical, m.choice), target) for m in missing]
        found = [b"" if key in _linked else cache.get(key) for key in keys]
    absent = [i for i, data in enumerate(found) if data is None]
    made = compile_groups([(missing[i], keys[i]) for i in absent])
    with stage("cache"):
        for i, data in zip(absent, made, strict=True):
            cache.put(keys[i], data)
            found[i] = data
    report = current()
    if report is not None:
        memory = sum(key in _linked for key in keys)
        report.compiled += len(absent)
        report.from_memory += memory
        report.from_disk += len(missing) - len(absent) - memory
        report.object_bytes += sum(len(data) for data in found if data is not None)
    return [_link(key, data) for key, data in zip(keys, found, strict=True) if data is not None]


_linked: dict[str, CompiledGroup] = {}


def _link(key: str, data: bytes) -> CompiledGroup:
    """The entry `data`, whose code comes into this process once."""
    found = _linked.get(key)
    if found is None:
        found = _linked[key] = _load(key, data)
    return found


def linked(keys: Iterable[str]) -> dict[str, CompiledGroup] | None:
    """The kernels of these cache entries; None where one of them is in neither memory nor cache."""
    from graphc.codegen import cache

    found: dict[str, CompiledGroup] = {}
    memory = size = 0
    for key in keys:
        if key in _linked:
            found[key] = _linked[key]
            memory += 1
            continue
        data = cache.get(key)
        if data is None:
            return None
        size += len(data)
        found[key] = _link(key, data)
    report = current()
    if report is not None:
        report.from_memory += memory
        report.from_disk += len(found) - memory
        report.object_bytes += size
    return found


def compile_groups(missing: Sequence[tuple[_Missing, str]]) -> list[bytes]:
    """Object code with its description, as one cache entry each: a line of JSON, then one object. Given with their keys."""
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.llvm.workers import Batch

    if not missing:
        return []
    batch = Batch(host_target(), len(missing))
    heads: list[bytes] = []
    empty: list[bool] = []
    for m, key in missing:
        head, text = _written(m, key)
        heads.append(head)
        empty.append(not text)
        if text:
            batch.add(text)
    codes = iter(batch.finish())
    return [head + b"\n" + (b"" if none else next(codes)) for head, none in zip(heads, empty, strict=True)]


def _written(m: _Missing, key: str) -> tuple[bytes, str]:
    """The description of a group's kernels, and their LLVM text ("" if there is nothing to compute)."""
    from graphc.codegen.llvm.emit import emit_kernels
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import lower

    target = host_target()
    lowered = lower(m.canonical, target, m.hint, m.choice, m.in_place)
    kernels = rename(lowered.kernels, key)
    references: dict[Any, BufferRef] = {}
    for stem, buffers in (("p", lowered.params), ("r", lowered.results)):
        references.update({b: (stem, i) for i, b in enumerate(buffers)})
    references.update({s.buffer: ("s", i) for i, s in enumerate(lowered.scratch)})
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
        same = [o for o in m.canonical.ops if o.name == op.name]
        ordinal.append([op.name, same.index(op)])
    head: dict[str, Any] = {
        "launches": launches,
        "streams": m.choice.startswith("map stream") or "past=True" in m.choice,
        "scratch": [[s.dtype.name, str(s.size)] for s in lowered.scratch],
        "sites": ordinal,
    }
    with stage("emit"):
        text = emit_kernels(kernels, target) if kernels else ""
    return json.dumps(head).encode(), text


def rename(kernels: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """The kernels under symbols that are unique in the process."""
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
            key,
            number,
        )
        for number, launch in enumerate(head["launches"])
    )
    return CompiledGroup(
        key,
        launches,
        tuple((d, n) for d, n in head["scratch"]),
        tuple((n, i) for n, i in head["sites"]),
        head["streams"],
    )
