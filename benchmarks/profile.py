"""Times the kernels of one program, each beside what the machine allows for it.

    python -m benchmarks.profile model.py:net --input "f32[64,1,8,8]"
    python -m benchmarks.profile train.py:step --input "f32[64,1,8,8]" --input "i64[64]"

FILE.py:NAME is a function (a whole training step, if it is one) or an `nn.Module`. It is traced with types, compiled, and
run; then every launch is repeated alone, so small kernels find their data in the caches. `memory` and `vector` say which part of
the machine's bandwidth (for that much memory) and of its vector operations a kernel reaches at least; `of limit` is the larger.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import limits
from benchmarks.report import show_time
from benchmarks.work import bytes_of, operations_of

# Footprints at which bandwidth is measured: a first and a second level cache, a shared one, memory.
FOOTPRINTS = (16 << 10, 128 << 10, 512 << 10, 4 << 20, 16 << 20, 64 << 20, 256 << 20)


@dataclass(frozen=True)
class Machine:
    """Measured limits: vector operations a second; bytes a second at each footprint, read and written, or only read."""

    operations: float
    both: dict[int, float]
    reading: dict[int, float]

    def bandwidth(self, m: Measured) -> float:
        """The bandwidth for a group: at the next larger footprint, reading only if it writes little."""
        bands = self.reading if 8 * m.written < m.bytes else self.both
        return next((b for n, b in bands.items() if n >= m.bytes), bands[max(bands)])

    def least(self, m: Measured) -> float:
        """The seconds that a group takes at least."""
        return max(m.bytes / self.bandwidth(m), m.work / self.operations)


@dataclass(frozen=True)
class Measured:
    """One group of operations: its launches' seconds, its work, where it comes from."""

    name: str
    operations: str
    launches: tuple[tuple[str, float], ...]
    bytes: int
    written: int
    work: int
    line: str

    @property
    def seconds(self) -> float:
        return sum(s for _, s in self.launches)


def measure_machine() -> Machine:
    """The limits of this machine on as many threads as the runner uses."""
    # A fused multiply-add is one operation and two flops.
    both, reading = ({n: limits.bandwidth(n, r) for n in FOOTPRINTS} for r in (False, True))
    return Machine(limits.fma_peak() / 2, both, reading)


