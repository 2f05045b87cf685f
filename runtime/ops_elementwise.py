"""Elementwise functions of tensors: one row of a table for each.

Names, promotion and broadcasting follow the Python array API standard 2024.12; integer operands of a
floating point function become float32, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL, F64, DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor, alias
from graphc.runtime.dispatch import Emit, Op, apply, operand_of
from graphc.runtime.spec import DEFAULT_FLOAT, broadcast_shapes, default_float, promote_all

# public name -> (IR operation, rule). The rule says in which element type the operation computes:
# "same": the promoted one; "float": that, or float32 for integers; "bool": that, with a bool result.
UNARY: dict[str, tuple[str, str]] = {
    "abs": ("abs", "same"),
    "negative": ("neg", "same"),
    "positive": ("", "same"),
    "sign": ("sign", "same"),
    "square": ("square", "same"),
    "floor": ("floor", "same"),
    "ceil": ("ceil", "same"),
    "trunc": ("trunc", "same"),
    "round": ("round", "same"),
    "bitwise_invert": ("not", "same"),
    "sqrt": ("sqrt", "float"),
    "reciprocal": ("reciprocal", "float"),
    "exp": ("exp", "float"),
    "exp2": ("exp2", "float"),
    "expm1": ("expm1", "float"),
    "log": ("log", "float"),
    "log2": ("log2", "float"),
    "log10": ("log10", "float"),
    "log1p": ("log1p", "float"),
    "sin": ("sin", "float"),
    "cos": ("cos", "float"),
    "tan": ("tan", "float"),
    "asin": ("asin", "float"),
    "acos": ("acos", "float"),
    "atan": ("atan", "float"),
    "sinh": ("sinh", "float"),
    "cosh": ("cosh", "float"),
    "tanh": ("tanh", "float"),
    "asinh": ("asinh", "float"),
    "acosh": ("acosh", "float"),
    "atanh": ("atanh", "float"),
    "erf": ("erf", "float"),
    "isnan": ("isnan", "float"),
    "isinf": ("isinf", "float"),
    "isfinite": ("isfinite", "float"),
    "signbit": ("signbit", "float"),
    "stop_gradient": ("stop_gradient", "same"),
}
BINARY: dict[str, tuple[str, str]] = {
    "add": ("add", "same"),
    "subtract": ("sub", "same"),
    "multiply": ("mul", "same"),
    "divide": ("div", "float"),
    "floor_divide": ("floor_divide", "same"),
    "remainder": ("remainder", "same"),
    "pow": ("pow", "same"),
    "maximum": ("maximum", "same"),
    "minimum": ("minimum", "same"),
    "atan2": ("atan2", "float"),
    "hypot": ("hypot", "float"),
    "copysign": ("copysign", "float"),
    "nextafter": ("nextafter", "float"),
    "logaddexp": ("logaddexp", "float"),
    "bitwise_and": ("and", "same"),
    "bitwise_or": ("or", "same"),
    "bitwise_xor": ("xor", "same"),
    "bitwise_left_shift": ("shift_left", "same"),
    "bitwise_right_shift": ("shift_right", "same"),
    "logical_and": ("and", "bool"),
    "logical_or": ("or", "bool"),
    "logical_xor": ("xor", "bool"),
    "equal": ("eq", "same"),
    "not_equal": ("ne", "same"),
    "less": ("lt", "same"),
    "less_equal": ("le", "same"),
    "greater": ("gt", "same"),
    "greater_equal": ("ge", "same"),
}
# Comparisons of bool operands, for which the IR has no order, in terms of logic.
_ORDER = {"lt", "le", "gt", "ge"}


def _computed_in(values: Sequence[Value], weak: Sequence[bool], rule: str) -> DType:
    common = promote_all([v.type.dtype for v in values], list(weak))
    if rule == "float":
        return common if all(weak) and common.is_float else default_float(common)
    return BOOL if rule == "bool" else common


def _emit(ir_name: str, rule: str) -> Emit:
    def emit(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Any:
        dtype = _computed_in(values, weak, rule)
        if ir_name == "div" and all(weak):
            # Python's division of two integers.
            dtype = F64
        if dtype is BOOL and ir_name in _ORDER:
            dtype = as_dtype("uint8")
        operands = e.matched(b, values, weak, dtype)
        return b.emit(ir_name, *operands) if ir_name else operands[0]

    return emit


OPS: dict[str, Op] = {
    name: Op(name, _emit(ir_name, rule), weak=True) for name, (ir_name, rule) in {**UNARY, **BINARY}.items()
}


def settled(t: Tensor) -> Tensor:
    """What a function gives for Python numbers only: a tensor, float32 if it is a float."""
    dtype = t._spec.dtype
    return apply(_ASTYPE, (t,), (DEFAULT_FLOAT if dtype is F64 else dtype,))


def _unary(name: str) -> Callable[[Any], Tensor]:
    op = OPS[name]

    def f(x: Any, /) -> Tensor:
        t = apply(op, (x if x.__class__ is Tensor else operand_of(x, name),))
        return settled(t) if t._spec.weak else t

    return _named(f, name)


def _binary(name: str) -> Callable[[Any, Any], Tensor]:
    op = OPS[name]

    def f(x1: Any, x2: Any, /) -> Tensor:
        t = apply(op, (operand_of(x1, name), operand_of(x2, name)))
        return settled(t) if t._spec.weak else t

    return _named(f, name)


def _named(f: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    f.__name__ = f.__qualname__ = name
    row = UNARY.get(name) or BINARY[name]
    f.__doc__ = f"Elementwise `{row[0] or name}`; see docs/ir.md for its exact meaning."
    return f


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _unary(name) for name in UNARY},
    **{name: _binary(name) for name in BINARY},
}


def stop_gradient(x: Any, /) -> Tensor:
    """The same value, which counts as a constant in derivatives."""
    t = apply(OPS["stop_gradient"], (operand_of(x, "stop_gradient"),))
    t._meta = None
    return t


FUNCTIONS["stop_gradient"] = stop_gradient


def _emit_not(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Value:
    result: Value = b.emit("not", e.truth(b, values[0]))
    return result


def _emit_where(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Value:
    dtype = promote_all([v.type.dtype for v in values[1:]], list(weak[1:]))
    if all(weak[1:]) and not weak[0] and dtype.is_float:
        # Python numbers chosen by a tensor are a tensor, as `asarray` makes it of them.
        dtype = DEFAULT_FLOAT
    shape = broadcast_shapes(*(v.type.shape for v in values))
    condition = e.broadcast(b, e.truth(b, values[0]), shape)
    yes, no = (e.broadcast(b, e.cast(b, v, dtype), shape) for v in values[1:])
    result: Value = b.emit("select", condition, yes, no)
    return result


def _emit_clip(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Value:
    low, high = attrs
    x, *bounds = e.matched(b, values, weak)
    # Comparisons rather than maximum and minimum: a bound that is met exactly keeps the gradient of x.
    if high:
        x = b.emit("select", b.emit("gt", x, bounds[-1]), bounds[-1], x)
    if low:
        x = b.emit("select", b.emit("lt", x, bounds[0]), bounds[0], x)
    return x


def _emit_astype(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Value:
    return e.cast(b, values[0], attrs[0])


def _emit_bitcast(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: tuple[Any, ...]) -> Value:
    result: Value = b.emit("bitcast", values[0], dtype=attrs[0])
    return result


_NOT = Op("logical_not", _emit_not)
_WHERE = Op("where", _emit_where, weak=True)
_CLIP = Op("clip", _emit_clip)
_ASTYPE = Op("astype", _emit_astype)
_BITCAST = Op("bitcast", _emit_bitcast)


def logical_not(x: Any, /) -> Tensor:
    """Whether each element is zero."""
    return apply(_NOT, (operand_of(x, "logical_not"),))


def where(condition: Any, x1: Any, x2: Any, /) -> Tensor:
    """Elements of `x1` where the condition holds, of `x2` elsewhere; all three broadcast.

    >>> import graphc as gc
    >>> gc.where(gc.tensor([True, False]), 1, gc.tensor([5, 6])).tolist()
    [1, 6]
    """
    t = apply(_WHERE, tuple(operand_of(v, "where") for v in (condition, x1, x2)))
    return settled(t) if t._spec.weak else t


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """`x` limited to [min, max]; None is no limit. At a limit the gradient is that of `x`."""
    bounds = [operand_of(v, "clip") for v in (min, max) if v is not None]
    return apply(_CLIP, (operand_of(x, "clip"), *bounds), (min is not None, max is not None))


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """`x` in another element type. Floats truncate and saturate to integers, integers wrap, NaN becomes 0."""
    target = as_dtype(dtype)
    if x._spec.dtype is target and not x._spec.weak:
        if not copy:
            return x
        return FUNCTIONS["positive"](x) if x._meta is not None else alias(x)
    return apply(_ASTYPE, (operand_of(x, "astype"),), (target,))


def bitcast(x: Tensor, dtype: Any, /) -> Tensor:
    """The bits of `x` read as another element type of the same width."""
    return apply(_BITCAST, (operand_of(x, "bitcast"),), (as_dtype(dtype),))
