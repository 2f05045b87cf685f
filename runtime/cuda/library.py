"""The CUDA driver library through ctypes: what pycuda has no call for, or only for the thread that made an object.

A tensor dies on any thread, and its memory, pycuda's too, may then be freed by that thread; graphs, raw kernel handles and
tensor maps are not in pycuda at all. Source of names, types and numbers: cuda.h of CUDA 13.0.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_uint,
    c_ulonglong,
    c_void_p,
)
from typing import Any

NAME = "libcuda.so.1"

SUCCESS, OUT_OF_MEMORY, NO_DEVICE, NOT_READY = 0, 2, 100, 600
# What loading a binary says that another architecture or a newer compiler made.
UNLOADABLE = {200: "it is damaged", 209: "it is for another architecture", 222: "its compiler is newer than the driver"}
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
HOST_PORTABLE, HOST_MAPPED = 1, 2
EVENT_NO_TIMING = 2
POINTER_MEMORY_TYPE, MEMORY_OF_HOST = 2, 1  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_MEMORYTYPE_HOST

_address = c_ulonglong


class KernelNodeParameters(Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("parameters", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    )


# name -> types of the arguments; every function returns a CUresult
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_address), c_size_t),
    "cuMemFree_v2": (_address,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuPointerGetAttribute": (c_void_p, c_int, _address),
    "cuMemcpyHtoDAsync_v2": (_address, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _address, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (_address, _address, c_size_t, c_void_p),
    "cuMemcpyPeerAsync": (_address, c_void_p, _address, c_void_p, c_size_t, c_void_p),
    "cuMemsetD8Async": (_address, ctypes.c_ubyte, c_size_t, c_void_p),
    "cuMemsetD16Async": (_address, ctypes.c_ushort, c_size_t, c_void_p),
    "cuMemsetD32Async": (_address, c_uint, c_size_t, c_void_p),
    "cuStreamQuery": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuGraphCreate": (POINTER(c_void_p), c_uint),
    "cuGraphAddKernelNode_v2": (POINTER(c_void_p), c_void_p, c_void_p, c_size_t, POINTER(KernelNodeParameters)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphExecKernelNodeSetParams_v2": (c_void_p, c_void_p, POINTER(KernelNodeParameters)),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuTensorMapEncodeTiled": (
        c_void_p, c_int, c_uint, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_int,
    ),
}  # fmt: skip


class DriverError(RuntimeError):
    """A call of the driver failed. status: its CUresult."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """The driver library, opened. Raises `OSError` where it is not there."""

    def __init__(self) -> None:
        self.handle = ctypes.CDLL(NAME)
        # Whether this process is a child of the one that started the driver.
        self.forked = False
        self._functions: dict[str, Any] = {}

    def function(self, name: str) -> Any:
        """A function of the library with its types; raises `AttributeError` where the driver is too old to have it."""
        known = self._functions.get(name)
        if known is None:
            known = getattr(self.handle, name)
            known.argtypes, known.restype = _FUNCTIONS[name], c_int
            self._functions[name] = known
        return known

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises `MemoryError` or `DriverError` unless it succeeds."""
        status = self.function(name)(*arguments)
        if status:
            self.fail(name, status)

    def fail(self, name: str, status: int) -> None:
        """Raise what a status says."""
        if status == OUT_OF_MEMORY:
            raise MemoryError(name)
        raise DriverError(f"{name}: {self.describe(status)}", status)

    def describe(self, status: int) -> str:
        """A CUresult in words."""
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            if not self.function(name)(status, byref(text)) and text.value:
                words.append(text.value.decode())
        return ": ".join(words) or f"error {status}"

    def version(self) -> int:
        """The newest CUDA that the driver knows: 1000 * major + 10 * minor."""
        found = c_int()
        self.call("cuDriverGetVersion", byref(found))
        return found.value


@functools.cache
def library() -> Library:
    """The driver library. Raises `OSError` where it is not there."""
    return Library()
