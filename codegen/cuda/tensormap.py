"""The numbers of a tensor map: what cuTensorMapEncodeTiled is given for a `loops.TensorMap` at a launch, checked.

Source of the limits: the CUDA driver API, "Tensor Map Object Management".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphc.codegen.kernels import evaluate_size, size_text
from graphc.codegen.loops import TensorMap
from graphc.ir.types import BF16, F16, F32, DType

BYTES = 128  # of an encoded map, on the device and in simulation
ALIGNMENT = 64
# CUtensorMapDataType; float32 that is rounded on its way has a code of its own.
DATA_TYPES = {F16: 6, F32: 7, BF16: 9}
ROUNDED_DATA_TYPE = 11
INTERLEAVE_NONE, SWIZZLE_128B, PROMOTE_L2_256B, FILL_ZEROS = 0, 3, 3, 0
_SIMULATED = struct.Struct("<q4i5q4q5i3i")


@dataclass(frozen=True)
class Encoding:
    """sizes: elements of each dimension, the innermost first; strides: bytes, of all but the innermost; box: elements."""

    dtype: DType
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    rounded: bool

    @property
    def data_type(self) -> int:
        return ROUNDED_DATA_TYPE if self.rounded else DATA_TYPES[self.dtype]


def encoding(
    dtype: DType, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], rounded: bool = False
) -> Encoding:
    """The encoding of a view with strides in elements. Raises ValueError for what the hardware cannot describe.

    A view without elements is given one along each empty dimension; no kernel copies from it.

    >>> encoding(BF16, (40, 7), (40,), (64, 128)).strides
    (80,)
    """
    rank, size = len(sizes), dtype.itemsize
    inner = tuple(s * size for s in strides)
    found = Encoding(dtype, tuple(max(1, s) for s in sizes), tuple(s or 16 for s in inner), tuple(box), rounded)
    rules = (
        (dtype in DATA_TYPES, f"elements are float16, bfloat16 or float32, not {dtype.name}"),
        (not rounded or dtype is F32, f"only float32 is rounded to tf32 on its way, not {dtype.name}"),
        (2 <= rank <= 5, f"2 to 5 dimensions, not {rank}"),
        (len(strides) == rank - 1, f"{rank - 1} strides for {rank} dimensions, not {len(strides)}"),
        (len(box) == rank and all(1 <= b <= 256 for b in box), f"boxes of 1 to 256 along each dimension, not {tuple(box)}"),
        (box[0] * size == 128, f"boxes with rows of 128 bytes, not {box[0] * size}"),
        (all(s <= 1 << 32 for s in sizes), f"sizes up to 2^32, not {tuple(sizes)}"),
        (
            all(0 <= s < 1 << 40 and s % 16 == 0 for s in inner),
            f"strides that are multiples of 16 bytes below 2^40, not {inner} bytes",
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise ValueError(f"a tensor map has {rule}")
    return found


def encoding_of(m: TensorMap, extents: Mapping[str, int]) -> Encoding:
    """The encoding of a kernel's map for a launch with these extents."""
    sizes, strides = ([evaluate_size(size_text(e), extents) for e in part] for part in (m.sizes, m.strides))
    return encoding(m.buffer.dtype, sizes, strides, m.box, m.rounded)


def simulated(address: int, e: Encoding) -> bytes:
    """The TensorMap of codegen/c/simulate_hopper.h."""
    sizes, strides, box = (tuple(part) + (0,) * (n - len(part)) for part, n in ((e.sizes, 5), (e.strides, 4), (e.box, 5)))
    return _SIMULATED.pack(
        address, len(e.sizes), e.dtype.itemsize, int(e.rounded), 0, *sizes, *strides, *box, 0, 0, 0
    )
