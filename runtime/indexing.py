"""Indexing as in NumPy: integers, slices, None, Ellipsis, integer tensors and bool masks; reading and writing.

Integers and slices give views. Integer tensors become the IR operations gather and scatter: their
values are checked when they run. A bool mask has a result whose size depends on values, so it exists
only where values do; as the target of an assignment of one value it works everywhere.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL, I64, Dim, DimExpr, DType, Shape, size_of
from graphc.runtime import emission as e
from graphc.runtime.core import ABSTRACT, PART, Tensor, make, origin, rebind, refresh
from graphc.runtime.device import CPU, Device
from graphc.runtime.dispatch import Entry, Op, apply, apply_entry, lookup, number, operand_of, remember
from graphc.runtime.errors import here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.node import record
from graphc.runtime.ops_elementwise import where
from graphc.runtime.ops_layout import RESHAPE, SLICE
from graphc.runtime.spec import broadcast_shapes

Attrs = tuple[Any, ...]


class Parsed(NamedTuple):
    """An index taken apart.

    ranges: (start, length, step) of each dimension of x. shape: after integers dropped their dimension
    and None added one. advanced: (dimension in `shape`, integer tensor). adjacent: whether those are neighbours.
    """

    ranges: tuple[tuple[Dim, Dim, int], ...]
    shape: Shape
    advanced: list[tuple[int, Tensor]]
    adjacent: bool


def parse(x: Tensor, index: Any) -> Parsed:
    """Take an index apart. Raises `IndexError` for what is out of range, `TypeError` for what is no index."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [_plain(item, x._spec.device) for item in items]
    shape = x._spec.shape
    consumed = sum(_consumes(item) for item in items)
    if consumed > len(shape):
        raise IndexError(f"{consumed} indices for a tensor {x._spec} of {len(shape)} dimensions\n  at {here()}")
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError(f"an index can hold one Ellipsis (...)\n  at {here()}")
    at = dots[0] if dots else len(items)
    items[at : at + bool(dots)] = [slice(None)] * (len(shape) - consumed)
    return _walk(x, items)


def _walk(x: Tensor, items: list[Any]) -> Parsed:
    shape = x._spec.shape
    mixed = any(isinstance(item, Tensor) for item in items)
    ranges: list[tuple[Dim, Dim, int]] = []
    result: list[Dim] = []
    advanced: list[tuple[int, Tensor]] = []
    places: list[int] = []
    for n, item in enumerate(items):
        if item is None:
            result.append(1)
            continue
        d = shape[len(ranges)]
        if isinstance(item, slice):
            ranges.append(_range(item, d))
            result.append(ranges[-1][1])
        elif isinstance(item, int):
            ranges.append((_position(item, d, len(ranges), x), 1, 1))
            if mixed:
                # NumPy: an integer among index tensors counts as one of them.
                advanced.append((len(result), number(0)))
                places.append(n)
                result.append(1)
        elif item._spec.dtype is BOOL:
            for k, line in enumerate(nonzero(_checked_mask(item, shape, len(ranges)))):
                advanced.append((len(result), line))
                places.append(n if k == 0 else places[-1])
                ranges.append((0, shape[len(ranges)], 1))
                result.append(ranges[-1][1])
        else:
            advanced.append((len(result), item))
            places.append(n)
            ranges.append((0, d, 1))
            result.append(d)
    adjacent = all(b - a <= 1 for a, b in itertools.pairwise(places))
    return Parsed(tuple(ranges), tuple(result), advanced, adjacent)


