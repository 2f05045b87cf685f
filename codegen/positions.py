"""Where in a value a fused group reads: positions as tokens, one for each dimension.

A token stands for a coordinate of the current element of the group's domain, or for something
computed from it. Equal tokens are equal coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import count

from graphc.ir.function import Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import Shape

Tokens = tuple[str, ...]
UNIT, UNKNOWN = "unit", "unknown"


def squeezed(shape: Shape) -> Shape:
    return tuple([d for d in shape if d != 1])


def tokens_of(shape: Shape) -> Tokens:
    return tuple(UNIT if d == 1 else f"d{i}" for i, d in enumerate(shape))


def units_out(tokens: Tokens, shape: Shape) -> Tokens:
    return tuple(t for t, d in zip(tokens, shape, strict=True) if d != 1)


def with_units(tokens: Tokens, shape: Shape, target: Shape) -> Tokens:
    rest = iter(units_out(tokens, shape))
    return tuple(UNIT if d == 1 else next(rest) for d in target)


@cache
def in_place(name: str) -> bool:
    """Whether an operation reads its operands where its result is read."""
    return name == "stop_gradient" or lookup(name).family in ("elementwise", "compare")


def step(op: Operation, at: Tokens) -> Iterable[tuple[Value, Tokens]]:
    """Where `op`, read at `at`, reads its operands; `UNKNOWN` in every dimension that is no longer followed."""
    name = op.name
    if in_place(name):
        return [(v, at) for v in op.operands]
    if name == "reshape":
        source = op.operands[0].type.shape
        if squeezed(source) == squeezed(op.result.type.shape):
            return [(op.operands[0], with_units(at, op.result.type.shape, source))]
        return [(op.operands[0], (UNKNOWN,) * len(source))]
    if name == "permute":
        moved: list[str] = [UNIT] * len(at)
        for d, a in enumerate(op.attrs["axes"]):
            moved[a] = at[d]
        return [(op.operands[0], tuple(moved))]
    if name == "broadcast":
        shape = op.operands[0].type.shape
        return [
            (op.operands[0], tuple(UNIT if shape[i] == 1 else at[a] for i, a in enumerate(op.attrs["axes"])))
        ]
    if name == "full":
        return [(op.operands[0], ())]
    return [(v, (UNKNOWN,) * v.type.rank) for v in op.operands]


class Positions:
    """Positions as tokens that tell which element is read, relative to the current one."""

    def __init__(self) -> None:
        self._names: dict[object, str] = {}

    def of_result(self, value: Value) -> Tokens:
        """The current element of a result: dimension 0, 1, .. of those that are not 1."""
        rest = count()
        return tuple(UNIT if d == 1 else f"d{next(rest)}" for d in value.type.shape)

    def _name(self, *key: object) -> str:
        return self._names.setdefault(key, f"p{len(self._names)}")

    def step(self, op: Operation, at: Tokens) -> Iterable[tuple[Value, Tokens]]:
        """Where `op`, read at `at`, reads its operands."""
        name, attrs = op.name, op.attrs
        if in_place(name):
            return [(v, at) for v in op.operands]
        if lookup(name).family == "reduce":
            return [(v, self.of_result(v)) for v in op.operands]
        if name == "slice":
            ranges = zip(at, attrs["start"], attrs["stride"], strict=True)
            return [(op.operands[0], tuple(t if (lo, by) == (0, 1) else self._name(t, lo, by) for t, lo, by in ranges))]
        if name == "flip":
            sizes = enumerate(zip(at, op.result.type.shape, strict=True))
            return [(op.operands[0], tuple(self._name(t, d) if i in attrs["axes"] else t for i, (t, d) in sizes))]
        return [
            (v, p if UNKNOWN not in p else tuple(self._name(id(op), k, at, i) for i in range(len(p))))
            for k, (v, p) in enumerate(step(op, at))
        ]
