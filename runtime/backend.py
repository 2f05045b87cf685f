"""What runs a Function: compiled programs, or the interpreter (`GRAPHC_BACKEND=interpret`), the oracle."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from graphc.ir.function import Function
from graphc.ir.types import TensorType
from graphc.runtime.device import CPU, Device
from graphc.runtime.errors import Unavailable, internal_error
from graphc.runtime.spec import Spec

Donate = Sequence[tuple[int, int]]


class Program(Protocol):
    """A function made executable. Tensors are row-major contiguous; bool is one byte."""

    @property
    def donated(self) -> frozenset[tuple[int, int]]: ...

    def run(self, input_addresses: Sequence[int], output_addresses: Sequence[int]) -> None: ...


def _memory(address: int, type: TensorType) -> np.ndarray[Any, Any]:
    shape = tuple(int(d) for d in type.shape)
    dtype = type.dtype.numpy
    count = int(np.prod(shape, dtype=np.int64))
    raw: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype=dtype, count=count).reshape(shape) if count else np.zeros(shape, dtype)


class Interpreted:
    """Runs a function with the IR's own interpreter, in NumPy."""

    def __init__(self, function: Function, donate: Iterable[tuple[int, int]] = ()) -> None:
        self.function = function
        # All inputs are read before an output is written, so every pair can be honoured.
        self.donated = frozenset(donate)

    def run(self, input_addresses: Sequence[int], output_addresses: Sequence[int]) -> None:
        from graphc.ir.interpret import interpret

        f = self.function
        args = [_memory(a, t) for a, t in zip(input_addresses, f.param_types)]
        results = [np.array(r) for r in interpret(f, args)]
        for address, value, type in zip(output_addresses, results, f.result_types):
            np.copyto(_memory(address, type), value, casting="no")


_compiler: Callable[..., Any] | None = None


def backend() -> str:
    """"interpret" or "compiled"."""
    return os.environ.get("GRAPHC_BACKEND", "compiled")


def compile_function(
    function: Function,
    donate: Donate = (),
    device: Device = CPU,
    operands: Sequence[Spec] = (),
    results: Sequence[Spec] = (),
) -> Program:
    """Make a function executable. Pairs in `donate` (input, output) may share memory; see `Program.donated`.

    operands, results: the types of inputs and outputs, where the device is not the CPU.
    """
    global _compiler
    if device is not CPU:
        from graphc.runtime.cuda.execute import executable

        try:
            return executable(function, donate, device, operands, results)
        except (MemoryError, Unavailable):
            raise
        except Exception as error:
            raise internal_error(function, error) from error
    if backend() == "interpret":
        return Interpreted(function, donate)
    if _compiler is None:
        from graphc.codegen.program import check_environment
        from graphc.codegen.program import compile_function as compiler

        check_environment()
        _compiler = compiler
    try:
        program: Program = _compiler(function, donate, keep=True, hurry=True)
    except MemoryError:
        raise
    except Exception as error:
        raise internal_error(function, error) from error
    return program
