"""The number of threads: set and read, and of no influence on a result."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import graphc as gc
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_num_threads()
    yield
    gc.set_num_threads(before)


def test_results_are_equal_to_the_bit_on_any_number_of_threads() -> None:
    x = gc.asarray(np.random.default_rng(0).standard_normal((300, 257)).astype(np.float32))
    results = []
    for count in (1, 2, 5):
        gc.set_num_threads(count)
        assert gc.get_num_threads() == count
        results.append([(x @ x.T).numpy(), gc.nn.functional.softmax(x).numpy(), gc.sum(x).numpy()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_errors() -> None:
    for count in (0, -3):
        message = f"{count} threads: a program runs on at least one thread, the one that calls it; use 1 or more"
        with pytest.raises(ValueError, match=message):
            gc.set_num_threads(count)
    with pytest.raises(TypeError, match="set_num_threads needs an integer, not float"):
        gc.set_num_threads(2.0)  # type: ignore[arg-type]


# --------------------------------------------------------------- the environment


def child(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("text", ["0", "-1", "abc", "1.5", "2 threads"])
def test_a_number_of_threads_that_is_none(text: str) -> None:
    done = child("import graphc as gc; print(gc.ones((3,)) + 1)", GRAPHC_THREADS=text)
    assert done.returncode == 1
    message = (
        f"GRAPHC_THREADS={text}: it must be a whole number of threads, 1 or more, such as GRAPHC_THREADS=2; "
        "unset it to use all cores"
    )
    assert f"ValueError: add(f32[3], int): {message}" in done.stderr


@pytest.mark.parametrize("text, count", [("4", 4), (" 3 ", 3), ("", len(os.sched_getaffinity(0)))])
def test_the_number_of_threads_from_the_environment(text: str, count: int) -> None:
    done = child("import graphc as gc; print(gc.get_num_threads())", GRAPHC_THREADS=text)
    assert done.stdout.split() == [str(count)], done.stderr


# --------------------------------------------------------------- threads that the system does not give

_STUBBED = """
import sys, warnings
import numpy as np
from graphc.codegen.llvm import runner as runners

# In the place of pthread_create: the first calls start a thread, the others fail with EAGAIN.
STUB = '''
declare i32 @"\\01pthread_create"(ptr, ptr, ptr, ptr)
@calls = internal global i64 0
define internal i32 @some(ptr %a, ptr %b, ptr %c, ptr %d) {
  %n = load i64, ptr @calls
  %n1 = add i64 %n, 1
  store i64 %n1, ptr @calls
  %more = icmp ult i64 %n, ALLOWED
  br i1 %more, label %real, label %fail
real:
  %r = call i32 @"\\01pthread_create"(ptr %a, ptr %b, ptr %c, ptr %d)
  ret i32 %r
fail:
  ret i32 11
}
'''.replace("ALLOWED", sys.argv[1])
original = runners.runner_text
declared = "declare i32 @pthread_create(ptr, ptr, ptr, ptr)"
runners.runner_text = lambda target: original(target).replace(declared, STUB).replace("@pthread_create(", "@some(")
import graphc as gc

runners.runner().set_limit(4)  # however few cores there are
gc.set_num_threads(4)
x = gc.asarray(np.arange(1_000_000, dtype=np.float32))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = gc.exp(x * 1e-6)
print(len(caught), caught[0].category.__name__)
print(caught[0].message)
print(runners.runner().workers())
gc.set_num_threads(1)
assert (gc.exp(x * 1e-6).numpy() == y.numpy()).all()
"""


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_pool_that_cannot_start(allowed: int) -> None:
    """Programs run on the threads there are, with the same results, and say so once."""
    done = child(_STUBBED, str(allowed))
    assert done.returncode == 0, done.stderr
    category, message, workers = done.stdout.splitlines()
    assert category == "1 RuntimeWarning" and workers == str(allowed)
    assert message == (
        f"the system did not start {3 - allowed} of 3 threads beside the calling one; programs run on {1 + allowed}, with the "
        "same results. Raise the limit on processes (ulimit -u, the container's pids limit) or ask for fewer threads with "
        "GRAPHC_THREADS or graphc.set_num_threads"
    )


def _at_once(*work: Callable[[], None]) -> None:
    """Run functions in threads that change places as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=f) for f in work]
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_error_is_raised_in_the_thread_that_made_it(compiled: bool) -> None:
    def take(x: gc.Tensor, index: gc.Tensor) -> gc.Tensor:
        return x[index]

    f = gc.compile(take) if compiled else take
    x = gc.tensor(np.arange(8.0))
    good, bad = gc.tensor(np.array([1, 2, 3])), gc.tensor(np.array([1, 99, 3]))
    f(x, good)
    wrong: list[str] = []

    def fine() -> None:
        for _ in range(4000):
            try:
                f(x, good)
            except IndexError as error:
                wrong.append(str(error))

    def fails() -> None:
        for _ in range(4000):
            with contextlib.suppress(IndexError):
                wrong.append(str(f(x, bad).tolist()))

    _at_once(fine, fails)
    assert not wrong


