"""Memory of a CUDA device: blocks from free lists, one list for each size class and stream.

Invariants: a block belongs to the stream on which it was obtained, and is used again on that stream only, so that
work which still waits there is done with it first (`record_stream` is for others). Size classes are those of the CPU,
from 256 bytes on. Small blocks are cut from slabs; large ones are allocations of their own.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

from graphc.runtime.errors import OutOfMemoryError, describe, here, user_frame
from graphc.runtime.memory import Block, show_size

ALIGNMENT = 256
SLAB = 2 << 20
# Blocks up to this size are cut from slabs; where larger ones were made is remembered.
SMALL = 1 << 20


def capacity_of(nbytes: int) -> int:
    """The size class of a request: 256, 512, 768, 1024, then 1280, 1536, ..."""
    if nbytes <= 4 * ALIGNMENT:
        return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
    step = 1 << ((nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step


class Slab:
    """An allocation that small blocks are cut from. cut: bytes; blocks: how many."""

    __slots__ = ("address", "blocks", "cut", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size
        self.cut = self.blocks = 0


class Cached:
    """The free blocks of one size class and stream."""

    __slots__ = ("allocator", "blocks", "capacity", "stream")

    def __init__(self, allocator: Allocator, capacity: int, stream: Any) -> None:
        self.allocator = allocator
        self.capacity = capacity
        self.stream = stream
        self.blocks: list[Block] = []

    def append(self, block: Block, small: int = SMALL) -> None:
        """A buffer died: its block waits to be used again. (When Python ends, `SMALL` may be gone before the last buffer.)"""
        self.allocator.live -= block[3]
        if block[3] > small:
            self.allocator.large.pop(block[0], None)
        self.blocks.append(block)


class FreeList:
    """What `Spec.free` is for specs of one size: the blocks of the current stream."""

    __slots__ = ("allocator", "capacity", "lists")

    def __init__(self, allocator: Allocator, capacity: int) -> None:
        self.allocator = allocator
        self.capacity = capacity
        self.lists: dict[Any, Cached] = {}

    def pop(self) -> Block:
        """A block of the current stream. Raises `IndexError` where there is none."""
        allocator = self.allocator
        cached = self.lists.get(allocator.current())
        if cached is None:
            raise IndexError
        block = cached.blocks.pop()
        live = allocator.live = allocator.live + block[3]
        if live > allocator.peak_live:
            allocator.peak_live = live
        if block[3] > SMALL:
            allocator.large[block[0]] = (block[3], user_frame(2))
        return block

    def of(self, stream: Any) -> Cached:
        cached = self.lists.get(stream)
        if cached is None:
            cached = self.lists.setdefault(stream, Cached(self.allocator, self.capacity, stream))
        return cached


class Deferred:
    """Where a block goes that other streams use too: back to its list once they are done with it."""

    __slots__ = ("allocator", "home", "streams")

    def __init__(self, allocator: Allocator, home: Any) -> None:
        self.allocator = allocator
        self.home = home
        self.streams: list[Any] = []

    def append(self, block: Block, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():  # nobody will use it again, and the driver's functions may be gone
            return
        driver = self.allocator.driver
        events = []
        for stream in self.streams:
            events.append(driver.new_event())
            driver.record(events[-1], stream)
        self.allocator.waiting.append((events, (block[0], block[1], self.home, block[3])))


class Peaks(NamedTuple):
    """The most bytes that tensors held, and that were obtained from the driver."""

    allocated: int
    reserved: int


class Allocator:
    """The memory of one device.

    live, live_blocks: what tensors hold (`settle` counts them). made: bytes of all blocks. reserved: bytes from the driver.
    allocations: how often the driver was asked. large: address of a large block in use -> (bytes, where it was made).
    """

    def __init__(
        self, name: str, driver: Any, current: Callable[[], Any], release: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.driver = driver
        self.current = current
        # Gives back what the runtime itself keeps, before memory goes back to the driver.
        self.release = release
        self.live = self.live_blocks = self.reserved = self.allocations = self.retries = self.failures = 0
        self.made = self.made_blocks = 0
        self.peak_live = self.peak_reserved = 0
        self.limit: int | None = None
        self.waiting: deque[tuple[list[Any], Block]] = deque()
        self._classes: dict[int, FreeList] = {}
        self._slabs: list[Slab] = []
        self._cutting: dict[Any, Slab] = {}
        self.large: dict[int, tuple[int, tuple[CodeType, int]]] = {}
        # A buffer may die while this thread holds the lock.
        self._lock = threading.RLock()

    # what specs and buffers use

    def free_list(self, nbytes: int) -> FreeList:
        """The free list that serves requests of `nbytes`."""
        capacity = capacity_of(nbytes)
        known = self._classes.get(capacity)
        return known if known is not None else self._classes.setdefault(capacity, FreeList(self, capacity))

    def take(self, nbytes: int) -> Block:
        """A block for the runtime itself; `block[2].append(block)` gives it back."""
        try:
            return self.free_list(nbytes).pop()
        except IndexError:
            return self.obtain(nbytes)

    def obtain(self, nbytes: int) -> Block:
        """A new block on the current stream. Frees what is kept for reuse, once, if the device has no memory left.

        Raises `OutOfMemoryError`.
        """
        free = self.free_list(nbytes)
        home = free.of(self.current())
        if self.waiting:
            self.reap()
            with contextlib.suppress(IndexError):
                return free.pop()
        capacity = free.capacity
        with self._lock:
            block = self._cut(capacity, home) if capacity <= SMALL else self._allocate(capacity, nbytes, home)
            self.made += capacity
            self.made_blocks += 1
            self.settle()
            self.peak_live = max(self.peak_live, self.live)
        if capacity > SMALL:
            self.large[block[0]] = (capacity, user_frame(2))
        return block

    def settle(self) -> None:
        """Count what tensors hold. Between counts threads may miss each other's changes."""
        blocks = nbytes = 0
        for free in list(self._classes.values()):
            for cached in list(free.lists.values()):
                blocks += len(cached.blocks)
                nbytes += len(cached.blocks) * cached.capacity
        self.live, self.live_blocks = self.made - nbytes, self.made_blocks - blocks

    # the driver's memory

    def _cut(self, capacity: int, home: Cached) -> Block:
        stream = self.current()
        slab = self._cutting.get(stream)
        if slab is None or slab.cut + capacity > slab.size:
            slab = Slab(self._ask(SLAB, capacity), SLAB)
            self._slabs.append(slab)
            self._cutting[stream] = slab
        address = slab.address + slab.cut
        slab.cut += capacity
        slab.blocks += 1
        return (address, slab, home, capacity)  # type: ignore[return-value]

    def _allocate(self, capacity: int, nbytes: int, home: Cached) -> Block:
        return (self._ask(capacity, nbytes), None, home, capacity)  # type: ignore[return-value]

    def _ask(self, size: int, nbytes: int) -> int:
        def allocate() -> int:
            if self.limit is not None and self.reserved + size > self.limit:
                raise MemoryError
            return self.driver.allocate(size)  # type: ignore[no-any-return]

        address: int = self.with_room(allocate, lambda: f"{show_size(nbytes)} asked for")
        self.reserved += size
        self.allocations += 1
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return address

    def with_room(self, call: Callable[[], Any], request: Callable[[], str]) -> Any:
        """What `call` returns; called again with all caches empty where the driver has no memory. request: in words.

        Raises `OutOfMemoryError`.
        """
        try:
            return call()
        except MemoryError:
            self.retries += 1
        # Tensors in reference cycles hold memory that nobody can reach.
        gc.collect()
        self.empty_cache()
        try:
            return call()
        except MemoryError:
            self.failures += 1
        raise OutOfMemoryError(self._describe(request()))

    def reap(self) -> None:
        """Take back the blocks that other streams are done with."""
        for _ in range(len(self.waiting)):
            try:
                events, block = self.waiting.popleft()
            except IndexError:  # another thread was faster
                return
            if all(self.driver.event_done(e) for e in events):
                block[2].append(block)
            else:
                self.waiting.append((events, block))

    def empty_cache(self) -> None:
        """Give the memory that no tensor holds back to the driver."""
        self.release()
        self.driver.synchronize()
        self.reap()
        with self._lock:
            # Taken out first: what other threads take or bring from now on does not change what is idle.
            taken: list[tuple[Cached, Block]] = []
            for c in [c for f in list(self._classes.values()) for c in list(f.lists.values())]:
                with contextlib.suppress(IndexError):
                    while True:
                        taken.append((c, c.blocks.pop()))
            idle: dict[int, int] = {}
            for _, block in taken:
                idle[id(block[1])] = idle.get(id(block[1]), 0) + 1
            whole = {id(s) for s in self._slabs if idle.get(id(s), 0) == s.blocks}
            for c, block in reversed(taken):
                if block[1] is not None and id(block[1]) not in whole:
                    c.blocks.append(block)
                    continue
                if block[1] is None:
                    self._return(block[0], block[3])
                self.made -= block[3]
                self.made_blocks -= 1
            for slab in [s for s in self._slabs if id(s) in whole]:
                self._slabs.remove(slab)
                for stream in [k for k, v in self._cutting.items() if v is slab]:
                    del self._cutting[stream]
                self._return(slab.address, slab.size)

    def _return(self, address: int, size: int) -> None:
        self.driver.free(address)
        self.reserved -= size

    def record_stream(self, buffer: Any, stream: Any) -> None:
        """`stream` uses the memory of a buffer too."""
        block = getattr(buffer, "block", None)
        if block is None:
            return
        home = block[2]
        if not isinstance(home, Deferred):
            home = Deferred(self, home)
            buffer.block = (block[0], block[1], home, block[3])
        if stream not in home.streams:
            home.streams.append(stream)

    # statistics

    def reset_peaks(self) -> None:
        self.settle()
        self.peak_live, self.peak_reserved = self.live, self.reserved

    def cached(self) -> int:
        """Bytes that wait to be used again."""
        return sum(len(c.blocks) * c.capacity for f in list(self._classes.values()) for c in list(f.lists.values()))

    def _describe(self, request: str) -> str:
        free, total = self.driver.memory_info()
        self.settle()
        lines = [
            f"out of memory on {self.name}: {request} at {here()}",
            f"tensors hold {show_size(self.live)}, {show_size(free)} of {show_size(total)} are free"
            + (f", graphc may use {show_size(self.limit)}" if self.limit is not None else "")
            + "; caches were freed first",
        ]
        largest = self._largest()
        if largest:
            lines.append("the largest tensors are:")
            lines += [f"  {show_size(size)}  {what}" for size, what in largest]
        lines.append(
            "use a smaller batch, free tensors that you no longer need (del x, or no_grad where gradients are not wanted), "
            "or a narrower element type"
        )
        return "\n".join(lines)

    def _largest(self, most: int = 5) -> list[tuple[int, str]]:
        """The largest blocks in use, with the types of their tensors and where they were made."""
        from graphc.runtime.core import Tensor

        types: dict[int, str] = {}
        for x in gc.get_objects():
            # `isinstance` asks an object for its class, and a proxy of a dead one raises.
            if issubclass(type(x), Tensor):
                buffer = getattr(x, "_buffer", None)
                block = getattr(buffer, "block", None)
                if block is not None:
                    types.setdefault(block[0], str(x._spec.type))
        rows = sorted(self.large.items(), key=lambda row: -row[1][0])[:most]
        return [(size, f"{types.get(address, 'a value inside')} made at {describe(place)}") for address, (size, place) in rows]
