"""The NumPy meaning of elementwise operations that NumPy defines otherwise, or not at all.

Integers wrap; division by zero gives 0; shifts by the width or more are defined; conversions round
once and saturate; `maximum` and `minimum` choose between equal operands by position.
"""

from __future__ import annotations

import math

import numpy as np
from graphc.ir.ops.fma import fma as fused
from graphc.ir.registry import Array
from graphc.ir.types import BF16, F64, DType


def is_narrow(a: Array) -> bool:
    """Whether the elements are float16 or bfloat16."""
    return a.dtype in (np.float16, BF16.numpy)


def convert(x: Array, dtype: DType) -> Array:
    """`x` cast to `dtype`: integers wrap; floats round to nearest even, once; float to integer
    truncates and saturates, NaN gives 0; anything to bool is x != 0."""
    if is_narrow(x):
        x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        if dtype.kind == "b":
            return np.asarray(x != 0)
        if dtype.is_integer and x.dtype.kind == "f":
            return _saturated(x.astype(np.float64), dtype)
        if dtype.is_float and dtype.bits == 16 and x.dtype.kind != "b" and x.dtype.itemsize > 2:
            return _to_narrow(x, dtype)
        return x.astype(dtype.numpy)


def _saturated(x: Array, dtype: DType) -> Array:
    info = np.iinfo(dtype.numpy)
    whole = np.trunc(np.where(np.isnan(x), 0.0, x))
    # The bounds are powers of two and exact; the greatest 64-bit integer itself is not.
    over, under = whole >= float(info.max) + (dtype.bits < 64), whole < float(info.min)
    inside = np.where(over | under, 0.0, whole).astype(dtype.numpy)
    return np.where(over, info.max, np.where(under, info.min, inside)).astype(dtype.numpy)


def _to_narrow(x: Array, dtype: DType) -> Array:
    """To float16 or bfloat16 through wider floats rounded to odd, so that one rounding counts."""
    if x.dtype.kind in "iu":
        if x.dtype.itemsize == 8:
            low = x & x.dtype.type(0x7FF)
            sticky = np.where(low != 0, x.dtype.type(1 << 11), x.dtype.type(0))
            limit = 1 << 53
            small = (x < limit) & (x > -limit) if x.dtype.kind == "i" else x < limit
            x = np.where(small, x, (x - low) | sticky)
        x = x.astype(np.float64)
    if x.dtype == np.float64 and dtype is BF16:
        near = x.astype(np.float32)
        back = near.astype(np.float64)
        bits = near.view(np.uint32)
        even = (back != x) & ~np.isnan(x) & (bits & 1 == 0)
        step = np.where(np.abs(back) > np.abs(x), bits - np.uint32(1), bits + np.uint32(1))
        x = np.where(even, step, bits).astype(np.uint32).view(np.float32)
    return np.asarray(x.astype(dtype.numpy))


def maximum(a: Array, b: Array) -> Array:
    """a if (a >= b or a is NaN) else b: of two equal operands the first; NaN if either is NaN."""
    return np.where((a >= b) | (a != a), a, b)


def minimum(a: Array, b: Array) -> Array:
    """a if (a <= b or a is NaN) else b."""
    return np.where((a <= b) | (a != a), a, b)


def sign(x: Array) -> Array:
    """-1, 0 or 1; +0.0 for either zero; NaN for NaN."""
    value = np.where(x > 0, 1, np.where(x < 0, -1, 0) if x.dtype.kind != "u" else 0).astype(x.dtype)
    return np.where(x != x, x, value)


def floor_divide(a: Array, b: Array) -> Array:
    """Integers: the floor of the quotient, 0 for a zero divisor, wrapping at the least // -1."""
    if a.dtype.kind == "f":
        return np.floor_divide(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, b.dtype.type(0), np.floor_divide(a, safe))


def remainder(a: Array, b: Array) -> Array:
    """The remainder of `floor_divide`, of the divisor's sign; integers: 0 for a zero divisor."""
    if a.dtype.kind == "f":
        return np.remainder(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, b.dtype.type(0), np.remainder(a, safe))


def power(a: Array, b: Array) -> Array:
    """a**b. Integers wrap; a negative exponent gives the truncated 1/a**-b (0 for a = 0)."""
    if a.dtype.kind == "f":
        wide = np.power(a.astype(np.float64), b.astype(np.float64))
        return wide.astype(a.dtype)
    one, minus_one = a.dtype.type(1), np.asarray(-1).astype(a.dtype)
    result, square, rest = np.full_like(a, 1), a, np.where(b < 0, b.dtype.type(0), b)
    while np.any(rest):
        result = np.where(rest & 1 != 0, result * square, result)
        square, rest = square * square, rest >> 1
    if a.dtype.kind == "u":
        return result
    unit = np.where(a == minus_one, np.where(b & 1 != 0, minus_one, one), a.dtype.type(0))
    return np.where(b < 0, np.where(a == 1, one, unit), result)


def shift_left(x: Array, count: Array) -> Array:
    """x << count; 0 where the count is negative or not below the width."""
    bits = x.dtype.itemsize * 8
    fits = (count >= 0) & (count < bits)
    shifted = np.left_shift(x, np.where(fits, count, 0).astype(x.dtype))
    return np.where(fits, shifted, np.zeros_like(x))


def shift_right(x: Array, count: Array) -> Array:
    """x >> count, arithmetic for signed x; a count out of range shifts all digits out."""
    bits = x.dtype.itemsize * 8
    fits = (count >= 0) & (count < bits)
    shifted = np.asarray(np.right_shift(x, np.where(fits, count, bits - 1).astype(x.dtype)))
    return shifted if x.dtype.kind == "i" else np.where(fits, shifted, np.zeros_like(x))


def nextafter(a: Array, b: Array) -> Array:
    """The neighbour of a towards b in the operands' own dtype (IEEE 754-2019, 5.3.1), b if equal."""
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize]
    wide_a, wide_b = (v.astype(np.float64) for v in (a, b))
    bits, bits_b = (np.ascontiguousarray(v).view(unsigned).reshape(v.shape) for v in (a, b))
    top = unsigned(1 << (a.dtype.itemsize * 8 - 1))
    outward = (wide_b > wide_a) == (wide_a > 0)
    stepped = np.where(outward, bits + unsigned(1), bits - unsigned(1))
    stepped = np.where(wide_a == 0, (bits_b & top) | unsigned(1), stepped)
    stepped = np.where(wide_a == wide_b, bits_b, stepped).astype(unsigned)
    value = np.ascontiguousarray(stepped).view(a.dtype).reshape(a.shape)
    return np.where(np.isnan(wide_a) | np.isnan(wide_b), np.asarray(np.nan).astype(a.dtype), value)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c, rounded once; integers wrap."""
    return fused(a, b, c) if a.dtype.kind == "f" else a * b + c


def erf(x: Array) -> Array:
    """The error function (DLMF 7.2.1), by the C library's."""
    return np.asarray(_erf(x))


_erf = np.vectorize(math.erf, otypes=[F64.numpy])
