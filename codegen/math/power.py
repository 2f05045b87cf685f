"""pow, hypot, logaddexp, and the short float64 logarithm and exponential that float32 functions use.

Float32 pow, hypot and logaddexp compute in float64, where log2(x) * y keeps all the digits that its
exponential needs; two-float arithmetic in float32 would cost more. Float64 pow carries log2(x) as a
sum of two floats (T. J. Dekker, A floating-point technique for extending the available precision,
1971).
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, absolute, cast, const, equal, fma, not_equal, rint, select, sqrt, unary
from graphc.codegen.math import double
from graphc.codegen.math.exponential import LOG2_E, exp_parts, one_scale, round_to_integer, scaled
from graphc.codegen.math.floating import (
    both,
    clamp,
    either,
    finite,
    flip_sign,
    format_of,
    horner,
    is_nan,
    sign_bit,
)
from graphc.codegen.math.logarithm import log_sum, split
from graphc.ir.types import F32, F64

LN_2 = 0.6931471805599453


def log_short(u: Expr) -> Expr:
    """log of a positive normal float64, to about 2**-41: enough for a float32 result."""
    f = format_of(u)
    e, m = split(u, f)
    head = m - 1.0
    s = head / (head + 2.0)
    z = s * s
    return fma(cast(e, F64), LN_2, s * fma(horner("log_short", z), z, 2.0))


def exp2_short(x: Expr) -> Expr:
    """2**x for a float64 |x| <= 1000, to about 2**-32."""
    n, pattern = round_to_integer(x, 1.0)
    r = x - n
    return fma(horner("exp2_short", r), r, 1.0) * one_scale(pattern, format_of(x))


def pow(x: Expr, y: Expr) -> Expr:
    """x**y; specials as in C23 F.10.4.4."""
    a = absolute(x)
    magnitude = _pow32(a, y) if x.dtype is F32 else _pow64(a, y)
    one, infinity = const(x.dtype, 1.0), const(x.dtype, float("inf"))
    half = y * 0.5
    integral = equal(rint(y), y)
    odd = both(integral, not_equal(rint(half), half))
    no_sign = const(sign_bit(x).dtype, 0)
    value = flip_sign(magnitude, select(odd, sign_bit(x), no_sign))
    undefined = both(both(x < 0.0, x > -infinity), unary("not", integral))
    value = select(undefined, const(x.dtype, float("nan")), value)
    return select(either(equal(y, 0.0), equal(x, 1.0)), one, value)


def _pow32(a: Expr, y: Expr) -> Expr:
    """a**y for a >= 0. The logarithm is infinite at 0 and infinity, and y is kept finite, so that
    the product is right at every edge; NaN goes through."""
    f = format_of(const(F64, 0.0))
    wide = cast(a, F64)
    e, m = split(wide, f)
    head = m - 1.0
    s = head / (head + 2.0)
    z = s * s
    log2 = fma(s * LOG2_E, fma(horner("log_short", z), z, 2.0), cast(e, F64))
    log2 = _log_edges(wide, log2)
    limit = 1e30
    product = log2 * clamp(cast(y, F64), -limit, limit)
    return cast(exp2_short(clamp(product, -300.0, 300.0)), F32)


def _log_edges(a: Expr, log2: Expr) -> Expr:
    """-inf at zero; infinity and NaN themselves."""
    return select(a < float("inf"), select(a > 0.0, log2, const(F64, float("-inf"))), a)


def _pow64(a: Expr, y: Expr) -> Expr:
    high, low = double.log2(a)
    limit = 2.0**900
    y = clamp(y, -limit, limit)
    # Only the high part carries the infinities of the logarithm.
    edge = either(equal(a, 0.0), unary("not", finite(a)))
    high, low = select(edge, _log_edges(a, high), high), select(edge, const(F64, 0.0), low)
    main = high * y
    rest = fma(low, y, fma(high, y, -main))
    inside = absolute(main) < 1100.0
    rest = select(inside, rest, const(F64, 0.0))
    main = clamp(main, -1080.0, 1030.0)
    n, pattern = round_to_integer(main, 1.0)
    r_high = main - n
    # 2**(r_high + rest) = 1 + (p + p_low): the product with ln 2 as a sum of two floats.
    product, product_low = double.times_ln2(r_high, rest)
    value = double.exp_of_sum(product, product_low)
    return scaled(value, pattern, format_of(a))


def hypot(x: Expr, y: Expr) -> Expr:
    """sqrt(x*x + y*y) without overflow. Float64: C. F. Borges, Algorithm 1014: An improved
    algorithm for hypot(x, y), ACM TOMS 47(1), 2021."""
    a, b = absolute(x), absolute(y)
    infinity = const(x.dtype, float("inf"))
    infinite = either(equal(a, infinity), equal(b, infinity))
    if x.dtype is F32:
        p, q = cast(a, F64), cast(b, F64)
        return select(infinite, infinity, cast(sqrt(fma(p, p, q * q)), F32))
    swap = a < b
    large, small = select(swap, b, a), select(swap, a, b)
    # Squares must neither overflow nor lose digits; between the bounds a `small` whose square does
    # is too small to count.
    huge, tiny = large > 2.0**500, large < 2.0**-390
    one = const(F64, 1.0)
    down = select(huge, const(F64, 2.0**-600), select(tiny, const(F64, 2.0**700), one))
    up = select(huge, const(F64, 2.0**600), select(tiny, const(F64, 2.0**-700), one))
    p, q = large * down, small * down
    h = sqrt(fma(p, p, q * q))
    hh, pp = h * h, p * p
    error = fma(-q, q, hh - pp) + fma(h, h, -hh) - fma(p, p, -pp)
    corrected = h - error / (h + h)
    value = select(h > 0.0, corrected, h) * up
    nan = const(F64, float("nan"))
    value = select(either(is_nan(a), is_nan(b)), nan, value)
    return select(infinite, infinity, value)


def logaddexp(x: Expr, y: Expr) -> Expr:
    """log(exp(x) + exp(y)) = max + log1p(exp(-|x - y|))."""
    largest = select(either(x >= y, is_nan(x)), x, y)
    # Equal infinities have no difference.
    if x.dtype is F32:
        gap = absolute(cast(x, F64) - cast(y, F64))
        gap = select(equal(x, y), const(F64, 0.0), gap)
        e = exp2_short(clamp(gap * -LOG2_E, -900.0, None))
        s = e / (e + 2.0)
        z = s * s
        return cast(cast(largest, F64) + s * fma(horner("log1p_short", z), z, 2.0), F32)
    # The rounding of x - y would count |x - y| times in the exponential, so it is carried along,
    # as is that of the exponential.
    difference = x - y
    back = difference - x
    lost = (x - (difference - back)) - (y + back)
    lost = select(finite(difference), lost, const(F64, 0.0))
    lost = select(x >= y, lost, -lost)
    gap = select(equal(x, y), const(F64, 0.0), absolute(difference))
    high, low, pattern = exp_parts(clamp(-gap, -746.0, None))
    total = high + low
    low = fma(-lost, total, (high - total) + low)
    f = format_of(x)
    e, low = scaled(total, pattern, f), scaled(low, pattern, f)
    u = e + 1.0
    return largest + log_sum(u, (e - (u - 1.0)) + low)
