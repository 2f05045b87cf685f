"""What the rest of the CUDA runtime asks of a driver, and how one is found.

Two things answer: pycuda on a machine with a GPU, and `simulated.py`, where device memory is memory of the host
(`GRAPHC_CUDA=simulate`, or `simulate:2` for two devices). Without either everything imports, and asking for
a device says what is missing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from graphc.runtime.errors import Unavailable

# The oldest driver that has what graphc calls (CUDA 12.0), and the oldest GPU that graphc compiles for.
DRIVER = 12000
CAPABILITY = (7, 0)


class Properties(NamedTuple):
    """What a device is. Sizes in bytes; `shared_memory_per_block` is the most that a kernel can ask for."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    shared_memory_per_block: int
    l2_cache_size: int
    warp_size: int = 32


class Node(NamedTuple):
    """One launch: a loaded function, its blocks, threads, dynamic shared bytes, and its `Parameters`."""

    function: Any
    blocks: int
    threads: int
    shared: int
    parameters: Any


class DriverDevice(Protocol):
    """One device. Addresses are integers; streams and events are what `new_stream` and `new_event` made.

    Copies and launches are queued on a stream. `copy_in` from memory that is not pinned has read it when it returns;
    `copy_out` waits until the bytes are there.
    """

    properties: Properties
    # What `load` takes: "cubin" or "simulation".
    kind: str

    def allocate(self, nbytes: int) -> int: ...  # raises MemoryError
    def free(self, address: int) -> None: ...
    def allocate_host(self, nbytes: int) -> int: ...
    def free_host(self, address: int) -> None: ...
    def memory_info(self) -> tuple[int, int]: ...  # free, total

    def new_stream(self) -> Any: ...
    def synchronize_stream(self, stream: Any) -> None: ...
    def stream_done(self, stream: Any) -> bool: ...
    def handle(self, stream: Any) -> int: ...
    def synchronize(self) -> None: ...

    def new_event(self, timing: bool = False) -> Any: ...
    def record(self, event: Any, stream: Any) -> None: ...
    def wait(self, stream: Any, event: Any) -> None: ...
    def event_done(self, event: Any) -> bool: ...
    def synchronize_event(self, event: Any) -> None: ...
    def elapsed(self, start: Any, end: Any) -> float: ...  # milliseconds

    def copy_in(self, target: int, source: int, nbytes: int, stream: Any, pinned: bool = False) -> None: ...
    def copy_out(self, target: int, source: int, nbytes: int, stream: Any) -> None: ...
    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None: ...
    def copy_peer(self, target: int, source: int, nbytes: int, stream: Any, other: Any) -> None: ...
    def fill(self, target: int, pattern: bytes, count: int, stream: Any) -> None: ...  # 1, 2 or 4 bytes, count times

    def load(self, binary: bytes) -> Any: ...
    def function(self, module: Any, symbol: str, shared: int) -> Any: ...
    def tensor_map(self, address: int, map: Any) -> bytes: ...
    def launch(self, node: Node, stream: Any) -> None: ...
    # A chain of launches as one; None where the driver has no graphs.
    def new_graph(self, nodes: Sequence[Node]) -> Any: ...
    def update_graph(self, graph: Any, index: int, node: Node) -> None: ...
    def launch_graph(self, graph: Any, stream: Any) -> None: ...
    # Run Python when the stream gets there; the simulated driver has it, others return False.
    def call(self, stream: Any, task: Callable[[], None]) -> bool: ...


def encoding_of(map: Any) -> Any:
    """The numbers of a `DeviceMap` of a program as a driver takes them."""
    from graphc.codegen.cuda.tensormap import encoding
    from graphc.ir.types import dtype

    return encoding(dtype(map.dtype), map.sizes, map.strides, map.box, map.rounded)


class Driver(Protocol):
    """The driver of a machine."""

    simulated: bool

    def version(self) -> int: ...
    def count(self) -> int: ...
    def open(self, index: int) -> DriverDevice: ...


# What GRAPHC_CUDA asked for -> the driver, or why there is none. A driver lives as long as Python.
_drivers: dict[str, Driver | str] = {}
_lock = threading.RLock()


def driver() -> Driver:
    """The driver. Raises `RuntimeError`, saying what is missing and how to get it, where there is none."""
    asked = os.environ.get("GRAPHC_CUDA", "")
    found = _drivers.get(asked)
    if found is None:
        with _lock:
            found = _drivers.get(asked)
            if found is None:
                try:
                    found = _find(asked)
                except Unavailable as error:
                    found = str(error)
                _drivers[asked] = found
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def _find(asked: str) -> Driver:
    kind, _, number = asked.partition(":")
    if kind == "simulate" and (not number or (number.isdecimal() and int(number))):
        from graphc.runtime.cuda.simulated import SimulatedDriver

        return SimulatedDriver(int(number or 1))
    if kind in ("0", "off"):
        raise Unavailable('the device "cuda" is not available: GRAPHC_CUDA turns it off; unset it, or use device "cpu"')
    if kind:
        raise Unavailable(
            f'the device "cuda" is not available: GRAPHC_CUDA={asked} is not known; it can be "simulate" (a simulated device), '
            '"simulate:2" (two of them), "off", or unset'
        )
    from graphc.runtime.cuda.pycuda_driver import PycudaDriver

    return PycudaDriver()


def unavailable(what: str, cure: str) -> Unavailable:
    """The error for a machine without a usable device."""
    return Unavailable(f'the device "cuda" is not available: {what}; {cure}, or use device "cpu"')