def _plain(item: Any, device: Device) -> Any:
    """An index item, on the device of what is indexed, as None, Ellipsis, a slice, an int or a tensor of integers or bool."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return int(item)
    if isinstance(item, (list, np.ndarray, bool, np.bool_)):
        from graphc.runtime.interop import asarray

        item = asarray(item, dtype=I64 if isinstance(item, list) and not item else None, device=device)
    if isinstance(item, Tensor):
        if item._spec.dtype.is_float:
            raise TypeError(f"an index tensor holds integers or bool, not {item._spec}; cast it\n  at {here()}")
        if item._spec.device is not device and item._spec.shape:
            from graphc.runtime.transfer import to_device

            return to_device(item, device)
        return item
    raise TypeError(
        f"{type(item).__name__} is not an index; use integers, slices, None, ..., integer tensors or bool masks\n  at {here()}"
    )


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    if isinstance(item, Tensor) and item._spec.dtype is BOOL:
        return len(item._spec.shape)
    return 1


def _range(s: slice, d: Dim) -> tuple[Dim, Dim, int]:
    step = 1 if s.step is None else operator.index(s.step)
    if step == 0:
        raise ValueError("the step of a slice must not be 0")
    if not isinstance(d, DimExpr) and not isinstance(s.start, DimExpr) and not isinstance(s.stop, DimExpr):
        start, stop, step = s.indices(d)
        return (start, len(range(start, stop, step)), step) if range(start, stop, step) else (0, 0, 1)
    # A symbolic size: bounds are taken as they are, since nothing is known to clip them against.
    if step < 0:
        if s.start is not None or s.stop is not None:
            raise ValueError(f"a slice with a negative step along a symbolic dimension {d} must have no bounds")
        return (d - 1, (d - step - 1) // -step, step)
    first, last = _bound(s.start, d, 0), _bound(s.stop, d, d)
    return (first, (last - first + step - 1) // step, step)


def _bound(value: Any, d: Dim, default: Dim) -> Dim:
    if value is None:
        return default
    if isinstance(value, DimExpr):
        return value
    i = operator.index(value)
    return d + i if i < 0 else i


def _position(i: int, d: Dim, axis: int, x: Tensor) -> Dim:
    if not isinstance(d, DimExpr) and not -d <= i < d:
        raise IndexError(
            f"index {i} is out of range for dimension {axis} of size {d} of a tensor {x._spec}; "
            f"it must be in [{-d}, {d - 1}]\n  at {here()}"
        )
    return d + i if i < 0 else i


def _checked_mask(mask: Tensor, shape: Shape, first: int) -> Tensor:
    covered = shape[first : first + len(mask._spec.shape)]
    if mask._spec.shape != covered:
        raise IndexError(
            f"the mask {mask._spec} must have the shape {list(covered)} of the dimensions that it selects from\n  at {here()}"
        )
    return mask


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """The positions of elements that are not zero: an int64 tensor for each dimension.

    The size of the result depends on values, so this works only where they exist.
    """
    from graphc.runtime.interop import _from_python, looked_at

    if x._strides is ABSTRACT:
        raise TypeError(
            f"the number of elements that a bool mask {x._spec} selects is not known while tracing; "
            f"use where(mask, x, 0), or select before the function\n  at {here()}"
        )
    return tuple(_from_python(line, I64, x._spec.device) for line in np.nonzero(looked_at(x)))


# Reading


# (type of x, index) -> the entry of a basic index, with where its result begins and its strides in contiguous memory
_basic_entries: dict[Any, tuple[Entry, int, tuple[int, ...] | None]] = {}


def _key(index: Any) -> Any:
    """A hashable form of a basic index, or None."""
    kind = index.__class__
    if kind is int:
        return index
    if kind is slice:
        parts = (index.start, index.stop, index.step)
        return (slice, *parts) if all(p is None or p.__class__ is int for p in parts) else None
    if kind is tuple:
        key = tuple([item if item is None or item is Ellipsis else _key(item) for item in index])
        return None if any(k is None and i is not None for k, i in zip(key, index)) else (tuple, key)
    return None


def getitem(x: Tensor, index: Any) -> Tensor:
    """`x[index]`."""
    key = _key(index)
    if key is not None:
        known = _basic_entries.get((x._spec, key))
        if known is not None and x._strides is None and not state.active:
            entry, offset, strides = known
            t = make(entry.specs[0], x._buffer, x._address + offset, strides)
            t._origin = PART
            if x._meta is not None and local.grad:
                record(entry, (x,), (t,))
            return t
    p = parse(x, index)
    if key is not None and x._spec.concrete:
        entry = lookup(SLICE, (x,), (p.ranges, p.shape))
        assert entry.view is not None
        place = entry.view(make(x._spec, None, 0), entry.specs[0], entry.attrs)
        assert place is not None
        remember(_basic_entries, (x._spec, key), (entry, *place))
        t = apply_entry(entry, (x,))[0]
        t._origin = PART
        return t
    if not p.advanced:
        t = apply(SLICE, (x,), (p.ranges, p.shape))
        t._origin = PART
        return t
    x = _basic(x, p)
    return apply(_GATHER, (x, *(t for _, t in p.advanced)), (tuple(d for d, _ in p.advanced), p.adjacent))


def _basic(x: Tensor, p: Parsed) -> Tensor:
    whole = p.shape == x._spec.shape and all(s == 0 and n == d and k == 1 for (s, n, k), d in zip(p.ranges, x._spec.shape))
    return x if whole else apply(SLICE, (x,), (p.ranges, p.shape))


def _wrapped(b: Builder, index: Value, size: Dim) -> Value:
    """Index positions as int64 in [0, size), checked when they run."""
    checked = e.cast(b, b.emit("check_index", index, size=size), I64)
    shape = checked.type.shape
    negative = b.emit("lt", checked, e.filled(b, 0, I64, shape))
    moved = b.emit("add", checked, e.broadcast(b, e.dim_value(b, size, I64), shape))
    result: Value = b.emit("select", negative, moved, checked)
    return result


def _linear(b: Builder, x: Value, indices: Sequence[Value], dims: tuple[int, ...], adjacent: bool) -> Any:
    """x with the indexed dimensions as one, and the index into it: (x, permutation, axis, index)."""
    if len(dims) == 1:
        return x, tuple(range(x.type.rank)), dims[0], indices[0]
    shape = broadcast_shapes(*(v.type.shape for v in indices))
    index: Value | None = None
    for d, v in zip(dims, indices):
        size = x.type.shape[d]
        line = e.broadcast(b, _wrapped(b, v, size), shape)
        if index is None:
            index = line
        else:
            scaled = b.emit("mul", index, e.broadcast(b, e.dim_value(b, size, I64), shape))
            index = b.emit("add", scaled, line)
    axis = dims[0] if adjacent else 0
    others = [d for d in range(x.type.rank) if d not in dims]
    before = [d for d in others if d < dims[0]] if adjacent else []
    order = (*before, *dims, *(d for d in others if d not in before))
    x = e.permute(b, x, order)
    merged = size_of(x.type.shape[axis : axis + len(dims)])
    x = e.reshape(b, x, (*x.type.shape[:axis], merged, *x.type.shape[axis + len(dims) :]))
    return x, order, axis, index


def _emit_gather(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    dims, adjacent = attrs
    x, _, axis, index = _linear(b, values[0], values[1:], dims, adjacent)
    result: Value = b.emit("gather", x, index, axis=axis)
    return result


def _emit_take(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    _need_integers("take", values[1])
    result: Value = b.emit("gather", *values, axis=attrs[0])
    return result


def _need_integers(name: str, index: Value) -> None:
    if not index.type.dtype.is_integer:
        raise TypeError(f"indices must be integers, not {index.type}; cast them with astype(graphc.int64)")


def _along(b: Builder, values: Sequence[Value], axis: int) -> tuple[Value, Value]:
    """x cropped and broadcast against an index of its rank, apart from `axis`."""
    x, index = values[:2]
    _need_integers("take_along_axis", index)
    if x.type.rank != index.type.rank:
        raise ValueError(f"the index {index.type} must have the {x.type.rank} dimensions of {x.type}; reshape it")
    both = [list(t.type.shape) for t in (x, index)]
    for shape in both:
        shape[axis] = 1
    common = broadcast_shapes(*map(tuple, both))
    x, index = (
        e.broadcast(b, v, (*common[:axis], v.type.shape[axis], *common[axis + 1 :])) for v in (x, index)
    )
    return x, index


def _emit_take_along(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    x, index = _along(b, values, attrs[0])
    result: Value = b.emit("take_along", x, index, axis=attrs[0])
    return result


def _emit_put_along(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    name, axis = attrs
    x, index = _along(b, values, axis)
    updates = e.broadcast(b, e.cast(b, values[2], x.type.dtype), index.type.shape)
    result: Value = b.emit(name, x, index, updates, axis=axis)
    return result


def _emit_index_add(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    x, index, updates = values
    axis = attrs[0]
    shape = (*x.type.shape[:axis], *index.type.shape, *x.type.shape[axis + 1 :])
    updates = e.broadcast(b, e.cast(b, updates, x.type.dtype), shape)
    result: Value = b.emit("scatter_add", x, index, updates, axis=axis)
    return result


_GATHER = Op("index", _emit_gather)
_TAKE = Op("take", _emit_take)
_TAKE_ALONG = Op("take_along_axis", _emit_take_along)
_PUT_ALONG = {name: Op(f"{name}_axis", _emit_put_along) for name in ("put_along", "put_along_add")}
_INDEX_ADD = Op("index_add", _emit_index_add)


def take(x: Tensor, indices: Any, /, axis: int | None = None) -> Tensor:
    """The slices of `x` at `indices` along `axis` (None: of the flattened tensor).

    Raises `IndexError` when it runs if an index is out of range.
    """
    from graphc.runtime.interop import asarray

    index = indices if isinstance(indices, Tensor) else asarray(indices, device=x._spec.device)
    if axis is None:
        x, axis = apply(RESHAPE, (x,), ((-1,),)), 0
    return apply(_TAKE, (x, index), (e.normal_axis(axis, len(x._spec.shape)),))


def take_along_axis(x: Tensor, indices: Tensor, /, axis: int = -1) -> Tensor:
    """Elements picked along `axis` separately in each line: `indices` has the rank of `x`."""
    return apply(_TAKE_ALONG, (x, operand_of(indices, "take_along_axis")), (e.normal_axis(axis, len(x._spec.shape)),))


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """PyTorch's `gather`: as `take_along_axis`, where `index` may be smaller than `x` in other dimensions."""
    axis = e.normal_axis(dim, len(x._spec.shape))
    shape = index._spec.shape
    if len(shape) == len(x._spec.shape) and any(n != d for i, (n, d) in enumerate(zip(shape, x._spec.shape)) if i != axis):
        x = getitem(x, tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(shape)))
    return apply(_TAKE_ALONG, (x, index), (axis,))


