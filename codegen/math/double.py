"""Float64 logarithm and exponential with about 15 extra bits, as sums of two floats, for pow.

A pair (high, low) means high + low with |low| at most an ulp of high.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, cast, const, fma, select
from graphc.codegen.math.exponential import LN2
from graphc.codegen.math.floating import format_of, horner
from graphc.codegen.math.logarithm import split
from graphc.ir.types import F64

Pair = tuple[Expr, Expr]
_LOG2_E = (1.44269504088896338700465, 2.0355273740931033243e-17)
_TWO_THIRDS = (0.66666666666666662966, 3.70074341541718826e-17)
_TWO_FIFTHS = (0.40000000000000002220, -2.22044604925031308e-17)


def _fast_sum(a: Expr, b: Expr, low: Expr) -> Pair:
    """a + b + low where |a| >= |b| or a is 0."""
    total = a + b
    return total, (b - (total - a)) + low


def _product(a: Pair, b: Pair) -> Pair:
    high = a[0] * b[0]
    low = fma(a[0], b[0], -high)
    return high, fma(a[0], b[1], fma(a[1], b[0], low))


def _constant(pair: tuple[float, float]) -> Pair:
    return const(F64, pair[0]), const(F64, pair[1])


def log2(a: Expr) -> Pair:
    """log2 of a positive finite float64 to about 2**-68 of its value.

    With s = f/(2 + f) and z = s*s: log(1 + f) = 2s + s*(2/3*z + 2/5*z*z + ...). The first three
    terms need more digits than a float has, the rest does not.
    """
    fmt = format_of(a)
    denormal = a < fmt.least_normal
    e, m = split(select(denormal, a * 2.0**54, a), fmt)
    e = e - select(denormal, const(fmt.integer, 54), const(fmt.integer, 0))
    f = m - 1.0
    denominator = f + 2.0
    denominator_low = f - (denominator - 2.0)
    s = f / denominator
    s_low = fma(-s, denominator_low, fma(-s, denominator, f)) / denominator
    z, z_low = _product((s, s_low), (s, s_low))
    w = _fast_sum(const(F64, _TWO_FIFTHS[0]), z * horner("log_rest", z), const(F64, _TWO_FIFTHS[1]))
    v_high, v_low = _product((z, z_low), w)
    v = _fast_sum(const(F64, _TWO_THIRDS[0]), v_high, v_low + _TWO_THIRDS[1])
    t_high, t_low = _product(_product((z, z_low), v), (s, s_low))
    log = _fast_sum(s * 2.0, t_high, fma(s_low, 2.0, t_low))
    high, low = _product(log, _constant(_LOG2_E))
    return _fast_sum(cast(e, F64), high, low)


def times_ln2(high: Expr, low: Expr) -> Pair:
    """(high + low) * ln 2."""
    return _product((high, low), _constant(LN2[F64]))


def exp_of_sum(high: Expr, low: Expr) -> Expr:
    """exp(high + low) for |high| <= ln2/2 and a tiny low."""
    head = high + 1.0
    tail = fma(horner("exp64", high), high * high, high - (head - 1.0))
    return head + fma(head + tail, low, tail)
