"""Random tensors: functions of a seed and a position; moments; state."""

from __future__ import annotations

import pickle
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.ir.ops.random import philox


def words(key: int, n: int) -> Any:
    """The first n 32-bit words of a stream, from the cipher itself."""
    blocks = np.arange(-(-n // 4), dtype=np.uint64)
    zero = np.zeros_like(blocks)
    low, high = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    out = philox((blocks, zero, zero, zero), (low, high))
    return np.stack(out, 1).reshape(-1)[:n].astype(np.uint32)


def test_uniform_float32_are_the_upper_24_bits() -> None:
    expected = (words(7, 10) >> 8).astype(np.float32) * np.float32(2**-24)
    np.testing.assert_array_equal(gc.rand(10, generator=gc.Generator(7)).numpy(), expected)


def test_a_stream_continues() -> None:
    g = gc.Generator(7)
    parts = [gc.rand(n, generator=g).numpy() for n in (1, 2, 3, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), gc.rand(10, generator=gc.Generator(7)).numpy())
    assert g.state == (7, 10)
    gc.rand(3, dtype=gc.float64, generator=g)
    assert g.state == (7, 16)
    gc.rand(1, generator=g)
    gc.rand(1, dtype=gc.float64, generator=g)
    # 64-bit numbers begin at an even word.
    assert g.state == (7, 20)


DTYPES = [gc.float16, gc.bfloat16, gc.float32, gc.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments(dtype: Any) -> None:
    g = gc.Generator(1)
    u = gc.rand(200, 100, dtype=dtype, generator=g).double().numpy()
    z = gc.randn(200, 100, dtype=dtype, generator=g).double().numpy()
    assert u.min() >= 0 and u.max() < 1
    # 20000 draws: four standard errors; bfloat16 keeps 8 bits, so its mean is 2**-9 low.
    low = 2**-9 if dtype is gc.bfloat16 else 0
    assert abs(u.mean() + low - 0.5) < 4 * 0.29 / 141
    assert abs(u.var() - 1 / 12) < 0.003
    assert abs(z.mean()) < 4 / 141 and abs(z.var() - 1) < 4 * 1.42 / 141
    assert abs((z**3).mean()) < 0.12 and abs((z**4).mean() - 3) < 0.3


def test_integers() -> None:
    g = gc.Generator(2)
    x = gc.randint(-3, 5, (4000,), generator=g).numpy()
    assert x.dtype == np.int64 and set(x.tolist()) == set(range(-3, 5))
    # Chi-square with 7 degrees of freedom: 24.3 has a probability of one in a thousand.
    counts = np.bincount(x + 3)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3
    assert gc.randint(10, size=(2, 2), dtype=gc.int8).dtype is gc.int8
    assert gc.randint(10, (3,)).shape == (3,)
    with pytest.raises(ValueError, match=r"range \[5, 5\) is empty"):
        gc.randint(5, 5, (1,))


def test_permutations_eager_and_traced() -> None:
    c = gc.compile(lambda: gc.randperm(50))
    gc.manual_seed(4)
    eager = [gc.randperm(50).tolist() for _ in range(3)]
    gc.manual_seed(4)
    assert [c().tolist() for _ in range(3)] == eager
    assert sorted(eager[0]) == list(range(50)) and eager[0] != eager[1]


def test_seeds() -> None:
    def draw(seed: int) -> Any:
        gc.manual_seed(seed)
        return gc.rand(4).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert draw(2**64 + 1) == draw(1) and draw(-1) == draw(2**64 - 1)
    gc.manual_seed(3)
    gc.rand(5)
    state = gc.random.default_generator.state
    a = gc.rand(3).tolist()
    gc.random.default_generator.state = state
    assert gc.rand(3).tolist() == a


def test_generators_are_independent_and_pickle() -> None:
    g = gc.Generator(5)
    gc.rand(3, generator=g)
    h = pickle.loads(pickle.dumps(g))
    assert gc.rand(3, generator=g).tolist() == gc.rand(3, generator=h).tolist()
    before = gc.random.default_generator.state
    gc.rand(3, generator=g)
    assert gc.random.default_generator.state == before
    assert repr(gc.Generator(5)) == "Generator(key=5, offset=0)"


def test_other_distributions() -> None:
    gc.manual_seed(0)
    x = gc.uniform(2.0, 4.0, (1000,))
    assert x.min().item() >= 2 and x.max().item() < 4
    assert abs(gc.normal(5.0, 2.0, (4000,)).mean().item() - 5) < 0.15
    b = gc.bernoulli(gc.full((4000,), 0.25))
    assert set(b.tolist()) == {0.0, 1.0} and abs(b.mean().item() - 0.25) < 0.03
    m = gc.multinomial(gc.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]]), 4000)
    assert m.shape == (2, 4000) and m.dtype is gc.int64
    assert abs((m[0] == 2).float().mean().item() - 0.75) < 0.03 and m[1].max().item() == 0 and m[0].min().item() == 1
    assert gc.rand_like(gc.ones(2, 3, dtype=gc.float64)).dtype is gc.float64
    assert gc.randn_like(gc.ones(2, 3)).shape == (2, 3)
    t = gc.zeros(1000).uniform_(-1, 1)
    assert -1 <= t.min().item() < -0.9 and 0.9 < t.max().item() < 1
    assert abs(gc.zeros(1000).normal_(3, 1).mean().item() - 3) < 0.2


def test_errors_and_gradients() -> None:
    with pytest.raises(TypeError, match="use randint"):
        gc.rand(2, dtype=gc.int64)
    assert gc.rand(2, requires_grad=True).requires_grad and not gc.rand(2).requires_grad
