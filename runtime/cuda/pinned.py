"""Memory of the host that a GPU reads by itself (pinned): for batches that are copied while Python goes on.

Invariant: a block is used again only when the copies from it that were queued are done.
"""

from __future__ import annotations

import threading
from typing import Any

from graphc.runtime import device as devices
from graphc.runtime.core import Tensor, _new, make, make_contiguous
from graphc.runtime.errors import here
from graphc.runtime.memory import Buffer, capacity_of, show_size


class _Pool:
    """Pinned blocks of one size class. `append` is called by a buffer that dies."""

    __slots__ = ("blocks", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: list[Any] = []

    def append(self, block: Any) -> None:
        self.blocks.append(block)

    def take(self) -> Any:
        """A block whose copies are done, or a new one. Raises `MemoryError`."""
        block = self.idle()
        if block is not None:
            return block
        driver = devices.device("cuda").context.driver
        try:
            address = driver.allocate_host(self.capacity)
        except MemoryError:
            for pool in list(_pools.values()):
                while (block := pool.idle()) is not None:
                    driver.free_host(block[0])
            try:
                address = driver.allocate_host(self.capacity)
            except MemoryError:
                raise MemoryError(
                    f"out of memory that can be pinned: {show_size(self.capacity)} asked for at {here()}; "
                    "free pinned tensors that you no longer need, or do without pin_memory"
                ) from None
        return (address, _PINNED, self, self.capacity)

    def idle(self) -> Any:
        """A block whose copies are done, or None."""
        for _ in range(len(self.blocks)):
            try:
                block = self.blocks.pop(0)
            except IndexError:
                break
            with _lock:
                copies = _in_use.get(block[0], [])
                if all(driver.event_done(event) for driver, event in copies):
                    _in_use.pop(block[0], None)
                    return block
            self.blocks.append(block)
        return None


_PINNED = object()
_pools: dict[int, _Pool] = {}
# address of a block -> (driver, event after it) of each copy from it that may not be done
_in_use: dict[int, list[tuple[Any, Any]]] = {}
_lock = threading.Lock()


class PinnedBuffer(Buffer):
    """Pinned memory. Programs do not write to it in place: a copy that waits in a stream may read it later."""

    __slots__ = ()
    foreign = True


def is_pinned_buffer(buffer: Any) -> bool:
    """Whether a buffer's memory is pinned."""
    block = getattr(buffer, "block", None)
    return block is not None and block[1] is _PINNED


def is_pinned(x: Tensor) -> bool:
    """Whether the memory of a tensor is pinned."""
    return is_pinned_buffer(x._buffer)


def in_use(buffer: Any, driver: Any, stream: Any) -> None:
    """A copy from a pinned buffer was queued on `stream`."""
    event = driver.new_event()
    driver.record(event, stream)
    with _lock:
        copies = [c for c in _in_use.get(buffer.block[0], []) if not c[0].event_done(c[1])]
        _in_use[buffer.block[0]] = [*copies, (driver, event)]


def pinned(x: Tensor) -> Tensor:
    """A copy of a CPU tensor in pinned memory; itself if it is there. Raises `TypeError` for a tensor on a GPU."""
    import ctypes

    spec = x._spec
    if spec.device is not devices.CPU:
        raise TypeError(f"pin_memory: a tensor {spec} is not in memory of the CPU; only that can be pinned")
    if is_pinned(x):
        return x
    if x._strides is not None:
        make_contiguous(x)
    capacity = capacity_of(spec.nbytes)
    pool = _pools.get(capacity) or _pools.setdefault(capacity, _Pool(capacity))
    block = pool.take()
    buffer = _new(PinnedBuffer)
    buffer.block = block
    ctypes.memmove(block[0], x._address, spec.nbytes)
    return make(spec, buffer, block[0])
