"""Convolution: its meaning against nested loops, the bits of its sums, gradients of every variant, messages."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.ops.fma import fma
from graphc.ir.registry import IRTypeError

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import function_of, infer, run, same_bits

Array = np.ndarray[Any, Any]


def window(rank: int, **given: Any) -> dict[str, Any]:
    """Attributes of a convolution with `rank` spatial dimensions, the plain one where nothing is given."""
    ones = (1,) * rank
    plain = {"strides": ones, "padding": ((0, 0),) * rank, "lhs_dilation": ones, "rhs_dilation": ones}
    return {**plain, **given}


# (x shape, w shape, attributes)
CASES = [
    ((2, 2, 5), (3, 2, 3), window(1)),
    ((1, 1, 1), (1, 1, 1), window(1)),
    ((1, 2, 4, 5), (3, 2, 2, 3), window(2, padding=((1, 1), (0, 2)))),
    # The last pixels are not reached: 6 - 3 is not a multiple of 2.
    ((1, 2, 6), (2, 2, 3), window(1, strides=(2,))),
    ((2, 1, 7), (2, 1, 2), window(1, strides=(3,), padding=((0, 1),))),
    ((1, 1, 5, 4), (2, 1, 1, 1), window(2, strides=(2, 3))),
    ((1, 2, 7), (1, 2, 3), window(1, rhs_dilation=(2,), padding=((1, 2),))),
    ((1, 2, 3), (2, 2, 3), window(1, lhs_dilation=(2,), padding=((2, 1),))),
    ((1, 1, 4), (1, 1, 2), window(1, strides=(2,), lhs_dilation=(3,), rhs_dilation=(2,), padding=((1, 3),))),
    # Cropping, also into the zeros between dilated elements, and to nothing but padding.
    ((1, 1, 6), (1, 1, 2), window(1, padding=((-1, -2),))),
    ((1, 1, 4), (2, 1, 2), window(1, lhs_dilation=(2,), padding=((-1, -2),))),
    ((1, 1, 3), (1, 1, 2), window(1, padding=((-3, 4),))),
    ((1, 1, 3), (1, 1, 2), window(1, padding=((5, -4),))),
    # More padding than the kernel is wide.
    ((1, 1, 2), (1, 1, 2), window(1, padding=((3, 3),), strides=(2,))),
    # Grouped, and depthwise with two channels for each.
    ((2, 4, 4), (6, 2, 2), window(1, groups=2)),
    ((1, 3, 5), (6, 1, 3), window(1, groups=3, strides=(2,), padding=((1, 0),))),
    ((1, 4, 3, 3), (4, 1, 2, 2), window(2, groups=4)),
    # Parts of the batch, each with its own output channels.
    ((4, 2, 4), (6, 2, 2), window(1, batch_groups=2)),
    ((3, 1, 5), (3, 1, 2), window(1, batch_groups=3, strides=(2,), rhs_dilation=(2,), padding=((1, 1),))),
    # No, and three, spatial dimensions.
    ((3, 2), (4, 2), window(0)),
    ((1, 1, 2, 3, 2), (2, 1, 2, 2, 1), window(3, strides=(1, 1, 2))),
    # Nothing to compute, and nothing to read.
    ((0, 2, 4), (3, 2, 2), window(1)),
    ((1, 0, 4), (3, 0, 2), window(1)),
    ((1, 2, 4), (0, 2, 2), window(1)),
    ((1, 2, 4), (3, 2, 0), window(1)),
    ((1, 2, 0), (3, 2, 2), window(1, padding=((2, 1),))),
    # Exactly no output.
    ((1, 2, 2), (3, 2, 3), window(1)),
]


def terms(x: Array, w: Array, attrs: dict[str, Any], out: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """The factors of output element `out`, in the order of k: the definition, one element at a time."""
    groups, parts = attrs.get("groups", 1), attrs.get("batch_groups", 1)
    n, o, *pixel = out
    channels = w.shape[1]
    example = o // (w.shape[0] // parts) * (x.shape[0] // parts) + n
    first = o // (w.shape[0] // groups) * channels
    found = []
    for c, *position in itertools.product(range(channels), *map(range, w.shape[2:])):
        at = []
        for i, (q, p) in enumerate(zip(pixel, position)):
            place = q * attrs["strides"][i] + p * attrs["rhs_dilation"][i] - attrs["padding"][i][0]
            extent = (x.shape[2 + i] - 1) * attrs["lhs_dilation"][i] + 1
            whole, rest = divmod(place, attrs["lhs_dilation"][i])
            at.append(whole if rest == 0 and 0 <= place < extent else -1)
        value = x[(example, first + c, *at)] if -1 not in at else x.dtype.type(0)
        found.append((value, w[(o, c, *position)]))
    return found


def by_loops(x: Array, w: Array, attrs: dict[str, Any], shape: tuple[int, ...]) -> Array:
    y = np.zeros(shape, np.int64)
    for out in np.ndindex(shape):
        y[out] = sum(int(a) * int(b) for a, b in terms(x, w, attrs, out))
    return y


@pytest.mark.parametrize("x_shape, w_shape, attrs", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.int16])
def test_meaning(x_shape: Any, w_shape: Any, attrs: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.integers(-4, 5, x_shape).astype(dtype), rng.integers(-4, 5, w_shape).astype(dtype)
    y = run("conv", x, w, **attrs)
    # Sums of small whole numbers are exact in every dtype.
    assert y.dtype == x.dtype and np.array_equal(y.astype(np.int64), by_loops(x, w, attrs, y.shape))


@pytest.mark.parametrize("x_shape, w_shape, attrs", CASES)
def test_gradients(x_shape: Any, w_shape: Any, attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(x_shape), rng.standard_normal(w_shape)]
    check_gradients(lambda b, x, w: b.conv(x, w, **attrs), arrays)


@pytest.mark.parametrize("x_shape, w_shape, attrs", CASES)
def test_gradients_of_third_order(x_shape: Any, w_shape: Any, attrs: dict[str, Any]) -> None:
    """conv is linear in x and in w, so every derivative is made of the form <conv(x, w), g>."""
    rng = np.random.default_rng(3)
    f = function_of("conv", f"f64{list(x_shape)}", f"f64{list(w_shape)}", **attrs)
    second = gradients_only(gradients_only(f))
    third = gradients_only(second)
    x, w, g, p, q, a, c, d = arrays = [rng.standard_normal(t.shape) for t in third.param_types]

    def form(x: Array, w: Array, g: Array) -> float:
        return float(np.sum(run("conv", x, w, **attrs) * g))

    # The second gradient belongs to form(p, w, g) + form(x, q, g); with a, c and d for cotangents the third
    # one belongs to form(a, q, g) + form(p, c, g) + form(p, w, d) + form(x, q, d).
    by_x, by_w, by_g = interpret(second, arrays[:5])
    got = [np.sum(by_x * a), np.sum(by_w * c), np.sum(by_g * d)]
    want = [form(a, q, g), form(p, c, g), form(p, w, d) + form(x, q, d)]
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    by_x, by_w, by_g, by_p, by_q = interpret(third, arrays)
    r, s, t = (rng.standard_normal(v.shape) for v in (x, w, g))
    got = [np.sum(by_x * r), np.sum(by_w * s), np.sum(by_g * t), np.sum(by_p * r), np.sum(by_q * s)]
    want = [
        form(r, q, d),
        form(p, s, d),
        form(a, q, t) + form(p, c, t),
        form(r, c, g) + form(r, w, d),
        form(a, s, g) + form(x, s, d),
    ]
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def gradients_only(f: Function) -> Function:
    full = vjp(f)
    return Function("g", full.params, full.ops, full.results[len(f.results) :], full.param_names)


@pytest.mark.parametrize("x_shape, w_shape, attrs", CASES)
def test_the_gradients_are_convolutions(x_shape: Any, w_shape: Any, attrs: dict[str, Any]) -> None:
    first = gradients_only(function_of("conv", f"f64{list(x_shape)}", f"f64{list(w_shape)}", **attrs))
    layout = {"conv", "permute", "reshape", "flip"}
    assert {op.name for op in first.ops} <= layout
    assert {op.name for op in gradients_only(first).ops} <= layout | {"add"}


def test_float32_sums_are_fma_chains_in_blocks_of_256_over_channel_then_kernel_position() -> None:
    rng = np.random.default_rng(4)
    attrs = window(2, padding=((1, 0), (0, 1)), strides=(2, 1))
    x = rng.standard_normal((1, 70, 3, 3)).astype(np.float32)
    w = rng.standard_normal((2, 70, 2, 2)).astype(np.float32)
    y = run("conv", x, w, **attrs)
    want = np.zeros_like(y)
    for out in np.ndindex(y.shape):
        factors = terms(x, w, attrs, out)
        blocks = []
        for begin in range(0, len(factors), 256):
            acc = np.zeros((), np.float32)
            for a, b in factors[begin : begin + 256]:
                acc = np.asarray(fma(np.asarray(a), np.asarray(b), acc))
            blocks.append(acc)
        assert len(blocks) == 2
        want[out] = blocks[0] + blocks[1]
    assert same_bits(y, want)


def test_padding_is_a_factor_like_others() -> None:
    # 0 * inf: the padding contributes terms, it is not left out.
    x, w = np.ones((1, 1, 2), np.float32), np.array([[[np.inf, 1.0]]], np.float32)
    y = run("conv", x, w, **window(1, padding=((1, 0),)))
    assert np.isnan(y[0, 0, 0]) and y[0, 0, 1] == np.inf


def test_integers_wrap() -> None:
    x, w = np.full((1, 1, 2), 100, np.int8), np.full((1, 1, 2), 100, np.int8)
    assert run("conv", x, w, **window(1)).tolist() == [[[np.array(20000).astype(np.int8)]]]


@pytest.mark.parametrize(
    "x, w, attrs, result",
    [
        ("f32[B, 3, H, W]", "f32[8, 3, 3, 3]", window(2, padding=((1, 1), (1, 1))), "f32[B, 8, H, W]"),
        (
            "f32[B, 3, H, W]",
            "f32[8, 3, 3, 3]",
            window(2, strides=(2, 3)),
            "f32[B, 8, ((H + 1)//2) - 1, ((W)//3)]",
        ),
        ("f32[B, 4, L]", "f32[6, 2, K]", window(1, groups=2, rhs_dilation=(2,)), "f32[B, 6, -2*K + L + 2]"),
        (
            "f32[B, C, L]",
            "f32[6, C, 4]",
            window(1, lhs_dilation=(3,), strides=(2,)),
            "f32[B, 6, L + ((L)//2) - 2]",
        ),
    ],
)
def test_symbolic_shapes_and_gradients(x: str, w: str, attrs: dict[str, Any], result: str) -> None:
    assert infer("conv", x, w, **attrs) == result
    f = function_of("conv", x, w, **attrs)
    first = gradients_only(f)
    assert first.result_types == f.param_types
    second = gradients_only(first)
    assert second.result_types == first.param_types
    assert gradients_only(second).result_types == second.param_types


def test_one_symbolic_function_serves_every_size() -> None:
    attrs = window(1, strides=(2,), padding=((1, 0),))
    symbolic = gradients_only(function_of("conv", "f64[B, 2, L]", "f64[3, 2, 3]", **attrs))
    rng = np.random.default_rng(5)
    for batch, length in [(1, 4), (2, 5), (3, 9), (0, 6)]:
        fixed = gradients_only(function_of("conv", f"f64[{batch}, 2, {length}]", "f64[3, 2, 3]", **attrs))
        arrays = [rng.standard_normal(t.shape) for t in fixed.param_types]
        for got, want in zip(interpret(symbolic, arrays), interpret(fixed, arrays)):
            assert same_bits(got, want)


@pytest.mark.parametrize(
    "x, w, attrs, message",
    [
        (
            "f32[1, 3, 8]",
            "f32[4, 2, 3]",
            window(1),
            r"conv\(f32\[1, 3, 8\], f32\[4, 2, 3\]\): x has 3 channels, w reads 2 in each of 1 groups; w must be",
        ),
        (
            "f32[1, 3, 8]",
            "f32[4, 3, 3, 3]",
            window(1),
            "must have the same rank, at least 2, not 3 and 4; add a batch",
        ),
        ("f32[8]", "f32[8]", window(0), "must have the same rank, at least 2"),
        ("f32[1, 3, 8]", "f64[4, 3, 3]", window(1), "same dtype"),
        ("bool[1, 3, 8]", "bool[4, 3, 3]", window(1), "conv is defined for numbers, not bool elements; cast"),
        (
            "f32[1, 3, 2]",
            "f32[4, 3, 5]",
            window(1),
            "the kernel covers 5 of spatial dimension 0, more than the 2 there are; pad x",
        ),
        (
            "f32[1, 3, 4]",
            "f32[4, 3, 3]",
            window(1, rhs_dilation=(3,)),
            "the kernel covers 7 of spatial dimension 0, more than the 4",
        ),
        (
            "f32[1, 4, 8]",
            "f32[3, 2, 3]",
            window(1, groups=2),
            "3 output channels cannot be cut into 2 groups",
        ),
        ("f32[3, 4, 8]", "f32[4, 4, 3]", window(1, batch_groups=2), "3 examples cannot be cut into 2 parts"),
        (
            "f32[4, 4, 8]",
            "f32[4, 2, 3]",
            window(1, groups=2, batch_groups=2),
            "exclude each other; one must be 1",
        ),
        ("f32[1, 3, 8]", "f32[4, 3, 3]", window(1, strides=(0,)), "strides must be at least 1"),
        ("f32[1, 3, 8]", "f32[4, 3, 3]", window(1, groups=0), "groups and batch_groups must be at least 1"),
        ("f32[1, 3, 8]", "f32[4, 3, 3]", window(1, strides=(1, 1)), "strides must be 1 integer"),
        (
            "f32[1, 3, 8]",
            "f32[4, 3, 3]",
            window(1, padding=(1,)),
            r"padding must be 1 times a pair \(low, high\), not \(1,\)",
        ),
        (
            "f32[1, 3, 8]",
            "f32[4, 3, 3]",
            window(1, padding=((1.5, 1),)),
            "padding amounts must be integers or dimensions, not 1.5",
        ),
    ],
)
def test_messages(x: str, w: str, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of("conv", x, w, **attrs)
