"""The benchmarks run, compare like with like, and judge their figures. No test here looks at a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import limits, profile
from benchmarks.case import Case, Clocked, Figure, Statement, all_rows, toy
from benchmarks.harness import Result, as_json, judge
from benchmarks.measure import LEAST, Timed, check, make_peers, measure, ratio
from benchmarks.report import best_over, markdown, show_time
from benchmarks.work import bytes_of, operations_of

ROOT = Path(__file__).resolve().parents[2]
# One row of each kind whose work runs in this process; those that start processes are left to the benchmark itself.
IN_PROCESS = [
    r for r in all_rows() if r.family not in ("processes", "compiled functions")
]


@pytest.mark.parametrize("row", IN_PROCESS, ids=lambda r: r.name)
def test_row_computes_what_numpy_computes(row) -> None:
    case = row.make(toy)
    made = make_peers(case, lambda p: p in ("graphc", "numpy"))
    assert "graphc" in made
    assert case.tolerance is not None and case.tolerance <= 1e-3
    check(made, case.tolerance)
    assert case.limit in ("", "fma", "memory", "read")
    assert not case.limit or (case.flops if case.limit == "fma" else case.bytes) > 0


def test_required_figures_are_rows() -> None:
    figures = {r.name for r in all_rows() if r.figure is not None}
    assert {
        "import graphc",
        "digits: start to first step, empty cache",
        "digits: start to first step, warm cache",
        "x + y",
        "digits, batch 64, compiled",
        "1024 x 1024 x 1024, one thread",
        "chain of 10 operations",
    } <= figures


def test_check_rejects_another_result() -> None:
    with pytest.raises(ValueError, match=r"torch differs from graphc by 1 where values reach 1"):
        check({"graphc": lambda: np.ones(3), "torch": lambda: np.zeros(3)}, 1e-4)
    with pytest.raises(ValueError, match=r"numpy gives 2 results, graphc 1"):
        check({"graphc": lambda: np.ones(3), "numpy": lambda: (np.ones(3), np.ones(3))}, 1e-4)


def test_rounds_meet_all_peers() -> None:
    calls: list[str] = []
    clock = iter([3.0, 5.0])

    def timed() -> float:
        calls.append("b")
        return next(clock)

    effort = LEAST.__class__(rounds=2, batch=0.0, batches=1)
    times = measure({"a": lambda: calls.append("a"), "b": Clocked(timed)}, effort)
    assert calls == ["a", "b", "b", "a"]
    assert times["b"] == [3.0, 5.0] and len(times["a"]) == 2


def test_slow_peers_have_fewer_rounds() -> None:
    times = measure({"a": Clocked(lambda: 9.0), "b": Clocked(lambda: 3.0)}, LEAST.__class__(rounds=4, batch=0.0, batches=1))
    assert times == {"a": [9.0, 9.0], "b": [3.0] * 4}
    assert ratio(times["a"], times["b"]) == 3.0


def test_statement_runs_in_its_names() -> None:
    seen: list[int] = []
    Timed(Statement("seen.append(x)", {"seen": seen, "x": 7}), LEAST).round()
    assert seen == [7]


def test_missing_library_is_left_out() -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'jax'", name="jax.numpy")

    def broken() -> None:
        raise ModuleNotFoundError("No module named 'graphc.nothing'", name="graphc.nothing")

    assert list(make_peers(Case({"jax": missing, "numpy": lambda: lambda: 0}))) == ["numpy"]
    with pytest.raises(ModuleNotFoundError):
        make_peers(Case({"graphc": broken}))


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("", seconds=2.5), True),
        (Figure("", seconds=1.5), False),
        (Figure("", seconds=1.5, above="numpy"), True),
        (Figure("", seconds=0.5, above="numpy"), False),
        (Figure("", seconds=0.5, above="jax"), None),
        (Figure("", of_limit=1.3), False),
        (Figure("", of_limit=2.0), True),
        (Figure("", faster_than=("torch",)), True),
        (Figure("", faster_than=("torch", "numpy")), False),
        (Figure("", faster_than=("torch", "jax")), None),
    ],
)
def test_judgement(figure: Figure, verdict: bool | None) -> None:
    times = {"graphc": [2.0, 2.0, 9.0], "numpy": [1.0, 1.0, 9.0], "torch": [4.0, 4.0, 4.0], "limit": [1.25, 1.25, 9.0]}
    assert judge(figure, Result("row", "family", 1, times)) is verdict


def test_limits_are_limits() -> None:
    run, operations = limits.fma_work(0.0)
    run()
    assert operations % (2 * limits.CHAINS * limits.LANES) == 0
    run, moved = limits.read_work(1 << 16)
    _, x, y = run()
    y[:] = 0
    run()
    assert y.sum(dtype=np.float64) * x.itemsize == moved
    for kind, inputs in (("copy", 1), ("triad", 2), ("copy_stream", 1), ("triad_stream", 2)):
        run, moved = limits.stream_work(1 << 16, kind)
        _, arrays = run()
        assert moved % sum(a.nbytes for a in arrays) == 0 and len(arrays) == inputs + 1
        for i, a in enumerate(arrays[:-1]):
            a[:] = np.arange(a.size) % 97 + i
        run()
        wanted = arrays[0] + (3 * arrays[1] if inputs == 2 else 0)
        assert np.array_equal(arrays[-1], wanted)


def test_table() -> None:
    times = {"graphc": [2e-6, 2e-6], "numpy": [4e-6, 4e-6], "torch": [3e-6, 3e-6], "limit": [1e-6, 1e-6]}
    result = Result("x + y", "eager", 1, times, bytes=8e3, limit="memory", figure="under 3 us", met=True)
    assert best_over(result) == "1.50 torch"
    text = markdown([result])
    assert "| x + y | 1 | 2.00 us | 4.00 us | 3.00 us | 1.50 torch | 4 GB/s | 50 % | under 3 us: reached |" in text
    assert [show_time(t) for t in (None, 1.0, 0.0123, 1.5e-7, 123e-6)] == ["", "1.00 s", "12.3 ms", "150 ns", "123 us"]
    told = json.loads(as_json([result], {"cpu": "x"}))
    assert told["rows"][0]["times"] == times


def test_command(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks", "--toy", "--peers", "graphc,numpy", "--only", "x + y", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())
    rows = {r["name"]: r for r in told["rows"]}
    assert set(rows) == {"x + y", "call of a compiled x + y, 4 elements"}
    assert set(rows["x + y"]["times"]) == {"graphc", "numpy"}
    assert "x + y" in done.stdout


def test_command_tells_what_it_lacks() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nothing of the kind"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no row or family has 'nothing of the kind' in its name; see --list" in done.stderr


def test_work_of_a_group() -> None:
    from graphc.ir.function import Builder
    from graphc.ir.types import TensorType

    b = Builder("f")
    x, w = b.param(TensorType.parse("f32[4, 6]")), b.param(TensorType.parse("f32[6, 3]"))
    product = b.emit("dot", x, w, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))
    group = b.build((b.emit("sum", b.emit("add", product, product), axes=(0,)),))
    assert operations_of(group) == 4 * 3 * 6 + 4 * 3 + 4 * 3
    assert bytes_of(group) == 4 * (24 + 18 + 3)


def test_profile_shows_every_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.py"
    file.write_text("import graphc as gc\n\n\ndef net(x, t):\n    return gc.nn.functional.cross_entropy(gc.exp(x) @ x.T, t)\n")
    monkeypatch.setattr(profile, "FOOTPRINTS", (1 << 16,))
    assert profile.main([f"{file}:net", "--input", "f32[8,8]", "--input", "i64[8]"]) == 0
    shown = capsys.readouterr().out
    groups = [line for line in shown.splitlines() if "model.py:5" in line]
    assert groups and f"{len(groups)} groups," in shown
    assert profile.main([f"{file}:nett", "--input", "f32[8,8]"]) == 2
