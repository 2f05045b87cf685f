"""Convolution and pooling: values against loops, gradients against finite differences, errors."""

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
