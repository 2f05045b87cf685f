"""DLPack for tensors on CUDA devices: memory shared with PyTorch, CuPy and others, without a copy.

Source of the layout: dlpack.h 1.0. Invariant: what is exported keeps its memory until the consumer's deleter ran; what is
imported calls its deleter when the last tensor over it dies.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from graphc.ir.types import DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime.core import Tensor, is_contiguous, make
from graphc.runtime.device import device
from graphc.runtime.memory import ForeignBuffer
from graphc.runtime.spec import spec_of

CUDA = 2
_VERSION = (1, 0)
_READ_ONLY = 1
# kind of element type -> DLDataTypeCode
_CODES = {"i": 0, "u": 1, "f": 2, "bfloat16": 4, "b": 6}
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class _Tensor(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


_Deleter = CFUNCTYPE(None, c_void_p)


class _Managed(Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter))


class _Versioned(Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", _Deleter),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


_new = ctypes.pythonapi.PyCapsule_New
_new.argtypes, _new.restype = [c_void_p, c_char_p, c_void_p], ctypes.py_object
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [ctypes.py_object, c_char_p], c_void_p
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = [ctypes.py_object, c_char_p], ctypes.c_int
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes, _rename.restype = [ctypes.py_object, c_char_p], ctypes.c_int
# Names must outlive their capsules.
_PLAIN, _WITH_VERSION = b"dltensor", b"dltensor_versioned"
_USED, _USED_WITH_VERSION = b"used_dltensor", b"used_dltensor_versioned"

# address of an exported struct -> its capsule, and what it needs to live
_exported: dict[int, Any] = {}


def _released(address: Any, exported: dict[int, Any] = _exported) -> None:
    exported.pop(address, None)


_release = _Deleter(_released)


def forget_unused() -> None:
    """Let go of what nobody consumed. A destructor of the capsule could not do that: it may run while an error is raised."""
    for address, entry in list(_exported.items()):
        capsule = entry[0]
        # The entry, the local name and the argument of getrefcount hold it.
        alone = sys.getrefcount(capsule) == 3
        if alone and (_is_valid(capsule, _PLAIN) or _is_valid(capsule, _WITH_VERSION)):
            _exported.pop(address, None)


def export(x: Tensor, max_version: Any = None) -> Any:
    """The capsule of a tensor on a CUDA device, whose value is computed. Nobody may write to the memory."""
    spec = x._spec
    itemsize = spec.dtype.itemsize
    rank = len(spec.shape)
    shape = (c_int64 * max(1, rank))(*map(int, spec.shape))  # type: ignore[arg-type]
    strides = None if x._strides is None else (c_int64 * max(1, rank))(*(s // itemsize for s in x._strides))
    versioned = max_version is not None and tuple(max_version) >= _VERSION
    made: Any = _Versioned() if versioned else _Managed()
    t = made.tensor
    t.data, t.device_type, t.device_id, t.ndim = x._address, CUDA, spec.device.index or 0, rank
    t.code = _CODES["bfloat16" if spec.dtype.name == "bfloat16" else spec.dtype.kind]
    t.bits, t.lanes = 8 * itemsize, 1
    t.shape = ctypes.cast(shape, POINTER(c_int64))
    if strides is not None:
        t.strides = ctypes.cast(strides, POINTER(c_int64))
    made.deleter = _release
    if versioned:
        made.major, made.minor, made.flags = *_VERSION, _READ_ONLY
    address = ctypes.addressof(made)
    forget_unused()
    capsule = _new(address, _WITH_VERSION if versioned else _PLAIN, None)
    _exported[address] = (capsule, made, shape, strides, x._buffer)
    return capsule


class _Owner:
    """Calls the deleter of an imported struct when it dies and no work of the device reads the memory any more."""

    __slots__ = ("context", "end")

    def __init__(self, managed: Any, context: Any) -> None:
        self.context = context
        self.end = _End(managed)

    # When Python ends, the names of this module may be gone.
    def __del__(self, finalizing: Any = sys.is_finalizing) -> None:
        if finalizing():
            self.end.append(None)
        else:
            # As a block of no bytes, whose list calls the deleter.
            self.context.retire([(0, None, self.end, 0)])


class _End:
    """Where memory goes that is not wanted any more: back to the library that it is from."""

    __slots__ = ("address", "managed")

    def __init__(self, managed: Any) -> None:
        self.managed = managed
        self.address = ctypes.addressof(managed)

    def append(self, block: Any) -> None:
        if self.managed.deleter:
            self.managed.deleter(self.address)


def import_from(obj: Any) -> Tensor:
    """A tensor over the memory of an object on a CUDA device. Raises `BufferError` for element types graphc lacks."""
    place = device(f"cuda:{obj.__dlpack_device__()[1]}")
    context = place.context
    context.driver.synchronize()
    context.allocator.reap()
    try:
        capsule = obj.__dlpack__(stream=context.driver.handle(context.stream()), max_version=_VERSION)
    except TypeError:
        capsule = obj.__dlpack__(stream=context.driver.handle(context.stream()))
    versioned = bool(_is_valid(capsule, _WITH_VERSION))
    name, used = (_WITH_VERSION, _USED_WITH_VERSION) if versioned else (_PLAIN, _USED)
    managed: Any = (_Versioned if versioned else _Managed).from_address(_pointer(capsule, name))
    _rename(capsule, used)
    owner = _Owner(managed, context)
    t = managed.tensor
    dtype = _dtype(t.code, t.bits, t.lanes)
    shape = tuple(t.shape[i] for i in range(t.ndim))
    spec = spec_of(dtype, shape, False, place)
    strides = tuple(t.strides[i] * dtype.itemsize for i in range(t.ndim)) if t.strides else None
    kept = None if strides is None or is_contiguous(spec, strides) else strides
    return make(spec, ForeignBuffer(owner), (t.data or 0) + t.byte_offset, kept)


def _dtype(code: int, bits: int, lanes: int) -> DType:
    kind = _KINDS.get(code)
    name = "bool" if kind == "bool" and bits == 8 else f"{kind}{bits}"
    try:
        if kind is None or lanes != 1:
            raise TypeError
        return as_dtype(name)
    except (TypeError, ValueError):
        raise BufferError(f"from_dlpack: graphc has no element type for {name} with {lanes} lanes; cast it first") from None
