"""The number of threads: set and read, and of no influence on a result."""

from __future__ import annotations

from collections.abc import Iterator

import graphc as gc
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_num_threads()
    yield
    gc.set_num_threads(before)


def test_results_are_equal_to_the_bit_on_any_number_of_threads() -> None:
    x = gc.asarray(np.random.default_rng(0).standard_normal((300, 257)).astype(np.float32))
    results = []
    for count in (1, 2, 5):
        gc.set_num_threads(count)
        assert gc.get_num_threads() == count
        results.append([(x @ x.T).numpy(), gc.nn.functional.softmax(x).numpy(), gc.sum(x).numpy()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        gc.set_num_threads(0)
    with pytest.raises(TypeError, match="set_num_threads needs an integer, not float"):
        gc.set_num_threads(2.0)  # type: ignore[arg-type]
