"""Equality of bits, and the values at which it is most easily lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from graphc.ir.types import DType

Array = np.ndarray[Any, Any]


def special_values(dtype: DType) -> Array:
    """Zeros of both signs, infinities, NaN, the ends of the range, subnormals, and plain numbers."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        return np.array([info.min, info.min + 1, info.max, 0, 1, 2, 3, 7, 100], dtype.numpy)
    with np.errstate(over="ignore", under="ignore"):
        plain = np.array(
            [
                0.0,
                -0.0,
                np.inf,
                -np.inf,
                np.nan,
                1.0,
                -1.0,
                0.5,
                -1.5,
                2.5,
                3.0,
                1 / 3,
                1e-7,
                -1e4,
                300.0,
                2.0**31,
            ]
        )
        values = plain.astype(dtype.numpy)
    bits = np.array([1, (1 << (dtype.bits - 1)) | 3], f"u{dtype.itemsize}").view(dtype.numpy)
    return np.concatenate([values, bits])


def assert_equal_bits(a: Array, b: Array) -> None:
    """Same dtype, shape and bits; which NaN a NaN is does not count."""
    assert a.dtype == b.dtype and a.shape == b.shape
    if a.dtype.kind in "fV":
        with np.errstate(invalid="ignore"):
            nan, other = np.isnan(a), np.isnan(b)
        assert (nan == other).all(), f"{a} != {b}"
        a, b = np.where(nan, a.dtype.type(0), a), np.where(nan, b.dtype.type(0), b)
    assert a.tobytes() == b.tobytes(), f"{a} != {b}"
