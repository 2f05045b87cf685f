"""Run by test_driver.py in a process of its own, where `libcuda.so.1` is fake_driver.c: the path to a real driver, end to end.

With the argument "stand-in" the few names of pycuda that graphc uses are made here; else pycuda itself is used.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import types
from typing import Any

import numpy as np


def stand_in() -> None:
    """A package pycuda with what graphc asks of it."""
    library = ctypes.CDLL("libcuda.so.1")

    class Context:
        def push(self) -> None:
            assert library.cuCtxPushCurrent_v2(ctypes.c_void_p(0x100)) == 0

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
            return 256 << 20

        def get_attribute(self, what: int) -> int:
            found = ctypes.c_int()
            assert library.cuDeviceGetAttribute(ctypes.byref(found), what, self.index) == 0
            return found.value

        def retain_primary_context(self) -> Context:
            return Context()

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
    from graphc.runtime.cuda import build, simulation

    class Builder(simulation.SimulationBuilder):
        """Libraries of simulated kernels, with their length in front: what the fake driver loads."""

        def __init__(self) -> None:
            super().__init__()
            self.kind += " with length"

        def build(self, *arguments: Any) -> bytes:
            data = super().build(*arguments)
            return struct.pack("<q", len(data)) + data

    build._builders["cubin"] = Builder()
    import graphc as gc

    assert gc.cuda.is_available() and gc.cuda.device_count() == 1, gc.cuda.why_unavailable()
    p = gc.cuda.get_device_properties()
    assert (p.name, p.major, p.minor, p.multi_processor_count, p.shared_memory_per_block) == ("Fake GPU", 9, 0, 132, 227 << 10)

    def chain(x: Any, w: Any) -> Any:
        for i in range(3):
            x = gc.nn.functional.softmax(x @ w + i, axis=-1)
        return x

    library = ctypes.CDLL("libcuda.so.1")
    library.fake_graph_launches.restype = ctypes.c_size_t
    w, f = gc.rand(6, 6), gc.compile(chain)
    there = w.cuda()
    for _ in range(6):
        x = gc.rand(5, 6)
        assert f(x.cuda(), there).cpu().numpy().tobytes() == chain(x, w).numpy().tobytes()
    assert library.fake_graph_launches() >= 4

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
    free, total = gc.cuda.mem_get_info()
    assert 0 < free < total == 256 << 20
    try:
        gc.zeros(1 << 28, device="cuda")
        raise AssertionError("no error")
    except gc.OutOfMemoryError as error:
        assert "out of memory on cuda:0: 1.0 GiB asked for" in str(error)
    gc.cuda.empty_cache()
    print("all is well")


if __name__ == "__main__":
    main()
