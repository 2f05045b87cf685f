"""Programs: a function compiled to a table of launches that one native call runs.

`compile_function` is what the floors above use: it runs the passes, fuses, compiles what no cache
holds, plans the memory and builds the table.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from graphc.codegen import pages
from graphc.codegen.donation import accepted
from graphc.codegen.fuse import fuse
from graphc.codegen.groups import separate
from graphc.codegen.plan import ALIGN, Plan, make_plan
from graphc.codegen.prepare import prepare
from graphc.codegen.report import collect, stage
from graphc.ir.function import Function, Module
from graphc.ir.types import TensorType

Run = Callable[[Sequence[int], Sequence[int]], None]

# Elementary operations that make a piece of work worth a thread of its own.
GRAIN = 16384


class _Arena(threading.local):
    """Memory for values inside programs: one growing block for each thread, which `release` gives back."""

    def __init__(self) -> None:
        self.block: Any = None
        self.size = 0
        self.address = 0

    def at_least(self, size: int, program: str = "") -> int:
        """The address of `size` bytes. Raises `OutOfMemoryError`, which names the program."""
        if size > self.size:
            self.block, self.size = None, 0
            try:
                # In huge pages from half of one on.
                self.block = pages.take(size if size < pages.HUGE // 2 else -(-size // pages.HUGE) * pages.HUGE)
            except MemoryError:
                raise pages.OutOfMemoryError(
                    f"out of memory: {pages.show_size(size)} asked for by the arena of program {program} (values between its "
                    "kernels), after what waited to be used again was given back; use a smaller batch, several smaller "
                    "compiled functions, or free tensors that you no longer need"
                ) from None
            self.size, self.address = self.block.size, self.block.address
        return self.address

    def release(self) -> None:
        """Give the block of this thread back, unless a program is about to work in it."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            if frame.f_globals is _GLOBALS:
                return
            frame = frame.f_back
        self.block, self.size = None, 0


_GLOBALS = globals()
_arena = _Arena()
pages.on_shortage(_arena.release)


class Program:
    """A compiled function. Tensors are row-major and contiguous; bool takes one byte.

    Attributes:
        function: the optimised function, before fusion.
        module: the fused module.
        plan: the launches.
        input_types, output_types: of the function that was compiled.
        run: run(input addresses, output addresses) runs the program on that memory. Raises `IndexError`
            if an index was out of range, naming the operation and its Python line.
        donated: pairs (input, output) where the output is written in place of the input, so that
            the caller passes the same address for both.
    """

    def __init__(
        self,
        function: Function,
        module: Module,
        plan: Plan,
        constants: Sequence[Any],
        donated: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        from graphc.codegen.llvm.runner import runner

        self.function = function
        self.module = module
        self.plan = plan
        self.input_types: tuple[TensorType, ...] = function.param_types
        self.output_types: tuple[TensorType, ...] = function.result_types
        self.donated = donated
        self._constants = [np.ascontiguousarray(c) for c in constants]
        self._runner = runner()
        self.run: Run
        self._build()

    def _build(self) -> None:
        """The table of launches, and `run` in the form that suits the program."""
        words: list[int] = []
        patches: list[tuple[int, int, int]] = []
        inputs, outputs = len(self.input_types), len(self.output_types)
        # Pointers: the caller's inputs and outputs, then the constants, then the arena.
        given = inputs + outputs
        arena = given + len(self._constants)
        total = 0
        for number, p in enumerate(self.plan.launches):
            total += p.work
            parts = max(1, min(p.parallel, p.work // GRAIN))
            words += [p.launch.address, p.parallel, parts, number, len(p.places) + len(p.extents)]
            for kind, at in p.places:
                if kind == "arena":
                    patches.append((len(words), arena, at))
                elif kind == "in" and at >= inputs:
                    words.append(self._constants[at - inputs].ctypes.data)
                    continue
                else:
                    patches.append((len(words), at + (inputs if kind == "out" else 0), 0))
                words.append(0)
            words += p.extents
        pointers = (ctypes.c_int64 * (arena + 1))()
        error = np.zeros(4, np.int64)
        table = np.array(words or [0], np.int64)
        patch_table = np.array(patches or [(0, 0, 0)], np.int64)
        block = np.array(
            [
                table.ctypes.data,
                len(self.plan.launches),
                patch_table.ctypes.data,
                len(patches),
                ctypes.addressof(pointers),
                error.ctypes.data,
            ],
            np.int64,
        )
        self._error = error
        self._memory = (table, patch_table, pointers, block)
        # A short program keeps Python's lock, which is cheaper; a long one lets other threads run.
        short = total < 4 * GRAIN
        native = self._runner
        direct = native.with_pointers_short if short else native.with_pointers
        address = int(block.ctypes.data)
        if short and not self.plan.arena and given < len(direct):
            self.run = self._direct_run(direct[given], address)
        else:
            call = direct[given] if given < len(direct) else None
            self.run = self._locked_run(call, native.run_block, address, pointers, arena)
        if self.plan.streams:
            self.run = self._aligned_run(self.run)

    def _aligned_run(self, aligned: Run) -> Run:
        """`aligned` where all outputs are aligned, else a program that does not ask for that."""
        plain: list[Program] = []

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            if not any(address % ALIGN for address in outputs):
                aligned(inputs, outputs)
                return
            if not plain:
                plan = make_plan(self.module, stream=False, donated=self.donated)
                plain.append(Program(self.function, self.module, plan, self._constants, self.donated))
            plain[0].run(inputs, outputs)

        return run

    def _direct_run(self, call: Callable[..., int], block: int) -> Run:
        fail = self._fail

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            if call(block, *inputs, *outputs):
                fail()

        return run

    def _locked_run(
        self, call: Callable[..., int] | None, call_block: Callable[..., int], block: int, pointers: Any, arena: int
    ) -> Run:
        lock, fail, size = threading.Lock(), self._fail, self.plan.arena
        name = self.function.name

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            with lock:
                if size:
                    pointers[arena] = _arena.at_least(size, name)
                if call is not None:
                    failed = call(block, *inputs, *outputs)
                else:
                    pointers[0 : len(inputs) + len(outputs)] = [*inputs, *outputs]
                    failed = call_block(block)
                if failed:
                    fail()

        return run

    def _fail(self) -> None:
        site, value, launch = (int(x) for x in self._error[:3])
        self._error[:] = 0
        raise IndexError(self.plan.launches[launch].sites[site - 1].message(value))


def compile_function(
    f: Function, donate: Sequence[tuple[int, int]] = (), optimise: bool = True, fused: bool = True
) -> Program:
    """Compile a function with concrete dimensions.

    donate: pairs (input, output) that may share memory; `Program.donated` tells which do.
    optimise: run the default passes first. fused: let operations share kernels. The results are
    the same to the bit either way.
    """
    from graphc.ir.passes import DEFAULT, run_pipeline

    with _collector_paused(), collect(f.name) as report:
        report.operations += len(f.ops)
        optimised = run_pipeline(f, DEFAULT if optimise else ("inline",), stage=stage)
        report.optimised += len(optimised.ops)
        with stage("prepare"):
            prepared, constants = prepare(optimised)
        with stage("fuse"):
            module = fuse(prepared) if fused else separate(prepared)
        with stage("plan"):
            donated = accepted(module, donate) if donate else frozenset()
            plan = make_plan(module, donated=donated)
        with stage("table"):
            return Program(optimised, module, plan, constants, donated)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Compiling makes many objects and no cycles; Python's collector would walk all of the process's for nothing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
