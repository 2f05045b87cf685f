"""Simplification rules of conversions, rounding to integers, and division by powers of two."""

from __future__ import annotations

import math

from graphc.ir.function import Operation, Value
from graphc.ir.passes.equation import Rule
from graphc.ir.passes.rewrite import Rewriter, scalar
from graphc.ir.types import DType

# Bits of the significand (IEEE 754-2019, table 3.5; bfloat16 is binary32 cut to 16 bits) and of the exponent.
_SIGNIFICAND = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_EXPONENT = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}

_ROUNDINGS = ("floor", "ceil", "trunc", "round")


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`, so that the cast loses nothing."""
    if narrow.kind == "b" or wide == narrow:
        return True
    if wide.kind == "b":
        return False
    if wide.is_float and narrow.is_float:
        return (
            _SIGNIFICAND[wide.name] >= _SIGNIFICAND[narrow.name]
            and _EXPONENT[wide.name] >= _EXPONENT[narrow.name]
        )
    if wide.is_float:
        digits = narrow.bits - (narrow.kind == "i")
        # The greatest exponent must reach too: 2**16 is above all float16.
        return _SIGNIFICAND[wide.name] >= digits and 2 ** (_EXPONENT[wide.name] - 1) > narrow.bits
    if narrow.is_float:
        return False
    if narrow.kind == wide.kind:
        return wide.bits >= narrow.bits
    return narrow.kind == "u" and wide.bits > narrow.bits


def _cast_same(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    return x if x.type.dtype == op.attrs["dtype"] else None


def _cast_cast(b: Rewriter, op: Operation) -> Value | None:
    inner = b.definition(op.operands[0])
    if inner is None or inner.name != "cast":
        return None
    (x,) = inner.operands
    source, between, target = x.type.dtype, inner.attrs["dtype"], op.attrs["dtype"]
    if not holds(between, source):
        return None
    # Integers wrap when cast to integers, floats saturate.
    changes_kind = source.is_integer and between.is_float and target.is_integer
    if changes_kind and not holds(target, source):
        return None
    result: Value = b.emit("cast", x, dtype=target)
    return result


def _bitcast_same(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    return x if x.type.dtype == op.attrs["dtype"] else None


def _bitcast_bitcast(b: Rewriter, op: Operation) -> Value | None:
    inner = b.definition(op.operands[0])
    if inner is None or inner.name != "bitcast":
        return None
    result: Value = b.emit("bitcast", inner.operands[0], dtype=op.attrs["dtype"])
    return result


def _round_integral(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    inner = b.definition(x)
    if inner is None:
        return None
    from_integer = inner.name == "cast" and not inner.operands[0].type.dtype.is_float
    return x if inner.name in _ROUNDINGS or from_integer else None


def _div_power_of_two(b: Rewriter, op: Operation) -> Value | None:
    x, divisor = op.operands
    held = b.uniform(divisor)
    if held is None:
        return None
    value = float(held.array)
    if not math.isfinite(value) or abs(math.frexp(value)[0]) != 0.5:
        return None
    inverse = 1.0 / value if abs(value) >= 2.0**-1022 else math.inf
    factor = scalar(inverse, x.type)
    if float(factor.array) != inverse or math.isinf(inverse):
        return None
    result: Value = b.emit("mul", x, b.constant(factor, x.type))
    return result


CAST_RULES = (
    Rule("cast_same", "cast(x, dtype of x) = x", ("cast",), _cast_same),
    Rule("cast_cast", "cast(cast(x, d), e) = cast(x, e), d holding all values of x", ("cast",), _cast_cast),
    Rule("bitcast_same", "bitcast(x, dtype of x) = x", ("bitcast",), _bitcast_same),
    Rule("bitcast_bitcast", "bitcast(bitcast(x, d), e) = bitcast(x, e)", ("bitcast",), _bitcast_bitcast),
    Rule(
        "round_integral", "floor(x) = x, x being rounded or cast from an integer", _ROUNDINGS, _round_integral
    ),
    # Both sides round the same real number once.
    Rule(
        "div_power_of_two",
        "x / 2**k = x * 2**-k, 2**-k being a finite number of the dtype",
        ("div",),
        _div_power_of_two,
    ),
)
