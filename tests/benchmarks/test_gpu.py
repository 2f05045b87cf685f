"""Every row of the CUDA benchmarks runs, at toy size on the simulated device. No test here looks at a clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.case import Clocked, toy
from benchmarks.gpu import arrays, copies
from benchmarks.gpu_rows import COMPILE, rows
from tests.interpreted import forget_devices

ON_DEVICE = [r for r in rows if r.family != COMPILE]


@pytest.fixture(scope="module", autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    forget_devices()


@pytest.mark.parametrize("row", ON_DEVICE, ids=lambda r: r.name)
def test_row_runs(row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CUDA", "simulate:2")  # as tests/gpu
    monkeypatch.setenv("GRAPHC_BACKEND", "interpret")
    case = row.make(toy)
    assert row.figure is not None
    work = case.peers["graphc"]()
    if isinstance(work, Clocked):
        assert work.run() > 0
    else:
        assert all(a.size for a in arrays(work()))
    if case.limit:
        assert case.bytes > 0
        copies(case.bytes)()


def test_every_figure_of_the_card_is_a_row() -> None:
    assert len([r for r in rows if r.figure is not None]) >= 17
    assert {r.family for r in rows} == {
        "fused kernels past L2", "matrix products", "attention", "training steps", "launches", "compile time"
    }  # fmt: skip
