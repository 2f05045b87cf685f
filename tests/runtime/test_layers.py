"""Layers: shapes, values against NumPy formulas in float64, gradients against finite differences, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from graphc.nn import functional as F

import graphc as gc
from graphc import nn
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


# Convolution and pooling


def _conv(x: np.ndarray, w: np.ndarray, stride: int, padding: int, dilation: int, groups: int) -> np.ndarray:
    """A convolution of any rank, by loops over output positions."""
    rank = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * rank])
    sizes = [
        (n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)
    ]
    out = np.zeros((x.shape[0], w.shape[0], *sizes))
    per_in, per_out = x.shape[1] // groups, w.shape[0] // groups
    for at in np.ndindex(*sizes):
        window = x[(..., *(slice(a * stride, a * stride + dilation * (k - 1) + 1, dilation) for a, k in zip(at, w.shape[2:], strict=True)))]
        for g in range(groups):
            part = window[:, g * per_in : (g + 1) * per_in].reshape(x.shape[0], -1)
            rows = slice(g * per_out, (g + 1) * per_out)
            out[(slice(None), rows, *at)] = part @ w[rows].reshape(per_out, -1).T
    return out


@pytest.mark.parametrize(("rank", "function"), [(1, F.conv1d), (2, F.conv2d), (3, F.conv3d)])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1)])
def test_convolution(rank: int, function: Any, stride: int, padding: int, dilation: int, groups: int) -> None:
    x = rng.standard_normal((2, 4, *(6, 5, 5)[:rank]))
    w = rng.standard_normal((2, 4 // groups, *(3, 2, 2)[:rank]))
    b = rng.standard_normal(2)
    y = function(gc.asarray(x), gc.asarray(w), gc.asarray(b), stride, padding, dilation, groups)
    expected = _conv(x, w, stride, padding, dilation, groups) + b.reshape(1, 2, *[1] * rank)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)
    if rank < 3:
        check_gradients(lambda x, w, b: function(x, w, b, stride, padding, dilation, groups), x[:1], w, b)


def test_convolution_layers() -> None:
    layer = nn.Conv2d(4, 6, (3, 1), padding="same", groups=2, bias=False)
    assert layer.weight.shape == (6, 2, 3, 1) and layer.bias is None
    assert layer(gc.ones((2, 4, 7, 5))).shape == (2, 6, 7, 5)
    assert layer(gc.ones((4, 7, 5))).shape == (6, 7, 5)
    assert repr(layer) == (
        "Conv2d(4, 6, kernel_size=(3, 1), stride=(1, 1), padding=same, groups=2, bias=False)"
    )
    assert nn.Conv1d(2, 3, 3, stride=2, padding=1)(gc.ones((1, 2, 8))).shape == (1, 3, 4)
    assert nn.Conv3d(2, 3, 2)(gc.ones((1, 2, 4, 4, 4))).shape == (1, 3, 3, 3, 3)
    assert nn.Conv2d(1, 1, 3, padding="valid")(gc.ones((1, 1, 5, 5))).shape == (1, 1, 3, 3)


@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation", "groups"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 0, 2, 1, 2), (2, 2, 0, 2, 1)],
)
def test_transposed_convolution_is_the_gradient_of_convolution(
    stride: int, padding: int, extra: int, dilation: int, groups: int
) -> None:
    x = rng.standard_normal((2, 4, 3, 4))
    w = rng.standard_normal((4, 6 // groups, 3, 2))
    y = F.conv_transpose2d(gc.asarray(x), gc.asarray(w), None, stride, padding, extra, groups, dilation)
    # <conv(y'), x> = <y', conv_transpose(x)> for every y' defines it.
    probe = gc.tensor(rng.standard_normal(y.shape), requires_grad=True)
    forward = F.conv2d(probe, gc.asarray(w), None, stride, padding, dilation, groups)
    assert forward.shape == x.shape
    (forward * gc.asarray(x)).sum().backward()
    np.testing.assert_allclose(y.numpy(), probe.grad.numpy(), rtol=1e-11, atol=1e-11)  # type: ignore[union-attr]
    b = rng.standard_normal(6)
    check_gradients(
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, extra, groups, dilation), x[:1, :, :2, :2], w, b
    )


def test_transposed_convolution_layer() -> None:
    layer = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1)
    assert layer.weight.shape == (4, 2, 3, 3)
    assert layer(gc.ones((1, 4, 5, 5))).shape == (1, 2, 10, 10)
    assert repr(layer) == (
        "ConvTranspose2d(4, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1))"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Conv2d(3, 4, 3)(gc.ones((1, 2, 5, 5))),
            "conv2d: x of shape (1, 2, 5, 5) has 2 channels, and weight of shape (4, 3, 3, 3) (out, in/groups, kernel...) "
            "with groups=1 takes 3",
        ),
        (lambda: nn.Conv2d(3, 4, 3)(gc.ones((5, 5))), "conv2d needs x of shape [N, C, H, W] (N may be missing), not (5, 5)"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: in_channels 3 and out_channels 4 must be multiples of groups 2"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: kernel_size must be an integer or 2 of them, not (3, 3, 3)"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), "Conv2d: padding='same' needs stride 1, not (2, 2)"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), "Conv2d: padding must be integers, 'valid' or 'same', not 'full'"),
        (
            lambda: F.conv_transpose2d(gc.ones((1, 2, 3, 3)), gc.ones((2, 1, 2, 2)), output_padding=1),
            "conv_transpose2d: output_padding (1, 1) must be less than stride (1, 1) or dilation (1, 1)",
        ),
        (lambda: F.max_pool2d(gc.ones((1, 1, 4, 4)), 2, padding=2), "max_pool2d: padding 2 must be between 0 and half the kernel size 2"),
    ],
)
def test_window_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def _pool(x: np.ndarray, k: int, s: int, p: int, ceil: bool, reduce: str, include: bool = True) -> np.ndarray:
    """Pooling of the last two axes by loops, as PyTorch documents it."""
    fill = -np.inf if reduce == "max" else 0.0
    sizes = []
    for n in x.shape[2:]:
        size = -(-(n + 2 * p - k) // s) + 1 if ceil else (n + 2 * p - k) // s + 1
        sizes.append(size - 1 if ceil and (size - 1) * s >= n + p else size)
    out = np.zeros((*x.shape[:2], *sizes))
    for i, j in np.ndindex(*sizes):
        spans = [(a * s - p, min(a * s - p + k, n + p)) for a, n in zip((i, j), x.shape[2:], strict=True)]
        inside = [(max(lo, 0), min(hi, n)) for (lo, hi), n in zip(spans, x.shape[2:], strict=True)]
        window = x[:, :, inside[0][0] : inside[0][1], inside[1][0] : inside[1][1]]
        if reduce == "max":
            out[:, :, i, j] = window.max(axis=(2, 3), initial=fill)
        else:
            chosen = spans if include else inside
            out[:, :, i, j] = window.sum(axis=(2, 3)) / math.prod(hi - lo for lo, hi in chosen)
    return out


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("k", "s", "p"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (3, 3, 0)])
def test_pooling(k: int, s: int, p: int, ceil: bool) -> None:
    x = rng.standard_normal((1, 2, 7, 6))
    y = F.max_pool2d(gc.asarray(x), k, s, p, ceil_mode=ceil)
    np.testing.assert_array_equal(y.numpy(), _pool(x, k, s, p, ceil, "max"))
    check_gradients(lambda x: F.max_pool2d(x, k, s, p, ceil_mode=ceil), x)
    for include in (False, True):
        y = F.avg_pool2d(gc.asarray(x), k, s, p, ceil, include)
        np.testing.assert_allclose(y.numpy(), _pool(x, k, s, p, ceil, "mean", include), rtol=1e-12)
        check_gradients(lambda x, include=include: F.avg_pool2d(x, k, s, p, ceil, include), x)


def test_pooling_layers() -> None:
    x = gc.asarray(rng.standard_normal((2, 3, 8, 8)))
    np.testing.assert_array_equal(nn.MaxPool2d(2)(x).numpy(), F.max_pool2d(x, 2).numpy())
    np.testing.assert_array_equal(nn.AvgPool2d(2, 1)(x).numpy(), F.avg_pool2d(x, 2, 1).numpy())
    assert F.max_pool2d(x, 3, dilation=2).shape == (2, 3, 2, 2)
    assert F.max_pool2d(x[0], 2).shape == (3, 4, 4)
    line = gc.asarray(rng.standard_normal((2, 3, 8)))
    np.testing.assert_array_equal(
        nn.MaxPool1d(2)(line).numpy(), line.numpy().reshape(2, 3, 4, 2).max(-1)
    )
    np.testing.assert_allclose(nn.AvgPool1d(2)(line).numpy(), line.numpy().reshape(2, 3, 4, 2).mean(-1), rtol=1e-14)


@pytest.mark.parametrize("size", [1, 2, (3, 2), (None, 4), 5])
def test_adaptive_average_pooling(size: Any) -> None:
    x = rng.standard_normal((2, 3, 6, 8))
    wanted = (size, size) if isinstance(size, int) else size
    y = nn.AdaptiveAvgPool2d(size)(gc.asarray(x)).numpy()
    rows, columns = (n if m is None else m for n, m in zip((6, 8), wanted, strict=True))
    assert y.shape == (2, 3, rows, columns)
    for i, j in np.ndindex(rows, columns):
        part = x[:, :, i * 6 // rows : -(-(i + 1) * 6 // rows), j * 8 // columns : -(-(j + 1) * 8 // columns)]
        np.testing.assert_allclose(y[:, :, i, j], part.mean((2, 3)), rtol=1e-12)
    check_gradients(lambda t: F.adaptive_avg_pool2d(t, size), x[:1, :1])


# Normalisation


def test_layer_norm_rms_norm_group_norm() -> None:
    x = rng.standard_normal((2, 4, 3)) * 2 + 1
    w, b = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    y = F.layer_norm(gc.asarray(x), (4, 3), gc.asarray(w), gc.asarray(b), 1e-3)
    np.testing.assert_allclose(y.numpy(), (x - mean) / np.sqrt(var + 1e-3) * w + b, rtol=1e-12)
    check_gradients(lambda x, w, b: F.layer_norm(x, (4, 3), w, b), x, w, b)
    y = F.rms_norm(gc.asarray(x), 3, gc.asarray(w[0]), 1e-3)
    np.testing.assert_allclose(y.numpy(), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * w[0], rtol=1e-12)
    check_gradients(lambda x, w: F.rms_norm(x, 3, w), x, w[0])
    grouped = x.reshape(2, 2, 6)
    expected = ((grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    y = F.group_norm(gc.asarray(x), 2, gc.asarray(w[:, 0]), gc.asarray(b[:, 0]))
    np.testing.assert_allclose(y.numpy(), expected * w[:, :1] + b[:, :1], rtol=1e-11)
    check_gradients(lambda x, w, b: F.group_norm(x, 2, w, b), x, w[:, 0], b[:, 0])


def test_normalisation_layers_and_errors() -> None:
    x = gc.asarray(rng.standard_normal((2, 4, 3)).astype(np.float32))
    for layer, function in (
        (nn.LayerNorm(3), lambda x: F.layer_norm(x, 3)),
        (nn.RMSNorm((4, 3)), lambda x: F.rms_norm(x, (4, 3))),
        (nn.GroupNorm(2, 4), lambda x: F.group_norm(x, 2)),
        (nn.LayerNorm(3, elementwise_affine=False), lambda x: F.layer_norm(x, 3)),
    ):
        # Weights of one and biases of zero change no bit, but for the sign of zero.
        np.testing.assert_array_equal(layer(x).numpy(), function(x).numpy())
    assert nn.LayerNorm(3, bias=False).bias is None
    with pytest.raises(ValueError, match="layer_norm: the last axes of shape \\(2, 4, 3\\) are not normalized_shape \\(4,\\)"):
        F.layer_norm(x, 4)
    with pytest.raises(ValueError, match="GroupNorm: num_channels 4 must be a multiple of num_groups 3"):
        nn.GroupNorm(3, 4)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 2, 2)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3, momentum=0.3).to(gc.float64)
    axes = (0, *range(2, len(shape)))
    count = math.prod(shape) // 3
    mean, var = np.zeros(3), np.ones(3)
    lift = (1, 3, *[1] * (len(shape) - 2))
    for _ in range(2):
        x = rng.standard_normal(shape) * 2 + 1
        y = layer(gc.asarray(x))
        mu, sigma = x.mean(axes), x.var(axes)
        np.testing.assert_allclose(y.numpy(), (x - mu.reshape(lift)) / np.sqrt(sigma.reshape(lift) + 1e-5), rtol=1e-11, atol=1e-13)
        mean = 0.7 * mean + 0.3 * mu
        var = 0.7 * var + 0.3 * sigma * count / (count - 1)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 2
    assert not layer.running_mean.requires_grad
    layer.eval()
    y = layer(gc.asarray(x))
    np.testing.assert_allclose(y.numpy(), (x - mean.reshape(lift)) / np.sqrt(var.reshape(lift) + 1e-5), rtol=1e-11, atol=1e-13)
    assert layer.num_batches_tracked.item() == 2
    layer.train()
    w, b = rng.standard_normal(3), rng.standard_normal(3)
    check_gradients(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x, w, b)
    check_gradients(
        lambda x, w, b: F.batch_norm(x, gc.asarray(mean), gc.asarray(var), w, b), x, w, b
    )


def test_batch_norm_options_and_errors() -> None:
    average = nn.BatchNorm1d(2, momentum=None).to(gc.float64)
    batches = [rng.standard_normal((5, 2)) for _ in range(3)]
    for batch in batches:
        average(gc.asarray(batch))
    np.testing.assert_allclose(average.running_mean.numpy(), np.mean([b.mean(0) for b in batches], axis=0), rtol=1e-12)
    average.reset_running_stats()
    assert average.num_batches_tracked.item() == 0 and average.running_var.numpy().tolist() == [1, 1]
    plain = nn.BatchNorm1d(2, affine=False, track_running_stats=False).eval()
    assert not list(plain.parameters()) and not list(plain.buffers())
    y = plain(gc.asarray(batches[0].astype(np.float32))).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    with pytest.raises(ValueError) as error:
        nn.BatchNorm2d(3)(gc.ones((2, 4, 5, 5)))
    assert str(error.value) == (
        "BatchNorm2d(3) needs x of shape [N, C, H, W] with C = 3, not (2, 4, 5, 5)"
    )
    with pytest.raises(ValueError, match="batch_norm in training needs more than one value for each channel"):
        nn.BatchNorm1d(2)(gc.ones((1, 2)))
    with pytest.raises(ValueError, match="needs running_mean and running_var"):
        F.batch_norm(gc.ones((3, 2)), None, None)


# Dropout


def test_dropout() -> None:
    gc.manual_seed(0)
    x = gc.tensor(np.ones((400, 100), np.float32), requires_grad=True)
    y = F.dropout(x, 0.25)
    values = y.numpy()
    scale = np.float32(1 / np.float32(0.75))
    assert set(np.unique(values)) == {np.float32(0), scale}
    # 40000 draws at 0.25: the deviation of the fraction is 0.0022.
    assert abs((values == 0).mean() - 0.25) < 0.011
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), values)  # type: ignore[union-attr]
    assert not np.array_equal(F.dropout(x, 0.25).numpy(), values)
    gc.manual_seed(0)
    np.testing.assert_array_equal(F.dropout(x, 0.25).numpy(), values)


def test_dropout_off() -> None:
    x = gc.asarray(np.array([1.0, math.inf], np.float32))
    layer = nn.Dropout(0.5).eval()
    assert layer(x) is x
    assert F.dropout(x, 0.0) is x
    assert F.dropout(gc.ones((5,)), 1.0).numpy().tolist() == [0.0] * 5
    for p in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="dropout: p must be between 0 and 1, not"):
            nn.Dropout(p)


# Attention


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: Any = 0.0) -> np.ndarray:
    return _softmax(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]) + bias) @ v


def test_attention_masks() -> None:
    q, k, v = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((2, 3, 6, 7))
    tensors = [gc.asarray(a) for a in (q, k, v)]
    np.testing.assert_allclose(F.scaled_dot_product_attention(*tensors).numpy(), _attention(q, k, v), rtol=1e-11)
    mask = rng.random((4, 6)) < 0.6
    mask[:, 0] = True
    masked = F.scaled_dot_product_attention(*tensors, attn_mask=gc.asarray(mask))
    np.testing.assert_allclose(masked.numpy(), _attention(q, k, v, np.where(mask, 0, -np.inf)), rtol=1e-11)
    bias = rng.standard_normal((4, 6))
    added = F.scaled_dot_product_attention(*tensors, attn_mask=gc.asarray(bias))
    np.testing.assert_allclose(added.numpy(), _attention(q, k, v, bias), rtol=1e-11)
    causal = F.scaled_dot_product_attention(*tensors, is_causal=True)
    np.testing.assert_allclose(causal.numpy(), _attention(q, k, v, np.where(np.tri(4, 6) > 0, 0, -np.inf)), rtol=1e-11)
    check_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q[0], k[0], v[0])


def test_attention_that_sees_nothing_gives_zeros() -> None:
    x = gc.tensor(rng.standard_normal((2, 3)), requires_grad=True)
    y = F.scaled_dot_product_attention(x, x, x, attn_mask=gc.asarray(np.array([[False, False], [True, True]])))
    assert not y.numpy()[0].any() and y.numpy()[1].all()
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()  # type: ignore[union-attr]


def test_attention_errors() -> None:
    x = gc.ones((2, 3))
    with pytest.raises(ValueError, match="pass attn_mask or is_causal=True, not both"):
        F.scaled_dot_product_attention(x, x, x, attn_mask=x, is_causal=True)
    with pytest.raises(ValueError, match="not shapes \\(2, 3\\), \\(2, 4\\), \\(2, 3\\)"):
        F.scaled_dot_product_attention(x, gc.ones((2, 4)), x)


def test_multihead_attention() -> None:
    layer = nn.MultiheadAttention(6, 2, batch_first=True).to(gc.float64)
    x = rng.standard_normal((3, 4, 6))
    y, weights = layer(*[gc.asarray(x)] * 3)
    w, b = layer.in_proj_weight.numpy(), layer.in_proj_bias.numpy()
    q, k, v = (
        (x @ w[i * 6 : i * 6 + 6].T + b[i * 6 : i * 6 + 6]).reshape(3, 4, 2, 3).transpose(0, 2, 1, 3) for i in range(3)
    )
    heads = _attention(q, k, v).transpose(0, 2, 1, 3).reshape(3, 4, 6)
    np.testing.assert_allclose(y.numpy(), heads @ layer.out_proj.weight.numpy().T + layer.out_proj.bias.numpy(), rtol=1e-10)
    assert weights.shape == (3, 4, 4)
    np.testing.assert_allclose(weights.numpy().sum(-1), 1, rtol=1e-12)
    assert layer(*[gc.asarray(x)] * 3, need_weights=False)[1] is None
    padded = np.zeros((3, 4), bool)
    padded[:, 3] = True
    _, weights = layer(*[gc.asarray(x)] * 3, key_padding_mask=gc.asarray(padded), average_attn_weights=False)
    assert weights.shape == (3, 2, 4, 4) and not weights.numpy()[..., 3].any()
    with pytest.raises(ValueError, match="embed_dim 6 must be a multiple of num_heads 4"):
        nn.MultiheadAttention(6, 4)
