"""Runs what lowering gives, as native code, on NumPy arrays: the launch of a program without a program."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from graphc.codegen.expr import Expr
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.jit import compile_text, load
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.loops import Buffer, Kernel
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.types import TensorType, substitute

Array = np.ndarray[Any, Any]


def evaluate(e: Expr, values: Mapping[str, int]) -> int:
    """An I64 expression over extents."""
    if e.op == "const":
        return int(e.data)
    if e.op == "var":
        return values[e.data]
    args = [evaluate(a, values) for a in e.args]
    table: dict[str, Callable[..., int]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "idiv": lambda a, b: a // b if b else 0,
        "irem": lambda a, b: a % b if b else 0,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
        "eq": lambda a, b: a == b,
        "select": lambda c, a, b: a if c else b,
    }
    return table[e.op](*args)


class Native:
    """The kernels of a `Lowered`, compiled for the host."""

    def __init__(self, lowered: Lowered, target: Target | None = None) -> None:
        self.lowered = lowered
        self.texts = [emit_kernel(k, target or host_target()) for k in lowered.kernels]
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        self.functions = [
            kind(load(compile_text(text, target), k.name)) for text, k in zip(self.texts, lowered.kernels, strict=True)
        ]

    def prepare(
        self, params: Sequence[Array], result_types: Sequence[TensorType], extents: Mapping[str, int]
    ) -> tuple[list[Array], dict[Buffer, Array]]:
        """Result arrays, and every buffer's memory, filled with what must not be read."""
        memory: dict[Buffer, Array] = dict(zip(self.lowered.params, params, strict=True))
        results = []
        for buffer, t in zip(self.lowered.results, result_types, strict=True):
            shape = [substitute(d, extents) for d in t.shape]
            results.append(poisoned(shape, buffer.dtype.numpy))
            memory[buffer] = results[-1]
        for s in self.lowered.scratch:
            size = substitute(s.size, extents)
            assert isinstance(size, int)
            memory[s.buffer] = poisoned([size + 16], s.dtype.numpy)
        return results, memory

    def launch(
        self, k: int, memory: Mapping[Buffer, Array], extents: Mapping[str, int], parts: int = 1
    ) -> tuple[int, int]:
        """Run kernel k in `parts` parts, last part first; gives (site, value) of the error."""
        kernel = self.lowered.kernels[k]
        words = [memory[b].ctypes.data for b in kernel.buffers] + [extents[e] for e in kernel.extents]
        args = (ctypes.c_int64 * max(1, len(words)))(*words)
        error = (ctypes.c_int64 * 2)()
        parallel = evaluate(kernel.parallel, extents)
        cuts = [parallel * i // parts for i in range(parts + 1)]
        for begin, end in reversed(list(itertools.pairwise(cuts))):
            if begin < end:
                self.functions[k](ctypes.addressof(args), begin, end, ctypes.addressof(error))
        return error[0], error[1]

    def run(
        self,
        params: Sequence[Array],
        result_types: Sequence[TensorType],
        extents: Mapping[str, int],
        parts: int = 1,
    ) -> list[Array]:
        results, memory = self.prepare(params, result_types, extents)
        for k in range(len(self.functions)):
            site, value = self.launch(k, memory, extents, parts)
            assert site == 0, f"site {site} reports {value}"
        return results


def poisoned(shape: Sequence[Any], dtype: Any) -> Array:
    """Memory as programs have it, aligned to 64 bytes, full of what must not be read."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    block = np.empty(size + 64, np.uint8)
    start = -block.ctypes.data % 64
    out = block[start : start + size].view(dtype).reshape(shape)
    out.view(np.uint8).fill(0xFF if out.dtype.itemsize > 1 else 1) if out.ndim else out.fill(1)
    return out


def parallel_of(kernel: Kernel, extents: Mapping[str, int]) -> int:
    return evaluate(kernel.parallel, extents)
