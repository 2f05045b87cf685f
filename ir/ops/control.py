"""Calls, and identities that steer differentiation (`stop_gradient`) or check (`check_index`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs, Builder, Function, Operation, Value
from graphc.ir.ops.rules import check_count, check_kinds, same_types, type_error
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import DimExpr, TensorType


def _infer_call(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    function = attrs["function"]
    if not isinstance(function, Function):
        raise type_error("call", types, f"the attribute function must be an IR function, not {function!r}")
    if not isinstance(attrs["noinline"], bool):
        raise type_error("call", types, f"the attribute noinline must be true or false, not {attrs['noinline']!r}")
    if types != function.param_types:
        takes = ", ".join(map(str, function.param_types))
        rule = f"@{function.name} takes ({takes})"
        raise type_error("call", types, rule, "operands must have exactly these types, symbols included")
    return function.result_types


def _eval_call(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    from graphc.ir.interpret import interpret

    return interpret(attrs["function"], args)


def _vjp_call(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    from graphc.ir.autodiff import vjp_of_call

    return vjp_of_call(b, op, cotangents, [v.type.dtype.is_float for v in op.operands])


def _infer_check_index(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("check_index", types, 1)
    check_kinds("check_index", types, types[0].dtype, "iu")
    size = attrs["size"]
    if isinstance(size, bool) or not isinstance(size, (int, DimExpr)):
        raise type_error("check_index", types, f"size must be a dimension, not {size!r}")
    return (types[0],)


def _eval_check_index(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    index, size = args[0], int(attrs["size"])
    # Python integers compare exactly with every integer dtype.
    for extreme in (int(index.max()), int(index.min())) if index.size else ():
        if not -size <= extreme < size:
            raise IndexError(f"index {extreme} is out of range for a dimension of size {size}; it must be in [-{size}, {size})")
    return [np.asarray(index)]


register(
    OpDef(
        name="call",
        family="control",
        infer=_infer_call,
        eval=_eval_call,
        doc="The results of `function` applied to the operands; symbols of dimensions are the caller's. `noinline`: the function "
        "is compiled by itself, once for all its calls, and shares no kernel with what is around them.",
        vjp=_vjp_call,
        attrs={"function": REQUIRED, "noinline": False},
        reads=("operands",),
    )
)
register(
    OpDef(
        name="stop_gradient",
        family="control",
        infer=same_types("stop_gradient", 1, "biuf"),
        eval=lambda args, attrs, types: [args[0]],
        doc="x, with gradient zero (JAX, lax.stop_gradient).",
        vjp=lambda b, op, cotangents: [None],
        reads=(),
    )
)
register(
    OpDef(
        name="check_index",
        family="control",
        infer=_infer_check_index,
        eval=_eval_check_index,
        doc="The integer index itself; an IndexError at run time where it is outside [-size, size).",
        attrs={"size": REQUIRED},
        reads=(),
        no_gradient="its operand is an integer",
    )
)
