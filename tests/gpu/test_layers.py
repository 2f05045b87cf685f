"""Every function of nn.functional and the other operations on a device, without a default device: nothing is made on the CPU by mistake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.nn import functional as F
from graphc.runtime import ops

from tests.gpu.test_tensors import array, same

X, IMAGES = array(6, 5), array(2, 4, 9, 8)
CLASSES = np.array([0, 4, 2, -100, 1, 4])
UNIT = (1 / (1 + np.exp(-X))).astype(np.float32)
Q, K = array(2, 3, 7, 4, seed=1), array(2, 3, 6, 4, seed=2)
MASK = np.random.default_rng(7).random((7, 6)) < 0.7

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{name: (getattr(F, name), (X,)) for name in (
        "relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "sigmoid", "logsigmoid", "tanh", "softplus", "normalize",
    )},
    **{f.__name__: (partial(f, axis=1), (X,)) for f in (F.softmax, F.log_softmax, F.logsumexp)},
    **{name: (getattr(F, name), (X, array(6, 5, seed=3))) for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")},
    "kl_div": (F.kl_div, (np.log(UNIT), UNIT)),
    "binary_cross_entropy": (F.binary_cross_entropy, (UNIT, UNIT)),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, (X, UNIT)),
    "cross_entropy": (lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), (X, CLASSES)),
    "nll_loss": (lambda x, y, w: F.nll_loss(F.log_softmax(x, 1), y, w), (X, CLASSES, np.ones(5, np.float32))),
    "linear": (F.linear, (X, array(4, 5), array(4))),
    "embedding": (lambda i, w: F.embedding(i, w, 2), (np.array([[0, 2], [3, 1]]), array(4, 5))),
    "one_hot": (F.one_hot, (np.array([[0, 2], [4, 4]]),)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=2.0), (X,)),
    "pad reflect": (lambda x: F.pad(x, (1, 2), "reflect"), (X,)),
    "conv1d": (F.conv1d, (array(2, 3, 11), array(4, 3, 3), array(4))),
    "conv2d": (lambda x, w: F.conv2d(x, w, None, (2, 1), 1), (IMAGES, array(6, 4, 3, 3))),
    "conv3d": (F.conv3d, (array(1, 2, 4, 5, 4), array(3, 2, 2, 2, 2))),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1), (array(1, 3, 4, 4), array(3, 2, 3, 3))),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2), (array(2, 3, 9),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (IMAGES,)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (array(2, 3, 9),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (IMAGES,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (IMAGES,)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), (X, array(5), array(5, seed=1))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (5,), w), (X, array(5))),
    "group_norm": (lambda x: F.group_norm(x, 2), (IMAGES,)),
    "batch_norm": (lambda x, m, v: F.batch_norm(x, m, v, training=True), (X, np.zeros(5, np.float32), np.ones(5, np.float32))),
    "dropout": (lambda x: F.dropout(x, 0.5), (X,)),
    "dropout2d": (lambda x: F.dropout2d(x, 0.5), (IMAGES,)),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, (Q, K, K)),
    "attention with a mask": (F.scaled_dot_product_attention, (Q, K, K, MASK)),
    "attention with dropout": (lambda q: F.scaled_dot_product_attention(q, q, q, None, 0.5, True), (Q,)),
    "einsum": (lambda a, b: gc.einsum("ij,kj->ik", a, b), (X, X)),
    "isclose": (gc.isclose, (X, X)),
    "diag": (lambda x: gc.diag(x[0]), (X,)),
    "trace": (gc.trace, (X,)),
    "diff": (gc.diff, (X,)),
    "meshgrid": (lambda a, b: gc.meshgrid(a, b), (X[0], X[1])),
    "tril": (gc.tril, (X,)),
    "roll": (lambda x: gc.roll(x, 2, 1), (X,)),
    "tile": (lambda x: gc.tile(x, (2, 1)), (X,)),
    "repeat": (lambda x: gc.repeat(x, [1, 2, 0, 1, 1], axis=1), (X,)),
    "cumulative_prod": (lambda x: gc.cumulative_prod(x, axis=1), (X,)),
    "nonzero": (gc.nonzero, (np.round(X),)),
    "count_nonzero": (gc.count_nonzero, (np.round(X),)),
    "take_along_axis": (lambda x, i: gc.take_along_axis(x, i, axis=1), (X, np.argsort(X, axis=1))),
    "put_along_axis": (lambda x, i: gc.put_along_axis(x, i, 7.0, axis=1, add=True), (X, np.argsort(X, axis=1)[:, :2])),
    "index_add": (lambda x, i, y: x.index_add(0, i, y), (X, np.array([1, 1, 3]), array(3, 5))),
    "scatter_add": (lambda x, i, y: gc.scatter_add(x, 1, i, y), (X, np.zeros((6, 1), np.int64), array(6, 1))),
    "multinomial": (lambda p: gc.multinomial(p, 4), (UNIT,)),
    "masked_fill": (lambda x, m: x.masked_fill(m, -1.0), (X, X > 0)),
    "norm": (lambda x: x.norm(axis=1), (X,)),
    "bitcast": (lambda x: x.view(gc.int32), (X,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_cpu(name: str) -> None:
    f, arrays = FUNCTIONS[name]
    found = {}
    for device in ("cpu", "cuda"):
        gc.manual_seed(4)
        given = [gc.asarray(a).to(device) for a in arrays]
        for t in given:
            t.requires_grad = t.dtype.is_float and name not in ("batch_norm", "multinomial", "kl_div", "binary_cross_entropy")
        out = f(*given)
        results = list(out) if isinstance(out, (list, tuple)) else [out]
        for r in results:
            if r.requires_grad:
                (r * r).sum().backward(retain_graph=True)
        found[device] = [*results, *(t.grad for t in given if t.grad is not None)]
    assert len(found["cpu"]) == len(found["cuda"])
    for a, b in zip(found["cuda"], found["cpu"]):
        assert a.device == "cuda:0"
        same(a, b)


def test_nothing_is_left_out() -> None:
    public = {n for n in F.__all__ if callable(getattr(F, n))}
    assert public <= FUNCTIONS.keys()
    assert "where" in ops.NAMES


LAYERS: dict[str, tuple[Callable[[], gc.nn.Module], np.ndarray[Any, Any]]] = {
    "BatchNorm2d": (lambda: gc.nn.BatchNorm2d(4), IMAGES),
    "ConvTranspose2d": (lambda: gc.nn.ConvTranspose2d(4, 2, 3), IMAGES),
    "MultiheadAttention": (lambda: gc.nn.MultiheadAttention(4, 2, batch_first=True), array(2, 5, 4)),
    "Embedding": (lambda: gc.nn.Embedding(9, 3, padding_idx=1), np.array([[1, 2, 8]])),
    "RMSNorm": (lambda: gc.nn.RMSNorm(5), X),
    "Dropout2d": (lambda: gc.nn.Dropout2d(0.3), IMAGES),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_move(name: str) -> None:
    make, data = LAYERS[name]
    found = {}
    for device in ("cpu", "cuda"):
        gc.manual_seed(1)
        layer = make().to(device)
        x = gc.asarray(data).to(device)
        gc.manual_seed(2)
        out = layer(x, x, x) if name == "MultiheadAttention" else layer(x)
        out = out[0] if isinstance(out, tuple) else out
        if out.requires_grad:
            (out * out).sum().backward()
        found[device] = [out, *(p.grad for p in layer.parameters()), *layer.buffers()]
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
            assert all(p.device.type == device for p in layer.parameters())
    for a, b in zip(found["cuda"], found["cpu"]):
        assert a.device == "cuda:0"
        same(a, b)


def test_initialisers_fill_where_the_tensor_is() -> None:
    for name in ("uniform_", "normal_", "zeros_", "ones_", "xavier_uniform_", "kaiming_normal_", "orthogonal_", "trunc_normal_"):
        found = []
        for device in ("cpu", "cuda"):
            gc.manual_seed(6)
            t = gc.zeros(4, 5, device=device)
            getattr(gc.nn.init, name)(t)
            found.append(t)
        assert found[1].device == "cuda:0"
        same(found[1], found[0])
