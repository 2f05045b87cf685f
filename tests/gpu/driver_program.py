"""Run by test_driver.py in a process of its own, where `libcuda.so.1` is that of fake_driver: the path to a driver, end to end.

With the argument "stand-in" the few names of pycuda that graphc uses are made here; else pycuda itself is used.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import types
from typing import Any

import numpy as np


def stand_in() -> None:
    """A package pycuda with what graphc asks of it."""
    library = ctypes.CDLL("libcuda.so.1")

    class Context:
        def __init__(self, handle: ctypes.c_void_p) -> None:
            self.handle = handle

        def push(self) -> None:
            assert library.cuCtxPushCurrent_v2(self.handle) == 0

        @staticmethod
        def pop() -> None:
            assert library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0

        def detach(self) -> None:
            pass

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return "Fake GPU"

        def total_memory(self) -> int:
            return 1 << 30

        def get_attribute(self, what: int) -> int:
            found = ctypes.c_int()
            assert library.cuDeviceGetAttribute(ctypes.byref(found), what, self.index) == 0
            return found.value

        def retain_primary_context(self) -> Context:
            context = ctypes.c_void_p()
            assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self.index) == 0
            return Context(context)

    class Stream:
        def __init__(self) -> None:
            made = ctypes.c_void_p()
            assert library.cuStreamCreate(ctypes.byref(made), 0) == 0
            self.handle = made.value

    driver: Any = types.ModuleType("pycuda.driver")
    driver.init = lambda: None
    driver.Device, driver.Context, driver.Stream = Device, Context, Stream
    driver.device_attribute = types.SimpleNamespace(
        WARP_SIZE=10, MULTIPROCESSOR_COUNT=16, L2_CACHE_SIZE=38, COMPUTE_CAPABILITY_MAJOR=75, COMPUTE_CAPABILITY_MINOR=76,
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97, MAX_SHARED_MEMORY_PER_BLOCK=8,
    )  # fmt: skip
    package: Any = types.ModuleType("pycuda")
    package.driver = driver
    sys.modules.update({"pycuda": package, "pycuda.driver": driver})


def main() -> None:
    if "stand-in" in sys.argv:
        stand_in()
    import graphc as gc

    import tests.gpu.fake_driver.plugin  # noqa: F401

    assert gc.cuda.is_available() and gc.cuda.device_count() == 1, gc.cuda.why_unavailable()
    p = gc.cuda.get_device_properties()
    assert (p.major, p.minor, p.warp_size, p.shared_memory_per_block) == (9, 0, 32, 227 << 10)

    def chain(x: Any, w: Any) -> Any:
        for i in range(3):
            x = gc.nn.functional.softmax(x @ w + i, axis=-1)
        return x

    w, f = gc.rand(6, 6), gc.compile(chain)
    there = w.cuda()
    for _ in range(6):
        x = gc.rand(5, 6)
        assert f(x.cuda(), there).cpu().numpy().tobytes() == chain(x, w).numpy().tobytes()
    (family,) = f._families.values()
    assert family.recordings[0]._program._graphs

    x = gc.arange(24, device="cuda").reshape(4, 6)
    assert np.array_equal(x.T[1:, ::-2].cpu().numpy(), np.arange(24).reshape(4, 6).T[1:, ::-2])
    assert x.reshape(-1)[3:9].tolist() == [3, 4, 5, 6, 7, 8]
    for value, dtype in ((7, "int8"), (2.5, "float16"), (0.1, "float32"), (-1, "int64")):
        assert np.array_equal(gc.full((9,), value, dtype=dtype, device="cuda").cpu().numpy(), np.full(9, value, dtype))

    y = gc.take(gc.ones(3, device="cuda"), gc.tensor([5], device="cuda"))
    try:
        y.tolist()
        raise AssertionError("no error")
    except IndexError as error:
        assert "index 5 is out of range for axis 0 of size 3" in str(error) and "driver_program.py" in str(error)
    gc.cuda.synchronize()

    found: list[Any] = []

    def work() -> None:
        with gc.cuda.stream(gc.cuda.Stream()) as s:
            first, last = gc.cuda.Event(enable_timing=True), gc.cuda.Event(enable_timing=True)
            first.record()
            z = gc.ones(4, device="cuda") + 1
            last.record()
            last.synchronize()
            found.extend([z.tolist(), first.elapsed_time(last) >= 0, s is not None and s.query()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[2.0] * 4, True, True], found

    batch = gc.ones(1000).pin_memory()
    assert batch.is_pinned() and batch.to("cuda", non_blocking=True).sum().item() == 1000
    # Pinned memory has been read when a call ends that does not say `non_blocking`, whoever it is from.
    taken = gc.compile(lambda w, x: (w * x.cuda()).sum())
    for i in range(3):
        batch = gc.full((1000,), float(i)).pin_memory()
        y = taken(gc.ones(1000, device="cuda"), batch)
        ctypes.memset(batch.data_ptr(), 0x40, 4000)
        assert y.item() == 1000 * i
    batch = gc.ones(1000).pin_memory()
    there = gc.asarray(batch.numpy(), device="cuda")
    ctypes.memset(batch.data_ptr(), 0x40, 4000)
    assert there.sum().item() == 1000

    child = os.fork()
    if not child:
        status = 0
        for attempt in (lambda: gc.ones(2, device="cuda"), lambda: there + 1, there.tolist, gc.cuda.synchronize):
            try:
                attempt()
            except RuntimeError as error:
                status += 'forked from one that already uses it; start it by multiprocessing.get_context("spawn")' in str(error)
        os._exit(status + 10 * gc.cuda.is_available())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert (there + 1).sum().item() == 2000

    free, total = gc.cuda.mem_get_info()
    assert 0 < free < total
    try:
        gc.zeros(total, device="cuda")
        raise AssertionError("no error")
    except gc.OutOfMemoryError as error:
        assert "out of memory on cuda:0: " in str(error)
    gc.cuda.empty_cache()

    # A module that was imported before lets go of these when the globals of graphc are gone.
    kept, imported, other = gc.ones(5, device="cuda"), gc.from_dlpack(gc.ones(7, device="cuda")), gc.cuda.Stream()
    kept.record_stream(other)
    threading.kept = [kept, imported, imported + 1, gc.ones(9).pin_memory(), other.record_event(), other, f]  # type: ignore[attr-defined]
    print("all is well")


if __name__ == "__main__":
    main()
