"""`set_matmul_precision` on a device: the bits of the CPU where it promises them, near them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest

Array = np.ndarray[Any, Any]


def array(t: gc.Tensor) -> Array:
    return np.asarray(t.astype(gc.float32).to("cpu").numpy())


@pytest.fixture(autouse=True)
def as_at_first() -> Iterator[None]:
    yield
    gc.set_matmul_precision("highest")


def operands(dtype: object) -> tuple[gc.Tensor, gc.Tensor]:
    rng = np.random.default_rng(0)
    made = [gc.asarray(rng.standard_normal(s).astype(np.float32)).astype(dtype) for s in ((37, 300), (300, 24))]
    return made[0], made[1]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("level", "dtype"), [("highest", "float32"), ("exact", "float32"), ("exact", "bfloat16")])
def test_exact_products_have_the_bits_of_the_cpu(level: str, dtype: str) -> None:
    x, y = operands(getattr(gc, dtype))
    gc.set_matmul_precision(level)
    got = (x.to("cuda") @ y.to("cuda")).to("cpu")
    assert np.array_equal(array(got), array(x @ y))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("level", "unit"), [("high", 2.0**-11), ("medium", 2.0**-8)])
def test_float32_operands_are_rounded_where_that_is_allowed(level: str, unit: float) -> None:
    """Each product is off by two roundings of half a unit; the sum of 300 of them by no more than their sum."""
    x, y = operands(gc.float32)
    exact = array(x) @ array(y)
    bound = np.abs(array(x)) @ np.abs(array(y)) * 1.01 * unit
    gc.set_matmul_precision(level)
    f = gc.compile(lambda a, b: a @ b)
    got = array((x.to("cuda") @ y.to("cuda")).to("cpu"))
    assert (np.abs(got - exact) <= bound).all() and not np.array_equal(got, exact)
    assert np.array_equal(array(f(x.to("cuda"), y.to("cuda")).to("cpu")), got), "compiling changes bits"
    gc.set_matmul_precision("highest")
    assert np.array_equal(array(f(x.to("cuda"), y.to("cuda")).to("cpu")), array(x @ y))
