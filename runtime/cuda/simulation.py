"""Kernels of the simulated device: CUDA C built as libraries that run on the CPU (codegen/cuda/simulate.py)."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphc.codegen.cuda import simulate
from graphc.codegen.cuda.target import Target
from graphc.runtime.cuda.parameters import Parameters

# The order in which the threads of a block run: 0 ascending, 1 descending, others shuffled.
SEED = "GRAPHC_CUDA_SEED"
# What is compiled here runs a few times at most.
OPTIONS = ("-O1",)


class SimulationBuilder:
    """Builds units for the simulated device; see `codegen.cuda.kernels.Builder`."""

    def __init__(self) -> None:
        self.kind = f"simulation {simulate.key('', checked=False, options=OPTIONS)}"

    def build(self, text: str, kernels: Sequence[Any], target: Target) -> bytes:
        return simulate.build(text, checked=False, options=OPTIONS)


class SimulatedModule:
    """A loaded unit."""

    def __init__(self, binary: bytes) -> None:
        handle, path = tempfile.mkstemp(suffix=".so", dir=_folder())
        with os.fdopen(handle, "wb") as file:
            file.write(binary)
        self._library = simulate.Library(Path(path))

    def function(self, symbol: str) -> Callable[[int, int, int, Parameters], None]:
        """A kernel: call it with blocks, threads, dynamic shared bytes and parameters."""
        run = self._library.launch_raw

        def call(blocks: int, threads: int, shared: int, parameters: Parameters) -> None:
            run(symbol, parameters.address, blocks, threads, shared, int(os.environ.get(SEED, "0")))

        return call


_folders: list[str] = []


def _folder() -> str:
    if not _folders:
        _folders.append(tempfile.mkdtemp(prefix="graphc-simulated-"))
        atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
    return _folders[0]