@pytest.mark.parametrize("compiled", [False, True])
def test_memory_stays_while_a_program_reads_it(compiled: bool) -> None:
    ones = np.ones(1_000_000, np.float32)
    x = gc.tensor(ones)

    def read() -> gc.Tensor:
        return gc.tanh(x)

    f = gc.compile(read) if compiled else read
    expected = f().numpy()[0]
    f()
    seen: set[float] = set()
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            x.copy_(gc.tensor(ones))
            gc.tensor(ones * 3)  # takes the memory that became free

    def look() -> None:
        try:
            for _ in range(40):
                seen.update(np.unique(f().numpy()).tolist())
        finally:
            done.set()

    _at_once(change, look)
    assert seen == {expected}


FORKS = """
import os, threading, time
import graphc as gc
import numpy as np

gc.set_num_threads(2)
x = gc.tensor(np.random.default_rng(0).random((500, 500), np.float32))
f = gc.compile(lambda x: gc.exp(x @ x / 600) @ x)
expected = f(x).numpy().tobytes()
done = threading.Event()

def work():
    while not done.is_set():
        f(x)

thread = threading.Thread(target=work)
thread.start()
for _ in range(5):
    time.sleep(0.005)
    child = os.fork()
    if not child:
        os._exit(f(x).numpy().tobytes() != expected)
    end = time.time() + 20
    while not (found := os.waitpid(child, os.WNOHANG))[0] and time.time() < end:
        time.sleep(0.005)
    if not found[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
        print("hangs")
        break
    print(found[1])
done.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_of_a_fork_during_a_run() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout.split(), done.returncode) == (["0"] * 5, 0), done.stderr


FORKS_WHILE_COMPILING = """
import os, threading, time
os.environ["GRAPHC_CACHE"] = "0"
import graphc as gc

def fresh(number):
    f = gc.compile(lambda x: gc.tanh(gc.exp(x * (number / 7)) + number) * (number / 3))
    assert f(gc.zeros((3,))).shape == (3,)

fresh(0)
done = threading.Event()

def work(first):
    while not done.is_set():
        first += 1
        fresh(first)

threads = [threading.Thread(target=work, args=(n * 10**6,)) for n in (1, 2)]
for t in threads:
    t.start()
for n in range(12):
    time.sleep(0.003 * n)
    child = os.fork()
    if not child:
        fresh(-n - 1)
        os._exit(0)
    end = time.time() + 20
    while not (found := os.waitpid(child, os.WNOHANG))[0] and time.time() < end:
        time.sleep(0.005)
    if not found[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
        print("hangs")
        break
    print(found[1])
done.set()
for t in threads:
    t.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_of_a_fork_while_other_threads_compile() -> None:
    """LLVM and what is written for it are at rest where the process forks, or free in the child."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS_WHILE_COMPILING], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout.split(), done.returncode) == (["0"] * 12, 0), done.stderr


def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    text = """
import os, threading
from graphc.codegen.forks import free_in_child

lock = free_in_child(threading.RLock())
held, end = threading.Event(), threading.Event()

def hold():
    with lock:
        held.set()
        end.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if not child:
    os._exit(not lock.acquire(timeout=5))
print(os.waitpid(child, 0)[1], lock.acquire(timeout=0.01))
end.set()
thread.join()
"""
    done = child(text, PYTHONWARNINGS="ignore")
    assert done.stdout.split() == ["0", "False"], done.stderr


LEAVES = """
import threading, time
import graphc as gc
import numpy as np

x = gc.tensor(np.ones((900, 900), np.float32))
f = gc.compile(lambda x: gc.exp(x @ x * 1e-4) * 2)
f(x)

def work():
    while True:
        f(x)

threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


def test_a_daemon_thread_may_run_a_program_when_the_process_ends() -> None:
    for _ in range(3):
        done = child(LEAVES)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
