"""Machine code made by several processes at once: LLVM's Python binding has one lock, so threads cannot.

A `Batch` takes texts as they are written and gives their objects in the end. The first processes (worker.py) are started
for the first batch that is worth it; they serve later ones too, and end after a while without work or with this process,
however that ends. This process works as well, on what no other has begun. Where processes cannot be started it does
everything. Objects are the same to the byte wherever they are made.

`GRAPHC_COMPILE_PROCESSES` is the greatest number of processes; by default one fewer than there are CPUs, at most 8.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections import deque
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, cast

from graphc.codegen.llvm import worker
from graphc.codegen.llvm.target import Target
from graphc.codegen.report import current, stage

if TYPE_CHECKING:
    import subprocess

MOST = 8
# A batch of fewer texts is done before a process has started; each process gets about so many.
WORTH, EACH = 6, 4
# Operations of a traced program, calls counted as one, that will be at least `WORTH` kernels.
LARGE = 40
# Texts given to one process at a time: the next is there when it has done one.
AHEAD = 2


def most_processes() -> int:
    """How many processes may help. Raises `ValueError` where GRAPHC_COMPILE_PROCESSES is not a number of processes."""
    text = os.environ.get("GRAPHC_COMPILE_PROCESSES", "")
    if not text:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MOST, count - 1)
    if not (text.isascii() and text.isdigit() and int(text) <= 1024):
        raise ValueError(
            f"GRAPHC_COMPILE_PROCESSES={text}: it is the number of processes that may help to compile, from 0 (none) to 1024; "
            "unset it to use one fewer than there are CPUs"
        )
    return int(text)


class _Job:
    """A text on its way to an object."""

    __slots__ = ("data", "done", "error", "seconds", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.data = b""
        self.error: str | None = None
        self.seconds = 0.0
        self.done = threading.Event()


class _Pool:
    """The processes for one target, a thread for each, and the jobs that nobody has begun."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.changed = threading.Condition()
        self.waiting: deque[_Job] = deque()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.broken = False

    def grow(self, count: int) -> int:
        """Start processes until there are `count`; how many there are."""
        with self.changed:
            while len(self.processes) < count and not self.broken:
                try:
                    process = _start()
                except OSError as error:
                    self._give_up(error)
                    break
                self.processes.append(process)
                threading.Thread(target=self._serve, args=(process,), daemon=True, name="graphc compile").start()
            return len(self.processes)

    def add(self, job: _Job) -> None:
        with self.changed:
            self.waiting.append(job)
            self.changed.notify()

    def take(self, timeout: float = 0.0) -> _Job | None:
        """The job that came first of those nobody has begun; None if there is none for `timeout` seconds."""
        with self.changed:
            if timeout:
                self.changed.wait_for(lambda: self.waiting, timeout)
            return self.waiting.popleft() if self.waiting else None

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """Give jobs to one process and take its answers, until it has had nothing to do for a while."""
        sent: deque[_Job] = deque()
        assert process.stdin is not None and process.stdout is not None
        to, answers = cast(RawIOBase, process.stdin), cast(RawIOBase, process.stdout)
        try:
            worker.write(to, "\0".join((self.target.triple, self.target.cpu, self.target.features)).encode())
            while True:
                # The process ends by itself a little later, if nothing ends it before.
                while len(sent) < AHEAD and (job := self.take(0.0 if sent else worker.IDLE / 2)) is not None:
                    sent.append(job)
                    worker.write(to, job.text.encode())
                if not sent:
                    break
                answer = worker.read(answers)
                if answer is None:
                    raise OSError(f"it ended (exit code {process.wait()}) before it answered")
                job = sent.popleft()
                status, job.seconds = worker.ANSWER.unpack_from(answer)
                data = answer[worker.ANSWER.size :]
                if status:
                    job.error = data.decode()
                else:
                    job.data = data
                job.done.set()
        except (OSError, ValueError) as error:
            self._give_up(error)
        with self.changed:
            if process in self.processes:
                self.processes.remove(process)
        for job in sent:
            job.done.set()  # without an object: whoever waits makes it
        _end(process)

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        import logging

        logging.getLogger("graphc.compile").debug("no other process compiles any more: %s", error)

    def stop(self) -> None:
        """End all processes."""
        import subprocess

        with self.changed:
            processes, self.processes = self.processes, []
            self.broken = True
        for process in processes:
            process.kill()
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                process.wait(1.0)


def _start() -> subprocess.Popen[bytes]:
    import subprocess

    import llvmlite  # type: ignore[import-untyped]

    if not sys.executable:
        raise OSError("the path of Python is not known")
    # Neither the user's site nor environment: the process starts in a quarter of the time, and runs no code but ours.
    command = [sys.executable, "-I", "-S", "-B", worker.__file__, str(Path(llvmlite.__file__).parents[1])]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    # Without buffers, whose locks a fork would copy; in a group of its own, so that Control-C is for this process alone.
    return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=null, process_group=0)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    import subprocess

    _close(process)
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_pools: dict[Target, _Pool] = {}
_lock = threading.Lock()


def _pool(target: Target) -> _Pool:
    with _lock:
        if not _pools:
            atexit.register(stop)
        found = _pools.get(target)
        if found is None:
            found = _pools[target] = _Pool(target)
        return found


def stop() -> None:
    """End all helping processes; the next batch that is worth it starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.stop()


def _after_fork() -> None:
    """A child has none of the threads that serve the processes, and must not hold the pipes that end them."""
    global _lock
    _lock = threading.Lock()
    for pool in _pools.values():
        for process in pool.processes:
            _close(process)
            process.returncode = 0  # not the child's to wait for
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_expected = False


def expect(operations: int) -> None:
    """Start a process for a program of so many operations before it is planned, if all its kernels will have to be compiled:
    the process is ready when the first one is written. Only once, since later programs may find theirs in memory."""
    global _expected
    if _expected or operations < LARGE:
        return
    _expected = True
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target

    if most_processes() and cache.is_new():
        _pool(host_target()).grow(1)


class Batch:
    """Texts to be made objects of. expected: how many there will be; a few are done one after the other."""

    def __init__(self, target: Target, expected: int) -> None:
        self.target = target
        self.jobs: list[_Job] = []
        self.pool: _Pool | None = None
        count = min(most_processes(), expected // EACH) if expected >= WORTH else 0
        if count > 0:
            pool = _pool(target)
            if pool.grow(count):
                self.pool = pool

    def add(self, text: str) -> None:
        job = _Job(text)
        self.jobs.append(job)
        if self.pool is None:
            self._do(job)
        else:
            self.pool.add(job)

    def finish(self) -> list[bytes]:
        """The objects, in the order in which their texts came. Raises `RuntimeError` on text that LLVM refuses."""
        self._help()
        for job in self.jobs:
            with stage("wait"):
                job.done.wait()
            if not job.data and job.error is None:
                self._do(job)  # the process that had it is gone
        report = current()
        if report is not None and self.pool is not None:
            report.processes = max(report.processes, len(self.pool.processes))
            report.away += sum(job.seconds for job in self.jobs)
        for job in self.jobs:
            if job.error is not None:
                raise RuntimeError(job.error)
        return [job.data for job in self.jobs]

    def _help(self) -> None:
        """Do what nobody has begun."""
        while self.pool is not None and (job := self.pool.take()) is not None:
            self._do(job)

    def _do(self, job: _Job) -> None:
        from graphc.codegen.llvm.jit import compile_text

        try:
            job.data = compile_text(job.text, self.target)
        except RuntimeError as error:
            job.error = str(error)
        finally:
            job.done.set()
