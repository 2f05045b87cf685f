"""vjp and jvp as transformations: signatures, sums over uses, activity, lines, errors, higher orders."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from graphc.ir.autodiff import jvp, vjp
from graphc.ir.function import Builder, Function, Loc, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import I64, TensorType
from graphc.ir.verify import verify

from tests.ir.gradcheck import build, check_gradients
from tests.ir.one_op import same_bits

X = np.array([0.5, -1.25, 2.0])
ONE = np.ones(3)


def ops_of(f: Function) -> Counter[str]:
    return Counter(op.name for op in f.ops)


def mixed() -> Function:
    """(x, i, w) -> (x*w, i, w): floats and an integer, among the results too."""
    b = Builder("mixed")
    x, i, w = (b.param(TensorType.parse(t), n) for t, n in (("f64[3]", "x"), ("i64[3]", "i"), ("f64[3]", "w")))
    return b.build([b.mul(x, w), i, w])


def test_signature_of_vjp() -> None:
    f = vjp(mixed())
    assert f.name == "mixed_vjp" and f.param_names == ("x", "i", "w", "ct_0", "ct_2")
    assert [str(t) for t in f.result_types] == ["f64[3]", "i64[3]", "f64[3]", "f64[3]", "f64[3]"]
    i = np.array([1, 2, 3])
    product, again, _, dx, dw = interpret(f, [X, i, 2 * ONE, ONE, 3 * ONE])
    assert product.tolist() == (2 * X).tolist() and again.tolist() == i.tolist()
    assert dx.tolist() == (2 * ONE).tolist() and dw.tolist() == (X + 3).tolist()


def test_signature_of_jvp() -> None:
    f = jvp(mixed())
    assert f.name == "mixed_jvp" and f.param_names == ("x", "i", "w", "t_x", "t_w")
    *_, dproduct, dw = interpret(f, [X, np.array([1, 2, 3]), 2 * ONE, ONE, 3 * ONE])
    assert dproduct.tolist() == (2 + 3 * X).tolist() and dw.tolist() == (3 * ONE).tolist()
    verify(f)


def test_wrt_chooses_and_orders_gradients() -> None:
    f = vjp(mixed(), wrt=[2, 0])
    *_, dw, dx = interpret(f, [X, np.array([1, 2, 3]), 2 * ONE, ONE, ONE])
    assert dx.tolist() == (2 * ONE).tolist() and dw.tolist() == (X + 1).tolist()
    assert len(vjp(mixed(), wrt=[]).results) == 3


def test_wrt_is_checked() -> None:
    with pytest.raises(TypeError, match=r"@mixed cannot be differentiated by its parameter i: i64\[3\], which is not floating point"):
        vjp(mixed(), wrt=[1])
    with pytest.raises(IndexError, match="@mixed has 3 parameters; there is no parameter 3"):
        jvp(mixed(), wrt=[3])


def test_uses_are_summed_in_reverse_program_order() -> None:
    """a + (b + c) and (a + b) + c differ here, so the bits show the order."""
    x = np.array([1.0])
    scales = [2.0**-53, 2.0**-53, 1.0]

    def body(b: Builder, x: Value) -> list[Value]:
        return [b.mul(x, b.constant(value=np.array([s]))) for s in scales]

    gradient = interpret(vjp(build(body, [x])), [x, *np.ones((3, 1))])[-1]
    assert gradient[0] == (1.0 + 2.0**-53) + 2.0**-53 != 1.0 + (2.0**-53 + 2.0**-53)


def test_results_used_twice_and_parameters_as_results() -> None:
    def body(b: Builder, x: Value) -> list[Value]:
        y = b.square(x)
        return [y, y, x, b.add(y, x)]

    check_gradients(body, [X])


def test_gradient_of_an_unused_parameter_is_zero() -> None:
    f = vjp(build(lambda b, x, y: b.exp(x), [X, X]))
    assert interpret(f, [X, X, ONE])[2].tolist() == [0.0, 0.0, 0.0]
    assert interpret(jvp(build(lambda b, x: b.constant(value=X), [X])), [X, X])[1].tolist() == [0.0] * 3


def test_no_gradient_flows_through_integers() -> None:
    def body(b: Builder, x: Value) -> Value:
        return b.mul(b.cast(b.cast(b.floor(x), dtype=I64), dtype=x.type.dtype), x)

    f = build(body, [X])
    assert interpret(vjp(f), [X, ONE])[1].tolist() == np.floor(X).tolist()


def test_only_what_depends_on_wrt_is_differentiated() -> None:
    """The branch of y has an operation without a gradient; no operation is emitted for it."""
    f = build(lambda b, x, y: b.mul(x, b.nextafter(b.sin(y), y)), [X, X])
    gradient = vjp(f, wrt=[0])
    assert ops_of(gradient) - ops_of(f) == Counter({"mul": 1})


def test_dead_gradient_operations_are_not_emitted() -> None:
    """The rule of pow also gives the exponent's gradient, with a log; here nobody asks for it."""
    f = build(lambda b, x: b.pow(x, b.constant(value=3 * ONE)), [X])
    assert "log" not in ops_of(vjp(f))


