"""Losses: values against NumPy formulas in float64, gradients against finite differences, reductions, errors."""

from __future__ import annotations

import math
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import losses
from graphc.nn import functional as F

from tests.runtime.finite import check_gradients

rng = np.random.default_rng(2)
X = rng.standard_normal((4, 3)) * 2
Y = rng.standard_normal((4, 3))
P = rng.uniform(0.05, 0.95, (4, 3))
T = rng.uniform(0, 1, (4, 3))
W = rng.uniform(0.5, 2, (4, 3))


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return x - x.max(axis, keepdims=True) - np.log(np.exp(x - x.max(axis, keepdims=True)).sum(axis, keepdims=True))


def _huber(d: np.ndarray, delta: float) -> np.ndarray:
    d = abs(d)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def _bce(p: np.ndarray, t: np.ndarray, pos: Any = 1.0) -> np.ndarray:
    return -(pos * t * np.log(p) + (1 - t) * np.log(1 - p))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# (make the loss from a reduction, its functional form, input, target, the loss of every element)
ELEMENTWISE: dict[str, tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray]] = {
    "mse": (losses.MSELoss, F.mse_loss, X, Y, (X - Y) ** 2),
    "l1": (losses.L1Loss, F.l1_loss, X, Y, abs(X - Y)),
    "huber": (
        lambda reduction: losses.HuberLoss(reduction, 0.7),
        lambda x, y, reduction: F.huber_loss(x, y, reduction, 0.7),
        X,
        Y,
        _huber(X - Y, 0.7),
    ),
    "smooth_l1": (
        lambda reduction: losses.SmoothL1Loss(reduction, 0.7),
        lambda x, y, reduction: F.smooth_l1_loss(x, y, reduction, 0.7),
        X,
        Y,
        _huber(X - Y, 0.7) / 0.7,
    ),
    "smooth_l1_of_beta_0": (
        lambda reduction: losses.SmoothL1Loss(reduction, 0.0),
        lambda x, y, reduction: F.smooth_l1_loss(x, y, reduction, 0.0),
        X,
        Y,
        abs(X - Y),
    ),
    "bce": (
        lambda reduction: losses.BCELoss(gc.asarray(W), reduction),
        lambda p, t, reduction: F.binary_cross_entropy(p, t, gc.asarray(W), reduction),
        P,
        T,
        _bce(P, T) * W,
    ),
    "bce_with_logits": (
        lambda reduction: losses.BCEWithLogitsLoss(gc.asarray(W), reduction, gc.asarray(W[0])),
        lambda x, t, reduction: F.binary_cross_entropy_with_logits(x, t, gc.asarray(W), reduction, gc.asarray(W[0])),
        X,
        T,
        _bce(_sigmoid(X), T, W[0]) * W,
    ),
    "kl_div": (
        losses.KLDivLoss,
        F.kl_div,
        np.log(P),
        np.where(T > 0.5, T, 0),
        np.where(T > 0.5, T * (np.log(T) - np.log(P)), 0),
    ),
    "kl_div_log_target": (
        lambda reduction: losses.KLDivLoss(reduction, True),
        lambda x, t, reduction: F.kl_div(x, t, reduction, True),
        np.log(P),
        np.log(T),
        T * (np.log(T) - np.log(P)),
    ),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_losses(name: str, reduction: str) -> None:
    make, function, x, y, each = ELEMENTWISE[name]
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    value = make(reduction=reduction)(gc.asarray(x), gc.asarray(y))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(function(gc.asarray(x), gc.asarray(y), reduction=reduction).numpy(), value.numpy())
    check_gradients(lambda t: function(t, gc.asarray(y), reduction=reduction), x)


def test_kl_div_batchmean_is_the_divergence() -> None:
    log_q = _log_softmax(X, 1)
    p = np.exp(_log_softmax(Y, 1))
    value = losses.KLDivLoss("batchmean")(gc.asarray(log_q), gc.asarray(p))
    assert value.item() == pytest.approx((p * (np.log(p) - log_q)).sum(1).mean(), rel=1e-12)


def test_bce_at_certainty_is_held_at_a_hundred() -> None:
    p = gc.tensor(np.array([0.0, 1.0, 0.0, 1.0]), requires_grad=True)
    value = F.binary_cross_entropy(p, gc.asarray(np.array([0.0, 1.0, 1.0, 0.0])), reduction="none")
    assert value.numpy().tolist() == [0.0, 0.0, 100.0, 100.0]
    value.sum().backward()
    assert np.isfinite(p.grad.numpy()).all()  # type: ignore[union-attr]


def test_bce_with_logits_far_out() -> None:
    x = gc.tensor(np.array([-1000.0, 1000.0, 0.0]), requires_grad=True)
    value = F.binary_cross_entropy_with_logits(x, gc.asarray(np.array([1.0, 0.0, 1.0])), reduction="none")
    np.testing.assert_allclose(value.numpy(), [1000.0, 1000.0, math.log(2)], rtol=1e-15)
    value.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [-1.0, 1.0, -0.5], rtol=1e-15)  # type: ignore[union-attr]


