"""The plan of a function compiled ahead of time: launches in order, and memory whose sizes are expressions.

Inputs and outputs are the caller's, constants are part of the object, and everything between lives in
slots of one workspace. Sizes may contain symbols, so a slot is reused where the symbols' coefficients
prove that it is large enough. State (the weights of a training step) is the caller's too; its new values
are copied over it when all launches have gone well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.expr import Expr, show, var
from graphc.codegen.expr import replace as substitute_expr
from graphc.codegen.kernels import Site, site_of
from graphc.codegen.llvm.target import Target
from graphc.codegen.loops import Kernel
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lower import lower, variant
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.plan import ALIGN
from graphc.ir.function import Function, Loc, Module, Operation, Value
from graphc.ir.registry import Array
from graphc.ir.types import Dim, DimExpr, dim_symbols, substitute

# Where a buffer is: ("in", i), ("out", i), ("constant", i), ("state", i) or ("slot", i).
Place = tuple[str, int]
_LIKELY = 64  # the value of a symbolic dimension that kernels are chosen for


@dataclass(frozen=True)
class AheadLaunch:
    """One launch: its kernel, where its buffers are, its extents, and how many iterations it has.

    size: the bytes of the group's results; where it is 0, nothing is launched.
    sites: the operations behind each `Report` of the kernel's group; site k is sites[k - 1].
    """

    kernel: Kernel
    places: tuple[Place, ...]
    extents: tuple[Dim, ...]
    parallel: Expr
    size: Dim
    group: str
    loc: Loc | None
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class State:
    """A tensor of the state: the entry's parameter that reads it, and where it begins, in bytes.

    slot: where its new value waits, or None if it has none.
    """

    param: int
    slot: int | None
    offset: int
    initial: Array


@dataclass(frozen=True)
class AheadPlan:
    """What the entry does.

    inputs, outputs: positions of the entry's parameters and results that are arguments; the others are
        `constants` and `state`.
    symbols: the symbolic dimensions, in order of appearance.
    kernels: each kernel once. offsets: where each slot of the workspace begins, in bytes.
    checks: dimensions that must not be negative, each with the words for when it is.
    """

    name: str
    entry: Function
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Array]
    state: tuple[State, ...]
    symbols: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    launches: tuple[AheadLaunch, ...]
    offsets: tuple[Dim, ...]
    workspace: Dim
    checks: tuple[tuple[Dim, str], ...]

    @property
    def state_bytes(self) -> int:
        """The size of the state."""
        return max((padded(s.offset + s.initial.nbytes) for s in self.state), default=0)

    def __str__(self) -> str:
        held = sum(a.nbytes for a in self.constants.values())
        head = f"{len(self.launches)} launches of {len(self.kernels)} kernels, workspace {self.workspace} bytes"
        lines = [f"plan @{self.name}: {head}, constants {held} bytes"]
        for i, launch in enumerate(self.launches):
            places = ", ".join(map(self._place, launch.places))
            sizes = ", ".join(f"{n}={d}" for n, d in zip(launch.kernel.extents, launch.extents, strict=True))
            line = f"  {i}: {launch.group} {launch.kernel.name}({places}) {sizes} parallel={show(launch.parallel)}"
            lines.append(line + (f" loc({launch.loc})" if launch.loc else ""))
        for s in self.state:
            if s.slot is not None:
                lines.append(f"  state+{s.offset} = workspace+{self.offsets[s.slot]}: {self.entry.params[s.param].type}")
        return "\n".join(lines)

    def _place(self, place: Place) -> str:
        kind, i = place
        if kind == "state":
            return f"state+{self.state[i].offset}"
        return f"workspace+{self.offsets[i]}" if kind == "slot" else f"{kind}{i}"


def padded(size: Any) -> Any:
    """A number of bytes, rounded up to whole alignments."""
    return (size + (ALIGN - 1)) // ALIGN * ALIGN


def plan_ahead(
    module: Module,
    name: str,
    constants: Mapping[int, Array],
    target: Target,
    state: Mapping[int, int | None] | None = None,
) -> AheadPlan:
    """The plan of a fused module; `constants` are values of the entry's parameters by position.

    state: positions of parameters -> of the results that are their new values, or None for what stays as it is;
        `constants` has the initial values.
    """
    return _Planner(module.entry, name, constants, target, state or {}).plan()


def symbols_of(f: Function) -> tuple[str, ...]:
    """The symbolic dimensions of a function in order of appearance: parameters first, then what is inside."""
    found: dict[str, None] = {}
    for v in (*f.params, *(r for op in f.ops for r in op.results)):
        for d in v.type.shape:
            found.update(dict.fromkeys(sorted(dim_symbols(d))))
    for op in f.ops:
        for attribute in op.attrs.values():
            if isinstance(attribute, Function):
                found.update(dict.fromkeys(symbols_of(attribute)))
    return tuple(found)


class _Planner:
    """One pass over the entry's calls in order."""

    def __init__(
        self, entry: Function, name: str, constants: Mapping[int, Array], target: Target, state: Mapping[int, int | None]
    ) -> None:
        self.entry = entry
        self.name = name
        self.constants = {i: a for i, a in constants.items() if i not in state}
        self.target = target
        self.inputs = tuple(i for i in range(len(entry.params)) if i not in constants)
        self.outputs = tuple(i for i in range(len(entry.results)) if i not in state.values())
        self.place: dict[Value, Place] = {p: ("constant", i) for i, p in enumerate(entry.params)}
        self.place.update({entry.params[i]: ("in", k) for k, i in enumerate(self.inputs)})
        self.place.update({entry.results[i]: ("out", k) for k, i in enumerate(self.outputs)})
        self.last = {v: i for i, op in enumerate(entry.ops) for v in op.operands}
        self.known: dict[Any, tuple[Lowered, Function]] = {}
        self.kernels: list[Kernel] = []
        self.launches: list[AheadLaunch] = []
        self.slots: list[Dim] = []
        self.free: list[int] = []
        self.state: list[State] = []
        offset = 0
        for k, (i, result) in enumerate(state.items()):
            slot = None
            self.place[entry.params[i]] = ("state", k)
            if result is not None:
                new = entry.results[result]
                slot = self.take(new.type.nbytes)
                self.place[new] = ("slot", slot)
                self.last[new] = len(entry.ops)
            self.state.append(State(i, slot, offset, constants[i]))
            offset += padded(constants[i].nbytes)

    def plan(self) -> AheadPlan:
        for i, op in enumerate(self.entry.ops):
            self.group(i, op)
        offsets: list[Dim] = []
        total: Dim = 0
        for size in self.slots:
            offsets.append(total)
            total = total + padded(size)
        return AheadPlan(
            self.name,
            self.entry,
            self.inputs,
            self.outputs,
            self._used_constants(),
            tuple(self.state),
            symbols_of(self.entry),
            tuple(self.kernels),
            tuple(self.launches),
            tuple(offsets),
            total,
            _checks(self.entry),
        )

    def _used_constants(self) -> dict[int, Array]:
        used = {i for launch in self.launches for kind, i in launch.places if kind == "constant"}
        return {i: a for i, a in self.constants.items() if i in used}

    def group(self, position: int, op: Operation) -> None:
        """Append the launches of one group, unless all its results are empty."""
        size: Dim = 0
        for r in op.results:
            size = size + r.type.nbytes
            if r not in self.place:
                self.place[r] = ("slot", self.take(r.type.nbytes))
        if size != 0:
            self.launch(op, size)
        for v in {*op.operands, *op.results}:
            kind, slot = self.place[v]
            if kind == "slot" and self.last.get(v, position) == position:
                self.free.append(slot)

    def launch(self, op: Operation, size: Dim) -> None:
        function: Function = op.attrs["function"]
        canonical = canonicalise(function)
        extents = dict(canonical.extents)
        lowered, made_for = self.lowered(canonical)
        place: dict[Any, Place] = {}
        place.update(zip(lowered.params, (self.place[v] for v in op.operands), strict=True))
        place.update(zip(lowered.results, (self.place[v] for v in op.results), strict=True))
        scratch = [self.take(substitute(s.size, extents) * s.dtype.itemsize) for s in lowered.scratch]
        place.update({s.buffer: ("slot", i) for s, i in zip(lowered.scratch, scratch, strict=True)})
        dims = {var(n): dim_expr(d) for n, d in extents.items()}
        sites = tuple(_site(site, made_for, function) for site in lowered.sites)
        for kernel in lowered.kernels:
            self.launches.append(
                AheadLaunch(
                    kernel,
                    tuple(place[b] for b in kernel.buffers),
                    tuple(extents.get(e, 0) for e in kernel.extents),
                    substitute_expr(kernel.parallel, dims),
                    size,
                    function.name,
                    op.loc,
                    sites,
                )
            )
        self.free += scratch

    def lowered(self, canonical: Canonical) -> tuple[Lowered, Function]:
        """The group's kernels under names of their own; one lowering serves all groups of a canonical text.

        Also the canonical form that it was made from, whose operations its sites are.
        """
        hint = {n: _likely(d) for n, d in canonical.extents}
        key = (canonical.function.key(), variant(canonical.function, self.target, hint, stream=False))
        if key not in self.known:
            lowered = lower(canonical.function, self.target, hint, key[1])
            first = len(self.kernels)
            kernels = [replace(k, name=f"{self.name}_kernel{first + i}") for i, k in enumerate(lowered.kernels)]
            self.kernels += kernels
            self.known[key] = replace(lowered, kernels=tuple(kernels)), canonical.function
        return self.known[key]

    def take(self, size: Dim) -> int:
        """A slot of at least `size` bytes: a free one that is large enough, or one that may grow, or a new one."""
        for fits in (
            lambda held: held == size,
            lambda held: never_negative(held - size),
            lambda held: never_negative(size - held),
        ):
            slot = next((s for s in self.free if fits(self.slots[s])), None)
            if slot is not None:
                self.free.remove(slot)
                if never_negative(size - self.slots[slot]):
                    self.slots[slot] = size
                return slot
        self.slots.append(size)
        return len(self.slots) - 1


