"""Scans: cumulative sums and products, in ascending order along one axis (IR operation linear_scan)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor
from graphc.runtime.dispatch import Op, apply, operand_of
from graphc.runtime.ops_reduce import _accumulator

Attrs = tuple[Any, ...]


def _emit_scan(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    product, axis, initial, dtype = attrs
    x = e.cast(b, values[0], dtype or _accumulator(values[0].type.dtype))
    shape = x.type.shape
    if product:
        # h[i] = x[i] * h[i-1] + b[i], where b is x[0] and then zeros.
        first = b.emit("eq", b.emit("iota", shape=shape, axis=axis, dtype=as_dtype("int64")), e.filled(b, 0, as_dtype("int64"), shape))
        operands = (x, b.emit("select", first, x, e.filled(b, -0.0 if x.type.dtype.is_float else 0, x.type.dtype, shape)))
    else:
        operands = (e.filled(b, 1, x.type.dtype, shape), x)
    result: Value = b.emit("linear_scan", *operands, axis=axis)
    if initial:
        start = e.filled(b, 1 if product else 0, x.type.dtype, (*shape[:axis], 1, *shape[axis + 1 :]))
        result = b.emit("concat", start, result, axis=axis)
    return result


_SCAN = {False: Op("cumulative_sum", _emit_scan), True: Op("cumulative_prod", _emit_scan)}


def _scan(product: bool, x: Any, axis: int | None, include_initial: bool, dtype: Any) -> Tensor:
    t = operand_of(x, "cumulative_prod" if product else "cumulative_sum")
    rank = len(t._spec.shape)
    if axis is None:
        if rank != 1:
            raise ValueError(f"a scan of a tensor {t._spec} needs an axis; only for one dimension it may be left out")
        axis = 0
    kind = None if dtype is None else as_dtype(dtype)
    return apply(_SCAN[product], (t,), (product, e.normal_axis(axis, rank), bool(include_initial), kind))


def cumulative_sum(
    x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False, dim: int | None = None
) -> Tensor:
    """Sums of the first 1, 2, ... elements along `axis`; with `include_initial`, also of none."""
    return _scan(False, x, axis if dim is None else dim, include_initial, dtype)


def cumulative_prod(
    x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False, dim: int | None = None
) -> Tensor:
    """Products of the first 1, 2, ... elements along `axis`; with `include_initial`, also of none."""
    return _scan(True, x, axis if dim is None else dim, include_initial, dtype)
