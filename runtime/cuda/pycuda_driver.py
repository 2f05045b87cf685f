"""A machine's own driver: pycuda finds devices and makes contexts and streams, ctypes does the rest (library.py).

Invariant: a thread that calls the driver has the device's primary context as its current one; PyTorch and other users
of the primary context may work beside graphc.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from graphc.runtime.cuda import library as lib
from graphc.runtime.cuda.driver import DRIVER, Node, Properties, encoding_of, unavailable
from graphc.runtime.cuda.library import DriverError, KernelNodeParameters, Library
from graphc.runtime.errors import Unavailable

_STATIC_SHARED = 48 << 10
INSTALL = 'pip install "graphc[cuda]"'
# A driver does not work on in a child of the process that started it.
FORKED = (
    "this process was forked from one that already uses it",
    'start it by multiprocessing.get_context("spawn"), or do not use "cuda" before the fork',
)


class _Bound(threading.local):
    """Whose context is current in a thread."""

    device: Any = None


_bound = _Bound()


class _Event:
    """An event of the driver."""

    __slots__ = ("_destroy", "handle")

    def __init__(self, library: Library, timing: bool) -> None:
        self.handle = c_void_p()
        # Found now: when Python ends, it may be too late.
        self._destroy = library.function("cuEventDestroy_v2")
        library.call("cuEventCreate", byref(self.handle), 0 if timing else lib.EVENT_NO_TIMING)

    def __del__(self) -> None:
        if self.handle:
            self._destroy(self.handle)


class _Graph:
    """A chain of kernels: the executable graph and its nodes."""

    __slots__ = ("_destroy", "_destroy_executable", "executable", "graph", "nodes")

    def __init__(self, library: Library, graph: Any, nodes: list[Any], executable: Any) -> None:
        self.graph, self.nodes, self.executable = graph, nodes, executable
        self._destroy = library.function("cuGraphDestroy")
        self._destroy_executable = library.function("cuGraphExecDestroy")

    def __del__(self) -> None:
        self._destroy_executable(self.executable)
        self._destroy(self.graph)


class PycudaDevice:
    """One GPU."""

    kind = "cubin"

    def __init__(self, library: Library, pycuda: Any, index: int) -> None:
        self.library = library
        self._pycuda = pycuda
        device = pycuda.Device(index)
        attributes = pycuda.device_attribute
        self.properties = Properties(
            device.name(),
            device.get_attribute(attributes.COMPUTE_CAPABILITY_MAJOR),
            device.get_attribute(attributes.COMPUTE_CAPABILITY_MINOR),
            device.total_memory(),
            device.get_attribute(attributes.MULTIPROCESSOR_COUNT),
            _shared(device, attributes),
            device.get_attribute(attributes.L2_CACHE_SIZE),
            device.get_attribute(attributes.WARP_SIZE),
        )
        self._context = device.retain_primary_context()
        # Else pycuda detaches it in a way that is not for primary contexts, and complains.
        atexit.register(self._context.detach)
        self._raw_context = c_void_p()
        library.call("cuDevicePrimaryCtxRetain", byref(self._raw_context), index)
        self._launch = library.function("cuLaunchKernel")

    def bind(self) -> None:
        """Let this thread work on this device."""
        if _bound.device is not self:
            if self.library.forked:
                raise unavailable(*FORKED)
            self.library.call("cuCtxSetCurrent", self._raw_context)
            _bound.device = self

    def _call(self, name: str, *arguments: Any) -> None:
        self.bind()
        self.library.call(name, *arguments)

    # memory

    def allocate(self, nbytes: int) -> int:
        address = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(address), nbytes)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def allocate_host(self, nbytes: int) -> int:
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), nbytes, lib.HOST_PORTABLE | lib.HOST_MAPPED)
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def memory_info(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    # streams and events

    def new_stream(self) -> Any:
        # pycuda makes streams in the context on top of its own stack.
        self.bind()
        self._context.push()
        try:
            return self._pycuda.Stream()
        finally:
            self._pycuda.Context.pop()
            _bound.device = None
            self.bind()

    def synchronize_stream(self, stream: Any) -> None:
        self._call("cuStreamSynchronize", stream.handle)

    def stream_done(self, stream: Any) -> bool:
        return self._ready("cuStreamQuery", stream.handle)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def new_event(self, timing: bool = False) -> _Event:
        self.bind()
        return _Event(self.library, timing)

    def record(self, event: _Event, stream: Any) -> None:
        self._call("cuEventRecord", event.handle, stream.handle)

    def wait(self, stream: Any, event: _Event) -> None:
        self._call("cuStreamWaitEvent", stream.handle, event.handle, 0)

    def event_done(self, event: _Event) -> bool:
        return self._ready("cuEventQuery", event.handle)

    def synchronize_event(self, event: _Event) -> None:
        self._call("cuEventSynchronize", event.handle)

    def elapsed(self, start: _Event, end: _Event) -> float:
        milliseconds = c_float()
        self._call("cuEventElapsedTime", byref(milliseconds), start.handle, end.handle)
        return milliseconds.value

    def _ready(self, name: str, handle: Any) -> bool:
        self.bind()
        status = self.library.function(name)(handle)
        if status not in (lib.SUCCESS, lib.NOT_READY):
            self.library.fail(name, status)
        return bool(status == lib.SUCCESS)

    # copies

    def copy_in(self, target: int, source: int, nbytes: int, stream: Any, pinned: bool = False) -> None:
        self._call("cuMemcpyHtoDAsync_v2", target, source, nbytes, stream.handle)
        # Memory that the caller does not know to be pinned, by graphc or another library, is read later all the same.
        if not pinned and self._is_pinned(source):
            self._call("cuStreamSynchronize", stream.handle)

    def _is_pinned(self, address: int) -> bool:
        kind = c_uint()
        status = self.library.function("cuPointerGetAttribute")(byref(kind), lib.POINTER_MEMORY_TYPE, address)
        return bool(status == lib.SUCCESS and kind.value == lib.MEMORY_OF_HOST)

    def copy_out(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync_v2", target, source, nbytes, stream.handle)
        self._call("cuStreamSynchronize", stream.handle)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._call("cuMemcpyDtoDAsync_v2", target, source, nbytes, stream.handle)

    def copy_peer(self, target: int, source: int, nbytes: int, stream: Any, other: Any) -> None:
        self._call(
            "cuMemcpyPeerAsync", target, self._raw_context, source, other._raw_context, nbytes, stream.handle
        )

    def fill(self, target: int, pattern: bytes, count: int, stream: Any) -> None:
        value = int.from_bytes(pattern, "little")
        self._call(f"cuMemsetD{8 * len(pattern)}Async", target, value, count, stream.handle)

    # programs

    def load(self, binary: bytes) -> Any:
        self.bind()
        module = c_void_p()
        try:
            self.library.call("cuModuleLoadData", byref(module), binary)
        except DriverError as error:
            if error.status not in lib.UNLOADABLE:
                raise
            from graphc.codegen.cuda.compiler import available

            raise unavailable(
                f"its driver, for CUDA {_version(self.library.version())}, cannot load what the compiler made "
                f"({lib.UNLOADABLE[error.status]}; {available()})",
                "update the driver, or install a compiler of the driver's version",
            ) from error
        return module

    def function(self, module: Any, symbol: str, shared: int) -> Any:
        self.bind()
        function = c_void_p()
        self.library.call("cuModuleGetFunction", byref(function), module, symbol.encode())
        if shared > _STATIC_SHARED:
            self.library.call("cuFuncSetAttribute", function, lib.MAX_DYNAMIC_SHARED, shared)
        return function

    def tensor_map(self, address: int, map: Any) -> bytes:
        from graphc.codegen.cuda import tensormap

        e = encoding_of(map)
        rank = len(e.sizes)
        raw = ctypes.create_string_buffer(tensormap.BYTES + tensormap.ALIGNMENT)
        at = -(-ctypes.addressof(raw) // tensormap.ALIGNMENT) * tensormap.ALIGNMENT
        sizes, strides = (c_ulonglong * rank)(*e.sizes), (c_ulonglong * max(1, rank - 1))(*e.strides)
        box, steps = (ctypes.c_uint * rank)(*e.box), (ctypes.c_uint * rank)(*[1] * rank)
        # Nothing is read of a view without elements, which may have no address, as what others share through DLPack.
        self._call(
            "cuTensorMapEncodeTiled", at, e.data_type, rank, address or tensormap.ALIGNMENT, sizes, strides, box, steps,
            tensormap.INTERLEAVE_NONE, tensormap.SWIZZLE_128B, tensormap.PROMOTE_L2_256B, tensormap.FILL_ZEROS,
        )  # fmt: skip
        return ctypes.string_at(at, tensormap.BYTES)

    def launch(self, node: Node, stream: Any) -> None:
        if _bound.device is not self:
            self.bind()
        status = self._launch(
            node.function, node.blocks, 1, 1, node.threads, 1, 1, node.shared, stream.handle, node.parameters.address, None
        )
        if status:
            self.library.fail("cuLaunchKernel", status)

    def new_graph(self, nodes: Sequence[Node]) -> _Graph:
        self.bind()
        graph, executable = c_void_p(), c_void_p()
        self.library.call("cuGraphCreate", byref(graph), 0)
        made: list[c_void_p] = []
        for node in nodes:
            one = c_void_p()
            before = (c_void_p * 1)(made[-1]) if made else None
            self.library.call("cuGraphAddKernelNode_v2", byref(one), graph, before, len(made[-1:]), byref(_parameters(node)))
            made.append(one)
        self.library.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        return _Graph(self.library, graph, made, executable)

    def update_graph(self, graph: _Graph, index: int, node: Node) -> None:
        self._call("cuGraphExecKernelNodeSetParams_v2", graph.executable, graph.nodes[index], byref(_parameters(node)))

    def launch_graph(self, graph: _Graph, stream: Any) -> None:
        self._call("cuGraphLaunch", graph.executable, stream.handle)

    def call(self, stream: Any, task: Callable[[], None]) -> bool:
        return False


def _parameters(node: Node) -> KernelNodeParameters:
    return KernelNodeParameters(
        node.function, (node.blocks, 1, 1), (node.threads, 1, 1), node.shared, node.parameters.address, None, None, None
    )


def _shared(device: Any, attributes: Any) -> int:
    """The most shared memory that a block can ask for."""
    optin = getattr(attributes, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", None)
    found = device.get_attribute(optin if optin is not None else attributes.MAX_SHARED_MEMORY_PER_BLOCK)
    return int(found)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class PycudaDriver:
    """The driver of a machine with a GPU. Raises `Unavailable`, saying what to install."""

    simulated = False

    def __init__(self) -> None:
        try:
            self.library = lib.library()
        except OSError:
            raise unavailable(
                f"there is no NVIDIA driver on this machine ({lib.NAME} was not found)",
                "install the driver of your GPU, from nvidia.com/drivers or your system's packages",
            ) from None
        self._start()
        self.pycuda = _pycuda()
        self.pycuda.init()
        self._devices: dict[int, PycudaDevice] = {}
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.library.forked = True
        _bound.device = None

    def _start(self) -> None:
        version = self.library.version()
        if version < DRIVER:
            raise unavailable(
                f"the NVIDIA driver is too old: it knows CUDA {_version(version)}, and graphc needs {_version(DRIVER)} or later",
                "update the driver",
            )
        status = self.library.function("cuInit")(0)
        if status == lib.NO_DEVICE:
            raise unavailable(
                "the NVIDIA driver finds no GPU", "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        if status:
            raise unavailable(f"the NVIDIA driver does not start ({self.library.describe(status)})", "look at nvidia-smi")

    def version(self) -> int:
        return self.library.version()

    def count(self) -> int:
        if self.library.forked:
            raise unavailable(*FORKED)
        return int(self.pycuda.Device.count())

    def open(self, index: int) -> PycudaDevice:
        if index not in self._devices:
            self._devices[index] = PycudaDevice(self.library, self.pycuda, index)
        return self._devices[index]


def _pycuda() -> Any:
    try:
        pycuda: Any = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pycuda":
            raise Unavailable(str(error)) from error
        raise unavailable("the package pycuda is not installed", INSTALL) from None
    except ImportError as error:
        raise unavailable(f"the package pycuda does not load ({error})", f"install it anew: {INSTALL}") from None
    return pycuda
