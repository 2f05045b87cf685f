"""LLVM text to object code, assembly, and loaded addresses. The only file that drives LLVM.

Kernels come out of the emitter in static single assignment form, already vectorised, hoisted and
free of common subexpressions, so none of LLVM's passes over its IR is run; its code generator is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from graphc.codegen.forks import waited_for
from graphc.codegen.llvm import worker
from graphc.codegen.llvm.target import Target, host_target, llvm_binding, make_target
from graphc.codegen.report import stage

# llvmlite serialises calls anyway, but a module's context and the JIT's symbol table need one owner.
_lock = threading.RLock()


def _binding_lock() -> Any:
    """The lock of llvmlite, where that is loaded."""
    binding = sys.modules.get("llvmlite.binding.ffi")
    return getattr(getattr(getattr(binding, "lib", None), "_lock", None), "_lock", None)


# The child of a fork finds LLVM at rest.
waited_for(lambda: _lock, _binding_lock)
# At the end of the process LLVM takes itself apart: a thread that compiles is waited for, and none begins any more.
atexit.register(_lock.acquire, timeout=10.0)
_numbers = itertools.count()


@functools.cache
def _machine(target: Target) -> Any:
    return worker.machine(llvm_binding(), target.triple, target.cpu, target.features)


@functools.cache
def _jit() -> Any:
    llvm = llvm_binding()
    # JITLink places an object's code and constants together, as the small code model needs.
    jit = llvm.create_lljit_compiler(_machine(host_target()), use_jit_link=True)
    # Code lives as long as the process: an address may be in any program's table.
    jit._owned = True
    return jit


def _parse(llvm_ir: str, context: Any = None) -> Any:
    with stage("parse"):
        return worker.parse(llvm_binding(), llvm_ir, context)


@contextlib.contextmanager
def _making_code() -> Iterator[None]:
    """LLVM at work with our options: others in this process that share LLVM get its own back."""
    llvm = llvm_binding()
    with stage("code"):
        worker.without_strength_reduction(llvm, True)
        try:
            yield
        finally:
            worker.without_strength_reduction(llvm, False)


def compile_text(llvm_ir: str, target: Target | None = None) -> bytes:
    """The object file of an LLVM module in text form. Raises `RuntimeError` on invalid text."""
    with _lock:
        module = _parse(llvm_ir)
        with _making_code():
            return bytes(_machine(target or host_target()).emit_object(module))


def compile_modules(texts: Iterable[str], target: Target, keep: Collection[str]) -> bytes:
    """The object file of several modules that refer to each other; only the symbols in `keep` are visible outside.

    Raises `RuntimeError` on invalid text and on a symbol that is defined twice.
    """
    with _lock:
        context = llvm_binding().create_context()
        whole, *others = (_parse(text, context) for text in texts)
        for module in others:
            whole.link_in(module)
        for function in whole.functions:
            if not function.is_declaration and function.name not in keep:
                function.linkage = "internal"
        with _making_code():
            return bytes(_machine(target).emit_object(whole))


def assembly(llvm_ir: str, target: Target | None = None) -> str:
    """The assembly text of an LLVM module in text form."""
    with _lock:
        module = _parse(llvm_ir)
        with _making_code():
            return str(_machine(target or host_target()).emit_assembly(module))


def verify(llvm_ir: str) -> None:
    """Raise `RuntimeError` where LLVM's verifier objects to the module."""
    with _lock:
        _parse(llvm_ir).verify()


def load(object_bytes: bytes, symbol: str, process_symbols: bool = False) -> int:
    """Link an object into this process and give the address of `symbol`, valid for ever.

    process_symbols: the object refers to functions of the process (such as those of libc).
    """
    return load_all(object_bytes, (symbol,), process_symbols)[symbol]


def load_all(object_bytes: bytes, symbols: tuple[str, ...], process_symbols: bool = False) -> dict[str, int]:
    """Link an object into this process and give the addresses of `symbols`, valid for ever."""
    llvm = llvm_binding()
    with stage("link"), _lock:
        builder = llvm.JITLibraryBuilder().add_object_img(object_bytes)
        if process_symbols:
            builder.add_current_process()
        for symbol in symbols:
            builder.export_symbol(symbol)
        tracker = builder.link(_jit(), f"graphc.{next(_numbers)}")
        addresses = {symbol: int(tracker[symbol]) for symbol in symbols}
        tracker.detach()
        return addresses


__all__ = ["assembly", "compile_modules", "compile_text", "host_target", "load", "load_all", "make_target", "verify"]
