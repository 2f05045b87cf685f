"""Runs functions compiled ahead of time in this process, and compares them bit for bit with just-in-time programs."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from graphc.codegen.aot import AheadOfTime, compile_ahead
from graphc.codegen.llvm.jit import load_all
from graphc.codegen.program import compile_function
from graphc.ir.function import Function
from graphc.ir.interpret import specialize
from graphc.ir.types import TensorType, substitute

from tests.codegen.compiled import difference, execute

Array = np.ndarray[Any, Any]
_GUARD = 192
_FILL = 0xA5


class Guarded:
    """Memory with a guard on either side; what is written into a guard is seen."""

    def __init__(self, size: int) -> None:
        self.block = np.full(size + 2 * _GUARD + 64, _FILL, np.uint8)
        self.start = _GUARD + -(self.block.ctypes.data + _GUARD) % 64
        self.size = size

    @property
    def address(self) -> int:
        return int(self.block.ctypes.data) + self.start

    def view(self, t: TensorType) -> Array:
        out: Array = self.block[self.start : self.start + self.size].view(t.dtype.numpy)
        return out.reshape([int(d) for d in t.shape])

    def intact(self) -> bool:
        beside = (self.block[: self.start], self.block[self.start + self.size :])
        return all(bool((part == _FILL).all()) for part in beside)


class Entry:
    """The three functions of a compiled one, from its object or from a shared library."""

    def __init__(self, compiled: AheadOfTime, library: str | None = None) -> None:
        self.plan = compiled.plan
        n = compiled.name
        stateful = bool(self.plan.state)
        names = (n, f"{n}_workspace", f"{n}_error", *([f"{n}_state", f"{n}_init"] * stateful))
        if library is None:
            addresses = load_all(compiled.object, names)
        else:
            loaded = ctypes.CDLL(library)
            addresses = {s: ctypes.cast(getattr(loaded, s), ctypes.c_void_p).value or 0 for s in names}
        dims = [ctypes.c_int64] * len(self.plan.symbols)
        pointers = [ctypes.c_void_p] * (len(self.plan.inputs) + len(self.plan.outputs) + stateful + 1)
        self.call = ctypes.CFUNCTYPE(ctypes.c_int64, *dims, *pointers)(addresses[n])
        self.workspace = ctypes.CFUNCTYPE(ctypes.c_int64, *dims)(addresses[f"{n}_workspace"])
        self.error = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int64)(addresses[f"{n}_error"])
        self.memory: list[Guarded] = []
        if stateful:
            self.memory.append(Guarded(ctypes.CFUNCTYPE(ctypes.c_int64)(addresses[f"{n}_state"])()))
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(addresses[f"{n}_init"])(self.memory[0].address)
            assert self.memory[0].intact(), "something is written beside the state"

    @property
    def state(self) -> Array:
        """The bytes of the state."""
        (memory,) = self.memory
        return memory.block[memory.start : memory.start + memory.size]

    def _output_types(self) -> list[TensorType]:
        return [self.plan.entry.result_types[i] for i in self.plan.outputs]

    def run(self, symbols: Mapping[str, int], args: Sequence[Array]) -> tuple[int, list[Array]]:
        """The return code and the results. Fails if anything is written beside results and workspace."""
        dims = [symbols[s] for s in self.plan.symbols]
        held = [np.ascontiguousarray(a).reshape(a.shape) for a in args]
        types = [r.with_shape(substitute(d, symbols) for d in r.shape) for r in self._output_types()]
        out = [Guarded(int(t.nbytes)) for t in types]
        space = Guarded(self.workspace(*dims))
        assert space.size == substitute(self.plan.workspace, symbols)
        before = [a.tobytes() for a in held]
        pointers = [*(o.address for o in out), *(m.address for m in self.memory), space.address]
        code = self.call(*dims, *(a.ctypes.data for a in held), *pointers)
        assert all(m.intact() for m in self.memory), "something is written beside the state"
        assert all(o.intact() for o in out), "something is written beside a result"
        assert space.intact(), "something is written beside the workspace"
        assert [a.tobytes() for a in held] == before, "an input is written to"
        return int(code), [o.view(t) for o, t in zip(out, types, strict=True)]


def just_in_time(f: Function, symbols: Mapping[str, int], args: Sequence[Array]) -> list[Array]:
    """The results of the program that `compile_function` makes for these sizes."""
    return execute(compile_function(specialize(f, symbols)), args)


def random_args(f: Function, symbols: Mapping[str, int], seed: int = 0) -> list[Array]:
    """Arguments of a function: floats of both signs, small integers, bools."""
    rng = np.random.default_rng(seed)
    out = []
    for t in f.param_types:
        shape = [int(substitute(d, symbols)) for d in t.shape]
        if t.dtype.kind == "f":
            out.append((rng.standard_normal(shape) * 2).astype(t.dtype.numpy))
        elif t.dtype.kind == "b":
            out.append(rng.integers(0, 2, shape).astype(bool))
        else:
            out.append(rng.integers(0, 100, shape).astype(t.dtype.numpy))
    return out


def assert_same_bits(f: Function, sizes: Sequence[Mapping[str, int]], held: Sequence[int] = (), cpu: str = "") -> Entry:
    """Compiled ahead, `f` gives for each of `sizes` the bits of the just-in-time program.

    held: parameters that become constants (their shapes have no symbols).
    """
    constants = {i: random_args(f, sizes[0], seed=1)[i] for i in held}
    entry = Entry(compile_ahead(f, "net", constants, cpu=cpu))
    for symbols in sizes:
        args = random_args(f, symbols)
        for i, a in constants.items():
            args[i] = a
        code, got = entry.run(symbols, [a for i, a in enumerate(args) if i not in constants])
        assert code == 0, entry.error(code)
        for i, (e, g) in enumerate(zip(just_in_time(f, symbols, args), got, strict=True)):
            wrong = difference(e, g)
            assert not wrong, f"result {i} for {dict(symbols)}: {wrong}\n{entry.plan}"
    return entry
