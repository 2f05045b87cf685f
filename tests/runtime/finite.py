"""Gradients by central differences, to hold against those of `backward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np


def check_gradients(
    f: Callable[..., Any], *arrays: np.ndarray[Any, Any], step: float = 1e-5, tolerance: float = 1e-6
) -> None:
    """Compare d<c, f(*arrays)>/d arrays, for a fixed random cotangent c, with central differences in float64.

    The error of a central difference is about step^2 plus 1e-16 / step, relatively: 1e-10 here; the tolerance
    leaves room for third derivatives up to 1e4.
    """
    values = [np.asarray(a, dtype=np.float64) for a in arrays]
    tensors = [gc.tensor(v, requires_grad=True) for v in values]
    out = f(*tensors)
    cotangent = np.random.default_rng(17).standard_normal(tuple(out.shape))
    (out * gc.asarray(cotangent)).sum().backward()

    def loss(inputs: list[np.ndarray[Any, Any]]) -> float:
        with gc.no_grad():
            return float(np.sum(f(*[gc.tensor(v) for v in inputs]).numpy() * cotangent))

    for i, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
        assert tensor.grad is not None, f"no gradient reached argument {i}"
        numeric = np.zeros_like(value)
        for at in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[i][at] += sign * step
                ends.append(loss(moved))
            numeric[at] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(tensor.grad.numpy(), numeric, rtol=tolerance, atol=tolerance)
