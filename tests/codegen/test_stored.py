"""Programs on disk: found by the next process, never where anything about them differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen import cache, kernels, stored
from graphc.codegen.program import Program, compile_function
from graphc.codegen.report import collect
from graphc.ir.function import Builder, DenseArray, Function, Loc
from graphc.ir.interpret import interpret
from graphc.ir.types import F32, TensorType


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    cache.forget()
    monkeypatch.setattr(kernels, "_linked", {})
    monkeypatch.setattr(kernels, "_memory", {})
    yield tmp_path / "cache"
    cache.forget()


def chain(length: int = 12, add: float = 1.5, line: int = 3, table: Any = (1.0, 2.0, 3.0)) -> Function:
    b = Builder("chain")
    x = b.param(TensorType.parse("f32[4, 3]"), "x")
    y = b.param(TensorType.parse("f32[4, 3]"), "y")
    b.loc = Loc("model.py", line)
    row = b.constant(value=DenseArray(np.array(table, np.float32)))
    one = b.full(b.constant(value=DenseArray(np.array(add, np.float32))), shape=(4, 3))
    for _ in range(length):
        x = b.add(b.mul(x, y), b.broadcast(row, shape=(4, 3), axes=(1,)))
        x = b.sub(x, b.broadcast(b.sum(b.add(x, one), axes=(1,)), shape=(4, 3), axes=(0,)))
    return b.build([x])


def anew(f: Function, **options: Any) -> tuple[Program, bool]:
    """As the next process compiles it, and whether it was found."""
    cache.forget()
    kernels._linked.clear()
    stored._recent.clear()
    kernels._memory.clear()
    with collect("x") as report:
        program = compile_function(f, keep=True, **options)
    return program, "fuse" not in report.seconds


def result(program: Program) -> np.ndarray[Any, Any]:
    x, y = inputs()
    out = np.empty((4, 3), np.float32)
    program.run([x.ctypes.data, y.ctypes.data], [out.ctypes.data])
    return out


def inputs() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), np.full((4, 3), 0.25, np.float32)


def test_the_next_process_plans_nothing_and_gives_the_same_bits() -> None:
    f = chain()
    first, found = anew(f)
    assert not found
    second, found = anew(f)
    assert found
    expected = interpret(f, list(inputs()))[0]
    assert result(first).tobytes() == result(second).tobytes() == expected.tobytes()
    assert str(second.plan) == str(first.plan).replace(first.plan.entry.name, f.name)
    assert second.donated == first.donated
    # What a program is made of can still be looked at.
    assert str(second.function) == str(first.function) and str(second.module) == str(first.module)


def test_the_same_process_reads_nothing() -> None:
    f = chain()
    first, _ = anew(f)
    cache.forget()
    with collect("x") as report:
        second = compile_function(chain(), keep=True)
    assert "fuse" not in report.seconds and report.from_disk == 0 and report.from_memory == report.kernels > 0
    assert second.plan.launches == first.plan.launches and result(second).tobytes() == result(first).tobytes()
    assert str(second.module) == str(first.module)
    assert all(kept.plan.entry is None for kept in stored._recent.values()), "functions need not last"


def test_only_the_last_programs_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_RECENT", 2)
    for line in range(4):
        anew(chain(line=line))
        compile_function(chain(line=line + 10), keep=True)
        compile_function(chain(line=line + 20), keep=True)
        assert len(stored._recent) == 2


def test_counts_are_those_of_the_plan() -> None:
    f = chain()
    reports = []
    for _ in range(2):
        cache.forget()
        kernels._linked.clear()
        stored._recent.clear()
        kernels._memory.clear()
        with collect("x") as report:
            compile_function(f, keep=True)
        reports.append(report)
    made, found = reports
    assert (found.operations, found.optimised, found.groups, found.kernels) == (
        made.operations, made.optimised, made.groups, made.kernels,
    )  # fmt: skip
    assert made.compiled == found.from_disk == made.kernels and found.compiled == 0


@pytest.mark.parametrize(
    "other",
    [{"add": 1.25}, {"add": -0.0}, {"line": 4}, {"table": (1.0, 2.0, 4.0)}, {"length": 13}],
    ids=lambda o: next(iter(o)) + str(next(iter(o.values()))),
)
def test_another_program_is_another_entry(other: dict[str, Any]) -> None:
    anew(chain(add=0.0))
    program, found = anew(chain(**{"add": 0.0, **other}))
    assert not found
    assert result(program).tobytes() == interpret(chain(**{"add": 0.0, **other}), list(inputs()))[0].tobytes()


def test_donations_and_functions_called_are_part_of_the_key() -> None:
    assert stored.key_of(chain(), ()) != stored.key_of(chain(), [(0, 0)])

    def calling(callee: Function) -> Function:
        b = Builder("f")
        x = b.param(TensorType(F32, (4, 3)))
        return b.build([b.call(x, x, function=callee)])

    assert stored.digest(calling(chain())) != stored.digest(calling(chain(add=2.0)))
    assert stored.digest(calling(chain())) == stored.digest(calling(chain()))


def test_a_kernel_that_is_gone_or_an_entry_that_is_damaged_means_planning_again(place: Path) -> None:
    f = chain()
    anew(f)
    key = stored.key_of(f, ())
    for file in place.iterdir():
        if not file.name.startswith(key):
            file.unlink()
    program, found = anew(f)
    assert not found
    cache.put(key, b"no pickle")
    program, found = anew(f)
    assert not found
    assert result(program).tobytes() == interpret(f, list(inputs()))[0].tobytes()
    assert anew(f)[1]


def test_small_programs_and_large_constants_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    anew(chain(1))
    assert not anew(chain(1))[1]
    monkeypatch.setattr(stored, "MOST_CONSTANT_BYTES", 4)
    anew(chain())
    assert not anew(chain())[1]

