"""CUDA C run on the CPU: a translation unit built as a library with codegen/c/simulate.h in front of it.

A kernel's launcher is `int simulate_NAME(const void *const *args, long long blocks, int threads, long long dynamic_shared,
unsigned seed)`: args point to the values of the arguments, as for cuLaunchKernel; 0, or 1 and `simulate_message()`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graphc.codegen.c.prelude import FOLDER, header_functions
from graphc.codegen.cuda.compiler import CompileError, CompilerMissing, excerpt

SOURCE = "kernels.cu"
_FLAGS = (
    "-std=c++17", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden",
    "-fno-ipa-reference", "-U_FORTIFY_SOURCE", "-fno-exceptions", "-fno-asynchronous-unwind-tables",
)  # fmt: skip
# fma in hardware, which graphc asks of every CPU.
_MACHINE = ("-march=x86-64-v3",) if platform.machine() in ("x86_64", "AMD64") else ()
# What the C++ compiler can check by itself; each trap names the kernel, block and thread. Not shifts: where a value is not
# selected its shifts may be too far.
_CHECKS = (
    "-g1", "-fsanitize=bounds,alignment,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)  # fmt: skip
_KERNEL = re.compile(r'^extern "C" __global__', re.MULTILINE)
_WORD = re.compile(r"\b[A-Za-z]\w*\b")
_NAME = re.compile(r"\b(?!__)(\w+)\s*\(")


class SimulationError(RuntimeError):
    """A kernel did on the CPU what it must not do on a device. The message names kernel, block, thread and what it did."""


def compiler() -> str:
    """The C++ compiler: $CXX, or g++. Raises CompilerMissing."""
    asked = os.environ.get("CXX", "g++")
    found = shutil.which(asked)
    if found is None:
        raise CompilerMissing(
            f"running CUDA kernels on the CPU needs the C++ compiler {asked!r}, which is not on PATH; install g++ or set CXX"
        )
    return found


def kernel_names(text: str) -> list[str]:
    """The kernels that a translation unit defines, in order."""
    names = []
    for match in _KERNEL.finditer(text):
        name = _NAME.search(text, match.end())
        if name is None:
            raise ValueError(f"no name follows the kernel at {text[match.start() : match.start() + 80]!r}")
        names.append(name[1])
    return names


def source(text: str) -> str:
    """The C++ of a translation unit: the header, the kernels with their lines, a launcher for each."""
    out = ['#include "simulate.h"']
    if set(_WORD.findall(text)) & (header_functions("hopper.h").keys() - header_functions("prelude.cuh").keys()):
        out.append('#include "simulate_hopper.h"')
    out.append(f'#line 1 "{SOURCE}"')
    names = iter(kernel_names(text))
    for number, line in enumerate(text.splitlines(), 1):
        if _KERNEL.match(line):
            out += ["#undef SIMULATED_SECTION", f'#define SIMULATED_SECTION "shared_{next(names)}"']
            out.append(f'#line {number} "{SOURCE}"')
        out.append(line)
    return "\n".join([*out, *(f"SIMULATED_KERNEL({n})" for n in kernel_names(text))]) + "\n"


def _flags(checked: bool, options: Sequence[str]) -> list[str]:
    return [*_FLAGS, *_MACHINE, *(("-Og", *_CHECKS) if checked else ("-O2",)), *options]


def build(text: str, checked: bool = True, options: Sequence[str] = ()) -> bytes:
    """The shared library of a translation unit.

    checked: with the compiler's checks of array bounds, alignment and overflow, and lines for messages; less
    optimised, so that it compiles faster. options: more flags, such as "-fsanitize=address". Raises CompileError with the lines of the text.
    """
    flags = _flags(checked, options)
    with tempfile.TemporaryDirectory(prefix="graphc-simulate-") as folder:
        path, out = Path(folder, "unit.cpp"), Path(folder, "unit.so")
        path.write_text(source(text))
        done = subprocess.run(
            [compiler(), *flags, f"-I{FOLDER}", str(path), "-o", str(out), "-lm", "-lpthread"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CompileError("the C++ compiler rejects a kernel in simulation", excerpt(text, done.stderr, SOURCE))
        return out.read_bytes()


@functools.cache
def _headers() -> bytes:
    return b"".join((FOLDER / name).read_bytes() for name in sorted(p.name for p in FOLDER.glob("*.h")))


def key(text: str, checked: bool = True, options: Sequence[str] = ()) -> str:
    """The hash of all that decides the library of a text."""
    digest = hashlib.sha256(_headers())
    for part in (text, *_flags(checked, options), compiler()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


# Stacks of the threads of a block, for all libraries: with guard pages of their own for each, a process of many
# kernels would have more pieces of memory than the system allows. So one launch runs at a time.
_MOST_THREADS = 1024
_stacks = (ctypes.c_void_p * _MOST_THREADS)()
_running = threading.Lock()


class Library:
    """A loaded library of kernels."""

    def __init__(self, path: Path, text: str = "") -> None:
        self.path, self.text = path, text
        self.handle = ctypes.CDLL(str(path))
        self.handle.simulate_message.restype = ctypes.c_char_p
        self.handle.simulate_fault.restype = ctypes.c_ulonglong
        self.handle.simulate_share_stacks(_stacks)
        self._launchers: dict[str, Any] = {}

    def launcher(self, name: str) -> Any:
        found = self._launchers.get(name)
        if found is None:
            found = self._launchers[name] = getattr(self.handle, f"simulate_{name}")
            found.argtypes = [ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_longlong, ctypes.c_uint]
        return found

    def launch(
        self, name: str, arguments: Sequence[Any], blocks: int, threads: int, dynamic_shared: int = 0, seed: int = 0
    ) -> None:
        """Run one kernel. arguments: ctypes values, in the order of the kernel's parameters. Raises SimulationError."""
        pointers = (ctypes.c_void_p * max(1, len(arguments)))(*map(ctypes.addressof, arguments))
        self.launch_raw(name, ctypes.addressof(pointers), blocks, threads, dynamic_shared, seed)

    def launch_raw(self, name: str, pointers: int, blocks: int, threads: int, dynamic_shared: int, seed: int) -> None:
        """The same with the address of an array of addresses of argument values."""
        with _running:
            if self.launcher(name)(pointers, blocks, threads, dynamic_shared, seed):
                raise SimulationError(self._message())

    def _message(self) -> str:
        message: str = self.handle.simulate_message().decode(errors="replace")
        offset = self.handle.simulate_fault()
        line = self._line_of(offset) if offset else None
        if line is not None:
            message += f"; in line {line}"
            lines = self.text.splitlines()
            if 0 < line <= len(lines):
                message += f": {lines[line - 1].strip()}"
        numbers = [int(n) for n in re.findall(r"\bin line (\d+) \(", message)]
        lines = self.text.splitlines()
        for n in dict.fromkeys(n for n in numbers if 0 < n <= len(lines)):
            message += f"\n  line {n}: {lines[n - 1].strip()}"
        return message

    def _line_of(self, offset: int) -> int | None:
        """The line of the kernels' text at an address of the library, where it was built with lines."""
        tool = shutil.which("addr2line")
        if tool is None:
            return None
        shown = subprocess.run(
            [tool, "-i", "-e", str(self.path), hex(offset)], capture_output=True, text=True, check=False
        ).stdout
        found = re.search(rf"{re.escape(SOURCE)}:(\d+)", shown)
        return int(found[1]) if found else None


def library(text: str, folder: Path, checked: bool = True, options: Sequence[str] = ()) -> Library:
    """The library of a text, built into `folder` unless it is there."""
    path = folder / f"{key(text, checked, options)}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{path.name}.{os.getpid()}"
        written.write_bytes(build(text, checked, options))
        written.replace(path)
    return Library(path, text)


def words(values: Iterable[tuple[int, int]]) -> list[Any]:
    """ctypes values of (integer, bytes) pairs: what a launch passes for extents and addresses."""
    return [(ctypes.c_int if size == 4 else ctypes.c_longlong)(value) for value, size in values]
