"""Memory from the system: whole pages, huge ones where the system gives them.

Invariants: `Pages` belong to whoever holds the object, and go back to the system when nobody does. They begin at a
multiple of 2 MiB if they are that large, else at a page. Whoever keeps memory for later registers how to give it back
(`on_shortage`); `take` asks for that once where the system has none left.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

HUGE = 2 << 20
_PAGE = 4096


class OutOfMemoryError(MemoryError):
    """A device, or the machine, has no memory left for a tensor or a program."""


class _Counts:
    """What this process holds of the system. asked: how often it was asked; huge: bytes that it agreed to back by huge pages;
    arenas: bytes of the arenas of programs."""

    def __init__(self) -> None:
        self.blocks = self.nbytes = self.huge = self.arenas = self.asked = self.retries = 0
        # Memory may go back while this thread counts.
        self.lock = threading.RLock()

    def add(self, sign: int, nbytes: int, huge: int, arena: bool) -> None:
        with self.lock:
            self.blocks += sign
            self.nbytes += sign * nbytes
            self.huge += sign * huge
            self.arenas += sign * nbytes * arena


counts = _Counts()


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    counts.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_shortage: list[Callable[[], None]] = []


def on_shortage(release: Callable[[], None]) -> None:
    """Call `release` where memory runs out; it gives back what is kept for later."""
    _shortage.append(release)


def release_idle() -> None:
    """Give back what is kept for later, everywhere."""
    for release in list(_shortage):
        release()


class Pages:
    """`size` zero bytes at `address`, as long as the object lives. huge: how many of them lie in huge pages."""

    __slots__ = ("address", "arena", "huge", "memory", "size")

    def __init__(self, memory: Any, address: int, size: int, huge: int, arena: bool) -> None:
        self.memory, self.address, self.size, self.huge, self.arena = memory, address, size, huge, arena
        counts.asked += 1
        counts.add(1, size, huge, arena)
        when_freed(memory, counts.add, -1, size, huge, arena)


def when_freed(array: Any, call: Callable[..., None], *operands: Any) -> None:
    """Call `call(*operands)` when a NumPy array that owns its memory has died.

    An array is no container to Python's collector, which calls finalizers of garbage that others of them then bring back
    to life: what counts memory must not be called before the memory is gone.
    """
    weakref.finalize(array, call, *operands).atexit = False


def take(nbytes: int, arena: bool = False) -> Pages:
    """At least `nbytes` of memory. Raises `MemoryError` where there is none even when all that was idle is given back.

    arena: it is counted as that of a program.
    """
    pages: Pages = with_room(lambda: _take(nbytes, arena))
    return pages


def with_room(allocate: Callable[[], Any]) -> Any:
    """What `allocate` returns; called again, after what is idle was given back, where it raises `MemoryError`."""
    try:
        return allocate()
    except MemoryError:
        counts.retries += 1
    # Tensors in reference cycles hold memory that nobody can reach.
    gc.collect()
    release_idle()
    return allocate()


def _take(nbytes: int, arena: bool) -> Pages:
    size = max(1, -(-nbytes // _PAGE)) * _PAGE
    memory, address = _map(size)
    if size < HUGE:
        return Pages(memory, address, size, 0, arena)
    if address % HUGE:
        # Recent kernels align large mappings by themselves.
        memory = None
        memory, address = _map(size + HUGE)
        address = -(-address // HUGE) * HUGE
    return Pages(memory, address, size, _advise(address, size), arena)


def _map(size: int) -> tuple[Any, int]:
    import mmap

    try:
        if hasattr(mmap, "MAP_ANONYMOUS"):
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            memory = mmap.mmap(-1, size)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(str(error)) from None
    array = np.frombuffer(memory, np.uint8)
    return array, array.ctypes.data


_MADV_HUGEPAGE = 14
_libc: Any = None


def _advise(address: int, size: int) -> int:
    """Ask for huge pages. How many bytes the system agreed to put into such."""
    global _libc
    if _libc is False or sys.platform != "linux" or os.environ.get("GRAPHC_HUGE_PAGES") == "0":
        return 0
    try:
        if _libc is None:
            _libc = ctypes.CDLL(None).madvise
            _libc.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        whole = size // HUGE * HUGE
        return whole if _libc(address, whole, _MADV_HUGEPAGE) == 0 else 0
    except (OSError, AttributeError):
        _libc = False
        return 0


def physical() -> int:
    """Bytes of memory that this process may use: those of the machine, or of its control group."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        total = 8 << 30
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(file) as f:
                text = f.read().strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def huge_pages() -> str:
    """What the system says of huge pages for memory that asks for them, in words."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
            chosen = f.read().partition("[")[2].partition("]")[0]
    except OSError:
        return "none: the system does not have them"
    if os.environ.get("GRAPHC_HUGE_PAGES") == "0":
        return "turned off by GRAPHC_HUGE_PAGES=0"
    return {"always": "everywhere", "madvise": "where memory is asked for them"}.get(chosen, f"turned off ({chosen})")


def show_size(nbytes: int) -> str:
    """A number of bytes as people read it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} bytes"
