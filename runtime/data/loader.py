"""`DataLoader`: batches of a dataset, in an order that is a function of (seed, epoch).

Invariant: the batches and their order do not depend on `num_workers` or `prefetch`; workers only
fetch ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from graphc.runtime.cuda import is_available
from graphc.runtime.data.collate import default_collate
from graphc.runtime.data.dataset import IterableDataset
from graphc.runtime.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    check_batch_size,
)
from graphc.runtime.structure import flatten, unflatten
from graphc.runtime.tensor import Tensor


class DataLoader:
    """Iterates over `dataset` in batches; every new iteration is a new epoch with a new shuffle.

    dataset: a `Dataset`, an `IterableDataset`, or anything with `__getitem__` and `__len__`.
    shuffle: visit the samples in an order that is a function of (`seed`, epoch).
    sampler: yields positions, instead of `shuffle`; batch_sampler: yields lists of positions, instead
        of `batch_size`, `shuffle`, `sampler` and `drop_last`.
    collate_fn: list of samples -> batch; without it a dataset with `gather` makes the batch in one step,
        and `default_collate` stacks the samples of any other.
    num_workers: threads that fetch batches ahead; 0 fetches in the thread that iterates.
    prefetch: how many batches are fetched ahead at most, 2 for each worker unless told.
    pin_memory: put the tensors of batches in pinned memory, from which `batch.to("cuda", non_blocking=True)` copies while
        Python goes on. Without a CUDA device there is nothing to pin.

    >>> import graphc as gc, numpy as np
    >>> loader = gc.data.DataLoader(gc.data.TensorDataset(np.arange(5)), batch_size=2)
    >>> [batch.numpy().tolist() for (batch,) in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Any = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        seed: int = 0,
        prefetch: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, not {num_workers}")
        if prefetch is not None and prefetch <= 0:
            raise ValueError(f"prefetch must be > 0, not {prefetch}")
        streamed = isinstance(dataset, IterableDataset)
        if streamed and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError("an IterableDataset has no positions: shuffle and samplers do not apply to it")
        if sampler is not None and shuffle:
            raise ValueError("pass shuffle=True or a sampler, not both: the sampler decides the order")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError(
                "a batch_sampler decides batches and order: batch_size, shuffle, sampler and drop_last do not apply"
            )
        check_batch_size(batch_size)
        self.dataset = dataset
        self.batch_size: int | None = batch_size if batch_sampler is None else None
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.prefetch = prefetch if prefetch is not None else max(1, 2 * num_workers)
        self.sampler: Any = None
        self.batch_sampler: Any = batch_sampler
        if batch_sampler is None and not streamed:
            default: Sampler = RandomSampler(dataset, seed=seed) if shuffle else SequentialSampler(dataset)
            self.sampler = sampler if sampler is not None else default
            self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration the epoch numbered `epoch` (from 0), as when a run is resumed."""
        if hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """The number of batches; `TypeError` for a stream, which has no known length."""
        if self.batch_sampler is None:
            raise TypeError("a DataLoader over an IterableDataset has no length")
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        jobs = self._stream() if self.batch_sampler is None else self._indexed()
        if self.pin_memory and is_available():
            jobs = (_pinned(fetch) for fetch in jobs)
        if self.num_workers == 0:
            return (fetch() for fetch in jobs)
        # A stream is read by the thread that iterates it: only the collation of its batches runs ahead.
        return _ahead(jobs, self.num_workers, self.prefetch)

    def _indexed(self) -> Iterator[Callable[[], Any]]:
        gather = getattr(self.dataset, "gather", None) if self.collate_fn is None else None
        for indices in self.batch_sampler:
            if gather is not None:
                yield _job(gather, np.asarray(indices, dtype=np.int64))
            else:
                yield _job(self._fetch, indices)

    def _fetch(self, indices: Iterable[int]) -> Any:
        return (self.collate_fn or default_collate)([self.dataset[int(i)] for i in indices])

    def _stream(self) -> Iterator[Callable[[], Any]]:
        collate = self.collate_fn or default_collate
        assert self.batch_size is not None
        samples = iter(self.dataset)
        while batch := list(islice(samples, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield _job(collate, batch)


def _pinned(fetch: Callable[[], Any]) -> Callable[[], Any]:
    """A job whose tensors are pinned, by the thread that fetches them."""

    def job() -> Any:
        leaves: list[Any] = []
        structure = flatten(fetch(), leaves)
        return unflatten(structure, iter([x.pin_memory() if isinstance(x, Tensor) and not x.is_cuda else x for x in leaves]))

    return job


def _job(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: function(argument)


def _ahead(jobs: Iterator[Callable[[], Any]], workers: int, prefetch: int) -> Iterator[Any]:
    """The results of `jobs` in order, computed by `workers` threads, at most `prefetch` ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="graphc-data")
    try:
        pending: deque[Future[Any]] = deque(pool.submit(job) for job in islice(jobs, prefetch))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(job) for job in islice(jobs, 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
