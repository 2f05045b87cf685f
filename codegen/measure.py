"""The costs of this machine, measured with programs of its own: a few milliseconds, each figure the best of several."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from graphc.codegen.costs import DEFAULT, Costs
from graphc.ir.function import Builder, Function
from graphc.ir.types import F32, TensorType

SECONDS = 0.004  # of each measurement
CHAIN = 60.0  # operations a nanosecond of `_speed` on the machine of `costs.RATES`
# What a busy or strange machine may say at most.
SPEED, BANDWIDTH, PART = (0.25, 4.0), (4.0, 60.0), (1.0, 5.0)


def measure() -> Costs:
    """Measure vector speed, bandwidth, and what it costs to hand a part to another thread."""
    speed = _speed()
    return Costs(speed, _bandwidth(), _part(), DEFAULT.wake)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return round(min(max(value, bounds[0]), bounds[1]), 2)


def _function(size: int, steps: int) -> Function:
    """x -> x * x + x, again and again."""
    b = Builder("costs")
    x = y = b.param(TensorType(F32, (size,)))
    for _ in range(steps):
        y = b.fma(y, x, x)
    return b.build([y])


def _best(run: Callable[[], object]) -> float:
    """The shortest of several runs, in microseconds."""
    run()
    stop, best = time.perf_counter() + SECONDS, float("inf")
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > stop:
            return best * 1e6


def _on(threads: int, f: Function, times: int = 1, grain: int | None = None) -> tuple[float, int]:
    """(microseconds of a run on so many threads, the operations that its launches state)."""
    from graphc.codegen.llvm.runner import runner
    from graphc.codegen.program import compile_function

    program = compile_function(f, optimise=False, grain=grain)
    inputs = [np.ones([int(d) for d in t.shape], t.dtype.numpy) for t in program.input_types]
    outputs = [np.empty([int(d) for d in t.shape], t.dtype.numpy) for t in program.output_types]
    addresses = [a.ctypes.data for a in inputs], [a.ctypes.data for a in outputs]
    before = runner().get_threads()
    runner().set_threads(threads)
    try:
        took = _best(lambda: [program.run(*addresses) for _ in range(times)])
    finally:
        runner().set_threads(before)
    return took / times, sum(p.work for p in program.plan.launches)


def _speed() -> float:
    """Operations in the first level cache, beside those of the machine that `RATES` were taken from."""
    (short, few), (long, many) = (_on(1, _function(2048, steps), 20) for steps in (2, 12))
    return _within((many - few) / (max(long - short, 1e-3) * 1000 * CHAIN), SPEED)


def _bandwidth() -> float:
    """Bytes a nanosecond over more memory than the caches hold."""
    size = 1 << 22
    took, _ = _on(1, _function(size, 1))
    return _within(8 * size / (took * 1000), BANDWIDTH)


def _part() -> float:
    """What a part should take at least: ten times what it costs that a launch is shared by two threads."""
    from graphc.codegen.llvm.runner import runner

    if runner().get_threads() == 1:
        return DEFAULT.part
    tiny, long = _function(16, 1), _function(1 << 14, 1)
    call, whole, shared = (_on(n, f, 20, grain=1)[0] for n, f in ((1, tiny), (1, long), (2, long)))
    return _within(10 * max(shared - call - (whole - call) / 2, 0.0), PART)
