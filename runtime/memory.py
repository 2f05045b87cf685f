"""Memory of tensors: 64-byte aligned buffers from free lists, one list for each size class.

Invariants: the memory of a `Buffer` belongs to nobody else until the buffer dies, and then returns to
its free list. Size classes are powers of two in four steps, so at most a fifth is unused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64

# A block is (address, the array that owns the memory, the free list it returns to, capacity).
Block = tuple[int, Any, list[Any], int]
_classes: dict[int, list[Block]] = {}
_created = [0, 0]  # blocks and bytes ever obtained and not yet given back to the system


class Buffer:
    """Memory of its own, aligned to 64 bytes, for as long as the object lives. Made by `Buffer()`, then `block` is set."""

    __slots__ = ("block",)
    block: Block
    foreign = False

    def __del__(self) -> None:
        block = self.block
        block[2].append(block)


class ForeignBuffer:
    """Memory that belongs to another library (a NumPy array, a DLPack tensor); never written to."""

    __slots__ = ("owner",)
    foreign = True

    def __init__(self, owner: Any) -> None:
        self.owner = owner


def capacity_of(nbytes: int) -> int:
    """The size class of a request: 64, 128, 192, 256, then 320, 384, 448, 512, 640, ..."""
    if nbytes <= 4 * ALIGNMENT:
        return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
    step = 1 << ((nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step


def free_list(nbytes: int) -> list[Block]:
    """The free list that serves requests of `nbytes`."""
    return _classes.setdefault(capacity_of(nbytes), [])


def obtain(nbytes: int) -> Block:
    """New memory from the system; gives cached memory back first if the system has none left."""
    capacity = capacity_of(nbytes)
    try:
        raw = np.empty(capacity + ALIGNMENT, np.uint8)
    except MemoryError:
        empty_cache()
        try:
            raw = np.empty(capacity + ALIGNMENT, np.uint8)
        except MemoryError:
            held = stats()
            raise MemoryError(
                f"out of memory: {show_size(nbytes)} asked for, {show_size(held.live_bytes)} held by tensors; "
                "free tensors you no longer need, or use a smaller batch"
            ) from None
    _created[0] += 1
    _created[1] += capacity
    address = raw.ctypes.data
    return (-(-address // ALIGNMENT) * ALIGNMENT, raw, free_list(nbytes), capacity)


def empty_cache() -> None:
    """Give all memory that no tensor holds back to the system."""
    for free in list(_classes.values()):
        while free:
            try:
                block = free.pop()
            except IndexError:
                break
            _created[0] -= 1
            _created[1] -= block[3]


class Stats(NamedTuple):
    """Numbers of blocks and bytes: held by tensors (live) and kept for reuse (cached)."""

    live_blocks: int
    live_bytes: int
    cached_blocks: int
    cached_bytes: int


def stats() -> Stats:
    """How much memory tensors hold, and how much is kept for reuse.

    >>> import graphc as gc
    >>> gc.memory.stats().live_bytes >= 0
    True
    """
    cached_blocks = cached_bytes = 0
    for capacity, free in list(_classes.items()):
        cached_blocks += len(free)
        cached_bytes += capacity * len(free)
    return Stats(_created[0] - cached_blocks, _created[1] - cached_bytes, cached_blocks, cached_bytes)


def show_size(nbytes: int) -> str:
    """A number of bytes as people read it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} bytes"
