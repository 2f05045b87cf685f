"""Device schedules of a group with attention or attention_grad.

Which arithmetic it gets follows from the element type, the attribute `precision` and the target alone; sizes choose among tiles of one
arithmetic, which give the same bits.

| form | file | |
| --- | --- | --- |
| fma | attention_fma.py | the definition to the bit: float32, float64, precision "exact", and devices without tensor cores |
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.attention_fma import SIDE, STRIDE, FmaAttention, padded
from graphc.codegen.cuda.attention_parts import KEYS, Parts
from graphc.codegen.cuda.choice import Choice, divisors, is_narrow
from graphc.codegen.cuda.target import Target
from graphc.codegen.lower.attention import attention_of
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function, Operation
from graphc.ir.types import F64, Dim, substitute

Sizes = Mapping[str, int]


def choose(group: Function, sizes: Sizes, target: Target) -> Choice:
    """The schedule for a launch of these sizes."""
    op = attention_of(group)
    assert op is not None
    divides, narrow = divisors(group, sizes), is_narrow(group, sizes)
    return fma_choice(op, sizes, target, divides, narrow)


def size_in(d: Dim, sizes: Sizes) -> int:
    found = substitute(d, dict(sizes))
    assert isinstance(found, int)
    return found


def fma_choice(op: Operation, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool) -> Choice:
    """Rows of a tile: as many as registers and shared memory take, not more than there are."""
    queries, keys = (size_in(v.type.shape[2], sizes) for v in op.operands[:2])
    return Choice(
        "attention fma",
        (("queries", _rows(op, queries, target)), ("keys", _rows(op, keys, target))),
        divides,
        narrow,
    )


def _rows(op: Operation, count: int, target: Target) -> int:
    depth, width = (v.type.shape[3] for v in op.operands[1:3])
    assert isinstance(depth, int) and isinstance(width, int)
    itemsize = 8 if op.operands[0].type.dtype is F64 else 4
    gradient = op.name == "attention_grad"
    held = (padded(depth) + 4 + (padded(width) + 4 if gradient else 0) + STRIDE) * itemsize
    # Sums that a thread keeps for each of its rows: 4 of every 64 elements.
    sums = (-(-depth // 64) + -(-width // 64) if gradient else -(-width // 64)) * itemsize
    rows = 64
    while rows > SIDE and (
        rows // 2 >= count or rows // SIDE * sums > 64 or rows * held + KEYS * STRIDE * itemsize > target.shared
    ):
        rows //= 2
    return rows


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a schedule."""
    op = attention_of(group)
    assert op is not None
    kernels = []
    parts = Parts(group, op, choice)
    if op.name == "attention":
        kernels.append(FmaAttention(parts, choice.number("queries")).forward())
    else:
        dq, *others = op.results
        if dq in parts.targets:
            kernels.append(FmaAttention(parts, choice.number("queries")).by_queries())
        if any(r in parts.targets for r in others):
            kernels.append(FmaAttention(parts, choice.number("keys")).by_keys())
    return Lowered(tuple(kernels), parts.params, parts.results, sites=tuple(parts.pull.sites))


__all__ = ["choose", "lower"]
