"""Reductions and the linear scan: the order of combination to the bit, edge values, gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.interpret import interpret
from graphc.ir.ops.reduce import adjacent_groups
from graphc.ir.registry import IRTypeError
from graphc.ir.types import BF16, F16, F32, F64, I8, I64, U8, DType

from tests.ir.gradcheck import build, check_gradients
from tests.ir.one_op import function_of, infer, run, same_bits

NAN, INF = math.nan, math.inf
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# ---- the order of combination ------------------------------------------------------------------


def in_contract_order(x: list[Any], combine: Any, identity: Any) -> Any:
    """The bit contract read aloud, one element at a time."""
    chunks = []
    for start in range(0, len(x), 4096):
        lanes = [identity] * 32
        for i, value in enumerate(x[start : start + 4096]):
            lanes[i % 32] = combine(lanes[i % 32], value)
        for half in (16, 8, 4, 2, 1):
            lanes = [combine(lanes[lane], lanes[lane + half]) for lane in range(half)]
        chunks.append(lanes[0])
    total = chunks[0]
    for c in chunks[1:]:
        total = combine(total, c)
    return total


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 100, 4096, 4097, 9000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_sums_and_products_in_order(n: int, dtype: type) -> None:
    x = (1 + 0.01 * normal(n, seed=n)).astype(dtype)
    assert run("sum", x, axes=(0,)) == in_contract_order(list(x), lambda p, q: p + q, dtype(-0.0))
    assert run("prod", x, axes=(0,)) == in_contract_order(list(x), lambda p, q: p * q, dtype(1.0))


def test_the_order_matters() -> None:
    """The contract's order is not NumPy's: were it, the test above would not test the order."""
    x = normal(9000).astype(np.float32)
    assert run("sum", x, axes=(0,)) != np.sum(x)


def test_adjacent_axes_are_one_and_groups_go_innermost_first() -> None:
    assert adjacent_groups((0, 1, 3)) == [[0, 1], [3]]
    x = normal(7, 9, 5, 11).astype(np.float32)
    inner = run("sum", x, axes=(3,))
    assert same_bits(run("sum", x, axes=(0, 1, 3)), run("sum", inner.reshape(63, 5), axes=(0,)))
    flat = run("sum", x.reshape(-1), axes=(0,))
    assert same_bits(run("sum", x, axes=(0, 1, 2, 3)), flat)


def test_result_does_not_depend_on_the_batch() -> None:
    x = normal(6, 5000).astype(np.float32)
    rows = [run("sum", x[i : i + 1], axes=(1,))[0] for i in range(6)]
    assert run("sum", x, axes=(1,)).tolist() == rows


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_narrow_floats_accumulate_in_float32(dtype: DType) -> None:
    x = normal(3, 700, 2).astype(dtype.numpy)
    wide = run("sum", x.astype(np.float32), axes=(0, 2))
    assert same_bits(run("sum", x, axes=(0, 2)), wide.astype(dtype.numpy))
    assert float(run("sum", np.ones(5000, dtype.numpy), axes=(0,))) == float(np.float32(5000).astype(dtype.numpy))


# ---- edge values -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize(
    ("name", "values", "want"),
    [
        ("sum", [], 0.0), ("prod", [], 1.0), ("max", [], -INF), ("min", [], INF),
        ("sum", [-0.0], -0.0), ("sum", [-0.0, -0.0], -0.0), ("sum", [-0.0, 0.0], 0.0), ("sum", [INF, -INF], NAN), ("sum", [NAN], NAN),
        ("prod", [-0.0, 2.0], -0.0), ("prod", [INF, 0.0], NAN),
        ("max", [-0.0, 0.0], -0.0), ("max", [0.0, -0.0], 0.0), ("min", [0.0, -0.0], 0.0), ("min", [-0.0, 0.0], -0.0),
        ("max", [1.0, NAN, 2.0], NAN), ("min", [NAN, 1.0], NAN), ("max", [-INF, -INF], -INF), ("min", [3.0, -INF], -INF),
    ],
)  # fmt: skip
def test_special_values(name: str, values: list[float], want: float, dtype: DType) -> None:
    got = run(name, np.array(values).astype(dtype.numpy), axes=(0,))
    assert same_bits(got, np.array(want).astype(dtype.numpy)), got


@pytest.mark.parametrize(
    ("name", "dtype", "values", "want"),
    [
        ("sum", I8, [127, 1], -128), ("sum", U8, [255, 2], 1), ("prod", I8, [16, 16], 0), ("sum", I64, [], 0),
        ("max", I8, [], -128), ("min", U8, [], 255), ("max", I8, [-128, -127], -127), ("min", I64, [2**62, -(2**63)], -(2**63)),
    ],
)  # fmt: skip
def test_integers(name: str, dtype: DType, values: list[int], want: int) -> None:
    got = run(name, np.array(values, dtype.numpy), axes=(0,))
    assert got.dtype == dtype.numpy and got == want


def test_any_and_all() -> None:
    x = np.array([[True, False], [True, True]])
    assert run("any", x, axes=(1,)).tolist() == [True, True] and run("all", x, axes=(1,)).tolist() == [False, True]
    empty = np.zeros((2, 0), bool)
    assert run("any", empty, axes=(1,)).tolist() == [False, False] and run("all", empty, axes=(1,)).tolist() == [True, True]


def test_no_axes_is_the_identity() -> None:
    x = np.array([-0.0, NAN, 3.0], np.float32)
    for name in ("sum", "prod", "max", "min"):
        assert same_bits(run(name, x, axes=()), x)


def test_reducing_nothing_over_an_empty_shape() -> None:
    assert run("sum", np.zeros((0, 3), np.float32), axes=(1,)).shape == (0,)
    assert same_bits(run("sum", np.zeros((2, 0, 3), np.float32), axes=(0, 2)), np.zeros(0, np.float32))
    assert same_bits(run("sum", np.zeros((0, 3), np.float32), axes=(0,)), np.zeros(3, np.float32))


@pytest.mark.parametrize("axes", [axes for k in range(4) for axes in itertools.combinations(range(3), k)])
def test_values_over_all_axes(axes: tuple[int, ...]) -> None:
    x = normal(3, 4, 5)
    np.testing.assert_allclose(run("sum", x, axes=axes), np.sum(x, axis=axes), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(run("prod", x, axes=axes), np.prod(x, axis=axes), rtol=1e-13)
    np.testing.assert_array_equal(run("max", x, axes=axes), np.max(x, axis=axes))
    np.testing.assert_array_equal(run("min", x, axes=axes), np.min(x, axis=axes))


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_argmax_takes_the_first_of_equals_and_the_first_nan(dtype: DType) -> None:
    x = np.array([[1, 3, 3], [NAN, 5, NAN], [-0.0, 0.0, -INF], [-INF, -INF, -INF]]).astype(dtype.numpy)
    got = run("argmax", x, axis=1)
    assert got.tolist() == [1, 0, 0, 0] and got.dtype == np.int64
    assert run("argmin", x, axis=1).tolist() == [0, 0, 2, 0]
    assert run("argmax", x[:2], axis=0).tolist() == [1, 1, 1]


def test_argmax_of_integers() -> None:
    x = np.array([2**63, 2**64 - 1, 2**64 - 1], np.uint64)
    assert run("argmax", x, axis=0) == 1 and run("argmin", x, axis=0) == 0


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_gradient(name: str, axes: tuple[int, ...]) -> None:
    check_gradients(lambda b, x: b.emit(name, x, axes=axes), [normal(2, 3, 2)])


@pytest.mark.parametrize("zeros", [[], [1], [0, 3], [0, 1, 2]])
def test_gradient_of_prod_with_zeros_to_third_order(zeros: list[int]) -> None:
    x = normal(4)
    x[zeros] = 0.0
    check_gradients(lambda b, v: b.prod(v, axes=(0,)), [x], order=3)


def first_gradient(name: str, x: Array) -> Array:
    f = build(lambda b, v: b.emit(name, v, axes=(0,)), [x])
    return interpret(vjp(f), [x, np.ones((), x.dtype)])[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_extrema_share_the_gradient(dtype: type) -> None:
    assert first_gradient("max", np.array([2, 1, 2, 2, 2], dtype)).tolist() == [0.25, 0, 0.25, 0.25, 0.25]
    assert first_gradient("min", np.array([2, 1, 1], dtype)).tolist() == [0, 0.5, 0.5]


def test_equal_extrema_beyond_the_digits_of_float16() -> None:
    assert np.all(first_gradient("max", np.zeros(4097, np.float16)) == np.float16(1 / np.float32(4096)))


def test_gradients_of_empty_and_single_elements() -> None:
    for name in ("sum", "prod", "max"):
        assert first_gradient(name, np.zeros(0)).shape == (0,)
        assert first_gradient(name, np.array([5.0])).tolist() == [1.0]


def test_gradient_of_prod_with_symbolic_dimensions() -> None:
    f = vjp(function_of("prod", "f64[B, T]", axes=(1,)))
    x = normal(2, 3)
    x[0, 1] = 0.0
    gradient = interpret(f, [x, np.ones(2)])[1]
    np.testing.assert_allclose(gradient, [[0, x[0, 0] * x[0, 2], 0], np.prod(x[1]) / x[1]], rtol=1e-14, atol=0)


# ---- the linear scan ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scan_is_a_chain_of_fma(dtype: type) -> None:
    from graphc.ir.ops.fma import fma

    a, b = normal(5, 3).astype(dtype), normal(5, 3, seed=1).astype(dtype)
    h = [b[0]]
    for i in range(1, 5):
        h.append(fma(a[i], h[-1], b[i]))
    assert same_bits(run("linear_scan", a, b, axis=0), np.stack(h))
    assert same_bits(run("linear_scan", a[::-1], b[::-1], axis=0, reverse=True), np.stack(h)[::-1])


def test_scan_gives_cumulative_sums_and_products() -> None:
    x = np.arange(1, 7).reshape(2, 3)
    assert run("linear_scan", np.ones_like(x), x, axis=1).tolist() == np.cumsum(x, 1).tolist()
    first = np.array([[1, 0, 0]] * 2) * x
    assert run("linear_scan", x, first, axis=1).tolist() == np.cumprod(x, 1).tolist()


def test_scan_edges() -> None:
    # The first factor is not read, even where it is NaN.
    got = run("linear_scan", np.array([NAN, 2.0]), np.array([-0.0, -0.0]), axis=0)
    assert same_bits(got, np.array([-0.0, -0.0]))
    assert run("linear_scan", np.zeros((0, 2)), np.zeros((0, 2)), axis=0).shape == (0, 2)
    assert run("linear_scan", np.full(3, 2, np.int8), np.full(3, 100, np.int8), axis=0).tolist() == [100, 44, -68]
    # float16 carries float32: 1 + 2**-11 twice is 1 + 2**-10, and neither step is lost.
    small = np.array([1.0, 2**-11, 2**-11], np.float16)
    assert run("linear_scan", np.ones(3, np.float16), small, axis=0)[2] == np.float16(1 + 2**-10)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradient_of_scan(axis: int, reverse: bool) -> None:
    check_gradients(
        lambda b, x, y: b.linear_scan(x, y, axis=axis, reverse=reverse), [normal(3, 2), normal(3, 2, seed=1)], order=3
    )


# ---- type rules --------------------------------------------------------------------------------


def test_types_of_results() -> None:
    assert infer("sum", "f16[B, 3, T]", axes=(0, 2)) == "f16[3]"
    assert infer("argmax", "u8[B, 3]", axis=0) == "i64[3]"
    assert infer("all", "bool[B]", axes=(0,)) == "bool[]"
    assert infer("linear_scan", "f32[B, T]", "f32[B, T]", axis=1, reverse=True) == "f32[B, T]"


@pytest.mark.parametrize(
    ("name", "types", "attrs", "message"),
    [
        ("sum", ["f32[2, 3]"], {"axes": 0}, r"axes must be a tuple of integers, not 0; write \(0,\)"),
        ("sum", ["f32[2, 3]"], {"axes": (2,)}, r"axis 2 is not in \[0, 2\); axes in the IR are never negative"),
        ("sum", ["f32[2, 3]"], {"axes": (-1,)}, "axis -1 is not in"),
        ("max", ["f32[2, 3]"], {"axes": (1, 0)}, "not ascending and distinct; sort them"),
        ("prod", ["f32[2, 3]"], {"axes": (1, 1)}, "not ascending and distinct"),
        ("sum", ["bool[2]"], {"axes": (0,)}, "sum is defined for signed integer or unsigned integer or floating point elements, not bool"),
        ("any", ["i32[2]"], {"axes": (0,)}, "any is defined for bool elements, not i32"),
        ("argmax", ["f32[2, 0]"], {"axis": 1}, "axis 1 has no elements"),
        ("argmax", ["f32[2]"], {"axis": 1}, "axis 1 is not in"),
        ("linear_scan", ["f32[2]", "f32[3]"], {"axis": 0}, "operands must have the same shape"),
        ("linear_scan", ["f32[]", "f32[]"], {"axis": 0}, r"axis 0 is not in \[0, 0\)"),
        ("linear_scan", ["f32[2]", "f32[2]"], {"axis": 0, "reverse": 1}, "reverse must be True or False, not 1"),
    ],
)  # fmt: skip
def test_type_errors(name: str, types: list[str], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        infer(name, *types, **attrs)


def test_argmax_of_no_elements_at_run_time() -> None:
    with pytest.raises(ValueError, match=r"argmax: axis 0 of \[0\] has no elements"):
        interpret(function_of("argmax", "f32[B]", axis=0), [np.zeros(0, np.float32)])
