"""Pooling: meaning against nested loops, special values, orders of summation, gradients, messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.registry import IRTypeError

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import function_of, infer, run, same_bits

Array = np.ndarray[Any, Any]


def pool(*window: int, **given: Any) -> dict[str, Any]:
    ones = (1,) * len(window)
    plain = {"strides": ones, "padding": ((0, 0),) * len(window), "dilation": ones}
    return {"window": window, **plain, **given}


CASES = [
    ((2, 3, 6), pool(2, strides=(2,))),
    ((5,), pool(3)),
    ((1, 2, 4, 5), pool(2, 3, strides=(2, 1), padding=((0, 1), (1, 1)))),
    # The last elements are not reached.
    ((2, 6), pool(3, strides=(2,))),
    # Gaps between windows.
    ((7,), pool(2, strides=(3,))),
    ((8,), pool(3, dilation=(2,), padding=((1, 1),))),
    ((3, 3, 2), pool(2, 2, 1)),
    ((1,), pool(1)),
    ((2, 1, 1), pool(3, 3, padding=((1, 1), (1, 1)))),
    # Windows without an element: the first and the last here, every second one with dilation.
    ((2,), pool(2, padding=((2, 2),))),
    ((1,), pool(2, dilation=(2,), padding=((1, 2),))),
    ((0, 4), pool(2)),
    ((2, 0), pool(2, padding=((1, 2),))),
    ((3, 2), pool(3)),
]


def reads(
    shape: tuple[int, ...], out: tuple[int, ...], attrs: dict[str, Any]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(window position, element) for each element that window `out` holds, in row-major order."""
    lead = len(shape) - len(attrs["window"])
    for k, position in enumerate(itertools.product(*map(range, attrs["window"]))):
        at = tuple(
            o * s + p * d - lo
            for o, s, p, d, (lo, _) in zip(
                out[lead:], attrs["strides"], position, attrs["dilation"], attrs["padding"]
            )
        )
        if all(0 <= i < n for i, n in zip(at, shape[lead:])):
            yield k, out[:lead] + at


def whole_numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    return np.random.default_rng(seed).integers(-5, 6, shape).astype(dtype)


@pytest.mark.parametrize("shape, attrs", CASES)
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint16]
)
def test_max_pool(shape: tuple[int, ...], attrs: dict[str, Any], dtype: Any) -> None:
    x = whole_numbers(shape, np.int64, 1).astype(dtype)
    values, index = run("max_pool", x, **attrs)
    assert values.dtype == x.dtype and index.dtype == np.int32 and values.shape == index.shape
    lowest = -np.inf if x.dtype.kind in "fV" else np.iinfo(x.dtype).min
    for out in np.ndindex(values.shape):
        held = list(reads(shape, out, attrs))
        best = max(held, key=lambda pair: x[pair[1]]) if held else (-1, None)
        assert index[out] == best[0]
        assert values[out] == (x[best[1]] if held else lowest)


def test_the_first_maximum_wins_and_nan_wins_over_all() -> None:
    def first(*row: float) -> tuple[float, int]:
        values, index = run("max_pool", np.array(row, np.float32), **pool(len(row)))
        return float(values[0]), int(index[0])

    assert first(1, 3, 3, 2) == (3, 1)
    assert first(-np.inf, -np.inf) == (-np.inf, 0)
    for row in ([np.nan, np.inf], [np.inf, np.nan], [1, np.nan, np.nan]):
        value, at = first(*row)
        assert np.isnan(value) and at == int(np.argmax(np.isnan(row)))
    # +0 and -0 are equal: the first.
    for row, negative in ([-0.0, 0.0], True), ([0.0, -0.0], False):
        value, at = first(*row)
        assert bool(np.signbit(value)) is negative and at == 0


def test_padding_never_wins() -> None:
    values, index = run("max_pool", np.array([-3.0, -np.inf]), **pool(2, padding=((1, 1),)))
    assert values.tolist() == [-3.0, -3.0, -np.inf] and index.tolist() == [1, 0, 0]


