"""The native thread pool and table runner."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from graphc.codegen.costs import DEFAULT
from graphc.codegen.expr import binary, bitcast, index, load, var
from graphc.codegen.items import Table, make_items
from graphc.codegen.kernels import Launch, Site
from graphc.codegen.llvm import jit
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.runner import CROWD, MOST_THREADS, Runner, runner, runner_text
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.loops import Buffer, For, Kernel, Report, Store
from graphc.codegen.plan import Plan, PlannedLaunch
from graphc.ir.types import F64, I64

_numbers = itertools.count()
X, OUT = Buffer("x", I64, "in"), Buffer("out", I64, "out")
BAD = -1000


def address_of(value, name=None):
    """A kernel out[i] = value(x[i]) that reports what is equal to BAD."""
    i = var("i")
    x = load(X, i)
    body = (Report(binary("eq", x, index(BAD)), 3, i), Store(OUT, i, value(x)))
    name = name or f"runner_test_{next(_numbers)}"
    k = Kernel(name, (X, OUT), (), var("end"), var("end"), (For(i, var("begin"), var("end"), body, index(1)),))
    return jit.load(jit.compile_text(emit_kernel(k, host_target())), name)


@pytest.fixture(scope="module")
def increment():
    return address_of(lambda x: x + 1)


@pytest.fixture(scope="module")
def double():
    return address_of(lambda x: x * 2)


@contextlib.contextmanager
def threads_of(count, limit=MOST_THREADS):
    """Within, programs run on so many threads, however few cores there are."""
    found, before = runner(), runner().get_threads()
    found.set_limit(limit)
    found.set_threads(count)
    try:
        yield found
    finally:
        found.set_limit(max(CROWD, len(os.sched_getaffinity(0))))
        found.set_threads(before)


@pytest.fixture
def pool():
    with threads_of(runner().get_threads()) as found:
        yield found


def planned(kernel, extent, places, reads=(), writes=(), work=1 << 20, sites=(), in_place=False):
    """A launch of a kernel: its buffers' places, the memory that it touches."""
    launch = Launch("kernel", (), (), "", "", kernel)
    return PlannedLaunch(launch, tuple(places), (), extent, work, "", None, sites, tuple(reads), tuple(writes), in_place)


class Program:
    """Launches as a program, in items of their own. Places are ("in", number of a pointer) or ("arena", address)."""

    def __init__(self, launches, pointers=0, grain=1):
        plan = Plan(None, tuple(launches), 0)
        self.items = make_items(plan, DEFAULT, grain)
        self.table = Table(plan, self.items, lambda p: (p[1], 0) if p[0] == "in" else (None, p[1]), pointers, runner().forget)
        self.pointers = self.table.pointers

    def run(self):
        return runner().run_program(self.table.address)


class Work(Program):
    """x -> x+1 -> 2(x+1) -> 2(x+1)+1, with addresses that are patched in."""

    def __init__(self, increment, double, size=1000, parts=1 << 20):
        self.x = np.arange(size)
        self.a, self.b, self.out = (np.zeros(size, np.int64) for _ in range(3))
        arrays = (self.x, self.a, self.b, self.out)
        steps = [(increment, 0, 1), (double, 1, 2), (increment, 2, 3)]
        super().__init__(
            [
                planned(k, size, [("in", s), ("in", t)], [(s, 0, 8 * size)], [(t, 0, 8 * size)], work=parts)
                for k, s, t in steps
            ],
            len(arrays),
        )
        self.pointers[:] = [v.ctypes.data for v in arrays]

    def right(self):
        return (self.out == (self.x + 1) * 2 + 1).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 5, 1 << 20])
def test_every_element_once(pool, increment, double, threads, parts):
    pool.set_threads(threads)
    for size in (0, 1, 2, 7, 1000):
        work = Work(increment, double, size, parts)
        for _ in range(3):
            work.out[:] = 0
            assert work.run() == 0
            assert work.right()


