"""Indexing at run-time positions: meaning against loops, collisions, range errors, gradients, messages."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.interpret import interpret
from graphc.ir.registry import IRTypeError

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import function_of, infer, run, same_bits

Array = np.ndarray[Any, Any]

# (x shape, index, axis); collisions, negative positions, rank 0, nothing.
GATHERS = [
    ((4,), [0, 3, 3, -1, 1], 0),
    ((3, 2), [[0, -1], [1, 1]], 0),
    ((2, 3, 2), [2, 0, 0], 1),
    ((2, 3), [[-3]], 1),
    ((2, 3), 1, 1),
    ((3,), -2, 0),
    ((1, 1), [0, 0], 0),
    ((2, 3), np.zeros((0,), int), 0),
    ((0, 3), [1, 1], 1),
    ((0,), np.zeros((2, 0), int), 0),
]

# (x shape, index shape, axis)
ALONG = [
    ((4,), (6,), 0),
    ((3, 2), (5, 2), 0),
    ((2, 3, 2), (2, 4, 2), 1),
    ((2, 3), (2, 3), 1),
    ((1, 1), (1, 3), 1),
    ((3, 2), (0, 2), 0),
    ((3, 0), (2, 0), 0),
]


def draw(shape: tuple[int, ...], seed: int, dtype: Any = np.float64) -> Array:
    return np.asarray(np.random.default_rng(seed).integers(-8, 9, shape)).astype(dtype)


def along_index(shape: tuple[int, ...], size: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-size, size, shape)


@pytest.mark.parametrize("shape, index, axis", GATHERS)
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.int8, np.bool_])
def test_gather(shape: tuple[int, ...], index: Any, axis: int, dtype: Any) -> None:
    x, index = draw(shape, 1, dtype), np.asarray(index)
    got = run("gather", x, index, axis=axis)
    want = np.take(x, index, axis=axis)
    assert got.dtype == x.dtype and np.array_equal(got, want) and got.shape == want.shape


@pytest.mark.parametrize("shape, index, axis", GATHERS)
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.int8])
def test_scatter_and_scatter_add(shape: tuple[int, ...], index: Any, axis: int, dtype: Any) -> None:
    x, index = draw(shape, 1, dtype), np.asarray(index)
    updates = draw((*shape[:axis], *index.shape, *shape[axis + 1 :]), 2, dtype)
    added, written = x.astype(np.int64), x.copy()
    for at in np.ndindex(index.shape):
        for before in np.ndindex(shape[:axis]):
            for after in np.ndindex(shape[axis + 1 :]):
                place = (*before, int(index[at]), *after)
                added[place] += int(updates[(*before, *at, *after)])
                written[place] = updates[(*before, *at, *after)]
    got = run("scatter_add", x, index, updates, axis=axis)
    assert got.dtype == x.dtype and np.array_equal(got.astype(np.int64), added)
    assert same_bits(run("scatter", x, index, updates, axis=axis), written)


@pytest.mark.parametrize("shape, index_shape, axis", ALONG)
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.int8])
def test_take_along_and_its_writers(shape: Any, index_shape: Any, axis: int, dtype: Any) -> None:
    x, updates = draw(shape, 1, dtype), draw(index_shape, 2, dtype)
    index = along_index(index_shape, shape[axis], 3)
    got = run("take_along", x, index, axis=axis)
    assert got.dtype == x.dtype and np.array_equal(got, np.take_along_axis(x, index, axis))
    added, written = x.astype(np.int64), x.copy()
    for at in np.ndindex(index_shape):
        place = (*at[:axis], int(index[at]), *at[axis + 1 :])
        added[place] += int(updates[at])
        written[place] = updates[at]
    got = run("put_along_add", x, index, updates, axis=axis)
    assert got.dtype == x.dtype and np.array_equal(got.astype(np.int64), added)
    assert same_bits(run("put_along", x, index, updates, axis=axis), written)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32", "uint64"])
def test_any_integer_is_an_index(dtype: str) -> None:
    x = np.arange(200.0)
    assert run("gather", x, np.array([3, 120], dtype), axis=0).tolist() == [3.0, 120.0]
    if dtype.startswith("int"):
        assert run("gather", x, np.array([-1, -100], dtype), axis=0).tolist() == [199.0, 100.0]


def test_updates_are_added_in_order_to_x() -> None:
    rng = np.random.default_rng(4)
    x, updates = rng.standard_normal(3).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    index = rng.integers(0, 3, (4, 5))
    want = x.copy()
    for i, u in zip(index.ravel(), updates.ravel()):
        want[i] = np.float32(want[i] + u)
    assert same_bits(run("scatter_add", x, index, updates, axis=0), want)
    assert same_bits(run("put_along_add", x, index.ravel(), updates.ravel(), axis=0), want)


def test_small_floats_are_added_in_float32_and_rounded_once() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x, updates = np.array([2048.0], dtype), np.full(4, 8.0, np.float32).astype(dtype)
        want = np.float32(2080).astype(dtype)
        for name in ("scatter_add", "put_along_add"):
            assert run(name, x, np.zeros(4, int), updates, axis=0)[0] == want


def test_a_zero_that_nothing_is_added_to_keeps_its_sign() -> None:
    got = run("scatter_add", np.array([-0.0, -0.0]), np.array([1]), np.array([0.0]), axis=0)
    assert same_bits(got, np.array([-0.0, 0.0]))


@pytest.mark.parametrize(
    "name", ["gather", "scatter_add", "scatter", "take_along", "put_along_add", "put_along"]
)
@pytest.mark.parametrize(
    "index, first", [([0, 3, 1], 3), ([-4, 5, 0], -4), (np.array([0, 2**63, 1], np.uint64), 2**63)]
)
def test_out_of_range_names_the_index_the_axis_and_the_size(name: str, index: Any, first: int) -> None:
    x, index = np.zeros((1, 3)), np.asarray(index)
    if "along" in name:
        index = index[None, :]
    updates = [] if name in ("gather", "take_along") else [np.zeros((1, 3))]
    message = rf"{name}: index {first} is out of range for axis 1 of size 3; it must be in \[-3, 3\)"
    with pytest.raises(IndexError, match=message):
        run(name, x, index, *updates, axis=1)


def test_an_axis_of_size_0_has_no_position() -> None:
    with pytest.raises(IndexError, match="index 0 is out of range for axis 0 of size 0"):
        run("gather", np.zeros((0, 2)), np.array([0]), axis=0)


@pytest.mark.parametrize("shape, index, axis", GATHERS)
def test_gradients_of_gather_and_its_writers(shape: tuple[int, ...], index: Any, axis: int) -> None:
    rng = np.random.default_rng(5)
    x, index = rng.standard_normal(shape), np.asarray(index)
    updates = rng.standard_normal((*shape[:axis], *index.shape, *shape[axis + 1 :]))
    check_gradients(lambda b, x, i: b.square(b.gather(x, i, axis=axis)), [x, index])
    check_gradients(lambda b, x, i, u: b.square(b.scatter_add(x, i, u, axis=axis)), [x, index, updates])
    check_gradients(lambda b, x, i, u: b.square(b.scatter(x, i, u, axis=axis)), [x, index, updates])


@pytest.mark.parametrize("shape, index_shape, axis", ALONG)
def test_gradients_of_take_along_and_its_writers(shape: Any, index_shape: Any, axis: int) -> None:
    rng = np.random.default_rng(6)
    x, updates = rng.standard_normal(shape), rng.standard_normal(index_shape)
    index = along_index(index_shape, shape[axis], 7)
    check_gradients(lambda b, x, i: b.square(b.take_along(x, i, axis=axis)), [x, index])
    check_gradients(lambda b, x, i, u: b.square(b.put_along_add(x, i, u, axis=axis)), [x, index, updates])
    check_gradients(lambda b, x, i, u: b.square(b.put_along(x, i, u, axis=axis)), [x, index, updates])


def test_an_overwritten_update_has_no_gradient_even_against_infinity() -> None:
    f = vjp(function_of("scatter", "f64[2]", "i64[3]", "f64[3]", axis=0))
    index, updates = np.array([1, 1, -1]), np.zeros(3)
    _, dx, du = interpret(f, [np.zeros(2), index, updates, np.array([2.0, np.inf])])
    assert dx.tolist() == [2.0, 0.0] and du.tolist() == [0.0, 0.0, np.inf]


SYMBOLIC = [
    ("gather", ("f64[V, D]", "i32[B, T]"), 0, "f64[B, T, D]"),
    ("gather", ("f64[B, V, D]", "i64[]"), 1, "f64[B, D]"),
    ("scatter_add", ("f64[V, D]", "i32[B, T]", "f64[B, T, D]"), 0, "f64[V, D]"),
    ("scatter", ("f64[B, V, D]", "i64[T]", "f64[B, T, D]"), 1, "f64[B, V, D]"),
    ("take_along", ("f64[B, V]", "i64[B, 1]"), 1, "f64[B, 1]"),
    ("put_along_add", ("f64[B, V]", "i64[B, T]", "f64[B, T]"), 1, "f64[B, V]"),
    ("put_along", ("f64[B, V]", "u8[B, T]", "f64[B, T]"), 1, "f64[B, V]"),
]


@pytest.mark.parametrize("name, types, axis, result", SYMBOLIC)
def test_symbolic_shapes_and_gradients(name: str, types: tuple[str, ...], axis: int, result: str) -> None:
    assert infer(name, *types, axis=axis) == result
    f = function_of(name, *types, axis=axis)
    first = vjp(f)
    wrt = [p.type for p in f.params if p.type.dtype.is_float]
    assert list(first.result_types[1:]) == wrt
    assert list(vjp(first).result_types[len(first.results) :]) == [*wrt, f.result_types[0]]
    extent = {"B": 2, "V": 3, "D": 2, "T": 4}
    rng = np.random.default_rng(8)
    arrays = []
    for p in first.params:
        shape = [extent.get(str(d), 1) for d in p.type.shape]
        whole = p.type.dtype.is_integer
        arrays.append(
            np.asarray(rng.integers(0, 3, shape) if whole else rng.standard_normal(shape)).astype(
                p.type.dtype.numpy
            )
        )
    fixed = vjp(
        function_of(name, *(f"{p.type.dtype}{list(a.shape)}" for p, a in zip(f.params, arrays)), axis=axis)
    )
    for got, want in zip(interpret(first, arrays), interpret(fixed, arrays)):
        assert same_bits(got, want)


@pytest.mark.parametrize(
    "text, axis, message",
    [
        (
            ("gather", "f32[3]", "f32[2]"),
            0,
            r"gather\(f32\[3\], f32\[2\]\): the index must have an integer dtype, not f32; cast it to i64",
        ),
        (("gather", "f32[3]", "bool[2]"), 0, "the index must have an integer dtype, not bool"),
        (("gather", "f32[3]", "i64[2]"), 1, r"axis 1 is not in \[0, 1\)"),
        (("gather", "f32[3]", "i64[2]"), -1, r"axis -1 is not in \[0, 1\)"),
        (("gather", "f32[3]"), 0, "gather takes 2 operands, not 1"),
        (("gather", "f32[]", "i64[]"), 0, r"axis 0 is not in \[0, 0\)"),
        (
            ("take_along", "f32[3, 2]", "i64[3]"),
            0,
            r"index and x may differ in dimension 0 only, not \[3\] and \[3, 2\]; broadcast",
        ),
        (("take_along", "f32[3, B]", "i64[3, 2]"), 0, r"not \[3, 2\] and \[3, B\]"),
        (
            ("scatter_add", "f32[3]", "i64[2]", "f32[3]"),
            0,
            r"updates must have the shape \[2\], not \[3\]; broadcast them",
        ),
        (("scatter_add", "f32[3]", "i64[2]", "f64[2]"), 0, "updates must have the dtype f32 of x, not f64"),
        (("scatter_add", "bool[3]", "i64[2]", "bool[2]"), 0, "scatter_add is defined for numbers, not bool"),
        (("put_along", "f32[3]", "i64[2]", "f32[1]"), 0, r"updates must have the shape \[2\], not \[1\]"),
    ],
)
def test_messages(text: tuple[str, ...], axis: int, message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of(*text, axis=axis)


def test_bool_can_be_overwritten() -> None:
    got = run("scatter", np.zeros(3, bool), np.array([1]), np.array([True]), axis=0)
    assert got.tolist() == [False, True, False]
