"""Memory of the CPU: alignment, reuse, the bound on what waits, statistics, threads, the end of memory."""

from __future__ import annotations

import gc as collector
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import graphc as gc
import numpy as np
import pytest
from graphc.codegen import pages
from graphc.codegen.arena import Arena
from graphc.runtime import memory
from graphc.runtime.memory import SMALL, Pool, capacity_of

MB = 1 << 20


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    collector.collect()
    gc.memory.empty_cache()
    gc.memory.reset_peak_memory_stats()
    yield
    gc.memory.set_cache_limit(None)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 256, 257, 1000, 10**5, SMALL, SMALL + 1, 10**6, 2 * MB, 10**7 + 1])
def test_buffers_are_aligned(nbytes: int) -> None:
    xs = [gc.zeros(nbytes, dtype="uint8") for _ in range(3)]
    assert all(x.data_ptr() % 64 == 0 for x in xs)
    if nbytes > SMALL:
        # Not at equal places of their pages, which would meet in the same sets of caches.
        assert len({x.data_ptr() % 4096 for x in xs}) == 3
        assert all(x._buffer.block[1].address % (pages.HUGE if nbytes >= pages.HUGE else 4096) == 0 for x in xs)
        assert all(x.data_ptr() + nbytes <= x._buffer.block[1].address + x._buffer.block[1].size for x in xs)
    assert len({x.data_ptr() for x in xs}) == 3
    capacity = capacity_of(nbytes)
    assert nbytes <= capacity <= max(64, 1.25 * nbytes + 64) and capacity_of(capacity) == capacity


@pytest.mark.parametrize("n", [1, 100, 30_000, 300_000, 3_000_000])
def test_memory_is_used_again_without_asking_the_system(n: int) -> None:
    x = gc.ones(n)
    y = x + x
    address, asked = y.data_ptr(), gc.memory.memory_stats()["device_allocations"]
    for _ in range(5):
        del y
        y = x + x
        assert y.data_ptr() == address
    assert gc.memory.memory_stats()["device_allocations"] == asked
    assert y[n - 1].item() == 2


