"""Whole programs on disk, so that a process that starts again neither optimises, nor fuses, nor plans what an earlier one did.

An entry is found under a digest of the function with its source lines (they are in messages), the pairs that may share
memory, the target and the sources of this compiler. It names its kernels, which are entries of their own: where one of
them is gone, the program is planned again.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from graphc.codegen import cache
from graphc.codegen.kernels import linked
from graphc.codegen.llvm.target import host_target
from graphc.codegen.plan import Plan, PlannedLaunch
from graphc.codegen.report import current, stage
from graphc.ir.function import DenseArray, Function, Value, attr_key

# Programs of fewer operations (calls counted as one) are planned in less time than it takes to look for them.
LEAST = 16
# Larger constants are not copied to disk.
MOST_CONSTANT_BYTES = 1 << 20
# Functions of which the digest, and programs that, are remembered in this process.
MOST_REMEMBERED, MOST_RECENT = 4096, 64
Digests = dict[int, tuple[Function, str]]


@dataclass(frozen=True)
class Stored:
    """What a program is made of, but for its function and module. operations: after the passes; groups: that it launches."""

    plan: Plan
    constants: tuple[np.ndarray[Any, Any], ...]
    donated: frozenset[tuple[int, int]]
    operations: int
    groups: int


def key_of(f: Function, donate: Sequence[tuple[int, int]]) -> str:
    """The name of the entry of a function compiled with these donations."""
    with stage("cache"):
        return cache.key(f"program {digest(f)} {sorted(donate)}", f"{_front()} {host_target().key()}")


@functools.cache
def _front() -> str:
    import graphc.ir

    return hashlib.sha256(repr(sorted(cache.sources(str(Path(graphc.ir.__file__).parent)))).encode()).hexdigest()


def digest(f: Function) -> str:
    """Equal for functions of equal text, source lines included."""
    if len(_digests) >= MOST_REMEMBERED:
        _digests.clear()
    return _digest(f, _digests)


# Of functions that are called; composites and their gradients last longer than what calls them. Held, so that their ids last.
_digests: Digests = {}


def _digest(f: Function, known: Digests) -> str:
    kept = known.get(id(f))
    if kept is not None:
        return kept[1]
    number: dict[Value, int] = {}
    for v in f.params:
        number[v] = len(number)
    lines = [f.name, repr(f.param_names), repr(f.param_types)]
    for op in f.ops:
        operands = [number[v] for v in op.operands]
        for r in op.results:
            number[r] = len(number)
        attrs = [(k, _text(v, known)) for k, v in op.attrs.items()]
        lines.append(f"{op.name} {operands} {attrs} {[r.type for r in op.results]} {op.loc}")
    lines.append(repr([number[r] for r in f.results]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _text(value: Any, known: Digests) -> str:
    """Text that tells apart what `attr_key` does."""
    if isinstance(value, Function):
        found = _digest(value, known)
        known[id(value)] = (value, found)
        return found
    if isinstance(value, DenseArray):
        array = value.array
        return f"{array.dtype.name}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, tuple):
        return f"({', '.join(_text(v, known) for v in value)})"
    return repr(attr_key(value))


# The programs that were kept or found last; their plans have no entry, so that the functions need not last.
_recent: dict[str, Stored] = {}
_parts = attrgetter(*(field.name for field in fields(PlannedLaunch) if field.name != "launch"))


def find(key: str, f: Function) -> Stored | None:
    """The program of that name, its kernels linked; None where it, or one of them, is not there."""
    recent = _recent.get(key)
    stored = recent or _on_disk(key)
    if stored is None:
        return None
    report = current()
    if report is not None:
        kernels = len({p.launch.kernel for p in stored.plan.launches})
        report.optimised += stored.operations
        report.groups += stored.groups
        report.kernels += kernels
        report.from_memory += kernels if recent is not None else 0
    return replace(stored, plan=replace(stored.plan, entry=f))


def _on_disk(key: str) -> Stored | None:
    with stage("cache"):
        data = cache.get(key)
        if data is None:
            return None
        try:
            stored: Stored
            stored, launches = pickle.loads(data)
        except Exception:
            cache.drop(key)
            return None
        kernels = linked(dict.fromkeys(name for name, _, _ in launches))
        if kernels is None:
            return None
        planned = [PlannedLaunch(kernels[name].launches[n], *parts) for name, n, parts in launches]
        found = replace(stored, plan=replace(stored.plan, launches=tuple(planned)))
    _remember(key, found)
    return found


def _remember(key: str, stored: Stored) -> None:
    while len(_recent) >= MOST_RECENT:
        _recent.pop(next(iter(_recent)), None)
    _recent[key] = stored


def keep(key: str, stored: Stored) -> None:
    """Remember a program."""
    if sum(c.nbytes for c in stored.constants) > MOST_CONSTANT_BYTES:
        return
    with stage("cache"):
        stored = replace(stored, plan=replace(stored.plan, entry=None))  # type: ignore[arg-type]
        _remember(key, stored)
        launches = [(p.launch.kernel, p.launch.number, _parts(p)) for p in stored.plan.launches]
        plain = replace(stored, plan=replace(stored.plan, launches=()))
        cache.put(key, pickle.dumps((plain, launches), pickle.HIGHEST_PROTOCOL))
