"""The allocator of a device: reuse in stream order, statistics, the end of memory, and a soak."""

from __future__ import annotations

import gc as collector
import random
import sys
import threading
import weakref
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime.cuda import context as contexts
from graphc.runtime.cuda.allocator import SLAB, Allocator, capacity_of

MB = 1 << 20


@pytest.fixture(autouse=True)
def clean() -> None:
    collector.collect()
    gc.cuda.empty_cache()
    gc.cuda.reset_peak_memory_stats()


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 1000, 1025, 1280, 1281, 5000, 10**6, 10**7 + 1])
def test_size_classes(nbytes: int) -> None:
    capacity = capacity_of(nbytes)
    assert capacity >= max(nbytes, 256) and capacity % 256 == 0
    assert capacity <= 1280 or capacity <= 1.25 * nbytes
    assert capacity_of(capacity) == capacity


def test_memory_is_aligned_and_used_again() -> None:
    xs = [gc.zeros(n, device="cuda") for n in (1, 3, 65, 1000, 300_000)]
    assert all(x.data_ptr() % 256 == 0 for x in xs)
    before = gc.cuda.memory_stats()["device_allocations"]
    addresses = {x.data_ptr() for x in xs}
    del xs
    again = [gc.zeros(n, device="cuda") for n in (1, 3, 65, 1000, 300_000)]
    assert {x.data_ptr() for x in again} == addresses
    assert gc.cuda.memory_stats()["device_allocations"] == before


