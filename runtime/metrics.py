"""Classification metrics, as functions of a whole set and as streaming classes over batches.

Everything is counted in one int64 confusion matrix C, where C[t, p] is how many samples of class t
were predicted as p; precision, recall and F1 are read from it in float64. Predictions are class
indices of the targets' shape, or scores with one more (last) axis over classes, whose argmax counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from graphc.runtime.tensor import Tensor, asarray

Counts = np.ndarray[Any, np.dtype[np.int64]]
AVERAGES = ("none", "macro", "micro", "weighted")


def accuracy(prediction: Any, target: Any, top_k: int = 1) -> float:
    """The fraction of samples whose class is predicted, or is among the `top_k` highest scores.

    >>> import graphc as gc
    >>> gc.metrics.accuracy([0, 2, 1, 1], [0, 1, 1, 1])
    0.75
    """
    if top_k == 1:
        predicted, truth = _classes(prediction, target)
        return _ratio(int(np.sum(predicted == truth)), truth.size)
    scores, truth = _array(prediction), _array(target)
    if scores.ndim != truth.ndim + 1 or not 1 <= top_k <= scores.shape[-1]:
        raise ValueError(
            f"accuracy(top_k={top_k}) needs scores of shape {(*truth.shape, 'C')} with C >= {top_k}, "
            f"not {scores.shape}"
        )
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]
    return _ratio(int(np.sum(best == truth[..., None])), truth.size)


def confusion_matrix(prediction: Any, target: Any, num_classes: int | None = None) -> Tensor:
    """int64[C, C]: how many samples of class t (row) were predicted as class p (column)."""
    return asarray(_count(prediction, target, num_classes))


def precision(
    prediction: Any,
    target: Any,
    average: str = "macro",
    num_classes: int | None = None,
    zero_division: float = 0.0,
) -> float | Tensor:
    """Of the samples predicted as a class, the fraction that belongs to it: tp / (tp + fp).

    average: "none" gives float64[C], one value a class; "macro" their mean over the classes that occur in
    the targets or the predictions; "weighted" their mean weighted by how often the class occurs in the
    targets; "micro" counts all classes together. `zero_division` stands for 0 / 0.
    """
    return _precision(_count(prediction, target, num_classes), average, zero_division)


def recall(
    prediction: Any,
    target: Any,
    average: str = "macro",
    num_classes: int | None = None,
    zero_division: float = 0.0,
) -> float | Tensor:
    """Of the samples of a class, the fraction predicted as it: tp / (tp + fn). Averages as `precision`."""
    return _recall(_count(prediction, target, num_classes), average, zero_division)


def f1(
    prediction: Any,
    target: Any,
    average: str = "macro",
    num_classes: int | None = None,
    zero_division: float = 0.0,
) -> float | Tensor:
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn). Averages as `precision`."""
    return _f1(_count(prediction, target, num_classes), average, zero_division)


