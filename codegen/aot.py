"""Ahead-of-time compilation: a function becomes an object file with a C interface.

The object holds the kernels, one entry function that launches them in order, and the constants
(weights). It needs nothing but memory: no Python, no allocation, no threads, no libc. Symbolic
dimensions of the function are arguments of the entry. Results are the bits that Python gives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from graphc.codegen.aot_entry import entry_text
from graphc.codegen.aot_header import check_name, header
from graphc.codegen.aot_plan import AheadPlan, plan_ahead
from graphc.codegen.constants import laid_out
from graphc.codegen.grouping import grouped
from graphc.codegen.llvm.target import Target, host_target, make_target
from graphc.codegen.prepare import prepare
from graphc.codegen.report import current, stage
from graphc.codegen.stages import optimised
from graphc.ir.function import Function

PARTS = ("", "_workspace", "_error", "_state", "_init")


@dataclass(frozen=True)
class AheadOfTime:
    """A compiled function: `object` code, the C `header`, the LLVM text of the `entry`, the `plan`, the `cpu`."""

    name: str
    cpu: str
    object: bytes = field(repr=False)
    header: str = field(repr=False)
    entry: str = field(repr=False)
    plan: AheadPlan = field(repr=False)


def plan_function(
    f: Function,
    name: str = "",
    constants: Mapping[int, Any] | None = None,
    target: Target | None = None,
    state: Mapping[int, int | None] | None = None,
) -> AheadPlan:
    """The ahead-of-time plan of a function, whose dimensions may be symbols. Arguments are those of `compile_ahead`.

    Raises `ValueError` where a constant does not have the type of its parameter.
    """
    held = {i: np.asarray(a, order="C") for i, a in (constants or {}).items()}
    for i, a in held.items():
        t = f.params[i].type
        if a.dtype != t.dtype.numpy or a.shape != t.shape:
            raise ValueError(
                f"the constant for {f.param_names[i]} is {a.dtype}{list(a.shape)}, but the parameter is {t}"
            )
    prepared, arrays = prepare(optimised(f))
    held.update({len(f.params) + i: a for i, a in enumerate(arrays)})
    changing = state or {}
    prepared, fixed = laid_out(prepared, {i: a for i, a in held.items() if i not in changing})
    held.update(fixed)
    with stage("fuse"):
        module = grouped(prepared)
    with stage("plan"):
        plan = plan_ahead(module, name or f.name, held, target or host_target(), state)
    report = current()
    if report is not None:
        report.groups += len(plan.launches)
        report.kernels += len(plan.kernels)
    return plan


def compile_ahead(
    f: Function,
    name: str,
    constants: Mapping[int, Any] | None = None,
    cpu: str = "",
    state: Mapping[int, int | None] | None = None,
) -> AheadOfTime:
    """Compile `f` under the C name `name`.

    constants: values (NumPy arrays) of parameters that become part of the object, by position.
    cpu: LLVM's name of the CPU to compile for, such as "x86-64-v3"; "" is this machine's. The results
        are the same bits for every CPU.
    state: parameters, by position, whose values are the caller's and last from call to call -> the results that are
        their new values, or None for what stays as it is. They are one block of memory; `constants` has the
        initial values.
    Raises `ValueError` if `name` is not a name for a C function, or a constant does not fit.
    """
    from graphc.codegen.llvm.emit import emit_kernel
    from graphc.codegen.llvm.jit import compile_modules

    check_name(name)
    target = make_target(cpu) if cpu else host_target()
    plan = plan_function(f, name, constants, target, state)
    with stage("emit"):
        entry = entry_text(plan, target)
        kernels = [emit_kernel(k, target) for k in plan.kernels]
    code = compile_modules([entry, *kernels], target, keep=[f"{name}{part}" for part in PARTS])
    report = current()
    if report is not None:
        report.compiled += len(plan.kernels)
        report.object_bytes += len(code)
    return AheadOfTime(name, target.cpu, code, header(plan, target), entry, plan)


def c_compiler() -> str | None:
    """The path of the system's C compiler, which links shared libraries; None if there is none."""
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return next(filter(None, (shutil.which(n) for n in names if n)), None)


def write_files(compiled: AheadOfTime, output: str | Path, shared: bool = True) -> list[Path]:
    """Write `output`.o and `output`.h, and `output`.so (.dylib on macOS) where a C compiler is at hand.

    shared: whether to link the shared library. Every file is written under a temporary name in the same
    directory and then renamed. Returns the paths written. Raises `OSError` where that fails, and
    `RuntimeError` with the linker's words where linking does.
    """
    base = Path(output)
    base.parent.mkdir(parents=True, exist_ok=True)
    linker = c_compiler() if shared else None
    with tempfile.TemporaryDirectory(dir=base.parent, prefix=f".{base.name}.") as folder:
        parts = {".o": compiled.object, ".h": compiled.header.encode()}
        for suffix, data in parts.items():
            Path(folder, f"part{suffix}").write_bytes(data)
        suffixes = list(parts)
        if linker:
            suffixes.append(".dylib" if sys.platform == "darwin" else ".so")
            _link(linker, Path(folder, "part.o"), Path(folder, f"part{suffixes[-1]}"))
        written = [base.with_name(base.name + suffix) for suffix in suffixes]
        for suffix, path in zip(suffixes, written, strict=True):
            os.replace(Path(folder, f"part{suffix}"), path)
    return written


def _link(linker: str, code: Path, library: Path) -> None:
    done = subprocess.run([linker, "-shared", "-o", str(library), str(code)], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{linker} could not link a shared library (exit code {done.returncode}): {words}")