@pytest.mark.parametrize("shape, attrs", CASES)
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.int16])
def test_sum_pool_max_pool_take_and_their_transposes(
    shape: tuple[int, ...], attrs: dict[str, Any], dtype: Any
) -> None:
    # Sums of small whole numbers are exact in every dtype.
    x = whole_numbers(shape, dtype, 2)
    total = run("sum_pool", x, **attrs)
    _, index = run("max_pool", whole_numbers(shape, np.float32, 3), **attrs)
    taken = run("max_pool_take", x, index, **attrs)
    dy = whole_numbers(total.shape, dtype, 4)
    spread = run("sum_pool_grad", dy, input_shape=shape, **attrs)
    routed = run("max_pool_grad", dy, index, input_shape=shape, **attrs)
    want_spread, want_routed = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for out in np.ndindex(total.shape):
        held = dict(reads(shape, out, attrs))
        assert int(total[out]) == sum(int(x[at]) for at in held.values())
        k = int(index[out])
        assert int(taken[out]) == (int(x[held[k]]) if k in held else 0)
        for position, at in held.items():
            want_spread[at] += int(dy[out])
            want_routed[at] += int(dy[out]) * (position == k)
    assert np.array_equal(spread.astype(np.int64), want_spread) and spread.dtype == x.dtype
    assert np.array_equal(routed.astype(np.int64), want_routed) and routed.dtype == x.dtype


def test_sum_pool_adds_in_order_from_negative_zero() -> None:
    rng = np.random.default_rng(5)
    attrs = pool(3, 4, strides=(1, 2), padding=((1, 1), (2, 0)))
    x = rng.standard_normal((6, 8)).astype(np.float32)
    y = run("sum_pool", x, **attrs)
    for out in np.ndindex(y.shape):
        acc = np.float32(-0.0)
        for _, at in reads(x.shape, out, attrs):
            acc = np.float32(acc + x[at])
        assert same_bits(y[out], acc)
    assert same_bits(run("sum_pool", np.full(2, -0.0), **pool(2, padding=((1, 0),))), np.full(2, -0.0))


def test_a_window_without_an_element_sums_to_positive_zero() -> None:
    y = run("sum_pool", np.array([-1.0]), **pool(1, padding=((1, 1),)))
    assert same_bits(y, np.array([0.0, -1.0, 0.0]))


@pytest.mark.parametrize("routed", [False, True])
def test_gradients_add_in_the_order_of_the_outputs(routed: bool) -> None:
    rng = np.random.default_rng(6)
    attrs = pool(3, 3, strides=(1, 1), dilation=(1, 2), padding=((1, 1), (2, 2)))
    x = rng.standard_normal((5, 6)).astype(np.float32)
    x[2, 3] = 9.0
    _, index = run("max_pool", x, **attrs)
    dy = rng.standard_normal(index.shape).astype(np.float32)
    if routed:
        got = run("max_pool_grad", dy, index, input_shape=x.shape, **attrs)
    else:
        got = run("sum_pool_grad", dy, input_shape=x.shape, **attrs)
    want = np.zeros(x.shape, np.float32)
    for out in np.ndindex(dy.shape):
        for k, at in reads(x.shape, out, attrs):
            if not routed or k == index[out]:
                want[at] = np.float32(want[at] + dy[out])
    assert same_bits(got, want)
    assert same_bits(
        run("sum_pool_grad", np.array([-0.0]), input_shape=(3,), **pool(1, strides=(3,))), np.zeros(3)
    )


def test_small_floats_are_summed_in_float32() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        row = np.array([2048.0, 8.0, 8.0, 8.0, 8.0], np.float32).astype(dtype)
        want = np.float32(2080).astype(dtype)
        assert run("sum_pool", row, **pool(5))[0] == want
        dy = np.append(row, np.zeros(4, dtype))
        assert run("sum_pool_grad", row, input_shape=(9,), **pool(5))[4] == want
        assert (
            run("max_pool_grad", dy[:5], np.array([4, 3, 2, 1, 0], np.int32), input_shape=(9,), **pool(5))[4]
            == want
        )


