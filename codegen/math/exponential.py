"""exp, exp2, expm1: x = n*ln2 + r with |r| <= ln2/2, then a polynomial in r and an exact scaling.

The reduction is that of Cody and Waite (Software Manual for the Elementary Functions, 1980) with
fused multiply-adds: `fma(-n, high, x)` is exact because its result is a multiple of the last bit of
`high` and less than 2**23 (2**52) of them.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, absolute, binary, bitcast, const, fma, select
from graphc.codegen.math.floating import Format, clamp, format_of, horner
from graphc.ir.types import F32, F64

LOG2_E = 1.4426950408889634
# dtype -> (high, low): ln 2 as a float of the format and what is left of it.
LN2 = {
    F32: (0.693147182464599609375, -1.904654299957767878541823431924500011e-9),
    F64: (0.693147180559945286226763982995180413126945495605, 2.319046813846299558417771123e-17),
}


def round_to_integer(x: Expr, scale: float) -> tuple[Expr, Expr]:
    """n = x*scale rounded to an integer: as a float, and as a pattern with n in its low bits."""
    f = format_of(x)
    shifted = fma(x, scale, f.magic) if scale != 1.0 else x + f.magic
    return shifted - f.magic, bitcast(shifted, f.integer)


def one_scale(pattern: Expr, f: Format, offset: int = 0) -> Expr:
    """2**(n + offset), where that is a normal number."""
    shifted = binary("shl", pattern, const(f.integer, f.digits))
    return bitcast(shifted + ((f.bias + offset) << f.digits), f.dtype)


def scaled(value: Expr, pattern: Expr, f: Format) -> Expr:
    """value * 2**n in two factors, so that n may reach past the normal exponents; rounded once."""
    digits = const(f.integer, f.digits)
    half = binary("shl", binary("shr", pattern, const(f.integer, 1)), digits)
    rest = binary("shl", pattern, digits) - half
    one = f.bias << f.digits
    return value * bitcast(half + one, f.dtype) * bitcast(rest + one, f.dtype)


def reduced(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """(r, c, n, pattern of n): x = n*ln2 + (r + c), c the rounding error of r."""
    high, low = LN2[x.dtype]
    n, pattern = round_to_integer(x, LOG2_E)
    exact = fma(n, -high, x)
    rest = n * low
    r = exact - rest
    return r, (exact - r) - rest, n, pattern


def exp(x: Expr) -> Expr:
    f = format_of(x)
    # The bounds lie just past overflow and past the last denormal.
    x = clamp(x, *((-104.0, 89.0) if x.dtype is F32 else (-746.0, 710.0)))
    high, low = LN2[x.dtype]
    n, pattern = round_to_integer(x, LOG2_E)
    r = fma(n, -low, fma(n, -high, x))
    # 1 + r is kept with its rounding error: exp is worth two more operations.
    head = r + 1.0
    value = head + fma(horner("exp" + f.suffix, r), r * r, r - (head - 1.0))
    return scaled(value, pattern, f)


def exp2(x: Expr) -> Expr:
    f = format_of(x)
    x = clamp(x, *((-151.0, 129.0) if x.dtype is F32 else (-1076.0, 1025.0)))
    n, pattern = round_to_integer(x, 1.0)
    r = x - n
    return scaled(fma(horner("exp2_" + f.suffix, r), r, 1.0), pattern, f)


def expm1(x: Expr) -> Expr:
    """2**n * (1 + expm1(r)) - 1, halved until the end so that the largest n does not overflow."""
    f = format_of(x)
    y = clamp(x, *((-18.0, 89.0) if x.dtype is F32 else (-38.0, 710.0)))
    r, c, _, pattern = reduced(y)
    tail = fma(horner("exp" + f.suffix, r), r * r, c)
    half = one_scale(pattern, f, -1)
    head = half - 0.5
    head_lost = (half - head) - 0.5
    part = half * r
    total = head + part
    lost = (part - (total - head)) + fma(half, tail, head_lost)
    return select(absolute(x) < 2.0 ** (-f.digits - 2), x, (total + lost) * 2.0)


def exp_parts(x: Expr) -> tuple[Expr, Expr, Expr]:
    """(high, low, pattern of n): exp(x) = (high + low) * 2**n, to about 2**-(digits + 4)."""
    f = format_of(x)
    r, c, _, pattern = reduced(x)
    tail = fma(horner("exp" + f.suffix, r), r * r, c)
    high = r + 1.0
    return high, (r - (high - 1.0)) + tail, pattern
