"""Copies of views with any strides to contiguous memory, on the device itself."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any, NamedTuple

import numpy as np
from graphc.runtime.backend import backend
from graphc.runtime.cuda.driver import Node
from graphc.runtime.cuda.parameters import Parameters
from graphc.runtime.spec import Spec

THREADS = 256


class _Unit(NamedTuple):
    """What a context loads: see `codegen.cuda.kernels.Unit`."""

    name: str
    binary: bytes


_units: dict[tuple[str, int, int], _Unit] = {}


def pack(context: Any, target: int, source: int, spec: Spec, strides: tuple[int, ...]) -> None:
    """Elements of type and shape `spec` with byte strides `strides` to contiguous memory."""
    if not spec.size:
        return
    itemsize = spec.dtype.itemsize
    shape, steps = merged(spec.shape, strides, itemsize)
    if backend() == "interpret" and context.driver.call(
        context.stream(), lambda: _on_host(target, source, itemsize, shape, steps)
    ):
        return
    rank = len(shape)
    known = context.packs.get((rank, itemsize))
    if known is None:
        function = context.function(_unit(context, rank, itemsize), f"pack{rank}_{itemsize}", 0)
        known = context.packs[rank, itemsize] = (function, Parameters([8] * (3 + 2 * rank) + [4]))
    function, parameters = known
    with context.launching:
        parameters.words[:] = [source, target, *shape, *steps, context.error_address, 0]
        context.launch(Node(function, -(-spec.size // THREADS), THREADS, 0, parameters), context.stream())


def merged(shape: Any, strides: tuple[int, ...], itemsize: int) -> tuple[list[int], list[int]]:
    """The same elements in the fewest dimensions: sizes, and strides in elements."""
    sizes: list[int] = []
    steps: list[int] = []
    for n, stride in zip(shape, strides):
        if n == 1:
            continue
        step = stride // itemsize
        if sizes and steps[-1] == n * step:
            sizes[-1] *= n
            steps[-1] = step
        else:
            sizes.append(n)
            steps.append(step)
    return sizes or [1], steps or [1]


def _on_host(target: int, source: int, itemsize: int, shape: list[int], steps: list[int]) -> None:
    dtype = np.dtype(f"u{itemsize}")
    low = sum((n - 1) * s for n, s in zip(shape, steps) if s < 0)
    high = sum((n - 1) * s for n, s in zip(shape, steps) if s > 0)
    raw: Any = (ctypes.c_char * ((high - low + 1) * itemsize)).from_address(source + low * itemsize)
    line = np.frombuffer(raw, dtype)
    view = np.lib.stride_tricks.as_strided(line[-low:], shape, [s * itemsize for s in steps])
    count = int(np.prod(shape))
    out: Any = (ctypes.c_char * (count * itemsize)).from_address(target)
    np.frombuffer(out, dtype).reshape(shape)[...] = view


def kernel(rank: int, itemsize: int) -> Any:
    """The kernel for so many dimensions: one thread an element, sizes and strides (in elements) as arguments."""
    from graphc.codegen.expr import index, load, var
    from graphc.codegen.loops import Buffer, Grid, If, Kernel, Let, Store
    from graphc.codegen.lower.nest import ceil_div
    from graphc.ir.types import dtype

    kind = dtype({1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}[itemsize])
    x, y = Buffer("x", kind, "in"), Buffer("y", kind, "out")
    sizes, steps = ([var(f"{stem}{i}") for i in range(rank)] for stem in "ns")
    total = index(1)
    for n in sizes:
        total = total * n
    item, position = var("item"), index(0)
    body: list[Any] = []
    rest = item
    for i in reversed(range(rank)):
        at = rest % sizes[i] if i else rest
        position = position + at * steps[i]
        if i:
            rest = rest // sizes[i]
    body.append(Store(y, item, load(x, position)))
    here = (Let(item, var("block") * THREADS + var("thread")), If(item < total, tuple(body)))
    names = tuple(f"{stem}{i}" for stem in "ns" for i in range(rank))
    grid = Grid(ceil_div(total, THREADS), THREADS)
    return Kernel(f"pack{rank}_{itemsize}", (x, y), names, total, total, here, (), grid)


def _unit(context: Any, rank: int, itemsize: int) -> _Unit:
    """The built kernel, from memory or the cache on disk."""
    from graphc.codegen import cache
    from graphc.codegen.c.cuda import emit_kernels
    from graphc.runtime.cuda.build import binary_of, builder

    made_by = builder(context.driver.kind)
    known = _units.get((made_by.kind + context.target.arch, rank, itemsize))
    if known is None:
        k = kernel(rank, itemsize)
        text = emit_kernels([k], context.target)
        name = hashlib.sha256(f"{context.target.key()} {made_by.kind}\n{text}".encode()).hexdigest()
        binary = cache.get(f"unit-{name}")
        if binary is None:
            binary = binary_of(context, text, [k])
            cache.put(f"unit-{name}", binary)
        known = _units[made_by.kind + context.target.arch, rank, itemsize] = _Unit(name, binary)
    return known
