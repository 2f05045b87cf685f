"""The path to a driver, end to end, where neither a GPU nor pycuda is installed: fake_driver below, a stand-in for pycuda beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.codegen.device import cache_folder
from tests.gpu import fake_driver

HERE = Path(__file__).parent


def test_everything_by_way_of_the_driver_library(compiled: None) -> None:
    if reason := fake_driver.missing(pycuda=False):
        pytest.skip(reason)
    folder = fake_driver.build(cache_folder())
    environment = fake_driver.environment(folder)
    environment["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run(
        [sys.executable, HERE / "driver_program.py", "stand-in"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout + done.stderr
    assert not done.stderr, done.stderr
