"""Samplers: the order in which a loader visits a dataset.

Invariant: an order is a function of (seed, epoch). The epoch is counted up each time a sampler is
iterated, so that two passes shuffle differently and a resumed run can repeat either (`set_epoch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np


class Sampler:
    """Yields positions; a subclass defines `order(rng)` and `__len__`."""

    def __init__(self, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"a sampler's seed must be >= 0, not {seed}")
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one numbered `epoch` (from 0)."""
        self.epoch = epoch

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """The positions of one pass."""
        raise TypeError(f"{type(self).__name__} defines no order(rng)")

    def next_order(self) -> np.ndarray[Any, Any]:
        """The positions of this epoch, as an int64 array; counts the epoch up."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.epoch))))
        self.epoch += 1
        return np.asarray(self.order(rng), dtype=np.int64)

    def __iter__(self) -> Iterator[int]:
        return iter(self.next_order().tolist())

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} defines no __len__()")


class SequentialSampler(Sampler):
    """0, 1, 2, ..."""

    def __init__(self, data: Sized) -> None:
        super().__init__()
        self.data = data

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return np.arange(len(self.data))

    def __len__(self) -> int:
        return len(self.data)


class RandomSampler(Sampler):
    """A random permutation, or `num_samples` draws with `replacement`."""

    def __init__(
        self, data: Sized, replacement: bool = False, num_samples: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed)
        if num_samples is not None and num_samples <= 0:
            raise ValueError(f"RandomSampler needs num_samples > 0, not {num_samples}")
        if num_samples is not None and not replacement and num_samples > len(data):
            raise ValueError(
                f"RandomSampler cannot draw {num_samples} of {len(data)} samples without replacement; "
                "pass replacement=True"
            )
        self.data, self.replacement, self.num_samples = data, replacement, num_samples

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        if self.replacement:
            return rng.integers(0, len(self.data), size=len(self))
        return rng.permutation(len(self.data))[: len(self)]

    def __len__(self) -> int:
        return len(self.data) if self.num_samples is None else self.num_samples


class SubsetRandomSampler(Sampler):
    """The given positions in random order."""

    def __init__(self, indices: Sequence[int], seed: int = 0) -> None:
        super().__init__(seed)
        self.indices = np.asarray(indices, dtype=np.int64)

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return rng.permutation(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler):
    """`num_samples` positions drawn with probability proportional to `weights`."""

    def __init__(
        self, weights: Sequence[float], num_samples: int, replacement: bool = True, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.weights = np.asarray(weights, dtype=np.float64)
        if self.weights.ndim != 1 or not np.all(self.weights >= 0) or not self.weights.sum() > 0:
            raise ValueError("WeightedRandomSampler needs a list of weights >= 0 that are not all zero")
        available = int(np.count_nonzero(self.weights))
        if num_samples <= 0 or (not replacement and num_samples > available):
            raise ValueError(
                f"WeightedRandomSampler cannot draw {num_samples} samples"
                + ("" if replacement else f" without replacement: {available} have a weight > 0")
            )
        self.num_samples, self.replacement = num_samples, replacement

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        probabilities = self.weights / self.weights.sum()
        return rng.choice(len(probabilities), self.num_samples, self.replacement, probabilities)

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler:
    """Groups what `sampler` yields into lists of `batch_size`; `drop_last` leaves out a shorter last one."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        check_batch_size(batch_size)
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one numbered `epoch`, where the sampler counts epochs."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        order = (
            self.sampler.next_order()
            if isinstance(self.sampler, Sampler)
            else np.fromiter(self.sampler, dtype=np.int64)
        )
        stop = len(order) - len(order) % self.batch_size if self.drop_last else len(order)
        for start in range(0, stop, self.batch_size):
            yield order[start : start + self.batch_size]

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)


def check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
        raise ValueError(f"batch_size must be an integer > 0, not {batch_size!r}")
