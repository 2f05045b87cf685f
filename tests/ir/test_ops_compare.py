"""Comparisons and classifications, over every dtype and its edge values."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pytest
from graphc.ir.registry import IRTypeError
from graphc.ir.types import ALL_DTYPES, DType

from tests.ir.one_op import infer, run

FLOATS = [d for d in ALL_DTYPES if d.is_float]
COMPARE = {n: getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge")}


def edges(dtype: DType) -> list[Any]:
    if dtype.kind == "b":
        return [False, True]
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        return [0, 1, int(info.min), int(info.max), int(info.max) - 1]
    return [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("name", COMPARE)
def test_comparisons_are_pythons(name: str, dtype: DType) -> None:
    """Python compares integers exactly and floats as IEEE 754 says."""
    values = edges(dtype)
    pairs = [(a, b) for a in values for b in values]
    left, right = (np.array(side, dtype.numpy) for side in zip(*pairs))
    got = run(name, left, right)
    assert got.dtype == np.bool_
    assert got.tolist() == [COMPARE[name](a, b) for a, b in pairs]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_classifications_of_floats(dtype: DType) -> None:
    x = np.array([1.0, -0.0, math.inf, -math.inf, math.nan]).astype(dtype.numpy)
    assert run("isnan", x).tolist() == [False, False, False, False, True]
    assert run("isinf", x).tolist() == [False, False, True, True, False]
    assert run("isfinite", x).tolist() == [True, True, False, False, False]
    assert run("signbit", x[:4]).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [d for d in ALL_DTYPES if not d.is_float], ids=str)
def test_classifications_of_integers(dtype: DType) -> None:
    values = edges(dtype)
    x = np.array(values, dtype.numpy)
    assert not run("isnan", x).any() and not run("isinf", x).any() and run("isfinite", x).all()
    assert run("signbit", x).tolist() == [v < 0 for v in values]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert run("eq", x, x).shape == shape and run("isnan", x).shape == shape


def test_types() -> None:
    assert infer("lt", "f32[B, 3]", "f32[B, 3]") == "bool[B, 3]"
    assert infer("isnan", "bf16[]") == "bool[]"
    with pytest.raises(IRTypeError, match=r"eq\(f32\[3\], i32\[3\]\): operands must have the same dtype.*for example to f32"):
        infer("eq", "f32[3]", "i32[3]")
    with pytest.raises(IRTypeError, match="ge takes 2 operands, not 1"):
        infer("ge", "bool[]")
