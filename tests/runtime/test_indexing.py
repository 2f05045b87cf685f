"""Indexing against NumPy: reading, writing, gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import graphc as gc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
A = np.array
# Each is an index that NumPy takes too; arrays are given to graphc as tensors.
INDICES: list[Any] = [
    0, -1, (1, 2), (1, -1, 3), slice(1, 3), slice(None, None, -1), (slice(None), 1), (slice(None), slice(3, None, -2)),
    (Ellipsis, 0), (0, Ellipsis), Ellipsis, None, (None, 1, None, slice(2)), (slice(None), None, 2), slice(5, 9), slice(2, 1),
    (slice(None), slice(-3, -1), slice(4, None, -3)), (),
    A([0, 2]), A([[0, 1], [2, 2]]), A([-1, 0]), (slice(None), A([3, 0])), (A([0, 2]), A([1, 3])), (A([[0], [2]]), A([1, 3])),
    (A([0, 1]), slice(None), A([4, 2])), (slice(None), A([0, 1]), A([4, 2])), (0, slice(None), A([1, 1])), (0, A([1, 2])),
    (A([0, 1]), 2), (slice(1, 3), A([0, 2]), slice(None, None, 2)), (Ellipsis, A([0, 4])), (None, A([0, 1])), A(1), A([], dtype=np.int64),
    (A([0, 1]), None, A([2, 3])),
]  # fmt: skip


def given_to_graphc(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(given_to_graphc(i) for i in index)
    return gc.tensor(index) if isinstance(index, np.ndarray) else index


def same(t: gc.Tensor, expected: Any) -> None:
    got, want = t.numpy(), np.asarray(expected)
    assert got.dtype == want.dtype and got.shape == want.shape, (got.shape, want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_reading(index: Any) -> None:
    same(gc.tensor(X)[given_to_graphc(index)], X[index])
    # And of a view.
    same(gc.tensor(X.T.copy()).T[given_to_graphc(index)], X[index])


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_writing(index: Any) -> None:
    shape = X[index].shape
    for value in (7.0, np.arange(np.prod(shape), dtype=np.float32).reshape(shape)):
        expected = X.copy()
        expected[index] = value
        t = gc.tensor(X)
        t[given_to_graphc(index)] = value if isinstance(value, float) else gc.tensor(value)
        same(t, expected)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_gradient_of_reading_and_writing(index: Any) -> None:
    x = gc.tensor(X, requires_grad=True)
    y = x[given_to_graphc(index)]
    weight = np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)
    (y * gc.tensor(weight)).sum().backward()
    expected = np.zeros_like(X)
    np.add.at(expected, index, weight)
    same(x.grad, expected)

    # Writing: the cotangent goes to the value where it was written last, elsewhere to x.
    x, v = gc.tensor(X, requires_grad=True), gc.ones(y.shape, requires_grad=True)
    z = x * 1
    z[given_to_graphc(index)] = v
    (z * gc.tensor(X)).sum().backward()
    kept = X.copy()
    kept[index] = 0
    same(x.grad, kept)
    owner = np.full(X.shape, -1)
    owner[index] = np.arange(y.size).reshape(y.shape)
    last = owner[index].reshape(-1) == np.arange(y.size)
    same(v.grad, np.where(last.reshape(y.shape), X[index], 0).astype(np.float32))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_compiled_reading_and_writing(index: Any) -> None:
    ours = given_to_graphc(index)

    @gc.compile
    def f(x: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
        y = x[ours] + 1
        z = x * 2
        z[ours] = y
        return y, z

    for _ in range(3):
        y, z = f(gc.tensor(X))
        expected = X * 2
        expected[index] = X[index] + 1
        same(y, X[index] + 1)
        same(z, expected)


MASKS = [X > 30, X[:, :, 0] > 20, X[:, 0, 0] > 5, X > 1000]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: str(m.shape))
def test_bool_masks(mask: Any) -> None:
    same(gc.tensor(X)[gc.tensor(mask)], X[mask])
    for value in (5.0, np.arange(X[mask].size, dtype=np.float32).reshape(X[mask].shape)):
        expected = X.copy()
        expected[mask] = value
        t = gc.tensor(X)
        t[gc.tensor(mask)] = value if isinstance(value, float) else gc.tensor(value)
        same(t, expected)


def test_mask_with_other_indices() -> None:
    mask = np.array([True, False, True, True])
    same(gc.tensor(X)[1, gc.tensor(mask)], X[1, mask])
    same(gc.tensor(X)[:, mask, 1:3], X[:, mask, 1:3])
    same(gc.tensor(X)[[True, False, True]], X[[True, False, True]])


def test_writing_a_mask_is_compiled() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        x = x * 1
        x[x > 30] = 0
        return x

    for _ in range(3):
        same(f(gc.tensor(X)), np.where(X > 30, 0, X).astype(np.float32))
    assert not any(family.eager for family in f._families.values())


def test_functions() -> None:
    x, i = gc.tensor(X), np.array([[0, 2], [1, 1]])
    same(gc.take(x, gc.tensor(i), axis=1), np.take(X, i, 1))
    same(gc.take(x, [3, -1]), np.take(X, [3, -1]))
    order = np.argsort(-X, 2)
    same(gc.take_along_axis(x, gc.tensor(order), axis=2), np.take_along_axis(X, order, 2))
    same(x.gather(1, gc.tensor(np.zeros((2, 1, 3), np.int64))), X[:2, :1, :3])
    same(x.index_select(2, gc.tensor([4, 0])), X[:, :, [4, 0]])
    same(gc.put_along_axis(x, gc.tensor([[[1]]]), 0.5, axis=2), np.concatenate([X[..., :1], np.full((3, 4, 1), 0.5), X[..., 2:]], 2).astype(np.float32))
    same(gc.index_add(gc.zeros(3), 0, gc.tensor([1, 1, 0]), gc.ones(3)), np.array([1, 2, 0], np.float32))
    for got, want in zip(gc.nonzero(x > 50), np.nonzero(X > 50)):
        same(got, want)


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (3, IndexError, r"index 3 is out of range for dimension 0 of size 3"),
        ((0, -5), IndexError, r"index -5 is out of range for dimension 1 of size 4"),
        ((0, 0, 0, 0), IndexError, r"4 indices for a tensor f32\[3, 4, 5\] of 3 dimensions"),
        ((Ellipsis, Ellipsis), IndexError, "one Ellipsis"),
        ("a", TypeError, "str is not an index"),
        (1.0, TypeError, "float is not an index"),
        (gc.ones(2), TypeError, "integers or bool"),
        (slice(None, None, 0), ValueError, "step"),
        (gc.tensor([True, False]), IndexError, r"the mask bool\[2\] must have the shape"),
        (gc.tensor([0, 3]), IndexError, "index 3"),
        ((gc.tensor([0, 1]), gc.tensor([0, 4])), IndexError, "index 4"),
        ((gc.tensor([0, 1]), gc.tensor([0, 1, 2])), ValueError, "do not broadcast"),
    ],
    ids=str,
)
def test_refused(index: Any, error: type[Exception], text: str) -> None:
    x = gc.tensor(X)
    with pytest.raises(error, match=text) as info:
        x[index]
    assert "test_indexing.py" in str(info.value) or error is ValueError
    with pytest.raises(error, match=text):
        x[index] = 0.0


def test_refused_values() -> None:
    x = gc.tensor(X)
    with pytest.raises(ValueError, match=r"f32\[3\] cannot be broadcast to the selected shape \[4, 5\]"):
        x[0] = gc.ones(3)
    with pytest.raises(ValueError, match=r"cannot be broadcast to the selected shape \[2, 4, 5\]"):
        x[gc.tensor([0, 1])] = gc.ones(3)
    same(x, X)
    leaf = gc.tensor(X, requires_grad=True)
    with pytest.raises(RuntimeError, match="assignment in place on a leaf"):
        leaf[0] = 1.0


def test_mask_needs_values() -> None:
    with pytest.raises(TypeError, match="not known while tracing"):
        gc.trace_function(lambda x: x[x > 0], ["f32[4]"])


def test_symbolic_sizes() -> None:
    f = gc.trace_function(lambda x: (x[1:], x[:-1, ::2], x[-1], x[::-1]), ["f32[B, 6]"]).function
    assert [str(t) for t in f.result_types] == ["f32[B - 1, 6]", "f32[B - 1, 3]", "f32[6]", "f32[B, 6]"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_basic_index(data: st.DataObject) -> None:
    def item(n: int) -> Any:
        bound = st.one_of(st.none(), st.integers(-n - 2, n + 2))
        ranges = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, -1, -2]))
        return data.draw(st.one_of(st.integers(-n, n - 1), ranges, st.none()))

    index = []
    dims = list(X.shape)
    while dims and len(index) < 5:
        index.append(item(dims[0]))
        if index[-1] is not None:
            dims.pop(0)
    same(gc.tensor(X)[tuple(index)], X[tuple(index)])
