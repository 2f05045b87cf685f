"""From functions to device programs with the compiler of a device: NVRTC or nvcc, or C++ for the simulated one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from graphc.codegen.cuda.compiler import CompilerMissing as NoCompiler
from graphc.codegen.cuda.compiler import CubinBuilder
from graphc.codegen.cuda.kernels import TooLarge
from graphc.codegen.cuda.program import DeviceProgram, compile_function
from graphc.ir.function import Function
from graphc.runtime.backend import Donate
from graphc.runtime.errors import Unavailable

_builders: dict[str, Any] = {}


def builder(kind: str) -> Any:
    """What makes binaries that a device of this kind loads."""
    known = _builders.get(kind)
    if known is None:
        if kind == "simulation":
            from graphc.runtime.cuda.simulation import SimulationBuilder

            known = SimulationBuilder()
        else:
            known = CubinBuilder()
        _builders[kind] = known
    return known


def build(context: Any, function: Function, donate: Donate, host: Collection[int]) -> DeviceProgram:
    """Compile a function for the device of `context`. Raises `Unavailable`, saying what to install or what the device lacks."""
    try:
        return compile_function(function, context.target, builder(context.driver.kind), donate, host)
    except (NoCompiler, TooLarge) as error:
        raise Unavailable(f'{error}; or use device "cpu"') from None


def binary_of(context: Any, text: str, kernels: Sequence[Any]) -> bytes:
    """CUDA C, built for the device of `context`."""
    try:
        binary: bytes = builder(context.driver.kind).build(text, kernels, context.target)
    except NoCompiler as error:
        raise Unavailable(f'{error}; or use device "cpu"') from None
    return binary
