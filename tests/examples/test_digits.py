"""The digits example: its promises, by running it as a user does."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import graphc as gc
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*options: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], cwd=directory, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _fingerprint(output: str) -> str:
    found = re.search(r"weights sha256 ([0-9a-f]{64})", output)
    assert found
    return found[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_at_least_98_percent_and_the_same_weights_eager_and_compiled(optimizer: str, tmp_path: Path) -> None:
    compiled = _run("--optimizer", optimizer, "--threads", "2", directory=tmp_path)
    accuracy = re.search(r"test accuracy ([\d.]+)% on (\d+) digits", compiled)
    assert accuracy and float(accuracy[1]) >= 98.0 and int(accuracy[2]) == 359
    assert f"loaded back, test accuracy {accuracy[1]}%" in compiled
    assert "precision" in compiled and "recall" in compiled
    eager = _run("--optimizer", optimizer, "--threads", "1", "--eager", directory=tmp_path)
    assert _fingerprint(eager) == _fingerprint(compiled)
    weights = gc.load(tmp_path / "weights.safetensors")
    assert {name: t.shape for name, t in weights.items()} == {
        "0.weight": (16, 1, 3, 3),
        "0.bias": (16,),
        "3.weight": (32, 16, 3, 3),
        "3.bias": (32,),
        "7.weight": (10, 128),
        "7.bias": (10,),
    }


def test_the_first_step_is_timed(tmp_path: Path) -> None:
    output = _run("--epochs", "1", "--time-first-step", directory=tmp_path)
    found = re.search(r"first step finished ([\d.]+) s after start", output)
    assert found and 0 < float(found[1]) < 60


def test_the_data_and_the_split(digits: ModuleType) -> None:
    images, labels = digits.read_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert images.min() == 0.0 and images.max() == 1.0
    assert labels.shape == (1797,) and set(labels.tolist()) == set(range(10))
    train, test = digits.split(labels, seed=3)
    assert sorted([*train, *test]) == list(range(1797))
    for digit in range(10):
        count = int((labels == digit).sum())
        assert int((labels[test] == digit).sum()) == round(count * 0.2)
    np.testing.assert_array_equal(digits.split(labels, seed=3)[1], test)
    assert not np.array_equal(digits.split(labels, seed=4)[1], test)


def test_without_scikit_learn_it_says_what_to_install(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        digits.read_digits()
    assert stop.value.code == "this example reads the digits that scikit-learn ships: pip install scikit-learn"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu"], "'tpu' is not a device"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--optimizer", "lion"], "invalid choice: 'lion'"),
    ],
)
def test_options_that_make_no_sense(options: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