# Classification

SCORES = rng.standard_normal((5, 4)) * 2
MAPS = rng.standard_normal((2, 4, 3, 2))
CLASSES = np.array([3, 0, -100, 1, 3])
MAP_CLASSES = rng.integers(0, 4, (2, 3, 2))
WEIGHT = np.array([0.5, 1.0, 2.0, 3.0])


def _cross_entropy(x: np.ndarray, t: np.ndarray, weight: Any, smoothing: float, reduction: str) -> Any:
    """PyTorch's definition, by loops; -100 is ignored."""
    log_p = np.moveaxis(_log_softmax(x, 1), 1, -1)
    w = np.ones(x.shape[1]) if weight is None else weight
    each, total = np.zeros(t.shape), 0.0
    for at in np.ndindex(t.shape):
        if t[at] != -100:
            row = log_p[at]
            each[at] = -(1 - smoothing) * w[t[at]] * row[t[at]] - smoothing / len(row) * (w * row).sum()
            total += w[t[at]]
    return {"none": each, "sum": each.sum(), "mean": each.sum() / total}[reduction]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("x", "t"), [(SCORES, CLASSES), (MAPS, MAP_CLASSES)], ids=["rows", "maps"])
def test_cross_entropy_of_classes(x: Any, t: Any, weight: Any, smoothing: float, reduction: str) -> None:
    w = None if weight is None else gc.asarray(weight)
    loss = losses.CrossEntropyLoss(w, reduction=reduction, label_smoothing=smoothing)
    value = loss(gc.asarray(x), gc.asarray(t))
    np.testing.assert_allclose(value.numpy(), _cross_entropy(x, t, weight, smoothing, reduction), rtol=1e-12)
    check_gradients(lambda s: loss(s, gc.asarray(t)), x)
    if not smoothing:
        log_p = F.log_softmax(gc.asarray(x), 1)
        nll = losses.NLLLoss(w, reduction=reduction)(log_p, gc.asarray(t))
        np.testing.assert_array_equal(nll.numpy(), value.numpy())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_of_probabilities(weight: Any, smoothing: float, reduction: str) -> None:
    t = rng.dirichlet(np.ones(4), 5)
    soft = t * (1 - smoothing) + smoothing / 4
    each = -(soft * _log_softmax(SCORES, 1) * (1 if weight is None else weight)).sum(1)
    expected = {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]
    loss = losses.CrossEntropyLoss(
        None if weight is None else gc.asarray(weight), reduction=reduction, label_smoothing=smoothing
    )
    np.testing.assert_allclose(loss(gc.asarray(SCORES), gc.asarray(t)).numpy(), expected, rtol=1e-12)
    check_gradients(lambda s, t: loss(s, t), SCORES, t)


