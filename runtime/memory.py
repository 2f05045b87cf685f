"""Memory of tensors on the CPU: aligned buffers from free lists, one list for each size class.

Invariants: the memory of a `Buffer` belongs to nobody else until the buffer dies, and then returns to its free list.
Size classes are powers of two in four steps, so at most a fifth is unused. Blocks up to `SMALL` bytes wait in plain
queues, which costs no Python call; larger ones are pages of the system, huge ones where it has them, are counted when
they come and go, and the longest unused go back to the system as soon as more than `get_cache_limit()` waits.

The functions that take a device stand for CPU and CUDA alike: what `graphc.cuda` calls the same is the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections import deque
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
from graphc.codegen import pages
from graphc.codegen.pages import OutOfMemoryError, release_idle
from graphc.codegen.pages import show_size as show_size
from graphc.runtime.errors import called, here

ALIGNMENT = 64
SMALL = 256 << 10
# Where blocks of several operands begin at equal places of their pages, their lines meet in the same sets of a cache, and
# loops over six or more took up to 16 % longer: large blocks begin at one of 16 places.
PLACES = 16
STAGGER = 5 * ALIGNMENT
# Of each class of small blocks, this much waits to be used again.
SMALL_KEPT = 64 << 20

# A block is (address, what owns the memory, the free list it returns to, capacity).
Block = tuple[int, Any, Any, int]


def _references_of_the_dead() -> int:
    """What `getrefcount` says in the finalizer of an object that nobody holds."""
    found: list[int] = []

    class Dying:
        def __del__(self, count: Any = getrefcount) -> None:
            found.append(count(self))

    Dying()
    return found[0]


class _Lent:
    """Gives a block back when nobody holds it any more, though finalizers of its buffer have been called."""

    __slots__ = ("block",)

    def __init__(self, block: Block) -> None:
        self.block = block

    def __del__(self) -> None:
        self.block[2].append(self.block)


class Buffer:
    """Memory of its own, aligned to 64 bytes, for as long as the object lives. Made by `Buffer()`, then `block` is set."""

    __slots__ = ("block",)
    block: Block
    foreign = False

    # Defaults stay when the interpreter takes modules apart.
    def __del__(self, count: Any = getrefcount, last: int = _references_of_the_dead(), lent: Any = _Lent) -> None:
        block = self.block
        if count(self) == last:
            block[2].append(block)
        else:
            # Python's collector: finalizers of the same cycle may still read this memory, or keep it.
            self.block = (block[0], lent(block), block[2], block[3])


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


class Pool:
    """The memory of the CPU.

    small, small_blocks: bytes and number of small blocks that exist; asked: how often they were made. live, live_blocks,
    idle: of large ones, those held and those that wait; made: how many were. limit: the most bytes that may wait; None
    until it is asked for.
    """

    def __init__(self) -> None:
        self.small = self.small_blocks = self.live = self.live_blocks = self.idle = self.asked = 0
        self.made = self.peak = self.peak_reserved = self.failures = 0
        self.limit: int | None = None
        self.queues: dict[int, deque[Block]] = {}
        self.kept: dict[int, Kept] = {}
        self.clock = 0
        self.next_look = 64 << 20
        # A buffer may die while this thread holds the lock.
        self.lock = threading.RLock()

    def bound(self) -> int:
        """The most bytes that may wait: a quarter of the memory, or what GRAPHC_KEEP_MEMORY_MIB says."""
        limit = self.limit
        if limit is None:
            text = os.environ.get("GRAPHC_KEEP_MEMORY_MIB", "").strip()
            limit = int(text) << 20 if text.isdecimal() else pages.physical() // 4
            self.limit = limit
            if text and not text.isdecimal():
                warnings.warn(
                    f"GRAPHC_KEEP_MEMORY_MIB={text!r} is not a number of MiB; {show_size(limit)} are kept", stacklevel=2
                )
        return limit

    def small_idle(self) -> tuple[int, int]:
        """Number and bytes of the small blocks that wait."""
        found = [(len(queue), capacity) for capacity, queue in list(self.queues.items())]
        return sum(n for n, _ in found), sum(n * capacity for n, capacity in found)

    def waiting(self) -> tuple[int, int]:
        """Number and bytes of all blocks that wait."""
        blocks, nbytes = self.small_idle()
        found = [(len(kept.blocks), kept.capacity) for kept in list(self.kept.values())]
        return blocks + sum(n for n, _ in found), nbytes + sum(n * capacity for n, capacity in found)

    def trim(self, limit: int) -> None:
        """Give back what waits until at most `limit` bytes do: large blocks, of the class that is longest unused first."""
        small = self.small_idle()[1]
        while self.idle and self.idle + small > limit:
            filled = [kept for kept in list(self.kept.values()) if kept.blocks]
            if not filled:
                break
            with contextlib.suppress(IndexError):
                min(filled, key=lambda kept: kept.used).drop()
        if small > limit:
            for queue in list(self.queues.values()):
                with contextlib.suppress(IndexError):
                    while True:
                        queue.pop()

    def note(self) -> None:
        """Memory was obtained: note the peaks."""
        self.peak = max(self.peak, self.live + self.small)
        self.peak_reserved = max(self.peak_reserved, self.live + self.idle + self.small)


class Kept:
    """The large blocks of one size class that wait. used: when the last of them came, by the pool's clock."""

    __slots__ = ("blocks", "capacity", "pool", "used")

    def __init__(self, pool: Pool, capacity: int) -> None:
        self.pool, self.capacity = pool, capacity
        self.blocks: list[Block] = []
        self.used = 0

    def pop(self) -> Block:
        """The block that came last, which caches may still hold. Raises `IndexError` where there is none."""
        block = self.blocks.pop()
        pool, capacity = self.pool, self.capacity
        with pool.lock:
            pool.idle -= capacity
            pool.live_blocks += 1
            live = pool.live = pool.live + capacity
            if live + pool.small > pool.peak:
                pool.peak = live + pool.small
        return block

    def append(self, block: Block) -> None:
        """A buffer died."""
        pool, capacity = self.pool, self.capacity
        limit = pool.limit
        with pool.lock:
            pool.live -= capacity
            pool.live_blocks -= 1
            if limit is not None and capacity > limit:
                return
            pool.idle += capacity
            pool.clock += 1
            self.used = pool.clock
            self.blocks.append(block)
        if limit is None or pool.idle > limit:
            pool.trim(pool.bound())

    def drop(self) -> None:
        """Give the oldest block back. Raises `IndexError` where there is none."""
        del self.blocks[0]
        with self.pool.lock:
            self.pool.idle -= self.capacity


