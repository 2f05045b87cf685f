"""How evenly a program keeps 1 to 64 threads busy, on paper: its items and their parts, run by as many ideal threads.

    python -m benchmarks.balance train.py:step --input "f32[64,1,8,8]" --input "i64[64]"

Every thread takes the next part of the first item that is ready, as the runner does; parts take their share of the time that
the cost model gives the launch (or, with --measure, that it takes on this machine). Memory bandwidth, and what it costs to
hand parts around, do not count: the figures say what the partition allows, not what a machine reaches.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.codegen.items import Item
from graphc.codegen.llvm.runner import FINER, WINDOW

THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Balance:
    """threads; speed-up over one thread; the part of the threads' time that is work."""

    threads: int
    speedup: float

    @property
    def busy(self) -> float:
        return self.speedup / self.threads


def parts_on(item: Item, threads: int) -> int:
    """The parts of an item on so many threads, as the runner makes them (`@prepare` in runner.ll)."""
    fine = min(item.worth, FINER * threads)
    return max(1, min(fine if fine < threads else fine - fine % threads, item.extent))


def makespan(items: Sequence[Item], times: Sequence[float], threads: int) -> float:
    """The time that so many threads take for items of these times on one thread."""
    parts = [parts_on(item, threads) for item in items]
    taken = [0] * len(items)
    left = list(parts)
    running: list[tuple[float, int]] = []  # (end, item)
    now, low, idle = 0.0, 0, threads
    while low < len(items) or running:
        for i in range(low, min(low + WINDOW, len(items))):
            item = items[i]
            if taken[i] == parts[i] or any(left[d] for d in item.needs):
                continue
            while idle and taken[i] < parts[i]:
                k, n = taken[i], parts[i]
                share = (item.extent * (k + 1) // n - item.extent * k // n) / max(1, item.extent)
                heapq.heappush(running, (now + times[i] * share, i))
                taken[i] += 1
                idle -= 1
        while low < len(items) and taken[low] == parts[low]:
            low += 1
        if idle and any(
            taken[i] < parts[i] and not any(left[d] for d in items[i].needs) for i in range(low, min(low + WINDOW, len(items)))
        ):
            continue
        if running:
            now, i = heapq.heappop(running)
            left[i] -= 1
            idle += 1
    return now


def balances(items: Sequence[Item], times: Sequence[float], threads: Sequence[int] = THREADS) -> list[Balance]:
    """The speed-up on so many threads over one."""
    alone = sum(times)
    return [Balance(n, alone / makespan(items, times, n) if alone else 1.0) for n in threads]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="FILE.py:NAME")
    parser.add_argument("--input", action="append", default=[], metavar="TYPE", help='type of an argument, such as "f32[64,8]"')
    parser.add_argument("--measure", action="store_true", help="time every launch on one thread")
    options = parser.parse_args(argv)
    from graphc.cli.failure import Failure
    from graphc.cli.source import load_source, trace
    from graphc.codegen.program import compile_function

    try:
        traced = trace(load_source(options.source), options.input)
    except Failure as failure:
        print(f"benchmarks.balance: {failure}", file=sys.stderr)
        return 2
    program = compile_function(traced.function)
    items = program.items.items
    times = _measured(program, traced) if options.measure else [i.microseconds for i in items]
    print(f"{len(program.plan.launches)} launches, {len(items)} items, {sum(times):.0f} us on one thread")
    print("| threads | speed-up | busy |\n| --- | --- | --- |")
    for b in balances(items, times):
        print(f"| {b.threads} | {b.speedup:.2f} | {b.busy:.0%} |")
    return 0


def _measured(program: Any, traced: Any) -> list[float]:
    import numpy as np
    from graphc.codegen.llvm.runner import runner
    from graphc.runtime.core import view_of

    from benchmarks.profile import Memory, time_launch

    count = len(program.input_types) - len(traced.captured)
    memory = Memory(program, [*[None] * count, *(np.array(view_of(t)) for t in traced.captured)])
    before = runner().get_threads()
    runner().set_threads(1)
    try:
        launches = program.plan.launches
        return [1e6 * sum(time_launch(launches[k], memory) for k in item.launches) for item in program.items.items]
    finally:
        runner().set_threads(before)


if __name__ == "__main__":
    sys.exit(main())
