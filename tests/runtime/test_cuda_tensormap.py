"""Tensor maps: what the driver's call is given, and what is refused before."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from graphc.codegen.cuda.tensormap import BYTES, encoding, simulated
from graphc.ir.types import BF16, F32, I32
from graphc.runtime.cuda.tensormap import encode

PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32), ctypes.c_int,
    ctypes.c_int, ctypes.c_int, ctypes.c_int,
)  # fmt: skip


class Library:
    """Stands for libcuda: writes a pattern, remembers what it was given."""

    def __init__(self, code: int = 0) -> None:
        self.given: tuple[Any, ...] = ()

        def call(place: int, dtype: int, rank: int, address: int, *rest: Any) -> int:
            sizes, strides, box, steps, *options = rest
            self.given = (
                dtype, rank, address, sizes[:rank], strides[: rank - 1], box[:rank], steps[:rank], tuple(options)
            )  # fmt: skip
            assert place % 64 == 0
            ctypes.memmove(place, bytes(range(BYTES)), BYTES)
            return code

        self.cuTensorMapEncodeTiled = PROTOTYPE(call)


def test_the_driver_is_given_bytes_and_the_innermost_dimension_first() -> None:
    library = Library()
    made = encode(1 << 20, encoding(BF16, (40, 7, 3), (48, 480), (64, 128, 1)), library)
    assert made == bytes(range(BYTES))
    # bfloat16; no interleave, 128-byte swizzle, 256 bytes at a time to L2, zeros outside.
    assert library.given == (9, 3, 1 << 20, [40, 7, 3], [96, 960], [64, 128, 1], [1, 1, 1], (0, 3, 3, 0))
    encode(1 << 20, encoding(F32, (40, 7), (40,), (32, 8), True), library)
    assert library.given[0] == 11  # rounded to tf32


def test_views_without_elements() -> None:
    library = Library()
    encode(0, encoding(BF16, (0, 7), (0,), (64, 64)), library)
    assert library.given[2] != 0 and library.given[3] == [1, 7] and library.given[4] == [16]


def test_a_refusal_of_the_driver_names_the_view() -> None:
    with pytest.raises(RuntimeError, match=r"bfloat16\[40, 7\] at 0x100000 .* \[80\] bytes .* \(error 801\)"):
        encode(1 << 20, encoding(BF16, (40, 7), (40,), (64, 64)), Library(801))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((I32, (40, 7), (40,), (32, 64)), "elements are float16, bfloat16 or float32, not int32"),
        ((BF16, (40, 7), (40,), (64, 64), True), "only float32 is rounded"),
        ((BF16, (40,), (), (64,)), "2 to 5 dimensions, not 1"),
        ((BF16, (40, 7), (41,), (64, 64)), "multiples of 16 bytes below 2\\^40, not \\(82,\\)"),
        ((BF16, (40, 7), (40,), (64, 257)), "boxes of 1 to 256"),
        ((BF16, (40, 7), (40,), (32, 64)), "rows of 128 bytes, not 64"),
    ],
)
def test_what_the_hardware_cannot_describe(arguments: tuple[Any, ...], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        encoding(*arguments)


def test_simulated_maps_hold_the_same_numbers() -> None:
    made = simulated(0x1234567890, encoding(F32, (40, 7), (40,), (32, 8), True))
    assert len(made) == BYTES
    assert int.from_bytes(made[:8], "little") == 0x1234567890
    assert [int.from_bytes(made[i : i + 4], "little") for i in (8, 12, 16)] == [2, 4, 1]
    assert [int.from_bytes(made[24 + 8 * i : 32 + 8 * i], "little") for i in (0, 1, 5)] == [40, 7, 160]