def test_workers_start_when_needed(increment, double):
    code = """
import sys
from tests.codegen.test_runner import *
r = runner()
r.set_limit(4)
r.set_threads(4)
a = address_of(lambda x: x + 1)
x, out, error = np.arange(100), np.zeros(100, np.int64), np.zeros(3, np.int64)
args = np.array([x.ctypes.data, out.ctypes.data])
assert r.workers() == 0
r.launch(a, 100, 1, args.ctypes.data, error.ctypes.data)
assert r.workers() == 0
r.launch(a, 100, 3, args.ctypes.data, error.ctypes.data)
assert r.workers() == 2
assert r.stop() and r.workers() == 0
r.launch(a, 100, 9, args.ctypes.data, error.ctypes.data)
assert r.workers() == 3 and (out == x + 1).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd(), timeout=60)


def test_patches_add_offsets(pool, increment):
    x, out = np.arange(10), np.zeros(20, np.int64)
    places = {("in", 0): (0, 0), ("out", 0): (1, 80)}
    plan = Plan(None, (planned(increment, 10, places),), 0)
    table = Table(plan, make_items(plan, DEFAULT, 1), places.__getitem__, 2, pool.forget)
    table.pointers[:] = x.ctypes.data, out.ctypes.data
    assert pool.run_program_short(table.address) == 0
    assert (out[10:] == x + 1).all() and (out[:10] == 0).all()


def test_pointers_may_change_from_run_to_run(pool, increment, double):
    """Only words whose pointer is another one are patched."""
    work = Work(increment, double)
    others = [np.zeros(1000, np.int64) for _ in range(3)]
    for k in (3, 3, 0, 1, 2, 0, 2, 1, 3):
        work.out = others[k] if k < 3 else np.zeros(1000, np.int64)
        work.out[:] = 0
        work.pointers[3] = work.out.ctypes.data
        work.x = np.arange(k, 1000 + k)
        work.pointers[0] = work.x.ctypes.data
        assert work.run() == 0
        assert work.right()


def test_direct_pointers(pool, increment, double):
    work = Work(increment, double)
    addresses = work.pointers.tolist()
    work.pointers[:] = 0
    assert pool.with_pointers[4](work.table.address, *addresses) == 0
    assert work.right()
    work.out[:] = 0
    assert pool.with_pointers_short[1](work.table.address, addresses[0]) == 0
    assert work.right()


@pytest.mark.parametrize("parts", [1, 1 << 20])
def test_an_error_stops_the_run(pool, increment, double, parts):
    pool.set_threads(4)
    work = Work(increment, double, parts=parts)
    work.x[617] = BAD - 1  # the first launch makes BAD of it, the second reads it
    for _ in range(3):
        assert work.run() == 1
        assert work.table.failed() == (1, 3, 617)
        assert (work.out == 0).all()
        assert work.b[617] == 2 * BAD
    work.x[617] = 617
    assert work.run() == 0 and work.table.failed() is None and work.right()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_first_of_several_errors_is_the_one(pool, increment, threads):
    """Whichever launch comes to its error first: one is long, the other short, and they do not depend on each other."""
    pool.set_threads(threads)
    long, short = np.zeros(200_000, np.int64), np.zeros(10, np.int64)
    outs = [np.zeros_like(long), np.zeros_like(short), np.zeros_like(short)]
    long[-1] = short[3] = BAD
    launches = [
        planned(increment, len(x), [("arena", x.ctypes.data), ("arena", o.ctypes.data)], [(i, 0, 8)], [(10 + i, 0, 8)])
        for i, (x, o) in enumerate(zip((long, short, short), outs, strict=True))
    ]
    # The last one writes in place, after all that may fail.
    launches[2] = replace(launches[2], in_place=True)
    launches[:2] = [replace(p, sites=(Site("gather", None, 0, 7),)) for p in launches[:2]]
    program = Program(launches)
    assert program.items.items[2].needs == (1, 0)
    for _ in range(20):
        assert program.run() == 1
        assert program.table.failed() == (0, 3, 199_999)
        assert (outs[2] == 0).all()


def test_launch(pool, increment):
    x, out, error = np.arange(100), np.zeros(100, np.int64), np.zeros(3, np.int64)
    x[5] = BAD
    args = np.array([x.ctypes.data, out.ctypes.data])
    assert pool.launch(increment, 100, 2, args.ctypes.data, error.ctypes.data) == 1
    assert error.tolist() == [3, 5, 0]


def test_many_python_threads_at_once(pool, increment, double):
    """One of them has the pool; the others work alone, with the same result."""
    pool.set_threads(3)
    works = [Work(increment, double, 5000, 3) for _ in range(6)]
    wrong = []

    def go(work):
        for _ in range(200):
            work.out[:] = 0
            if work.run() or not work.right():
                wrong.append(work)

    threads = [threading.Thread(target=go, args=(w,)) for w in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_sleeping_workers_wake_up(pool, increment, double):
    import time

    pool.set_threads(3)
    work = Work(increment, double, 3000, 3)
    for pause in (0.0, 0.00003, 0.0001, 0.002) * 20:
        time.sleep(pause)
        work.out[:] = 0
        assert work.run() == 0
        assert work.right()


def test_child_of_a_fork_has_its_own_pool(pool, increment, double):
    pool.set_threads(3)
    work = Work(increment, double)
    work.run()
    child = os.fork()
    if child == 0:
        good = pool.workers() == 0
        for _ in range(50):
            work.out[:] = 0
            work.run()
            good = good and work.right()
        os._exit(0 if good and pool.workers() == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert work.run() == 0


def test_exit_with_busy_workers_is_clean():
    code = """
from tests.codegen.test_runner import *
r = runner()
r.set_limit(4)
r.set_threads(4)
w = Work(address_of(lambda x: x + 1), address_of(lambda x: x * 2), 100000)
def go():
    while True:
        w.run()