def put_along_axis(x: Tensor, indices: Tensor, values: Any, /, axis: int = -1, *, add: bool = False) -> Tensor:
    """A copy of `x` with `values` written at `indices` along `axis`; the last of equal indices stays, or all add up."""
    name = "put_along_add" if add else "put_along"
    inputs = (x, operand_of(indices, "put_along_axis"), operand_of(values, "put_along_axis"))
    return apply(_PUT_ALONG[name], inputs, (name, e.normal_axis(axis, len(x._spec.shape))))


def index_add(x: Tensor, dim: int, index: Tensor, source: Any) -> Tensor:
    """A copy of `x` with the slices of `source` added at `index` along `dim`, in ascending order."""
    axis = e.normal_axis(dim, len(x._spec.shape))
    return apply(_INDEX_ADD, (x, index, operand_of(source, "index_add")), (axis,))


# Writing


def _fitted(b: Builder, value: Value, dtype: DType, shape: Shape) -> Value:
    """A value to be written, in the element type and shape of what it replaces; leading ones are dropped."""
    update = e.cast(b, value, dtype)
    while update.type.rank > len(shape) and update.type.shape[0] == 1:
        update = e.reshape(b, update, update.type.shape[1:])
    extra = len(shape) - update.type.rank
    if extra < 0 or any(d not in (1, n) for d, n in zip(update.type.shape, shape[extra:])):
        raise ValueError(
            f"a value {value.type} cannot be broadcast to the selected shape {list(shape)}; reshape it, or select another part"
        )
    return e.broadcast(b, update, shape)


