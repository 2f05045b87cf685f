"""Other sizes run at once with the kernels that are there; kernels of their own are compiled when they come again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphc.codegen import cache, kernels
from graphc.codegen.program import BORROWED_RUNS, Program, compile_function
from graphc.codegen.report import Report, collect
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.text import parse_function


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernels in memory or on disk."""
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    for name in ("_memory", "_general", "_linked"):
        monkeypatch.setattr(kernels, name, {})
    forget = getattr(cache, "forget", None)
    if forget is not None:
        forget()
    yield


def product(rows: int) -> Function:
    return parse_function(
        f"""func @product(%x: f32[{rows}, 70], %w: f32[70, 50]) -> (f32[{rows}, 50], f32[{rows}]) {{
  %0: f32[{rows}, 50] = dot %x, %w {{lhs_batch=[], lhs_contract=[1], rhs_batch=[], rhs_contract=[0]}}
  %1: f32[{rows}, 50] = square %0
  %2: f32[{rows}] = sum %1 {{axes=[1]}}
  return %1, %2
}}"""
    )


def compiled(f: Function, hurry: bool = True) -> tuple[Program, Report]:
    with collect(f.name) as report:
        return compile_function(f, hurry=hurry), report


def check(f: Function, program: Program) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(t.shape, np.float32) for t in f.param_types]
    outputs = [np.full(t.shape, np.nan, np.float32) for t in f.result_types]
    program.run([a.ctypes.data for a in inputs], [a.ctypes.data for a in outputs])
    for a, b in zip(outputs, interpret(f, inputs), strict=True):
        assert a.tobytes() == b.tobytes()


def test_sizes_nearby_borrow_until_they_come_again() -> None:
    first, report = compiled(product(1000))
    assert report.compiled and not first.plan.borrowed
    check(product(1000), first)
    # A batch this small has another schedule.
    second, report = compiled(product(251))
    assert second.plan.borrowed and not report.compiled
    for _ in range(BORROWED_RUNS):
        check(product(251), second)
    with collect("later") as later:
        check(product(251), second)
    assert later.compiled
    check(product(251), second)
    third, report = compiled(product(251))
    assert not third.plan.borrowed and not report.compiled
    check(product(251), third)


def test_sizes_far_away_do_not_borrow() -> None:
    compiled(product(1000))
    far, report = compiled(product(3))
    assert not far.plan.borrowed and report.compiled
    check(product(3), far)


def test_nothing_is_borrowed_unless_there_is_a_hurry() -> None:
    compiled(product(1000))
    plain, report = compiled(product(251), hurry=False)
    assert not plain.plan.borrowed and report.compiled


def test_a_convolution_over_windows_is_not_borrowed() -> None:
    from graphc.codegen.lower.lower import serves_all_sizes

    assert not serves_all_sizes(conv(40), "contract WindowSchedule(tile=1)")
    assert serves_all_sizes(product(4), "contract Schedule(swap=False)")


def conv(side: int) -> Function:
    return parse_function(
        f"""func @conv(%x: f32[2, 3, {side}, {side}], %w: f32[4, 3, 1, 1]) -> (f32[2, 4, {side}, {side}]) {{
  %0: f32[2, 4, {side}, {side}] = conv %x, %w {{strides=[1, 1], padding=[[0, 0], [0, 0]], lhs_dilation=[1, 1], rhs_dilation=[1, 1], groups=1, batch_groups=1}}
  return %0
}}"""
    )
