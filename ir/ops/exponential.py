"""exp and log over NumPy arrays, to the bit what compiled code computes.

Operations that are made of many steps (attention) must be exact in the interpreter, and NumPy's own functions differ in
the last bit. The formulas and coefficients are those of codegen/math/exponential.py and logarithm.py, where the
reasoning is; tests/ir/test_ops_attention.py holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from graphc.ir.ops.fma import fma
from graphc.ir.registry import Array


@dataclass(frozen=True)
class _Format:
    integer: Any
    digits: int
    bias: int
    clamp: tuple[float, float]  # just past the last denormal, just past overflow
    exp: tuple[float, ...]
    split: int  # bits of 11/16
    log: tuple[float, ...]
    log_two: tuple[float, float]


LOG2_E = 1.4426950408889634
_LN2 = {
    np.dtype(np.float32): (0.693147182464599609375, -1.904654299957767878541823431924500011e-9),
    np.dtype(np.float64): (0.693147180559945286226763982995180413126945495605, 2.319046813846299558417771123e-17),
}
_FORMATS = {
    np.dtype(np.float32): _Format(
        np.int32,
        23,
        127,
        (-104.0, 89.0),
        (0.4999999403953552, 0.16666516661643982, 0.04166810214519501, 0.00836919341236353, 0.0013838998274877667),
        0x3F300000,
        (
            0.33333319425582886, -0.24999871850013733, 0.20001453161239624, -0.16676200926303864, 0.1424364596605301,
            -0.12258554250001907, 0.1151544451713562, -0.12495601922273636, 0.0877339243888855,
        ),
        (0.69314575195312500, 1.42860682030941723212e-6),
    ),
    np.dtype(np.float64): _Format(
        np.int64,
        52,
        1023,
        (-746.0, 710.0),
        (
            0.5000000000000011, 0.16666666666666438, 0.04166666666652822, 0.008333333333483912, 0.0013888888943800585,
            0.00019841269521582487, 2.4801493139377493e-05, 2.755757767089264e-06, 2.763018499505781e-07,
            2.500175838439875e-08,
        ),
        0x3FE6000000000000,
        (
            0.6666666666666881, 0.3999999999842771, 0.2857142896200275, 0.22222176283194506, 0.18184701128073,
            0.1528566620339996, 0.15072029652885202,
        ),
        (0.693147180369123816490, 1.90821492927058770002e-10),
    ),
}  # fmt: skip


def exp(x: Array) -> Array:
    """e**x for a float32 or float64 array."""
    x = np.asarray(x)
    f, (high, low), number = _FORMATS[x.dtype], _LN2[x.dtype], x.dtype.type
    with np.errstate(all="ignore"):
        x = np.where(x > f.clamp[1], number(f.clamp[1]), x)
        x = np.where(x < f.clamp[0], number(f.clamp[0]), x)
        magic = number(1.5 * 2.0**f.digits)
        shifted = fma(x, number(LOG2_E), magic)
        n, pattern = shifted - magic, _bits(shifted, f)
        r = fma(n, number(-low), fma(n, number(-high), x))
        head = r + number(1)
        value = head + fma(_horner(f.exp, r), r * r, r - (head - number(1)))
        half = (pattern >> f.integer(1)) << f.integer(f.digits)
        rest = (pattern << f.integer(f.digits)) - half
        one = f.integer(f.bias << f.digits)
        return np.asarray(value * (half + one).view(x.dtype) * (rest + one).view(x.dtype))


def log(x: Array) -> Array:
    """The natural logarithm of a float32 or float64 array."""
    x = np.asarray(x)
    f, number = _FORMATS[x.dtype], x.dtype.type
    digits = f.integer(f.digits)
    with np.errstate(all="ignore"):
        denormal = x < number(2.0 ** (1 - f.bias))
        bits = _bits(np.where(denormal, x * number(2.0 ** (f.digits + 2)), x), f)
        e = (bits - f.integer(f.split)) >> digits
        m = (bits - (e << digits)).view(x.dtype)
        e = (e - np.where(denormal, f.integer(f.digits + 2), f.integer(0))).astype(x.dtype)
        main = m - number(1)
        two_high, two_low = f.log_two
        rest = fma(e, number(two_low), _tail(main, f))
        whole = e * number(two_high)
        total = whole + main
        value = total + ((main - (total - whole)) + rest)
        pole = np.where(x == 0, number(-np.inf), number(np.nan))
        return np.asarray(np.where(x > 0, np.where(x < np.inf, value, x), np.where(x <= 0, pole, x)))


def _tail(t: Array, f: _Format) -> Array:
    """log1p(t) - t."""
    number = t.dtype.type
    if f.integer is np.int32:
        w = t * t
        return fma(w * t, _horner(f.log, t), w * number(-0.5))
    s = t / (t + number(2))
    z = s * s
    half = t * t * number(0.5)
    return fma(s, fma(z, _horner(f.log, z), half), -half)


def _horner(coefficients: tuple[float, ...], t: Array) -> Array:
    *rest, top = coefficients
    value = np.full(t.shape, top, t.dtype)
    for c in reversed(rest):
        value = fma(value, t, np.asarray(c, t.dtype))
    return value


def _bits(x: Array, f: _Format) -> Array:
    return np.asarray(np.ascontiguousarray(x).view(f.integer).reshape(x.shape))