threading.Thread(target=go, daemon=True).start()
for _ in range(20):
    w.run()
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), timeout=60, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_set_threads(pool):
    pool.set_threads(5)
    assert pool.get_threads() == 5
    pool.set_threads(10**6)
    assert pool.get_threads() == MOST_THREADS
    with pytest.raises(ValueError, match="0 threads: .* at least one thread, the one that calls it; use 1 or more"):
        pool.set_threads(0)


def test_default_is_the_cores_this_process_may_use():
    code = "from graphc.codegen.llvm.runner import runner; print(runner().get_threads())"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(got.stdout) == len(os.sched_getaffinity(0))


# architecture -> (to write and to read the float control register, the usual mode, flush to zero, the bits compared)
_MODES = {
    "x86_64": (
        "call void @llvm.x86.sse.ldmxcsr(ptr %p)",
        "call void @llvm.x86.sse.stmxcsr(ptr %p)",
        (0x1F80, 0x9FC0, 0xFFC0),
    ),
    "aarch64": (
        "%v = load i64, ptr %p\n call void @llvm.aarch64.set.fpcr(i64 %v)",
        "%v = call i64 @llvm.aarch64.get.fpcr()\n store i64 %v, ptr %p",
        (0, 1 << 24, 1 << 24),
    ),
}


def test_kernels_keep_subnormals_whatever_the_callers_mode(pool):
    """A library that sets flush-to-zero in the calling thread does not change results; the mode is put back."""
    halve = address_of(lambda x: bitcast(bitcast(x, F64) * 0.5, I64))
    target = host_target()
    write, read, (usual, flushing, bits) = _MODES[target.architecture]
    text = (
        f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n'
        f"define void @set_mode(ptr %p) {{\n {write}\n ret void\n}}\n"
        f"define void @get_mode(ptr %p) {{\n {read}\n ret void\n}}\n"
    )
    found = jit.load_all(jit.compile_text(text), ("set_mode", "get_mode"))
    mode = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    set_mode, get_mode = mode(found["set_mode"]), mode(found["get_mode"])
    x = np.full(64, np.finfo(np.float64).tiny).view(np.int64)
    out, error, word = np.zeros(64, np.int64), np.zeros(3, np.int64), np.zeros(1, np.int64)
    args = np.array([x.ctypes.data, out.ctypes.data])
    for parts in (1, 4):
        pool.set_threads(4)
        pool.stop()
        out[:] = 0
        word[0] = flushing
        set_mode(word.ctypes.data)
        pool.launch(halve, 64, parts, args.ctypes.data, error.ctypes.data)
        get_mode(word.ctypes.data)
        seen, word[0] = int(word[0]), usual
        set_mode(word.ctypes.data)
        assert seen & bits == flushing & bits
        assert (out.view(np.float64) == 2.0**-1023).all()


def test_runner_is_made_for_other_machines_too():
    for triple in ("aarch64-unknown-linux-gnu", "arm64-apple-darwin", "x86_64-apple-darwin"):
        target = make_target(triple=triple)
        assert "graphc_run_program" in jit.assembly(runner_text(target), target)
    target = make_target(triple="x86_64-pc-windows-msvc")
    with pytest.raises(RuntimeError, match="Linux and macOS"):
        runner_text(target)


def test_one_runner_in_a_process():
    assert runner() is runner()
    assert isinstance(runner(), Runner)


def test_many_more_threads_than_cores(increment):
    """Asked for they are all the same, but no more take part than the cores have use for."""
    code = """
import sys
from tests.codegen.test_runner import *
r = runner()
r.set_threads(64)
a = address_of(lambda x: x + 1)
x, out, error = np.arange(1000), np.zeros(1000, np.int64), np.zeros(3, np.int64)
args = np.array([x.ctypes.data, out.ctypes.data])
for _ in range(100):
    r.launch(a, 1000, 64, args.ctypes.data, error.ctypes.data)
assert r.get_threads() == 64 and (out == x + 1).all()
assert r.workers() + 1 == min(64, max(CROWD, len(os.sched_getaffinity(0))))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd(), timeout=60)


def test_sleeping_and_entering_are_ordered_on_every_machine():
    """Where a thread writes one word and then reads another's, both must be sequentially consistent: ARM reorders them else."""
    functions = dict(re.findall(r"^define .*?@(\w+)\(.*?\{\n(.*?)^\}", runner_text(host_target()), re.M | re.S))
    order = {"sleepers": ("worker", "walk"), "open": ("worker", "together"), "slot": ("worker",), "p": ("quiesce",)}
    for word, places in order.items():
        for place in places:
            found = [line for line in functions[place].splitlines() if re.search(rf"atomic.* ptr [@%]{word}\b", line)]
            kept = [line for line in found if " seq_cst" in line]
            # A slot is left with a release.
            assert kept and all("store atomic i64 0, ptr %slot release" in line for line in found if line not in kept)
    assert "atomicrmw add ptr @ticket, i64 1 seq_cst" in functions["together"]
