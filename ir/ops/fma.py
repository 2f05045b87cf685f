"""The fused multiply-add over NumPy arrays: a*b + c rounded once, on any machine.

NumPy has no fma. Float32 is computed in float64, whose product is exact; float64 by error-free
transformations. Both keep the sum's last bit sticky ("round to odd"), so that the final rounding is
the only one: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved
algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from graphc.ir.registry import Array
from graphc.ir.types import DType

SPLIT = 134217729.0  # 2**27 + 1, Veltkamp's constant for float64
BLOCK = 256  # of k, in the bit contract of dot and conv


def fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c, rounded once, for three float32 or three float64 arrays that broadcast together."""
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:
            product = np.multiply(a, b, dtype=np.float64)
            return odd_sum(product, np.asarray(c, np.float64)).astype(np.float32)
        return _fma64(*np.broadcast_arrays(a, b, c))


def contract(a: Array, b: Array, dtype: DType) -> Array:
    """The sum of a[k] * b[k] over the first axis, in the order of the bit contract of dot and conv.

    a, b: arrays that broadcast together once their first axes, of equal length, are taken away; both
        of element type `dtype`, as is the result. float16 and bfloat16 are summed in float32 and rounded
        once; integers wrap.
    """
    shape = np.broadcast_shapes(a.shape[1:], b.shape[1:])
    if dtype.is_integer:
        whole = np.zeros(shape, dtype.numpy)
        with np.errstate(all="ignore"):
            for p, q in zip(a, b):
                whole += p * q
        return whole
    wide = np.float64 if dtype.bits == 64 else np.float32
    a, b = a.astype(wide), b.astype(wide)
    total = np.zeros(shape, wide)
    with np.errstate(all="ignore"):
        for start in range(0, len(a), BLOCK):
            block = np.zeros(shape, wide)
            for p, q in zip(a[start : start + BLOCK], b[start : start + BLOCK]):
                block = fma(p, q, block)
            total = block if start == 0 else total + block
    return np.asarray(total).astype(dtype.numpy)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(s, e) with s = a + b rounded and s + e = a + b exactly (Knuth), for float64 arrays."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd: an inexact sum gets an odd last bit."""
    s, e = two_sum(a, b)
    return to_odd(s, e)


def to_odd(value: Array, error: Array) -> Array:
    """`value` + `error` rounded to odd, where `value` is their sum rounded to nearest, in float64."""
    bits = np.ascontiguousarray(value).view(np.int64).reshape(np.shape(value))
    inexact = (error != 0) & np.isfinite(error) & np.isfinite(value) & (bits & 1 == 0)
    step = np.where((error > 0) == (value > 0), 1, -1)
    moved = np.where(inexact, bits + step, bits)
    return np.ascontiguousarray(moved).view(np.float64).reshape(np.shape(value))


def _fma64(a: Array, b: Array, c: Array) -> Array:
    product = a * b
    # An infinite c stays what it is, even where the rounded product would be the other infinity.
    plain = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, product + c)
    special = ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)) | (a == 0) | (b == 0)
    size = np.abs(product)
    safe = (size < 2.0**1000) & (size > 2.0**-900) & (np.abs(c) < 2.0**1000)
    safe &= (np.abs(a) < 2.0**990) & (np.abs(b) < 2.0**990)
    high_a, low_a = _split(a)
    high_b, low_b = _split(b)
    low = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    t_high, t_low = two_sum(c, low)
    u_high, u_low = two_sum(product, t_high)
    fused = np.asarray(u_high + odd_sum(t_low, u_low))
    out = np.asarray(np.where(special, plain, fused))
    for i in np.argwhere(~special & ~safe):
        at = tuple(i)
        out[at] = _fma_exactly(float(a[at]), float(b[at]), float(c[at]))
    return out


def _split(x: Array) -> tuple[Array, Array]:
    t = x * SPLIT
    high = t - (t - x)
    return high, x - high


def _fma_exactly(a: float, b: float, c: float) -> float:
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:
        return a * b + c if a == 0 or b == 0 else 0.0
    sign = 1.0 if total > 0 else -1.0
    try:
        return math.copysign(float(total), sign)
    except OverflowError:
        return math.copysign(math.inf, sign)
