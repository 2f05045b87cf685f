"""The number of threads: set and read, and of no influence on a result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

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