def never_negative(d: Dim) -> bool:
    """Whether `d` is at least 0 whatever its symbols are, as far as the signs of its coefficients tell."""
    if not isinstance(d, DimExpr):
        return d >= 0
    return all(
        c >= 0 and all(isinstance(atom, str) or never_negative(atom[1]) for atom in monomial) for monomial, c in d.terms
    )


def _likely(d: Dim) -> int:
    value = substitute(d, dict.fromkeys(dim_symbols(d), _LIKELY))
    assert not isinstance(value, DimExpr)
    return value


def _site(op: Operation, canonical: Function, group: Function) -> Site:
    """What an operation of a canonical form, which another group may have made, is in `group`."""
    return site_of(group, op.name, [o for o in canonical.ops if o.name == op.name].index(op))


def _chosen_from(op: Operation) -> list[DimExpr]:
    """The symbolic dimensions that must have an element."""
    if op.name not in ("max", "min", "argmax", "argmin"):
        return []
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    dims = [op.operands[0].type.shape[a] for a in axes]
    return [d for d in dims if isinstance(d, DimExpr) and not never_negative(d - 1)]


def _bounds(op: Operation) -> list[tuple[Dim, str]]:
    """What must not be negative for a slice to stay inside its operand, and the words for when it is."""
    if op.name != "slice":
        return []
    found: list[tuple[Dim, str]] = []
    for i, (d, lo, hi) in enumerate(zip(op.operands[0].type.shape, op.attrs["start"], op.attrs["limit"], strict=True)):
        words = f"[{lo}:{hi}] is out of range for dimension {i} of size {d}"
        found += [(slack, words) for slack in (d - hi, lo) if not never_negative(slack)]
    return found


def _checks(entry: Function) -> tuple[tuple[Dim, str], ...]:
    """What must not be negative, and the words for when it is: symbols, dimensions that some sizes would make
    negative, what a slice leaves of its operand, and dimensions less 1 where an operation needs an element to
    choose from."""
    checks: dict[Dim, str] = {}
    for p, name in zip(entry.params, entry.param_names, strict=True):
        for d in p.type.shape:
            if isinstance(d, DimExpr):
                checks.setdefault(d, f"the dimension {d} of {name}: {p.type} is negative")
    for call in entry.ops:
        for op in call.attrs["function"].ops:
            where = f" at {op.loc.file}:{op.loc.line}" if op.loc else ""
            for d in (d for r in op.results for d in r.type.shape):
                if not never_negative(d):
                    checks.setdefault(d, f"{op.name}{where}: the dimension {d} of its result is negative")
            for slack, words in _bounds(op):
                checks.setdefault(slack, f"{op.name}{where}: {words}")
            for d in _chosen_from(op):
                checks.setdefault(d - 1, f"{op.name}{where}: the dimension {d} is 0, and {op.name} of no elements has no value")
    return tuple(checks.items())
