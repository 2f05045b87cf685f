"""What the table of depth promises: more layers need no more kernels."""

from __future__ import annotations

from benchmarks.rows.depth import measure


def test_more_layers_need_no_more_kernels() -> None:
    three, five = measure(3), measure(5)
    assert three.kernels == five.kernels and three.compiled == five.compiled
    assert three.operations < five.operations and three.launches < five.launches
    assert 0 < five.planning < five.total
