"""Convolution and pooling over windows, and the index check: the IR operations as tensor functions.

`graphc.nn.functional` has the forms with the options of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import Dim
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor
from graphc.runtime.dispatch import Op, apply, apply_many, operand_of
from graphc.runtime.precision import attribute, setting
from graphc.runtime.spec import promote_all

Attrs = tuple[Any, ...]


def _emit_conv(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    dtype = promote_all([v.type.dtype for v in values], list(weak))
    names = ("strides", "padding", "lhs_dilation", "rhs_dilation", "groups")
    said = {**dict(zip(names, attrs)), **attribute(attrs[len(names) :], dtype)}
    result: Value = b.emit("conv", *(e.cast(b, v, dtype) for v in values), **said)
    return result


def _emit_pool(name: str) -> Any:
    def emit(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
        return b.emit(name, values[0], **dict(zip(("window", "strides", "padding", "dilation"), attrs)))

    return emit


def _emit_check_index(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    result: Value = b.emit("check_index", values[0], size=attrs[0])
    return result


_CONV = Op("conv", _emit_conv)
_MAX_POOL = Op("max_pool", _emit_pool("max_pool"))
_SUM_POOL = Op("sum_pool", _emit_pool("sum_pool"))
_CHECK_INDEX = Op("check_index", _emit_check_index)


def _ints(value: Any) -> tuple[Any, ...]:
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[Any, Any], ...]:
    return tuple((low, high) for low, high in value)


def conv(
    x: Tensor,
    w: Tensor,
    *,
    strides: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x[N, C, spatial...] with w[O, C/groups, spatial...] -> [N, O, spatial...].

    padding: (before, after) for each spatial dimension, negative ones crop.
    """
    a, k = operand_of(x, "conv"), operand_of(w, "conv")
    n = len(a._spec.shape) - 2
    one, none = (1,) * n, ((0, 0),) * n
    attrs = (
        _ints(strides or one),
        none if padding is None else _pairs(padding),
        _ints(lhs_dilation or one),
        _ints(rhs_dilation or one),
        groups,
        *setting.attrs,
    )
    return apply(_CONV, (a, k), attrs)


def _window(x: Tensor, window: Any, strides: Any, padding: Any, dilation: Any) -> Attrs:
    n = len(window)
    return (
        _ints(window),
        _ints(strides or window),
        ((0, 0),) * n if padding is None else _pairs(padding),
        _ints(dilation or (1,) * n),
    )


def max_pool(
    x: Tensor, *, window: Sequence[int], strides: Any = None, padding: Any = None, dilation: Any = None
) -> Tensor:
    """The greatest element of each window of x[N, C, spatial...]; strides are the window by default."""
    return apply_many(_MAX_POOL, (operand_of(x, "max_pool"),), _window(x, window, strides, padding, dilation))[0]


def sum_pool(
    x: Tensor, *, window: Sequence[int], strides: Any = None, padding: Any = None, dilation: Any = None
) -> Tensor:
    """The sum of each window of x[N, C, spatial...]; strides are the window by default."""
    return apply(_SUM_POOL, (operand_of(x, "sum_pool"),), _window(x, window, strides, padding, dilation))


def check_index(index: Tensor, size: Dim, /) -> Tensor:
    """The integers themselves; `IndexError` when it runs if one is outside [-size, size)."""
    return apply(_CHECK_INDEX, (operand_of(index, "check_index"),), (size,))
