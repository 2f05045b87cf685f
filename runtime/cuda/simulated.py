"""A simulated CUDA device: its memory is memory of the host, and its streams are queues that run when somebody waits.

Invariants: nothing on a stream runs before somebody waits for it, so whoever reads memory without waiting reads
what was there before; fresh memory is not zero. The kernels are the CUDA C text itself, compiled as C++
(codegen/c/simulate.h), or the interpreter.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.runtime.cuda.driver import Node, Properties, encoding_of

ALIGNMENT = 256
# Waiting work is run when a queue gets this long, so that it does not grow for ever.
LONGEST = 4096
POISON = 0xA5


class SimulatedStream:
    """A queue of work."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: deque[Callable[[], None]] = deque()


class _Mark:
    """One recording of an event: where it is in its stream, and when it was passed."""

    __slots__ = ("stream", "time")

    def __init__(self, stream: SimulatedStream) -> None:
        self.stream = stream
        self.time: float | None = None

    def __call__(self) -> None:
        self.time = time.perf_counter()


class SimulatedEvent:
    """An event; `mark` is its last recording."""

    __slots__ = ("mark",)

    def __init__(self) -> None:
        self.mark: _Mark | None = None


class SimulatedDevice:
    """A device of compute capability 9.0 without a GPU. `total` bytes of memory."""

    kind = "simulation"

    def __init__(self, index: int, total: int = 8 << 30) -> None:
        self.total = total
        self.used = 0
        self.properties = Properties(f"simulated device {index}", 9, 0, total, 132, 227 << 10, 50 << 20)
        self._memory: dict[int, tuple[Any, int]] = {}
        self._streams: list[SimulatedStream] = []
        self._lock = threading.RLock()

    # memory

    def allocate(self, nbytes: int) -> int:
        with self._lock:
            if self.used + nbytes > self.total:
                raise MemoryError
            raw = np.full(nbytes + ALIGNMENT, POISON, np.uint8)
            address = -(-int(raw.ctypes.data) // ALIGNMENT) * ALIGNMENT
            self._memory[address] = (raw, nbytes)
            self.used += nbytes
            return address

    def free(self, address: int) -> None:
        # As cuMemFree does, this waits for all work.
        self.synchronize()
        with self._lock:
            self.used -= self._memory.pop(address)[1]

    def allocate_host(self, nbytes: int) -> int:
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        address = -(-int(raw.ctypes.data) // ALIGNMENT) * ALIGNMENT
        self._memory[address] = (raw, 0)
        return address

    def free_host(self, address: int) -> None:
        self.free(address)

    def memory_info(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    # streams and events

    def new_stream(self) -> SimulatedStream:
        stream = SimulatedStream()
        self._streams.append(stream)
        return stream

    def _add(self, stream: SimulatedStream, task: Callable[[], None]) -> None:
        stream.tasks.append(task)
        if len(stream.tasks) > LONGEST:
            self._drain(stream)

    def _drain(self, stream: SimulatedStream, until: _Mark | None = None) -> None:
        with self._lock:
            while stream.tasks and (until is None or until.time is None):
                stream.tasks.popleft()()

    def synchronize_stream(self, stream: SimulatedStream) -> None:
        self._drain(stream)

    def stream_done(self, stream: SimulatedStream) -> bool:
        return not stream.tasks

    def handle(self, stream: SimulatedStream) -> int:
        return id(stream)

    def synchronize(self) -> None:
        for stream in list(self._streams):
            self._drain(stream)

    def new_event(self, timing: bool = False) -> SimulatedEvent:
        return SimulatedEvent()

    def record(self, event: SimulatedEvent, stream: SimulatedStream) -> None:
        event.mark = _Mark(stream)
        self._add(stream, event.mark)

    def wait(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        mark = event.mark
        if mark is not None:
            self._add(stream, lambda: self._drain(mark.stream, mark))

    def event_done(self, event: SimulatedEvent) -> bool:
        return event.mark is None or event.mark.time is not None

    def synchronize_event(self, event: SimulatedEvent) -> None:
        if event.mark is not None:
            self._drain(event.mark.stream, event.mark)

    def elapsed(self, start: SimulatedEvent, end: SimulatedEvent) -> float:
        assert start.mark is not None and end.mark is not None
        assert start.mark.time is not None and end.mark.time is not None
        return (end.mark.time - start.mark.time) * 1e3

    # copies

    def copy_in(self, target: int, source: int, nbytes: int, stream: SimulatedStream, pinned: bool = False) -> None:
        if pinned:
            self._add(stream, lambda: _move(target, source, nbytes))
        else:
            data = ctypes.string_at(source, nbytes)
            self._add(stream, lambda: _move(target, data, nbytes))

    def copy_out(self, target: int, source: int, nbytes: int, stream: SimulatedStream) -> None:
        self._drain(stream)
        _move(target, source, nbytes)

    def copy(self, target: int, source: int, nbytes: int, stream: SimulatedStream) -> None:
        self._add(stream, lambda: _move(target, source, nbytes))

    def copy_peer(self, target: int, source: int, nbytes: int, stream: SimulatedStream, other: Any) -> None:
        self.copy(target, source, nbytes, stream)

    def fill(self, target: int, pattern: bytes, count: int, stream: SimulatedStream) -> None:
        self._add(stream, lambda: _move(target, pattern * count, len(pattern) * count))

    # programs

    def load(self, binary: bytes) -> Any:
        from graphc.runtime.cuda.simulation import SimulatedModule

        return SimulatedModule(binary)

    def function(self, module: Any, symbol: str, shared: int) -> Any:
        return module.function(symbol)

    def tensor_map(self, address: int, map: Any) -> bytes:
        from graphc.codegen.cuda import tensormap

        return tensormap.simulated(address, encoding_of(map))

    def launch(self, node: Node, stream: SimulatedStream) -> None:
        words = node.parameters.copy()
        self._add(stream, lambda: node.function(node.blocks, node.threads, node.shared, words))

    def new_graph(self, nodes: Sequence[Node]) -> Any:
        return [n._replace(parameters=n.parameters.copy()) for n in nodes]

    def update_graph(self, graph: Any, index: int, node: Node) -> None:
        graph[index] = node._replace(parameters=node.parameters.copy())

    def launch_graph(self, graph: Any, stream: SimulatedStream) -> None:
        for node in graph:
            self.launch(node, stream)

    def call(self, stream: SimulatedStream, task: Callable[[], None]) -> bool:
        self._add(stream, task)
        return True


def _move(target: int, source: int | bytes, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


class SimulatedDriver:
    """A driver with `devices` simulated devices."""

    simulated = True

    def __init__(self, devices: int = 1) -> None:
        self._devices = [SimulatedDevice(i) for i in range(devices)]

    def version(self) -> int:
        return 13000

    def count(self) -> int:
        return len(self._devices)

    def open(self, index: int) -> SimulatedDevice:
        return self._devices[index]
