"""The parameters of a kernel as a launch takes them: the bytes of their values, and the address of each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

# Tensor maps must lie at multiples of this.
_ALIGNMENT = 64
_WORD = 8


class Parameters:
    """Values of `sizes` bytes each. words: the values as 8-byte integers; starts: the word at which each begins."""

    __slots__ = ("_raw", "address", "pointers", "sizes", "starts", "words")

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.starts: list[int] = []
        at = 0
        for size in sizes:
            align = _ALIGNMENT if size >= _ALIGNMENT else _WORD
            at = -(-at // align) * align
            self.starts.append(at // _WORD)
            at += -(-size // _WORD) * _WORD
        self._raw = ctypes.create_string_buffer(at + _ALIGNMENT)
        start = -ctypes.addressof(self._raw) % _ALIGNMENT
        self.words = (ctypes.c_int64 * (at // _WORD)).from_buffer(self._raw, start)
        base = ctypes.addressof(self.words)
        self.pointers = (ctypes.c_void_p * (len(self.sizes) + 1))(*(base + _WORD * s for s in self.starts), None)
        self.address = ctypes.addressof(self.pointers)

    def copy(self) -> Parameters:
        """Parameters of their own with the same values."""
        other = Parameters(self.sizes)
        ctypes.memmove(other.words, self.words, ctypes.sizeof(self.words))
        return other

    def put(self, number: int, data: bytes) -> None:
        """Give parameter `number` these bytes."""
        ctypes.memmove(self.pointers[number] or 0, data, len(data))
