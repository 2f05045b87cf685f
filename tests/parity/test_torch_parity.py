"""PyTorch parity: forward values, gradients, initial state and optimizer steps, on the same float32 inputs.

Tolerances are for comparison with another system: both round float32 in different places, so values are
equal to a few units of the last place times the length of their sums. Skipped as a whole without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn, optim
from graphc.nn import functional as F

torch = pytest.importorskip("torch", reason="PyTorch parity needs torch (CPU): pip install torch")
T = torch.nn.functional
RTOL, ATOL = 2e-5, 2e-6


def _array(*shape: int, seed: int = 0, positive: bool = False) -> np.ndarray[Any, Any]:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return np.abs(values) + np.float32(0.1) if positive else values


def _agree(ours: Any, theirs: Any, rtol: float = RTOL, atol: float = ATOL) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=rtol, atol=atol)


def _compare(ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: Any) -> None:
    """Equal values and gradients; float arrays take gradients, others are passed on."""
    mine = [gc.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    other = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, z = ours(*mine), theirs(*other)
    assert tuple(y.shape) == tuple(z.shape)
    assert y.dtype.name == str(z.dtype).removeprefix("torch.")
    _agree(y, z)
    if not z.requires_grad:
        return
    cotangent = _array(*z.shape, seed=99)
    (y * gc.asarray(cotangent)).sum().backward()
    (z * torch.tensor(cotangent)).sum().backward()
    for a, b in zip(mine, other, strict=True):
        if b.requires_grad:
            _agree(a.grad, b.grad if b.grad is not None else torch.zeros_like(b))


IMAGES = _array(2, 4, 9, 8)
ROWS = _array(6, 5) * 3
CLASSES = np.array([0, 4, 2, -100, 1, 4])
PROBABILITIES = np.random.default_rng(5).dirichlet(np.ones(5), 6).astype(np.float32)
UNIT = (1 / (1 + np.exp(-_array(6, 5)))).astype(np.float32)
WEIGHT = np.array([0.5, 1.0, 2.0, 0.1, 3.0], np.float32)
QUERY, KEY, VALUE = _array(2, 3, 7, 4, seed=1), _array(2, 3, 6, 4, seed=2), _array(2, 3, 6, 5, seed=3)
MASK = np.random.default_rng(7).random((7, 6)) < 0.7

FUNCTIONS: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "relu": (F.relu, T.relu, (ROWS,)),
    "relu6": (F.relu6, T.relu6, (ROWS * 3,)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), lambda x: T.leaky_relu(x, 0.2), (ROWS,)),
    "elu": (lambda x: F.elu(x, 1.5), lambda x: T.elu(x, 1.5), (ROWS,)),
    "silu": (F.silu, T.silu, (ROWS,)),
    "gelu": (F.gelu, T.gelu, (ROWS,)),
    "gelu_tanh": (lambda x: F.gelu(x, "tanh"), lambda x: T.gelu(x, approximate="tanh"), (ROWS,)),
    "sigmoid": (F.sigmoid, torch.sigmoid, (ROWS * 5,)),
    "logsigmoid": (F.logsigmoid, T.logsigmoid, (ROWS * 5,)),
    "tanh": (F.tanh, torch.tanh, (ROWS,)),
    "softplus": (lambda x: F.softplus(x, 2.0, 5.0), lambda x: T.softplus(x, 2.0, 5.0), (ROWS,)),
    "softmax": (lambda x: F.softmax(x, 0), lambda x: T.softmax(x, 0), (ROWS,)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), lambda x: T.log_softmax(x, -1), (ROWS,)),
    "logsumexp": (lambda x: F.logsumexp(x, 1, True), lambda x: torch.logsumexp(x, 1, True), (ROWS,)),
    "linear": (F.linear, T.linear, (_array(2, 3, 5), _array(4, 5), _array(4))),
    "embedding": (
        lambda i, w: F.embedding(i, w, 2),
        lambda i, w: T.embedding(i, w, 2),
        (np.array([[0, 2, 3], [3, 3, 1]]), _array(4, 5)),
    ),
    "one_hot": (lambda i: F.one_hot(i, 5), lambda i: T.one_hot(i, 5), (np.array([[0, 2], [4, 4]]),)),
    "normalize": (F.normalize, T.normalize, (ROWS,)),
    "normalize_1": (lambda x: F.normalize(x, 1.0, 0), lambda x: T.normalize(x, 1.0, 0), (ROWS,)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=2.0), lambda x: T.pad(x, (1, 2, 0, 3), value=2.0), (ROWS,)),
    "pad_reflect": (lambda x: F.pad(x, (1, 2, 3, 0), "reflect"), lambda x: T.pad(x, (1, 2, 3, 0), "reflect"), (IMAGES,)),
    "pad_replicate": (
        lambda x: F.pad(x, (1, 2, 3, 0), "replicate"),
        lambda x: T.pad(x, (1, 2, 3, 0), "replicate"),
        (IMAGES,),
    ),
    "pad_circular": (
        lambda x: F.pad(x, (1, 2, 3, 0), "circular"),
        lambda x: T.pad(x, (1, 2, 3, 0), "circular"),
        (IMAGES,),
    ),
    "conv1d": (
        lambda x, w, b: F.conv1d(x, w, b, 2, 1, 2),
        lambda x, w, b: T.conv1d(x, w, b, 2, 1, 2),
        (_array(2, 3, 11), _array(4, 3, 3), _array(4)),
    ),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 2), 1, 2),
        lambda x, w, b: T.conv2d(x, w, b, (2, 1), (1, 2), 1, 2),
        (IMAGES, _array(6, 2, 3, 3), _array(6)),
    ),
    "conv2d_same": (
        lambda x, w: F.conv2d(x, w, None, 1, "same", 2),
        lambda x, w: T.conv2d(x, w, None, 1, "same", 2),
        (IMAGES, _array(3, 4, 2, 3)),
    ),
    "conv3d": (
        lambda x, w: F.conv3d(x, w, None, 1, 1),
        lambda x, w: T.conv3d(x, w, None, 1, 1),
        (_array(1, 2, 4, 3, 4), _array(3, 2, 2, 3, 2)),
    ),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 2),
        lambda x, w, b: T.conv_transpose2d(x, w, b, 2, 1, 1, 2),
        (IMAGES, _array(4, 3, 3, 3), _array(6)),
    ),
    "conv_transpose2d_dilated": (
        lambda x, w: F.conv_transpose2d(x, w, None, 3, 0, 2, 1, 2),
        lambda x, w: T.conv_transpose2d(x, w, None, 3, 0, 2, 1, 2),
        (IMAGES, _array(4, 2, 2, 3)),
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), lambda x: T.max_pool1d(x, 3, 2, 1), (_array(2, 3, 10),)),
    "max_pool2d": (
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: T.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        (IMAGES,),
    ),
    "max_pool2d_dilated": (
        lambda x: F.max_pool2d(x, 2, 1, 0, 2),
        lambda x: T.max_pool2d(x, 2, 1, 0, 2),
        (IMAGES,),
    ),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), lambda x: T.avg_pool1d(x, 3, 2, 1), (_array(2, 3, 10),)),
    "avg_pool2d": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, True),
        lambda x: T.avg_pool2d(x, 3, 2, 1, True),
        (IMAGES,),
    ),
    "avg_pool2d_of_what_is_there": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        lambda x: T.avg_pool2d(x, 3, 2, 1, True, False),
        (IMAGES,),
    ),
    "adaptive_avg_pool2d": (
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
        lambda x: T.adaptive_avg_pool2d(x, (4, 3)),
        (IMAGES,),
    ),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (9, 8), w, b),
        lambda x, w, b: T.layer_norm(x, (9, 8), w, b),
        (IMAGES, _array(9, 8), _array(9, 8, seed=1)),
    ),
    "group_norm": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: T.group_norm(x, 2, w, b),
        (IMAGES, _array(4), _array(4, seed=1)),
    ),
    "rms_norm": (
        lambda x, w: F.rms_norm(x, (8,), w),
        lambda x, w: T.rms_norm(x, (8,), w),
        (IMAGES, _array(8)),
    ),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: T.batch_norm(x, None, None, w, b, True),
        (IMAGES, _array(4), _array(4, seed=1)),
    ),
    "attention": (F.scaled_dot_product_attention, T.scaled_dot_product_attention, (QUERY, KEY, VALUE)),
    "attention_causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        lambda q, k, v: T.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        (QUERY, KEY, VALUE),
    ),
    "attention_grouped": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        lambda q, k, v: T.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        (_array(2, 6, 70, 4, seed=1), _array(2, 2, 66, 4, seed=2), _array(2, 2, 66, 5, seed=3)),
    ),
    "attention_biased": (F.scaled_dot_product_attention, T.scaled_dot_product_attention, (QUERY, KEY, VALUE, _array(3, 1, 6))),
    "attention_large_head": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.05),
        lambda q, k, v: T.scaled_dot_product_attention(q, k, v, scale=0.05),
        (_array(1, 3, 300, seed=1), _array(1, 4, 300, seed=2), _array(1, 4, 5, seed=3)),
    ),
    "attention_masked": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        lambda q, k, v, m: T.scaled_dot_product_attention(q, k, v, m),
        (QUERY, KEY, VALUE, MASK),
    ),
}
LOSSES: dict[str, tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = {
    "mse": (F.mse_loss, T.mse_loss, (ROWS, UNIT), {}),
    "l1": (F.l1_loss, T.l1_loss, (ROWS, UNIT), {}),
    "huber": (F.huber_loss, T.huber_loss, (ROWS, UNIT), {"delta": 0.6}),
    "smooth_l1": (F.smooth_l1_loss, T.smooth_l1_loss, (ROWS, UNIT), {"beta": 0.6}),
    "bce": (F.binary_cross_entropy, T.binary_cross_entropy, (UNIT, PROBABILITIES), {}),
    "bce_with_logits": (
        F.binary_cross_entropy_with_logits,
        T.binary_cross_entropy_with_logits,
        (ROWS * 5, UNIT),
        {"pos_weight": WEIGHT},
    ),
    "kl_div": (F.kl_div, T.kl_div, (np.log(UNIT), PROBABILITIES), {}),
    "kl_div_log_target": (F.kl_div, T.kl_div, (np.log(UNIT), np.log(PROBABILITIES)), {"log_target": True}),
    "nll": (F.nll_loss, T.nll_loss, (ROWS, CLASSES), {"weight": WEIGHT}),
    "cross_entropy": (F.cross_entropy, T.cross_entropy, (ROWS, CLASSES), {}),
    "cross_entropy_smoothed": (
        F.cross_entropy,
        T.cross_entropy,
        (ROWS, CLASSES),
        {"weight": WEIGHT, "label_smoothing": 0.2},
    ),
    "cross_entropy_of_maps": (
        F.cross_entropy,
        T.cross_entropy,
        (IMAGES, np.random.default_rng(9).integers(0, 4, (2, 9, 8))),
        {"ignore_index": 2},
    ),
    "cross_entropy_of_probabilities": (
        F.cross_entropy,
        T.cross_entropy,
        (ROWS, PROBABILITIES),
        {"weight": WEIGHT, "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, reduction: str) -> None:
    ours, theirs, arrays, options = LOSSES[name]

    def with_tensors(make: Any) -> dict[str, Any]:
        return {k: make(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    _compare(
        lambda *a: ours(*a, reduction=reduction, **with_tensors(gc.tensor)),
        lambda *a: theirs(*a, reduction=reduction, **with_tensors(torch.tensor)),
        *arrays,
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    ours, theirs, arrays = FUNCTIONS[name]
    _compare(ours, theirs, *arrays)


# Layers: the same constructor arguments give the same state names and shapes, the same text, the same result.

LAYERS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], np.ndarray[Any, Any]]] = {
    "linear": ("Linear", (5, 3), {}, ROWS),
    "linear_without_bias": ("Linear", (5, 3), {"bias": False}, ROWS),
    "conv1d": ("Conv1d", (4, 6, 3), {"padding": 1}, _array(2, 4, 9)),
    "conv2d": ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, IMAGES),
    "conv2d_same": ("Conv2d", (4, 6, (3, 2)), {"padding": "same", "bias": False}, IMAGES),
    "conv3d": ("Conv3d", (2, 3, 2), {}, _array(1, 2, 4, 3, 4)),
    "conv_transpose2d": ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "output_padding": 1}, IMAGES),
    "max_pool2d": ("MaxPool2d", (3,), {"stride": 2, "padding": 1}, IMAGES),
    "avg_pool2d": ("AvgPool2d", (2,), {}, IMAGES),
    "adaptive_avg_pool2d": ("AdaptiveAvgPool2d", (1,), {}, IMAGES),
    "batch_norm1d": ("BatchNorm1d", (5,), {}, ROWS),
    "batch_norm2d": ("BatchNorm2d", (4,), {"momentum": 0.3}, IMAGES),
    "batch_norm2d_cumulative": ("BatchNorm2d", (4,), {"momentum": None, "affine": False}, IMAGES),
    "batch_norm3d": ("BatchNorm3d", (2,), {"track_running_stats": False}, _array(3, 2, 4, 3, 4)),
    "layer_norm": ("LayerNorm", ((9, 8),), {"eps": 1e-3}, IMAGES),
    "group_norm": ("GroupNorm", (2, 4), {}, IMAGES),
    "rms_norm": ("RMSNorm", (8,), {"eps": 1e-6}, IMAGES),
    "flatten": ("Flatten", (), {}, IMAGES),
    "identity": ("Identity", (), {}, ROWS),
    "relu": ("ReLU", (), {}, ROWS),
    "leaky_relu": ("LeakyReLU", (0.3,), {}, ROWS),
    "elu": ("ELU", (), {}, ROWS),
    "silu": ("SiLU", (), {}, ROWS),
    "gelu": ("GELU", (), {}, ROWS),
    "sigmoid": ("Sigmoid", (), {}, ROWS),
    "tanh": ("Tanh", (), {}, ROWS),
    "softplus": ("Softplus", (), {}, ROWS),
    "softmax": ("Softmax", (), {"dim": 1}, ROWS),
    "log_softmax": ("LogSoftmax", (), {"dim": 1}, ROWS),
}
# The text of these has become longer from version to version of PyTorch.
OTHER_TEXT = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm"}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    kind, args, options, array = LAYERS[name]
    theirs, ours = getattr(torch.nn, kind)(*args, **options), getattr(nn, kind)(*args, **options)
    state = theirs.state_dict()
    assert {n: tuple(t.shape) for n, t in ours.state_dict().items()} == {n: tuple(t.shape) for n, t in state.items()}
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict({n: gc.asarray(t.numpy().copy()) for n, t in state.items()})
    for _ in range(2):
        x, z = gc.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
        y, w = ours(x), theirs(z)
        _agree(y, w)
        cotangent = _array(*w.shape, seed=99)
        (y * gc.asarray(cotangent)).sum().backward()
        (w * torch.tensor(cotangent)).sum().backward()
        _agree(x.grad, z.grad)
    for (n, a), (m, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert n == m
        # Two backward passes accumulate sums over up to 2 * 9 * 8 * 2 terms.
        _agree(a.grad, b.grad, 1e-4, 1e-4)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        _agree(a, b)
    ours.eval()
    theirs.eval()
    _agree(ours(gc.asarray(array)), theirs(torch.tensor(array)))
    if kind not in OTHER_TEXT:
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(batch_first: bool) -> None:
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first)
    ours = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    state = {n: gc.asarray(t.numpy().copy()) for n, t in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    x = _array(3, 5, 8)
    padding = np.zeros((3, 5) if batch_first else (5, 3), bool)
    padding[0, -1] = True
    causal = ~np.tri(5 if batch_first else 3, dtype=bool)
    y, weights = ours(*[gc.asarray(x)] * 3, key_padding_mask=gc.asarray(padding), attn_mask=gc.asarray(causal))
    z, expected = theirs(*[torch.tensor(x)] * 3, key_padding_mask=torch.tensor(padding), attn_mask=torch.tensor(causal))
    _agree(y, z)
    _agree(weights, expected)
    alone, none = ours(*[gc.asarray(x)] * 3, attn_mask=gc.asarray(causal), need_weights=False)
    assert none is None
    _agree(alone, theirs(*[torch.tensor(x)] * 3, attn_mask=torch.tensor(causal), need_weights=False)[0])


def test_a_network_reads_the_state_of_pytorch_s() -> None:
    def build(kit: Any) -> Any:
        return kit.Sequential(
            kit.Conv2d(1, 4, 3, padding=1),
            kit.BatchNorm2d(4),
            kit.ReLU(),
            kit.MaxPool2d(2),
            kit.Flatten(),
            kit.Linear(64, 10),
        )

    theirs, ours = build(torch.nn), build(nn)
    ours.load_state_dict({n: gc.asarray(t.numpy().copy()) for n, t in theirs.state_dict().items()})
    x = _array(5, 1, 8, 8)
    _agree(ours(gc.asarray(x)), theirs(torch.tensor(x)))


def test_initial_values_have_pytorch_s_bounds() -> None:
    for kind, args in (("Linear", (300, 40)), ("Conv2d", (8, 40, 3)), ("ConvTranspose2d", (40, 8, 3)), ("Embedding", (300, 40))):
        theirs, ours = getattr(torch.nn, kind)(*args), getattr(nn, kind)(*args)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine, other = a.numpy(), b.detach().numpy()
            if mine.size < 1000:
                assert np.abs(mine).max() <= 1 / math.sqrt(_fan(theirs)) + 1e-7
                continue
            # The deviation of a sample of n is off by about 1 / sqrt(2 n), relatively.
            assert abs(mine.std() / other.std() - 1) < 10 / math.sqrt(mine.size)
            if kind != "Embedding":
                assert abs(np.abs(mine).max() / np.abs(other).max() - 1) < 0.02


def _fan(module: Any) -> int:
    weight = module.weight
    return int(weight.shape[1] * math.prod(weight.shape[2:]))


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_all": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_all": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.2}),
    "adamw_amsgrad": ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop_all": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1, "momentum": 0.8, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    start = [_array(4, 3), _array(5)]
    mine = [nn.Parameter(gc.tensor(a)) for a in start]
    other = [torch.nn.Parameter(torch.tensor(a)) for a in start]
    ours, theirs = getattr(optim, kind)(mine, **options), getattr(torch.optim, kind)(other, foreach=False, **options)
    for step in range(10):
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            grad = _array(*a.shape, seed=10 * step + i)
            a.grad, b.grad = gc.asarray(grad), torch.tensor(grad)
        ours.step()
        theirs.step()
        for a, b in zip(mine, other, strict=True):
            _agree(a, b)


SCHEDULES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "step": ("StepLR", (3, 0.5)),
    "multi_step": ("MultiStepLR", ([2, 5], 0.3)),
    "exponential": ("ExponentialLR", (0.8,)),
    "linear": ("LinearLR", (0.2, 0.9, 6)),
    "constant": ("ConstantLR", (0.2, 4)),
    "polynomial": ("PolynomialLR", (7, 2.0)),
    "cosine": ("CosineAnnealingLR", (10, 0.01)),
    "lambda": ("LambdaLR", (lambda epoch: 1 / (epoch + 1),)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    kind, args = SCHEDULES[name]
    ours = optim.SGD([nn.Parameter(gc.zeros((1,)))], lr=0.5)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    a, b = getattr(optim, kind)(ours, *args), getattr(torch.optim.lr_scheduler, kind)(theirs, *args)
    for _ in range(10):
        # PyTorch multiplies rates up step by step; ours are closed forms.
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        theirs.step()
        a.step()
        b.step()


def test_one_cycle() -> None:
    ours = optim.SGD([nn.Parameter(gc.zeros((1,)))], lr=0.5)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    a = optim.OneCycleLR(ours, 2.0, 20)
    b = torch.optim.lr_scheduler.OneCycleLR(theirs, 2.0, 20, cycle_momentum=False)
    for _ in range(19):
        assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        theirs.step()
        a.step()
        b.step()


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_clip_grad_norm(norm_type: float) -> None:
    grads = [_array(4, 3), _array(5)]
    mine, other = [nn.Parameter(gc.zeros(g.shape)) for g in grads], [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads]
    for a, b, g in zip(mine, other, grads, strict=True):
        a.grad, b.grad = gc.asarray(g), torch.tensor(g)
    _agree(nn.clip_grad_norm_(mine, 1.5, norm_type), torch.nn.utils.clip_grad_norm_(other, 1.5, norm_type))
    for a, b in zip(mine, other, strict=True):
        _agree(a.grad, b.grad)


def test_init_functions_have_pytorch_s_deviations() -> None:
    shape = (64, 32, 3, 3)
    for name, options in (
        ("xavier_uniform_", {"gain": 2.0}),
        ("xavier_normal_", {}),
        ("kaiming_uniform_", {"nonlinearity": "relu", "mode": "fan_out"}),
        ("kaiming_normal_", {"a": 0.1}),
        ("trunc_normal_", {"mean": 0.5, "a": 0.0, "b": 1.0}),
        ("uniform_", {"a": -1.0, "b": 2.0}),
        ("normal_", {"mean": 1.0, "std": 0.3}),
    ):
        mine = getattr(nn.init, name)(gc.zeros(shape), **options).numpy()
        other = getattr(torch.nn.init, name)(torch.zeros(shape), **options).numpy()
        # Two samples of n = 18432: five times their joint spread.
        spread = 5 * math.sqrt(2 / mine.size)
        assert abs(mine.std() - other.std()) < spread * other.std(), name
        assert abs(mine.mean() - other.mean()) < spread * other.std(), name
    for nonlinearity in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu", "conv2d"):
        assert nn.init.calculate_gain(nonlinearity) == torch.nn.init.calculate_gain(nonlinearity)
