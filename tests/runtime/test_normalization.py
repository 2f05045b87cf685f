"""Normalisation, dropout and attention: values against NumPy formulas, gradients, errors."""

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


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


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


def test_batch_norm_far_from_zero() -> None:
    """Deviations are small beside the mean; a channel of one large number has no variance, and no negative one."""
    x = (rng.standard_normal((32, 3, 7, 5)) + 1000).astype(np.float32)
    x[:, 1] = 123456789.0
    layer = nn.BatchNorm2d(3, momentum=1.0)
    y = layer(gc.asarray(x)).numpy()
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 2, 3), keepdims=True), wide.var((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y[:, ::2], ((wide - mean) / np.sqrt(var + 1e-5))[:, ::2], atol=2e-6)
    assert np.isfinite(y).all() and (layer.running_var.numpy() >= 0).all()


def test_second_gradient_of_batch_norm() -> None:
    """What deviations are measured from is constant to autodiff, and no derivative of any order may show it."""
    x, d = rng.standard_normal((4, 2, 3)) + 2, gc.asarray(rng.standard_normal((4, 2, 3)))

    def first(x: Any) -> Any:
        return gc.grad(lambda v: (F.batch_norm(v, None, None, training=True) ** 3 * d).sum())(x)

    check_gradients(lambda x: first(x) ** 2, x)


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
