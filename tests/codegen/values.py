"""Operand values for tests: special values in every combination, plain ones, indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from graphc.ir.types import DType

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def specials(dtype: DType) -> Array:
    """Zeros, ends of the range, subnormals, infinities, NaN, shift counts, and plain numbers."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        wanted = [0, 1, 2, 3, 5, dtype.bits - 1, dtype.bits, dtype.bits + 1, 100, -1, -2, -3, -7]
        wanted += [info.min, info.min + 1, info.max, info.max - 1]
        return np.array(sorted({w for w in wanted if info.min <= w <= info.max}), dtype.numpy)
    largest = (1 << (dtype.bits - 1)) - 1 - (1 << mantissa_bits(dtype))
    smallest_normal = 1 << mantissa_bits(dtype)
    bits = [0, 1, 3, smallest_normal - 1, smallest_normal, largest + 1, largest]
    bits += [b | 1 << (dtype.bits - 1) for b in bits]
    plain = [math.nan, 1.0, -1.0, 0.5, -1.5, 2.5, 3.0, -7.0, 1 / 3, 1e-3, -100.0, 3e4, 127.5, -128.5, 255.75]
    odd = np.array(bits, f"u{dtype.itemsize}").view(dtype.numpy)
    return np.concatenate([odd, np.array(plain).astype(dtype.numpy)])


def mantissa_bits(dtype: DType) -> int:
    return {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}[dtype.short]


def combinations(dtypes: tuple[DType, ...]) -> list[Array]:
    """Operands of one length in which every combination of special values occurs."""
    sets = [specials(d) for d in dtypes]
    if len(sets) > 2:  # three of a kind: fewer of each
        sets = [s if len(s) <= 2 else np.concatenate([s[:2], s[2::3]]) for s in sets]
    grids = np.meshgrid(*[np.arange(len(s)) for s in sets], indexing="ij")
    return [s[g.reshape(-1)] for s, g in zip(sets, grids, strict=True)]


def plain(dtype: DType, shape: Shape, seed: int) -> Array:
    """Values of moderate size, zeros of both signs among them."""
    rng = np.random.default_rng([seed, *shape])
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.is_integer:
        low = 0 if dtype.kind == "u" else -9
        return np.asarray(rng.integers(low, 10, shape)).astype(dtype.numpy)
    x = np.asarray(rng.standard_normal(shape) * 2)
    x = np.where(rng.random(shape) < 0.1, np.copysign(0.0, x), x)
    return np.asarray(x).astype(dtype.numpy)


def mixed(dtype: DType, shape: Shape, seed: int) -> Array:
    """`plain` with a few special values in it."""
    rng = np.random.default_rng([seed + 1000, *shape])
    odd = specials(dtype)
    picked = odd[rng.integers(0, len(odd), shape)]
    return np.asarray(np.where(rng.random(shape) < 0.04, picked, plain(dtype, shape, seed)), dtype.numpy)


def indices(dtype: DType, shape: Shape, seed: int, size: int) -> Array:
    """Indices into a dimension of `size`: from the end as well where the dtype has a sign."""
    rng = np.random.default_rng([seed + 2000, *shape])
    low = -size if dtype.kind == "i" else 0
    return np.asarray(rng.integers(low, size, shape)).astype(dtype.numpy)
