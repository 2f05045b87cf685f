"""sinh, cosh, tanh and their inverses.

sinh and tanh are odd polynomials below 1, where the exponential form cancels, and exponentials above.
The inverses are log1p of an argument that does not cancel (W. Kahan, Branch cuts for complex
elementary functions, 1987); for float32 they are a logarithm in float64, where 1 + x keeps enough.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, absolute, cast, const, fma, select, sqrt
from graphc.codegen.math.exponential import LN2, LOG2_E, exp_parts, one_scale, round_to_integer
from graphc.codegen.math.floating import clamp, copy_sign, format_of, horner, is_nan
from graphc.codegen.math.logarithm import log_sum
from graphc.codegen.math.power import log_short
from graphc.ir.types import F32, F64


def _polynomial(name: str, x: Expr) -> Expr:
    """x + x*z*P(z), z = x*x."""
    z = x * x
    return fma(x * z, horner(name + format_of(x).suffix, z), x)


def _exponentials(a: Expr) -> tuple[Expr, Expr, Expr]:
    """(high, low, other): e**a / 4 = high + low and e**-a / 4 = other, for a >= 0.

    A quarter, so that the result, at most e**a / 2, is reached by one exact doubling.
    """
    a = clamp(a, None, 89.5 if a.dtype is F32 else 710.6)
    high, low, pattern = exp_parts(a)
    quarter = one_scale(pattern, format_of(a), -2)
    high, low = high * quarter, low * quarter
    return high, low, const(a.dtype, 0.0625) / (high + low)


def sinh(x: Expr) -> Expr:
    a = absolute(x)
    high, low, other = _exponentials(a)
    large = (high + (low - other)) * 2.0
    return copy_sign(select(a < 1.0, _polynomial("sinh", a), large), x)


def cosh(x: Expr) -> Expr:
    high, low, other = _exponentials(absolute(x))
    return (high + (low + other)) * 2.0


def tanh(x: Expr) -> Expr:
    """Above 1: 1 - 2/(exp(2|x|) + 1)."""
    f = format_of(x)
    a = absolute(x)
    # tanh is 1 from the bound on; below it exp stays far from overflow.
    y = clamp(a, None, 9.25 if x.dtype is F32 else 19.25) * 2.0
    high, low = LN2[x.dtype]
    n, pattern = round_to_integer(y, LOG2_E)
    r = fma(n, -low, fma(n, -high, y))
    e = (fma(horner("exp" + f.suffix, r), r * r, r) + 1.0) * one_scale(pattern, f)
    large = const(x.dtype, 1.0) - const(x.dtype, 2.0) / (e + 1.0)
    return copy_sign(select(a < 1.0, _polynomial("tanh", a), large), x)


def asinh(x: Expr) -> Expr:
    """sign(x) * log1p(a + a*a / (1 + sqrt(a*a + 1))), a = |x|."""
    a = absolute(x)
    if x.dtype is F32:
        w = cast(a, F64)
        # Below 2**-12 x*x/6 is less than a quarter of an ulp of x.
        value = cast(log_short(w + sqrt(fma(w, w, 1.0))), F32)
        value = select(a < 2.0**-12, a, select(a < float("inf"), value, a))
        return copy_sign(value, x)
    big = a > 2.0**28
    root = sqrt(fma(a, a, 1.0))
    w = fma(a, a / (root + 1.0), a)
    return copy_sign(_log1p_or_log_of_double(a, w, big), x)


def acosh(x: Expr) -> Expr:
    """log1p(t + sqrt(2t + t*t)), t = x - 1."""
    if x.dtype is F32:
        w = cast(x, F64)
        value = cast(log_short(w + sqrt(fma(w, w, -1.0))), F32)
        return select(x < 1.0, const(F32, float("nan")), select(x < float("inf"), value, x))
    t = x - 1.0
    w = t + sqrt(fma(t, t, t + t))
    value = _log1p_or_log_of_double(x, w, x > 2.0**28)
    return select(x < 1.0, const(F64, float("nan")), value)


def _log1p_or_log_of_double(a: Expr, w: Expr, big: Expr) -> Expr:
    """log(2a) where `big`, else log1p(w); infinities and NaN pass from a."""
    one = w + 1.0
    lost = select(w < 1.0, w - (one - 1.0), const(F64, 1.0) - (one - w))
    zero = const(F64, 0.0)
    u, lost = select(big, a, one), select(big, zero, lost)
    f = format_of(a)
    value = log_sum(u, lost, select(big, const(f.integer, 1), const(f.integer, 0)))
    return select(a < float("inf"), value, a)


def atanh(x: Expr) -> Expr:
    """Half of log1p(2a + 2a*a/(1 - a)), a = |x|."""
    a = absolute(x)
    infinity, nan = const(x.dtype, float("inf")), const(x.dtype, float("nan"))
    if x.dtype is F32:
        w = cast(a, F64)
        value = cast(log_short((w + 1.0) / (const(F64, 1.0) - w)) * 0.5, F32)
        value = select(a < 2.0**-12, a, value)
    else:
        double = a + a
        w = fma(double, a / (const(F64, 1.0) - a), double)
        value = _log1p_or_log_of_double(a, w, w > float("inf")) * 0.5
        value = select(a < 2.0**-28, a, value)
    edge = select(a > 1.0, nan, infinity)
    value = select(a < 1.0, value, select(is_nan(a), a, edge))
    return copy_sign(value, x)
