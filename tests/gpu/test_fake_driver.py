"""The real host path without a GPU: pycuda over a driver library that runs kernels on the CPU (tests/gpu/fake_driver).

The driver library's own rules are tested wherever g++ is; what needs pycuda is skipped, and counted, where it is not installed. The
suites of tests/gpu on it are slow: `pytest -m slow tests/gpu/test_fake_driver.py`.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from ctypes import byref, c_char, c_float, c_size_t, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.cuda import simulate, tensormap
from graphc.ir.types import BF16, F32
from graphc.runtime.cuda import library as lib
from graphc.runtime.cuda.library import DriverError, KernelNodeParameters, Library

from tests.codegen.device import cache_folder
from tests.gpu import fake_driver

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder() -> Path:
    if reason := fake_driver.missing(pycuda=False):
        pytest.skip(reason)
    return fake_driver.build(cache_folder())


@pytest.fixture
def driver(folder: Path) -> Iterator[Library]:
    """The library, opened by its path in this process, with a current context."""
    library = Library.__new__(Library)
    library.handle, library._functions = ctypes.CDLL(str(folder / "libcuda.so.1")), {}
    library.call("cuInit", 0)
    context = c_void_p()
    library.call("cuDevicePrimaryCtxRetain", byref(context), 0)
    library.call("cuCtxSetCurrent", context)
    yield library
    library.call("cuCtxSetCurrent", None)


def stream_of(driver: Library) -> c_void_p:
    stream = c_void_p()
    create = driver.handle.cuStreamCreate
    assert create(byref(stream), 1) == 0
    return stream


def allocated(driver: Library, nbytes: int) -> int:
    address = c_ulonglong()
    driver.call("cuMemAlloc_v2", byref(address), nbytes)
    return address.value


def pinned(driver: Library, nbytes: int) -> int:
    address = c_void_p()
    driver.call("cuMemHostAlloc", byref(address), nbytes, 0)
    assert address.value
    return address.value


def test_copies_wait_in_their_stream(driver: Library) -> None:
    """Pageable memory is read at the call, pinned memory when the copy runs; nothing runs before somebody waits."""
    stream, at = stream_of(driver), allocated(driver, 64)
    source, target = pinned(driver, 64), pinned(driver, 64)
    ctypes.memset(source, 1, 64)
    driver.call("cuMemcpyHtoDAsync_v2", at, source, 32, stream)
    plain = (c_char * 32)(*b"x" * 32)
    driver.call("cuMemcpyHtoDAsync_v2", at + 32, ctypes.addressof(plain), 32, stream)
    driver.call("cuMemcpyDtoHAsync_v2", target, at, 64, stream)
    ctypes.memset(source, 7, 32)
    ctypes.memset(ctypes.addressof(plain), 0, 32)
    assert ctypes.string_at(target, 64) == b"\xa5" * 64, "nobody has waited"
    assert driver.function("cuStreamQuery")(stream) == lib.NOT_READY
    driver.call("cuStreamSynchronize", stream)
    assert driver.function("cuStreamQuery")(stream) == lib.SUCCESS
    assert ctypes.string_at(target, 64) == b"\x07" * 32 + b"x" * 32
    driver.call("cuMemFree_v2", at)


def test_events_order_streams(driver: Library) -> None:
    first, second, at = stream_of(driver), stream_of(driver), allocated(driver, 4)
    event, timed = c_void_p(), c_void_p()
    driver.call("cuEventCreate", byref(event), lib.EVENT_NO_TIMING)
    driver.call("cuEventCreate", byref(timed), 0)
    driver.call("cuMemsetD8Async", at, 5, 4, first)
    driver.call("cuEventRecord", event, first)
    driver.call("cuEventRecord", timed, first)
    driver.call("cuStreamWaitEvent", second, event, 0)
    out = pinned(driver, 4)
    driver.call("cuMemcpyDtoHAsync_v2", out, at, 4, second)
    driver.call("cuStreamSynchronize", second)
    assert ctypes.string_at(out, 4) == b"\x05" * 4
    assert driver.function("cuEventQuery")(timed) == lib.NOT_READY, "only as far as the event"
    assert driver.function("cuEventQuery")(timed) == lib.SUCCESS, "who asks gets there"
    milliseconds = c_float()
    driver.call("cuEventElapsedTime", byref(milliseconds), timed, timed)
    assert milliseconds.value == 0
    with pytest.raises(DriverError, match="INVALID_HANDLE"):
        driver.call("cuEventElapsedTime", byref(milliseconds), event, timed)


def test_memory_is_checked(driver: Library) -> None:
    free, total = c_size_t(), c_size_t()
    driver.call("cuMemGetInfo_v2", byref(free), byref(total))
    with pytest.raises(MemoryError):
        allocated(driver, total.value + 1)
    at = allocated(driver, 1000)
    for name, arguments in (
        ("cuMemsetD8Async", (at, 0, 1025, None)),
        ("cuMemsetD32Async", (at + 2, 0, 1, None)),
        ("cuMemcpyDtoDAsync_v2", (at, at + 1000, 200, None)),
        ("cuMemFree_v2", (at + 256,)),
    ):
        with pytest.raises(DriverError, match="INVALID_VALUE"):
            driver.call(name, *arguments)
    driver.call("cuMemFree_v2", at)
    with pytest.raises(DriverError, match="INVALID_VALUE"):
        driver.call("cuMemsetD8Async", at, 0, 1, None)
    driver.call("cuCtxSetCurrent", None)
    with pytest.raises(DriverError, match="INVALID_CONTEXT"):
        allocated(driver, 1)


KERNEL = """
extern "C" __global__ void count(int *c, int step) { c[threadIdx.x] += step; }
extern "C" __global__ void fails(int *c, int step) { if (threadIdx.x == 0) __syncthreads(); }
"""


def loaded(driver: Library, name: str) -> c_void_p:
    module, function = c_void_p(), c_void_p()
    driver.call("cuModuleLoadData", byref(module), simulate.build(KERNEL, checked=False))
    driver.call("cuModuleGetFunction", byref(function), module, name.encode())
    with pytest.raises(DriverError, match="NOT_FOUND"):
        driver.call("cuModuleGetFunction", byref(c_void_p()), module, b"nothing")
    return function


def test_launches_and_graphs(driver: Library) -> None:
    """Arguments are read at the call; a graph keeps its own and takes others for one node."""
    stream, function, at = stream_of(driver), loaded(driver, "count"), allocated(driver, 128)
    driver.call("cuMemsetD8Async", at, 0, 128, stream)
    values = (c_ulonglong * 2)(at, 3)
    parameters = (c_void_p * 2)(ctypes.addressof(values), ctypes.addressof(values) + 8)
    launch = (function, 1, 1, 1, 32, 1, 1, 0, stream, ctypes.addressof(parameters), None)
    driver.call("cuLaunchKernel", *launch)
    values[1] = 100  # too late for the launch above
    out = pinned(driver, 128)

    def result() -> list[int]:
        driver.call("cuMemcpyDtoHAsync_v2", out, at, 128, stream)
        driver.call("cuStreamSynchronize", stream)
        return list(np.frombuffer(ctypes.string_at(out, 128), np.int32))

    assert result() == [3] * 32
    node = KernelNodeParameters(function, (1, 1, 1), (32, 1, 1), 0, ctypes.addressof(parameters), None, None, None)
    graph, executable, one, two = c_void_p(), c_void_p(), c_void_p(), c_void_p()
    driver.call("cuGraphCreate", byref(graph), 0)
    driver.call("cuGraphAddKernelNode_v2", byref(one), graph, None, 0, byref(node))
    driver.call("cuGraphAddKernelNode_v2", byref(two), graph, (c_void_p * 1)(one), 1, byref(node))
    driver.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
    driver.call("cuGraphLaunch", executable, stream)
    assert result() == [203] * 32
    values[1] = 1
    driver.call("cuGraphExecKernelNodeSetParams_v2", executable, two, byref(node))
    driver.call("cuGraphLaunch", executable, stream)
    assert result() == [304] * 32
    for bad in ((function, 0), (function, 1, 1, 1, 2048), (function, 1, 1, 1, 32, 1, 1, 64 << 10)):
        with pytest.raises(DriverError, match="INVALID_VALUE"):
            driver.call("cuLaunchKernel", *bad, *launch[len(bad) :])
    driver.call("cuFuncSetAttribute", function, lib.MAX_DYNAMIC_SHARED, 64 << 10)
    driver.call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 64 << 10, *launch[8:])
    assert result() == [305] * 32


def test_binaries(driver: Library) -> None:
    with pytest.raises(DriverError, match="INVALID_IMAGE") as caught:
        driver.call("cuModuleLoadData", byref(c_void_p()), b"not a binary" * 10)
    assert caught.value.status in lib.UNLOADABLE
    cubin = b"\x7fELF\x02\x01\x01" + bytes(11) + (190).to_bytes(2, "little") + bytes(100)
    with pytest.raises(DriverError, match="NO_BINARY_FOR_GPU"):
        driver.call("cuModuleLoadData", byref(c_void_p()), cubin)


def test_tensor_maps_are_what_simulation_reads(driver: Library) -> None:
    for dtype, rounded, sizes, strides, box in (
        (BF16, False, (40, 7), (40,), (64, 128)),
        (F32, True, (33, 5, 9), (36, 180), (32, 4, 2)),
        (F32, False, (4, 4, 4, 4, 4), (4, 16, 64, 256), (32, 1, 2, 3, 4)),
    ):
        e = tensormap.encoding(dtype, sizes, strides, box, rounded)
        rank = len(sizes)
        room = ctypes.create_string_buffer(256)
        at = -(-ctypes.addressof(room) // 64) * 64
        arguments = [e.data_type, rank, 4096, (c_ulonglong * rank)(*e.sizes), (c_ulonglong * rank)(*e.strides)]
        arguments += [(ctypes.c_uint * rank)(*e.box), (ctypes.c_uint * rank)(*[1] * rank)]
        arguments += [tensormap.INTERLEAVE_NONE, tensormap.SWIZZLE_128B, tensormap.PROMOTE_L2_256B, tensormap.FILL_ZEROS]
        driver.call("cuTensorMapEncodeTiled", at, *arguments)
        assert ctypes.string_at(at, 128) == tensormap.simulated(4096, e)
        with pytest.raises(DriverError, match="INVALID_VALUE"):
            driver.call("cuTensorMapEncodeTiled", at + 8, *arguments)


# ---- in a process of its own ----


def child(folder: Path, code: str, plugin: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
    head = "import tests.gpu.fake_driver.plugin\n" if plugin else ""
    return subprocess.run(
        [sys.executable, "-c", head + "import graphc as gc, numpy as np\n" + code],
        env=fake_driver.environment(folder, **settings), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_failed_kernel_fails_what_follows(folder: Path) -> None:
    """Sticky, as on a GPU; the simulation's message is on stderr. In a child, since nothing undoes it."""
    code = f"""
import ctypes, sys
from ctypes import byref, c_void_p, c_ulonglong
from graphc.runtime.cuda.library import Library, DriverError
from graphc.codegen.cuda import simulate
d = Library()
context, module, function, at = c_void_p(), c_void_p(), c_void_p(), c_ulonglong()
d.call("cuInit", 0)
d.call("cuDevicePrimaryCtxRetain", byref(context), 0)
d.call("cuCtxSetCurrent", context)
d.call("cuModuleLoadData", byref(module), simulate.build({KERNEL!r}, checked=False))
d.call("cuModuleGetFunction", byref(function), module, b"fails")
d.call("cuMemAlloc_v2", byref(at), 4096)
values = (c_ulonglong * 2)(at.value, 1)
parameters = (c_void_p * 2)(ctypes.addressof(values), ctypes.addressof(values) + 8)
for i in range(2):
    try:
        d.call("cuLaunchKernel", function, 1, 1, 1, 64, 1, 1, 0, None, ctypes.addressof(parameters), None)
        d.call("cuCtxSynchronize")
    except DriverError as error:
        print(i, error, flush=True)
ctypes.string_at(at.value, 1)
print("not reached: memory of the device cannot be touched from the host")
"""
    done = child(folder, code, plugin=False)
    assert done.returncode == -11, done.stderr[-2000:]
    assert [line.split(":")[:2] for line in done.stdout.splitlines()] == [
        ["0 cuLaunchKernel", " CUDA_ERROR_LAUNCH_FAILED"], ["1 cuLaunchKernel", " CUDA_ERROR_LAUNCH_FAILED"],
    ]  # fmt: skip
    assert "kernel fails, block 0, thread 0: waits in line 3 (__syncthreads), but thread 1 has left the kernel" in done.stderr


