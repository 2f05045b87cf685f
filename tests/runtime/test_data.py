"""Datasets, samplers and the loader: what is in a batch, in which order, on how many threads."""

from __future__ import annotations

import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import data


class Squares(data.Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if not -self.n <= index < self.n:
            raise IndexError(index)
        return (index % self.n) ** 2


class Count(data.IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


def flat(loader: Any) -> list[int]:
    return [value for batch in loader for value in batch.numpy().tolist()]


def test_tensor_dataset_gathers_what_it_would_stack() -> None:
    images, labels = np.random.default_rng(0).standard_normal((10, 2, 3)), gc.arange(10)
    dataset = data.TensorDataset(images, labels)
    assert len(dataset) == 10
    indices = np.array([7, 0, 7])
    gathered = dataset.gather(indices)
    stacked = data.default_collate([dataset[i] for i in indices])
    assert isinstance(gathered, tuple) and isinstance(stacked, tuple)
    for a, b in zip(gathered, stacked, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    np.testing.assert_array_equal(gathered[0].numpy(), images[indices])


def test_tensor_dataset_needs_one_length() -> None:
    with pytest.raises(ValueError) as error:
        data.TensorDataset(np.zeros((3, 2)), np.zeros(4))
    assert str(error.value) == "TensorDataset needs tensors of the same first dimension; the shapes are (3, 2), (4,)"
    with pytest.raises(ValueError, match="the shapes are \\(\\)"):
        data.TensorDataset(np.float32(3))
    with pytest.raises(ValueError, match="at least one tensor"):
        data.TensorDataset()


def test_subset_concat_and_addition() -> None:
    subset = data.Subset(Squares(5), [4, -5, 2])
    assert [subset[i] for i in range(len(subset))] == [16, 0, 4]
    both = Squares(3) + Squares(2)
    assert [both[i] for i in range(len(both))] == [0, 1, 4, 0, 1]
    assert both[-1] == 1
    with pytest.raises(IndexError) as error:
        both[5]
    assert str(error.value) == "index 5 is outside a ConcatDataset of 5 samples"
    with pytest.raises(IndexError) as error:
        data.Subset(Squares(5), [0, 5])
    assert str(error.value) == "Subset index 5 is outside a dataset of 5 samples"


def test_a_subset_gathers_where_its_dataset_does() -> None:
    subset = data.Subset(data.TensorDataset(np.arange(10) * 10), [9, 3, 5])
    np.testing.assert_array_equal(subset.gather(np.array([2, 0]))[0].numpy(), [50, 90])
    assert not hasattr(data.Subset(Squares(5), [1]), "gather")


def test_random_split_parts_and_seeds() -> None:
    parts = data.random_split(Squares(10), [7, 3], seed=4)
    assert [len(p) for p in parts] == [7, 3]
    assert sorted(parts[0].indices.tolist() + parts[1].indices.tolist()) == list(range(10))
    again = data.random_split(Squares(10), [7, 3], seed=4)
    assert [p.indices.tolist() for p in parts] == [p.indices.tolist() for p in again]
    other = data.random_split(Squares(10), [7, 3], seed=5)
    assert [p.indices.tolist() for p in parts] != [p.indices.tolist() for p in other]
    assert [len(p) for p in data.random_split(Squares(10), [0.5, 0.25, 0.25])] == [6, 2, 2]
    with pytest.raises(ValueError) as error:
        data.random_split(Squares(10), [7, 4])
    assert str(error.value) == "random_split lengths [7, 4] must be >= 0 and add up to the 10 samples"
    with pytest.raises(ValueError, match="fractions must be >= 0 and add up to 1"):
        data.random_split(Squares(10), [0.5, 0.6])


def test_batches_in_order_with_and_without_the_last() -> None:
    loader = data.DataLoader(Squares(5), batch_size=2)
    assert [b.numpy().tolist() for b in loader] == [[0, 1], [4, 9], [16]]
    assert len(loader) == 3
    short = data.DataLoader(Squares(5), batch_size=2, drop_last=True)
    assert [b.numpy().tolist() for b in short] == [[0, 1], [4, 9]]
    assert len(short) == 2


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    loader = data.DataLoader(Squares(20), batch_size=4, shuffle=True, seed=1)
    first, second = flat(loader), flat(loader)
    assert sorted(first) == sorted(second) == [i * i for i in range(20)]
    assert first != second
    same = data.DataLoader(Squares(20), batch_size=4, shuffle=True, seed=1)
    assert flat(same) == first
    assert flat(same) == second
    same.set_epoch(0)
    assert flat(same) == first
    assert flat(data.DataLoader(Squares(20), batch_size=4, shuffle=True, seed=2)) != first
    # Neither the batch size nor the threads enter.
    assert flat(data.DataLoader(Squares(20), batch_size=7, shuffle=True, seed=1, num_workers=2)) == first


def test_an_abandoned_pass_counts_as_an_epoch() -> None:
    loader = data.DataLoader(Squares(20), batch_size=4, shuffle=True, seed=1)
    next(iter(loader))
    reference = data.DataLoader(Squares(20), batch_size=4, shuffle=True, seed=1)
    reference.set_epoch(1)
    assert flat(loader) == flat(reference)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_fetch_ahead_in_order(workers: int) -> None:
    threads = set()

    class Slow(Squares):
        def __getitem__(self, index: int) -> int:
            threads.add(threading.get_ident())
            time.sleep(0.002 * (index % 3))
            return index

    loader = data.DataLoader(Slow(20), batch_size=2, num_workers=workers)
    assert flat(loader) == list(range(20))
    assert threading.get_ident() not in threads
    assert 1 <= len(threads) <= workers


def test_prefetch_bounds_what_is_fetched_ahead() -> None:
    fetched = []

    class Watched(Squares):
        def __getitem__(self, index: int) -> int:
            fetched.append(index)
            return index

    batches = iter(data.DataLoader(Watched(100), num_workers=1, prefetch=3))
    next(batches)
    time.sleep(0.05)
    assert len(fetched) <= 4
    batches.close()  # type: ignore[attr-defined]


def test_an_error_in_a_worker_reaches_the_loop() -> None:
    class Broken(Squares):
        def __getitem__(self, index: int) -> int:
            if index == 3:
                raise OSError("sample 3 is unreadable")
            return index

    for workers in (0, 2):
        seen = []
        with pytest.raises(OSError, match="sample 3 is unreadable"):
            for batch in data.DataLoader(Broken(6), num_workers=workers):
                seen.append(batch.item())
        assert seen == [0, 1, 2]


def test_streams() -> None:
    loader = data.DataLoader(Count(5), batch_size=2)
    assert [b.numpy().tolist() for b in loader] == [[0, 1], [2, 3], [4]]
    assert [b.numpy().tolist() for b in data.DataLoader(Count(5), batch_size=2, drop_last=True)] == [[0, 1], [2, 3]]
    assert flat(data.DataLoader(Count(5), batch_size=2, num_workers=2)) == list(range(5))
    with pytest.raises(TypeError) as error:
        len(loader)
    assert str(error.value) == "a DataLoader over an IterableDataset has no length"


def test_samplers() -> None:
    assert list(data.SequentialSampler(range(3))) == [0, 1, 2]
    assert sorted(data.RandomSampler(range(5), seed=3)) == list(range(5))
    assert len(list(data.RandomSampler(range(5), num_samples=2))) == 2
    drawn = list(data.RandomSampler(range(3), replacement=True, num_samples=50))
    assert len(drawn) == 50 and set(drawn) == {0, 1, 2}
    assert sorted(data.SubsetRandomSampler([8, 3, 5])) == [3, 5, 8]
    weighted = list(data.WeightedRandomSampler([0.0, 3.0, 1.0], 4000, seed=1))
    assert set(weighted) == {1, 2}
    # The count of a binomial of 4000 draws at 3/4 has the deviation 27.
    assert abs(weighted.count(1) - 3000) < 140
    batches = data.BatchSampler(data.SequentialSampler(range(5)), 2, drop_last=True)
    assert [b.tolist() for b in batches] == [[0, 1], [2, 3]]
    assert len(batches) == 2


def test_a_sampler_and_a_batch_sampler_decide() -> None:
    loader = data.DataLoader(Squares(5), batch_size=2, sampler=[4, 0, 4])
    assert [b.numpy().tolist() for b in loader] == [[16, 0], [16]]
    loader = data.DataLoader(Squares(5), batch_sampler=[[1], [2, 3]])
    assert [b.numpy().tolist() for b in loader] == [[1], [4, 9]]
    assert len(loader) == 2


def test_collation() -> None:
    Point = namedtuple("Point", "x y")
    samples = [
        {"p": Point(1.5, np.float64(2)), "name": "a", "t": gc.asarray([1, 2]), "l": [True, 3]},
        {"p": Point(2.5, np.float64(3)), "name": "b", "t": gc.asarray([3, 4]), "l": [False, 4]},
    ]
    batch = data.default_collate(samples)
    assert isinstance(batch["p"], Point)
    assert batch["p"].x.dtype.name == "float32" and batch["p"].x.numpy().tolist() == [1.5, 2.5]
    assert batch["p"].y.dtype.name == "float64"
    assert batch["name"] == ["a", "b"]
    assert batch["t"].numpy().tolist() == [[1, 2], [3, 4]]
    assert [c.dtype.name for c in batch["l"]] == ["bool", "int64"]
    collated = data.DataLoader(Squares(4), batch_size=2, collate_fn=lambda samples: sum(samples))
    assert list(collated) == [1, 13]


def test_collation_errors() -> None:
    with pytest.raises(ValueError) as error:
        data.default_collate([np.zeros(2), np.zeros(3)])
    assert str(error.value) == (
        "samples of one batch have different shapes [(2,), (3,)]; pad them in the dataset or pass a collate_fn"
    )
    with pytest.raises(ValueError) as error:
        data.default_collate([(1, 2), (1,)])
    assert str(error.value) == "samples of one batch have different numbers of entries: [1, 2]"
    with pytest.raises(TypeError) as error:
        data.default_collate([object()])
    assert str(error.value) == (
        "default_collate cannot batch samples of type object; it knows tensors, NumPy arrays, numbers, strings, "
        "tuples, lists and dicts: pass a collate_fn"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer > 0, not 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer > 0, not 2.0"),
        ({"num_workers": -1}, "num_workers must be >= 0, not -1"),
        ({"prefetch": 0}, "prefetch must be > 0, not 0"),
        ({"seed": -1, "shuffle": True}, "a sampler's seed must be >= 0, not -1"),
        (
            {"shuffle": True, "sampler": [0]},
            "pass shuffle=True or a sampler, not both: the sampler decides the order",
        ),
        (
            {"batch_sampler": [[0]], "batch_size": 2},
            "a batch_sampler decides batches and order: batch_size, shuffle, sampler and drop_last do not apply",
        ),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        data.DataLoader(Squares(4), **options)
    assert str(error.value) == message


def test_a_stream_has_no_positions() -> None:
    with pytest.raises(ValueError, match="shuffle and samplers do not apply"):
        data.DataLoader(Count(3), shuffle=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.RandomSampler(range(3), num_samples=0), "RandomSampler needs num_samples > 0, not 0"),
        (
            lambda: data.RandomSampler(range(3), num_samples=4),
            "RandomSampler cannot draw 4 of 3 samples without replacement; pass replacement=True",
        ),
        (
            lambda: data.WeightedRandomSampler([1.0, -1.0], 1),
            "WeightedRandomSampler needs a list of weights >= 0 that are not all zero",
        ),
        (
            lambda: data.WeightedRandomSampler([1.0, 0.0], 2, replacement=False),
            "WeightedRandomSampler cannot draw 2 samples without replacement: 1 have a weight > 0",
        ),
    ],
)
def test_sampler_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