_pool = Pool()


def free_list(nbytes: int) -> Any:
    """The free list that serves requests of `nbytes`: `pop` (raises `IndexError` where it is empty) and `append`."""
    capacity = capacity_of(nbytes)
    if capacity <= SMALL:
        queue = _pool.queues.get(capacity)
        if queue is None:
            queue = _pool.queues.setdefault(capacity, deque(maxlen=SMALL_KEPT // capacity))
        return queue
    return _pool.kept.get(capacity) or _pool.kept.setdefault(capacity, Kept(_pool, capacity))


def obtain(nbytes: int) -> Block:
    """New memory from the system, after all that waits was given back if the system has none left.

    Raises `graphc.OutOfMemoryError`.
    """
    capacity = capacity_of(nbytes)
    pool = _pool
    try:
        if capacity <= SMALL:
            return _obtain_small(pool, capacity)
        # Asked for now: a buffer may die when the interpreter has taken apart what finds out.
        pool.bound()
        step = STAGGER if capacity < pages.HUGE else STAGGER + 4096
        memory = pages.take(capacity + (PLACES - 1) * step)
    except MemoryError:
        pool.failures += 1
        raise OutOfMemoryError(_describe(nbytes)) from None
    with pool.lock:
        pool.live += capacity
        pool.live_blocks += 1
        pool.made += 1
        pool.note()
        address = memory.address + pool.made % PLACES * step
    return (address, memory, free_list(nbytes), capacity)


def _obtain_small(pool: Pool, capacity: int) -> Block:
    raw: Any = pages.with_room(lambda: np.empty(capacity + ALIGNMENT, np.uint8))
    with pool.lock:
        pool.small += capacity
        pool.small_blocks += 1
        pool.asked += 1
        pool.note()
    if pool.small > pool.next_look:
        # Small blocks are not counted when they wait, so that is looked at where their number grows.
        limit = pool.bound()
        if pool.small_idle()[1] + pool.idle > limit:
            pool.trim(limit)
        pool.next_look = pool.small + (64 << 20)
    address = -(-raw.ctypes.data // ALIGNMENT) * ALIGNMENT
    pages.when_freed(raw, _small_freed, pool, capacity)
    return (address, raw, free_list(capacity), capacity)


def _small_freed(pool: Pool, capacity: int) -> None:
    with pool.lock:
        pool.small -= capacity
        pool.small_blocks -= 1


def _release() -> None:
    _pool.trim(0)


pages.on_shortage(_release)


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    _pool.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# statistics and control


class Stats(NamedTuple):
    """Numbers of blocks and bytes: held by tensors (live) and kept for reuse (cached)."""

    live_blocks: int
    live_bytes: int
    cached_blocks: int
    cached_bytes: int


def stats() -> Stats:
    """How much memory tensors on the CPU hold, and how much is kept for reuse.

    >>> import graphc as gc
    >>> gc.memory.stats().live_bytes >= 0
    True
    """
    pool = _pool
    with pool.lock:
        blocks, nbytes = pool.waiting()
        small_blocks, small = pool.small_idle()
        return Stats(pool.live_blocks + pool.small_blocks - small_blocks, pool.live + pool.small - small, blocks, nbytes)


def _device(device: Any) -> Any:
    from graphc.runtime.device import CPU, resolve

    return CPU if device is None else resolve(device)


def empty_cache(device: Any = None) -> None:
    """Give the memory that no tensor holds, and the arenas of programs, back: of one device, or of all that are in use.

    An arena that another thread works in goes when its run ends.
    """
    if device is None or _device(device).type == "cpu":
        release_idle()
    contexts = sys.modules.get("graphc.runtime.cuda.context")
    if contexts is not None:
        for context in list(contexts._contexts.values()):
            if device is None or context.device is _device(device):
                context.allocator.empty_cache()


def get_cache_limit() -> int:
    """The most bytes of the CPU's memory that wait to be used again.

    A quarter of the memory that the process may use, unless `set_cache_limit` or GRAPHC_KEEP_MEMORY_MIB says otherwise.
    """
    return _pool.bound()


def set_cache_limit(nbytes: int | None) -> None:
    """Keep at most this many bytes of the CPU's memory for reuse; None is the default. Gives back what is more.

    Blocks up to 256 KiB are counted when more of them are made, and at most 64 MiB of one size wait.

    >>> import graphc as gc
    >>> gc.memory.set_cache_limit(1 << 30)
    >>> gc.memory.get_cache_limit()
    1073741824
    >>> gc.memory.set_cache_limit(None)
    """
    if nbytes is not None and (not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0):
        raise ValueError(f"set_cache_limit: a number of bytes, 0 or more, or None for the default, not {nbytes!r}")
    _pool.limit = nbytes
    _pool.trim(_pool.bound())


def memory_stats(device: Any = None) -> dict[str, int]:
    """Bytes and numbers of blocks of a device, the CPU by default: held, kept for reuse, obtained, with peaks.

    device_allocations: how often the system was asked; retries: how often again, after all that waits was given back.
    On the CPU also the arenas of programs, the bytes that the system agreed to put into huge pages, and the bound on
    what is kept. Peaks there count small blocks (up to 256 KiB) as held while they wait.
    """
    found = _device(device)
    if found.type != "cpu":
        from graphc.runtime import cuda

        return cuda.memory_stats(found)
    pool, held = _pool, stats()
    return {
        "allocated_bytes": held.live_bytes,
        "allocated_blocks": held.live_blocks,
        "allocated_bytes_peak": pool.peak,
        "cached_bytes": held.cached_bytes,
        "reserved_bytes": held.live_bytes + held.cached_bytes,
        "reserved_bytes_peak": pool.peak_reserved,
        "device_allocations": pool.asked + pages.counts.asked,
        "retries": pages.counts.retries,
        "out_of_memory": pool.failures,
        "arena_bytes": pages.counts.arenas,
        "huge_page_bytes": pages.counts.huge,
        "cache_limit_bytes": pool.bound(),
    }


def memory_allocated(device: Any = None) -> int:
    """Bytes that tensors on a device hold, the CPU by default."""
    return memory_stats(device)["allocated_bytes"]


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that tensors held since the start or `reset_peak_memory_stats`."""
    return memory_stats(device)["allocated_bytes_peak"]


def memory_reserved(device: Any = None) -> int:
    """Bytes that tensors hold or that are kept for reuse."""
    return memory_stats(device)["reserved_bytes"]


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the peaks start anew from what is held now."""
    found = _device(device)
    if found.type != "cpu":
        found.context.allocator.reset_peaks()
        return
    with _pool.lock:
        _pool.peak, _pool.peak_reserved = stats().live_bytes, memory_reserved()


def memory_summary(device: Any = None) -> str:
    """The statistics of a device's memory as text."""
    found = _device(device)
    if found.type != "cpu":
        from graphc.runtime import cuda

        return cuda.memory_summary(found)
    rows = [(name.replace("_", " "), show_size(n) if "bytes" in name else str(n)) for name, n in memory_stats().items()]
    rows += [("huge pages", pages.huge_pages()), ("total", show_size(pages.physical()))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["memory of cpu", *(f"  {name:<{width}}  {n}" for name, n in rows)])


# the end of memory


def _describe(nbytes: int) -> str:
    held, arenas = stats().live_bytes, memory_stats()["arena_bytes"]
    by, arena = _asking()
    lines = [
        f"out of memory: {show_size(nbytes)} asked for, {show_size(held)} held by tensors"
        + (f", {show_size(arenas)} by the arenas of programs" if arenas else "")
        + (f"; for {by} at {here()}" if by else f"; at {here()}")
    ]
    if arena:
        lines.append(f"the arena of the program (values between its kernels) takes {show_size(arena)}")
    lines.append(f"what waited to be used again was given back first; the machine has {show_size(pages.physical())}{_address_space()}")
    largest = _largest()
    if largest:
        lines.append("the largest tensors are:")
        lines += [f"  {show_size(size)}  {what}" for size, what in largest]
    lines.append(
        "use a smaller batch, free tensors that you no longer need (del x, or no_grad where gradients are not wanted), "
        "or a narrower element type"
    )
    return "\n".join(lines)


def _asking() -> tuple[str, int]:
    """What wants memory: an operation or a compiled function; and the size of that program's arena."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("graphc."):
        owner, entry = frame.f_locals.get("self"), frame.f_locals.get("entry")
        if isinstance(getattr(entry, "operands", None), tuple):
            return f"{entry.name}({', '.join(map(str, entry.operands))})", 0
        plan = getattr(getattr(owner, "_program", None), "plan", None)
        if plan is not None:
            return f"the results of the compiled {owner.function.name}", plan.arena
        frame = frame.f_back
    return called(), 0


def _address_space() -> str:
    """The limit that the process has on its address space, in words."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError, ValueError):
        return ""
    return "" if soft in (-1, resource.RLIM_INFINITY) else f", and this process may use {show_size(soft)} (ulimit -v)"


def _largest(most: int = 5) -> list[tuple[int, str]]:
    """The sizes and types of the largest tensors."""
    import gc

    from graphc.runtime.core import Tensor

    found: dict[int, tuple[int, str]] = {}
    for x in gc.get_objects():
        # `isinstance` asks an object for its class, and a proxy of a dead one raises.
        if issubclass(type(x), Tensor):
            block = getattr(getattr(x, "_buffer", None), "block", None)
            if block is not None and x._spec.device.type == "cpu":
                found.setdefault(block[0], (block[3], str(x._spec.type)))
    return sorted(found.values(), key=lambda row: -row[0])[:most]
