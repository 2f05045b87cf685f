"""Running functions on a CUDA device: `executable` gives a program with the `run` that the rest of the runtime knows.

Inputs of rank 0 on the CPU travel with the launches: their bytes are sent once and found again by value. What else a traced
function takes from the CPU or gives to it is copied on the way in and out, where `run` then waits.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Function
from graphc.runtime.backend import Donate, Interpreted, Program, backend
from graphc.runtime.cuda.context import Context
from graphc.runtime.cuda.driver import Node
from graphc.runtime.device import CPU, Device
from graphc.runtime.errors import describe, user_frame
from graphc.runtime.spec import Spec

# A program of so many launches or more is launched as a graph, when the same addresses come a second time.
CHAIN = 3
# Graphs of one program, each for the addresses of one call.
GRAPHS = 4


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
            return
        context, borrowed = self.context, []
        inputs, wanted = list(inputs), list(outputs)
        for i in self.staged:
            borrowed.append(context.allocator.take(self.operands[i].nbytes))
            if self.operands[i].nbytes:
                context.driver.copy_in(borrowed[-1][0], inputs[i], self.operands[i].nbytes, context.stream())
            inputs[i] = borrowed[-1][0]
        for j in self.back:
            borrowed.append(context.allocator.take(self.results[j].nbytes))
            wanted[j] = borrowed[-1][0]
        try:
            self._launch(inputs, wanted)
            for j in self.back:
                context.read_into(outputs[j], wanted[j], self.results[j].nbytes)
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
                context.failures.append(IndexError(told))

        if not context.driver.call(context.stream(), task):
            self._by_copies(given, wanted)

    def _by_copies(self, given: list[int], wanted: list[int]) -> None:
        context = self.context
        memory = []
        for i, s in enumerate(self.operands):
            if i not in self.host:
                memory.append(context.read(given[i], s.nbytes))
                given[i] = int(memory[-1].ctypes.data)
        made = [context.read(0, 0) if not s.nbytes else _bytes(s.nbytes) for s in self.results]
        self.program.run(given, [int(m.ctypes.data) for m in made])
        for address, data in zip(wanted, made):
            context.write(address, data)


def _bytes(count: int) -> Any:
    import numpy as np

    return np.empty(count, np.uint8)


class _Launch:
    """One launch of a program with the words of its parameters; `places` are those that change from call to call.

    places: (word, kind, number or offset), where kind is "in", "out", "arena" or "host".
    """

    __slots__ = ("node", "places", "words")

    def __init__(self, node: Node, words: Any, places: list[tuple[int, str, int]]) -> None:
        self.node, self.words, self.places = node, words, places


class Executable(OnDevice):
    """A compiled function, loaded on a device."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from graphc.runtime.cuda.build import build

        self.program = build(self.context, self.function, self.donate, self.host)
        self.donated = self.program.donated
        self._lock = threading.Lock()
        self._constants = [self._constant(c) for c in self.program.constants]
        from graphc.runtime.cuda.launches import launches

        self._launches = launches(self.context, self.program, [c[0] for c in self._constants])
        self._sites = [p.sites for p in self.program.launches]
        self._reports = any(self._sites)
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, Any] = {}

    def _constant(self, array: Any) -> Any:
        block = self.context.allocator.take(array.nbytes)
        self.context.write(block[0], array)
        self.context.driver.synchronize_stream(self.context.stream())
        return block

    def _launch(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        context = self.context
        host = 0
        if self.program.host:
            data = bytearray(self.program.host_bytes)
            for i, offset, nbytes in self.program.host:
                data[offset : offset + nbytes] = ctypes.string_at(inputs[i], nbytes)
            host = context.sent(bytes(data))
        base = {"in": inputs, "out": outputs}
        with self._lock:
            arena = context.arena(self.program.arena)
            first = 0
            if self._reports:
                first = context.number(self._sites, self.function.name, self.operands, user_frame(4))
            for i, launch in enumerate(self._launches):
                launch.set(base, arena, host, first + i)
                context.driver.launch(launch.node, context.stream())
