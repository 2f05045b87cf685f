"""NumPy, DLPack and Python data, shared without copies where that is promised."""

from __future__ import annotations

import threading
from typing import Any

import graphc as gc
import numpy as np
import pytest

SHARED = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(12, dtype=np.int64).reshape(3, 4)[::2, 1:3],
    np.arange(6, dtype=np.int16).reshape(2, 3).T,
    np.arange(5, dtype=np.float64)[::-1],
    np.broadcast_to(np.float32(3), (2, 2)),
    np.array(True),
    np.zeros((0, 3), np.uint8),
]


@pytest.mark.parametrize("array", SHARED, ids=lambda a: f"{a.dtype}{a.shape}")
def test_from_numpy_shares_memory(array: Any) -> None:
    t = gc.from_numpy(array)
    assert t.numpy().dtype == array.dtype
    np.testing.assert_array_equal(t.numpy(), array)
    if array.size:
        assert np.shares_memory(t.numpy(), array)
    np.testing.assert_array_equal((t == t).numpy(), np.ones(array.shape, bool))


def test_changes_of_a_shared_array_are_seen() -> None:
    a = np.zeros(3, np.float32)
    for t in (gc.from_numpy(a), gc.asarray(a)):
        a += 1
        assert t.tolist() == a.tolist()
    copied = gc.tensor(a)
    kept = gc.asarray(a, copy=True)
    a += 1
    assert copied.tolist() == kept.tolist() == [2, 2, 2]


def test_graphc_never_writes_to_shared_memory() -> None:
    a = np.zeros(3, np.float32)
    t = gc.from_numpy(a)
    t += 1
    t[0] = 9
    assert a.tolist() == [0, 0, 0] and t.tolist() == [9, 1, 1]


def test_numpy_gives_a_read_only_view() -> None:
    t = gc.arange(6).reshape(2, 3)
    for view in (t.numpy(), t.T.numpy(), np.asarray(t)):
        assert not view.flags.writeable
    assert t.numpy().ctypes.data == t.data_ptr() and t.T.numpy().shape == (3, 2)
    copied = np.array(t)
    copied[0] = 7
    assert t[0, 0].item() == 0
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    assert np.sin(t).dtype == np.float64 and isinstance(np.ones(3) * t, gc.Tensor) and isinstance(np.ones(3) @ t.T, gc.Tensor)
    assert (np.float64(2) * t).dtype is gc.float64
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(t, dtype=np.float32, copy=False)


def test_memory_outlives_the_tensor() -> None:
    view = gc.full((4,), 5.0).numpy()
    others = [gc.full((4,), 1.0) for _ in range(8)]
    assert view.tolist() == [5] * 4 and len(others) == 8
    t = gc.from_numpy(np.full(4, 2.0))
    assert (t + 0).tolist() == [2] * 4


def test_asarray() -> None:
    t = gc.ones(2)
    assert gc.asarray(t) is t and gc.asarray(t, copy=True) is not t
    assert gc.asarray(t, dtype=gc.float64).dtype is gc.float64
    assert gc.asarray(np.ones(2), dtype=gc.int8).tolist() == [1, 1]
    assert gc.asarray(3).shape == () and gc.asarray((1, (2.5)), dtype="float16").dtype is gc.float16
    assert gc.asarray(np.array([1], dtype=">i4")).tolist() == [1]
    for bad in (lambda: gc.asarray([1], copy=False), lambda: gc.asarray(np.ones(2), dtype=gc.int8, copy=False),
                lambda: gc.asarray(t, dtype=gc.int8, copy=False)):  # fmt: skip
        with pytest.raises(ValueError, match=r"copy|share"):
            bad()
    with pytest.raises(ValueError, match="ragged"):
        gc.tensor([[1], [1, 2]])
    with pytest.raises(TypeError, match="not numbers"):
        gc.tensor(["a"])
    with pytest.raises(TypeError, match="not an element type of graphc"):
        gc.from_numpy(np.ones(2, np.complex64))
    with pytest.raises(TypeError, match="use graphc.asarray"):
        gc.from_numpy([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [gc.float32, gc.float16, gc.int8, gc.uint64, gc.bool], ids=str)
def test_dlpack_to_and_from_numpy(dtype: Any) -> None:
    t = gc.tensor([[1, 0, 1], [0, 1, 1]], dtype=dtype)
    for x in (t, t.T, t[:, 1]):
        array = np.from_dlpack(x)  # type: ignore[arg-type]
        np.testing.assert_array_equal(array, x.numpy())
        assert np.shares_memory(array, x.numpy())
    a = np.ones((2, 3), dtype.numpy)
    back = gc.from_dlpack(a)
    assert back.dtype is dtype and np.shares_memory(back.numpy(), a)
    assert gc.from_dlpack(t).data_ptr() == t.data_ptr()
    assert t.__dlpack_device__() == (1, 0)
    assert "dltensor" in repr(t.__dlpack__())
    assert "dltensor_versioned" in repr(t.__dlpack__(max_version=(1, 0)))


def test_dlpack_keeps_memory_alive() -> None:
    array = np.from_dlpack(gc.full((4,), 5.0))  # type: ignore[arg-type]
    others = [gc.full((4,), 1.0) for _ in range(8)]
    assert array.tolist() == [5] * 4 and len(others) == 8


def test_dlpack_of_bfloat16_is_refused() -> None:
    with pytest.raises(BufferError, match="astype"):
        gc.ones(1, dtype=gc.bfloat16).__dlpack__()


def test_threads_have_modes_of_their_own() -> None:
    seen = []

    def work() -> None:
        w = gc.ones(3, requires_grad=True)
        (w * 2).sum().backward()
        seen.append((gc.is_grad_enabled(), w.grad.tolist()))  # type: ignore[union-attr]

    with gc.no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [(True, [2, 2, 2])]


def test_threads_do_not_enter_a_recording() -> None:
    def elsewhere() -> None:
        gc.ones(3) * 5

    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return x + 1

    for _ in range(2):
        f(gc.ones(2))
    (family,) = f._families.values()
    assert [op.name for op in family.recordings[0].function.ops if op.name == "mul"] == []


def test_threads_share_programs() -> None:
    x = gc.rand(64, 64)
    expected = (x @ x).numpy()
    results: list[Any] = []

    def work() -> None:
        for _ in range(20):
            results.append((x @ x).numpy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    for r in results:
        np.testing.assert_array_equal(r, expected)
