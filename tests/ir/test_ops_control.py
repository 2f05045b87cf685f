"""call, stop_gradient and check_index."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.registry import IRTypeError
from graphc.ir.types import TensorType, symbol

from tests.ir.gradcheck import build, check_gradients
from tests.ir.one_op import function_of, infer, run


def polar() -> Function:
    """(r, angle) -> (r cos angle, r sin angle), with a symbolic size."""
    b = Builder("polar")
    r, angle = (b.param(TensorType.parse("f64[B]"), n) for n in ("r", "angle"))
    return b.build([b.mul(r, b.cos(angle)), b.mul(r, b.sin(angle))])


def calling(*types: str) -> Function:
    b = Builder("f")
    params = [b.param(TensorType.parse(t)) for t in types]
    x, y = b.call(*params, function=polar())
    return b.build([b.add(x, y), y])


def test_call_gives_the_results_of_the_callee() -> None:
    r, angle = np.array([1.0, 2.0]), np.array([0.0, 0.5])
    total, y = interpret(calling("f64[B]", "f64[B]"), [r, angle])
    np.testing.assert_allclose(total, r * np.cos(angle) + r * np.sin(angle), rtol=1e-15)
    np.testing.assert_allclose(y, r * np.sin(angle), rtol=1e-15)


def test_gradient_of_call() -> None:
    check_gradients(calling("f64[B]", "f64[B]"), [np.array([1.0, 2.0]), np.array([0.3, 0.5])], order=3)


def test_symbols_of_the_callee_are_the_callers() -> None:
    """A size that only the caller's parameters determine reaches the body of the callee."""
    b = Builder("ramp")
    x = b.param(TensorType.parse("f32[]"))
    ramp = b.build([b.full(x, shape=(symbol("N"),))])
    b = Builder("f")
    like, x = b.param(TensorType.parse("f32[N]")), b.param(TensorType.parse("f32[]"))
    f = b.build([b.add(like, b.call(x, function=ramp))])
    got = interpret(f, [np.arange(3, dtype=np.float32), np.asarray(2.0, np.float32)])
    assert got[0].tolist() == [2.0, 3.0, 4.0]


def test_gradient_calls_differentiate_the_needed_operands_only() -> None:
    """The second operand passes through an operation without a gradient."""
    b = Builder("step")
    x, y = (b.param(TensorType.parse("f64[2]")) for _ in range(2))
    callee = b.build([b.mul(x, b.nextafter(y, x))])
    with pytest.raises(TypeError, match="nextafter"):
        vjp(build(lambda b, x, y: b.call(x, y, function=callee), [np.ones(2)] * 2))
    f = vjp(build(lambda b, x, y: b.call(b.stop_gradient(x), y, function=callee), [np.ones(2)] * 2), wrt=[0])
    assert interpret(f, [np.ones(2)] * 3)[1].tolist() == [0.0, 0.0]
    g = Builder("late")
    x, y = (g.param(TensorType.parse("f64[2]")) for _ in range(2))
    late = g.build([g.mul(x, g.nextafter(y, y))])
    f = vjp(build(lambda b, x, y: b.call(x, y, function=late), [np.ones(2)] * 2), wrt=[0])
    assert interpret(f, [np.ones(2), np.full(2, 3.0), np.ones(2)])[1].tolist() == [3.0, 3.0]


def test_equal_calls_share_one_gradient_function() -> None:
    callee = build(lambda b, x: b.sin(x), [np.ones(3)])

    def stacked(b: Builder, x: object) -> object:
        for _ in range(5):
            x = b.call(x, function=callee)
        return x

    f = vjp(build(stacked, [np.ones(3)]))  # type: ignore[arg-type]
    gradients = {id(op.attrs["function"]) for op in f.ops if op.name == "call" and len(op.operands) == 2}
    assert len(gradients) == 1


def test_stop_gradient_is_the_identity_with_gradient_zero() -> None:
    x = np.array([1.5, -2.0])
    assert run("stop_gradient", x).tolist() == x.tolist()
    assert run("stop_gradient", np.array([True])).tolist() == [True]
    f = build(lambda b, x: b.mul(b.stop_gradient(x), x), [x])
    assert interpret(vjp(f), [x, np.ones(2)])[1].tolist() == x.tolist()


@pytest.mark.parametrize("index", [[0, -3, 2], [], 1])
def test_check_index_passes_valid_indices(index: object) -> None:
    for dtype in (np.int8, np.int64):
        assert run("check_index", np.array(index, dtype), size=3).tolist() == index


@pytest.mark.parametrize(("index", "dtype", "bad"), [([0, 3], np.int64, 3), ([-4, 0], np.int8, -4), ([2**64 - 1], np.uint64, 2**64 - 1)])
def test_check_index_refuses_others(index: list[int], dtype: type, bad: int) -> None:
    with pytest.raises(IndexError, match=rf"index {bad} is out of range for a dimension of size 3; it must be in \[-3, 3\)"):
        run("check_index", np.array(index, dtype), size=3)


def test_check_index_of_a_symbolic_size() -> None:
    b = Builder("f")
    b.param(TensorType.parse("f32[B]"))
    i = b.param(TensorType.parse("i64[]"))
    f = b.build([b.check_index(i, size=symbol("B"))])
    assert interpret(f, [np.zeros(5, np.float32), np.int64(4)]) == [4]
    with pytest.raises(IndexError, match="index 5"):
        interpret(f, [np.zeros(5, np.float32), np.int64(5)])


def test_type_errors() -> None:
    with pytest.raises(IRTypeError, match=r"call\(f32\[2\]\): @polar takes \(f64\[B\], f64\[B\]\); operands must have exactly these types"):
        infer("call", "f32[2]", function=polar())
    with pytest.raises(IRTypeError, match="must be an IR function, not 'polar'"):
        infer("call", "f32[2]", function="polar")
    with pytest.raises(IRTypeError, match="check_index is defined for signed integer or unsigned integer elements, not f32"):
        infer("check_index", "f32[2]", size=2)
    with pytest.raises(IRTypeError, match=r"size must be a dimension, not 2\.5"):
        infer("check_index", "i64[2]", size=2.5)
    assert str(function_of("call", "f64[B]", "f64[B]", function=polar()).result_types) == "(f64[B], f64[B])"
