"""`graphc tune`: every schedule is measured, the fastest is kept, and all give the same bits."""

from __future__ import annotations

from pathlib import Path

import graphc as gc
import pytest
from graphc.cli import main
from graphc.codegen import cache
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda import kernels
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products import contract, tuned
from graphc.codegen.cuda.target import HOPPER

from tests.codegen.contractions import dot_group


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    cache.forget()
    kernels.forget()


@pytest.mark.usefixtures("compiled")
def test_the_fastest_schedule_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(contract, "FMA_TILES", contract.FMA_TILES[5:8])
    shapes = ["--product", "f32[17,40]", "f32[40,21]", "--rounds", "2"]
    assert main(["tune", *shapes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dot f32[17, 40] x f32[40, 21], precision default, 0 operations")
    assert len(lines) == 4 and all(" ms  contract fma rows=" in line for line in lines[1:])
    assert lines[1].endswith("(stored)") and sum("(until now)" in line for line in lines) == 1
    kept = lines[1].partition("ms  ")[2].partition(" (")[0]
    group = canonicalise(gc.trace_function(gc.matmul, ["f32[17,40]", "f32[40,21]"]).function)
    sizes = {name: int(d) for name, d in group.extents}
    target = gc.device("cuda").context.target
    assert str(contract.choose(group.function, sizes, target)) == kept
    cache.forget()  # as in another process
    assert str(contract.choose(group.function, sizes, target)) == kept
    assert str(contract.choose(group.function, {**sizes, "e0": 18}, target)) != ""
    assert tuned.lookup(group.function, {**sizes, "e0": 18}, target) is None
    assert main(["tune", *shapes]) == 0
    assert sum("(until now)" in line and kept in line for line in capsys.readouterr().out.splitlines()) == 1


@pytest.mark.usefixtures("compiled")
def test_a_program_and_its_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(contract, "FMA_TILES", contract.FMA_TILES[7:8])
    source = tmp_path / "model.py"
    source.write_text("import graphc as gc\ndef net(x, w):\n    return gc.nn.functional.relu(x @ w).sum()\n")
    assert main(["tune", f"{source}:net", "--input", "f32[9,20]", "--input", "f32[20,12]", "--grad", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("dot ") == 3 and out.count("(stored)") == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a program, FILE.py:NAME, or two types with --product"),
        (["--product", "f32[2,3]", "f32[4,5]"], "must be equal"),
        (["--product", "f32[B,3]", "f32[3,5]"], "give numbers for B"),
        (["--product", "f32[2,3]", "f32[3,5]", "--device", "cpu"], 'on a CUDA device, not on "cpu"'),
        (["--product", "f32[2,3]", "f32[3,5]", "--device", "cuda:99"], "cuda:99"),
        (["--product", "f32[2,3]", "f32[3,5]", "--precision", "fast"], 'one of "highest"'),
        (["--product", "f32[2,3]", "f32[3,5]", "--rounds", "0"], "at least 1, not 0"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError('the device "cuda" is not available: there is no NVIDIA driver')

    monkeypatch.setattr("graphc.runtime.device.device", missing)
    assert main(["tune", "--product", "f32[2,3]", "f32[3,5]"]) == 2
    assert "there is no NVIDIA driver" in capsys.readouterr().err


def test_a_choice_is_stored_for_one_size() -> None:
    group = canonicalise(dot_group("f32[64, 64]", "f32[64, 64]", (1,), (0,))).function
    choice = Choice("contract fma", (("rows", 1),), (("e0", 8),), True)
    tuned.store(group, {"e0": 64}, HOPPER, choice)
    assert tuned.lookup(group, {"e0": 64}, HOPPER) == choice
    assert tuned.lookup(group, {"e0": 65}, HOPPER) is None
    with tuned.forced(group, {"e0": 64}, HOPPER, Choice("other")):
        assert tuned.lookup(group, {"e0": 64}, HOPPER) == Choice("other")
    assert tuned.lookup(group, {"e0": 64}, HOPPER) == choice
    assert tuned.decode(tuned.encode(choice)) == choice