def test_cross_entropy_without_a_batch_and_far_out() -> None:
    assert F.cross_entropy(gc.asarray(SCORES[0]), gc.asarray(np.int64(3))).item() == pytest.approx(
        -_log_softmax(SCORES[:1], 1)[0, 3], rel=1e-13
    )
    x = gc.tensor(np.array([[1000.0, -1000.0]]), requires_grad=True)
    value = F.cross_entropy(x, gc.asarray(np.array([1])))
    assert value.item() == 2000.0
    value.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1.0, -1.0]])  # type: ignore[union-attr]


def test_ignored_targets_count_nothing() -> None:
    x = gc.tensor(SCORES, requires_grad=True)
    F.cross_entropy(x, gc.asarray(np.array([1, 7, 7, 0, 7])), ignore_index=7).backward()
    assert not x.grad.numpy()[[1, 2, 4]].any()  # type: ignore[union-attr]
    assert x.grad.numpy()[[0, 3]].all()  # type: ignore[union-attr]
    infinite = gc.asarray(np.array([[0.0, -np.inf], [0.0, 0.0]]))
    value = F.nll_loss(infinite, gc.asarray(np.array([-100, 0])), reduction="sum")
    assert value.item() == 0.0


@pytest.mark.parametrize("wrong", [4, -1, -101])
def test_targets_outside_the_classes(wrong: int) -> None:
    with pytest.raises(IndexError):
        F.cross_entropy(gc.asarray(SCORES), gc.asarray(np.array([0, 1, wrong, 2, 3]))).item()


def test_half_precision_losses_are_computed_in_float32() -> None:
    x = gc.asarray(SCORES.astype(np.float32)).astype("bfloat16")
    value = F.cross_entropy(x, gc.asarray(np.abs(CLASSES) % 4))
    assert value.dtype.name == "bfloat16"
    wide = F.cross_entropy(x.astype("float32"), gc.asarray(np.abs(CLASSES) % 4))
    assert value.item() == wide.astype("bfloat16").item()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: F.mse_loss(gc.ones((2, 1)), gc.ones((2,))),
            ValueError,
            "mse_loss: input of shape (2, 1) and target of shape (2,) differ; reshape one of them (a silent broadcast "
            "would average the wrong elements)",
        ),
        (
            lambda: F.mse_loss(gc.ones((2,)), gc.ones((2,)), reduction="avg"),
            ValueError,
            "mse_loss: reduction must be one of 'none', 'mean', 'sum', not 'avg'",
        ),
        (
            lambda: losses.MSELoss("batchmean"),
            ValueError,
            "MSELoss: reduction must be one of 'none', 'mean', 'sum', not 'batchmean'",
        ),
        (
            lambda: losses.KLDivLoss("avg"),
            ValueError,
            "KLDivLoss: reduction must be one of 'none', 'mean', 'sum', 'batchmean', not 'avg'",
        ),
        (lambda: losses.HuberLoss(delta=0.0), ValueError, "HuberLoss: delta must be > 0, not 0.0"),
        (lambda: losses.SmoothL1Loss(beta=-1.0), ValueError, "SmoothL1Loss: beta must be >= 0, not -1.0"),
        (
            lambda: losses.CrossEntropyLoss(label_smoothing=1.5),
            ValueError,
            "CrossEntropyLoss: label_smoothing must be between 0 and 1, not 1.5",
        ),
        (
            lambda: F.cross_entropy(gc.ones((2, 3)), gc.ones((2, 2))),
            ValueError,
            "cross_entropy: probabilities of shape (2, 2) need the shape of the input, (2, 3); class indices would be "
            "integers",
        ),
        (
            lambda: F.cross_entropy(gc.ones((2, 3)), gc.asarray([[0, 1]])),
            ValueError,
            "cross_entropy: an input of shape (2, 3) needs class targets of shape (2,), not (1, 2)",
        ),
        (
            lambda: F.nll_loss(gc.ones((2, 3)), gc.asarray([0, 1]), gc.ones((2,))),
            ValueError,
            "nll_loss: weight needs one factor for each of the 3 classes, not (2,)",
        ),
        (
            lambda: F.nll_loss(gc.ones((2, 3)), gc.ones((2,))),
            TypeError,
            "nll_loss: class targets are integers, not float32",
        ),
    ],
)
def test_errors(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)
