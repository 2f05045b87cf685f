"""Functions written with other functions, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest

A = np.arange(12, dtype=np.float32).reshape(3, 4) ** 2
B = np.arange(24, dtype=np.int64).reshape(2, 3, 4) % 5
V = np.array([1, np.inf, 3], np.float32)
E = [1.0, 1.00001, np.nan, np.inf, np.inf, -np.inf, 0.0, 5.0]
F = [1.0, 1.0, np.nan, np.inf, 1.0, np.inf, 1e-9, np.inf]

CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "isclose": (lambda: gc.isclose(gc.tensor(E, dtype=gc.float64), gc.tensor(F, dtype=gc.float64)), np.isclose(E, F)),
    "isclose, NaN": (
        lambda: gc.tensor(E, dtype=gc.float64).isclose(gc.tensor(F, dtype=gc.float64), equal_nan=True),
        np.isclose(E, F, equal_nan=True),
    ),
    "isclose of integers": (lambda: gc.isclose(gc.asarray(B), 3, atol=1), np.isclose(B, 3, atol=1)),
    "isclose, unsigned": (lambda: gc.isclose(gc.tensor([1], dtype="uint8"), gc.tensor([2], dtype="uint8")), np.array([False])),
    "trace": (lambda: gc.trace(gc.asarray(A)), np.trace(A)),
    "trace of a batch": (lambda: gc.asarray(B).trace(1), np.trace(B, 1, 1, 2)),
    "diff": (lambda: gc.diff(gc.asarray(A)), np.diff(A)),
    "diff twice": (lambda: gc.diff(gc.asarray(A), n=2, dim=0), np.diff(A, 2, 0)),
    "diff of bools": (lambda: gc.diff(gc.asarray(A > 9)), np.diff(A > 9)),
    "diff with ends": (
        lambda: gc.diff(gc.asarray(A), prepend=gc.zeros(3, 1), append=gc.ones(3, 1)),
        np.diff(A, prepend=np.zeros((3, 1), np.float32), append=np.ones((3, 1), np.float32)),
    ),
    "count_nonzero": (lambda: gc.count_nonzero(gc.asarray(B)), np.count_nonzero(B)),
    "count_nonzero by dim": (lambda: gc.asarray(B).count_nonzero(dim=(0, 2)), np.count_nonzero(B, (0, 2))),
    "outer": (lambda: gc.outer(gc.asarray(A[0]), gc.asarray(A[1])), np.outer(A[0], A[1])),
    "new_zeros": (lambda: gc.asarray(B).new_zeros(2, 3), np.zeros((2, 3), np.int64)),
    "new_ones": (lambda: gc.asarray(A).new_ones((2,)), np.ones(2, np.float32)),
    "new_tensor": (lambda: gc.asarray(A).new_tensor([1, 2]), np.array([1, 2], np.float32)),
    **{f"diag {k}": (lambda k=k: gc.diag(gc.asarray(V), diagonal=k), np.diag(V, k)) for k in (-2, 0, 1)},
    **{f"diag of a matrix {k}": (lambda k=k: gc.diag(gc.asarray(A), k), np.diag(A, k)) for k in (-3, -1, 0, 2, 3, 4)},
    **{
        f"diagonal {k} {d}": (lambda k=k, d=d: gc.asarray(B).diagonal(k, *d), np.diagonal(B, k, *d))
        for k in (-1, 0, 1, 9, -9)
        for d in ((0, 1), (2, 0), (-1, -2))
    },
}


@pytest.mark.parametrize("name", CASES)
def test_as_numpy(name: str) -> None:
    run, expected = CASES[name]
    got = run()
    assert got.numpy().dtype == np.asarray(expected).dtype and got.shape == np.shape(expected)
    np.testing.assert_array_equal(got.numpy(), expected)


def test_allclose() -> None:
    x = gc.ones(3)
    assert gc.allclose(x, x + 1e-6) is True and x.allclose(x + 1e-3) is False


@pytest.mark.parametrize("shape", [(3, 4), (2, 2), (3, 1), (1, 4), (5, 4)])
@pytest.mark.parametrize("dim", [0, 1])
def test_scatter_add(shape: tuple[int, int], dim: int) -> None:
    x = np.ones((3, 4), np.float32)
    if shape[1 - dim] > x.shape[1 - dim]:
        shape = (3, shape[1])
    index = np.arange(shape[0] * shape[1]).reshape(shape) * 7 % x.shape[dim]
    src = np.arange(30, dtype=np.float32).reshape(5, 6)
    expected = x.copy()
    for i in range(shape[0]):
        for j in range(shape[1]):
            place = (index[i, j], j) if dim == 0 else (i, index[i, j])
            expected[place] += src[i, j]
    t = gc.asarray(x)
    got = gc.scatter_add(t, dim, gc.asarray(index), gc.asarray(src))
    np.testing.assert_array_equal(got.numpy(), expected)
    np.testing.assert_array_equal(t.numpy(), x)


def test_gradients_flow() -> None:
    x = gc.asarray(A).requires_grad_()
    (gc.trace(x[:, :3]) * 2 + gc.diff(x).sum()).backward()
    expected = np.zeros_like(A)
    expected[:, -1] += 1
    expected[:, 0] -= 1
    expected[range(3), range(3)] += 2
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), expected)
    y = gc.zeros((2, 3), requires_grad=True)
    src = gc.ones((1, 2), requires_grad=True)
    (gc.scatter_add(y, 1, gc.tensor([[2, 2]]), src) * gc.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert src.grad is not None and src.grad.tolist() == [[3.0, 3.0]]
    assert y.grad is not None and y.grad.tolist() == [[1.0, 2.0, 3.0]] * 2
