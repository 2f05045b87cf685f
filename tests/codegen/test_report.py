"""Reports of compilations: what is counted, that stages add up, and what GRAPHC_LOG asks for."""

from __future__ import annotations

import time
import warnings

import pytest
from graphc.codegen import report
from graphc.codegen.program import compile_function
from graphc.codegen.report import collect, stage
from graphc.ir.function import Builder, Function
from graphc.ir.types import TensorType


def layers(depth: int, width: int = 24) -> Function:
    b = Builder("layers")
    x = b.param(TensorType.parse(f"f32[5, {width}]"))
    for _ in range(depth):
        w = b.param(TensorType.parse(f"f32[{width}, {width}]"))
        x = b.tanh(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,)))
    return b.build([x])


def test_a_program_is_counted() -> None:
    with collect("layers") as found:
        compile_function(layers(3))
    assert (found.operations, found.optimised, found.groups, found.kernels) == (6, 6, 3, 1)
    assert found.from_memory + found.from_disk + found.compiled == 1
    with collect("again") as found:
        compile_function(layers(5))
    assert (found.groups, found.kernels, found.from_memory, found.compiled) == (5, 1, 1, 0)
    assert set(found.seconds) <= set(report.STAGES)
    assert 0 < found.planning < found.total


def test_stages_exclude_what_is_inside_and_add_up() -> None:
    with collect("x") as found:
        with stage("trace"):
            time.sleep(0.02)
            with stage("autodiff"):
                time.sleep(0.03)
            with pytest.raises(ZeroDivisionError), stage("fold"):
                raise ZeroDivisionError
        with collect("inner") as inner, stage("fuse"):
            assert inner is found
    assert 0.02 <= found.seconds["trace"] < 0.03 <= found.seconds["autodiff"]
    assert set(found.seconds) == {"trace", "autodiff", "fold", "fuse"}
    assert sum(seconds for _, seconds, _, _ in found.rows()) == pytest.approx(found.total)
    assert report.current() is None
    with stage("fuse"):  # nobody collects
        assert report.current() is None


def test_the_text_has_every_stage_and_the_counts() -> None:
    with collect("layers") as found:
        compile_function(layers(2))
    text = str(found)
    assert text.startswith("layers: ") and text.endswith(found.summary())
    for name in found.seconds:
        assert f"\n  {name} " in text
    assert found.summary().startswith("4 operations, 2 groups, 1 kernel (1 ")


def test_the_log_prints_a_table_or_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRAPHC_LOG", "compile")
    compile_function(layers(2))
    table = capsys.readouterr().err
    assert "compile layers: " in table and "│ fuse " in table and "4 operations, 2 groups, 1 kernel (1 " in table
    compile_function(layers(1))
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("compile layers: ") and "2 operations, 1 group" in line
    monkeypatch.setenv("GRAPHC_LOG", "")
    compile_function(layers(2))
    assert capsys.readouterr().err == ""


def test_a_log_that_does_not_exist_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_LOG", "compil, compile")
    report._topics.cache_clear()
    with pytest.warns(RuntimeWarning, match="GRAPHC_LOG=compil, compile: there is no log of 'compil'; known: compile"):
        assert report.topics() == {"compile"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report.topics() == {"compile"}