def test_statistics() -> None:
    start, held = gc.cuda.memory_allocated(), gc.cuda.memory_reserved()
    x = gc.zeros(4 * MB // 4, device="cuda")
    y = gc.zeros(2 * MB // 4, device="cuda")
    assert gc.cuda.memory_allocated() - start == 6 * MB
    assert gc.cuda.memory_reserved() - held >= 6 * MB
    del x
    assert gc.cuda.memory_allocated() - start == 2 * MB and gc.cuda.max_memory_allocated() - start == 6 * MB
    assert gc.cuda.memory_stats()["cached_bytes"] >= 4 * MB
    gc.cuda.empty_cache()
    assert gc.cuda.memory_stats()["cached_bytes"] < SLAB and gc.cuda.memory_reserved() - held < 6 * MB
    gc.cuda.reset_peak_memory_stats()
    assert gc.cuda.max_memory_allocated() == gc.cuda.memory_allocated()
    free, total = gc.cuda.mem_get_info()
    assert 0 < free <= total
    text = gc.cuda.memory_summary()
    assert "memory of cuda:0" in text and "allocated bytes" in text and "MiB" in text
    del y


def test_out_of_memory_names_the_request_and_who_holds_what(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = gc.device("cuda").context.allocator
    monkeypatch.setattr(allocator, "limit", allocator.reserved + 40 * MB + SLAB)
    kept = gc.zeros(6, MB, dtype="float32", device="cuda")
    loose = gc.zeros(2, MB, dtype="float32", device="cuda")
    retries = gc.cuda.memory_stats()["retries"]
    del loose
    fits = gc.zeros(3, MB, dtype="float32", device="cuda")  # after the cache was freed
    assert gc.cuda.memory_stats()["retries"] == retries + 1
    with pytest.raises(gc.OutOfMemoryError) as caught:
        gc.ones(5, MB, device="cuda") + 1
    assert isinstance(caught.value, MemoryError)
    text = str(caught.value)
    assert "out of memory on cuda:0: 20.0 MiB asked for" in text and "caches were freed first" in text
    assert "24.0 MiB  f32[6, 1048576] made at" in text and "12.0 MiB  f32[3, 1048576] made at" in text
    assert text.index("24.0 MiB  f32[6") < text.index("12.0 MiB  f32[3") and "test_memory.py" in text
    del kept, fits
    assert (gc.ones(5, MB, device="cuda") + 1)[4, 7].item() == 2


@pytest.mark.parametrize("what", ["load", "launch", "new_graph"])
def test_a_driver_without_memory_for_programs(what: str, compiled: None, simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are emptied, and it is asked again, before that is an error."""
    words = {"load": "a program of .* bytes to be loaded", "launch": "a kernel to be launched with", "new_graph": "a graph of"}
    context = gc.device("cuda").context
    driver, allocator = context.driver, context.allocator
    real, room = getattr(driver, what), [MB]

    def scarce(*arguments: Any) -> Any:
        if allocator.cached() > room[0]:
            raise MemoryError(what)
        return real(*arguments)

    def program() -> Any:
        return gc.compile(lambda x: gc.cumsum(gc.cumsum(gc.cumsum(x * k, 0), 1), 0))

    x = gc.rand(30, 30, device="cuda")
    for k in (1.25, 1.75):
        gc.zeros(4 * MB, device="cuda")  # stays in the cache
        f = program()
        context._modules.clear()
        with monkeypatch.context() as m:
            m.setattr(driver, what, scarce)
            if k == 1.75:
                room[0] = -1
                with pytest.raises(gc.OutOfMemoryError, match=f"out of memory on cuda:0: {words[what]}.* at .*test_memory.py"):
                    [f(x) for _ in range(3)]
            else:
                found = [f(x).tolist() for _ in range(3)]
                assert found[0] == found[2] and allocator.cached() <= MB
        assert f(x).tolist() == program()(x).tolist()


def test_out_of_memory_is_told_whatever_objects_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """To say what holds memory all objects are looked at; some raise when they are asked for their class."""

    class Thing:
        pass

    thing = Thing()
    dead = weakref.proxy(thing)
    del thing
    monkeypatch.setattr(gc.device("cuda").context.allocator, "limit", 1)
    with pytest.raises(gc.OutOfMemoryError, match="32.0 MiB asked for"):
        gc.ones(8 * MB, device="cuda")
    assert type(dead) is weakref.ProxyType


def test_memory_in_cycles_is_found_before_giving_up(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = gc.device("cuda").context.allocator
    monkeypatch.setattr(allocator, "limit", allocator.reserved + 10 * MB)
    collector.disable()
    try:
        ring: list[Any] = [gc.zeros(2 * MB, device="cuda")]
        ring.append(ring)
        del ring
        assert gc.zeros(2 * MB, device="cuda").shape == (2 * MB,)
    finally:
        collector.enable()


def test_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.device("cuda").context.allocator, "limit", None)
    gc.cuda.set_per_process_memory_fraction(1e-9)
    with pytest.raises(gc.OutOfMemoryError, match="graphc may use"):
        gc.zeros(64 * MB, device="cuda")
    gc.cuda.set_per_process_memory_fraction(1.0)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        gc.cuda.set_per_process_memory_fraction(0)


def test_memory_of_another_stream_is_not_used_before_that_is_done() -> None:
    s = gc.cuda.Stream()
    with gc.cuda.stream(s):
        x = gc.zeros(1000, device="cuda")
    place = x.data_ptr()
    del x
    y = gc.zeros(1000, device="cuda")
    assert y.data_ptr() != place
    with gc.cuda.stream(s):
        assert gc.zeros(1000, device="cuda").data_ptr() == place


def test_recorded_streams_keep_memory(simulated: None) -> None:
    s = gc.cuda.Stream()
    x = gc.ones(1000, device="cuda")
    x.cpu()
    with gc.cuda.stream(s):
        y = x + 1  # waits in s
    x.record_stream(s)
    place = x.data_ptr()
    del x
    z = gc.zeros(1000, device="cuda")
    assert z.data_ptr() != place
    s.synchronize()
    more = [gc.zeros(1000, device="cuda") for _ in range(3)]
    assert place in {t.data_ptr() for t in more}
    assert y.cpu().tolist() == [2.0] * 1000


def test_pinned_memory_is_not_used_again_before_it_is_copied(simulated: None) -> None:
    x = gc.full((5000,), 3.0).pin_memory()
    place = x.data_ptr()
    there = x.to("cuda", non_blocking=True)
    del x
    other = gc.full((5000,), 4.0).pin_memory()
    assert other.data_ptr() != place
    assert there.cpu().tolist() == [3.0] * 5000
    del other
    assert place in {gc.full((5000,), 5.0).pin_memory().data_ptr() for _ in range(1)} | {place}


def test_pinned_memory_waits_for_the_copies_of_all_streams(simulated: None) -> None:
    x = gc.full((7000,), 3.0).pin_memory()
    place, first, second = x.data_ptr(), gc.cuda.Stream(), gc.cuda.Stream()
    with gc.cuda.stream(first):
        there = x.to("cuda", non_blocking=True)
    with gc.cuda.stream(second):
        x.to("cuda", non_blocking=True)
    second.synchronize()
    del x
    other = gc.full((7000,), 4.0).pin_memory()
    assert other.data_ptr() != place
    with gc.cuda.stream(first):
        assert there.cpu().tolist() == [3.0] * 7000


def test_pinned_memory_is_not_updated_in_place_under_a_copy(simulated: None) -> None:
    p = gc.nn.Parameter(gc.ones(4))
    optimizer = gc.optim.SGD([p], lr=1.0)

    @gc.compile
    def step() -> None:
        optimizer.zero_grad()
        (p * 2).sum().backward()
        optimizer.step()

    step()
    step()
    p.data = gc.ones(4).pin_memory()
    there = p.detach().to("cuda", non_blocking=True)
    step()
    assert p.tolist() == [-1.0] * 4 and there.tolist() == [1.0] * 4


def test_the_end_of_memory_that_can_be_pinned(simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = gc.device("cuda").context.driver
    held: set[int] = set()
    real, release = driver.allocate_host, driver.free_host
    kept = gc.ones(70_000).pin_memory()
    gc.ones(90_000).pin_memory()  # waits to be used again

    def scarce(nbytes: int) -> int:
        if not held:
            raise MemoryError("cuMemHostAlloc")
        return real(nbytes)

    def freed(address: int) -> None:
        held.add(address)
        release(address)

    monkeypatch.setattr(driver, "allocate_host", scarce)
    monkeypatch.setattr(driver, "free_host", freed)
    assert gc.ones(200_000).pin_memory().sum().item() == 200_000 and held and kept.data_ptr() not in held
    held.clear()
    gc.cuda.synchronize()
    monkeypatch.setattr(driver, "free_host", release)
    with pytest.raises(MemoryError, match="out of memory that can be pinned: .* asked for at .*test_memory.py.*do without pin_memory"):
        gc.ones(400_000).pin_memory()
    assert kept.sum().item() == 70_000


def test_a_program_gives_its_memory_back(compiled: None, simulated: None) -> None:
    def make() -> Any:
        def f(x: gc.Tensor, k: float) -> gc.Tensor:
            y = gc.cumsum(x * k, 0)
            for _ in range(2):
                y = gc.cumsum(y - y.max(), 0)
            return y

        return gc.compile(f)

    x, held, wanted = gc.ones(9000, device="cuda"), [], None
    s = gc.cuda.Stream()
    gc.cuda.synchronize()
    for _ in range(4):
        f = make()
        with gc.cuda.stream(s):
            f(x, 2.5)
        got = [f(x, 2.5) for _ in range(4)]
        (family,) = f._families.values()
        program = family.recordings[0]._program
        assert program._held.blocks and program._graphs, "the test wants values of the host"
        del f, family, program
        collector.collect()
        wanted = wanted or got[0].tolist()
        assert all(y.tolist() == wanted for y in got)
        del got
        gc.cuda.synchronize()
        gc.cuda.empty_cache()
        held.append(gc.cuda.memory_allocated())
    assert held[1:] == held[:-1], held


def test_what_runs_a_constant_keeps_it(compiled: None) -> None:
    from graphc.ir.function import Builder
    from graphc.ir.types import F32, TensorType
    from graphc.runtime.backend import compile_function
    from graphc.runtime.spec import spec_of

    device = gc.device("cuda")
    table = np.random.default_rng(1).random(3000, dtype=np.float32)
    b = Builder("add_table")
    x = b.param(TensorType(F32, (3000,)))
    function = b.build((b.emit("add", x, b.emit("constant", value=table)),))
    spec = spec_of(F32, (3000,), False, device)
    run = compile_function(function, (), device, [spec], [spec]).run
    collector.collect()
    others = [gc.full((3000,), 7.0, device="cuda") for _ in range(4)]
    given, out = gc.zeros(3000, device="cuda"), gc.zeros(3000, device="cuda")
    run([given.data_ptr()], [out.data_ptr()])
    assert out.cpu().numpy().tobytes() == table.tobytes() and len(others) == 4


def test_copies_for_a_program_are_given_back_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    @gc.compile
    def f(a: gc.Tensor, b: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
        return a.cuda().sum() + b.cuda().sum() + c

    a, b, c = gc.ones(MB // 4), gc.ones(5 * MB), gc.ones(1, device="cuda")
    wanted = f(a, b, c).item()
    gc.cuda.synchronize()
    gc.cuda.empty_cache()
    allocator = gc.device("cuda").context.allocator
    held = gc.cuda.memory_allocated()
    monkeypatch.setattr(allocator, "limit", allocator.reserved + 4 * MB)
    with pytest.raises(gc.OutOfMemoryError, match=r"20\.0 MiB asked for"):
        f(a, b, c)
    assert gc.cuda.memory_allocated() < held + MB  # and the result that did not come to be
    monkeypatch.setattr(allocator, "limit", None)
    assert f(a, b, c).item() == wanted


def test_arenas_are_given_back(compiled: None) -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return gc.cumsum(gc.cumsum(x, 0), 1) @ x

    x = gc.rand(300, 300, device="cuda")
    wanted = f(x).tolist()
    gc.cuda.synchronize()
    gc.cuda.empty_cache()
    assert gc.device("cuda").context._arenas == {}
    assert f(x).tolist() == wanted


def test_values_of_the_host_outlive_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may fill the table between finding a value and launching with it."""
    context = gc.device("cuda").context
    monkeypatch.setattr(contexts, "SENT", 8)
    context.sent(b"a thread has this")
    at = context.sent(b"0123456789abcdef")
    for i in range(8):
        context.sent(i.to_bytes(16, "little"))
    assert context.read(at, 16).tobytes() == b"0123456789abcdef"


def test_caches_are_emptied_while_another_thread_takes_from_them(simulated: None) -> None:
    """No slab goes while a block of it is in use, and no request fails because another was faster."""
    allocator, stop, failed = Allocator("test", gc.device("cuda").context.driver, lambda: None), threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                blocks = [allocator.take(256) for _ in range(5)]
                slabs = list(allocator._slabs)
                if not all(any(b[1] is s for s in slabs) for b in blocks):
                    failed.append("a slab went that is in use")
                for b in blocks:
                    allocator.waiting.append(([], b)) if b[0] % 512 else b[2].append(b)
        except Exception as error:  # told by the assertion
            failed.append(repr(error))

    threads, interval = [threading.Thread(target=work) for _ in range(2)], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for t in threads:
            t.start()
        for _ in range(300):
            allocator.empty_cache()
        stop.set()
        for t in threads:
            t.join()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    assert not failed
    allocator.empty_cache()
    assert (allocator.reserved, allocator.made, allocator.made_blocks, len(allocator.waiting)) == (0, 0, 0, 0)


def test_a_block_that_is_taken_while_caches_are_emptied_keeps_its_slab(simulated: None) -> None:
    allocator = Allocator("test", gc.device("cuda").context.driver, lambda: None)
    stolen: list[Any] = []

    class Blocks(list[Any]):
        """Free blocks of which another thread takes one as soon as somebody looked at them."""

        def __iter__(self) -> Any:
            yield from list(super().__iter__())
            self.steal()

        def pop(self, *at: Any) -> Any:
            self.steal()
            return super().pop(*at)

        def steal(self) -> None:
            if not stolen:
                stolen.append(super().pop())

    blocks = [allocator.take(256) for _ in range(4)]
    home = allocator.free_list(256).of(None)
    home.blocks = Blocks(blocks)
    allocator.empty_cache()
    assert stolen and stolen[0][1] in allocator._slabs and allocator.reserved == SLAB and allocator.made == 4 * 256


def test_soak() -> None:
    """Thousands of tensors of random sizes that live for random times: values stay, nothing leaks."""
    rng = random.Random(7)
    allocator = gc.device("cuda").context.allocator
    allocator.settle()
    start, blocks = allocator.live, allocator.live_blocks
    held: list[tuple[gc.Tensor, float]] = []
    streams = [None, gc.cuda.Stream(), gc.cuda.Stream()]
    for step in range(3000):
        with gc.cuda.stream(streams[step % 3] if step % 7 == 0 else None):
            n = rng.choice([1, 5, 64, 100, 1000, 4097, 30000])
            held.append((gc.full((n,), float(step), device="cuda"), float(step)))
        while len(held) > 40:
            x, value = held.pop(rng.randrange(len(held)))
            if step % 10 == 0:
                gc.cuda.synchronize()
                assert x[-1].item() == value and x[0].item() == value
        if step % 500 == 499:
            gc.cuda.empty_cache()
    gc.cuda.synchronize()
    assert all(np.all(x.cpu().numpy() == value) for x, value in held)
    x = None
    held.clear()
    collector.collect()
    gc.cuda.empty_cache()
    allocator.settle()
    assert (allocator.live, allocator.live_blocks) == (start, blocks)
    assert allocator.peak_reserved < 200 * MB
