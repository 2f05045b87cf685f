"""Streams and events: what waits, what runs in order, and what does not."""

from __future__ import annotations

import threading
import time
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime.cuda import driver as drivers
from graphc.runtime.cuda import simulated as simulated_driver


def test_work_waits_in_its_stream(simulated: None) -> None:
    context = gc.device("cuda").context
    x = gc.ones(4, device="cuda") + 1
    assert not gc.cuda.current_stream().query()
    gc.cuda.synchronize()
    assert gc.cuda.current_stream().query() and context.driver.stream_done(context.default_stream.raw)
    assert x.tolist() == [2.0] * 4


def test_streams_are_current_for_a_thread() -> None:
    s = gc.cuda.Stream()
    assert gc.cuda.current_stream() is gc.cuda.default_stream()
    with gc.cuda.stream(s) as entered:
        assert entered is s and gc.cuda.current_stream() is s
        seen = []
        thread = threading.Thread(target=lambda: seen.append(gc.cuda.current_stream()))
        thread.start()
        thread.join()
        assert seen == [gc.cuda.default_stream()]
        with gc.cuda.stream(None):
            assert gc.cuda.current_stream() is s
        with gc.cuda.Stream() as other:
            assert gc.cuda.current_stream() is other is not s
        assert gc.cuda.current_stream() is s
    assert gc.cuda.current_stream() is gc.cuda.default_stream()
    assert s.device == "cuda:0" and s.cuda_stream != gc.cuda.default_stream().cuda_stream and "cuda:0" in repr(s)


def test_events_order_streams() -> None:
    s = gc.cuda.Stream()
    x = gc.arange(1000, device="cuda") * 2
    s.wait_stream(gc.cuda.current_stream())
    with gc.cuda.stream(s):
        y = x + 1
        done = s.record_event()
    done.wait()
    z = y * 2
    assert z[:3].tolist() == [2, 6, 10] and done.query()


def test_a_stream_that_does_not_wait_sees_what_was_there_before(simulated: None) -> None:
    x = gc.zeros(3, device="cuda")
    gc.cuda.synchronize()
    x += 7.25  # waits in the default stream
    with gc.cuda.stream(gc.cuda.Stream()):
        y = (x * 1).tolist()
    assert y != [7.25, 7.25, 7.25]
    assert x.tolist() == [7.25, 7.25, 7.25]


def test_times() -> None:
    start, end = gc.cuda.Event(enable_timing=True), gc.cuda.Event(enable_timing=True)
    start.record()
    gc.ones(1000, device="cuda").sum()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
    with pytest.raises(ValueError, match="enable_timing=True"):
        start.elapsed_time(gc.cuda.Event())
    with pytest.raises(RuntimeError, match="has not happened yet"):
        start.elapsed_time(gc.cuda.Event(enable_timing=True))


def test_threads_work_side_by_side() -> None:
    found: dict[int, list[float]] = {}

    def work(number: int) -> None:
        with gc.cuda.stream(gc.cuda.Stream()):
            x = gc.full((100,), float(number), device="cuda")
            for _ in range(20):
                x = x + 1
            found[number] = [x.sum().item(), x[3].item()]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {i: [100.0 * (i + 20), i + 20.0] for i in range(4)}


def test_there_is_an_end_to_streams() -> None:
    assert len({gc.cuda.Stream().cuda_stream for _ in range(100)}) <= 32


def test_threads_that_ask_at_once_find_one_driver(simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Slow(simulated_driver.SimulatedDriver):
        def __init__(self, devices: int = 1) -> None:
            made.append(self)
            time.sleep(0.05)
            super().__init__(devices)

    monkeypatch.setattr(simulated_driver, "SimulatedDriver", Slow)
    monkeypatch.setattr(drivers, "_drivers", {})
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(gc.device("cuda"))) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1 and all(d is found[0] for d in found)


def test_a_view_that_one_stream_packs_is_whole_for_others() -> None:
    x = gc.arange(6000, device="cuda").reshape(60, 100)
    wanted = (x + 0).cpu().numpy()
    gc.cuda.synchronize()
    y, z = x.T, x.reshape(-1)[1:]
    with gc.cuda.stream(gc.cuda.Stream()):
        there = (y + 1, z + 1)  # makes y and z contiguous
    here = (y + 0, z + 0)
    assert np.array_equal(here[0].cpu().numpy(), wanted.T) and np.array_equal(here[1].cpu().numpy(), wanted.reshape(-1)[1:])
    gc.cuda.synchronize()
    assert np.array_equal(there[0].cpu().numpy(), wanted.T + 1)


def test_random_numbers_of_several_streams_are_one_sequence() -> None:
    gc.manual_seed(11)
    wanted = [gc.rand(4, device="cuda").tolist() for _ in range(6)]
    gc.manual_seed(11)
    streams = [None, gc.cuda.Stream(), gc.cuda.Stream()]
    found = []
    for i in range(6):
        with gc.cuda.stream(streams[i % 3]):
            found.append(gc.rand(4, device="cuda"))
    gc.cuda.synchronize()
    assert [x.tolist() for x in found] == wanted