class Memory:
    """The memory of a program: inputs with values in them, outputs and an arena, all aligned."""

    def __init__(self, program: Any, given: Sequence[np.ndarray | None]) -> None:
        types = program.input_types
        self.inputs = [self._input(t, a) for t, a in zip(types, given, strict=True)]
        self.outputs = [limits.aligned(-(-int(t.nbytes) // 4) + 1) for t in program.output_types]
        self.constants = list(program.constants)
        self.arena = limits.aligned(-(-program.plan.arena // 4) + 1)

    @staticmethod
    def _input(type: Any, value: np.ndarray | None) -> np.ndarray:
        memory = limits.aligned(-(-int(type.nbytes) // 4) + 1)
        if value is None:
            shape = tuple(int(d) for d in type.shape)
            # Zero is an index into anything.
            made = np.random.default_rng(0).standard_normal(shape) if type.dtype.is_float else np.zeros(shape)
            value = made.astype(type.dtype.numpy)
        data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        memory.view(np.uint8)[: data.size] = data
        return memory

    def address(self, place: tuple[str, int]) -> int:
        """The address of a buffer of the plan."""
        kind, at = place
        if kind == "arena":
            return int(self.arena.ctypes.data) + at
        if kind == "out":
            return int(self.outputs[at].ctypes.data)
        count = len(self.inputs)
        return int((self.inputs[at] if at < count else self.constants[at - count]).ctypes.data)


def time_launch(planned: Any, memory: Memory) -> float:
    """Seconds of one launch, repeated natively."""
    from graphc.codegen.llvm.runner import runner
    from graphc.codegen.program import parts_of

    parts = parts_of(planned)
    arguments = [*map(memory.address, planned.places), *planned.extents]
    one = [planned.launch.address, planned.parallel, parts, 0, len(arguments), *arguments]
    error = np.zeros(4, np.int64)
    run = runner().run

    def repeated(times: int) -> float:
        table = np.array(one * times, np.int64)
        start = time.perf_counter()
        if run(table.ctypes.data, times, error.ctypes.data):
            raise IndexError(f"the kernel {planned.launch.symbol} reported an error")
        return (time.perf_counter() - start) / times

    times = max(1, min(1000, int(0.002 / max(repeated(1), 1e-9))))
    stop, best = time.perf_counter() + 0.05, float("inf")
    while time.perf_counter() < stop or best == float("inf"):
        best = min(best, repeated(times))
    return best


def measure_program(program: Any, given: Sequence[np.ndarray | None]) -> tuple[list[Measured], float]:
    """The groups of a program in order, and the seconds of a run of all of it."""
    memory = Memory(program, given)
    addresses = [[int(a.ctypes.data) for a in arrays] for arrays in (memory.inputs, memory.outputs)]
    whole = limits.shortest(lambda: program.run(*addresses), 0.2)
    launches = iter(program.plan.launches)
    measured = []
    pending = next(launches, None)
    for op in program.module.entry.ops:
        group = op.attrs["function"]
        times: list[tuple[str, float]] = []
        while pending is not None and pending.group == group.name:
            times.append((pending.launch.symbol.split("_")[0], time_launch(pending, memory)))
            pending = next(launches, None)
        names = ", ".join(dict.fromkeys(o.name for o in group.ops))
        where = f"{op.loc.file.rpartition('/')[2]}:{op.loc.line}" if op.loc else ""
        written = sum(int(r.type.nbytes) for r in group.results)
        measured.append(Measured(group.name, names, tuple(times), bytes_of(group), written, operations_of(group), where))
    return measured, whole


def show(measured: Sequence[Measured], whole: float, machine: Machine, top: int) -> None:
    """The table, the slowest group first."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(show_edge=False)
    for heading in ("group", "line", "launches", "time", "share", "bytes", "GB/s", "memory", "Gop/s", "vector", "of limit", "operations"):
        table.add_column(heading, justify="left" if heading in ("group", "line", "operations") else "right")
    total = sum(m.seconds for m in measured)
    least = sum(map(machine.least, measured))
    for m in sorted(measured, key=lambda m: -m.seconds)[:top]:
        moved, done = m.bytes / m.seconds, m.work / m.seconds
        memory, vector = moved / machine.bandwidth(m), done / machine.operations
        names = m.operations if len(m.operations) < 60 else m.operations[:57] + "..."
        launches = " + ".join(f"{n} {show_time(s)}" for n, s in m.launches) if len(m.launches) > 1 else "1"
        table.add_row(
            m.name, m.line, launches, show_time(m.seconds), f"{m.seconds / total:.0%}", f"{m.bytes:,}", f"{moved / 1e9:.1f}",
            f"{memory:.0%}", f"{done / 1e9:.1f}", f"{vector:.0%}", f"{max(memory, vector):.0%}", names,
        )  # fmt: skip
    console.print(table)
    bands = ", ".join(f"{n >> 10} KiB {b / 1e9:.0f} ({machine.reading[n] / 1e9:.0f})" for n, b in machine.both.items())
    console.print(
        f"machine: {machine.operations / 1e9:.1f} G fused multiply-adds/s; GB/s by footprint, read and written (only read): {bands}",
        highlight=False,
    )
    console.print(
        f"{len(measured)} groups, {sum(len(m.launches) for m in measured)} launches: {show_time(total)} one by one, {show_time(whole)} "
        f"as a program; the limits allow {show_time(least)} ({least / whole:.0%})",
        highlight=False,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="FILE.py:NAME")
    parser.add_argument("--input", action="append", default=[], metavar="TYPE", help='type of an argument, such as "f32[64,8]"')
    parser.add_argument("--threads", type=int, help="threads of a launch (default: all)")
    parser.add_argument("--top", type=int, default=40, help="groups to show (default 40)")
    options = parser.parse_args(argv)
    from graphc.cli.failure import Failure
    from graphc.cli.source import load_source, trace
    from graphc.codegen.llvm.runner import runner
    from graphc.codegen.program import compile_function
    from graphc.runtime.core import view_of

    if options.threads:
        runner().set_threads(options.threads)
    try:
        traced = trace(load_source(options.source), options.input)
    except Failure as failure:
        print(f"benchmarks.profile: {failure}", file=sys.stderr)
        return 2
    program = compile_function(traced.function)
    count = len(program.input_types) - len(traced.captured)
    given = [*[None] * count, *(np.array(view_of(t)) for t in traced.captured)]
    measured, whole = measure_program(program, given)
    show(measured, whole, measure_machine(), options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