class _Streaming:
    """A metric over many batches: `update` counts one, `compute` gives the value so far."""

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        n = self.num_classes or 0
        self._counts: Counts = np.zeros((n, n), dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Count one batch."""
        new = _count(prediction, target, self.num_classes)
        n = max(len(new), len(self._counts))
        self._counts = _grown(self._counts, n) + _grown(new, n)

    def compute(self) -> Any:
        """The value over everything counted since the last `reset`."""
        raise TypeError(f"{type(self).__name__} defines no compute()")


class Accuracy(_Streaming):
    """Streaming `accuracy`."""

    def compute(self) -> float:
        return _ratio(int(np.trace(self._counts)), int(self._counts.sum()))


class ConfusionMatrix(_Streaming):
    """Streaming `confusion_matrix`."""

    def compute(self) -> Tensor:
        return asarray(self._counts.copy())


class _Averaged(_Streaming):
    _value: Callable[[Counts, str, float], float | Tensor]

    def __init__(
        self, average: str = "macro", num_classes: int | None = None, zero_division: float = 0.0
    ) -> None:
        _check_average(average)
        super().__init__(num_classes)
        self.average, self.zero_division = average, zero_division

    def compute(self) -> float | Tensor:
        return type(self)._value(self._counts, self.average, self.zero_division)


class Mean:
    """The weighted mean of numbers, as of the losses of batches weighted by their sizes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self._sum, self._weight = 0.0, 0.0

    def update(self, value: Any, weight: float = 1.0) -> None:
        """Count `value` with `weight`."""
        self._sum += float(value) * weight
        self._weight += weight

    def compute(self) -> float:
        """The mean so far; NaN when nothing was counted."""
        return self._sum / self._weight if self._weight else float("nan")


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _classes(prediction: Any, target: Any) -> tuple[Counts, Counts]:
    predicted, truth = _array(prediction), _array(target)
    if truth.dtype.kind not in "iub":
        raise TypeError(f"targets are class indices, so integers, not {truth.dtype}")
    if predicted.ndim == truth.ndim + 1:
        predicted = np.argmax(predicted, axis=-1)
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predictions of shape {predicted.shape} do not fit targets of shape {truth.shape}: they need the "
            "same shape, or one more axis of scores"
        )
    if predicted.dtype.kind not in "iub":
        raise TypeError(
            f"predictions of the targets' shape are class indices, so integers, not {predicted.dtype}; for "
            "probabilities of two classes compare them with a threshold first"
        )
    return predicted.astype(np.int64).ravel(), truth.astype(np.int64).ravel()


def _count(prediction: Any, target: Any, num_classes: int | None) -> Counts:
    predicted, truth = _classes(prediction, target)
    both = np.concatenate([predicted, truth])
    n = num_classes
    if n is None:
        scores = _array(prediction)
        from_scores = scores.shape[-1] if scores.ndim == _array(target).ndim + 1 else 0
        n = max(from_scores, int(both.max()) + 1 if both.size else 0)
    if both.size and (both.min() < 0 or both.max() >= n):
        wrong = int(both.min()) if both.min() < 0 else int(both.max())
        raise ValueError(f"class {wrong} is outside the {n} classes 0..{n - 1}")
    return np.bincount(truth * n + predicted, minlength=n * n).reshape(n, n)


def _grown(counts: Counts, n: int) -> Counts:
    return np.pad(counts, (0, n - len(counts)))


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def _check_average(average: str) -> None:
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(map(repr, AVERAGES))}, not {average!r}")


def _averaged(
    counts: Counts, numerator: Counts, denominator: Counts, average: str, zero_division: float
) -> float | Tensor:
    _check_average(average)
    support = counts.sum(axis=1)
    if average == "micro":
        numerator, denominator = numerator.sum(keepdims=True), denominator.sum(keepdims=True)
    values = np.full(numerator.shape, float(zero_division))
    np.divide(numerator, denominator, out=values, where=denominator != 0)
    if average == "none":
        return asarray(values)
    if average == "micro":
        return float(values[0])
    weights = support if average == "weighted" else (support + counts.sum(axis=0) > 0).astype(np.int64)
    total = int(weights.sum())
    return float(np.sum(values * weights) / total) if total else float("nan")


def _precision(counts: Counts, average: str, zero_division: float) -> float | Tensor:
    return _averaged(counts, np.diag(counts), counts.sum(axis=0), average, zero_division)


def _recall(counts: Counts, average: str, zero_division: float) -> float | Tensor:
    return _averaged(counts, np.diag(counts), counts.sum(axis=1), average, zero_division)


def _f1(counts: Counts, average: str, zero_division: float) -> float | Tensor:
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return _averaged(counts, 2 * np.diag(counts), both, average, zero_division)


class Precision(_Averaged):
    """Streaming `precision`."""

    _value = staticmethod(_precision)


class Recall(_Averaged):
    """Streaming `recall`."""

    _value = staticmethod(_recall)


class F1(_Averaged):
    """Streaming `f1`."""

    _value = staticmethod(_f1)
