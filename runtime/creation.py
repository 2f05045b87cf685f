"""Tensors from nothing: zeros, ones, full, arange, linspace, eye, one_hot, meshgrid and the `*_like`.

Signatures follow the Python array API standard 2024.12, with `requires_grad` besides.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL, F64, I64, DimExpr, DType, Shape
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor, empty, set_requires_grad, view_of
from graphc.runtime.device import CPU, Device, resolve
from graphc.runtime.dispatch import Op, apply, operand_of
from graphc.runtime.grad_mode import local, state
from graphc.runtime.spec import DEFAULT_FLOAT, DEFAULT_INT, spec_of

Attrs = tuple[Any, ...]


def _emit_full(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    shape, dtype, *_ = attrs
    if values[0].type.rank:
        raise ValueError(f"the fill value must be a number or a rank-0 tensor, not {values[0].type}; use broadcast_to")
    scalar = e.cast(b, values[0], dtype)
    result: Value = b.emit("full", scalar, shape=shape) if shape else scalar
    return result


def _emit_arange(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    shape, dtype, *_ = attrs
    # Integers in int64, floats in float64, rounded once to the element type.
    wide = F64 if any(v.type.dtype.is_float for v in values) else I64
    i = b.emit("iota", shape=shape, axis=0, dtype=wide)
    start, step = (e.broadcast(b, e.cast(b, v, wide), shape) for v in values)
    return e.cast(b, b.emit("add", b.emit("mul", i, step), start), dtype)


def _emit_positions(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    start, stop, dtype, *_ = attrs
    shape = (stop - start,)
    i = b.emit("iota", shape=shape, axis=0, dtype=I64)
    if start != 0:
        i = b.emit("add", i, e.broadcast(b, e.dim_value(b, start, I64), shape))
    return e.cast(b, i, dtype)


def _emit_linspace(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    shape, dtype, intervals, *_ = attrs
    start, stop = (e.cast(b, v, F64) for v in values)
    step = b.emit("div", b.emit("sub", stop, start), e.constant(b, max(intervals, 1), F64))
    i = b.emit("iota", shape=shape, axis=0, dtype=F64)
    steps = b.emit("mul", i, e.broadcast(b, step, shape))
    line = b.emit("add", steps, e.broadcast(b, start, shape))
    if intervals == 0:
        return e.cast(b, line, dtype)
    # The end is met exactly, whatever rounding did to the step.
    last = b.emit("eq", i, e.filled(b, intervals, F64, shape))
    return e.cast(b, b.emit("select", last, e.broadcast(b, stop, shape), line), dtype)


def _emit_eye(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    shape, dtype, k, *_ = attrs
    row = b.emit("iota", shape=shape, axis=0, dtype=I64)
    column = b.emit("iota", shape=shape, axis=1, dtype=I64)
    return e.cast(b, b.emit("eq", column, b.emit("add", row, e.filled(b, k, I64, shape))), dtype)


def _emit_one_hot(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    classes, dtype = attrs
    index = values[0]
    if not index.type.dtype.is_integer:
        raise TypeError(f"class numbers are integers, not {index.type}; cast them with astype(graphc.int64)")
    shape = (*index.type.shape, classes)
    wide = b.emit("broadcast", e.cast(b, index, I64), shape=shape, axes=tuple(range(index.type.rank)))
    return e.cast(b, b.emit("eq", wide, b.emit("iota", shape=shape, axis=index.type.rank, dtype=I64)), dtype)


_FULL = Op("full", _emit_full)
_ARANGE = Op("arange", _emit_arange)
_POSITIONS = Op("arange", _emit_positions)
_LINSPACE = Op("linspace", _emit_linspace)
_EYE = Op("eye", _emit_eye)
_ONE_HOT = Op("one_hot", _emit_one_hot)


def _there(device: Any) -> tuple[Any, ...]:
    """The attribute that says where an operation without tensors runs; none for the CPU."""
    place = resolve(device)
    return () if place is CPU else (place,)


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    if requires_grad:
        set_requires_grad(t, True)
    return t


def full(
    shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of `shape` with `fill_value` everywhere. The element type is float32, int64 or bool by default."""
    kind = _dtype_for(fill_value) if dtype is None else as_dtype(dtype)
    size = e.normal_shape(shape)
    place = fill_value._spec.device if device is None and isinstance(fill_value, Tensor) else resolve(device)
    return _finish(filled(size, fill_value, kind, place), requires_grad)


def filled(shape: Shape, value: Any, dtype: DType, device: Device = CPU) -> Tensor:
    """As `full`, with everything given."""
    if isinstance(value, Tensor) or (state.active and local.tracer is not None):
        return apply(_FULL, (operand_of(value, "full"),), (shape, dtype) if device is CPU else (shape, dtype, device))
    for d in shape:
        if not isinstance(d, int) or d < 0:
            raise ValueError(f"full: sizes are integers >= 0, not {d}; shape {list(shape)}")
    t = empty(spec_of(dtype, shape, False, device))
    if device is CPU:
        view_of(t, writable=True).fill(value)
        return t
    if t._spec.size and not device.context.fill(t._address, t._spec, value):
        return apply(_FULL, (operand_of(value, "full"),), (shape, dtype, device))
    return t


