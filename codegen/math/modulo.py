"""Floating-point remainder and floor division, exact, as branch-free expressions.

The remainder of |x| by |y| is an integer problem: with x = X*2^i and y = Y*2^j it is
(X * 2^(i-j) mod Y) * 2^j, and 2^(i-j) mod Y comes from square-and-multiply, so that a quotient of
any size costs the same. Float32 does this in float64 arithmetic, float64 in 64-bit integers.

Sign and specials are those of Python's `%` and `//` (and NumPy's `remainder`, `floor_divide`).
"""

from __future__ import annotations

from graphc.codegen.expr import (
    Expr,
    absolute,
    binary,
    bitcast,
    cast,
    const,
    equal,
    floor,
    fma,
    not_equal,
    select,
    to_bits,
    trunc,
)
from graphc.ir.types import F32, F64, I64


def remainder(x: Expr, y: Expr) -> Expr:
    """x - floor(x/y)*y, exact before one final addition; the sign is that of y."""
    return _adjust(_truncated_remainder(x, y), y)[0]


def floor_divide(x: Expr, y: Expr) -> Expr:
    """floor(x / y), computed from the exact remainder; x / y where y is zero."""
    truncated = _truncated_remainder(x, y)
    _, moved = _adjust(truncated, y)
    one, zero = const(x.dtype, 1.0), const(x.dtype, 0.0)
    quotient = (x - truncated) / y
    quotient = quotient - select(moved, one, zero)
    below = floor(quotient)
    nearest = below + select(quotient - below > 0.5, one, zero)
    signed_zero = bitcast(binary("and", to_bits(x / y), _sign_mask(x)), x.dtype)
    result = select(equal(quotient, 0.0), signed_zero, nearest)
    return select(equal(y, 0.0), x / y, result)


def _sign_mask(x: Expr) -> Expr:
    bits = to_bits(x)
    return const(bits.dtype, 1 << (bits.dtype.bits - 1))


def _copysign(magnitude: Expr, sign: Expr) -> Expr:
    bits = binary("or", to_bits(magnitude), binary("and", to_bits(sign), _sign_mask(sign)))
    return bitcast(bits, magnitude.dtype)


def _adjust(truncated: Expr, y: Expr) -> tuple[Expr, Expr]:
    """The remainder moved to the side of y, and whether it moved."""
    nonzero = not_equal(truncated, 0.0)
    moved = binary("and", nonzero, not_equal(truncated < 0.0, y < 0.0))
    zero = _copysign(const(y.dtype, 0.0), y)
    return select(nonzero, select(moved, truncated + y, truncated), zero), moved


def _truncated_remainder(x: Expr, y: Expr) -> Expr:
    """C's fmod: the sign is that of x."""
    a, b = absolute(x), absolute(y)
    magnitude = _magnitude32(a, b) if x.dtype is F32 else _magnitude64(a, b)
    value = _copysign(select(a < b, a, magnitude), x)
    infinity = const(x.dtype, float("inf"))
    defined = binary("and", a < infinity, b > 0.0)  # false for a NaN
    defined = binary("and", defined, equal(b, b))
    return select(defined, value, const(x.dtype, float("nan")))


_MANTISSA = (1 << 52) - 1


def _split(a: Expr) -> tuple[Expr, Expr]:
    """A positive normal float64 as (exponent field, integer significand)."""
    bits = bitcast(a, I64)
    significand = binary("or", binary("and", bits, const(I64, _MANTISSA)), const(I64, 1 << 52))
    return binary("shr", bits, const(I64, 52)), significand


def _power_of_two(exponent_field: Expr) -> Expr:
    return bitcast(binary("shl", exponent_field, const(I64, 52)), F64)


def _clamp_to_zero(e: Expr) -> Expr:
    return select(e < 0, const(I64, 0), e)


def _bit(e: Expr, position: int) -> Expr:
    return not_equal(binary("and", binary("shr", e, const(I64, position)), const(I64, 1)), 0)


def _magnitude32(a: Expr, b: Expr) -> Expr:
    """fmod of float32 magnitudes a >= b > 0. Significands have 24 bits, so the products of two,
    doubled, and the remainders below are exact in float64."""
    field_a, integer_a = _split(cast(a, F64))
    field_b, integer_b = _split(cast(b, F64))
    gap = _clamp_to_zero(field_a - field_b)
    significand_a, m = (cast(binary("shr", i, const(I64, 29)), F64) for i in (integer_a, integer_b))

    def reduce(t: Expr) -> Expr:
        # t < 2^49 and m < 2^24: the rounded quotient never reaches the next integer.
        return fma(-trunc(t / m), m, t)

    # The gap of two numbers is below 2^10; that of an infinity, whose remainder nobody takes, must not shift too far.
    count = binary("and", binary("shr", gap, const(I64, 4)), const(I64, 63))
    power = cast(binary("shl", const(I64, 1), count), F64)
    for position in (3, 2, 1, 0):
        square = power * power
        power = reduce(select(_bit(gap, position), square + square, square))
    rest = reduce(power * significand_a)
    return cast(rest * _power_of_two(field_b - 23), F32)


def _magnitude64(a: Expr, b: Expr) -> Expr:
    """fmod of float64 magnitudes a >= b > 0 in wrapping 64-bit integers."""
    lift = const(F64, 2.0**54)
    fields, integers = [], []
    for v in (a, b):
        denormal = v < 2.0**-1022
        field, integer = _split(select(denormal, v * lift, v))
        fields.append(field - select(denormal, const(I64, 54), const(I64, 0)))
        integers.append(integer)
    significand_a, m = integers
    gap = _clamp_to_zero(fields[0] - fields[1])
    reciprocal = const(F64, 1.0) / cast(m, F64)

    def multiply(p: Expr, q: Expr) -> Expr:
        # The quotient is wrong by at most 4, so the wrapped difference is in (-4m - m, 5m).
        estimate = trunc(cast(p, F64) * cast(q, F64) * reciprocal)
        rest = p * q - cast(estimate, I64) * m
        rest = select(rest < 0, rest + (m << 3), rest)
        for shift in (2, 1, 0):
            part = m << shift
            rest = select(rest >= part, rest - part, rest)
        return rest

    power = binary("shl", const(I64, 1), binary("shr", gap, const(I64, 6)))
    for position in (5, 4, 3, 2, 1, 0):
        square = multiply(power, power)
        double = square + square
        double = select(double >= m, double - m, double)
        power = select(_bit(gap, position), double, square)
    rest = multiply(power, significand_a)
    # rest * 2^(field - 1075): exact, since y's own last bit is a bit of the format; the field is
    # below 1 where y was denormal, hence two factors.
    field = fields[1]
    half = select(field < 2, const(I64, 54), const(I64, 0))
    scaled = cast(rest, F64) * const(F64, 2.0**-52) * _power_of_two(field + half)
    return scaled * select(field < 2, const(F64, 2.0**-54), const(F64, 1.0))


