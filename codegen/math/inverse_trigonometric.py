"""asin, acos, atan, atan2: odd polynomials, after a change of argument whose rounding is carried along."""

from __future__ import annotations

from graphc.codegen.expr import Expr, absolute, cast, const, equal, fma, not_equal, select, sqrt
from graphc.codegen.math.floating import (
    clamp,
    copy_sign,
    either,
    flip_sign,
    format_of,
    horner,
    is_nan,
    sign_bit,
)
from graphc.ir.types import F32, F64

# dtype -> pi/2 as a float of the format and what is left of it. Halving and doubling are exact.
HALF_PI = {
    F32: (1.57079637050628662109375, -4.37113882867379291547e-8),
    F64: (1.57079632679489655799898, 6.12323399573676603587e-17),
}


def atan(x: Expr) -> Expr:
    """pi/2 - atan(1/|x|) above 1."""
    dtype = x.dtype
    a = clamp(absolute(x), None, 1e37)
    inverse = a > 1.0
    reciprocal = const(dtype, -1.0) / a
    # What the division lost, times the derivative of atan where that matters (|t| near 1).
    lost = select(inverse, fma(reciprocal, a, 1.0) * reciprocal * 0.53, const(dtype, 0.0))
    t = select(inverse, reciprocal, a)
    z = t * t
    high, low = HALF_PI[dtype]
    zero = const(dtype, 0.0)
    base, base_low = select(inverse, const(dtype, high), zero), select(inverse, const(dtype, low), zero)
    total = base + t
    tail = fma(t, z * horner("atan" + format_of(x).suffix, z), lost + base_low)
    return copy_sign(total + ((t - (total - base)) + tail), x)


def atan2(y: Expr, x: Expr) -> Expr:
    """The angle of (x, y); signs of zero and infinities as in C23 F.10.1.4.

    The smaller magnitude over the larger gives an angle in [0, pi/4]; the octant then adds a
    multiple k of pi/4 and perhaps a minus. Float32 divides in float64, which costs less than to
    carry the rounding errors of the quotient.
    """
    narrow = x.dtype is F32
    a, b = (absolute(cast(v, F64)) for v in (y, x))
    swap = a > b
    small, large = select(swap, b, a), select(swap, a, b)
    if not narrow:
        # The sum below must not overflow, and half of a denormal must not round.
        scale = select(large > 2.0**1000, const(F64, 2.0**-100), const(F64, 1.0))
        scale = select(large < 2.0**-900, const(F64, 2.0**100), scale)
        small, large = small * scale, large * scale
    infinity = const(F64, float("inf"))
    middle = either(small > large * 0.5, equal(small, infinity))
    same = equal(small, large)
    zero, one = const(F64, 0.0), const(F64, 1.0)
    numerator = select(same, zero, select(middle, small - large, small))
    denominator = select(same, one, select(middle, small + large, large))
    t = numerator / denominator
    z = t * t
    tail = t * z * horner("atan_short" if narrow else "atan_half64", z)
    negative = not_equal(sign_bit(x), 0)
    k = select(middle, one, zero)
    k = select(swap, const(F64, 2.0) - k, k)
    k = select(negative, const(F64, 4.0) - k, k)
    minus = sign_bit(select(not_equal(swap, negative), const(F64, -1.0), one))
    t, tail = flip_sign(t, minus), flip_sign(tail, minus)
    # pi/4 in two parts, the first with so few bits that its multiples are exact.
    base, base_low = k * 0.7853981633974456, k * 2.6951514290790595e-15
    total = base + t
    value = total + ((t - (total - base)) + (tail + base_low))
    value = cast(select(either(is_nan(a), is_nan(b)), a + b, value), x.dtype)
    return copy_sign(value, y)


def _arcsine(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """(large, head, tail, a): with a = |x|, asin of `a` where not `large`, and of
    sqrt((1 - a)/2) where `large`, is head + tail."""
    dtype = x.dtype
    a = absolute(x)
    large = a > 0.5
    z = select(large, fma(a, -0.5, 0.5), a * a)
    root = sqrt(z)
    # What the square root lost: root + lost squared is z.
    lost = fma(-root, root, z) / (root + root)
    lost = select(z > 0.0, lost, const(dtype, 0.0))
    head = select(large, root, a)
    tail = head * z * horner("asin" + format_of(x).suffix, z)
    return large, head, select(large, tail + lost, tail), a


def asin(x: Expr) -> Expr:
    large, head, tail, _ = _arcsine(x)
    high, low = HALF_PI[x.dtype]
    # pi/2 - 2(head + tail) with the first difference kept exactly.
    total = const(x.dtype, high) - head * 2.0
    lost = (const(x.dtype, high) - total) - head * 2.0
    value = select(large, total + (lost + fma(tail, -2.0, low)), head + tail)
    return copy_sign(value, x)


def acos(x: Expr) -> Expr:
    large, head, tail, _ = _arcsine(x)
    dtype = x.dtype
    high, low = HALF_PI[dtype]
    negative = x < 0.0
    sign = sign_bit(x)
    # |x| > 1/2: 2 asin(..) or pi minus that; else pi/2 minus or plus asin(|x|).
    factor = select(large, const(dtype, 2.0), const(dtype, 1.0))
    base = select(large, select(negative, const(dtype, 2 * high), const(dtype, 0.0)), const(dtype, high))
    base_low = select(large, select(negative, const(dtype, 2 * low), const(dtype, 0.0)), const(dtype, low))
    plus = select(large, const(sign.dtype, 0), const(sign.dtype, 1 << (sign.dtype.bits - 1)))
    flip = sign ^ plus
    head, tail = flip_sign(head * factor, flip), flip_sign(tail * factor, flip)
    total = base + head
    return total + ((head - (total - base)) + (tail + base_low))
