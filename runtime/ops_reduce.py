"""Reductions: sum, prod, mean, var, std, max, min, any, all, argmax, argmin.

Array API signatures; `dim` and `keepdim` are accepted for `axis` and `keepdims`. The order in which
elements are combined is part of the bit contract (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL, I64, U64, DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor
from graphc.runtime.dispatch import Op, apply, operand_of

Attrs = tuple[Any, ...]


def _keep(b: Builder, result: Value, shape: Any, axes: tuple[int, ...], keepdims: bool) -> Value:
    return e.reshape(b, result, e.kept_shape(shape, axes)) if keepdims else result


def _accumulator(d: DType) -> DType:
    """The element type of a sum: integers widen to 64 bits (array API 2024.12, sum)."""
    if d.kind in "bi":
        return I64
    return U64 if d.kind == "u" else d


def _total(b: Builder, x: Value, name: str, axes: tuple[int, ...]) -> Value:
    return b.emit(name, x, axes=axes) if axes else x


def _emit_sum(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    name, axes, keepdims, dtype = attrs
    x = e.cast(b, values[0], dtype or _accumulator(values[0].type.dtype))
    return _keep(b, _total(b, x, name, axes), x.type.shape, axes, keepdims)


def _emit_extreme(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    name, axes, keepdims = attrs
    x = e.truth(b, values[0]) if name in ("any", "all") else values[0]
    if name in ("max", "min") and 0 in [x.type.shape[a] for a in axes]:
        raise ValueError(f"{name} of no elements has no value; the reduced dimensions of {x.type} include a 0")
    if x.type.dtype is BOOL:
        name = {"max": "any", "min": "all"}.get(name, name)
    return _keep(b, _total(b, x, name, axes), x.type.shape, axes, keepdims)


def _emit_mean(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    axes, keepdims, dtype = attrs
    x = e.cast(b, values[0], dtype) if dtype else values[0]
    _need_float("mean", x)
    return _keep(b, _mean(b, x, axes), x.type.shape, axes, keepdims)


def _mean(b: Builder, x: Value, axes: tuple[int, ...]) -> Value:
    total = _total(b, x, "sum", axes)
    count = e.dim_value(b, e.reduced_size(x.type.shape, axes), x.type.dtype)
    result: Value = b.emit("div", total, e.broadcast(b, count, total.type.shape))
    return result


def _emit_var(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    axes, correction, keepdims, root = attrs
    x = values[0]
    _need_float("std" if root else "var", x)
    shape = x.type.shape
    mean = e.reshape(b, _mean(b, x, axes), e.kept_shape(shape, axes))
    d = b.emit("sub", x, e.broadcast(b, mean, shape))
    total = _total(b, b.emit("mul", d, d), "sum", axes)
    count = e.dim_value(b, e.reduced_size(shape, axes), x.type.dtype)
    degrees = b.emit("sub", count, e.constant(b, correction, x.type.dtype))
    result = b.emit("div", total, e.broadcast(b, degrees, total.type.shape))
    return _keep(b, b.emit("sqrt", result) if root else result, shape, axes, keepdims)


def _need_float(name: str, x: Value) -> None:
    if not x.type.dtype.is_float:
        raise TypeError(f"{name} is defined for floating point elements, not {x.type.dtype}; use x.astype(graphc.float32)")


def _emit_arg(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    name, axis, keepdims = attrs
    x = values[0]
    if x.type.dtype is BOOL:
        x = e.cast(b, x, as_dtype("uint8"))
    shape = x.type.shape
    if axis is None:
        x = e.reshape(b, x, (x.type.size,))
    result = b.emit(name, x, axis=axis or 0)
    if keepdims:
        axes = range(len(shape)) if axis is None else (axis,)
        result = e.reshape(b, result, e.kept_shape(shape, tuple(axes)))
    return result


_SUM = Op("sum", _emit_sum)
_PROD = Op("prod", _emit_sum)
_EXTREME = {name: Op(name, _emit_extreme) for name in ("max", "min", "any", "all")}
_MEAN = Op("mean", _emit_mean)
_VAR = {False: Op("var", _emit_var), True: Op("std", _emit_var)}
_ARG = {name: Op(name, _emit_arg) for name in ("argmax", "argmin")}


def _axes(x: Tensor, axis: Any, dim: Any) -> tuple[int, ...]:
    return e.normal_axes(axis if dim is None else dim, len(x._spec.shape))


def sum(
    x: Any, /, axis: Any = None, keepdims: bool = False, *, dtype: Any = None, dim: Any = None, keepdim: bool = False
) -> Tensor:
    """The sum over `axis` (an integer, several, or None for all). bool and integers are summed in 64 bits.

    >>> import graphc as gc
    >>> gc.sum(gc.ones((2, 3)), axis=0).tolist()
    [2.0, 2.0, 2.0]
    """
    t = operand_of(x, "sum")
    axes = _axes(t, axis, dim)
    return apply(_SUM, (t,), ("sum", axes, bool(keepdims or keepdim), None if dtype is None else as_dtype(dtype)))


def prod(
    x: Any, /, axis: Any = None, keepdims: bool = False, *, dtype: Any = None, dim: Any = None, keepdim: bool = False
) -> Tensor:
    """The product over `axis`. bool and integers are multiplied in 64 bits."""
    t = operand_of(x, "prod")
    axes = _axes(t, axis, dim)
    return apply(_PROD, (t,), ("prod", axes, bool(keepdims or keepdim), None if dtype is None else as_dtype(dtype)))


def mean(
    x: Any, /, axis: Any = None, keepdims: bool = False, *, dtype: Any = None, dim: Any = None, keepdim: bool = False
) -> Tensor:
    """The mean over `axis`: the sum divided by the count. Raises `TypeError` for integers."""
    t = operand_of(x, "mean")
    return apply(
        _MEAN, (t,), (_axes(t, axis, dim), bool(keepdims or keepdim), None if dtype is None else as_dtype(dtype))
    )


def var(
    x: Any, /, axis: Any = None, correction: float = 0.0, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False,
    unbiased: bool | None = None,
) -> Tensor:  # fmt: skip
    """The variance over `axis`, divided by the count less `correction` (array API: 0 by default).

    PyTorch's `unbiased=True` is `correction=1`.
    """
    t = operand_of(x, "var")
    less = float(correction if unbiased is None else unbiased)
    return apply(_VAR[False], (t,), (_axes(t, axis, dim), less, bool(keepdims or keepdim), False))


def std(
    x: Any, /, axis: Any = None, correction: float = 0.0, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False,
    unbiased: bool | None = None,
) -> Tensor:  # fmt: skip
    """The square root of the variance."""
    t = operand_of(x, "std")
    less = float(correction if unbiased is None else unbiased)
    return apply(_VAR[True], (t,), (_axes(t, axis, dim), less, bool(keepdims or keepdim), True))


def _extreme(name: str, x: Any, axis: Any, keepdims: bool) -> Tensor:
    t = operand_of(x, name)
    return apply(_EXTREME[name], (t,), (name, e.normal_axes(axis, len(t._spec.shape)), bool(keepdims)))


def max(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The greatest element over `axis`; NaN if there is one. Raises `ValueError` for no elements."""
    return _extreme("max", x, axis if dim is None else dim, keepdims or keepdim)


def min(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The least element over `axis`; NaN if there is one. Raises `ValueError` for no elements."""
    return _extreme("min", x, axis if dim is None else dim, keepdims or keepdim)


def any(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether any element over `axis` is not zero."""
    return _extreme("any", x, axis if dim is None else dim, keepdims or keepdim)


def all(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether all elements over `axis` are not zero."""
    return _extreme("all", x, axis if dim is None else dim, keepdims or keepdim)


def _arg(name: str, x: Any, axis: Any, keepdims: bool) -> Tensor:
    t = operand_of(x, name)
    at = None if axis is None else e.normal_axis(axis, len(t._spec.shape))
    return apply(_ARG[name], (t,), (name, at, bool(keepdims)))


def argmax(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The index (int64) of the greatest element along `axis`, or of the flattened tensor; the first of equals."""
    return _arg("argmax", x, axis if dim is None else dim, keepdims or keepdim)


def argmin(x: Any, /, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The index (int64) of the least element along `axis`, or of the flattened tensor; the first of equals."""
    return _arg("argmin", x, axis if dim is None else dim, keepdims or keepdim)
