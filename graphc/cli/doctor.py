"""show what graphc finds on this machine: devices, CPU, versions, the cache

    graphc doctor
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

Row = tuple[str, str]
_PACKAGES = ("numpy", "llvmlite", "ml_dtypes", "lark", "pycuda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"graphc {importlib.metadata.version('graphc')}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    # As it was before: finding out about the CPU may compile something.
    cache = list(_cache())
    for rows in (_python(), _cpu(), _memory(), _devices(), _compiler(), cache):
        for name, text in rows:
            table.add_row(name, text)
        table.add_section()
    Console(highlight=False).print(table)


def _python() -> Iterator[Row]:
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _cpu() -> Iterator[Row]:
    from graphc.codegen.llvm.target import host_target, llvm_binding

    try:
        target = host_target()
    except RuntimeError as error:
        yield "CPU", f"cannot be used: {error}"
        return
    version = ".".join(map(str, llvm_binding().llvm_version_info))
    yield "LLVM", version
    yield "CPU", f"{target.cpu} ({target.triple})" + (" by GRAPHC_CPU" if os.environ.get("GRAPHC_CPU") else "")
    yield "vectors", f"{target.vector_bits} bits, {target.vector_bits // 32} float32 lanes"
    features = [f[1:] for f in target.features.split(",") if f.startswith("+")]
    yield "features", " ".join(sorted(features)) or f"those of {target.cpu}"
    yield from _threads()


def _memory() -> Iterator[Row]:
    from graphc.codegen import pages
    from graphc.runtime import memory

    yield "memory", pages.show_size(pages.physical())
    yield "huge pages", pages.huge_pages()
    yield "memory kept for reuse", f"at most {pages.show_size(memory.get_cache_limit())}"


def _threads() -> Iterator[Row]:
    from graphc.codegen.costs import state
    from graphc.codegen.llvm.runner import runner

    try:
        threads = str(runner().get_threads())
        yield "threads", threads + (" by GRAPHC_THREADS" if os.environ.get("GRAPHC_THREADS") else "")
    except ValueError as error:
        yield "threads", f"cannot be used: {error}"
    try:
        yield "costs", state()
    except ValueError as error:
        yield "costs", f"cannot be used: {error}"


def _devices() -> Iterator[Row]:
    from graphc.runtime import cuda

    yield "device cpu", "ready"
    missing = cuda.why_unavailable()
    if missing is not None:
        yield "device cuda", missing
    for index in range(cuda.device_count()):
        try:
            p = cuda.get_device_properties(index)
        except RuntimeError as error:
            yield f"device cuda:{index}", str(error)
            continue
        memory = f"{p.total_memory / (1 << 30):.1f} GiB, {p.multi_processor_count} multiprocessors"
        yield f"device cuda:{index}", f"ready: {p.name}, compute capability {p.major}.{p.minor}, {memory}"


def _compiler() -> Iterator[Row]:
    from graphc.codegen.aot import c_compiler
    from graphc.codegen.cuda import compiler

    found = c_compiler()
    yield "C compiler", found or "none (cc, gcc, clang or $CC): graphc compile links no shared library"
    yield "CUDA compiler", compiler.available()
    if os.environ.get("GRAPHC_CUDA", "").startswith("simulate"):
        from graphc.codegen.cuda import simulate

        try:
            yield "C++ compiler", f"{simulate.compiler()}, for the simulated device"
        except compiler.CompilerMissing as error:
            yield "C++ compiler", f"none: {error}"


def _cache() -> Iterator[Row]:
    from graphc.codegen import cache

    try:
        disk = cache.disk()
    except ValueError as error:
        yield "cache", f"cannot be used: {error}"
        return
    if disk is None:
        yield "cache", "turned off on disk by GRAPHC_CACHE=0"
        return
    yield "cache", str(disk.path)
    yield "cache state", _state(str(disk.path))
    count, size = disk.contents()
    yield "cache holds", f"{count} kernels, {size:,} bytes of at most {disk.limit:,}"
    s = cache.statistics()
    yield "this process", f"{s.disk_hits} read from disk, {s.misses} compiled, {s.damaged} damaged"


def _state(path: str) -> str:
    if not os.path.isdir(path):
        return "not made yet"
    info = os.stat(path)
    mode = f"mode {info.st_mode & 0o777:o}"
    if hasattr(os, "geteuid") and info.st_uid != os.geteuid():
        return f"not used: it belongs to another user ({mode})"
    if info.st_mode & 0o022:
        return f"not used: others may write to it ({mode}); chmod 700 mends that"
    return f"yours, {mode}" + ("" if os.access(path, os.W_OK) else ", but not writable")
