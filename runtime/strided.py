"""Copies of strided memory by compiled kernels, for layouts that come again and again.

What strides describe is read as a part of row-major memory: a slice of it, its dimensions permuted, some repeated. The
kernel of that function copies faster than NumPy does, both small tensors and large transposed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from graphc.ir.function import Builder, Function
from graphc.ir.types import TensorType
from graphc.runtime.core import Tensor
from graphc.runtime.memory import Buffer
from graphc.runtime.spec import Spec

# A layout gets a kernel when it is copied for the so-manieth time.
PATIENCE = 8
# The most layouts that are remembered.
MOST = 1024


class Place(NamedTuple):
    """Where a strided tensor lies: `shape` of the row-major memory around it, what part of it, which begins `back` bytes before.

    start: of the part in each dimension; order: the dimensions of the tensor that the part has, outermost in memory
    first; dense: whether the part is everything.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    order: tuple[int, ...]
    back: int
    dense: bool


# (type, strides, offset) -> (program, bytes to go back from the first element, bytes of the memory around the tensor)
_programs: dict[Any, tuple[Callable[[Any, Any], None], int, int]] = {}
_counts: dict[Any, int] = {}


def place_of(spec: Spec, strides: tuple[int, ...], offset: int) -> Place | None:
    """The place of a tensor `offset` bytes into row-major memory, or None if there is none."""
    item = spec.dtype.itemsize
    shape: Any = spec.shape
    if offset % item or any(s < 0 or s % item for s in strides):
        return None
    dims = sorted(((s // item, d) for d, s in enumerate(strides) if s and shape[d] > 1), reverse=True)
    if not dims:
        return None
    outer = dims[0][0]
    rest = offset // item % outer
    back = rest * item
    sizes, start = [shape[dims[0][1]]], [0]
    # After the last dimension comes what lies between neighbours there.
    for (step, _), (inner, _) in zip(dims, [*dims[1:], (1, -1)]):
        if step % inner:
            return None
        sizes.append(step // inner)
        start.append(rest // inner)
        rest %= inner
    extents = [shape[d] for _, d in dims] + [1]
    if any(o + n > size for o, n, size in zip(start, extents, sizes)):
        return None
    return Place(tuple(sizes), tuple(start), tuple(d for _, d in dims), back, sizes == extents)


def function_of(spec: Spec, place: Place) -> Function:
    """The function of the memory around a tensor that gives the tensor."""
    shape: Any = spec.shape
    b = Builder("copy")
    v = b.param(TensorType(spec.dtype, place.shape))
    sizes = tuple(shape[d] for d in place.order)
    if not place.dense:
        limit = tuple(o + n for o, n in zip(place.start, (*sizes, 1)))
        v = b.slice(v, start=place.start, limit=limit, stride=(1,) * len(limit))
    v = b.reshape(v, shape=sizes)
    ascending = tuple(sorted(place.order))
    if ascending != place.order:
        v = b.permute(v, axes=tuple(place.order.index(d) for d in ascending))
    if len(ascending) < len(shape):
        v = b.broadcast(v, shape=shape, axes=ascending)
    return b.build([v])


def copied(target: Tensor, source: Tensor) -> bool:
    """Give the row-major `target` the values of `source`, if its layout has a kernel."""
    buffer = source._buffer
    block = buffer.block if buffer.__class__ is Buffer else None
    offset = 0 if block is None else source._address - block[0]
    key = (source._spec, source._strides, offset, block is None)
    known = _programs.get(key)
    if known is None:
        count = _counts[key] = _counts.get(key, 0) + 1
        if count == PATIENCE:
            known = _compile(source._spec, source._strides, offset, block is not None)
        if known is None:
            return False
        if len(_counts) > MOST:
            _counts.clear()
            _programs.clear()
        _programs[key] = known
    run, back, span = known
    begin = source._address - back
    if block is not None and (begin < block[0] or begin + span > block[0] + block[3]):
        return False
    run((begin,), (target._address,))
    return True


def _compile(spec: Spec, strides: Any, offset: int, around: bool) -> tuple[Callable[[Any, Any], None], int, int] | None:
    """around: whether the memory around the tensor may be read, as far as it is the tensor's buffer."""
    from graphc.runtime.backend import backend, compile_function

    place = place_of(spec, strides, offset)
    if place is None or (not around and not place.dense) or backend() == "interpret":
        return None
    run = compile_function(function_of(spec, place)).run
    return run, place.back, math.prod(place.shape) * spec.dtype.itemsize