def _dtype_for(value: Any) -> DType:
    if isinstance(value, Tensor):
        return DEFAULT_FLOAT if value._spec.weak and value._spec.dtype is F64 else value._spec.dtype
    if isinstance(value, bool):
        return BOOL
    return DEFAULT_INT if isinstance(value, int) else DEFAULT_FLOAT


def zeros(*shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 by default. `zeros(2, 3)` and `zeros((2, 3))` are the same."""
    return _finish(filled(_shape_of(shape), 0, _float_or(dtype), resolve(device)), requires_grad)


def ones(*shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 by default. `ones(2, 3)` and `ones((2, 3))` are the same."""
    return _finish(filled(_shape_of(shape), 1, _float_or(dtype), resolve(device)), requires_grad)


def empty_tensor(*shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor to be overwritten. Its elements are zeros, so that no program depends on old memory."""
    return zeros(*shape, dtype=dtype, device=device, requires_grad=requires_grad)


def _shape_of(shape: tuple[Any, ...]) -> Shape:
    if len(shape) == 1 and not isinstance(shape[0], int):
        return e.normal_shape(shape[0])
    return e.normal_shape(shape)


def _float_or(dtype: Any) -> DType:
    return DEFAULT_FLOAT if dtype is None else as_dtype(dtype)


def full_like(
    x: Tensor, /, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """As `full`, with the shape and, by default, the element type and the device of `x`."""
    kind = x._spec.dtype if dtype is None else as_dtype(dtype)
    place = x._spec.device if device is None else resolve(device)
    return _finish(filled(x._spec.shape, fill_value, kind, place), requires_grad)


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros with the shape and, by default, the element type and the device of `x`."""
    return full_like(x, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones_like(x: Tensor, /, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones with the shape and, by default, the element type and the device of `x`."""
    return full_like(x, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def arange(
    start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """`start`, `start + step`, ... below `stop`; one argument is `stop`. int64, or float32 if one is a float.

    `start` and `stop` may be symbolic sizes where the step is 1.

    >>> import graphc as gc
    >>> gc.arange(2, 8, 2).tolist()
    [2, 4, 6]
    """
    from graphc.runtime.interop import item

    start, stop, step = (item(v) if isinstance(v, Tensor) else v for v in (start, stop, step))
    if stop is None:
        start, stop = 0, start
    if isinstance(start, DimExpr) or isinstance(stop, DimExpr):
        if not isinstance(step, int) or step != 1 or not all(isinstance(v, (int, DimExpr)) for v in (start, stop)):
            raise TypeError(
                f"arange: up to a symbolic size the start is an integer and the step is 1, not {start} and {step}; "
                "compute start + step * arange(size)"
            )
        kind = DEFAULT_INT if dtype is None else as_dtype(dtype)
        return _finish(apply(_POSITIONS, (), (start, stop, kind, *_there(device))), requires_grad)
    if step == 0:
        raise ValueError("arange: the step must not be 0")
    whole = all(isinstance(v, int) for v in (start, stop, step))
    count = max(0, -((start - stop) // step) if whole else math.ceil((stop - start) / step))
    kind = (DEFAULT_INT if whole else DEFAULT_FLOAT) if dtype is None else as_dtype(dtype)
    inputs = (operand_of(start, "arange"), operand_of(step, "arange"))
    return _finish(apply(_ARANGE, inputs, ((count,), kind, *_there(device))), requires_grad)


def linspace(
    start: Any, stop: Any, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: bool = True,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`num` numbers evenly spaced from `start` to `stop`, which is included if `endpoint`."""
    attrs = ((int(num),), _float_or(dtype), num - 1 if endpoint else num, *_there(device))
    inputs = (operand_of(float(start), "linspace"), operand_of(float(stop), "linspace"))
    return _finish(apply(_LINSPACE, inputs, attrs), requires_grad)


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """A matrix with ones on diagonal `k` and zeros elsewhere."""
    shape = (int(n_rows), int(n_rows if n_cols is None else n_cols))
    return _finish(apply(_EYE, (), (shape, _float_or(dtype), int(k), *_there(device))), requires_grad)


def one_hot(index: Tensor, num_classes: int, *, dtype: Any = None) -> Tensor:
    """1 at the class number of each element along a new last dimension, else 0; int64 by default.

    A number outside [0, num_classes) gives zeros only.
    """
    kind = DEFAULT_INT if dtype is None else as_dtype(dtype)
    return apply(_ONE_HOT, (operand_of(index, "one_hot"),), (operator.index(num_classes), kind))


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    """Coordinate tensors from coordinate vectors; "xy" exchanges the first two dimensions, "ij" does not."""
    from graphc.runtime.ops_layout import broadcast_to, reshape

    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing must be 'xy' or 'ij', not {indexing!r}")
    places = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        places[:2] = [1, 0]
    shape: list[Any] = [1] * len(arrays)
    for x, place in zip(arrays, places):
        shape[place] = x._spec.size
    out = []
    for x, place in zip(arrays, places):
        aligned = tuple(shape[i] if i == place else 1 for i in range(len(arrays)))
        out.append(broadcast_to(reshape(x, aligned), tuple(shape)))
    return out
