"""The partition of programs over 1 to 64 threads, on paper."""

from __future__ import annotations

import pytest
from graphc.codegen.costs import DEFAULT
from graphc.codegen.items import Item, make_items
from graphc.codegen.plan import Plan

from benchmarks.balance import THREADS, balances, main, makespan, parts_on
from tests.codegen.test_items import block, launch


def item(worth: int = 1, extent: int = 1000, needs: tuple[int, ...] = ()) -> Item:
    return Item((0,), extent, worth, needs, 1, 100.0)


def test_parts_are_as_the_runner_makes_them() -> None:
    assert [parts_on(item(1000), n) for n in (1, 2, 3, 64)] == [4, 8, 12, 256]
    assert [parts_on(item(7), n) for n in (1, 2, 3, 8)] == [4, 6, 6, 7]
    assert parts_on(item(1000, extent=5), 64) == 5


def test_makespans_that_can_be_told_by_hand() -> None:
    assert makespan([item()], [100.0], 8) == 100
    assert makespan([item(1000, 1600)], [100.0], 4) == 25
    # Three parts of three units on two threads; then what waits for it.
    assert makespan([item(3, 3), item(needs=(0,))], [30.0, 5.0], 2) == 25
    # Independent items run side by side, dependent ones one after the other.
    assert makespan([item() for _ in range(4)], [10.0] * 4, 4) == 10
    assert makespan([item(needs=(i - 1,) if i else ()) for i in range(4)], [10.0] * 4, 4) == 40
    # A thread that is free takes what comes later, if it waits for nothing.
    assert makespan([item(), item(needs=(0,)), item()], [10.0, 10.0, 20.0], 2) == 20


@pytest.mark.parametrize("threads", THREADS)
def test_long_kernels_keep_all_threads_busy(threads: int) -> None:
    """Layers of one long launch each, every one after the other: 5 ms in all."""
    layers = [launch(20_000_000, [block(i)], [block(i + 1)], parallel=4096) for i in range(10)]
    made = make_items(Plan(None, tuple(layers), 0), DEFAULT).items  # type: ignore[arg-type]
    (b,) = balances(made, [i.microseconds for i in made], [threads])
    assert b.busy > 0.9


def test_the_table_of_a_step(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/net.py"
    with open(path, "w", encoding="utf-8") as file:
        file.write("import graphc as gc\ndef f(x, w):\n    return gc.nn.functional.softmax(x @ w)\n")
    assert main([f"{path}:f", "--input", "f32[512,256]", "--input", "f32[256,256]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| threads | speed-up | busy |" and lines[3] == "| 1 | 1.00 | 100% |"
    assert [int(line.split("|")[1]) for line in lines[3:]] == list(THREADS)
    assert main([f"{path}:nothing"]) == 2