def _emit_set_slice(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    ranges, shape = attrs
    x = values[0]
    lengths = tuple(length for _, length, _ in ranges)
    update = e.reshape(b, _fitted(b, values[1], x.type.dtype, shape), lengths)
    flipped = tuple(i for i, (_, n, step) in enumerate(ranges) if step < 0 and n != 1)
    if flipped:
        update = b.emit("flip", update, axes=flipped)
    if lengths == x.type.shape:
        return update
    if any(isinstance(n, int) and n == 0 for n in lengths):
        return x
    low = tuple(s if k > 0 else s + (n - 1) * k for s, n, k in ranges)
    gaps = tuple(abs(k) - 1 for _, _, k in ranges)
    high = tuple(d - lo - ((n - 1) * (g + 1) + 1) for d, lo, n, g in zip(x.type.shape, low, lengths, gaps))
    amounts = {"low": low, "high": high, "interior": gaps}
    inside = b.emit("pad", e.filled(b, True, BOOL, lengths), e.constant(b, False, BOOL), **amounts)
    spread = b.emit("pad", update, e.constant(b, 0, x.type.dtype), **amounts)
    result: Value = b.emit("select", inside, spread, x)
    return result


def _emit_put(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    dims, adjacent = attrs
    target, *indices, update = values
    x, order, axis, index = _linear(b, target, indices, dims, adjacent)
    shape = (*x.type.shape[:axis], *index.type.shape, *x.type.shape[axis + 1 :])
    x = b.emit("scatter", x, index, _fitted(b, update, x.type.dtype, shape), axis=axis)
    turned = tuple(target.type.shape[a] for a in order)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return e.permute(b, e.reshape(b, x, turned), back)


_SET_SLICE = Op("set_slice", _emit_set_slice)
_PUT = Op("index_put", _emit_put)


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """`x[index] = value`: gives `x` a new value. The last of several writes to one element stays."""
    if origin(x) is PART:
        raise TypeError(
            "assignment to a part of x[...], a tensor of its own, would not change x; write one index, as in x[i, j] = value, "
            f"and x[...].clone() to change a copy\n  at {here()}"
        )
    refresh(x, "assignment")
    update = operand_of(value if not isinstance(value, (list, tuple)) else _listed(value), "assignment")
    if update._spec.device is not x._spec.device and (update._spec.shape or x._spec.device is CPU):
        from graphc.runtime.transfer import to_device

        update = to_device(update, x._spec.device)
    if isinstance(index, Tensor) and index._spec.dtype is BOOL and len(update._spec.shape) <= _rest(x, index):
        mask = _plain(_checked_mask(index, x._spec.shape, 0), x._spec.device)
        wide = apply(RESHAPE, (mask,), ((*mask._spec.shape, *(1,) * _rest(x, index)),))
        new = where(wide, _as_type(update, x), x)
    else:
        p = parse(x, index)
        if p.advanced:
            part = _basic(x, p)
            update = apply(
                _PUT, (part, *(t for _, t in p.advanced), update), (tuple(d for d, _ in p.advanced), p.adjacent)
            )
        new = apply(_SET_SLICE, (x, update), (p.ranges, p.shape))
    rebind(x, new, "assignment")


def _as_type(update: Tensor, x: Tensor) -> Tensor:
    from graphc.runtime.ops_elementwise import astype

    return update if update._spec.dtype is x._spec.dtype else astype(update, x._spec.dtype)


def _rest(x: Tensor, mask: Tensor) -> int:
    return len(x._spec.shape) - len(mask._spec.shape)


def _listed(value: Any) -> Tensor:
    from graphc.runtime.interop import asarray

    return asarray(value)