needs_pycuda = pytest.mark.skipif(bool(fake_driver.missing()), reason=f"no fake driver: {fake_driver.missing()}")


@needs_pycuda
@pytest.mark.parametrize(
    "settings, said",
    [
        ({"VERSION": "11080"}, "the NVIDIA driver is too old: it knows CUDA 11.8, and graphc needs "),
        ({"DEVICES": "0"}, "the NVIDIA driver finds no GPU"),
    ],
)
def test_drivers_that_do_not_do(folder: Path, settings: dict[str, str], said: str) -> None:
    done = child(folder, "print(gc.cuda.is_available())\ngc.ones(1, device='cuda')", **settings)
    assert done.stdout == "False\n" and said in done.stderr and 'use device "cpu"' in done.stderr


STEP = """
def net(device):
    gc.manual_seed(1)
    model = gc.nn.Sequential(gc.nn.Linear(9, 17), gc.nn.GELU(), gc.nn.Linear(17, 4)).to(device)
    optimizer = gc.optim.AdamW(model.parameters(), lr=0.1)
    x, y = gc.asarray(np.arange(27, dtype="f4").reshape(3, 9) / 9).to(device), gc.tensor([0, 3, 1]).to(device)
    @gc.compile
    def step(x, y):
        loss = gc.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return [float(step(x, y)) for _ in range(4)], [p.cpu().numpy().tobytes() for p in model.parameters()]
assert net("cpu") == net("cuda"), "training gives the bits of the CPU"
a, b = (gc.asarray(np.random.default_rng(i).integers(-4, 5, (128, 64)).astype("f4")) for i in range(2))
a, b = a.astype("bfloat16"), b.astype("bfloat16")
assert ((a.to("cuda") @ b.to("cuda").T).cpu() == a @ b.T).numpy().all(), "small integers are exact in any order"
print(gc.cuda.device_count(), "done")
"""


