"""The general product: shapes, the bits of its sums, gradients, messages."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.interpret import interpret
from graphc.ir.registry import IRTypeError

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import function_of, infer, run, same_bits

MATMUL = {"lhs_contract": (1,), "rhs_contract": (0,)}

# (lhs shape, rhs shape, attributes, einsum)
CASES = [
    ((2, 3), (3, 4), MATMUL, "ik,kj->ij"),
    ((2, 3), (4, 3), {"lhs_contract": (1,), "rhs_contract": (1,)}, "ik,jk->ij"),
    ((3,), (3,), {"lhs_contract": (0,), "rhs_contract": (0,)}, "k,k->"),
    ((2,), (3,), {"lhs_contract": (), "rhs_contract": ()}, "i,j->ij"),
    ((), (), {"lhs_contract": (), "rhs_contract": ()}, ",->"),
    (
        (2, 3, 4),
        (2, 4, 5),
        {"lhs_batch": (0,), "rhs_batch": (0,), "lhs_contract": (2,), "rhs_contract": (1,)},
        "bik,bkj->bij",
    ),
    # Batch dimensions in another order on the two sides, and in the middle.
    (
        (2, 3, 4, 5),
        (5, 4, 2, 3),
        {"lhs_batch": (2, 0), "rhs_batch": (1, 2), "lhs_contract": (3,), "rhs_contract": (0,)},
        "biak,kabj->abij",
    ),
    # Two contracted dimensions, crossed; the free dimensions lie around them.
    (
        (2, 3, 4, 5),
        (4, 6, 3),
        {"lhs_contract": (1, 2), "rhs_contract": (2, 0)},
        "iklj,lmk->ijm",
    ),
    ((2, 3, 4), (4, 3), {"lhs_contract": (2, 1), "rhs_contract": (0, 1)}, "ikl,lk->i"),
    ((3, 0), (0, 2), MATMUL, "ik,kj->ij"),
    ((0, 3), (3, 2), MATMUL, "ik,kj->ij"),
    ((1, 1), (1, 1), MATMUL, "ik,kj->ij"),
]


def whole_numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


@pytest.mark.parametrize("lhs, rhs, attrs, einsum", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int32"])
def test_meaning(lhs: Any, rhs: Any, attrs: dict[str, Any], einsum: str, dtype: str) -> None:
    # Sums of small whole numbers are exact in every dtype.
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    x, y = whole_numbers(lhs, numpy_dtype, 1), whole_numbers(rhs, numpy_dtype, 2)
    want = np.einsum(einsum, x.astype(np.int64), y.astype(np.int64))
    got = run("dot", x, y, **attrs)
    assert got.dtype == x.dtype and got.shape == want.shape
    assert np.array_equal(got.astype(np.int64), want)


@pytest.mark.parametrize("lhs, rhs, attrs, einsum", CASES)
def test_gradients(lhs: Any, rhs: Any, attrs: dict[str, Any], einsum: str) -> None:
    if np.prod(lhs) * np.prod(rhs) > 1000:
        lhs, rhs = tuple(min(n, 2) for n in lhs), tuple(min(n, 2) for n in rhs)
    rng = np.random.default_rng(3)
    check_gradients(
        lambda b, x, y: b.dot(x, y, **attrs), [rng.standard_normal(lhs), rng.standard_normal(rhs)]
    )


def test_gradients_have_the_values_of_einsum() -> None:
    # Distinct extents, which the finite differences do without.
    rng = np.random.default_rng(4)
    lhs, rhs, attrs, einsum = CASES[6]
    x, y = rng.standard_normal(lhs), rng.standard_normal(rhs)
    f = vjp(function_of("dot", "f64[2, 3, 4, 5]", "f64[5, 4, 2, 3]", **attrs))
    g = rng.standard_normal(f.result_types[0].shape)
    left, right = einsum.split("->")[0].split(",")
    _, dx, dy = interpret(f, [x, y, g])
    np.testing.assert_allclose(dx, np.einsum(f"abij,{right}->{left}", g, y), rtol=1e-13)
    np.testing.assert_allclose(dy, np.einsum(f"abij,{left}->{right}", g, x), rtol=1e-13)


def nearest_float32(exact: Fraction) -> np.float32:
    """The float32 nearest to a rational, ties to even, by comparing neighbours."""
    guess = np.float32(float(exact))
    near = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(near, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))


@pytest.mark.parametrize("k", [1, 5, 255, 256, 257, 600])
def test_float32_sums_are_fma_chains_in_blocks_of_256(k: int) -> None:
    rng = np.random.default_rng(k)
    x, y = (rng.standard_normal(k).astype(np.float32) for _ in range(2))
    total = None
    for begin in range(0, k, 256):
        acc = np.float32(0)
        for p, q in zip(x[begin : begin + 256], y[begin : begin + 256]):
            acc = nearest_float32(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(acc)))
        total = acc if total is None else np.float32(total + acc)
    got = run("dot", x, y, lhs_contract=(0,), rhs_contract=(0,))
    assert same_bits(got, np.asarray(total))


def test_float64_sums_are_fma_chains_in_blocks_of_256() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal(300), rng.standard_normal(300)
    blocks = []
    for begin in (0, 256):
        acc = 0.0
        for p, q in zip(x[begin : begin + 256].tolist(), y[begin : begin + 256].tolist()):
            acc = float(Fraction(p) * Fraction(q) + Fraction(acc))
        blocks.append(acc)
    assert run("dot", x, y, lhs_contract=(0,), rhs_contract=(0,)) == blocks[0] + blocks[1]


def test_the_order_of_k_is_that_of_lhs_contract() -> None:
    # Along the rows 1 - 1 + 2**-60, down the columns 1 + 2**-60 - 1.
    x = np.array([[1.0, -1.0], [2.0**-60, 0.0]])
    ones = np.ones((2, 2))
    rows = run("dot", x, ones, lhs_contract=(0, 1), rhs_contract=(0, 1))
    columns = run("dot", x, ones, lhs_contract=(1, 0), rhs_contract=(1, 0))
    assert rows == 2.0**-60 and columns == 0.0


def test_small_floats_are_summed_in_float32_and_rounded_once() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.array([256.0, 1.0, 1.0, 1.0, 1.0], np.float32)
        ones = np.ones(5, dtype)
        got = run("dot", (x * 8).astype(dtype), ones, lhs_contract=(0,), rhs_contract=(0,))
        assert got == np.float32(8 * 260).astype(dtype)


def test_an_empty_sum_is_positive_zero_and_a_lone_negative_zero_is_not_kept() -> None:
    # Both by the chain, which starts from +0.0.
    empty = run("dot", np.zeros((2, 0)), np.zeros((0, 2)), **MATMUL)
    assert same_bits(empty, np.zeros((2, 2)))
    assert same_bits(run("dot", np.array([[-0.0]]), np.array([[1.0]]), **MATMUL), np.array([[0.0]]))


def test_a_block_that_underflows_to_negative_zero_keeps_its_sign() -> None:
    x, y = np.full((1, 1), -1e-30, np.float32), np.full((1, 1), 1e-30, np.float32)
    assert same_bits(run("dot", x, y, **MATMUL), np.full((1, 1), -0.0, np.float32))


def test_integers_wrap() -> None:
    x = np.array([[100, 100]], np.int8)
    got = run("dot", x, x.T.copy(), **MATMUL)
    assert got.dtype == np.int8 and got[0, 0] == np.array(20000).astype(np.int8)
    big = np.array([[2**63]], np.uint64)
    assert run("dot", big, np.array([[3]], np.uint64), **MATMUL)[0, 0] == 2**63


def test_infinities_and_nan_pass() -> None:
    x = np.array([[np.inf, 1.0]], np.float32)
    assert run("dot", x, np.ones((2, 1), np.float32), **MATMUL)[0, 0] == np.inf
    assert np.isnan(run("dot", x, np.array([[0], [1]], np.float32), **MATMUL)[0, 0])


@pytest.mark.parametrize(
    "lhs, rhs, attrs, result",
    [
        ("f32[B, 3]", "f32[3, N]", MATMUL, "f32[B, N]"),
        (
            "f32[B, T, H, 8]",
            "f32[B, T, H, 8]",
            {"lhs_batch": (0, 2), "rhs_batch": (0, 2), "lhs_contract": (3,), "rhs_contract": (3,)},
            "f32[B, H, T, T]",
        ),
        ("f32[B, 3]", "f32[B, 4]", {"lhs_contract": (0,), "rhs_contract": (0,)}, "f32[3, 4]"),
    ],
)
def test_symbolic_shapes_and_gradients(lhs: str, rhs: str, attrs: dict[str, Any], result: str) -> None:
    assert infer("dot", lhs, rhs, **attrs) == result
    f = function_of("dot", lhs, rhs, **attrs)
    gradient = vjp(f)
    assert gradient.result_types[1:] == f.param_types
    assert vjp(gradient).result_types[3:] == gradient.param_types


@pytest.mark.parametrize(
    "lhs, rhs, attrs, message",
    [
        (
            "f32[2, 3]",
            "f32[4, 5]",
            MATMUL,
            r"dot\(f32\[2, 3\], f32\[4, 5\]\): contracted dimensions must agree, but lhs dimension 1 is 3 and rhs dimension 0 is 4; transpose or reshape",
        ),
        ("f32[2, B]", "f32[4, 5]", MATMUL, "lhs dimension 1 is B and rhs dimension 0 is 4"),
        ("f32[2, 3]", "f64[3, 5]", MATMUL, "same dtype"),
        ("bool[2, 3]", "bool[3, 5]", MATMUL, "dot is defined for numbers, not bool elements; cast"),
        (
            "f32[2, 3]",
            "f32[3, 5]",
            {"lhs_contract": (2,), "rhs_contract": (0,)},
            r"\(2,\) must be distinct axes below the rank 2",
        ),
        (
            "f32[2, 2]",
            "f32[2, 2]",
            {"lhs_contract": (1,), "rhs_contract": (0,), "lhs_batch": (1,), "rhs_batch": (1,)},
            "must be distinct axes",
        ),
        (
            "f32[2, 3]",
            "f32[3, 5]",
            {"lhs_contract": (1,), "rhs_contract": ()},
            r"lhs_contract \(1,\) and rhs_contract \(\) must name equally many axes",
        ),
        (
            "f32[2, 3]",
            "f32[3, 5]",
            {"lhs_contract": 1, "rhs_contract": (0,)},
            "lhs_contract must be 1 integer, not 1",
        ),
        (
            "f32[2, 3, 4]",
            "f32[3, 4, 5]",
            {"lhs_batch": (0,), "rhs_batch": (0,), "lhs_contract": (2,), "rhs_contract": (1,)},
            "batch dimensions must agree",
        ),
    ],
)
def test_messages(lhs: str, rhs: str, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of("dot", lhs, rhs, **attrs)
