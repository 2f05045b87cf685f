"""Processes: how long after its start a process has imported, or has trained one step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Clocked, Figure, Size, row

ROOT = Path(__file__).resolve().parents[2]
FAMILY = "processes"

IMPORTS = {
    "graphc": "import graphc as gc; gc.Tensor, gc.nn.Linear, gc.optim.SGD",
    "numpy": "import numpy",
    "torch": "import torch",
    "jax": "import jax.numpy",
}


def until_line(command: list[str], mark: str, environment: dict[str, str] | None = None) -> float:
    """Seconds from the start of a process to the first line of its output that begins with `mark`.

    Raises `RuntimeError` where it ends without one.
    """
    start = time.perf_counter()
    told = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=told) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(mark):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended without a line {mark!r}")


def _python(code: str) -> Callable[[], Clocked]:
    command = [sys.executable, "-c", f"{code}; print('done', flush=True)"]

    def make() -> Clocked:
        module = code.split()[1].split(".")[0].rstrip(";")
        __import__(module)
        until_line(command, "done")  # files come into memory, and bytecode is written
        return Clocked(lambda: until_line(command, "done"))

    return make


def _imports(light: str) -> Case:
    peers = {name: _python(light if name == "graphc" else code) for name, code in IMPORTS.items()}
    return Case(peers, tolerance=None)


@row("import graphc", FAMILY, figure=Figure("under 60 ms more than NumPy", seconds=0.06, above="numpy"))
def import_alone(size: Size) -> Case:
    return _imports("import graphc")


@row(
    "import, tensors, layers and optimizers named", FAMILY,
    figure=Figure("under 60 ms more than NumPy", seconds=0.06, above="numpy"),
)  # fmt: skip
def import_names(size: Size) -> Case:
    return _imports(IMPORTS["graphc"])


def first_step(network: str, peer: str, mode: str) -> Callable[[], Clocked]:
    """Start to first training step of a network; mode "empty" or "warm": the cache of compiled code."""
    return _first_step([sys.executable, "-m", "benchmarks.first_step", network, peer], peer, mode)


def first_step_of_example(mode: str) -> Callable[[], Clocked]:
    """The same of examples/digits.py, which reads the real digits."""
    command = [sys.executable, "examples/digits.py", "--time-first-step"]

    def make() -> Clocked:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401  (the example reads the digits that it ships)

        return _first_step(command, "graphc", mode)()

    return make


def _first_step(command: list[str], peer: str, mode: str) -> Callable[[], Clocked]:
    def make() -> Clocked:
        __import__(peer.split(".")[0])
        directory: Any = tempfile.TemporaryDirectory(prefix="graphc-benchmark-")

        def warm() -> float:
            return until_line(command, "first step", caches(directory.name))

        def empty() -> float:
            with tempfile.TemporaryDirectory(prefix="graphc-benchmark-") as fresh:
                return until_line(command, "first step", caches(fresh))

        warm()
        if mode == "empty":
            return Clocked(empty)
        return Clocked(warm)

    return make


def caches(directory: str) -> dict[str, str]:
    """Every library's cache of compiled code, in this directory."""
    jax = {"JAX_COMPILATION_CACHE_DIR": f"{directory}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {"GRAPHC_CACHE_DIR": f"{directory}/graphc", "TORCHINDUCTOR_CACHE_DIR": f"{directory}/inductor", **jax}


def _first_steps(network: str, mode: str) -> Case:
    return Case({p: first_step(network, p, mode) for p in ("graphc", "torch", "torch.compile", "jax")}, tolerance=None)


@row("examples/digits.py: start to first step, empty cache", FAMILY, figure=Figure("under 1.0 s", seconds=1.0), rounds=5)
def example_empty(size: Size) -> Case:
    return Case({"graphc": first_step_of_example("empty")}, tolerance=None)


@row("examples/digits.py: start to first step, warm cache", FAMILY, figure=Figure("under 0.5 s", seconds=0.5), rounds=5)
def example_warm(size: Size) -> Case:
    return Case({"graphc": first_step_of_example("warm")}, tolerance=None)


@row("digits: start to first step, empty cache", FAMILY, figure=Figure("under 1.0 s", seconds=1.0), rounds=5)
def first_step_empty(size: Size) -> Case:
    return _first_steps("digits", "empty")


@row("digits: start to first step, warm cache", FAMILY, figure=Figure("under 0.5 s", seconds=0.5), rounds=5)
def first_step_warm(size: Size) -> Case:
    return _first_steps("digits", "warm")


@row("MLP: start to first step, empty cache", FAMILY, figure=Figure("0.7 of JAX's time", faster_than=("jax",), share=1 / 0.7), rounds=5)
def mlp_empty(size: Size) -> Case:
    return _first_steps("mlp", "empty")


@row("MLP: start to first step, warm cache", FAMILY, figure=Figure("1.1 of JAX's time", faster_than=("jax",), share=1 / 1.1), rounds=5)
def mlp_warm(size: Size) -> Case:
    return _first_steps("mlp", "warm")