@needs_pycuda
def test_training(folder: Path) -> None:
    """pycuda, streams, pinned memory, graphs, the allocator, products on tensor cores: a training step has the bits of the CPU."""
    done = child(folder, STEP, DEVICES="2")
    assert done.returncode == 0 and done.stdout == "2 done\n", done.stdout + done.stderr[-3000:]


@needs_pycuda
def test_a_cubin_that_does_not_load(folder: Path) -> None:
    """What the CUDA compiler makes is not for this device: the message says so."""
    from graphc.codegen.cuda import compiler

    if compiler.available().startswith("none"):
        pytest.skip("there is no CUDA compiler")
    done = child(folder, "(gc.ones(3, device='cuda') + 1).cpu()", plugin=False)
    assert done.returncode == 1 and "cannot load what the compiler made (it is for another architecture" in done.stderr


@pytest.mark.slow
@needs_pycuda
@pytest.mark.parametrize("suite", ["prelude", "streams", "memory", "failures", "tensors", "programs", "compiled"])
def test_suites(folder: Path, suite: str) -> None:
    """The tests of devices, those for a GPU too, on pycuda."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "tests.gpu.fake_driver.plugin", f"tests/gpu/test_{suite}.py"]
    env: Any = fake_driver.environment(folder, DEVICES="2") | {"GRAPHC_TEST_SHARE": "1021"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
