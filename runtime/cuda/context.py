"""`Context`: what the runtime keeps for one CUDA device: its memory, streams, error words and loaded programs.

Invariants: one context for each device of the driver. Work is queued on the current stream of the calling thread. Kernels
report an index out of range in the error words; whoever waits for the device looks at them, raises, and clears
them, so that the device goes on working.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.codegen import cache
from graphc.codegen.cuda.target import Target
from graphc.codegen.kernels import Site
from graphc.ir.types import DType
from graphc.runtime.cuda import driver as drivers
from graphc.runtime.cuda.allocator import Allocator
from graphc.runtime.cuda.streams import Stream, current
from graphc.runtime.device import Device
from graphc.runtime.errors import DeviceIndexError, Unavailable, describe
from graphc.runtime.spec import Spec

# How many launches back an error still finds its line, and the largest number of a launch.
REMEMBERED, NUMBERS = 4096, 1 << 31
# Values of the host that were sent to the device once, until there are this many.
SENT = 4096
# Streams besides the default one: memory is kept for each, so there is an end to them.
STREAMS = 32


class Launched:
    """A call whose kernels may report: what to say of each launch. where: the user's place, where that was noted."""

    __slots__ = ("first", "name", "sites", "types", "where")

    def __init__(self, first: int, sites: Sequence[Sequence[Site]], name: str, types: Sequence[Spec], where: Any) -> None:
        self.first, self.sites, self.name, self.types, self.where = first, sites, name, types, where

    def message(self, launch: int, site: int, value: int) -> str:
        text = self.sites[launch - self.first][site - 1].message(value)
        if self.where is None:
            return text
        return f"{self.name}({', '.join(map(str, self.types))}): {text}\n  at {describe(self.where)}"


