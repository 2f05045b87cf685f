"""The path to a real driver, with a driver library that needs no GPU in the place of libcuda."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake libcuda.so.1."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("the fake driver is written in C for Linux, and there is no C compiler")
    made = tmp_path_factory.mktemp("driver")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", made / "libcuda.so.1", "-Wl,-soname,libcuda.so.1", HERE / "fake_driver.c", "-ldl"],
        check=True,
    )
    return made


def test_everything_by_way_of_the_driver_library(folder: Path, compiled: None) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("GRAPHC_CUDA", "GRAPHC_BACKEND")}
    environment["LD_LIBRARY_PATH"] = f"{folder}:{environment.get('LD_LIBRARY_PATH', '')}"
    done = subprocess.run(
        [sys.executable, HERE / "driver_program.py", "stand-in"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout + done.stderr


def test_types_are_those_of_the_header(tmp_path: Path) -> None:
    header = next((p for p in (Path("/usr/local/cuda/include"), Path("/usr/include")) if (p / "cuda.h").exists()), None)
    if header is None or shutil.which("gcc") is None:
        pytest.skip("cuda.h or gcc is not there")
    done = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-DCHECKED", f"-I{header}", "-o", tmp_path / "checked.so", HERE / "fake_driver.c", "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
