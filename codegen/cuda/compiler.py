"""CUDA C to a cubin for one exact architecture: NVRTC in this process where its library is found, else an nvcc process.

No contraction to fma (`-fmad=false`): the emitted text says where fma is meant. ptxas reports what each kernel uses.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphc.codegen.cuda.target import Target

SOURCE = "kernels.cu"
INSTALL = "pip install 'graphc[cuda]' for NVRTC, or install the CUDA tool kit and put its nvcc on PATH or set CUDA_HOME"
_COMMON = ("-fmad=false", "--std=c++17")


class CompilerMissing(RuntimeError):
    """No compiler for this text; the message says what was looked for and how to get it."""


class CompileError(RuntimeError):
    """A compiler rejected a text that graphc wrote: always a bug of graphc. The message shows the lines."""

    def __init__(self, what: str, shown: str) -> None:
        super().__init__(f"{what}; this is a bug in graphc, please report it with this text:\n{shown}")


@dataclass(frozen=True)
class Usage:
    """What ptxas gave one kernel. spill_stores, spill_loads, shared (static) in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    """Machine code of one architecture, and the usage of each kernel."""

    data: bytes
    report: dict[str, Usage]


def compile_cubin(text: str, target: Target, lines: bool = False, using: str | None = None) -> Cubin:
    """Compile a translation unit for `target.arch`.

    lines: keep line numbers, for profilers. using: "nvrtc" or "nvcc"; None takes what is there, NVRTC first.
    Raises CompilerMissing, and CompileError with the lines of the text that are wrong.
    """
    if using not in (None, "nvrtc", "nvcc"):
        raise ValueError(f'using={using!r}: there are "nvrtc" and "nvcc"')
    library = nvrtc() if using != "nvcc" else None
    if library is not None and (using == "nvrtc" or target.capability in library.architectures):
        return library.compile(text, target, lines)
    if using == "nvrtc":
        raise CompilerMissing(f"NVRTC's library libnvrtc.so was not found: {INSTALL}")
    if find_nvcc() is not None:
        return _compile_with_nvcc(text, target, lines)
    if library is not None:
        raise CompilerMissing(_too_old(f"NVRTC {library.version}", target, library.architectures))
    raise CompilerMissing(f"there is no CUDA compiler: neither libnvrtc.so nor nvcc was found; {INSTALL}")


class CubinBuilder:
    """Builds units for real devices; see `codegen.cuda.kernels.Builder`."""

    kind = "cubin"

    def build(self, text: str, kernels: Sequence[Any], target: Target) -> bytes:
        return compile_cubin(text, target).data


def available() -> str:
    """One line for a user: which compiler is there."""
    library, nvcc = nvrtc(), find_nvcc()
    if library is not None:
        return f"NVRTC {library.version} at {library.path}"
    if nvcc is not None:
        return f"nvcc {nvcc_version(nvcc)} at {nvcc}"
    return f"none; {INSTALL}"


def _too_old(compiler: str, target: Target, known: Sequence[int]) -> str:
    return (
        f"{compiler} compiles for compute capability {min(known) / 10} to {max(known) / 10}, not for this device's "
        f"{target.capability / 10}: install {'an older' if target.capability < min(known) else 'a newer'} CUDA compiler"
    )


# ---- NVRTC ----


def _nvrtc_folders() -> Iterator[Path]:
    """Where libnvrtc may lie, best first."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name], "lib64")
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        # The layout of the packages of CUDA 13, then of CUDA 12.
        yield from sorted(Path(root).glob("cu[0-9]*/lib"), reverse=True)
        yield Path(root, "cuda_nvrtc", "lib")
    yield Path("/usr/local/cuda/lib64")


def _open_nvrtc() -> tuple[ctypes.CDLL, str] | None:
    for folder in _nvrtc_folders():
        for path in sorted(folder.glob("libnvrtc.so.*"), reverse=True):
            try:
                # NVRTC opens its own second library by name, which is found only if it is already open.
                for builtins in folder.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(str(path)), str(path)
            except OSError:
                continue
    for name in ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return ctypes.CDLL(name), name
        except OSError:
            continue
    return None


class Nvrtc:
    """The library, opened."""

    def __init__(self, handle: Any, path: str) -> None:
        self.handle, self.path = handle, path
        handle.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = tuple(known)

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(self.handle, name)(*args)
        if status:
            raise RuntimeError(f"{name}: {self.handle.nvrtcGetErrorString(status).decode()}")

    def _text(self, program: Any, size_call: str, call: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(size_call, program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(call, program, data)
        return data.raw

    def compile(self, text: str, target: Target, lines: bool = False) -> Cubin:
        if target.capability not in self.architectures:
            raise CompilerMissing(_too_old(f"NVRTC {self.version}", target, self.architectures))
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), SOURCE.encode(), 0, None, None)
        try:
            flags = [f"--gpu-architecture={target.arch}", *_COMMON, "--ptxas-options=-v", *(["-lineinfo"] if lines else [])]
            encoded = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
            status = self.handle.nvrtcCompileProgram(program, len(flags), encoded)
            log = self._text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            if status:
                what = self.handle.nvrtcGetErrorString(status).decode()
                raise CompileError(f"NVRTC {self.version} rejects a kernel for {target.arch} ({what})", excerpt(text, log))
            data = self._text(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
            return Cubin(data, {name: usage for (name, _), usage in parse_report(log).items()})
        finally:
            self.handle.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def nvrtc() -> Nvrtc | None:
    """NVRTC, or None where its library is not found."""
    opened = _open_nvrtc()
    return Nvrtc(*opened) if opened else None


# ---- nvcc ----


def find_nvcc() -> str | None:
    """The path of nvcc: of CUDA_HOME or CUDA_PATH, on PATH, or in the usual place."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(name)
        if root and Path(root, "bin", "nvcc").exists():
            return str(Path(root, "bin", "nvcc"))
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


