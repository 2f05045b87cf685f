"""constant, full and iota."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.ir.function import Builder, DenseArray
from graphc.ir.interpret import interpret
from graphc.ir.ops.create import constant_scalar, filled
from graphc.ir.registry import IRTypeError
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, I32, I64, U8, DType, TensorType, symbol

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import infer, run, same_bits


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_constant_keeps_its_array(dtype: DType) -> None:
    x = np.array([[0, 1]], dtype.numpy)
    assert same_bits(run("constant", value=x), x)
    assert infer("constant", value=x) == f"{dtype}[1, 2]"


def test_constants_are_equal_by_bits() -> None:
    zero, minus = (Builder("f") for _ in range(2))
    f = zero.build([zero.constant(value=np.float32(0.0) * np.ones(2, np.float32))])
    g = minus.build([minus.constant(value=np.float32(-0.0) * np.ones(2, np.float32))])
    assert f != g and f == f.__class__("f", f.params, f.ops, f.results)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1,)])
def test_full(shape: tuple[int, ...]) -> None:
    for dtype in (F32, BF16, I64, BOOL):
        x = np.ones((), dtype.numpy)
        assert same_bits(run("full", x, shape=shape), np.ones(shape, dtype.numpy))
    assert same_bits(run("full", np.array(-0.0), shape=(2,)), np.array([-0.0, -0.0]))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_gradient_of_full(shape: tuple[int, ...]) -> None:
    check_gradients(lambda b, x: b.square(b.full(x, shape=shape)), [np.asarray(0.7)])


def test_iota() -> None:
    assert run("iota", shape=(2, 3), axis=1, dtype=I32).tolist() == [[0, 1, 2]] * 2
    assert run("iota", shape=(2, 3), axis=0, dtype=F32).tolist() == [[0.0] * 3, [1.0] * 3]
    assert run("iota", shape=(2, 0), axis=1, dtype=F32).shape == (2, 0)
    assert run("iota", shape=(300,), axis=0, dtype=U8)[256] == 0
    assert run("iota", shape=(2050,), axis=0, dtype=F16)[2049] == 2048
    assert run("iota", shape=(3,), axis=0, dtype=BF16).dtype == BF16.numpy


def test_symbolic_shapes() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f32[B]"), "x")
    n = 2 * symbol("B") + 1
    f = b.build([b.iota(shape=(n,), axis=0, dtype=I64), filled(b, 2.5, x.type.with_shape((n, 2)))])
    line, two = interpret(f, [np.zeros(2, np.float32)])
    assert line.tolist() == [0, 1, 2, 3, 4] and two.shape == (5, 2) and np.all(two == 2.5)


def test_literals_round_to_their_dtype() -> None:
    b = Builder("f")
    f = b.build([constant_scalar(b, 0.1, F16), constant_scalar(b, -0.0, BF16), constant_scalar(b, True, BOOL)])
    tenth, zero, true = interpret(f, [])
    assert tenth == np.float16(0.1) and np.signbit(zero.astype(np.float32)) and true.dtype == np.bool_


@pytest.mark.parametrize(
    ("name", "types", "attrs", "message"),
    [
        ("constant", [], {"value": 3}, "value must be an array, not 3; wrap it in numpy.asarray"),
        ("constant", ["f32[]"], {"value": DenseArray(np.zeros(1))}, "constant takes 0 operands, not 1"),
        ("full", ["f32[2]"], {"shape": (2,)}, "the operand must have rank 0; use broadcast for a tensor"),
        ("full", ["f32[]"], {"shape": 2}, "shape must be a tuple of dimensions"),
        ("full", ["f32[]"], {"shape": (-1,)}, "shape must be a tuple of dimensions"),
        ("iota", [], {"shape": (2,), "axis": 1, "dtype": I64}, r"axis 1 is not in \[0, 1\)"),
        ("iota", [], {"shape": (2,), "axis": 0, "dtype": BOOL}, "not bool"),
        ("iota", [], {"shape": (2,), "axis": 0, "dtype": "i64"}, "dtype must be an element type"),
    ],
)
def test_type_errors(name: str, types: list[str], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        infer(name, *types, **attrs)
