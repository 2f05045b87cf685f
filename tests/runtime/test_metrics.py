"""Metrics against scikit-learn's definitions, written out by hand, and against scikit-learn where it is installed."""

from __future__ import annotations

from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import metrics

TARGET = np.array([0, 0, 1, 1, 1, 2, 2, 4])
PREDICTED = np.array([0, 1, 1, 1, 2, 2, 0, 0])


def test_confusion_matrix_rows_are_targets() -> None:
    matrix = metrics.confusion_matrix(PREDICTED, TARGET)
    expected = np.zeros((5, 5), np.int64)
    for t, p in zip(TARGET, PREDICTED, strict=True):
        expected[t, p] += 1
    assert matrix.dtype.name == "int64"
    np.testing.assert_array_equal(matrix.numpy(), expected)


def test_values_by_hand() -> None:
    assert metrics.accuracy(PREDICTED, TARGET) == 4 / 8
    # class: tp, predicted, there: 0: 1, 3, 2; 1: 2, 3, 3; 2: 1, 2, 2; 3: never; 4: 0, 0, 1
    precision = [1 / 3, 2 / 3, 1 / 2, 0.0, 0.0]
    recall = [1 / 2, 2 / 3, 1 / 2, 0.0, 0.0]
    f1 = [2 / 5, 4 / 6, 2 / 4, 0.0, 0.0]
    for function, values in ((metrics.precision, precision), (metrics.recall, recall), (metrics.f1, f1)):
        np.testing.assert_array_equal(function(PREDICTED, TARGET, "none").numpy(), values)
        assert function(PREDICTED, TARGET, "micro") == 4 / 8
        # Class 3 occurs neither in the targets nor in the predictions: it does not count.
        assert function(PREDICTED, TARGET) == pytest.approx(sum(values) / 4)
        weighted = sum(v * n for v, n in zip(values, [2, 3, 2, 0, 1], strict=True)) / 8
        assert function(PREDICTED, TARGET, "weighted") == pytest.approx(weighted)


def test_zero_division_stands_for_zero_over_zero() -> None:
    np.testing.assert_array_equal(
        metrics.precision(PREDICTED, TARGET, "none", zero_division=1.0).numpy()[3:], [1.0, 1.0]
    )


@pytest.mark.parametrize("average", ["none", "macro", "micro", "weighted"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_against_scikit_learn(name: str, average: str) -> None:
    reference: Any = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    target, predicted = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    expected = getattr(reference, f"{name}_score")(target, predicted, average=None if average == "none" else average)
    value = getattr(metrics, name)(predicted, target, average)
    np.testing.assert_allclose(value.numpy() if average == "none" else value, expected, rtol=1e-14)


def test_scores_count_by_their_argmax_and_top_k() -> None:
    scores = gc.asarray(np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], np.float32))
    target = gc.asarray(np.array([1, 2, 0]))
    assert metrics.accuracy(scores, target) == 1 / 3
    assert metrics.accuracy(scores, target, top_k=2) == 2 / 3
    assert metrics.accuracy(scores, target, top_k=3) == 1.0
    np.testing.assert_array_equal(metrics.confusion_matrix(scores, target).numpy(), [[0, 0, 1], [0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (metrics.Accuracy, metrics.accuracy),
        (metrics.ConfusionMatrix, metrics.confusion_matrix),
        (metrics.Precision, metrics.precision),
        (metrics.Recall, metrics.recall),
        (metrics.F1, metrics.f1),
    ],
)
def test_streaming_equals_the_function_of_everything(make: Any, function: Any) -> None:
    metric = make()
    for start in range(0, 8, 3):
        metric.update(PREDICTED[start : start + 3], TARGET[start : start + 3])
    whole, streamed = function(PREDICTED, TARGET), metric.compute()
    if isinstance(whole, gc.Tensor):
        np.testing.assert_array_equal(streamed.numpy(), whole.numpy())
    else:
        assert streamed == whole
    metric.reset()
    metric.update(TARGET, TARGET)
    assert make is metrics.ConfusionMatrix or metric.compute() == 1.0


def test_streaming_averages() -> None:
    metric = metrics.Recall("none", num_classes=6)
    metric.update(PREDICTED, TARGET)
    assert metric.compute().shape == (6,)
    with pytest.raises(ValueError) as error:
        metrics.Precision("mean")
    assert str(error.value) == "average must be one of 'none', 'macro', 'micro', 'weighted', not 'mean'"


def test_mean_is_weighted() -> None:
    mean = metrics.Mean()
    assert np.isnan(mean.compute())
    mean.update(gc.asarray(1.0), 3)
    mean.update(5.0)
    assert mean.compute() == 2.0
    mean.reset()
    assert np.isnan(mean.compute())


def test_no_samples_have_no_accuracy() -> None:
    assert np.isnan(metrics.accuracy(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert np.isnan(metrics.Accuracy().compute())


@pytest.mark.parametrize(
    ("prediction", "target", "kind", "message"),
    [
        (
            [0, 1],
            [0, 1, 1],
            ValueError,
            "predictions of shape (2,) do not fit targets of shape (3,): they need the same shape, or one more axis of scores",
        ),
        ([0, 1], [0.5, 1.0], TypeError, "targets are class indices, so integers, not float64"),
        (
            [0.1, 0.9],
            [0, 1],
            TypeError,
            "predictions of the targets' shape are class indices, so integers, not float64; for probabilities of two "
            "classes compare them with a threshold first",
        ),
        ([0, -1], [0, 1], ValueError, "class -1 is outside the 2 classes 0..1"),
    ],
)
def test_errors(prediction: Any, target: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind) as error:
        metrics.confusion_matrix(np.asarray(prediction), np.asarray(target))
    assert str(error.value) == message


def test_a_class_beyond_num_classes() -> None:
    with pytest.raises(ValueError) as error:
        metrics.recall([0, 1], [0, 3], num_classes=3)
    assert str(error.value) == "class 3 is outside the 3 classes 0..2"
    with pytest.raises(ValueError, match=r"accuracy\(top_k=4\) needs scores of shape"):
        metrics.accuracy(np.zeros((2, 3)), np.array([0, 1]), top_k=4)
