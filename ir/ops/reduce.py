"""Reductions: sum, prod, max, min, any, all over sorted `axes`, which are removed; argmax, argmin.

The order of combination is a function of the logical shape alone (the bit contract): each group of
adjacent axes counts as one, the innermost group goes first; a group is cut into chunks of 4096, a
chunk goes into 32 lanes in ascending order, the lanes are combined by halving, the chunks in
ascending order. float16 and bfloat16 accumulate in float32 and round once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops import arithmetic
from graphc.ir.ops.arithmetic import is_narrow
from graphc.ir.ops.create import constant_scalar, filled
from graphc.ir.ops.rules import check_axes, check_axis, check_count, check_kinds, removed, type_error
from graphc.ir.registry import REQUIRED, Array, Eval, Infer, OpDef, Vjp, register
from graphc.ir.types import F32, I64, DType, Shape, TensorType, size_of

CHUNK = 4096
LANES = 32
Combine = Callable[[Array, Array], Array]


def reduce_in_order(x: Array, axes: tuple[int, ...], combine: Combine, identity: Array) -> Array:
    """`x` reduced over `axes` in the order of the bit contract, in its own dtype."""
    for group in reversed(adjacent_groups(axes)):
        first, last = group[0], group[-1]
        outer, inner = x.shape[:first], x.shape[last + 1 :]
        n = math.prod(x.shape[first : last + 1])
        rows = np.moveaxis(x.reshape((*outer, n, *inner)), first, -1)
        x = _reduce_last(rows, combine, identity)
    return x


def adjacent_groups(axes: tuple[int, ...]) -> list[list[int]]:
    """Sorted axes as runs of adjacent ones: (0, 1, 3) -> [[0, 1], [3]]."""
    groups: list[list[int]] = []
    for axis in axes:
        if groups and groups[-1][-1] == axis - 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _reduce_last(x: Array, combine: Combine, identity: Array) -> Array:
    n = x.shape[-1]
    total: Array | None = None
    for start in range(0, n, CHUNK):
        part = _combine_lanes(x[..., start : start + CHUNK], combine, identity)
        total = part if total is None else combine(total, part)
    if total is None:
        # An empty sum is +0.0, although its identity is -0.0.
        empty = identity + identity.dtype.type(0) if identity.dtype.kind == "f" else identity
        total = np.full(x.shape[:-1], empty, x.dtype)
    return total


def _combine_lanes(x: Array, combine: Combine, identity: Array) -> Array:
    lanes = np.full((*x.shape[:-1], LANES), identity, x.dtype)
    for start in range(0, x.shape[-1], LANES):
        row = x[..., start : start + LANES]
        count = row.shape[-1]
        lanes[..., :count] = combine(lanes[..., :count], row)
    width = LANES
    while width > 1:
        width //= 2
        lanes = combine(lanes[..., :width], lanes[..., width : 2 * width])
    return np.asarray(lanes[..., 0])


class Row(NamedTuple):
    """What the table says of one reduction."""

    kinds: str
    combine: Combine
    identity: Callable[[DType], float | int | bool]
    vjp: Vjp | None
    reads: tuple[str, ...]
    doc: str


def _least(d: DType) -> float | int:
    return -math.inf if d.is_float else int(np.iinfo(d.numpy).min)


def _greatest(d: DType) -> float | int:
    return math.inf if d.is_float else int(np.iinfo(d.numpy).max)


def _kept(op: Operation) -> tuple[int, ...]:
    return tuple(i for i in range(op.operands[0].type.rank) if i not in op.attrs["axes"])


def _spread(b: Builder, op: Operation, reduced: Value) -> Value:
    """A value of the result's shape repeated over the reduced axes of the operand."""
    value: Value = b.emit("broadcast", reduced, shape=op.operands[0].type.shape, axes=_kept(op))
    return value


