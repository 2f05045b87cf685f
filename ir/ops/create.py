"""Operations that make a tensor from no tensor or from a scalar: constant, full, iota.

`constant_scalar` and `filled` are how gradient rules write literals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs, Builder, DenseArray, Operation, Value
from graphc.ir.ops.rules import check_axis, check_count, check_dtype, check_shape, type_error
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import DType, TensorType, dtype


def constant_scalar(b: Builder, value: float | int | bool, dtype: DType) -> Value:
    """Emits the rank-0 constant `value` rounded to `dtype`."""
    result: Value = b.emit("constant", value=np.asarray(value).astype(dtype.numpy))
    return result


def filled(b: Builder, value: float | int | bool, type: TensorType) -> Value:
    """Emits a tensor of type `type` with every element `value`."""
    scalar = constant_scalar(b, value, type.dtype)
    result: Value = b.emit("full", scalar, shape=type.shape) if type.shape else scalar
    return result


def _infer_constant(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("constant", types, 0)
    value = attrs["value"]
    if not isinstance(value, DenseArray):
        raise type_error("constant", types, f"value must be an array, not {value!r}", "wrap it in numpy.asarray")
    return (TensorType(dtype(value.array.dtype), value.array.shape),)


def _infer_full(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("full", types, 1)
    if types[0].shape:
        raise type_error("full", types, "the operand must have rank 0", "use broadcast for a tensor")
    return (types[0].with_shape(check_shape("full", types, "shape", attrs["shape"])),)


def _eval_full(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    return [np.full(types[0].shape, args[0], dtype=types[0].dtype.numpy)]


def _vjp_full(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    return [b.emit("sum", g, axes=tuple(range(g.type.rank))) if g.type.rank else g]


def _infer_iota(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("iota", types, 0)
    element = check_dtype("iota", types, attrs["dtype"])
    if element.kind == "b":
        raise type_error("iota", types, "iota is defined for integer or floating point elements, not bool")
    shape = check_shape("iota", types, "shape", attrs["shape"])
    check_axis("iota", types, attrs["axis"], len(shape))
    return (TensorType(element, shape),)


def _eval_iota(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    from graphc.ir.ops.arithmetic import convert

    shape, axis = [int(d) for d in types[0].shape], attrs["axis"]
    line = convert(np.arange(shape[axis], dtype=np.int64), types[0].dtype)
    line = line.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return [np.broadcast_to(line, shape).copy()]


register(
    OpDef(
        name="constant",
        family="create",
        infer=_infer_constant,
        eval=lambda args, attrs, types: [attrs["value"].array],
        doc="The array `value`.",
        attrs={"value": REQUIRED},
        no_gradient="it has no operands",
        reads=(),
    )
)
register(
    OpDef(
        name="full",
        family="create",
        infer=_infer_full,
        eval=_eval_full,
        doc="A tensor of `shape` with every element the rank-0 operand (array API 2024.12, full).",
        vjp=_vjp_full,
        attrs={"shape": REQUIRED},
        reads=(),
    )
)
register(
    OpDef(
        name="iota",
        family="create",
        infer=_infer_iota,
        eval=_eval_iota,
        doc="Each element is its index along `axis`, cast from i64 to `dtype` (XLA, Iota).",
        attrs={"shape": REQUIRED, "axis": REQUIRED, "dtype": REQUIRED},
        no_gradient="it has no operands",
        reads=(),
    )
)
