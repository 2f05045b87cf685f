"""How frontend operations write strict IR: promotion, broadcasting, numbers, axes.

The functions take a `Builder` and values and return values. IR operations want operands of one
element type and one shape; everything that makes them so is written out here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Builder, DenseArray, Value
from graphc.ir.types import BOOL, I64, Dim, DimExpr, DType, Shape, size_of
from graphc.runtime.errors import called, here
from graphc.runtime.spec import broadcast_shapes, promote_all


def constant(b: Builder, value: bool | int | float, dtype: DType) -> Value:
    """The rank-0 constant `value`, rounded to `dtype`."""
    result: Value = b.emit("constant", value=DenseArray(np.asarray(value).astype(dtype.numpy)))
    return result


def filled(b: Builder, value: bool | int | float, dtype: DType, shape: Shape) -> Value:
    """A tensor with `value` everywhere."""
    scalar = constant(b, value, dtype)
    return b.emit("full", scalar, shape=shape) if shape else scalar


def cast(b: Builder, v: Value, dtype: DType) -> Value:
    """`v` in element type `dtype`."""
    return v if v.type.dtype is dtype else b.emit("cast", v, dtype=dtype)


def broadcast(b: Builder, v: Value, shape: Shape) -> Value:
    """`v` broadcast to `shape`, dimensions aligned at the end."""
    if v.type.shape == shape:
        return v
    first = len(shape) - v.type.rank
    return b.emit("broadcast", v, shape=shape, axes=tuple(range(first, len(shape))))


def reshape(b: Builder, v: Value, shape: Shape) -> Value:
    """`v` in another shape of the same size."""
    return v if v.type.shape == shape else b.emit("reshape", v, shape=shape)


def permute(b: Builder, v: Value, axes: tuple[int, ...]) -> Value:
    """`v` with dimension i being dimension axes[i]."""
    return v if axes == tuple(range(len(axes))) else b.emit("permute", v, axes=axes)


def matched(b: Builder, values: Sequence[Value], weak: Sequence[bool], dtype: DType | None = None) -> list[Value]:
    """Operands in their common element type (or `dtype`) and common shape."""
    common = dtype or promote_all([v.type.dtype for v in values], list(weak))
    shape = broadcast_shapes(*(v.type.shape for v in values))
    return [broadcast(b, cast(b, v, common), shape) for v in values]


def truth(b: Builder, v: Value) -> Value:
    """`v` != 0 as bool."""
    return cast(b, v, BOOL)


def dim_value(b: Builder, dim: Dim, dtype: DType) -> Value:
    """The size of a dimension as a rank-0 value; for a symbolic one, counted at run time."""
    if not isinstance(dim, DimExpr):
        return constant(b, dim, dtype)
    ones = filled(b, 1, I64, (dim,))
    return cast(b, b.emit("sum", ones, axes=(0,)), dtype)


def kept_shape(shape: Shape, axes: Sequence[int]) -> Shape:
    """`shape` with 1 in place of the dimensions `axes`."""
    return tuple(1 if i in axes else d for i, d in enumerate(shape))


def reduced_size(shape: Shape, axes: Sequence[int]) -> Dim:
    """The number of elements that a reduction over `axes` combines."""
    return size_of(shape[i] for i in axes)


def normal_axis(axis: Any, rank: int) -> int:
    """A non-negative axis. Raises `IndexError` if it is out of range and `TypeError` if it is no integer."""
    try:
        a = operator.index(axis)
    except TypeError:
        raise TypeError(f"an axis is an integer, not {axis!r}") from None
    if not -rank <= a < rank:
        if rank == 0:
            raise IndexError(_told(f"axis {a} is out of range: a rank-0 tensor has no axes"))
        raise IndexError(_told(f"axis {a} is out of range for rank {rank}; it must be in [{-rank}, {rank - 1}]"))
    return a % rank if rank else a


def normal_axes(axis: Any, rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes; None means all of them. Raises `ValueError` for an axis named twice."""
    if axis is None:
        return tuple(range(rank))
    if not isinstance(axis, (tuple, list)):
        return (normal_axis(axis, rank),)
    axes = sorted(normal_axis(a, rank) for a in axis)
    if len(set(axes)) != len(axes):
        raise ValueError(_told(f"axes {tuple(axis)} name an axis twice"))
    return tuple(axes)


def _told(rule: str) -> str:
    operation = called()
    return f"{operation}: {rule}\n  at {here()}" if operation else f"{rule}\n  at {here()}"


def normal_shape(shape: Any) -> Shape:
    """A shape from an integer, a symbolic dimension or a sequence of them."""
    if isinstance(shape, (int, np.integer, DimExpr)):
        shape = (shape,)
    if not isinstance(shape, Iterable):
        raise TypeError(f"a shape consists of integers, not {shape!r}")
    return tuple(d if isinstance(d, DimExpr) else _size(d) for d in shape)


def _size(d: Any) -> int:
    try:
        return operator.index(d)
    except TypeError:
        raise TypeError(f"a shape consists of integers, not {d!r}") from None


def wildcard(shape: Shape, size: Dim) -> Shape:
    """`shape` with its -1 replaced so that it has `size` elements. Raises `ValueError` if it cannot fit."""
    unknown = [i for i, d in enumerate(shape) if not isinstance(d, DimExpr) and d == -1]
    if not unknown:
        return shape
    if len(unknown) > 1:
        raise ValueError(f"the shape {list(shape)} has more than one -1; only one size can be inferred")
    rest = size_of(d for i, d in enumerate(shape) if i != unknown[0])
    if isinstance(rest, int) and rest == 0:
        raise ValueError(f"the shape {list(shape)} has a 0, so its -1 could be anything; write the size")
    fits = size // rest
    if fits * rest != size:
        raise ValueError(f"the shape {list(shape)} does not fit {size} elements; they are not divisible by {rest}")
    return tuple(fits if i == unknown[0] else d for i, d in enumerate(shape))
