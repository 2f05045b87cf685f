"""log, log2, log10, log1p: x = 2**e * (1 + f) with 1 + f in [11/16, 11/8).

With that interval no result cancels below log(11/8) for e != 0, and e*high + f is kept exactly as a sum
of two floats, so the polynomial's error is small beside the last rounding. The float64 polynomial
is in s = f/(2 + f) (the form of fdlibm's e_log.c); the float32 one is in f, without a division.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, binary, bitcast, cast, const, equal, fma, select
from graphc.codegen.math.floating import Format, format_of, horner
from graphc.ir.types import F32, F64

# (name, dtype) -> log_b(2) as (high, low), and log_b(e) as (high, low). `high` of the first has so
# few bits that its product with an exponent is exact.
_BASES = {
    ("e", F32): ((0.69314575195312500, 1.42860682030941723212e-6), (1.0, 0.0)),
    ("e", F64): ((0.693147180369123816490, 1.90821492927058770002e-10), (1.0, 0.0)),
    ("2", F32): ((1.0, 0.0), (1.44269502162933349609375, 1.9259629911266174681e-8)),
    ("2", F64): ((1.0, 0.0), (1.44269504088896338700465, 2.0355273740931033243e-17)),
    ("10", F32): (
        (0.301025390625, 4.60503898119521373889e-6),
        (0.434294492006301879883, -1.01030486114500021089e-8),
    ),
    ("10", F64): (
        (3.01029995663611771306e-01, 3.69423907715893078616e-13),
        (0.434294481903251816668, 1.0983196502167650923e-17),
    ),
}


def split(u: Expr, f: Format) -> tuple[Expr, Expr]:
    """(e, 1 + f) of a positive normal u; e is a signed integer."""
    bits = bitcast(u, f.integer)
    least = 0x3F300000 if f.dtype is F32 else 0x3FE6000000000000  # 11/16
    e = binary("shr", bits - least, const(f.integer, f.digits))
    return e, bitcast(bits - binary("shl", e, const(f.integer, f.digits)), f.dtype)


def _tail(f: Expr) -> Expr:
    """log1p(f) - f for f in [-5/16, 3/8]."""
    if f.dtype is F32:
        w = f * f
        return fma(w * f, horner("log32", f), w * -0.5)
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    return fma(s, fma(horner("log64", z), z, half), -half)


def _sum(e: Expr, f: Expr, correction: Expr | None, base: str) -> Expr:
    """log_b(2**e * (1 + f + correction)) for a float e."""
    (two_high, two_low), (e_high, e_low) = _BASES[base, f.dtype]
    tail = _tail(f) if correction is None else _tail(f) + correction
    if base == "e":
        main, rest = f, tail
    else:
        main = f * e_high
        rest = fma(tail, e_high, fma(f, e_low, fma(f, e_high, -main)))
    if two_low:
        rest = fma(e, two_low, rest)
    whole = e * two_high if two_high != 1.0 else e
    total = whole + main
    return total + ((main - (total - whole)) + rest)


def _specials(u: Expr, value: Expr) -> Expr:
    """-inf at zero, NaN below it, u itself (inf or NaN) where u is not finite."""
    pole = select(equal(u, 0.0), const(u.dtype, float("-inf")), const(u.dtype, float("nan")))
    return select(u > 0.0, select(u < float("inf"), value, u), select(u <= 0.0, pole, u))


def _log(x: Expr, base: str) -> Expr:
    f = format_of(x)
    denormal = x < f.least_normal
    lift = f.digits + 2
    e, m = split(select(denormal, x * 2.0**lift, x), f)
    e = e - select(denormal, const(f.integer, lift), const(f.integer, 0))
    return _specials(x, _sum(cast(e, x.dtype), m - 1.0, None, base))


def log(x: Expr) -> Expr:
    return _log(x, "e")


def log2(x: Expr) -> Expr:
    return _log(x, "2")


def log10(x: Expr) -> Expr:
    return _log(x, "10")


def log1p(x: Expr) -> Expr:
    u = x + 1.0
    # What the addition lost; exact by the two orders of Dekker's fast sum.
    lost = select(x < 1.0, x - (u - 1.0), const(x.dtype, 1.0) - (u - x))
    value = _specials(u, log_sum(u, lost))
    return select(equal(x, 0.0), x, value)


def log_sum(u: Expr, lost: Expr, extra: Expr | None = None) -> Expr:
    """log(u + lost) + extra*ln2 for a positive, normal, finite u and |lost| <= ulp(u)."""
    fmt = format_of(u)
    e, m = split(u, fmt)
    # 2**-e; past the range of exponents (where the loss does not matter) it is 0.
    scale = binary("shl", const(fmt.integer, fmt.bias) - e, const(fmt.integer, fmt.digits))
    scale = select(e < fmt.bias, scale, const(fmt.integer, 0))
    lost = lost * bitcast(scale, u.dtype)
    head = m - 1.0
    f = head + lost
    rest = lost - (f - head)
    e = e if extra is None else e + extra
    return _sum(cast(e, u.dtype), f, fma(-f, rest, rest), "e")
