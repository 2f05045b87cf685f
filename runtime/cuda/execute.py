"""Running functions on a CUDA device: `executable` gives a program with the `run` that the rest of the runtime knows.

Inputs of rank 0 on the CPU travel with the launches: their bytes are sent once and found again by value. What else a traced
function takes from the CPU or gives to it is copied on the way in and out, where `run` then waits.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.codegen.cuda.tensormap import BYTES
from graphc.ir.function import Function
from graphc.runtime.backend import Donate, Interpreted, Program, backend
from graphc.runtime.cuda.build import build
from graphc.runtime.cuda.context import Context
from graphc.runtime.cuda.driver import Node
from graphc.runtime.cuda.parameters import Parameters
from graphc.runtime.device import CPU, Device
from graphc.runtime.errors import DeviceIndexError, describe, user_frame
from graphc.runtime.spec import Spec

# A program of so many launches or more is launched as a graph.
CHAIN = 3
# Graphs of one program, each for the addresses of one call.
GRAPHS = 4
# Addresses of calls that are known to have come once.
REMEMBERED = 64
# Bytes between values of the host, as `codegen.cuda.program` places them.
_SLOT = 16


def executable(
    function: Function, donate: Donate, device: Device, operands: Sequence[Spec], results: Sequence[Spec]
) -> Program:
    """Make a function executable on `device`. operands, results: types with the devices that the tensors are on."""
    kind = InterpretedOnDevice if backend() == "interpret" else Executable
    return kind(function, donate, device, operands, results)


class OnDevice:
    """What both kinds of program share: values of the host on the way in and out.

    host: inputs of rank 0 on the CPU. staged: other inputs on the CPU. back: results on the CPU.
    """

    donated: frozenset[tuple[int, int]]
    # What `DeviceIndexError.owner` is for errors of this program.
    owner: Any

    def __init__(
        self, function: Function, donate: Donate, device: Device, operands: Sequence[Spec], results: Sequence[Spec]
    ) -> None:
        self.function = function
        self.context: Context = device.context
        self.operands = operands
        self.host = [i for i, s in enumerate(operands) if s.device is CPU and not s.shape]
        self.staged = [i for i, s in enumerate(operands) if s.device is CPU and s.shape]
        self.back = [j for j, s in enumerate(results) if s.device is CPU]
        self.results = results
        self.donate = [(i, j) for i, j in donate if operands[i].device is device and results[j].device is device]

    def run(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Queue the program on the current stream of this thread; wait for it only where results go to the CPU."""
        if not self.staged and not self.back:
            self._launch(inputs, outputs)
            if self.context.blocking:
                self.context.synchronize()
            return
        context, borrowed = self.context, []
        inputs, wanted = list(inputs), list(outputs)
        try:
            for i in self.staged:
                borrowed.append(context.allocator.take(self.operands[i].nbytes))
                if self.operands[i].nbytes:
                    context.driver.copy_in(borrowed[-1][0], inputs[i], self.operands[i].nbytes, context.stream())
                inputs[i] = borrowed[-1][0]
            for j in self.back:
                borrowed.append(context.allocator.take(self.results[j].nbytes))
                wanted[j] = borrowed[-1][0]
            self._launch(inputs, wanted)
            for j in self.back:
                context.read_into(outputs[j], wanted[j], self.results[j].nbytes)
            if context.blocking and not self.back:
                context.synchronize()
        finally:
            for block in borrowed:
                block[2].append(block)

    def _launch(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        raise TypeError("a program on a device defines how it is launched")


class InterpretedOnDevice(OnDevice):
    """The IR's own interpreter on the memory of a device: in its stream where that is simulated, else by copies."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.program = Interpreted(self.function)
        self.owner = object()
        self.donated = frozenset(self.donate)

    def _launch(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        context, given = self.context, list(inputs)
        held = [ctypes.create_string_buffer(ctypes.string_at(given[i], self.operands[i].nbytes), 16) for i in self.host]
        for i, bytes_ in zip(self.host, held):
            given[i] = ctypes.addressof(bytes_)
        wanted, where = list(outputs), user_frame(2)

        def task(keep: Any = held) -> None:
            try:
                self.program.run(given, wanted)
            except IndexError as error:
                types = ", ".join(map(str, self.operands))
                told = f"{self.function.name}({types}): {error}\n  at {describe(where)}"
                context.failures.append(DeviceIndexError(told, self.owner))

        if not context.driver.call(context.stream(), task):
            self._by_copies(given, wanted)

    def _by_copies(self, given: list[int], wanted: list[int]) -> None:
        context = self.context
        memory = []
        for i, s in enumerate(self.operands):
            if i not in self.host:
                memory.append(context.read(given[i], s.nbytes))
                given[i] = int(memory[-1].ctypes.data)
        made = [np.empty(s.nbytes, np.uint8) for s in self.results]
        self.program.run(given, [int(m.ctypes.data) for m in made])
        for address, data in zip(wanted, made):
            context.write(address, data)


class _Launch:
    """One launch with the words of its parameters. places: (word, space, number) of addresses, where the space is "in",
    "out", "arena" or "host" and the number is of a tensor or an offset; maps: (parameter, space, number, map). number_at: the
    word by which errors are found.
    """

    __slots__ = ("context", "last", "maps", "node", "number_at", "parameters", "places")

    def __init__(self, context: Context, launch: Any, constants: Sequence[int], host_bytes: int) -> None:
        self.context = context
        if launch.members:  # one parameter of words
            self.parameters = Parameters([8 * (len(launch.arguments) + 2)])
            first = self.parameters.starts[0]
            starts = [first + i for i in range(len(launch.arguments) + 2)]
        else:
            self.parameters = Parameters([*map(_size_of, launch.arguments), 8, 4])
            starts = self.parameters.starts
        words, self.number_at = self.parameters.words, starts[-1]
        self.places: list[tuple[int, str, int]] = []
        self.maps: list[tuple[int, str, int, Any]] = []
        # The addresses that the maps were made for.
        self.last: dict[int, int] = {}

        def placed(argument: Any) -> tuple[str, int]:
            space, at = argument[0], argument[1]
            return ("host", at) if space == "arena" and at < host_bytes else (space, at)

        for i, argument in enumerate(launch.arguments):
            if argument[0] == "word":
                words[starts[i]] = argument[1]
            elif argument[0] == "const":
                words[starts[i]] = constants[argument[1]]
            elif argument[0] == "map":
                made = launch.maps[argument[1]]
                space, at = placed(made.place)
                if space == "const":
                    self.parameters.put(i, context.driver.tensor_map(constants[at], made))
                else:
                    self.maps.append((i, space, at, made))
            else:
                self.places.append((starts[i], *placed(argument)))
        words[starts[-2]] = context.error_address
        function = context.function(launch.unit, launch.symbol, launch.shared)
        self.node = Node(function, launch.blocks, launch.threads, launch.shared, self.parameters)

    def set(self, spaces: dict[str, Any], number: int) -> None:
        """Take over the addresses of a call, and the number that errors are reported with."""
        words = self.parameters.words
        for word, space, at in self.places:
            words[word] = _address(spaces, space, at)
        for i, space, at, made in self.maps:
            address = _address(spaces, space, at)
            if self.last.get(i) != address:
                self.parameters.put(i, self.context.driver.tensor_map(address, made))
                self.last[i] = address
        words[self.number_at] = number

    def differs(self, spaces: dict[str, Any]) -> bool:
        """Whether the addresses of a call are others than those that were set."""
        words = self.parameters.words
        return any(words[word] != _address(spaces, space, at) for word, space, at in self.places) or any(
            self.last.get(i) != _address(spaces, space, at) for i, space, at, _ in self.maps
        )


def _address(spaces: dict[str, Any], space: str, at: int) -> int:
    base = spaces[space]
    return base + at if base.__class__ is int else base[at]  # type: ignore[no-any-return]


def _size_of(argument: Any) -> int:
    if argument[0] == "map":
        return BYTES
    return argument[2] if argument[0] == "word" else 8  # type: ignore[no-any-return]


class _Graph:
    """The launches of a program as one, with the addresses that they were last given."""

    __slots__ = ("launches", "raw")

    def __init__(self, launches: list[_Launch], raw: Any) -> None:
        self.launches, self.raw = launches, raw


class _HostPlace:
    """Memory of the device for a graph's values of the host, and the bytes that are there."""

    __slots__ = ("block", "data")

    def __init__(self, block: Any) -> None:
        self.block = block
        self.data = b""


class _Held:
    """The blocks of a program's constants and values of the host, which live as long as what runs it."""

    __slots__ = ("__weakref__", "blocks")

    def __init__(self) -> None:
        self.blocks: list[Any] = []


class Executable(OnDevice):
    """A compiled function, loaded on a device.

    A program of several launches becomes a graph in its second run; a run with other addresses changes the launches that
    are concerned, if those are not many, and addresses that come again get a graph of their own.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.program = build(self.context, self.function, self.donate, self.host)
        self.donated = self.program.donated
        self._lock = threading.Lock()
        self._held = _Held()
        weakref.finalize(self._held, self.context.retire, self._held.blocks).atexit = False
        self._constants = [self._constant(np.ascontiguousarray(c)) for c in self.program.constants]
        self._launches = self._bound()
        self._sites = self.owner = [p.sites for p in self.program.launches]
        self._reports = any(self._sites)
        self._runs = 0
        self._seen: dict[Any, None] = {}
        self._graphs: dict[Any, _Graph] = {}
        self._on_host = frozenset(i for i, _, _ in self.program.host)
        self._host_places: dict[Any, _HostPlace] = {}

        spaces = {place[1] for launch in self._launches for place in (*launch.places, *launch.maps)}
        if len(self._launches) == 1 and not (self._reports or "arena" in spaces or self.staged or self.back):
            self.run = self._alone(self._launches[0])  # type: ignore[method-assign]

    def _alone(self, launch: _Launch) -> Any:
        """`run` for one launch that needs no more than its operands: most operations outside of `compile`."""
        context, node, host, total = self.context, launch.node, self.program.host, self.program.host_bytes
        words, lock, start, stream_of = launch.parameters.words, self._lock, context.driver.launch, context.stream
        read = ctypes.string_at
        places = [(word, at) for word, space, at in launch.places if space == "in"]
        targets = [(word, at) for word, space, at in launch.places if space == "out"]
        sent = [(word, at) for word, space, at in launch.places if space == "host"]
        plain = len(places) + len(targets) + len(sent) == len(launch.places) and not launch.maps

        def run(inputs: Sequence[int], outputs: Sequence[int], held: _Held = self._held) -> None:
            base = 0
            if host:
                parts = [read(inputs[i], nbytes).ljust(_SLOT, b"\0") for i, _, nbytes in host]
                base = context.sent(b"".join(parts))
            with lock:
                if plain:
                    for word, at in places:
                        words[word] = inputs[at]
                    for word, at in targets:
                        words[word] = outputs[at]
                    for word, at in sent:
                        words[word] = base + at
                else:
                    launch.set({"in": inputs, "out": outputs, "host": base, "arena": 0}, 0)
                try:
                    start(node, stream_of())
                except MemoryError:
                    context.launch(node, stream_of())
            if context.blocking:
                context.synchronize()

        assert total == _SLOT * len(host)
        return run

    def _bound(self) -> list[_Launch]:
        constants = [b[0] for b in self._constants]
        return [_Launch(self.context, p, constants, self.program.host_bytes) for p in self.program.launches]

    def _constant(self, array: np.ndarray[Any, Any]) -> Any:
        block = self.context.allocator.take(array.nbytes)
        self._held.blocks.append(block)
        self.context.write(block[0], array)
        self.context.driver.synchronize_stream(self.context.stream())
        return block

    def _launch(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        context = self.context
        spaces: dict[str, Any] = {"in": inputs, "out": outputs, "host": 0}
        data = self._read_host(inputs) if self._on_host else b""
        stream = context.stream()
        with context.launching, self._lock:
            spaces["arena"] = context.arena(self.program.arena)
            outer, context.arena_in_hand = context.arena_in_hand, True
            try:
                self._launch_all(spaces, stream, data, user_frame(4) if self._reports else None)
            finally:
                context.arena_in_hand = outer

    def _read_host(self, inputs: Sequence[int]) -> bytes:
        data = bytearray(self.program.host_bytes)
        for i, offset, nbytes in self.program.host:
            data[offset : offset + nbytes] = ctypes.string_at(inputs[i], nbytes)
        return bytes(data)

    def _launch_all(self, spaces: dict[str, Any], stream: Any, data: bytes, where: Any) -> None:
        context = self.context
        if len(self._launches) >= CHAIN and self._launch_graph(spaces, stream, data):
            return
        if data:
            spaces["host"] = context.sent(data)
        first = 0
        if self._reports:
            first = context.number(self._sites, self.function.name, self.operands, where)
        for i, launch in enumerate(self._launches):
            launch.set(spaces, first + i)
            context.launch(launch.node, stream)

    # graphs

    def _launch_graph(self, spaces: dict[str, Any], stream: Any, data: bytes) -> bool:
        """Launch the program as a graph, if there is one for these addresses or one that is nearly so.

        Values of the host lie at one place for each stream, so that a learning rate that changes changes no launch.
        """
        place = None
        inputs = tuple(spaces["in"])
        if data:
            place = self._host_place(stream)
            spaces = {**spaces, "host": place.block[0]}
            # The addresses of values of the host do not matter, as they have been read.
            inputs = tuple(0 if i in self._on_host else a for i, a in enumerate(inputs))
        key = (inputs, tuple(spaces["out"]), spaces["arena"], spaces["host"])
        graph = self._graphs.pop(key, None)
        if graph is None:
            self._runs += 1
            if self._runs == 2 or (key in self._seen and len(self._graphs) < GRAPHS):
                graph = self._new_graph(spaces)
            elif self._graphs:
                graph = self._changed(next(iter(self._graphs)), spaces)
            self._remember(key)
            if graph is None:
                return False
        self._graphs[key] = graph
        if place is not None and place.data != data:
            self.context.write(place.block[0], data)
            place.data = data
        self.context.driver.launch_graph(graph.raw, stream)
        return True

    def _host_place(self, stream: Any) -> _HostPlace:
        known = self._host_places.get(stream)
        if known is None:
            known = self._host_places[stream] = _HostPlace(self.context.allocator.take(self.program.host_bytes))
            self._held.blocks.append(known.block)
        return known

    def _remember(self, key: Any) -> None:
        self._seen[key] = None
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def _new_graph(self, spaces: dict[str, Any]) -> _Graph | None:
        launches = self._bound()
        first = 0
        if self._reports:
            first = self.context.number(self._sites, self.function.name, self.operands, None, keep=True)
        for i, launch in enumerate(launches):
            launch.set(spaces, first + i)
        raw = self.context.allocator.with_room(
            lambda: self.context.driver.new_graph([launch.node for launch in launches]),
            lambda: f"a graph of {len(launches)} launches to be made",
        )
        return None if raw is None else _Graph(launches, raw)

    def _changed(self, key: Any, spaces: dict[str, Any]) -> _Graph | None:
        """The graph of other addresses with those of this call, unless most of its launches would change."""
        graph = self._graphs[key]
        concerned = [i for i, launch in enumerate(graph.launches) if launch.differs(spaces)]
        if 2 * len(concerned) > len(graph.launches):
            return None
        del self._graphs[key]
        for i in concerned:
            launch = graph.launches[i]
            launch.set(spaces, launch.parameters.words[launch.number_at])
            self.context.driver.update_graph(graph.raw, i, launch.node)
        return graph
