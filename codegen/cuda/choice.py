"""How one group is scheduled on a device: chosen from the sizes of a launch, part of the key of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.codegen.fuse import FREE
from graphc.codegen.lower.nest import group_extents
from graphc.ir.function import Function, Value
from graphc.ir.registry import lookup
from graphc.ir.types import I64, substitute

# Extents are told apart by these divisors: what a 16-byte access of small elements needs.
_DIVISORS = (16, 8, 4, 2)
_NARROW = 2**31 - 1


@dataclass(frozen=True)
class Choice:
    """A schedule. `str` of it is part of a kernel's key, so two choices of one text are one kernel.

    form: the family and its variant, such as "map" or "rows registers"; numbers: (name, value) pairs that the form
    knows (tile sizes, elements a thread); divides, narrow: as in `loops.Grid`, true of this launch's extents.
    """

    form: str
    numbers: tuple[tuple[str, int], ...] = ()
    divides: tuple[tuple[str, int], ...] = ()
    narrow: bool = False

    def number(self, name: str) -> int:
        return dict(self.numbers)[name]

    def __str__(self) -> str:
        parts = [self.form, *(f"{n}={v}" for n, v in self.numbers), *(f"{n}%{d}" for n, d in self.divides)]
        return " ".join([*parts, "narrow"] if self.narrow else parts)


def divisors(group: Function, sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """For each extent of a canonical group its largest divisor among 16, 8, 4, 2, where there is one."""
    found = []
    for name in group_extents(group):
        d = next((d for d in _DIVISORS if sizes[name] % d == 0), 1)
        if d > 1:
            found.append((name, d))
    return tuple(found)


def _only_compared(group: Function, value: Value) -> bool:
    """Whether nothing but comparisons reads `value`, moved or repeated at most."""
    found, stack = {value}, [value]
    while stack:
        v = stack.pop()
        if v in group.results:
            return False
        for op in group.ops:
            if v not in op.operands or lookup(op.name).family == "compare":
                continue
            if op.name not in FREE:
                return False
            stack += [r for r in op.results if r not in found]
            found |= set(op.results)
    return True


def is_narrow(group: Function, sizes: Mapping[str, int], slack: int = 1 << 20) -> bool:
    """Whether every position in the group fits 32 bits, with room for tiles that overhang.

    An i64 iota is a position that arithmetic may take anywhere, so it is not narrow; one that is only compared is.
    """
    if any(op.name == "iota" and op.result.type.dtype is I64 and not _only_compared(group, op.result) for op in group.ops):
        return False
    largest = 0
    for v in [*group.params, *(r for op in group.ops for r in op.results)]:
        total = 1
        for d in v.type.shape:
            size = substitute(d, dict(sizes))
            assert isinstance(size, int)
            total *= max(1, size)
        largest = max(largest, total)
    return largest + slack <= _NARROW
