"""Datasets: indexed (`Dataset`), streamed (`IterableDataset`), and the ways to combine them.

A dataset that can fetch many samples at once defines `gather(indices)`, which returns the finished
batch: `TensorDataset` takes each tensor once, instead of stacking samples one by one.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from graphc.runtime.data.collate import as_array, as_tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Dataset:
    """Samples by position: a subclass defines `__getitem__` and `__len__`."""

    def __getitem__(self, index: int) -> Any:
        raise TypeError(f"{type(self).__name__} defines no __getitem__(index)")

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} defines no __len__()")

    def __add__(self, other: Dataset) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset:
    """Samples in a stream: a subclass defines `__iter__`. It cannot be shuffled or indexed."""

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{type(self).__name__} defines no __iter__()")


class TensorDataset(Dataset):
    """Sample i is the tuple of `tensor[i]` of every tensor (or NumPy array), all of one length.

    >>> import graphc as gc, numpy as np
    >>> data = gc.data.TensorDataset(np.arange(6.0).reshape(3, 2), np.arange(3))
    >>> len(data), [tuple(t.shape) for t in data.gather(np.array([2, 0]))]
    (3, [(2, 2), (2,)])
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ValueError("TensorDataset needs at least one tensor")
        lengths = [len(t) if len(t.shape) else None for t in tensors]
        if None in lengths or len(set(lengths)) > 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"TensorDataset needs tensors of the same first dimension; the shapes are {shapes}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(as_tensor(t[index]) for t in self.tensors)

    def gather(self, indices: Indices) -> tuple[Any, ...]:
        """The batch of the samples at `indices`: one take for each tensor."""
        return tuple(as_tensor(np.take(as_array(t), indices, axis=0)) for t in self.tensors)


class Subset(Dataset):
    """The samples of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)
        n = len(dataset)
        wrong = self.indices[(self.indices < -n) | (self.indices >= n)]
        if wrong.size:
            raise IndexError(f"Subset index {wrong[0]} is outside a dataset of {n} samples")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def __getattr__(self, name: str) -> Any:
        # Only a subset of a dataset with `gather` has one, so that the loader can ask with hasattr.
        if name == "gather" and hasattr(self.__dict__.get("dataset"), "gather"):
            return lambda indices: self.dataset.gather(self.indices[indices])  # type: ignore[attr-defined]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class ConcatDataset(Dataset):
    """Several datasets, one after the other."""

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset needs at least one dataset")
        self.ends = np.cumsum([len(d) for d in self.datasets]).tolist()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Any:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"index {index} is outside a ConcatDataset of {n} samples")
        index %= n
        which = bisect.bisect_right(self.ends, index)
        return self.datasets[which][index - (self.ends[which - 1] if which else 0)]


def random_split(dataset: Dataset, lengths: Sequence[int | float], seed: int = 0) -> list[Subset]:
    """Non-overlapping random subsets of the given lengths, a function of `seed` alone.

    `lengths` are sample counts that add up to `len(dataset)`, or fractions that add up to 1; what
    rounding down leaves over is given to the first subsets, one sample each, as PyTorch does.
    """
    n = len(dataset)
    counts = [int(c) for c in lengths]
    if any(isinstance(c, float) for c in lengths):
        if any(c < 0 for c in lengths) or abs(sum(lengths) - 1.0) > 1e-9:
            raise ValueError(f"random_split fractions must be >= 0 and add up to 1, not {list(lengths)}")
        counts = [int(c * n) for c in lengths]
        for i in range(n - sum(counts)):
            counts[i % len(counts)] += 1
    if any(c < 0 for c in counts) or sum(counts) != n:
        raise ValueError(f"random_split lengths {counts} must be >= 0 and add up to the {n} samples")
    order = np.random.default_rng(seed).permutation(n)
    ends = np.cumsum(counts)
    return [Subset(dataset, order[end - count : end].tolist()) for count, end in zip(counts, ends, strict=True)]
