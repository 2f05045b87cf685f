"""Tensor maps made by the driver library, which pycuda has no call for."""

from __future__ import annotations

import ctypes
from typing import Any

from graphc.codegen.cuda.tensormap import (
    ALIGNMENT,
    BYTES,
    FILL_ZEROS,
    INTERLEAVE_NONE,
    PROMOTE_L2_256B,
    SWIZZLE_128B,
    Encoding,
)


def encode(address: int, e: Encoding, library: Any) -> bytes:
    """The 128 opaque bytes of a map of device memory at `address`, by cuTensorMapEncodeTiled of the driver `library`.

    library: `ctypes.CDLL("libcuda.so.1")`. A kernel takes the bytes by value, at a multiple of 64. Raises RuntimeError.
    """
    rank = len(e.sizes)
    # The library wants the map itself at a multiple of 64.
    room = ctypes.create_string_buffer(BYTES + ALIGNMENT)
    place = -(-ctypes.addressof(room) // ALIGNMENT) * ALIGNMENT
    sizes, strides = (ctypes.c_uint64 * rank)(*e.sizes), (ctypes.c_uint64 * (rank - 1))(*e.strides)
    box, steps = (ctypes.c_uint32 * rank)(*e.box), (ctypes.c_uint32 * rank)(*(1 for _ in e.box))
    code = library.cuTensorMapEncodeTiled(
        ctypes.c_void_p(place),
        ctypes.c_int(e.data_type),
        ctypes.c_uint32(rank),
        # Nothing is read of a view without elements, which may have no address.
        ctypes.c_void_p(address or 1 << 12),
        sizes,
        strides,
        box,
        steps,
        ctypes.c_int(INTERLEAVE_NONE),
        ctypes.c_int(SWIZZLE_128B),
        ctypes.c_int(PROMOTE_L2_256B),
        ctypes.c_int(FILL_ZEROS),
    )
    if code != 0:
        raise RuntimeError(
            f"the CUDA driver makes no tensor map of {e.dtype.name}{list(e.sizes)} at {address:#x} with strides "
            f"{list(e.strides)} bytes and boxes {list(e.box)} (error {code}); drivers of CUDA 12.0 and later have this call"
        )
    return ctypes.string_at(place, BYTES)
