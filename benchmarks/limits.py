"""The machine's own limits, measured by kernels that do nothing else.

The kernels are written in the loop language and run by the same runner as compiled programs, on as many
threads: fused multiply-adds between registers for arithmetic; copy and triad for memory.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import time
from collections.abc import Callable

import numpy as np
from graphc.codegen.expr import Expr, const, fma, index, load, var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.jit import compile_text
from graphc.codegen.llvm.jit import load as load_object
from graphc.codegen.llvm.runner import runner
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import Assign, Buffer, Declare, For, Kernel, Stmt, Store, Vector
from graphc.ir.types import F32

LANES = 16
ITEM = 1024
READS = 8  # independent sums of the reading kernel
CHAINS = 12  # independent sums: more than latency times throughput of any core so far
ALIGN = 64
LEAST_BYTES = 1 << 25
PLACES, BEYOND_CACHES = 4, 96 << 20
Thunk = Callable[[], object]


def aligned(elements: int) -> np.ndarray:
    """float32 ones at a multiple of 64 bytes. Memory that was never written to is one page of zeros, read from a cache."""
    raw = np.empty(elements * 4 + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    array = raw[start : start + elements * 4].view(np.float32)
    array[:] = 1
    return array


def _fma_kernel() -> Kernel:
    """y[block] = sums of `n` fused multiply-adds between registers, CHAINS x LANES at a time."""
    x, y = Buffer("x", F32, "in"), Buffer("y", F32, "out")
    item, k, lane = var("item"), var("k"), var("lane")
    sums = [var(f"sum{i}", F32) for i in range(CHAINS)]
    a, b = load(x, lane), load(x, lane + LANES)
    body: list[Stmt] = [Declare(s, const(F32, 0)) for s in sums]
    body.append(For(k, index(0), var("n"), tuple(Assign(s, fma(a, b, s)) for s in sums), index(1)))
    body += [Store(y, (item * CHAINS + i) * LANES + lane, s) for i, s in enumerate(sums)]
    loop = For(item, var("begin"), var("end"), (Vector(lane, LANES, tuple(body)),), index(1))
    return Kernel("limit_fma", (x, y), ("items", "n"), var("items"), var("n"), (loop,))


def _stream_kernel(name: str, inputs: int, stream: bool) -> Kernel:
    """copy: y = x0; triad: y = fma(s, x1, x0); done `passes` times. The parallel extent counts blocks of 1024 elements."""
    xs = [Buffer(f"x{i}", F32, "in") for i in range(inputs)]
    y = Buffer("y", F32, "out")
    item, i, lane = var("item"), var("i"), var("lane")
    at = item * ITEM + i + lane
    value: Expr = load(xs[0], at)
    if inputs == 2:
        value = fma(const(F32, 3.0), load(xs[1], at), value)
    inner = Vector(lane, LANES, (Store(y, at, value, stream),))
    row = For(i, index(0), index(ITEM), (inner,), index(LANES))
    sweep = For(item, var("begin"), var("end"), (row,), index(1))
    loop = For(var("pass"), index(0), var("passes"), (sweep,), index(1))
    return Kernel(name, (*xs, y), ("items", "passes"), var("items"), var("items"), (loop,))


def _read_kernel() -> Kernel:
    """Sums of all elements, READS x LANES at a time, written once a pass: memory that is only read."""
    x, y = Buffer("x", F32, "in"), Buffer("y", F32, "out")
    item, i, lane = var("item"), var("i"), var("lane")
    sums = [var(f"sum{j}", F32) for j in range(READS)]
    add = tuple(Assign(s, s + load(x, item * ITEM + i + j * LANES + lane)) for j, s in enumerate(sums))
    row = For(i, index(0), index(ITEM), add, index(READS * LANES))
    sweep = For(item, var("begin"), var("end"), (row,), index(1))
    loop = For(var("pass"), index(0), var("passes"), (sweep,), index(1))
    body: list[Stmt] = [Declare(s, const(F32, 0)) for s in sums]
    # Each part of the range writes to the block of the result that its first item names.
    body += [loop, *(Store(y, (var("begin") * READS + j) * LANES + lane, s) for j, s in enumerate(sums))]
    whole = (Vector(lane, LANES, tuple(body)),)
    return Kernel("limit_read", (x, y), ("items", "passes"), var("items"), var("items"), whole)


@functools.cache
def _address(name: str) -> int:
    kernels = {
        "limit_read": _read_kernel,
        "limit_fma": _fma_kernel,
        "limit_copy": lambda: _stream_kernel("limit_copy", 1, False),
        "limit_triad": lambda: _stream_kernel("limit_triad", 2, False),
        "limit_copy_stream": lambda: _stream_kernel("limit_copy_stream", 1, True),
        "limit_triad_stream": lambda: _stream_kernel("limit_triad_stream", 2, True),
    }
    target = host_target()
    return load_object(compile_text(emit_kernel(kernels[name](), target), target), name)


def launch(address: int, extent: int, words: list[int]) -> Thunk:
    """A launch of a kernel over [0, extent) on all threads."""
    native = runner()
    arguments = (ctypes.c_int64 * len(words))(*words)
    error = (ctypes.c_int64 * 4)()
    at, error_at, parts = ctypes.addressof(arguments), ctypes.addressof(error), native.get_threads()
    call = native.launch

    def run() -> object:
        call(address, extent, parts, at, error_at)
        return (arguments, error)

    return run


def fma_work(seconds: float = 0.002) -> tuple[Thunk, float]:
    """(a run of the fma kernel of about `seconds` on every thread, its floating point operations)."""
    threads = runner().get_threads()
    items = threads
    x, y = aligned(2 * LANES), aligned(items * CHAINS * LANES)
    x[:] = 0.5

    def make(n: int) -> Thunk:
        run = launch(_address("limit_fma"), items, [x.ctypes.data, y.ctypes.data, items, n])
        return lambda: (run(), x, y)

    n = 1 << 16
    make(n)()
    start = time.perf_counter()
    make(n)()
    n = max(n, int(n * seconds / (time.perf_counter() - start)))
    return make(n), 2.0 * n * CHAINS * LANES * items


def stream_work(nbytes: int, kind: str) -> tuple[Thunk, float]:
    """(a pass of "copy", "triad", "copy_stream" or "triad_stream" over about `nbytes`, its bytes)."""
    inputs = 2 if kind.startswith("triad") else 1
    items = max(runner().get_threads(), nbytes // (4 * ITEM * (inputs + 1)))
    arrays = [aligned(items * ITEM) for _ in range(inputs + 1)]
    # Little memory is passed over many times, so that starting the launch does not count.
    passes = max(1, LEAST_BYTES // nbytes)
    run = launch(_address(f"limit_{kind}"), items, [*(a.ctypes.data for a in arrays), items, passes])
    return (lambda: (run(), arrays)), 4.0 * ITEM * items * (inputs + 1) * passes


def read_work(nbytes: int) -> tuple[Thunk, float]:
    """(a pass over about `nbytes` that only reads, its bytes)."""
    items = max(runner().get_threads(), nbytes // (4 * ITEM))
    x, y = aligned(items * ITEM), aligned(items * READS * LANES)
    passes = max(1, LEAST_BYTES // nbytes)
    run = launch(_address("limit_read"), items, [x.ctypes.data, y.ctypes.data, items, passes])
    return (lambda: (run(), x, y)), 4.0 * ITEM * items * passes


def memory_work(nbytes: int) -> tuple[Thunk, float]:
    """The fastest of the memory kernels over about `nbytes`, by bytes read and written."""
    best: tuple[float, str] | None = None
    for kind in ("copy", "triad", "copy_stream", "triad_stream"):
        run, moved = stream_work(nbytes, kind)
        rate = moved / shortest(run)
        if best is None or rate > best[0]:
            best = (rate, kind)
    assert best is not None
    return _in_turn(lambda: stream_work(nbytes, best[1]), nbytes)


def _in_turn(make: Callable[[], tuple[Thunk, float]], nbytes: int) -> tuple[Thunk, float]:
    """Work whose calls go over several pieces of memory in turn, if no cache holds even one.

    How fast memory is can depend on where it lies: arrays that happen to lie behind different controllers are copied at
    twice the speed. A row's memory has no such luck, or not always.
    """
    made = [make() for _ in range(PLACES if nbytes >= BEYOND_CACHES else 1)]
    runs = itertools.cycle([run for run, _ in made])
    return (lambda: next(runs)()), made[0][1]


def shortest(run: Thunk, seconds: float = 0.05, least: int = 3) -> float:
    """The shortest time of one call among those made in about `seconds`."""
    run()
    start, best, count = time.perf_counter(), float("inf"), 0
    while count < least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
        count += 1
    return best


def fma_peak() -> float:
    """Floating point operations a second, on all threads of the runner."""
    run, work = fma_work()
    return work / shortest(run)


def bandwidth(nbytes: int, reading: bool = False) -> float:
    """Bytes a second, read and written, or only read, by passes over `nbytes` on all threads of the runner."""
    run, moved = read_work(nbytes) if reading else memory_work(nbytes)
    return moved / shortest(run)


def work(limit: str, nbytes: float) -> tuple[Thunk, float]:
    """A run of the limit "fma" (flops), "memory" or "read" (bytes), and how much it does.

    nbytes: the footprint; what fits in a cache, wholly or in part, is limited by that.
    """
    if limit == "fma":
        return fma_work()
    footprint = max(1 << 16, int(nbytes))
    return _in_turn(lambda: read_work(footprint), footprint) if limit == "read" else memory_work(footprint)
