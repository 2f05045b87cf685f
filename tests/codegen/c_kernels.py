"""Kernels as C99, many in one translation unit: compiled once by gcc, run on NumPy arrays, compared to the bit.

Also collects the kernels that the tests of the LLVM emitter compare with the oracle, so that both emitters have the same tests.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.c.c99 import emit_kernels
from graphc.codegen.expr import binary, index, var
from graphc.codegen.loops import Buffer, Grid, If, Kernel, print_kernel

from tests.codegen import device
from tests.codegen.kernel_oracle import interpret, same_bits

Array = np.ndarray[Any, Any]
FLAGS = ("-std=c99", "-pedantic", "-Wall", "-Werror", "-ffp-contract=off")


def c_library(text: str, level: str, flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """A C text as a library. Fails with the compiler's words; skips, visibly, where there is no gcc."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("C99 is not compiled here: there is no gcc")
    key = hashlib.sha256(f"{text} {level} {flags}".encode()).hexdigest()[:24]
    folder = Path(__file__).parents[2] / ".pytest_cache" / "d" / "c99"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            source, built = Path(own, "kernels.c"), Path(own, "kernels.so")
            source.write_text(text)
            command = [compiler, *flags, level, "-shared", "-fPIC", "-o", str(built), str(source), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, _with_lines(done.stderr, text)
            os.replace(built, library)
        for old in sorted(folder.glob("*.so"), key=lambda p: p.stat().st_mtime)[:-40]:
            old.unlink(missing_ok=True)
    return ctypes.CDLL(str(library))


def _with_lines(words: str, text: str) -> str:
    return words[:3000] + ("\n" + text if len(text) < 4000 else "")


def call(function: Any, kernel: Kernel, arrays: Mapping[Buffer, Array], extents: Mapping[str, int], begin: int, end: int) -> tuple[dict[Buffer, Array], list[int]]:
    """Run on copies of `arrays`; gives (arrays after, [site, value])."""
    copies = {b: np.ascontiguousarray(a).copy() for b, a in arrays.items()}
    words = [copies[b].ctypes.data for b in kernel.buffers] + [extents[n] for n in kernel.extents]
    args, error = np.array(words or [0], np.int64), np.zeros(3, np.int64)
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    function(args.ctypes.data, begin, end, error.ctypes.data)
    return copies, error[:2].tolist()


@dataclass(frozen=True)
class Run:
    """A kernel with what it is run on, and what it must give: arrays and [site, value]."""

    kernel: Kernel
    arrays: Mapping[Buffer, Array]
    extents: Mapping[str, int]
    begin: int
    end: int
    expected: tuple[Mapping[Buffer, Array], list[int]]


class Batch:
    """Runs that are compiled together. Kernels get names of their own."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.names: dict[Kernel, Kernel] = {}

    def add(
        self, kernel: Kernel, arrays: Mapping[Buffer, Array], extents: Mapping[str, int], begin: int = 0, end: int = 1,
        expected: tuple[Mapping[Buffer, Array], list[int]] | None = None,
    ) -> None:
        if kernel not in self.names:
            self.names[kernel] = replace(kernel, name=f"k{len(self.names)}")
        held = {b: a.copy() for b, a in arrays.items()}
        found = expected or interpret(kernel, held, extents, begin, end)
        self.runs.append(Run(self.names[kernel], held, dict(extents), begin, end, found))

    def text(self) -> str:
        return emit_kernels(list(self.names.values()))

    def check(self, level: str, keep: Callable[[int], bool] = lambda number: True) -> None:
        """Compile and run at an optimisation level such as "-O3"; `keep` chooses among the kernels."""
        chosen = {k.name for i, k in enumerate(self.names.values()) if keep(i)}
        kernels = [k for k in self.names.values() if k.name in chosen]
        library = c_library(emit_kernels(kernels), level)
        for run in self.runs:
            if run.kernel.name in chosen:
                got, error = call(getattr(library, run.kernel.name), run.kernel, run.arrays, run.extents, run.begin, run.end)
                wrong = [b.name for b in run.kernel.buffers if not same_bits(got[b], run.expected[0][b])]
                if wrong or error != run.expected[1]:
                    text = emit_kernels([run.kernel])
                    pytest.fail(f"{level}: {wrong} differ, error {error} for {run.expected[1]}\n{print_kernel(run.kernel)}\n{text}")


def parameters(test: Any) -> Iterator[dict[str, Any]]:
    """The arguments that pytest would call a test with."""
    axes = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            names = [n.strip() for n in mark.args[0].split(",")]
            axes.append([dict(zip(names, v if len(names) > 1 else (v,))) for v in mark.args[1]])
    for combination in itertools.product(*axes):
        yield {name: v for part in combination for name, v in part.items()}


def collect(batch: Batch, module: Any, tests: list[Any]) -> None:
    """Run tests of another file with `batch.add` in the place of the comparison with LLVM's code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "assert_same", lambda kernel, arrays, extents, begin=0, end=1, targets=(): batch.add(kernel, arrays, extents, begin, end))
        for test in tests:
            for arguments in parameters(test):
                test(**arguments)


def on_device(kernel: Kernel, narrow: bool) -> Kernel:
    """A CPU kernel as a device kernel whose first thread does all the work; `begin` and `end` are extents."""
    alone = If(binary("eq", var("thread"), index(0)), kernel.body)
    return replace(
        kernel, body=(alone,), extents=(*kernel.extents, "begin", "end"), grid=Grid(index(1), 32, (), narrow)
    )


def check_simulated(batch: Batch, narrow: bool, keep: Callable[[int], bool] = lambda number: True) -> None:
    """The kernels of a batch as CUDA C, simulated, give what they must."""
    names = {k.name: on_device(k, narrow) for i, k in enumerate(batch.names.values()) if keep(i)}
    built = device.library(device.cuda_text(list(names.values())))
    for run in batch.runs:
        kernel = names.get(run.kernel.name)
        if kernel is None:
            continue
        with device._allocation() as held:
            memory = {b: device.Memory(a.shape, a.dtype, a, b.kind != "in") for b, a in run.arrays.items()}
            held.extend(memory.values())
            error = device.launch(built, kernel, memory, {**run.extents, "begin": run.begin, "end": run.end}, 0)
            wrong = [b.name for b in kernel.buffers if not same_bits(memory[b].array, run.expected[0][b])]
            if wrong or list(error) != run.expected[1] or not all(m.check() for m in memory.values()):
                text = device.cuda_text([kernel])
                pytest.fail(f"{wrong} differ, error {error} for {run.expected[1]}\n{print_kernel(kernel)}\n{text}")
