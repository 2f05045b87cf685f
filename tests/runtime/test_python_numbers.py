"""Functions of Python numbers only give the tensors that `asarray` makes of them, eagerly and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import pytest

MASK = gc.tensor([True, False])
HALF = gc.ones(2, dtype=gc.float16)

OF_NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "where": lambda a, b: gc.where(MASK, a, b),
    "where of a bool": lambda a, b: gc.where(True, a, b),
    "maximum": gc.maximum,
    "add": gc.add,
    "pow": gc.pow,
    "abs": lambda a, b: gc.abs(a),
    "clip": lambda a, b: gc.clip(a, b, b),
    "full": lambda a, b: gc.full((2,), a),
    "stack": lambda a, b: gc.stack([a, b]),
    "tensor": lambda a, b: gc.tensor([a, b]),
    "sum": lambda a, b: gc.sum(a),
    "broadcast_to": lambda a, b: gc.broadcast_to(a, (2,)),
    "reshape": lambda a, b: gc.reshape(a, (1,)),
    "arange": gc.arange,
}
WITH_A_TENSOR: dict[str, Callable[[Any], Any]] = {
    "where": lambda a: gc.where(MASK, HALF, a),
    "where, no tensor first": lambda a: gc.where(MASK, a, HALF),
    "clip": lambda a: gc.clip(HALF, a, a),
    "maximum": lambda a: gc.maximum(HALF, a),
    "pad": lambda a: gc.pad(HALF, [(1, 1)], a),
    "a number computed from it": lambda a: HALF * (-a + abs(a)),
    "masked_fill": lambda a: HALF.masked_fill(MASK, a),
}


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_python_numbers_only(name: str, compiled: bool) -> None:
    f = gc.compile(OF_NUMBERS[name]) if compiled else OF_NUMBERS[name]
    assert f(0.5, 2.0).dtype == gc.float32
    assert f(1, 2).dtype == gc.int64


@pytest.mark.parametrize("name", WITH_A_TENSOR)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_tensor_decides(name: str, compiled: bool) -> None:
    f = gc.compile(WITH_A_TENSOR[name]) if compiled else WITH_A_TENSOR[name]
    assert f(0.5).dtype == gc.float16
    assert f(1).dtype == gc.float16


def test_numbers_keep_their_precision_in_the_element_type_asked_for() -> None:
    @gc.compile
    def f(a: float) -> gc.Tensor:
        return gc.tensor([a, 0.2], dtype=gc.float64)

    assert f(0.1).tolist() == gc.tensor([0.1, 0.2], dtype=gc.float64).tolist() == [0.1, 0.2]
