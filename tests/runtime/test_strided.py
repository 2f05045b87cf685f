"""Copies of strided memory by kernels: the same bytes as NumPy's copies, for every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import strided
from graphc.runtime.core import make_contiguous

VIEWS: dict[str, Callable[[gc.Tensor], gc.Tensor]] = {
    "transposed": lambda x: x.mT,
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "front cut": lambda x: x[1:, :, 2:],
    "back cut": lambda x: x[:, :-1, :, :3],
    "middle": lambda x: x[:, 1:2, 1:4, 2:4].permute(3, 2, 1, 0),
    "one of each": lambda x: x[:, 2],
    "last one of each": lambda x: x[..., 4],
    "steps": lambda x: x[:, ::2, ::3],
    "repeated": lambda x: x[:, :1].broadcast_to((3, 4, 5, 5)),
    "permuted and repeated": lambda x: x[0, 0].T.broadcast_to((3, 5, 5)),
    "reversed": lambda x: x.flip(1),
    "a number": lambda x: x[1, 1, 1, 1:2].broadcast_to((7,)),
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(strided, "PATIENCE", 1)
    strided._programs.clear()
    strided._counts.clear()
    yield
    strided._programs.clear()
    strided._counts.clear()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool", "bfloat16", "int64"])
@pytest.mark.parametrize("view", VIEWS)
def test_copies_have_the_bytes_of_numpy(view: str, dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 5)) if dtype == "bool" else np.arange(300).reshape(3, 4, 5, 5) % 120
    x = gc.asarray(bits, copy=True).astype(getattr(gc, dtype))
    for _ in range(2):
        t = VIEWS[view](x)
        want = t.numpy().copy()
        make_contiguous(t)
        assert t._strides is None and t.numpy().tobytes() == want.tobytes()
    # Rows of 5 are no multiple of steps of 3, nothing is reversed, and one number is not worth it.
    if view not in ("reversed", "steps", "a number"):
        assert strided._programs or VIEWS[view](x)._strides is None


def test_memory_of_others_is_read_only_where_it_is_the_tensor() -> None:
    base = np.arange(60, dtype=np.float32).reshape(6, 10)
    dense, cut = gc.from_numpy(base).T, gc.from_numpy(base[:, 2:5])
    for t in (dense, cut):
        make_contiguous(t)
    np.testing.assert_array_equal(dense.numpy(), base.T)
    np.testing.assert_array_equal(cut.numpy(), base[:, 2:5])
    assert len(strided._programs) == 1


def test_nan_keeps_its_bits() -> None:
    bits = np.array([[0x7FC00001, 0xFF800001], [0x7F800123, 0x80000000]], np.uint32)
    t = gc.from_numpy(bits.view(np.float32)).T
    make_contiguous(t)
    assert strided._programs and t.numpy().view(np.uint32).tolist() == bits.T.tolist()


def test_a_layout_is_compiled_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "PATIENCE", 3)
    x = gc.arange(35).reshape(5, 7)
    for i in range(5):
        t = x.T
        make_contiguous(t)
        assert len(strided._programs) == (i >= 2)


def test_large_transposes_are_equal() -> None:
    a = np.random.default_rng(1).standard_normal((301, 513)).astype(np.float32)
    x = gc.asarray(a)
    for _ in range(2):
        t = x.T
        make_contiguous(t)
        np.testing.assert_array_equal(t.numpy(), a.T)
