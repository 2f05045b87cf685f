"""Activations, linear maps, embeddings, padding: values against NumPy formulas, gradients, errors."""

from __future__ import annotations

import math
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn
from graphc.nn import functional as F

from tests.runtime.finite import check_gradients

rng = np.random.default_rng(1)
X = rng.standard_normal((3, 5)) * 3
SPECIAL = np.array([[-200.0, -30.0, -1.0, -0.0, 0.0, 0.5, 30.0, 200.0]])


def _phi(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# function, its layer, the formula
ACTIVATIONS: dict[str, tuple[Any, Any, Any]] = {
    "relu": (F.relu, nn.ReLU(), lambda x: np.maximum(x, 0)),
    "relu6": (F.relu6, nn.ReLU6(), lambda x: np.clip(x, 0, 6)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (lambda x: F.elu(x, 1.5), nn.ELU(1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0)))),
    "sigmoid": (F.sigmoid, nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "logsigmoid": (F.logsigmoid, nn.LogSigmoid(), lambda x: -np.logaddexp(0, -x)),
    "silu": (F.silu, nn.SiLU(), lambda x: x / (1 + np.exp(-x))),
    "gelu": (F.gelu, nn.GELU(), lambda x: x * _phi(x)),
    "gelu_tanh": (
        lambda x: F.gelu(x, "tanh"),
        nn.GELU("tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "tanh": (F.tanh, nn.Tanh(), np.tanh),
    "softplus": (F.softplus, nn.Softplus(), lambda x: np.where(x > 20, x, np.logaddexp(0, x))),
    "softplus_beta": (
        lambda x: F.softplus(x, 2.0, 10.0),
        nn.Softplus(2.0, 10.0),
        lambda x: np.where(2 * x > 10, x, np.logaddexp(0, 2 * x) / 2),
    ),
    "softmax": (lambda x: F.softmax(x, 0), nn.Softmax(0), lambda x: _softmax(x, 0)),
    "log_softmax": (F.log_softmax, nn.LogSoftmax(), lambda x: np.log(_softmax(x))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_values_and_gradients(name: str) -> None:
    function, layer, formula = ACTIVATIONS[name]
    y = function(gc.asarray(X))
    # exp, log, erf and tanh are right to a few ulp of float64; the formulas here round in other places.
    np.testing.assert_allclose(y.numpy(), formula(X), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(layer(gc.asarray(X)).numpy(), y.numpy())
    check_gradients(function, X)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_finite_far_out(name: str) -> None:
    function, _, formula = ACTIVATIONS[name]
    for kind in ("float64", "float32"):
        x = gc.tensor(SPECIAL.astype(kind), requires_grad=True)
        y = function(x)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(y.detach().numpy(), formula(SPECIAL), rtol=1e-5, atol=1e-30)
        y.sum().backward()
        assert np.isfinite(x.grad.numpy()).all()  # type: ignore[union-attr]


def test_kinks_have_pytorch_s_gradients_at_zero() -> None:
    for function, slope in ((F.relu, 0.0), (F.sigmoid, 0.25), (F.softplus, 0.5), (F.logsigmoid, 0.5), (F.leaky_relu, 0.01)):
        x = gc.tensor(np.zeros(1, np.float32), requires_grad=True)
        function(x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), [slope], rtol=1e-6)  # type: ignore[union-attr]


def test_nan_stays_nan() -> None:
    x = gc.asarray(np.array([math.nan, 1.0], np.float32))
    for function in (F.relu, F.relu6, F.leaky_relu, F.elu, F.sigmoid, F.silu, F.gelu, F.tanh, F.softmax):
        assert np.isnan(function(x).numpy()[0]), function


def test_logsumexp() -> None:
    y = F.logsumexp(gc.asarray(X), 1)
    np.testing.assert_allclose(y.numpy(), np.log(np.exp(X).sum(1)), rtol=1e-13)
    assert F.logsumexp(gc.asarray(X), 1, True).shape == (3, 1)
    for function in (F.softmax, F.log_softmax, F.logsumexp, F.normalize):
        np.testing.assert_array_equal(function(gc.asarray(X), axis=0).numpy(), function(gc.asarray(X), dim=0).numpy())
    assert F.logsumexp(gc.asarray(np.full((2,), -np.inf)), 0).item() == -math.inf
    check_gradients(lambda x: F.logsumexp(x, 0), X)


def test_gelu_has_two_forms() -> None:
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh', not 'erf'"):
        F.gelu(gc.ones((1,)), "erf")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_softmax_is_computed_in_float32(kind: str) -> None:
    x = gc.asarray(rng.standard_normal((4, 1000)).astype(np.float32)).astype(kind)
    wide = x.astype("float32")
    for function in (F.softmax, F.log_softmax, lambda t: F.layer_norm(t, 1000), lambda t: F.rms_norm(t, 1000, eps=1e-6)):
        y = function(x)
        assert y.dtype.name == kind
        np.testing.assert_array_equal(
            y.astype("float32").numpy(), function(wide).astype(kind).astype("float32").numpy()
        )


# Linear, shape, embedding


def test_linear() -> None:
    layer = nn.Linear(5, 2).to(gc.float64)
    w, b = layer.weight.numpy(), layer.bias.numpy()
    np.testing.assert_allclose(layer(gc.asarray(X)).numpy(), X @ w.T + b, rtol=1e-13)
    deep = rng.standard_normal((2, 3, 5))
    np.testing.assert_allclose(layer(gc.asarray(deep)).numpy(), deep @ w.T + b, rtol=1e-13)
    check_gradients(lambda x, w, b: F.linear(x, w, b), deep, w, b)
    assert layer(gc.asarray(X[0])).shape == (2,)
    with pytest.raises(ValueError) as error:
        layer(gc.ones((3, 4)))
    assert "linear: x of shape (3, 4) has 4 features, and weight of shape (2, 5) (out, in) takes 5" in str(error.value)


def test_flatten_and_identity() -> None:
    x = gc.ones((2, 3, 4, 5))
    assert nn.Flatten()(x).shape == (2, 60)
    assert nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    assert nn.Flatten(2, 2)(x).shape == (2, 3, 4, 5)
    assert nn.Identity(3, "anything")(x) is x
    with pytest.raises(ValueError, match="start comes after end for shape \\(2, 3, 4, 5\\)"):
        nn.Flatten(3, 1)(x)


def test_embedding() -> None:
    layer = nn.Embedding(6, 3, padding_idx=-2)
    table = layer.weight.numpy()
    assert layer.padding_idx == 4 and not table[4].any() and table[0].any()
    index = gc.asarray([[1, 4], [4, 1]])
    y = layer(index)
    np.testing.assert_array_equal(y.numpy(), table[[[1, 4], [4, 1]]])
    (y * gc.asarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))).sum().backward()
    expected = np.zeros((6, 3))
    expected[1] = np.arange(3) + np.arange(9, 12)
    np.testing.assert_array_equal(layer.weight.grad.numpy(), expected)
    assert repr(layer) == "Embedding(6, 3, padding_idx=4)"
    with pytest.raises(IndexError):
        layer(gc.asarray([6])).numpy()
    with pytest.raises(TypeError, match="embedding needs integer indices, not float32"):
        layer(gc.ones((2,)))
    with pytest.raises(ValueError, match="Embedding: padding_idx 6 is outside the 6 rows"):
        nn.Embedding(6, 3, 6)


def test_one_hot() -> None:
    y = F.one_hot(gc.asarray([[0, 2], [1, 1]]), 4)
    assert y.dtype.name == "int64"
    np.testing.assert_array_equal(y.numpy(), np.eye(4, dtype=np.int64)[[[0, 2], [1, 1]]])
    assert F.one_hot(gc.asarray([0, 2])).shape == (2, 3)
    with pytest.raises(IndexError):
        F.one_hot(gc.asarray([4]), 4).numpy()
    with pytest.raises(TypeError, match="one_hot needs integer indices"):
        F.one_hot(gc.ones((1,)), 2)


@pytest.mark.parametrize(
    ("amounts", "widths"),
    [((1, 2), [(0, 0), (1, 2)]), ((1, 0, 2, 3), [(2, 3), (1, 0)]), ((0, 0), [(0, 0), (0, 0)])],
)
@pytest.mark.parametrize(("mode", "numpy_mode"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_pad(amounts: Any, widths: Any, mode: str, numpy_mode: Any) -> None:
    x = rng.standard_normal((4, 5))
    np.testing.assert_array_equal(F.pad(gc.asarray(x), amounts, mode).numpy(), np.pad(x, widths, numpy_mode))
    check_gradients(lambda t: F.pad(t, amounts, mode), x)


def test_pad_values_crops_and_errors() -> None:
    x = rng.standard_normal((4, 5))
    np.testing.assert_array_equal(
        F.pad(gc.asarray(x), (-1, 2), value=7.0).numpy(), np.pad(x, [(0, 0), (0, 2)], constant_values=7)[:, 1:]
    )
    check_gradients(lambda t: F.pad(t, (-1, 2, 1, -2)), x)
    with pytest.raises(ValueError, match="pad needs pairs \\(low, high\\) for at most 2 axes, not \\(1,\\)"):
        F.pad(gc.asarray(x), (1,))
    with pytest.raises(ValueError, match="axis 1 of size 5 takes amounts >= 0 and at most 4, not \\(5, 0\\)"):
        F.pad(gc.asarray(x), (5, 0), "reflect")
    with pytest.raises(ValueError, match="mode must be one of 'constant', 'reflect', 'replicate', 'circular'"):
        F.pad(gc.asarray(x), (1, 1), "zeros")


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_normalize(p: float) -> None:
    y = F.normalize(gc.asarray(X), p, 1)
    np.testing.assert_allclose(y.numpy(), X / np.linalg.norm(X, p, axis=1, keepdims=True), rtol=1e-12)
    check_gradients(lambda x: F.normalize(x, p, 1), X)
    zero = gc.tensor(np.zeros((1, 3)), requires_grad=True)
    F.normalize(zero, p, 1).sum().backward()
    assert not F.normalize(zero, p, 1).numpy().any()
    assert np.isfinite(zero.grad.numpy()).all()  # type: ignore[union-attr]
