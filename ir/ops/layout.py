"""Layout operations: reshape, permute, broadcast, slice, pad, concat, flip.

They move elements and change none. Bounds and amounts may be symbolic dimensions. The size rules are
the plain formulas, also where a dimension is 0 or turns out to be 0 when a symbol gets its value, so
that a function keeps its meaning when symbols become integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.create import constant_scalar, filled
from graphc.ir.ops.rules import (
    check_axes,
    check_axis,
    check_count,
    check_ints,
    check_same_dtype,
    check_shape,
    show_shape,
    type_error,
)
from graphc.ir.registry import REQUIRED, Array, Infer, OpDef, Vjp, register
from graphc.ir.types import BOOL, Dim, DimExpr, TensorType, size_of

Types = tuple[TensorType, ...]
Cotangents = tuple[Value | None, ...]


def is_negative(d: Dim) -> bool:
    """Whether `d` is below 0 for every value of its symbols (which are >= 0)."""
    if not isinstance(d, DimExpr):
        return d < 0
    # The constant, if there is one, is the last term; what stands before it is >= 0 up to its sign.
    return d.terms[-1][0] == () and all(c < 0 for _, c in d.terms)


def _check_dims(name: str, types: Types, attr: str, value: Any, count: int) -> tuple[Dim, ...]:
    """`value` if it is a tuple of `count` dimensions."""
    dims = check_shape(name, types, attr, value)
    if len(dims) != count:
        raise type_error(
            name, types, f"{attr} must have {count} entries, one for each dimension, not {len(dims)}"
        )
    return dims


# reshape


def _reshape_infer(types: Types, attrs: Attrs) -> Types:
    check_count("reshape", types, 1)
    shape = check_shape("reshape", types, "shape", attrs["shape"])
    have, want = types[0].size, size_of(shape)
    if have != want:
        rule = f"the shape {show_shape(shape)} has {want} elements, the operand {have}"
        raise type_error("reshape", types, rule, "give a shape with the same product (the IR has no -1)")
    return (types[0].with_shape(shape),)


def _reshape_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    return (args[0].reshape([int(d) for d in types[0].shape]),)


def _reshape_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    return (b.emit("reshape", g, shape=op.operands[0].type.shape),)


# permute


def _permute_infer(types: Types, attrs: Attrs) -> Types:
    check_count("permute", types, 1)
    axes = check_ints("permute", types, "axes", attrs["axes"], types[0].rank)
    if sorted(axes) != list(range(types[0].rank)):
        rule = f"axes {axes} are not a permutation of 0..{types[0].rank - 1}"
        raise type_error("permute", types, rule, "name every axis once")
    return (types[0].with_shape(types[0].shape[a] for a in axes),)


def _permute_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    return (np.transpose(args[0], attrs["axes"]),)


def _permute_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    axes = op.attrs["axes"]
    inverse = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    return (b.emit("permute", g, axes=inverse),)


# broadcast


def _broadcast_infer(types: Types, attrs: Attrs) -> Types:
    check_count("broadcast", types, 1)
    shape = check_shape("broadcast", types, "shape", attrs["shape"])
    axes = check_axes("broadcast", types, attrs["axes"], len(shape))
    if len(axes) != types[0].rank:
        rule = f"axes must name a result dimension for each of the {types[0].rank} operand dimensions, not {axes}"
        raise type_error("broadcast", types, rule)
    for i, (d, axis) in enumerate(zip(types[0].shape, axes)):
        if d not in (1, shape[axis]):
            rule = f"dimension {i} of size {d} cannot become dimension {axis} of {show_shape(shape)}"
            raise type_error("broadcast", types, rule, f"it must be 1 or {shape[axis]}")
    return (types[0].with_shape(shape),)


def _broadcast_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    shape = tuple(int(d) for d in types[0].shape)
    aligned = [1] * len(shape)
    for d, axis in zip(args[0].shape, attrs["axes"]):
        aligned[axis] = d
    return (np.broadcast_to(args[0].reshape(aligned), shape),)


def _broadcast_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (total,) = cotangents
    assert total is not None
    source, shape = op.operands[0].type.shape, op.result.type.shape
    kept = {axis for d, axis in zip(source, op.attrs["axes"]) if d == shape[axis]}
    summed = tuple(axis for axis in range(len(shape)) if axis not in kept)
    if summed:
        total = b.emit("sum", total, axes=summed)
    return (b.emit("reshape", total, shape=source) if len(kept) < len(source) else total,)


# slice


def _slice_infer(types: Types, attrs: Attrs) -> Types:
    check_count("slice", types, 1)
    shape, rank = types[0].shape, types[0].rank
    start = _check_dims("slice", types, "start", attrs["start"], rank)
    limit = _check_dims("slice", types, "limit", attrs["limit"], rank)
    stride = check_ints("slice", types, "stride", attrs["stride"], rank, least=1)
    result: list[Dim] = []
    for i, (d, lo, hi, step) in enumerate(zip(shape, start, limit, stride)):
        size = (hi - lo + step - 1) // step
        if is_negative(lo) or is_negative(d - hi) or is_negative(size):
            rule = f"[{lo}:{hi}:{step}] is not a range of dimension {i} of size {d}"
            raise type_error("slice", types, rule, "0 <= start <= limit <= size must hold")
        result.append(size)
    return (types[0].with_shape(result),)


def _slice_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    start, limit = [int(d) for d in attrs["start"]], [int(d) for d in attrs["limit"]]
    for i, (d, lo, hi) in enumerate(zip(args[0].shape, start, limit)):
        if lo < 0 or hi > d:
            raise IndexError(f"slice: [{lo}:{hi}] is out of range for dimension {i} of size {d}")
    # A limit below 0 belongs to an empty range; NumPy would count it from the end.
    ranges = zip(start, limit, attrs["stride"])
    return (args[0][tuple(slice(lo, max(hi, 0), step) for lo, hi, step in ranges)],)


def _slice_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    low, stride = op.attrs["start"], op.attrs["stride"]
    dims = zip(op.operands[0].type.shape, low, g.type.shape, stride)
    high = tuple(d - lo - ((n - 1) * step + 1) for d, lo, n, step in dims)
    zero = constant_scalar(b, 0, g.type.dtype)
    return (b.emit("pad", g, zero, low=low, high=high, interior=tuple(s - 1 for s in stride)),)


# pad


def _pad_infer(types: Types, attrs: Attrs) -> Types:
    check_count("pad", types, 2)
    check_same_dtype("pad", types)
    shape, rank = types[0].shape, types[0].rank
    if types[1].rank != 0:
        raise type_error("pad", types, "the padding value must have rank 0", "reshape it to []")
    low = _check_dims("pad", types, "low", attrs["low"], rank)
    high = _check_dims("pad", types, "high", attrs["high"], rank)
    interior = check_ints("pad", types, "interior", attrs["interior"], rank, least=0)
    result: list[Dim] = []
    for i, (d, lo, hi, between) in enumerate(zip(shape, low, high, interior)):
        size = lo + hi + d + (d - 1) * between
        if is_negative(lo) or is_negative(hi) or is_negative(size):
            rule = f"dimension {i} of size {d} cannot be padded by low {lo}, high {hi}, interior {between}"
            raise type_error("pad", types, rule, "amounts must be >= 0; use slice to crop")
        result.append(size)
    return (types[0].with_shape(result),)


def _pad_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    x, value = args
    out = np.full([int(d) for d in types[0].shape], value, dtype=x.dtype)
    if x.size:
        ranges = zip([int(d) for d in attrs["low"]], x.shape, attrs["interior"])
        out[tuple(slice(lo, lo + (n - 1) * (gap + 1) + 1, gap + 1) for lo, n, gap in ranges)] = x
    return (out,)


def _pad_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    x, low = op.operands[0].type, op.attrs["low"]
    interior = op.attrs["interior"]
    stride = tuple(between + 1 for between in interior)
    limit = tuple(lo + (n - 1) * step + 1 if n != 0 else lo for lo, n, step in zip(low, x.shape, stride))
    dx = b.emit("slice", g, start=low, limit=limit, stride=stride)
    # The padding's cotangents are picked out, not `sum(g) - sum(dx)`: that would round, and make NaN of inf.
    inside = filled(b, False, x.with_dtype(BOOL))
    outside = b.emit(
        "pad", inside, constant_scalar(b, True, BOOL), low=low, high=op.attrs["high"], interior=interior
    )
    padding = b.emit("select", outside, g, filled(b, 0, g.type))
    return (dx, b.emit("sum", padding, axes=tuple(range(x.rank))) if x.rank else padding)


# concat


def _concat_infer(types: Types, attrs: Attrs) -> Types:
    if not types:
        raise type_error("concat", types, "there is nothing to concatenate", "give at least one operand")
    check_same_dtype("concat", types)
    axis = check_axis("concat", types, attrs["axis"], types[0].rank)
    total: Dim = 0
    for t in types:
        others = [s[:axis] + s[axis + 1 :] for s in (types[0].shape, t.shape)]
        if t.rank != types[0].rank or others[0] != others[1]:
            rule = f"operands may differ in dimension {axis} only, not {show_shape(types[0].shape)} and {show_shape(t.shape)}"
            raise type_error("concat", types, rule, "slice, pad or reshape one of them")
        total = total + t.shape[axis]
    return (types[0].with_shape((*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])),)


def _concat_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    return (np.concatenate(args, axis=attrs["axis"]),)


def _concat_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    axis, shape = op.attrs["axis"], g.type.shape
    pieces: list[Value | None] = []
    begin: Dim = 0
    for v in op.operands:
        end = begin + v.type.shape[axis]
        start = tuple(begin if i == axis else 0 for i in range(len(shape)))
        limit = tuple(end if i == axis else d for i, d in enumerate(shape))
        pieces.append(b.emit("slice", g, start=start, limit=limit, stride=(1,) * len(shape)))
        begin = end
    return pieces


# flip


def _flip_infer(types: Types, attrs: Attrs) -> Types:
    check_count("flip", types, 1)
    check_axes("flip", types, attrs["axes"], types[0].rank)
    return (types[0],)


def _flip_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    return (np.flip(args[0], attrs["axes"]),)


def _flip_vjp(b: Builder, op: Operation, cotangents: Cotangents) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    return (b.emit("flip", g, axes=op.attrs["axes"]),)


def _layout(name: str, infer: Infer, eval: Any, vjp: Vjp, doc: str, **attrs: Any) -> None:
    register(OpDef(name, "layout", infer, eval, doc, vjp, attrs, reads=()))


_layout(
    "reshape",
    _reshape_infer,
    _reshape_eval,
    _reshape_vjp,
    "The elements of x in row-major order, in the shape `shape` of the same size (array API reshape).",
    shape=REQUIRED,
)
_layout(
    "permute",
    _permute_infer,
    _permute_eval,
    _permute_vjp,
    "Dimension i of the result is dimension axes[i] of x (array API permute_dims).",
    axes=REQUIRED,
)
_layout(
    "broadcast",
    _broadcast_infer,
    _broadcast_eval,
    _broadcast_vjp,
    "Dimension i of x becomes dimension axes[i] of `shape`, repeated if it is 1; other dimensions repeat x "
    "(XLA BroadcastInDim). `axes` ascend.",
    shape=REQUIRED,
    axes=REQUIRED,
)
_layout(
    "slice",
    _slice_infer,
    _slice_eval,
    _slice_vjp,
    "The elements start, start + stride, ... below limit along each dimension; strides >= 1 (XLA Slice).",
    start=REQUIRED,
    limit=REQUIRED,
    stride=REQUIRED,
)
_layout(
    "pad",
    _pad_infer,
    _pad_eval,
    _pad_vjp,
    "x with `low` and `high` copies of the rank-0 operand around and `interior` copies between the elements "
    "of each dimension (XLA Pad, amounts >= 0).",
    low=REQUIRED,
    high=REQUIRED,
    interior=REQUIRED,
)
_layout(
    "concat",
    _concat_infer,
    _concat_eval,
    _concat_vjp,
    "One or more operands in a row along `axis` (array API concat).",
    axis=REQUIRED,
)
_layout(
    "flip",
    _flip_infer,
    _flip_eval,
    _flip_vjp,
    "x with the order of its elements along `axes` reversed (array API flip).",
    axes=REQUIRED,
)