def test_operations_without_gradient_are_named_with_line_and_reason() -> None:
    def body(b: Builder, x: Value) -> Value:
        b.loc = Loc("train.py", 12)
        return b.nextafter(x, x)

    message = (
        r'nextafter\(f64\[3\], f64\[3\]\) at "train.py":12 has no gradient: it steps between neighbouring numbers, '
        "and is not differentiable; put stop_gradient on its operand"
    )
    with pytest.raises(TypeError, match=message):
        vjp(build(body, [X]))
    with pytest.raises(TypeError, match="nextafter"):
        jvp(build(body, [X]))


def test_gradient_operations_carry_the_forward_line() -> None:
    def body(b: Builder, x: Value) -> Value:
        b.loc = Loc("model.py", 1)
        y = b.sin(x)
        b.loc = Loc("model.py", 2)
        return b.mul(y, y)

    f = build(body, [X])
    emitted = vjp(f).ops[len(f.ops) :]
    assert [(op.name, op.loc.line if op.loc else None) for op in emitted] == [
        ("mul", 2), ("mul", 2), ("add", 2), ("cos", 1), ("mul", 1),
    ]  # fmt: skip


def test_forward_results_are_unchanged_and_shared() -> None:
    f = build(lambda b, x: b.tanh(b.exp(x)), [X])
    g = vjp(f)
    assert g.ops[: len(f.ops)] == f.ops
    assert same_bits(interpret(g, [X, ONE])[0], interpret(f, [X])[0])


def test_names_of_higher_orders_stay_distinct() -> None:
    f = vjp(vjp(mixed()))
    assert len(set(f.param_names)) == len(f.param_names)
    g = jvp(jvp(mixed()))
    assert len(set(g.param_names)) == len(g.param_names)
    verify(f)
    verify(g)


def test_symbolic_shapes() -> None:
    b = Builder("f")
    x, w = b.param(TensorType.parse("f64[B, 3]"), "x"), b.param(TensorType.parse("f64[3]"), "w")
    wide = b.broadcast(w, shape=x.type.shape, axes=(1,))
    f = b.build([b.sum(b.square(b.mul(x, wide)), axes=(0, 1))])
    assert [str(t) for t in vjp(f).result_types] == ["f64[]", "f64[B, 3]", "f64[3]"]
    rng = np.random.default_rng(0)
    check_gradients(f, [rng.standard_normal((2, 3)), rng.standard_normal(3)])


def test_composition_to_fourth_order() -> None:
    check_gradients(lambda b, x: b.mul(b.sin(x), b.exp(x)), [np.array([0.7])], order=4)


def test_hessian_of_a_softmax_cross_entropy() -> None:
    def body(b: Builder, x: Value) -> Value:
        peak = b.broadcast(b.stop_gradient(b.max(x, axes=(1,))), shape=x.type.shape, axes=(0,))
        total = b.log(b.sum(b.exp(b.sub(x, peak)), axes=(1,)))
        wanted = b.slice(b.sub(x, peak), start=(0, 1), limit=(2, 2), stride=(1, 1))
        return b.sub(b.sum(total, axes=(0,)), b.sum(wanted, axes=(0, 1)))

    check_gradients(body, [np.random.default_rng(2).standard_normal((2, 3))])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gradients_keep_the_dtype(dtype: type) -> None:
    x = X.astype(dtype)
    f = vjp(build(lambda b, x: b.mul(b.tanh(x), b.exp2(x)), [x]))
    assert {str(t) for t in f.result_types} == {str(f.param_types[0])}
    assert interpret(f, [x, ONE.astype(dtype)])[1].dtype == dtype


def test_gradient_text_can_be_read_back() -> None:
    from graphc.ir.text import parse_function, print_function

    f = vjp(vjp(mixed()))
    assert parse_function(print_function(f)) == f


def test_time_is_linear_in_the_number_of_operations() -> None:
    """A chain of 20000 operations is differentiated without recursion, in a few seconds at most."""

    def body(b: Builder, x: Value) -> Value:
        for _ in range(20000):
            x = b.sin(x)
        return x

    f = build(body, [X])
    start = time.perf_counter()
    assert len(vjp(f).ops) == 60000
    assert time.perf_counter() - start < 10
