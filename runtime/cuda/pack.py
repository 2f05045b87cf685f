"""Copies between a view with any strides and contiguous memory, on the device itself."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from graphc.runtime.backend import backend
from graphc.runtime.spec import Spec


def pack(context: Any, target: int, source: int, spec: Spec, strides: tuple[int, ...]) -> None:
    """Elements of type and shape `spec` with byte strides `strides` to contiguous memory."""
    if not spec.size:
        return
    shape, steps = merged(spec.shape, strides, spec.dtype.itemsize)
    itemsize = spec.dtype.itemsize
    if backend() == "interpret" and context.driver.call(
        context.stream(), lambda: _on_host(target, source, itemsize, shape, steps)
    ):
        return
    from graphc.runtime.cuda.build import run_pack

    run_pack(context, target, source, itemsize, shape, steps)


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
