"""Layout operations: their meaning against NumPy, shapes, gradients, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Value
from graphc.ir.interpret import interpret
from graphc.ir.registry import IRTypeError
from graphc.ir.types import TensorType, symbol

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import function_of, infer, run

B, N = symbol("B"), symbol("N")


def counted(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=dtype).reshape(shape)


# (operation, operand shape, attributes, the same in NumPy)
CASES = [
    ("reshape", (2, 6), {"shape": (3, 4)}, lambda x: x.reshape(3, 4)),
    ("reshape", (1, 1), {"shape": ()}, lambda x: x.reshape(())),
    ("reshape", (0, 6), {"shape": (2, 0, 3)}, lambda x: x.reshape(2, 0, 3)),
    ("permute", (2, 3, 4), {"axes": (2, 0, 1)}, lambda x: x.transpose(2, 0, 1)),
    ("permute", (), {"axes": ()}, lambda x: x),
    ("permute", (3, 1, 0), {"axes": (1, 2, 0)}, lambda x: x.transpose(1, 2, 0)),
    ("broadcast", (3,), {"shape": (2, 3), "axes": (1,)}, lambda x: np.broadcast_to(x, (2, 3))),
    ("broadcast", (2,), {"shape": (2, 3), "axes": (0,)}, lambda x: np.broadcast_to(x[:, None], (2, 3))),
    (
        "broadcast",
        (2, 1),
        {"shape": (2, 4, 3), "axes": (0, 2)},
        lambda x: np.repeat(x[:, :, None], 4, axis=1).repeat(3, axis=2),
    ),
    ("broadcast", (1, 1), {"shape": (1, 5), "axes": (0, 1)}, lambda x: np.broadcast_to(x, (1, 5))),
    ("broadcast", (), {"shape": (2, 2), "axes": ()}, lambda x: np.broadcast_to(x, (2, 2))),
    ("broadcast", (1, 3), {"shape": (0, 3), "axes": (0, 1)}, lambda x: np.broadcast_to(x, (0, 3))),
    ("broadcast", (2, 3), {"shape": (2, 3), "axes": (0, 1)}, lambda x: x),
    ("slice", (5, 6), {"start": (1, 0), "limit": (4, 6), "stride": (1, 2)}, lambda x: x[1:4, ::2]),
    ("slice", (7,), {"start": (2,), "limit": (7,), "stride": (3,)}, lambda x: x[2:7:3]),
    ("slice", (7,), {"start": (3,), "limit": (3,), "stride": (2,)}, lambda x: x[3:3]),
    ("slice", (), {"start": (), "limit": (), "stride": ()}, lambda x: x),
    ("slice", (0, 2), {"start": (0, 1), "limit": (0, 2), "stride": (3, 1)}, lambda x: x[:, 1:]),
    ("flip", (2, 3), {"axes": (0, 1)}, lambda x: x[::-1, ::-1]),
    ("flip", (2, 3), {"axes": ()}, lambda x: x),
    ("flip", (0, 1), {"axes": (0,)}, lambda x: x),
]


@pytest.mark.parametrize("name, shape, attrs, expected", CASES)
@pytest.mark.parametrize("dtype", ["float32", "int16", "bool"])
def test_meaning(name: str, shape: tuple[int, ...], attrs: dict[str, Any], expected: Any, dtype: str) -> None:
    x = counted(*shape).astype(dtype)
    want = expected(x)
    got = run(name, x, **attrs)
    assert got.dtype == want.dtype and np.array_equal(got, want)
    assert got.shape == want.shape


@pytest.mark.parametrize("name, shape, attrs, expected", CASES)
def test_gradients(name: str, shape: tuple[int, ...], attrs: dict[str, Any], expected: Any) -> None:
    check_gradients(lambda b, x: b.square(b.emit(name, x, **attrs)), [np.sin(counted(*shape))])


@pytest.mark.parametrize(
    "shape, low, high, interior",
    [
        ((3, 2), (1, 0), (2, 3), (0, 2)),
        ((1,), (0,), (0,), (3,)),
        ((0, 2), (1, 1), (0, 1), (0, 0)),
        ((), (), (), ()),
    ],
)
def test_gradients_of_pad(shape: Any, low: Any, high: Any, interior: Any) -> None:
    def body(b: Builder, x: Value, value: Value) -> Value:
        return b.square(b.pad(x, value, low=low, high=high, interior=interior))  # type: ignore[no-any-return]

    check_gradients(body, [np.sin(counted(*shape)), np.array(0.7)])


def test_gradients_of_concat() -> None:
    x, y, e = np.sin(counted(2, 3)), np.cos(counted(2, 1)), np.zeros((2, 0))
    check_gradients(lambda b, *v: b.square(b.concat(*v, axis=1)), [x, y, e])
    check_gradients(lambda b, v: b.square(b.concat(v, v, axis=0)), [x])


def test_broadcast_places_dimensions_where_axes_say() -> None:
    x = counted(2, 3)
    got = run("broadcast", x, shape=(2, 4, 3), axes=(0, 2))
    assert np.array_equal(got, np.repeat(x[:, None, :], 4, axis=1))


def test_pad_against_a_loop() -> None:
    x = counted(3, 2)
    got = run("pad", x, -1.0, low=(1, 0), high=(2, 3), interior=(0, 2))
    want = np.full((6, 7), -1.0)
    for i in range(3):
        for j in range(2):
            want[1 + i, 3 * j] = x[i, j]
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    "shape, attrs, size",
    [
        ((0, 2), {"low": (2, 0), "high": (1, 0), "interior": (0, 0)}, (3, 2)),
        # The size rule is linear also for no elements: -1 gaps between them.
        ((0,), {"low": (2,), "high": (1,), "interior": (2,)}, (1,)),
        ((), {"low": (), "high": (), "interior": ()}, ()),
    ],
)
def test_pad_of_empty_and_rank_0(
    shape: tuple[int, ...], attrs: dict[str, Any], size: tuple[int, ...]
) -> None:
    x = counted(*shape)
    got = run("pad", x, 7.0, **attrs)
    assert got.shape == size and np.all(got == (7.0 if shape else 1.0))


def test_concat_of_one_two_three_and_empty_operands() -> None:
    x, y, e = counted(2, 3), counted(2, 1), np.zeros((2, 0))
    assert np.array_equal(run("concat", x, axis=1), x)
    assert np.array_equal(run("concat", x, e, y, axis=1), np.concatenate([x, y], axis=1))
    assert np.array_equal(run("concat", x, x, x, axis=0), np.concatenate([x, x, x]))


@pytest.mark.parametrize(
    "text, attrs, result",
    [
        (("reshape", "f32[B, 4, N]"), {"shape": (N, 2 * B, 2)}, "f32[N, 2*B, 2]"),
        (("permute", "f32[B, 4, N]"), {"axes": (2, 0, 1)}, "f32[N, B, 4]"),
        (("broadcast", "f32[B, 1]"), {"shape": (N, B, 5), "axes": (1, 2)}, "f32[N, B, 5]"),
        (("broadcast", "f32[1]"), {"shape": (B,), "axes": (0,)}, "f32[B]"),
        (("slice", "f32[B, 4]"), {"start": (1, 0), "limit": (B, 4), "stride": (1, 2)}, "f32[B - 1, 2]"),
        (("slice", "f32[B]"), {"start": (B - 3,), "limit": (B,), "stride": (1,)}, "f32[3]"),
        (("slice", "f32[B]"), {"start": (0,), "limit": (B,), "stride": (2,)}, "f32[((B + 1)//2)]"),
        (
            ("pad", "f32[B, 4]", "f32[]"),
            {"low": (1, N), "high": (2, 0), "interior": (1, 0)},
            "f32[2*B + 2, N + 4]",
        ),
        (("concat", "f32[B, 4]", "f32[N, 4]", "f32[2, 4]"), {"axis": 0}, "f32[B + N + 2, 4]"),
        (("flip", "f32[B, 4]"), {"axes": (0,)}, "f32[B, 4]"),
    ],
)
def test_symbolic_shapes_and_gradients(text: tuple[str, ...], attrs: dict[str, Any], result: str) -> None:
    assert infer(*text, **attrs) == result
    f = function_of(*text, **attrs)
    gradient = vjp(f)
    assert gradient.result_types[1:] == f.param_types
    again = vjp(gradient)
    assert again.result_types[len(gradient.results) :] == gradient.param_types


@pytest.mark.parametrize("n", [0, 1, 4, 5])
def test_a_symbolic_slice_and_its_gradient_run_for_every_size(n: int) -> None:
    f = vjp(function_of("slice", "f64[N]", start=(0,), limit=(N,), stride=(2,)))
    x, g = counted(n), counted((n + 1) // 2)
    y, dx = interpret(f, [x, g])
    want = np.zeros(n)
    want[::2] = g
    assert np.array_equal(y, x[::2]) and np.array_equal(dx, want)


@pytest.mark.parametrize("n", [1, 3])
def test_a_symbolic_pad_and_its_gradient_run(n: int) -> None:
    f = vjp(function_of("pad", "f64[N]", "f64[]", low=(2,), high=(N,), interior=(1,)))
    size = 2 + 2 * n - 1 + n
    g = counted(size)
    _, dx, dvalue = interpret(f, [counted(n), np.array(9.0), g])
    assert np.array_equal(dx, g[2 : 2 + 2 * n - 1 : 2]) and dvalue == g.sum() - dx.sum()


def test_the_padding_value_has_a_finite_gradient_beside_an_infinite_one() -> None:
    f = vjp(function_of("pad", "f64[1]", "f64[]", low=(1,), high=(1,), interior=(0,)))
    _, dx, dvalue = interpret(f, [np.zeros(1), np.array(0.0), np.array([1.0, np.inf, 2.0])])
    assert dx.tolist() == [np.inf] and dvalue == 3.0


@pytest.mark.parametrize(
    "text, attrs, message",
    [
        (
            ("reshape", "f32[2, 3]"),
            {"shape": (4, 2)},
            r"reshape\(f32\[2, 3\]\): the shape \[4, 2\] has 8 elements, the operand 6; give",
        ),
        (("reshape", "f32[B, 3]"), {"shape": (6,)}, r"has 6 elements, the operand 3\*B"),
        (("reshape", "f32[6]"), {"shape": (-1, 2)}, "shape must be a tuple of dimensions"),
        (("permute", "f32[2, 3]"), {"axes": (0, 0)}, "are not a permutation of 0..1; name every axis once"),
        (("permute", "f32[2, 3]"), {"axes": (0,)}, "axes must be 2 integers"),
        (
            ("broadcast", "f32[2, 3]"),
            {"shape": (4, 3), "axes": (0, 1)},
            r"dimension 0 of size 2 cannot become dimension 0 of \[4, 3\]; it must be 1 or 4",
        ),
        (
            ("broadcast", "f32[3]"),
            {"shape": (4, 3), "axes": (0, 1)},
            "a result dimension for each of the 1 operand dimensions",
        ),
        (("broadcast", "f32[1, 1]"), {"shape": (4, 3), "axes": (1, 0)}, "not ascending"),
        (
            ("slice", "f32[5]"),
            {"start": (1,), "limit": (6,), "stride": (1,)},
            r"slice\(f32\[5\]\): \[1:6:1\] is not a range of dimension 0 of size 5; 0 <= start <= limit <= size",
        ),
        (("slice", "f32[5]"), {"start": (4,), "limit": (2,), "stride": (1,)}, "is not a range"),
        (("slice", "f32[B]"), {"start": (0,), "limit": (B + 1,), "stride": (1,)}, "is not a range"),
        (("slice", "f32[5]"), {"start": (0,), "limit": (2,), "stride": (0,)}, "stride must be at least 1"),
        (("slice", "f32[5]"), {"start": (0, 0), "limit": (2,), "stride": (1,)}, "start must have 1 entries"),
        (
            ("pad", "f32[5]", "f32[]"),
            {"low": (-1,), "high": (0,), "interior": (0,)},
            "low must be a tuple of dimensions",
        ),
        (
            ("pad", "f32[5]", "f32[1]"),
            {"low": (1,), "high": (0,), "interior": (0,)},
            "must have rank 0; reshape it",
        ),
        (("pad", "f32[5]", "f64[]"), {"low": (1,), "high": (0,), "interior": (0,)}, "same dtype"),
        (
            ("concat", "f32[5, 2]", "f32[5, 3]"),
            {"axis": 0},
            r"operands may differ in dimension 0 only, not \[5, 2\] and \[5, 3\]",
        ),
        (("concat", "f32[5]", "f32[5, 3]"), {"axis": 0}, "operands may differ in dimension 0 only"),
        (("concat",), {"axis": 0}, "nothing to concatenate"),
        (("concat", "f32[5]"), {"axis": -1}, r"axis -1 is not in \[0, 1\)"),
        (("flip", "f32[5]"), {"axes": (1,)}, r"axis 1 is not in \[0, 1\)"),
    ],
)
def test_messages(text: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of(*text, **attrs)


def test_a_range_that_only_a_value_can_break_is_an_index_error() -> None:
    f = function_of("slice", "f32[B]", start=(0,), limit=(4,), stride=(1,))
    with pytest.raises(IndexError, match=r"slice: \[0:4\] is out of range for dimension 0 of size 3"):
        interpret(f, [np.zeros(3, np.float32)])


def test_a_strided_slice_of_nothing_has_the_gradient_zero() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f64[5]"))
    f = vjp(b.build([b.slice(x, start=(5,), limit=(5,), stride=(2,))]))
    _, dx = interpret(f, [counted(5), np.zeros(0)])
    assert np.array_equal(dx, np.zeros(5))
