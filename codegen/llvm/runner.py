"""The native thread pool and program runner (runner.ll), compiled at first use and called through ctypes.

One call of `run_program` runs a whole program. Results do not depend on the number of threads: a
launch's parallel range is cut into contiguous parts, and kernels compute the same bits however it is cut.

A program is a list of items: launches that run one after the other. Threads walk the list and take parts of items whose
dependences are complete, so that items that do not depend on each other overlap, and no thread waits for the others
after every launch. An item of one launch may have several parts; which thread runs a part is decided at run time.

Words of a program (int64): 0 items, 1 number of items, 3 threads that parts are made for, 4 threads of use at most, 9 words of
parts, 10 number of these, 11 pointers, 12 pointers of the last run, 13 number of pointers, 14 first patch of each pointer
(and the end), 15 patches {address of the word, offset}; 16 epoch, 17 progress, 18 item that failed, 19 threads of this run.
Words of an item: 0 launches {kernel, extent, arguments, error}, 1 number of launches, 2 extent, 3 parts that it is worth,
4 parts, 5 addresses of the state of the items it depends on, 6 number of these, 7 its state {parts done, complete, bits of
parts, ..}, where bits follow every 8 words, 8 threads of use from here on. After the last item comes one without launches,
which depends on all. `ItemTable` in table.py makes these.

A second Python thread that comes while the pool is at work runs its program alone, with the same bits. Kernels
run in the IEEE default mode (to nearest, subnormals kept) whatever mode the calling thread is in.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

from graphc.codegen.forks import free_in_child
from graphc.codegen.llvm.target import Target, host_target

MOST_THREADS = 1024
# How long a worker spins before it sleeps: between programs, and within one.
SPIN_NANOSECONDS = 40_000
PATIENCE_NANOSECONDS = 100_000
# Threads that take part in a program where they are asked for, even on a single core.
CROWD = 2
# A thread looks so many items ahead of the first that is not taken.
WINDOW = 24
# Parts for each thread where a launch is long enough.
FINER = 4
STACK_BYTES = 8 << 20
_SINGLE_WORDS = 8 * (MOST_THREADS // 32 + 1)
# `with_pointers` has this many entries.
MOST_DIRECT = 8

_X86_MODE = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
; Bits 6 to 15 of MXCSR: exception masks, rounding, flush and denormals-are-zero. Gives the mode to go back to.
define internal i64 @float_enter() {
entry:
  %p = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %old = load i32, ptr %p, align 4
  %control = and i32 %old, 65472
  %usual = icmp eq i32 %control, 8064
  br i1 %usual, label %end, label %set
set:
  store i32 8064, ptr %p, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  br label %end
end:
  %mode = zext i32 %old to i64
  ret i64 %mode
}
define internal void @float_leave(i64 %mode) {
entry:
  %p = alloca i32, align 4
  %old = trunc i64 %mode to i32
  %control = and i32 %old, 65472
  %usual = icmp eq i32 %control, 8064
  br i1 %usual, label %end, label %set
set:
  store i32 %old, ptr %p, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  br label %end
end:
  ret void
}
"""
_ARM_MODE = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
; FPCR 0 is the IEEE default mode. Gives the mode to go back to.
define internal i64 @float_enter() {
entry:
  %old = call i64 @llvm.aarch64.get.fpcr()
  %usual = icmp eq i64 %old, 0
  br i1 %usual, label %end, label %set
set:
  call void @llvm.aarch64.set.fpcr(i64 0)
  br label %end
end:
  ret i64 %old
}
define internal void @float_leave(i64 %mode) {
entry:
  %usual = icmp eq i64 %mode, 0
  br i1 %usual, label %end, label %set
set:
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  br label %end
end:
  ret void
}
"""
_MACHINES = {
    "x86_64": {"pause": "call void @llvm.x86.sse2.pause()", "float_mode": _X86_MODE},
    "aarch64": {"pause": "call void @llvm.aarch64.hint(i32 1)", "float_mode": _ARM_MODE},
}
# CLOCK_MONOTONIC and SIG_SETMASK as the system's headers define them.
_SYSTEMS = {"linux": {"clock": "1", "setmask": "2"}, "darwin": {"clock": "6", "setmask": "3"}}


def float_mode(target: Target) -> str:
    """LLVM text of `i64 @float_enter()` and `void @float_leave(i64)`: into the IEEE default mode, and back."""
    return _MACHINES[target.architecture]["float_mode"]


def runner_text(target: Target) -> str:
    """The LLVM module of the runner for a target. Raises `RuntimeError` on a system without POSIX threads."""
    system = next((v for k, v in _SYSTEMS.items() if k in target.triple), None)
    if system is None:
        raise RuntimeError(
            f"graphc runs programs on Linux and macOS, not on {target.triple}; use one of these (or WSL on Windows)"
        )
    words = {
        **system,
        **_MACHINES[target.architecture],
        "most": str(MOST_THREADS),
        "spin": str(SPIN_NANOSECONDS),
        "patience": str(PATIENCE_NANOSECONDS),
        "window": str(WINDOW),
        "finer": str(FINER),
        "single_words": str(_SINGLE_WORDS),
        "single_bytes": str(8 * _SINGLE_WORDS),
        "slots_bytes": str(64 * MOST_THREADS),
        "stack": str(STACK_BYTES),
    }
    body = Path(__file__).with_name("runner.ll").read_text(encoding="utf-8") % words
    head = f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n'
    return head + body + "".join(map(_with_text, range(1, MOST_DIRECT + 1)))


def _with_text(count: int) -> str:
    """`run_program` with the first `count` pointers given directly."""
    lines = [f"define i64 @graphc_with_{count}(ptr %program{''.join(f', i64 %a{i}' for i in range(count))}) {{"]
    lines += ["%slot = getelementptr i64, ptr %program, i64 11", "%pointers = load ptr, ptr %slot, align 8"]
    for i in range(count):
        lines += [f"%p{i} = getelementptr i64, ptr %pointers, i64 {i}", f"store i64 %a{i}, ptr %p{i}, align 8"]
    return "\n".join([*lines, "%r = call i64 @graphc_run_program(ptr %program)", "ret i64 %r", "}", ""])


# function -> number of arguments, all of them integers of 64 bits.
_FUNCTIONS = {
    **{f"with_{count}": count + 1 for count in range(1, MOST_DIRECT + 1)},
    "run_program": 1,
    "forget": 1,
    "launch": 5,
    "run": 3,
    "get_threads": 0,
    "set_threads": 1,
    "set_limit": 1,
    "workers": 0,
    "missing": 0,
    "reset": 0,
    "stop": 0,
}
Call = Callable[..., int]


class Runner:
    """The entry points as ctypes functions of plain integers (addresses and counts), each giving an integer.

    run_program(program): a program by its words; gives 1 after an error, 2 more if threads could not be started (`complain`).
    with_pointers[k](program, p0, .., pk-1): first pointers[i] = p_i, then run_program: the cheapest way to run a
    program of few inputs and outputs.
    forget(program): before a program's memory goes.
    launch(kernel, extent, parts, args, error): one launch; run(table, launches, error): launches {kernel address, extent,
    parts, launch id, number of arguments, arguments...} one after the other, each in at most so many parts as there are
    threads. An error is {site, value, launch id}; a run stops after the launch that reported one and gives 1.
    Those named `_short` hold Python's lock while they run: nothing can come between, and it is cheaper.
    """

    launch: Call
    run: Call
    run_program: Call
    forget: Call
    launch_short: Call
    run_short: Call
    run_program_short: Call
    forget_short: Call
    with_pointers: tuple[Call, ...]
    with_pointers_short: tuple[Call, ...]

    def __init__(self) -> None:
        threads = default_threads()
        addresses = _addresses()
        self._functions: dict[str, Call] = {}
        for name, arguments in _FUNCTIONS.items():
            # The conversion of an integer to void* costs half of that to int64.
            types = [ctypes.c_void_p] * arguments
            self._functions[name] = ctypes.CFUNCTYPE(ctypes.c_int64, *types)(addresses[f"graphc_{name}"])
            self._functions[f"{name}_short"] = ctypes.PYFUNCTYPE(ctypes.c_int64, *types)(addresses[f"graphc_{name}"])
        for name in ("launch", "run", "run_program", "forget"):
            setattr(self, name, self._functions[name])
            setattr(self, f"{name}_short", self._functions[f"{name}_short"])
        numbers = range(1, MOST_DIRECT + 1)
        self.with_pointers = (self.run_program, *(self._functions[f"with_{k}"] for k in numbers))
        self.with_pointers_short = (self.run_program_short, *(self._functions[f"with_{k}_short"] for k in numbers))
        self._functions["reset"]()
        self.set_limit(max(CROWD, _cores()))
        self.set_threads(threads)
        os.register_at_fork(after_in_child=self._functions["reset_short"])
        # No worker is left in native code when the interpreter takes itself apart.
        atexit.register(self.stop)

    def set_threads(self, count: int) -> None:
        """Use at most `count` threads for a launch, the calling one among them. Raises `ValueError` below 1."""
        if count < 1:
            raise ValueError(f"{count} threads: a program runs on at least one thread, the one that calls it; use 1 or more")
        self._functions["set_threads"](count)

    def set_limit(self, count: int) -> None:
        """Let at most `count` threads take part in a program, however many are asked for: where there are more than cores,
        those that wait keep those that work from running."""
        self._functions["set_limit"](count)

    def get_threads(self) -> int:
        """How many threads a launch may use."""
        return self._functions["get_threads"]()

    def workers(self) -> int:
        """How many threads beside the callers' exist now; they are started by the first launch that needs them."""
        return self._functions["workers"]()

    def stop(self) -> bool:
        """End all workers (a later launch starts new ones); False where a program is running."""
        return bool(self._functions["stop"]())


    def complain(self) -> None:
        """Warn, once, that the system gave fewer threads than asked for."""
        missing = self._functions["missing"]()
        if missing:
            import warnings

            warnings.warn(
                f"the system did not start {missing} of {self.get_threads() - 1} threads beside the calling one; programs run on "
                f"{self.workers() + 1}, with the same results. Raise the limit on processes (ulimit -u, the container's pids limit) "
                "or ask for fewer threads with GRAPHC_THREADS or graphc.set_num_threads",
                RuntimeWarning,
                stacklevel=3,
            )


def default_threads() -> int:
    """What GRAPHC_THREADS says, else the cores that this process may use. Raises `ValueError` for what is no number of threads."""
    text = os.environ.get("GRAPHC_THREADS", "").strip()
    if text:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ValueError(
                f"GRAPHC_THREADS={text}: it must be a whole number of threads, 1 or more, such as GRAPHC_THREADS=2; "
                "unset it to use all cores"
            )
        return int(text)
    return _cores()


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def _addresses() -> dict[str, int]:
    from graphc.codegen import cache
    from graphc.codegen.llvm.jit import compile_text, load_all

    target = host_target()
    text = runner_text(target)
    key = cache.key(text, target.key())
    data = cache.get(key)
    if data is None:
        data = compile_text(text, target)
        cache.put(key, data)
    return load_all(data, tuple(f"graphc_{name}" for name in _FUNCTIONS), process_symbols=True)


_lock = free_in_child(threading.Lock())
_runner: list[Runner] = []


def runner() -> Runner:
    """The runner of this process."""
    if not _runner:
        with _lock:
            if not _runner:
                _runner.append(Runner())
    return _runner[0]