class Context:
    """See the head of this file."""

    def __init__(self, index: int, driver: drivers.DriverDevice) -> None:
        self.index = index
        self.driver = driver
        self.properties = driver.properties
        p = driver.properties
        self.target = Target(10 * p.major + p.minor, p.multi_processor_count, p.shared_memory_per_block, p.l2_cache_size)
        self.default_stream = Stream(raw=driver.new_stream(), context=self)
        self.allocator = Allocator(f"cuda:{index}", driver, self.stream, self.release_arenas)
        self.device = Device("cuda", index, self.allocator, self)
        # {site, value, launch, unused}, in memory that the device and the host see.
        self.error_address = driver.allocate_host(32)
        self._error = (ctypes.c_int64 * 4).from_address(self.error_address)
        self._error[:] = [0] * 4
        # Errors that tasks of the simulated device met.
        self.failures: list[Exception] = []
        self._numbers = itertools.count(1)
        self._launched: dict[int, Launched] = {}
        self._kept: list[Launched] = []
        self._sent: dict[Any, int] = {}
        # The blocks of those, and of the generation before: a thread may have found a value and not launched yet.
        self._sent_blocks: list[Any] = []
        self._sent_before: list[Any] = []
        # Garbage that is collected meanwhile may launch something.
        self._lock = threading.RLock()
        # Held while a program is launched: threads that share a stream share its arena.
        self.launching = threading.RLock()
        # Whether a launch has an arena's address in hand; changed by who holds `launching` only.
        self.arena_in_hand = False
        self._pool: list[Any] = []
        self._pooled = 0
        self._modules: dict[str, Any] = {}
        # As with CUDA's own tools: wait after each program, so that an error is raised where it happens.
        self.blocking = os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"
        self._arenas: dict[Any, Any] = {}
        # (dimensions, bytes of an element) -> the kernel that packs views, and its parameters.
        self.packs: dict[tuple[int, int], Any] = {}

    def stream(self) -> Any:
        """The driver's stream on which this thread works."""
        known = current.streams.get(self.index)
        return self.default_stream.raw if known is None else known.raw

    def another_stream(self) -> Any:
        """A driver's stream apart from the default one; there are `STREAMS`, given out in turn."""
        with self._lock:
            self._pooled += 1
            if len(self._pool) < STREAMS:
                self._pool.append(self.driver.new_stream())
                return self._pool[-1]
            return self._pool[self._pooled % STREAMS]

    # moving bytes

    def write(self, address: int, data: Any) -> None:
        """Bytes or an array of the host to the device."""
        array = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray)) else data
        if array.nbytes:
            self.driver.copy_in(address, array.ctypes.data, array.nbytes, self.stream())

    def write_from(self, address: int, source: int, nbytes: int, buffer: Any, non_blocking: bool = False) -> None:
        """Memory of the host, which `buffer` keeps, to the device. Waits for pinned memory unless `non_blocking`."""
        from graphc.runtime.cuda.pinned import in_use, is_pinned_buffer

        if not nbytes:
            return
        stream = self.stream()
        pinned = is_pinned_buffer(buffer)
        self.driver.copy_in(address, source, nbytes, stream, pinned)
        if pinned and non_blocking:
            in_use(buffer, self.driver, stream)
        elif pinned:
            self.driver.synchronize_stream(stream)

    def read(self, address: int, nbytes: int) -> np.ndarray[Any, Any]:
        """Bytes of the device, once the work that makes them is done. Raises what kernels reported."""
        out = np.empty(nbytes, np.uint8)
        self.read_into(int(out.ctypes.data), address, nbytes)
        return out

    def read_into(self, target: int, address: int, nbytes: int) -> None:
        """As `read`, into memory of the host."""
        if nbytes:
            self.driver.copy_out(target, address, nbytes, self.stream())
        else:
            self.driver.synchronize_stream(self.stream())
        self.check()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Bytes of the device to another place of it."""
        if nbytes:
            self.driver.copy(target, source, nbytes, self.stream())

    def copy_peer(self, target: int, source: int, nbytes: int, other: Context) -> None:
        """Bytes of another device to this one, after the work that makes them; that device's stream waits for the copy."""
        mine, theirs = self.stream(), other.stream()
        done = other.driver.new_event()
        other.driver.record(done, theirs)
        self.driver.wait(mine, done)
        self.driver.copy_peer(target, source, nbytes, mine, other.driver)
        copied = self.driver.new_event()
        self.driver.record(copied, mine)
        other.driver.wait(theirs, copied)

    def fill(self, address: int, spec: Spec, value: Any) -> bool:
        """Give all elements this value, if the driver can: where it is a pattern of at most four bytes."""
        pattern = _pattern(spec.dtype, repr(value), value)
        if pattern is None:
            return False
        self.driver.fill(address, pattern, spec.nbytes // len(pattern), self.stream())
        return True

    def pack(self, target: int, source: int, spec: Spec, strides: tuple[int, ...]) -> None:
        """Elements with any byte strides to contiguous memory."""
        from graphc.runtime.cuda.pack import pack

        pack(self, target, source, spec, strides)

    def record_stream(self, buffer: Any, stream: Stream) -> None:
        """`stream` uses the memory of a buffer too."""
        self.allocator.record_stream(buffer, stream.raw)

    def _home(self, buffer: Any) -> Any:
        """The stream that a buffer's memory belongs to; None where that is another library's."""
        block = getattr(buffer, "block", None)
        if block is None:
            return None
        home = getattr(block[2], "home", block[2])
        return home.stream

    def moved(self, old: Any, new: Any) -> None:
        """A tensor goes over to another buffer, which the current stream fills: to the streams that know it nothing changes."""
        stream, home = self.stream(), self._home(old)
        if home is not stream:
            self.driver.synchronize_stream(stream)
            if home is not None:
                self.allocator.record_stream(new, home)

    def follow(self, buffer: Any) -> None:
        """Later work of the current stream comes after that of the stream that the buffer belongs to."""
        stream, home = self.stream(), self._home(buffer)
        if home is not stream and home is not None:
            event = self.driver.new_event()
            self.driver.record(event, home)
            self.driver.wait(stream, event)
            self.allocator.record_stream(buffer, stream)

    def sent(self, data: bytes) -> int:
        """The address of these bytes on the device, which nobody changes. What was sent before is not sent again."""
        stream = self.stream()
        with self._lock:
            address = self._sent.get((stream, data))
            if address is not None:
                return address
            if len(self._sent) >= SENT:
                self.driver.synchronize()
                for block in self._sent_before:
                    block[2].append(block)
                self._sent_before, self._sent_blocks = self._sent_blocks, []
                self._sent.clear()
            block = self.allocator.take(len(data))
            # Queued before another thread can find it.
            self.write(block[0], data)
            self._sent_blocks.append(block)
            address = self._sent[stream, data] = block[0]
        return address

    def arena(self, size: int) -> int:
        """Memory for values inside programs: one growing block for each stream."""
        if not size:
            return 0
        stream = self.stream()
        block = self._arenas.get(stream)
        if block is None or block[3] < size:
            if block is not None:
                del self._arenas[stream]
                block[2].append(block)
            block = self._arenas[stream] = self.allocator.take(size)
        return block[0]  # type: ignore[no-any-return]

    def release_arenas(self) -> None:
        """Leave the arenas, which else only grow, to the allocator, unless a launch is under way."""
        if not self.launching.acquire(blocking=False):
            return
        try:
            if not self.arena_in_hand:
                while self._arenas:
                    block = self._arenas.popitem()[1]
                    block[2].append(block)
        finally:
            self.launching.release()

    def retire(self, blocks: Sequence[Any]) -> None:
        """Give blocks back that work on any stream may have used: `block[2].append(block)` once that is done."""
        streams = [s for s in (self.default_stream.raw, *self._pool) if not self.driver.stream_done(s)]
        if not blocks or not streams:
            for block in blocks:
                block[2].append(block)
            return
        events = [self.driver.new_event() for _ in streams]
        for event, stream in zip(events, streams):
            self.driver.record(event, stream)
        self.allocator.waiting.extend((events, block) for block in blocks)

    # errors

    def number(
        self, sites: Sequence[Sequence[Site]], name: str, types: Sequence[Spec], where: Any, keep: bool = False
    ) -> int:
        """The number of the first of some launches, by which their errors are found. keep: for ever."""
        with self._lock:
            first = next(self._numbers)
            if first + len(sites) >= NUMBERS:
                self._numbers = itertools.count(1)
                first = next(self._numbers)
            for _ in range(len(sites) - 1):
                next(self._numbers)
            launched = Launched(first, sites, name, types, where)
            if keep:
                self._kept.append(launched)
            else:
                self._launched[first] = launched
                while len(self._launched) > REMEMBERED:
                    del self._launched[next(iter(self._launched))]
            return first

    def check(self) -> None:
        """Raise what kernels, as far as they have run, reported, and forget it."""
        if self.failures:
            error = self.failures[0]
            self.failures.clear()
            raise error
        site = self._error[0]
        if site:
            self.driver.synchronize()  # a kernel of another stream may still be writing the words that follow
            value, launch = self._error[1], self._error[2]
            self._error[:] = [0] * 4
            for launched in [*reversed(list(self._launched.values())), *self._kept]:
                if launched.first <= launch < launched.first + len(launched.sites):
                    raise DeviceIndexError(launched.message(launch, site, value), launched.sites)
            raise DeviceIndexError(f"index {value} is out of range in a program that ran on {self.device} a while ago")

    def synchronize(self) -> None:
        """Wait for all work of the device. Raises what kernels reported."""
        self.driver.synchronize()
        self.check()

    # programs

    def launch(self, node: drivers.Node, stream: Any) -> None:
        """Queue a launch. The driver may want memory for it: for registers that spill, or to load the kernel."""
        try:
            self.driver.launch(node, stream)
        except MemoryError:
            self.allocator.with_room(
                lambda: self.driver.launch(node, stream),
                lambda: f"a kernel to be launched with {node.blocks} blocks of {node.threads} threads",
            )

    def function(self, unit: Any, symbol: str, shared: int) -> Any:
        """A kernel of a unit, which is loaded once."""
        with self._lock:
            module = self._modules.get(unit.name)
            if module is None:
                try:
                    module = self._modules[unit.name] = self.allocator.with_room(
                        lambda: self.driver.load(unit.binary), lambda: f"a program of {len(unit.binary)} bytes to be loaded"
                    )
                except Unavailable:
                    # Another compiler, once the user has installed it, is to build it anew.
                    cache.drop(f"unit-{unit.name}")
                    raise
        return self.driver.function(module, symbol, shared)


# (id of a driver, number) -> context; drivers are never collected.
_contexts: dict[tuple[int, int], Context] = {}
_lock = threading.RLock()


_patterns: dict[tuple[str, str], bytes | None] = {}


def _pattern(dtype: DType, text: str, value: Any) -> bytes | None:
    """The bytes that an element of this value repeats, if these are at most four. text: tells -0.0 from 0.0."""
    key = (dtype.name, text)
    if key not in _patterns:
        while len(_patterns) > REMEMBERED:
            _patterns.pop(next(iter(_patterns)), None)
        one = np.empty((), dtype.numpy)
        one.fill(value)  # as on the CPU, errors included
        raw = one.tobytes()
        short = next((n for n in (1, 2, 4) if len(raw) % n == 0 and raw == raw[:n] * (len(raw) // n)), None)
        _patterns[key] = None if short is None else raw[:short]
    return _patterns[key]


def device(index: int | None = None) -> Device:
    """The device of this number, or the current one. Raises `RuntimeError` where there is none."""
    found = drivers.driver()
    number = current.device if index is None else index
    key = (id(found), number)
    known = _contexts.get(key)
    if known is None:
        with _lock:
            count = found.count()
            if not 0 <= number < count:
                names = "one device, cuda:0" if count == 1 else f"{count} devices, cuda:0 to cuda:{count - 1}"
                raise drivers.unavailable(f"cuda:{number} was asked for, and this machine has {names}", "use one of those")
            opened = found.open(number)
            p = opened.properties
            if (p.major, p.minor) < drivers.CAPABILITY:
                raise drivers.unavailable(
                    f"cuda:{number}, a {p.name}, has compute capability {p.major}.{p.minor}, and graphc needs 7.0 or later",
                    "use a newer GPU",
                )
            known = _contexts.get(key)
            if known is None:
                known = _contexts[key] = Context(number, opened)
    return known.device
