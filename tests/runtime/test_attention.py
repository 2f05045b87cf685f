"""scaled_dot_product_attention and MultiheadAttention: the fused operation against the composed formula, and who uses which."""

from __future__ import annotations

from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn
from graphc.nn import functional as F
from graphc.runtime.nn import attention as module

from tests.runtime.finite import check_gradients

rng = np.random.default_rng(11)


def array(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def composed(q: Any, k: Any, v: Any, mask: Any = None, causal: bool = False, scale: float = 1.0) -> Any:
    return module._weights(q, k, mask, causal, scale) @ v


SHAPES = [
    ((2, 3, 7, 4), (2, 3, 6, 4), (2, 3, 6, 5), None),
    ((7, 4), (6, 4), (6, 5), (7, 6)),
    ((3, 70, 8), (3, 66, 8), (3, 66, 8), (1, 66)),
    ((2, 4, 5, 4), (1, 4, 6, 4), (1, 4, 6, 5), (2, 1, 5, 1)),
    ((2, 4, 5, 4), (2, 1, 6, 4), (2, 1, 6, 5), (4, 1, 6)),
    ((2, 3, 4, 5, 4), (2, 3, 4, 6, 4), (2, 3, 4, 6, 5), (2, 1, 1, 5, 6)),
]


@pytest.mark.parametrize(("q", "k", "v", "mask"), SHAPES)
def test_values_and_gradients_are_those_of_the_composed_formula(q: Any, k: Any, v: Any, mask: Any) -> None:
    arrays = [array(*s) for s in (q, k, v)] + ([] if mask is None else [array(*mask)])
    causal = mask is None
    sides = []
    for function, name in ((F.scaled_dot_product_attention, "is_causal"), (composed, "causal")):
        tensors = [gc.tensor(a, requires_grad=True) for a in arrays]
        y = function(*tensors, **{name: causal}, scale=0.4)
        (y * y).sum().backward()
        sides.append([y, *(t.grad for t in tensors)])
    for a, b in zip(*sides, strict=True):
        # Two ways to add up to 70 terms in float32.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5)


def test_no_keys_and_no_queries() -> None:
    q, none = gc.ones((2, 3, 5, 4)), gc.ones((2, 3, 0, 4))
    assert not F.scaled_dot_product_attention(q, none, none).numpy().any()
    assert F.scaled_dot_product_attention(none, q, q).shape == (2, 3, 0, 4)


def test_boolean_masks_numpy_arrays_and_dtypes() -> None:
    q, k, v = array(2, 3, 5, 4), array(2, 3, 6, 4), array(2, 3, 6, 4)
    mask = rng.random((5, 6)) < 0.6
    want = composed(*map(gc.asarray, (q, k, v)), gc.asarray(mask), False, 0.5).numpy()
    for given in (mask, gc.asarray(mask)):
        np.testing.assert_allclose(F.scaled_dot_product_attention(q, k, v, given).numpy(), want, rtol=1e-5, atol=1e-6)
    half = [gc.asarray(x).astype(gc.bfloat16) for x in (q, k, v)]
    y = F.scaled_dot_product_attention(*half, attn_mask=gc.asarray(array(5, 6)))
    assert y.dtype == gc.bfloat16
    mixed = F.scaled_dot_product_attention(half[0], gc.asarray(k), half[2])
    assert mixed.dtype == gc.float32
    with pytest.raises(TypeError, match=r"scaled_dot_product_attention.*floating point, not i64; cast query"):
        F.scaled_dot_product_attention(*[gc.ones((2, 3), dtype=gc.int64)] * 3)


def test_grouped_heads() -> None:
    q, k, v = (gc.asarray(array(*s)) for s in ((2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3)))
    many = [gc.repeat(x, 3, axis=1) for x in (k, v)]
    grouped = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    np.testing.assert_array_equal(grouped.numpy(), F.scaled_dot_product_attention(q, *many).numpy())
    wide = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, dropout_p=1e-12)
    np.testing.assert_allclose(wide.numpy(), grouped.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="with Hq a multiple of H, not shapes"):
        F.scaled_dot_product_attention(q[:, :5], k, v, enable_gqa=True)
    with pytest.raises(ValueError, match="with Hq a multiple of H, not shapes"):
        F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0], enable_gqa=True)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    x = gc.ones((2, 3, 5, 4))
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention.*mask f32\[5, 4\] does not broadcast to the scores \[2, 3, 5, 5\]"):
        F.scaled_dot_product_attention(x, x, x, attn_mask=gc.ones((5, 4)))


def test_heads_that_the_operation_does_not_take_are_composed() -> None:
    q = gc.asarray(array(2, 3, 300))
    for causal in (False, True):
        want = composed(q, q, q, None, causal, 300**-0.5)
        np.testing.assert_array_equal(F.scaled_dot_product_attention(q, q, q, is_causal=causal).numpy(), want.numpy())


def test_eager_and_compiled_agree_and_gradients_of_gradients_exist() -> None:
    q, k, v = (gc.asarray(array(2, 3, 70, 8)) for _ in range(3))

    def loss(q: Any, k: Any, v: Any, scale: float) -> Any:
        return (F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) ** 2).sum()

    compiled = gc.compile(gc.value_and_grad(loss, (0, 1, 2)))
    for scale in (0.25, 0.5):
        value, gradients = gc.value_and_grad(loss, (0, 1, 2))(q, k, v, scale)
        again, compiled_gradients = compiled(q, k, v, scale)
        np.testing.assert_array_equal(value.numpy(), again.numpy())
        for a, b in zip(gradients, compiled_gradients, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    check_gradients(lambda q, k: F.scaled_dot_product_attention(q, k, q), rng.standard_normal((3, 2)), rng.standard_normal((3, 2)))


def test_changing_the_scale_compiles_nothing_new() -> None:
    from graphc.runtime.ops_attention import _ATTENTION

    q = gc.asarray(array(2, 3, 4))
    F.scaled_dot_product_attention(q, q, q, scale=0.1)
    before = len(_ATTENTION.cache)
    for i in range(5):
        F.scaled_dot_product_attention(q, q, q, scale=0.2 + i)
    assert len(_ATTENTION.cache) == before


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_the_layer_gives_the_same_with_and_without_weights(batch_first: bool, same: bool) -> None:
    layer = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    x, y = gc.asarray(array(4, 5, 12)), gc.asarray(array(*((4, 7, 12) if batch_first else (7, 5, 12))))
    operands = (x, x, x) if same else (x, y, y)
    n, keys = (4, operands[1].shape[1]) if batch_first else (5, operands[1].shape[0])
    padding = rng.random((n, keys)) < 0.4
    for options in ({"key_padding_mask": gc.asarray(padding)}, {"is_causal": True})[: 1 + same]:
        results = []
        for need in (True, False):
            layer.zero_grad()
            out, weights = layer(*operands, need_weights=need, **options)
            assert (weights is None) == (not need)
            (out**2).sum().backward()
            results.append([out.numpy(), *(p.grad.numpy() for p in layer.parameters())])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-4, atol=3e-5)


def test_the_layer_drops_weights_in_training_only() -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = gc.asarray(array(2, 6, 8))
    layer.eval()
    still = layer(x, x, x, need_weights=False)[0].numpy()
    np.testing.assert_array_equal(still, layer(x, x, x, need_weights=False)[0].numpy())
    layer.train()
    assert not np.array_equal(still, layer(x, x, x, need_weights=False)[0].numpy())
