"""What lowering a group gives: kernels to launch in order, with the buffers they work on."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.loops import Buffer, Kernel
from graphc.ir.function import Operation
from graphc.ir.types import Dim, DType


@dataclass(frozen=True)
class Scratch:
    """Memory that lives while the group runs: `size` elements over the group's extents."""

    buffer: Buffer
    dtype: DType
    size: Dim


@dataclass(frozen=True)
class Lowered:
    """kernels: launched in order. `params` / `results` are the buffers of the group function's
    parameters and results, in order; a kernel names the ones it uses in `Kernel.buffers`.
    sites: the operations behind `Report` statements; site k is sites[k - 1].
    """

    kernels: tuple[Kernel, ...]
    params: tuple[Buffer, ...]
    results: tuple[Buffer, ...]
    scratch: tuple[Scratch, ...] = ()
    sites: tuple[Operation, ...] = ()
