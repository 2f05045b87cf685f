"""Programs: a function compiled to a table of launches that one native call runs.

`compile_function` is what the floors above use: it runs the passes, fuses, compiles what no cache
holds, plans the memory and builds the table.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from graphc.codegen.arena import arenas
from graphc.codegen.costs import costs, measure_in_time, turned_off
from graphc.codegen.donation import accepted
from graphc.codegen.items import Table, make_items, worth
from graphc.codegen.llvm.workers import expect
from graphc.codegen.plan import ALIGN, Plan, PlannedLaunch, make_plan
from graphc.codegen.report import collect, current, stage
from graphc.ir.function import Function, Module
from graphc.ir.types import TensorType

Run = Callable[[Sequence[int], Sequence[int]], None]
Donate = Sequence[tuple[int, int]]

# Elementary operations that make a part worth a thread of its own. None: what the costs of the machine say.
GRAIN: int | None = None
# So often a program runs with kernels that were chosen for other sizes, before its own are compiled.
BORROWED_RUNS = 3
SHORT = 20.0  # microseconds of a program that keeps Python's lock


def check_environment() -> None:
    """Raises `ValueError` if a variable of the environment that programs depend on has no meaning."""
    from graphc.codegen import cache
    from graphc.codegen.llvm.runner import default_threads
    from graphc.codegen.llvm.workers import most_processes

    cache.disk()
    most_processes()
    default_threads()
    turned_off()


def parts_of(planned: PlannedLaunch) -> int:
    """How many parts of a launch are worth having, whatever the number of threads."""
    return worth(planned, costs(), GRAIN)


class Program:
    """A compiled function. Tensors are row-major and contiguous; bool takes one byte.

    Attributes:
        function: the optimised function, before fusion.
        module: the fused module.
        plan: the launches.
        input_types, output_types: of the function that was compiled.
        run: run(input addresses, output addresses) runs the program on that memory. Raises `IndexError`
            if an index was out of range, naming the operation and its Python line.
        constants: arrays that the launches read beside the inputs.
        short: whether other Python threads wait while it runs.
        donated: pairs (input, output) where the output is written in place of the input, so that
            the caller passes the same address for both.
    """

    def __init__(
        self,
        function: Function,
        module: Module | None,
        plan: Plan,
        constants: Sequence[Any],
        donated: frozenset[tuple[int, int]] = frozenset(),
        grain: int | None = None,
        own: Callable[[], Program] | None = None,
    ) -> None:
        """module: None for a program that an earlier process planned, or whose plan is that of other sizes too; its function is
        the one that was given. own: for a plan with borrowed kernels, makes the program that follows it.
        """
        from graphc.codegen.llvm.runner import runner

        self._made = (function, module, constants)
        self.plan = plan
        self.input_types: tuple[TensorType, ...] = function.param_types
        self.output_types: tuple[TensorType, ...] = function.result_types
        self.donated = donated
        self.constants = [np.ascontiguousarray(c) for c in constants]
        self._runner = runner()
        self._lock = threading.Lock()
        _alive.add(self)
        self.run: Run
        self._grain = grain or GRAIN
        self._own = own
        self._build()

    @property
    def function(self) -> Function:
        return self._optimised()[0]

    @property
    def module(self) -> Module:
        return self._optimised()[1]

    def _optimised(self) -> tuple[Function, Module, Sequence[Any]]:
        """The function, its groups, and what these have for constants, made again where the plan is not its own."""
        function, module, constants = self._made
        if module is None:
            function, module, constants = front(function)
            self._made = (function, module, constants)
        return function, module, constants

    def _build(self) -> None:
        """The table of items, and `run` in the form that suits the program."""
        inputs, outputs = len(self.input_types), len(self.output_types)
        # Pointers: the caller's inputs and outputs, then the arena.
        given = inputs + outputs
        constants = [int(c.ctypes.data) for c in self.constants]

        def pointer_of(place: tuple[str, int]) -> tuple[int | None, int]:
            kind, at = place
            if kind == "arena":
                return given, at
            if kind == "in" and at >= inputs:
                return None, constants[at - inputs]
            return at + (inputs if kind == "out" else 0), 0

        self.items = make_items(self.plan, costs(), self._grain)
        self._table = Table(self.plan, self.items, pointer_of, given + 1, self._runner.forget)
        # A short program keeps Python's lock, which is cheaper; a long one lets other threads run.
        self.short = short = sum(item.microseconds for item in self.items.items) < SHORT
        native = self._runner
        direct = native.with_pointers_short if short else native.with_pointers
        address = self._table.address
        # Where a launch may report an error nobody else may run the program before that is read.
        if short and not self.plan.arena and given < len(direct) and not any(p.sites for p in self.plan.launches):
            self.run = self._direct_run(direct[given], address)
        else:
            call = direct[given] if given < len(direct) else None
            self.run = self._locked_run(call, native.run_program, address, given)
        if self.plan.streams:
            self.run = self._aligned_run(self.run)
        if self.plan.borrowed:
            self.short = False  # the kernels that follow may take longer
            self.run = self._borrowing_run(self.run)

    def _borrowing_run(self, borrowing: Run) -> Run:
        """`borrowing` for the first few runs; then these sizes come again, and kernels are chosen for them."""
        runs = itertools.count(1)
        own: list[Run] = []

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            # One thread makes them; others borrow until they are there.
            if not own and next(runs) == BORROWED_RUNS + 1 and self._own is not None:
                following = self._own()
                if following.donated == self.donated:
                    own.append(following.run)
            (own[0] if own else borrowing)(inputs, outputs)

        return run

    def _aligned_run(self, aligned: Run) -> Run:
        """`aligned` where all outputs are aligned, else a program that does not ask for that."""
        plain: list[Program] = []

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            if not any(address % ALIGN for address in outputs):
                aligned(inputs, outputs)
                return
            if not plain:
                function, module, constants = self._optimised()
                plan = make_plan(module, stream=False, donated=self.donated)
                plain.append(Program(function, module, plan, constants, self.donated, self._grain))
            plain[0].run(inputs, outputs)

        return run

    def _direct_run(self, call: Callable[..., int], address: int) -> Run:
        fail = self._fail

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            failed = call(address, *inputs, *outputs)
            if failed:
                fail(failed)

        return run

    def _locked_run(
        self, call: Callable[..., int] | None, call_program: Callable[..., int], address: int, given: int
    ) -> Run:
        lock, fail, size, name = self._lock, self._fail, self.plan.arena, self.plan.entry.name
        table = self._table
        pointers: Any = table.pointers
        # NumPy assigns a list slowly, one object at a time.
        fill = struct.Struct(f"{given}q").pack_into
        memory = memoryview(pointers).cast("B")

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            with lock:
                if _ending and _ending[0] != threading.get_ident():
                    raise SystemExit  # a daemon thread
                arena = arenas.own if size else None
                outer = arena is not None and arena.busy
                try:
                    if arena is not None:
                        arena.busy = True
                        block = arena.block
                        if block is None or block.size < size:
                            block = arena.grow(size, name, outer)
                        pointers[given] = block.address
                    if call is not None:
                        failed = call(address, *inputs, *outputs)
                    else:
                        fill(memory, 0, *inputs, *outputs)
                        failed = call_program(address)
                    if failed:
                        fail(failed)
                except BaseException:
                    # An interrupt comes before the error is read: it is not that of the next run.
                    table.failed()
                    raise
                finally:
                    if arena is not None and not outer:
                        arena.busy = False
                        if arena.leaving:
                            arena.leaving.clear()

        return run

    def _after_fork(self) -> None:
        """In a child: another thread of the parent, which is not here, may have been running this."""
        if self._lock.locked():
            self._table.renew()
            self._lock.release()

    def _fail(self, failed: int) -> None:
        if failed & 2:
            self._runner.complain()
        found = self._table.failed() if failed & 1 else None
        if found is not None:
            launch, site, value = found
            raise IndexError(self.plan.launches[launch].sites[site - 1].message(value))


_alive: weakref.WeakSet[Program] = weakref.WeakSet()
# The thread that ends the process.
_ending: list[int] = []


def _at_exit() -> None:
    """Wait for programs that daemon threads run: Python clears the frames of these threads, and so what the programs read."""
    _ending.append(threading.get_ident())
    for program in list(_alive):
        if program._lock.acquire(timeout=10.0):
            program._lock.release()


atexit.register(_at_exit)


def _after_fork() -> None:
    for program in list(_alive):
        program._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def front(f: Function, optimise: bool = True, fused: bool = True) -> tuple[Function, Module, Sequence[Any]]:
    """The function after its passes, its groups, and the constants that became parameters."""
    # A program that is found on disk needs none of these.
    from graphc.codegen.grouping import grouped
    from graphc.codegen.groups import separate
    from graphc.codegen.prepare import prepare
    from graphc.ir.passes import DEFAULT, run_pipeline

    optimised = run_pipeline(f, DEFAULT if optimise else ("inline",), stage=stage)
    with stage("prepare"):
        prepared, constants = prepare(optimised, counts=True)
    with stage("fuse"):
        module = grouped(prepared) if fused else separate(prepared)
    return optimised, module, constants


def compile_function(
    f: Function,
    donate: Sequence[tuple[int, int]] = (),
    optimise: bool = True,
    fused: bool = True,
    grain: int | None = None,
    keep: bool = False,
    hurry: bool = False,
) -> Program:
    """Compile a function with concrete dimensions.

    donate: pairs (input, output) that may share memory; `Program.donated` tells which do.
    optimise: run the default passes first. fused: let operations share kernels. grain: elementary operations of
    a part at least, instead of what the machine's costs say. The results are the same to the bit either way.
    keep: remember the plan on disk, for processes to come. hurry: run with kernels that were chosen for sizes nearby, rather
    than compile, until these sizes have come a few times.
    """
    from graphc.codegen import stored

    keep = keep and optimise and fused and len(f.ops) >= stored.LEAST
    with _collector_paused(), collect(f.name) as report:
        report.operations += len(f.ops)
        key = stored.key_of(f, donate) if keep else ""
        known = stored.find(key, f) if keep else None
        if known is not None:
            with stage("table"):
                program = Program(f, None, known.plan, known.constants, known.donated, grain)
        else:
            program = _planned(f, donate, optimise, fused, grain, key, hurry and optimise and fused)
    measure_in_time()
    return program


def _planned(
    f: Function, donate: Donate, optimise: bool, fused: bool, grain: int | None, key: str, hurry: bool
) -> Program:
    """A program that is not on disk, where it goes under `key` unless it is borrowed."""
    from graphc.codegen import changing, stored
    from graphc.ir.passes import run_pipeline

    def own() -> Program:
        made = compile_function(f, donate, optimise, fused, grain, keep=bool(key))
        return made if made.donated == donated else compile_function(f, sorted(donated), optimise, fused, grain)

    report = current()
    assert report is not None
    if hurry:
        flat = run_pipeline(f, ("inline", "fold"), stage=stage)
        found = changing.find(flat, donate)
        if found is not None:
            report.optimised += found.operations
            donated = found.donated
            with stage("table"):
                return Program(flat, None, found.plan, found.constants, donated, grain, own)
    expect(len(f.ops))
    optimised, module, constants = front(f, optimise, fused)
    report.optimised += len(optimised.ops)
    with stage("plan"):
        donated = accepted(module, donate) if donate else frozenset()
        plan = make_plan(module, donated=donated, hurry=hurry)
    with stage("table"):
        program = Program(optimised, module, plan, constants, donated, grain, own)
    if key and not plan.borrowed:
        counts = len(optimised.ops), len(module.entry.ops)
        stored.keep(key, stored.Stored(plan, tuple(program.constants), donated, *counts))
    return program


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
