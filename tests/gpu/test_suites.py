"""The suites of the runtime with their tensors on the device: `pytest -m slow tests/gpu/test_suites.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpu_only import CPU_ONLY
from tests.gpu.conftest import GPU

ROOT = Path(__file__).parents[2]


def test_what_is_about_the_cpu_exists() -> None:
    """A test that is gone or renamed is not silently counted as one of the CPU."""
    for name in CPU_ONLY:
        path, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), name


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["runtime", "parity", "equality"])
def test_suites_on_the_device(suite: str) -> None:
    environment = dict(os.environ)
    if not GPU:
        environment["GRAPHC_CUDA"] = "simulate"
        if suite == "equality":
            environment["GRAPHC_EQUALITY_SEEDS"] = "0:40"
        else:
            environment["GRAPHC_BACKEND"] = "interpret"
    command = [sys.executable, "-m", "pytest", "-q", f"tests/{suite}", "--device", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