def _vjp_sum(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    return [_spread(b, op, g)]


def _vjp_extremum(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    """The cotangent is shared evenly among the elements that equal the result, as torch.amax does."""
    (g,) = cotangents
    assert g is not None
    x, dtype = op.operands[0], g.type.dtype
    equal = b.emit("eq", x, _spread(b, op, op.result))
    # Counts need more digits than a 16-bit float has.
    wide = F32 if dtype.bits == 16 else dtype
    count = b.emit("sum", b.emit("cast", equal, dtype=wide), axes=op.attrs["axes"])
    share = b.emit("div", g, count if wide is dtype else b.emit("cast", count, dtype=dtype))
    return [b.emit("select", equal, _spread(b, op, share), filled(b, 0.0, x.type))]


def _vjp_prod(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    """The derivative by an element is the product of all others: those before it times those after.

    Both come from `linear_scan`, without a division, so zeros are right to any order.
    """
    (g,) = cotangents
    assert g is not None
    x, axes, kept = op.operands[0], op.attrs["axes"], _kept(op)
    if not axes:
        return [g]
    moved = b.emit("permute", x, axes=kept + axes)
    outer = tuple(x.type.shape[i] for i in kept)
    flat = b.emit("reshape", moved, shape=(*outer, size_of(x.type.shape[i] for i in axes)))
    before = _product_of_others(b, flat, reverse=False)
    after = _product_of_others(b, flat, reverse=True)
    others = b.emit("reshape", b.emit("mul", before, after), shape=moved.type.shape)
    back = tuple(sorted(range(x.type.rank), key=(kept + axes).__getitem__))
    return [b.emit("mul", _spread(b, op, g), b.emit("permute", others, axes=back))]


def _product_of_others(b: Builder, x: Value, reverse: bool) -> Value:
    """For each element the product of those before it (after it) along the last axis."""
    axis, n = x.type.rank - 1, x.type.shape[-1]
    factors = shifted(b, x, axis, later=not reverse)
    # The scan starts from its first addend, 1; -0.0 is what adds nothing to any product.
    line = TensorType(x.type.dtype, (n,))
    index = b.emit("iota", shape=(n,), axis=0, dtype=I64)
    first = b.emit("eq", index, filled(b, 0, index.type))
    start = b.emit("select", first, filled(b, 1.0, line), filled(b, -0.0, line))
    start = b.emit("flip", start, axes=(0,)) if reverse else start
    start = b.emit("broadcast", start, shape=x.type.shape, axes=(axis,))
    value: Value = b.emit("linear_scan", factors, start, axis=axis, reverse=reverse)
    return value


def shifted(b: Builder, x: Value, axis: int, later: bool) -> Value:
    """`x` moved by one along `axis`, towards later or earlier indices; a zero comes in."""
    zero = constant_scalar(b, 0.0, x.type.dtype)
    shape: Shape = x.type.shape
    one = tuple(int(i == axis) for i in range(len(shape)))
    none = (0,) * len(shape)
    low, high = (one, none) if later else (none, one)
    wide = b.emit("pad", x, zero, low=low, high=high, interior=none)
    limit = tuple(d + a for d, a in zip(shape, high))
    value: Value = b.emit("slice", wide, start=high, limit=limit, stride=(1,) * len(shape))
    return value


def _reduction(name: str, row: Row) -> tuple[Infer, Eval]:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        check_count(name, types, 1)
        check_kinds(name, types, types[0].dtype, row.kinds)
        axes = check_axes(name, types, attrs["axes"], types[0].rank)
        return (types[0].with_shape(removed(types[0].shape, axes)),)

    def evaluate(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
        x = args[0].astype(np.float32) if is_narrow(args[0]) else args[0]
        with np.errstate(all="ignore"):
            identity = np.asarray(row.identity(types[0].dtype)).astype(x.dtype)
            total = reduce_in_order(x, attrs["axes"], row.combine, identity)
            return [total.astype(types[0].dtype.numpy)]

    return infer, evaluate


_TABLE: dict[str, Row] = {
    "sum": Row("iuf", np.add, lambda d: -0.0 if d.is_float else 0, _vjp_sum, (), "The sum over `axes`, in the operand's dtype; integers wrap; an empty sum is +0.0 (array API 2024.12, sum)."),
    "prod": Row("iuf", np.multiply, lambda d: 1, _vjp_prod, ("operands",), "The product over `axes`, in the operand's dtype; integers wrap; an empty one is 1 (array API 2024.12, prod)."),
    "max": Row("iuf", arithmetic.maximum, _least, _vjp_extremum, ("operands", "results"), "The greatest element over `axes`, NaN if one is NaN; equals share the gradient; an empty one is the least value (array API 2024.12, max)."),
    "min": Row("iuf", arithmetic.minimum, _greatest, _vjp_extremum, ("operands", "results"), "The least element over `axes`, NaN if one is NaN; equals share the gradient; an empty one is the greatest value (array API 2024.12, min)."),
    "any": Row("b", np.logical_or, lambda d: False, None, (), "Whether any element over `axes` is true (array API 2024.12, any)."),
    "all": Row("b", np.logical_and, lambda d: True, None, (), "Whether all elements over `axes` are true (array API 2024.12, all)."),
}  # fmt: skip

for _name, _row in _TABLE.items():
    _infer, _evaluate = _reduction(_name, _row)
    register(
        OpDef(
            name=_name,
            family="reduce",
            infer=_infer,
            eval=_evaluate,
            doc=_row.doc,
            vjp=_row.vjp,
            attrs={"axes": REQUIRED},
            reads=_row.reads,
            no_gradient="" if _row.vjp else "its result is bool",
        )
    )


def _arg_extremum(name: str, pick: Callable[..., Array]) -> tuple[Infer, Eval]:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        check_count(name, types, 1)
        check_kinds(name, types, types[0].dtype, "iuf")
        axis = check_axis(name, types, attrs["axis"], types[0].rank)
        if types[0].shape[axis] == 0:
            raise type_error(name, types, f"axis {axis} has no elements", "give it at least one")
        return (TensorType(I64, removed(types[0].shape, (axis,))),)

    def evaluate(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
        x = args[0].astype(np.float32) if is_narrow(args[0]) else args[0]
        if x.shape[attrs["axis"]] == 0:
            raise ValueError(f"{name}: axis {attrs['axis']} of {list(x.shape)} has no elements")
        return [np.asarray(pick(x, axis=attrs["axis"]), np.int64)]

    return infer, evaluate


for _name, _pick, _which in (("argmax", np.argmax, "greatest"), ("argmin", np.argmin, "least")):
    _infer, _evaluate = _arg_extremum(_name, _pick)
    register(
        OpDef(
            name=_name,
            family="reduce",
            infer=_infer,
            eval=_evaluate,
            doc=f"The i64 index of the {_which} element along `axis`: the first of equals, or the first NaN "
            f"(array API 2024.12, {_name}).",
            attrs={"axis": REQUIRED},
            reads=(),
            no_gradient="its result is an index",
        )
    )
