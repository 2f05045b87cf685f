"""Which dimensions of a group canonical text keeps as numbers, and why: kernels unroll them, or an operation changes them by arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import DimExpr, Shape

# A dimension of a value.
Place = tuple[Value, int]
# Images of at most so many pixels a side keep their size in the kernel: a vector covers several lines.
SMALL_IMAGE = 32
# In pooling over images larger ones do too: which windows reach over the edge is then known, and how many vectors make up a line.
POOLED_IMAGE = 128
# Rows that are reduced stay literal up to so many elements: they are turned in registers; longer ones fill vectors of their own.
SHORT_ROW = 64


def short_length(shape: Shape, axes: tuple[int, ...]) -> int:
    """The literal length of the rows of a domain, if they are short and its innermost dimension; else 0."""
    d = _short_axis(shape, axes)
    n = shape[d] if d is not None else 0
    return n if isinstance(n, int) and n <= SHORT_ROW else 0


def _short_axis(shape: Shape, axes: tuple[int, ...]) -> int | None:
    """The dimension along which rows would be short."""
    long = [d for d in range(len(shape)) if shape[d] != 1]
    reduced = [d for d in long if d in axes]
    return reduced[0] if len(long) >= 2 and reduced == long[-1:] else None


def window_places(group: Function) -> set[Place]:
    """Kernel windows of convolutions are unrolled; small images in pooling, head sizes and short rows decide what is in which register."""
    found: set[Place] = set()
    for op in group.ops:
        family = lookup(op.name).family
        if op.name == "conv":
            w = op.operands[1]
            found.update((w, i) for i in range(2, w.type.rank))
        elif family == "attention":
            # Head sizes decide the registers and the memory that kernels need.
            found |= {(op.operands[1], 3), (op.operands[2], 3)}
        elif family == "reduce":
            # Short rows are turned in registers.
            shape, axes = op.operands[0].type.shape, tuple(op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],))
            if short_length(shape, axes):
                along = _short_axis(shape, axes)
                assert along is not None
                found.add((op.operands[0], along))
        if family in ("conv", "pool"):
            count = len(op.attrs["window"] if "window" in op.attrs else op.attrs["strides"])
            sides = list(_inner([*op.operands, *op.results], count))
            most = POOLED_IMAGE if count > 1 and family == "pool" else SMALL_IMAGE
            if all(not isinstance(d := v.type.shape[i], DimExpr) and d <= most for v, i in sides):
                found.update(sides)
    return found


def changed_places(group: Function) -> set[Place]:
    """These, and every dimension that an operation changes by arithmetic."""
    found = window_places(group)
    for op in group.ops:
        family = lookup(op.name).family
        if family == "conv":
            x, w = op.operands
            found.update(_inner([x, w, op.result], x.type.rank - 2))
            if op.attrs["groups"] != 1 or op.attrs["batch_groups"] != 1:
                found |= {(w, 0), (op.result, 1)}
            if op.attrs["batch_groups"] != 1:
                found |= {(x, 0), (op.result, 0)}
            if op.attrs["groups"] != 1:
                found |= {(x, 1), (w, 1)}
        elif family == "pool":
            found.update(_inner([*op.operands, *op.results], len(op.attrs["window"])))
        elif op.name in ("slice", "pad", "concat"):
            for v in op.operands:
                if v.type.rank == op.result.type.rank:
                    for i in range(v.type.rank):
                        if (v.type.shape[i] != op.result.type.shape[i] or op.name == "concat") and not is_prefix(op, i):
                            found |= {(v, i), (op.result, i)}
        elif op.name == "reshape":
            found.update(_regrouped(op))
    return found


def _inner(values: Iterable[Value], count: int) -> Iterable[Place]:
    """The last `count` dimensions of values."""
    return [(v, i) for v in values for i in range(max(0, v.type.rank - count), v.type.rank)]


def is_prefix(op: Operation, i: int) -> bool:
    """Whether an operation takes the first elements of the outermost dimension, or puts zeros behind them: the size of one does not
    follow from that of the other, and indices cost the same for all sizes."""
    a = op.attrs
    if i or not op.result.type.rank or op.operands[0].type.shape[0] == op.result.type.shape[0]:
        return False
    if op.name == "slice":
        return bool(a["start"][0] == 0 and a["stride"][0] == 1)
    return op.name == "pad" and bool(a["low"][0] == 0 and a["interior"][0] == 0 and op.result.type.shape[0] != 1)


def same_ends(op: Operation) -> tuple[int, int]:
    """How many dimensions a reshape leaves alone at the beginning, and at the end."""
    a, b = op.operands[0].type.shape, op.result.type.shape
    first = last = 0
    while first < min(len(a), len(b)) and a[first] == b[first]:
        first += 1
    while last < min(len(a), len(b)) - first and a[-1 - last] == b[-1 - last]:
        last += 1
    return first, last


def _regrouped(op: Operation) -> Iterable[Place]:
    """The dimensions that a reshape makes others of."""
    first, last = same_ends(op)
    places = [(v, i) for v in (op.operands[0], op.result) for i in range(first, v.type.rank - last)]
    sizes = [{v.type.shape[i] for v, i in places if v is u} for u in (op.operands[0], op.result)]
    return places if sizes[0] != sizes[1] else []
