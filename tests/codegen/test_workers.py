"""Machine code made by other processes: the same bytes, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from graphc.codegen import cache
from graphc.codegen.llvm import jit, worker, workers
from graphc.codegen.llvm.target import host_target

COUNT = 12


def texts(count: int = COUNT) -> list[str]:
    head = f'target datalayout = "{host_target().data_layout}"\ntarget triple = "{host_target().triple}"\n'
    body = "define <16 x float> @f{0}(<16 x float> %x) {{\n%y = fmul <16 x float> %x, splat (float {0}.0)\nret <16 x float> %y\n}}\n"
    return [head + body.format(i + 1) for i in range(count)]


@pytest.fixture(autouse=True)
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRAPHC_COMPILE_PROCESSES", "2")
    workers.stop()
    yield
    workers.stop()


def objects(given: list[str]) -> list[bytes]:
    batch = workers.Batch(host_target(), len(given))
    for text in given:
        batch.add(text)
    return batch.finish()


def alone() -> list[bytes]:
    return [jit.compile_text(text) for text in texts()]


def running() -> list[subprocess.Popen[bytes]]:
    return [p for pool in workers._pools.values() for p in pool.processes]


def by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process does nothing as long as there is another."""
    help = workers.Batch._help

    def later(batch: workers.Batch) -> None:
        while running() and not all(job.done.is_set() for job in batch.jobs):
            time.sleep(0.001)
        help(batch)

    monkeypatch.setattr(workers.Batch, "_help", later)


def test_objects_are_the_same_to_the_byte_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone()
    assert objects(texts()) == expected
    by_others(monkeypatch)
    assert objects(texts()) == expected
    assert len(running()) == 2


def test_few_texts_and_no_processes_allowed_are_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert objects(texts(workers.WORTH - 1)) == alone()[: workers.WORTH - 1]
    monkeypatch.setenv("GRAPHC_COMPILE_PROCESSES", "0")
    assert objects(texts()) == alone()
    assert running() == []


@pytest.mark.parametrize("text", ["-1", "many", "1.5", "1025", "²"])
def test_a_number_of_processes_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_COMPILE_PROCESSES", text)
    with pytest.raises(ValueError, match=f"GRAPHC_COMPILE_PROCESSES={text}: it is the number of processes .* unset it"):
        objects(texts())


def test_text_that_llvm_refuses_is_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    by_others(monkeypatch)
    with pytest.raises(RuntimeError, match="LLVM refused generated code"):
        objects([*texts(), "define void @f( {"])
    assert objects(texts()) == alone()
    assert len(running()) == 2


def test_a_process_that_is_killed_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    by_others(monkeypatch)
    expected = alone()
    assert objects(texts()) == expected
    for process in running():
        process.kill()
    assert objects(texts()) == expected


def test_processes_that_cannot_start_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert objects(texts()) == alone()
    assert running() == []


def test_a_process_that_dies_at_once_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "__file__", "/nowhere/worker.py")
    by_others(monkeypatch)
    assert objects(texts()) == alone()


@pytest.mark.parametrize("new, operations, count", [(True, workers.LARGE, 1), (True, 5, 0), (False, workers.LARGE, 0)])
def test_a_process_starts_early_where_everything_will_be_compiled(
    new: bool, operations: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_expected", False)
    monkeypatch.setattr(cache, "is_new", lambda: new)
    workers.expect(operations)
    assert len(running()) == count
    workers.stop()
    workers.expect(operations)  # a later program
    assert running() == []


PROGRAM = """
import os, sys
from graphc.codegen.llvm import workers
from tests.codegen.test_workers import objects, running, texts
objects(texts())
print(*(p.pid for p in running()), flush=True)
"""


def started(code: str) -> subprocess.Popen[str]:
    """A process that runs PROGRAM, then `code`."""
    told = {**os.environ, "GRAPHC_COMPILE_PROCESSES": "2"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=told
    )


def gone(pid: int) -> bool:
    """Whether a process has ended, or does soon; one that waits to be asked how counts as ended."""
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks /proc for processes")
@pytest.mark.parametrize("code", ["", "os._exit(0)", "input()", "if not os.fork(): input()"])
def test_no_process_is_left_behind(code: str) -> None:
    """After a normal end, an abrupt one, a kill, and the end of a parent whose forked child lives on."""
    with started(code) as process:
        assert process.stdout is not None
        pids = [int(p) for p in process.stdout.readline().split()]
        assert pids
        if code == "input()":
            process.send_signal(signal.SIGKILL)
        assert all(map(gone, pids))


def test_a_forked_child_compiles_with_processes_of_its_own() -> None:
    code = """
child = os.fork()
if not child:
    objects(texts())
    own = {p.pid for p in running()}
    print(*own, flush=True)
    sys.exit(0)
os.waitpid(child, 0)
objects(texts())
print(*(p.pid for p in running()), flush=True)
"""
    with started(code) as process:
        out, _ = process.communicate(timeout=60)
    before, childs, after = ([*map(int, line.split())] for line in out.splitlines())
    assert len(childs) == 2 and not {*childs} & {*before}
    assert {*after} == {*before}