@functools.cache
def nvcc_version(path: str) -> str:
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", shown)
    return found[1] if found else "of unknown version"


def _run_nvcc(flags: Sequence[str], texts: Sequence[str], folder: Path) -> str:
    """nvcc on files of these texts in `folder`; its log. Raises CompilerMissing and CompileError."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise CompilerMissing(f"nvcc was not found: {INSTALL}")
    names = [SOURCE if len(texts) == 1 else f"kernels{i}.cu" for i in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_text(text)
    command = [nvcc, *flags, *_COMMON, "-Xptxas", "-v", "-diag-suppress=177", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    log = done.stderr + done.stdout
    if done.returncode:
        if "host compiler" in log or re.search(r"sh: .*not found", log):
            raise CompilerMissing(f"nvcc needs a host C++ compiler such as g++ on PATH: {log.strip()[-300:]}")
        if "Unsupported gpu architecture" in log or "is not defined for option" in log:
            raise CompilerMissing(f"nvcc {nvcc_version(nvcc)} does not know the architecture: {log.strip()[-300:]}")
        shown = "\n".join(excerpt(text, log, name) for name, text in zip(names, texts, strict=True) if name in log)
        raise CompileError(f"nvcc {nvcc_version(nvcc)} rejects a kernel", shown or log)
    return log


def _gencode(arch: str) -> str:
    """`-arch=sm_90a` alone makes some versions compile for a plain sm_90 too, which lacks wgmma."""
    return f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}"


def _compile_with_nvcc(text: str, target: Target, lines: bool) -> Cubin:
    with tempfile.TemporaryDirectory(prefix="graphc-nvcc-") as name:
        folder = Path(name)
        flags = ["-cubin", _gencode(target.arch), "-o", "out.cubin", *(["-lineinfo"] if lines else [])]
        log = _run_nvcc(flags, [text], folder)
        return Cubin((folder / "out.cubin").read_bytes(), {n: u for (n, _), u in parse_report(log).items()})


def usage_with_nvcc(texts: Sequence[str], archs: Sequence[str]) -> dict[tuple[str, str], Usage]:
    """The same by one call of nvcc for all."""
    codes = [_gencode(a) for a in archs]
    with tempfile.TemporaryDirectory(prefix="graphc-nvcc-") as folder:
        return parse_report(_run_nvcc(["-fatbin", *codes], texts, Path(folder)))


def usage(texts: Sequence[str], archs: Sequence[str]) -> dict[tuple[str, str], Usage]:
    """Compile several texts for several architectures ("sm_80", "sm_90a"); the usage of each (kernel, architecture)."""
    if nvrtc() is None:
        return usage_with_nvcc(texts, archs)
    found = {}
    for arch in archs:
        target = Target(int(re.sub(r"\D", "", arch)))
        for text in texts:
            found.update({(name, arch): u for name, u in compile_cubin(text, target).report.items()})
    return found


# ---- logs ----

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_report(log: str) -> dict[tuple[str, str], Usage]:
    """(kernel, architecture) -> Usage, of the log of `ptxas -v`."""
    parts = _ENTRY.split(log)
    found = {}
    for name, arch, part in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        spills, registers, shared = _SPILLS.search(part), _REGISTERS.search(part), _SHARED.search(part)
        if registers is None:
            raise ValueError(f"ptxas's report on {name} is not understood: {part.strip()[:300]}")
        stores, loads = (int(spills[1]), int(spills[2])) if spills else (0, 0)
        found[name, arch] = Usage(int(registers[1]), stores, loads, int(shared[1]) if shared else 0)
    return found


def excerpt(text: str, log: str, source: str = SOURCE, most: int = 8) -> str:
    """The errors of a compiler's log, each with the line of the text that it is about."""
    lines = text.splitlines()
    out: list[str] = []
    for entry in log.splitlines():
        if "error" not in entry:
            continue
        out.append(entry.strip())
        place = re.search(rf"{re.escape(source)}[:(](\d+)", entry)
        if place and 0 < int(place[1]) <= len(lines):
            out.append(f"    {place[1]} | {lines[int(place[1]) - 1]}")
        if len(out) >= 2 * most:
            break
    return "\n".join(out) or log.strip()[-2000:]
