"""Small pieces of which the functions are made: polynomials, signs, exponents of floats."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.expr import Expr, absolute, binary, bitcast, const, fma, not_equal, select, to_bits
from graphc.codegen.math.coefficients import COEFFICIENTS
from graphc.ir.types import F32, F64, I32, I64, DType


@dataclass(frozen=True)
class Format:
    """An IEEE-754 binary format. `magic` + x rounds x to an integer, left in the low bits."""

    dtype: DType
    integer: DType
    digits: int  # stored bits of the significand
    bias: int
    suffix: str  # of the names of coefficients

    @property
    def magic(self) -> float:
        return 1.5 * 2.0**self.digits

    @property
    def least_normal(self) -> float:
        return 2.0 ** (1 - self.bias)


_FORMATS = {F32: Format(F32, I32, 23, 127, "32"), F64: Format(F64, I64, 52, 1023, "64")}


def format_of(x: Expr) -> Format:
    return _FORMATS[x.dtype]


def horner(name: str, t: Expr) -> Expr:
    """The polynomial `name` of `coefficients.py` at t, by fused multiply-adds."""
    *rest, top = COEFFICIENTS[name]
    value = const(t.dtype, top)
    for c in reversed(rest):
        value = fma(value, t, c)
    return value


def clamp(x: Expr, low: float | None, high: float | None) -> Expr:
    """x inside [low, high]; a NaN stays."""
    if high is not None:
        x = select(x > high, const(x.dtype, high), x)
    return x if low is None else select(x < low, const(x.dtype, low), x)


def sign_bit(x: Expr) -> Expr:
    """The bit pattern of x with all but its sign cleared (unsigned)."""
    bits = to_bits(x)
    return binary("and", bits, const(bits.dtype, 1 << (bits.dtype.bits - 1)))


def flip_sign(x: Expr, sign: Expr) -> Expr:
    """x negated where the pattern `sign` (see `sign_bit`) is set."""
    return bitcast(binary("xor", to_bits(x), sign), x.dtype)


def copy_sign(magnitude: Expr, x: Expr) -> Expr:
    """`magnitude`, which must not be negative, with the sign of x."""
    return bitcast(binary("or", to_bits(magnitude), sign_bit(x)), magnitude.dtype)


def power_of_two(n: Expr, dtype: DType) -> Expr:
    """2**n for a signed integer n in the range of normal exponents."""
    f = _FORMATS[dtype]
    return bitcast(binary("shl", n + f.bias, const(n.dtype, f.digits)), dtype)


def is_nan(x: Expr) -> Expr:
    return not_equal(x, x)


def finite(x: Expr) -> Expr:
    return absolute(x) < float("inf")


def either(a: Expr, b: Expr) -> Expr:
    return binary("or", a, b)


def both(a: Expr, b: Expr) -> Expr:
    return binary("and", a, b)


def nan(dtype: DType) -> Expr:
    return const(dtype, float("nan"))