def test_results_of_a_repeated_program_fault_no_pages() -> None:
    resource = pytest.importorskip("resource")
    chain = gc.compile(lambda x: (((x * 2.0 + 1.0).exp() * 0.5).tanh() + x).sum(1, keepdims=True) * x)
    x = gc.full((1024, 4096), 0.125)
    for _ in range(3):
        chain(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        chain(x)
    # 16 MiB would be 4096 small pages, or 8 huge ones, a call.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 40


def test_statistics() -> None:
    start = gc.memory.memory_allocated()
    x, y = gc.zeros(4 * MB // 4), gc.zeros(2 * MB // 4)
    assert gc.memory.memory_allocated() - start == 6 * MB
    del x
    s = gc.memory.memory_stats()
    assert s["allocated_bytes"] - start == 2 * MB and s["cached_bytes"] >= 4 * MB
    assert s["allocated_bytes_peak"] - start >= 6 * MB and s["reserved_bytes"] == s["allocated_bytes"] + s["cached_bytes"]
    assert gc.memory.max_memory_allocated() == s["allocated_bytes_peak"] and gc.memory.memory_reserved() == s["reserved_bytes"]
    gc.memory.empty_cache()
    assert gc.memory.memory_stats()["cached_bytes"] == 0
    gc.memory.reset_peak_memory_stats()
    assert gc.memory.max_memory_allocated() == gc.memory.memory_allocated() == start + 2 * MB
    text = gc.memory.memory_summary()
    assert "allocated bytes" in text and "huge pages" in text and "cpu" in text
    del y


def test_what_keeps_a_buffer_alive() -> None:
    start = gc.memory.memory_allocated()
    x = gc.full((MB,), 3.0)
    view, shared, part = x.numpy(), np.from_dlpack(x), x[5:]
    del x
    assert gc.memory.memory_allocated() - start == 4 * MB
    others = [gc.zeros(MB) for _ in range(2)]
    assert (view == 3).all() and (shared == 3).all() and part[0].item() == 3
    del others, view, part
    assert gc.memory.memory_allocated() - start == 4 * MB
    del shared
    assert gc.memory.memory_allocated() == start


def test_numpy_memory_is_not_copied() -> None:
    a = np.zeros(MB, np.float32)
    before = gc.memory.memory_stats()
    t = gc.asarray(a)
    assert t.data_ptr() == a.ctypes.data and gc.memory.memory_stats() == before


def test_the_bound_on_what_waits() -> None:
    gc.memory.set_cache_limit(10 * MB)
    assert gc.memory.get_cache_limit() == 10 * MB
    xs = [gc.zeros(MB // 4 * n) for n in (1, 2, 3, 4, 5)]
    addresses = [x.data_ptr() for x in xs]
    while xs:
        del xs[0]
        assert gc.memory.memory_stats()["cached_bytes"] <= 10 * MB
    # The last to come stay: 4 and 5 MiB.
    assert gc.zeros(5 * MB // 4).data_ptr() == addresses[4]
    big = gc.zeros(11 * MB // 4)
    cached = gc.memory.memory_stats()["cached_bytes"]
    del big
    assert gc.memory.memory_stats()["cached_bytes"] == cached
    gc.memory.set_cache_limit(0)
    assert gc.memory.memory_stats()["cached_bytes"] == 0
    for wrong in (-1, 1.5, "1", True):
        with pytest.raises(ValueError, match="set_cache_limit: a number of bytes, 0 or more, or None for the default"):
            gc.memory.set_cache_limit(wrong)  # type: ignore[arg-type]


def test_small_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.memory.set_cache_limit(8 * MB)
    monkeypatch.setattr(memory._pool, "next_look", 0)
    xs = [gc.empty(16 << 10) for _ in range(400)]
    del xs
    monkeypatch.setattr(memory._pool, "next_look", 0)
    y = gc.empty(50_000)
    assert gc.memory.memory_stats()["cached_bytes"] <= 8 * MB
    gc.memory.set_cache_limit(None)
    xs = [gc.empty(MB // 16) for _ in range(300)]
    del xs
    assert gc.memory.memory_stats()["cached_bytes"] <= memory.SMALL_KEPT
    del y


def test_the_bound_that_the_environment_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Pool().bound() == pages.physical() // 4
    monkeypatch.setenv("GRAPHC_KEEP_MEMORY_MIB", "12")
    assert Pool().bound() == 12 * MB
    monkeypatch.setenv("GRAPHC_KEEP_MEMORY_MIB", "much")
    pool = Pool()
    with pytest.warns(UserWarning, match="GRAPHC_KEEP_MEMORY_MIB='much' is not a number of MiB; .* are kept"):
        assert pool.bound() == pages.physical() // 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.bound()


def test_arenas_are_given_back() -> None:
    f = gc.compile(lambda x: ((x @ x) @ x) @ x)
    x = gc.ones((600, 600))
    expected = f(x).numpy().copy()
    assert gc.memory.memory_stats()["arena_bytes"] >= 2 * 600 * 600 * 4
    gc.memory.empty_cache()
    assert gc.memory.memory_stats()["arena_bytes"] == 0
    assert (f(x).numpy() == expected).all()
    gc.memory.empty_cache()


def test_arenas_of_other_threads_are_given_back() -> None:
    """At once where the thread does something else, and when its run ends where it works in the arena."""
    f = gc.compile(lambda x: ((x @ x) @ x) @ x)
    x = gc.ones((600, 600))
    expected = f(x).numpy().copy()
    ran, go, wrong = threading.Event(), threading.Event(), []

    def idle() -> None:
        f(x)
        ran.set()
        go.wait()
        wrong.append((f(x).numpy() != expected).any())

    thread = threading.Thread(target=idle)
    thread.start()
    ran.wait()
    assert gc.memory.memory_stats()["arena_bytes"] >= 2 * 600 * 600 * 4
    gc.memory.empty_cache()
    assert gc.memory.memory_stats()["arena_bytes"] == 0
    go.set()
    thread.join()
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            wrong.append((f(x).numpy() != expected).any())

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for t in threads:
        t.start()
    for _ in range(300):
        gc.memory.empty_cache()
        time.sleep(0.001)
    over.set()
    for t in threads:
        t.join()
    assert not any(wrong)
    gc.memory.empty_cache()
    assert gc.memory.memory_stats()["arena_bytes"] == 0


def test_an_arena_that_grows_in_a_finalizer_of_its_thread() -> None:
    """The run that was interrupted goes on in its block, which goes when that run ends."""
    arena = Arena()
    first = arena.grow(1000, "outer")
    arena.busy = True
    second = arena.grow(100_000, "inner", outer=True)
    assert arena.leaving == [first] and arena.block is second
    arena.give_back()
    assert arena.leaving == [first, second] and arena.block is None


def test_an_exception_leaks_nothing() -> None:
    x = gc.ones((MB,))
    collector.collect()
    before = gc.memory.memory_allocated()
    index = gc.tensor([5, MB])
    for _ in range(5):
        with pytest.raises(IndexError):
            gc.take(gc.exp(x), index)
    collector.collect()
    assert gc.memory.memory_allocated() - before <= 1024


def test_huge_pages_are_asked_for_and_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pages.take(5 * MB)
    assert p.huge in (0, 4 * MB) and p.address % pages.HUGE == 0 and p.size == 5 * MB
    held = pages.counts.huge
    del p
    assert pages.counts.huge in (held, held - 4 * MB)
    monkeypatch.setenv("GRAPHC_HUGE_PAGES", "0")
    assert pages.take(5 * MB).huge == 0 and "GRAPHC_HUGE_PAGES=0" in pages.huge_pages()
    monkeypatch.delenv("GRAPHC_HUGE_PAGES")
    monkeypatch.setattr(pages, "_libc", lambda *args: -1)
    assert pages.take(5 * MB).huge == 0
    monkeypatch.setattr(pages, "_libc", False)
    assert pages.take(5 * MB).huge == 0


def test_threads_share_the_lists() -> None:
    start = gc.memory.stats()
    wrong: list[str] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        held: list[gc.Tensor] = []
        for step in range(300):
            held.append(gc.full((choose.choice([3, 1000, 70_000, 200_000]),), float(seed)))
            if len(held) > 6:
                x = held.pop(choose.randrange(len(held)))
                if not (x.numpy() == seed).all():
                    wrong.append(f"{seed} at {step}")
            if step % 97 == 0:
                gc.memory.empty_cache()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    del threads
    collector.collect()
    assert not wrong
    now = gc.memory.stats()
    assert now.live_bytes == start.live_bytes and now.live_blocks == start.live_blocks
    gc.memory.empty_cache()
    assert gc.memory.stats().cached_bytes == 0 and pages.counts.nbytes - pages.counts.arenas >= memory._pool.live


LIMITED = """
import resource
import graphc as gc
x = gc.ones((1 << 22,))
y = x + x                       # kernels are compiled before the limit
f = gc.compile(lambda x: (x * 2.0).exp())
f(x)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), used + (200 << 20)))
{code}
"""


def limited(code: str) -> str:
    """What a process prints that may take 200 MiB more of address space than it has."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs RLIMIT_AS and /proc of Linux")
    run = subprocess.run([sys.executable, "-c", LIMITED.format(code=code)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_end_of_memory_frees_what_waits_first() -> None:
    text = limited(
        "for n in range(8, 60, 4):\n"
        "    z = gc.full((n << 18,), 1.0); del z   # of many classes, together more than there is\n"
        "print(gc.memory.memory_stats()['retries'] > 0, gc.memory.memory_stats()['out_of_memory'])"
    )
    assert text.split() == ["True", "0"]


def test_the_end_of_memory_names_request_and_cure() -> None:
    text = limited(
        "held = []\n"
        "try:\n"
        "    while True: held.append(x + x)\n"
        "except gc.OutOfMemoryError as error:\n"
        "    print(error)\n"
        "print('held', len(held) > 5)\n"
        "del held\n"
        "print('again', (x + x)[7].item())"
    )
    assert "out of memory: 16.0 MiB asked for, " in text and "held by tensors; for add(f32[4194304], f32[4194304]) at" in text
    assert "(ulimit -v)" in text and "16.0 MiB  f32[4194304]" in text and "use a smaller batch, free tensors" in text
    assert "held True" in text and "again 2.0" in text


def test_the_end_of_memory_in_a_compiled_function() -> None:
    text = limited(
        "held = []\n"
        "try:\n"
        "    while True: held.append(f(x))\n"
        "except gc.OutOfMemoryError as error:\n"
        "    print(error)\n"
        "del held\n"
        "print('again', f(x)[0].item())"
    )
    assert "asked for" in text and "for the results of the compiled lambda at" in text and "again 7.38" in text


def test_the_end_of_memory_for_an_arena() -> None:
    with pytest.raises(gc.OutOfMemoryError, match="EiB|GiB asked for by the arena of program step .values between its kernels"):
        Arena().grow(1 << 55, "step")
    x = gc.ones((600, 600))
    assert gc.compile(lambda x: (x @ x) @ x)(x)[0, 0].item() == 360000


def test_cuda_has_the_same_face(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["empty_cache", "memory_stats", "memory_summary", "memory_allocated", "memory_reserved", "max_memory_allocated"]
    assert all(callable(getattr(gc.memory, n)) and callable(getattr(gc.cuda, n)) for n in names)
    code = (
        "import graphc as gc\n"
        "x = gc.zeros(1 << 20, device='cuda'); held = gc.memory.memory_allocated('cuda'); del x\n"
        "assert held == gc.cuda.max_memory_allocated() >= 4 << 20\n"
        "assert set(gc.memory.memory_stats('cuda:0')) <= set(gc.memory.memory_stats())\n"
        "gc.memory.empty_cache(); assert gc.memory.memory_stats('cuda')['cached_bytes'] < 3 << 20\n"
        "gc.memory.reset_peak_memory_stats('cuda'); print(gc.memory.memory_summary('cuda:0'))"
    )
    monkeypatch.setenv("GRAPHC_CUDA", "simulate")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "memory of cuda:0" in run.stdout, run.stderr


class _Report:
    """Reads a parameter in its finalizer, after others have obtained memory."""

    def __init__(self, of: gc.Tensor, seen: list[float], keep: list[gc.Tensor]) -> None:
        self.of, self.seen, self.keep = of, seen, keep

    def __del__(self) -> None:
        others = [gc.full(self.of.shape, float(i)) for i in (7, 8)]
        self.seen.append(self.of[0].item())
        self.keep.append(self.of)
        del others


@pytest.mark.parametrize("n", [100, 1_000_000])
def test_memory_in_a_cycle_of_garbage_is_used_again_only_when_all_finalizers_are_through(n: int) -> None:
    seen: list[float] = []
    keep: list[gc.Tensor] = []
    start = gc.memory.stats()
    for _ in range(3):
        p = gc.nn.Parameter(gc.full((n,), 3.0))
        p.report = _Report(p, seen, keep)
        del p
        collector.collect()
    others = [gc.full((n,), 9.0) for _ in range(6)]
    assert seen == [3, 3, 3] and [x[n - 1].item() for x in keep] == [3, 3, 3]
    asked = gc.memory.memory_stats()["device_allocations"]
    del others
    for x in keep:
        x.report = None
    del x
    keep.clear()
    collector.collect()
    again = [gc.full((n,), 9.0) for _ in range(9)]
    assert gc.memory.memory_stats()["device_allocations"] == asked, "memory of the revived was lost"
    del again
    assert gc.memory.stats()[:2] == start[:2]
    gc.memory.empty_cache()
    assert gc.memory.stats().cached_bytes == 0 and memory._pool.small == gc.memory.stats().live_bytes - memory._pool.live


def test_tensors_that_outlive_their_modules_say_nothing() -> None:
    script = """
import builtins
import graphc as gc
class Holder: pass
held = Holder()
held.me, held.large, held.small = held, gc.ones(1_000_000), gc.ones(3)
builtins.kept = [held, gc.ones(2_000_000), gc.ones(7)]
gc.Tensor.kept = gc.ones(3_000_000)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
