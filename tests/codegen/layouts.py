"""Operands that come through layout operations, and results that go through them.

Each way in makes parameters of other shapes such that the operation reads them transposed, strided,
backwards, repeated, in pieces, at computed positions. Each way out reads the result so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL

from tests.codegen.values import Shape

# Makes a parameter of a shape, whose values suit the operand.
Param = Callable[[Shape], Value]
Way = Callable[[Builder, Param, Shape], Value]


def _plain(b: Builder, param: Param, shape: Shape) -> Value:
    return param(shape)


def _permuted(b: Builder, param: Param, shape: Shape) -> Value:
    out: Value = b.permute(param(shape[::-1]), axes=tuple(range(len(shape)))[::-1])
    return out


def _sliced(b: Builder, param: Param, shape: Shape) -> Value:
    source = param(tuple(2 * d + 3 for d in shape))
    limit = tuple(2 * d if d else 1 for d in shape)
    out: Value = b.slice(source, start=(1,) * len(shape), limit=limit, stride=(2,) * len(shape))
    return out


def _flipped(b: Builder, param: Param, shape: Shape) -> Value:
    out: Value = b.flip(param(shape), axes=tuple(range(len(shape))))
    return out


def _padded(b: Builder, param: Param, shape: Shape) -> Value:
    source = tuple(max(d // 2, 0) for d in shape)
    # d = low + source + (source - 1) * interior + high
    interior = tuple(int(s > 0) for s in source)
    low = tuple(int(d > 0) for d in shape)
    high = tuple(d - lo - s - (s - 1) * gap for d, lo, s, gap in zip(shape, low, source, interior, strict=True))
    out: Value = b.pad(param(source), param(()), low=low, high=high, interior=interior)
    return out


def _joined(b: Builder, param: Param, shape: Shape) -> Value:
    if not shape:
        return param(shape)
    axis = len(shape) // 2
    cut = shape[axis] // 3
    pieces = [param((*shape[:axis], d, *shape[axis + 1 :])) for d in (cut, shape[axis] - cut)]
    out: Value = b.concat(*pieces, axis=axis)
    return out


def _repeated(b: Builder, param: Param, shape: Shape) -> Value:
    kept = tuple(range(1, len(shape)))
    source = tuple(1 if a == len(shape) - 1 and len(shape) > 2 else shape[a] for a in kept)
    out: Value = b.broadcast(param(source), shape=shape, axes=kept)
    return out


def _reshaped(b: Builder, param: Param, shape: Shape) -> Value:
    size = int(np.prod(shape))
    source = (size // 2, 2) if size % 2 == 0 else (size,)
    out: Value = b.reshape(param(source), shape=shape)
    return out


def _gathered(b: Builder, param: Param, shape: Shape) -> Value:
    if not shape:
        return param(shape)
    index = b.constant(value=np.arange(shape[-1])[::-1] % 5)
    out: Value = b.gather(param((*shape[:-1], 5)), index, axis=len(shape) - 1)
    return out


WAYS_IN: dict[str, Way] = {
    "permuted": _permuted,
    "sliced": _sliced,
    "flipped": _flipped,
    "padded": _padded,
    "joined": _joined,
    "repeated": _repeated,
    "reshaped": _reshaped,
    "gathered": _gathered,
    "plain": _plain,
}


def _of(value: Value) -> Param:
    """The "parameter" of a way in that is the value itself, where its shape fits."""

    def param(shape: Shape) -> Value:
        assert shape == value.type.shape
        return value

    return param


def _strided(b: Builder, v: Value) -> Value:
    start = tuple(int(d > 1) for d in v.type.shape)
    out: Value = b.slice(v, start=start, limit=v.type.shape, stride=(2,) * v.type.rank)
    return out


def _filler(b: Builder, v: Value) -> Value:
    out: Value = b.constant(value=np.asarray(1).astype(v.type.dtype.numpy))
    return out


def _spread(b: Builder, v: Value) -> Value:
    ones = (1,) * v.type.rank
    out: Value = b.pad(v, _filler(b, v), low=ones, high=ones, interior=ones if 0 not in v.type.shape else (0,) * len(ones))
    return out


def _twice(b: Builder, v: Value) -> Value:
    if not v.type.rank:
        return v
    out: Value = b.concat(v, b.flip(v, axes=(0,)), axis=v.type.rank - 1)
    return out


def _reduced(b: Builder, v: Value) -> Value:
    """Over the first axis: a reduction takes the operation in as its producer."""
    name = "any" if v.type.dtype is BOOL else "max"
    out: Value = b.emit(name, v, axes=(0,) if v.type.rank else ())
    return out


WAYS_OUT: dict[str, Callable[[Builder, Value], Value]] = {
    "permuted": lambda b, v: _permuted(b, lambda s: v, v.type.shape[::-1]),
    "strided": _strided,
    "flipped": lambda b, v: _flipped(b, _of(v), v.type.shape),
    "spread": _spread,
    "twice": _twice,
    "repeated": lambda b, v: b.broadcast(v, shape=(3, *v.type.shape), axes=tuple(range(1, v.type.rank + 1))),
    "flat": lambda b, v: b.reshape(v, shape=(int(np.prod(v.type.shape)),)),
    "reduced": _reduced,
    "kept": lambda b, v: v,
}