@pytest.mark.parametrize("shape, attrs", CASES)
def test_gradients(shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    x = rng.permutation(int(np.prod(shape))).reshape(shape) / 4 - 1.0
    values, index = run("max_pool", x, **attrs)
    # -inf has no central difference: windows without an element are left out.
    if (index >= 0).all():
        check_gradients(lambda b, x: b.square(b.max_pool(x, **attrs)[0]), [x])
    check_gradients(lambda b, x: b.square(b.sum_pool(x, **attrs)), [x])
    check_gradients(lambda b, x, i: b.square(b.max_pool_take(x, i, **attrs)), [x, index])
    dy = rng.standard_normal(values.shape)
    check_gradients(lambda b, g, i: b.square(b.max_pool_grad(g, i, input_shape=shape, **attrs)), [dy, index])
    check_gradients(lambda b, g: b.square(b.sum_pool_grad(g, input_shape=shape, **attrs)), [dy])


@pytest.mark.parametrize("name, index", [("max_pool", True), ("sum_pool", False)])
def test_symbolic_shapes_and_gradients(name: str, index: bool) -> None:
    attrs = pool(2, 3, strides=(2, 1), padding=((0, 0), (1, 1)))
    both = "f32[B, 4, ((H)//2), W]" + ("; i32[B, 4, ((H)//2), W]" if index else "")
    assert infer(name, "f32[B, 4, H, W]", **attrs) == both
    f = function_of(name, "f64[B, 4, H, W]", **attrs)
    first = vjp(f)
    assert first.result_types[-1] == f.param_types[0]
    gradient = Function("g", first.params, first.ops, first.results[-1:], first.param_names)
    second = vjp(gradient)
    for shape in [(2, 4, 4, 3), (1, 4, 5, 1), (0, 4, 2, 2)]:
        fixed = function_of(name, f"f64{list(shape)}", **attrs)
        out = fixed.result_types[0].shape
        rng = np.random.default_rng(8)
        x, g, p = rng.standard_normal(shape), rng.standard_normal(out), rng.standard_normal(shape)  # type: ignore[arg-type]
        for got, want in zip(interpret(first, [x, g]), interpret(vjp(fixed), [x, g])):
            assert same_bits(got, want)
        dx, *_, dg = interpret(second, [x, g, p])
        np.testing.assert_allclose(np.sum(dg * g), np.sum(dx * p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "text, attrs, message",
    [
        (
            ("max_pool", "f32[2, 3]"),
            pool(5),
            r"max_pool\(f32\[2, 3\]\): the window covers 5 elements of dimension 1, more than the 3 there are; pad the input",
        ),
        (("max_pool", "f32[3]"), pool(2, dilation=(4,)), "the window covers 5 elements of dimension 0"),
        (
            ("max_pool", "bool[3]"),
            pool(2),
            "max_pool is defined for signed integer or unsigned integer or floating point",
        ),
        (("sum_pool", "f32[3]"), pool(2, 2), r"window \(2, 2\) must have between 1 and 1 entries"),
        (("sum_pool", "f32[3]"), {**pool(1), "window": ()}, "must have between 1 and 1 entries"),
        (("sum_pool", "f32[3]"), {**pool(1), "window": 3}, "window 3 must have|window must be 1 integer"),
        (("sum_pool", "f32[3]"), pool(0), "window must be at least 1"),
        (("sum_pool", "f32[3]"), pool(2, padding=((-1, 0),)), r"padding \(\(-1, 0\),\) must be >= 0; slice"),
        (("sum_pool", "f32[3]"), pool(2, strides=(1, 1)), "strides must be 1 integer"),
        (
            ("sum_pool_grad", "f32[3]"),
            {**pool(2), "input_shape": (3,)},
            r"windows over \[3\] have the shape \[2\], the cotangent has \[3\]",
        ),
        (
            ("max_pool_grad", "f32[2]", "i64[2]"),
            {**pool(2), "input_shape": (3,)},
            "the index must be i32, not i64; pass the second result",
        ),
        (
            ("max_pool_grad", "f32[2]", "i32[3]"),
            {**pool(2), "input_shape": (3,)},
            r"the index must have the shape \[2\] of the windows, not \[3\]",
        ),
        (("max_pool_take", "f32[3]", "i32[3]"), pool(2), r"the index must have the shape \[2\]"),
        (("max_pool_take", "f32[3]"), pool(2), "max_pool_take takes 2 operands, not 1"),
    ],
)
def test_messages(text: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of(*text, **attrs)
