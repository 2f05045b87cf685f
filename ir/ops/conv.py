"""The N-dimensional convolution `conv`, whose gradients are convolutions again.

x[N, C, spatial..], w[O, C / groups, spatial..] -> [N / batch_groups, O, spatial..]. As in machine
learning the kernel is not flipped. Each spatial dimension of x is dilated (zeros between its elements),
then padded (a negative amount crops), then read at `strides` steps by the dilated kernel.

groups: output channel o reads the input channels of group o // (O / groups).
batch_groups: output channel o reads the examples of part o // (O / batch_groups) of x, which is cut
    into batch_groups parts of N / batch_groups examples. It exists so that the weight gradient of a
    grouped convolution is a convolution; one of the two counts is 1.

The k of the bit contract runs over (input channel of the group, kernel position row-major).
`precision` is a wish that the interpreter and CPUs do not need: docs/ir.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.fma import contract
from graphc.ir.ops.layout import is_negative
from graphc.ir.ops.rules import (
    KIND_NAMES,
    check_count,
    check_ints,
    check_precision,
    check_same_dtype,
    type_error,
)
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import BOOL, Dim, DimExpr, TensorType

Types = tuple[TensorType, ...]
Padding = tuple[tuple[Dim, Dim], ...]


def dilated(size: Dim, dilation: int) -> Dim:
    """The extent of `size` elements, `dilation` apart."""
    return (size - 1) * dilation + 1


def output_size(
    size: Dim, kernel: Dim, stride: int, low: Dim, high: Dim, lhs_dilation: int, rhs_dilation: int
) -> Dim:
    """How often a kernel fits into a padded dimension; negative if the kernel is larger by a step."""
    return (dilated(size, lhs_dilation) + low + high - dilated(kernel, rhs_dilation)) // stride + 1


def check_pairs(name: str, types: Types, value: Any, count: int) -> Padding:
    """`value` if it is a tuple of `count` pairs of dimensions, which may be negative."""
    pairs = isinstance(value, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in value)
    if not pairs or len(value) != count:
        raise type_error(name, types, f"padding must be {count} times a pair (low, high), not {value!r}")
    for amount in itertools.chain(*value):
        if isinstance(amount, bool) or not isinstance(amount, int | DimExpr):
            raise type_error(name, types, f"padding amounts must be integers or dimensions, not {amount!r}")
    return tuple(value)


def _infer(types: Types, attrs: Attrs) -> Types:
    check_count("conv", types, 2)
    check_same_dtype("conv", types)
    x, w = types
    if x.dtype is BOOL:
        rule = f"conv is defined for numbers, not {KIND_NAMES['b']} elements"
        raise type_error("conv", types, rule, "cast the operands to an integer type")
    if x.rank < 2 or x.rank != w.rank:
        rule = f"x[N, C, spatial..] and w[O, C, spatial..] must have the same rank, at least 2, not {x.rank} and {w.rank}"
        raise type_error("conv", types, rule, "add a batch dimension, or spatial dimensions of size 1")
    rank = x.rank - 2
    strides = check_ints("conv", types, "strides", attrs["strides"], rank, least=1)
    padding = check_pairs("conv", types, attrs["padding"], rank)
    lhs_dilation = check_ints("conv", types, "lhs_dilation", attrs["lhs_dilation"], rank, least=1)
    rhs_dilation = check_ints("conv", types, "rhs_dilation", attrs["rhs_dilation"], rank, least=1)
    check_precision("conv", types, attrs["precision"])
    groups, batch_groups = attrs["groups"], attrs["batch_groups"]
    check_ints("conv", types, "groups and batch_groups", (groups, batch_groups), 2, least=1)
    if groups > 1 and batch_groups > 1:
        raise type_error(
            "conv",
            types,
            f"groups {groups} and batch_groups {batch_groups} exclude each other",
            "one must be 1",
        )
    if w.shape[1] * groups != x.shape[1]:
        rule = f"x has {x.shape[1]} channels, w reads {w.shape[1]} in each of {groups} groups"
        raise type_error("conv", types, rule, "w must be [O, C / groups, spatial..]")
    count = max(groups, batch_groups)
    if (w.shape[0] % count) != 0:
        raise type_error("conv", types, f"{w.shape[0]} output channels cannot be cut into {count} groups")
    if (x.shape[0] % batch_groups) != 0:
        raise type_error("conv", types, f"{x.shape[0]} examples cannot be cut into {batch_groups} parts")
    result: list[Dim] = [x.shape[0] // batch_groups, w.shape[0]]
    for i, (n, k, step, (low, high), ld, rd) in enumerate(
        zip(x.shape[2:], w.shape[2:], strides, padding, lhs_dilation, rhs_dilation)
    ):
        size = output_size(n, k, step, low, high, ld, rd)
        if is_negative(size):
            rule = f"the kernel covers {dilated(k, rd)} of spatial dimension {i}, more than the {dilated(n, ld) + low + high} there are"
            raise type_error("conv", types, rule, "pad x, or take a smaller kernel or dilation")
        result.append(size)
    return (x.with_shape(result),)


def placed(x: Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int], value: Any = 0) -> Array:
    """The last len(padding) dimensions of `x` dilated, then padded with `value` or cropped."""
    lead = x.ndim - len(padding)
    full = [max(0, int(dilated(n, d))) for n, d in zip(x.shape[lead:], dilation)]
    spread = np.full((*x.shape[:lead], *full), value, x.dtype)
    every: list[Any] = [..., *(slice(None, None, d) for d in dilation)]
    spread[tuple(every)] = x
    out = np.full(
        (*x.shape[:lead], *(max(0, n + lo + hi) for n, (lo, hi) in zip(full, padding))), value, x.dtype
    )
    source: list[Any] = [...]
    target: list[Any] = [...]
    for n, (lo, hi) in zip(full, padding):
        begin, end = max(0, -lo), max(0, -lo, n + min(0, hi))
        source.append(slice(begin, end))
        target.append(slice(begin + lo, end + lo))
    out[tuple(target)] = spread[tuple(source)]
    return out


def windows(
    x: Array, kernel: Sequence[int], out: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Array:
    """For each kernel position, row-major, the elements that it reads: [positions, *leading, *out]."""
    lead = x.ndim - len(kernel)
    views = []
    for position in itertools.product(*map(range, kernel)):
        starts = [p * d for p, d in zip(position, dilation)]
        cut: list[Any] = [...]
        cut += (
            slice(s, s + (n - 1) * step + 1 if n else s, step) for s, n, step in zip(starts, out, strides)
        )
        views.append(x[tuple(cut)])
    if not views:
        return np.zeros((0, *x.shape[:lead], *out), x.dtype)
    return np.stack(views)


def _eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    x, w = args
    groups, parts = attrs["groups"], attrs["batch_groups"]
    shape = [int(d) for d in types[0].shape]
    n, out = shape[0], shape[2:]
    channels, outputs = w.shape[1], w.shape[0] // (groups * parts)
    x = placed(x, [(int(lo), int(hi)) for lo, hi in attrs["padding"]], attrs["lhs_dilation"])
    read = windows(x, w.shape[2:], out, attrs["strides"], attrs["rhs_dilation"])
    positions, pixels = read.shape[0], int(np.prod(out, dtype=np.int64))
    # [k, part of the batch, group, example, output channel, pixel]
    read = read.reshape(positions, parts, n, groups, channels, pixels).transpose(4, 0, 1, 3, 2, 5)
    read = read.reshape(channels * positions, parts, groups, n, 1, pixels)
    weight = w.reshape(parts, groups, outputs, channels * positions).transpose(3, 0, 1, 2)
    weight = weight[:, :, :, None, :, None]
    result = contract(read, weight, types[0].dtype)
    return (result.transpose(2, 0, 1, 3, 4).reshape(shape),)


def _vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    x, w = op.operands
    rank = x.type.rank - 2
    strides, lhs_dilation, rhs_dilation = (op.attrs[k] for k in ("strides", "lhs_dilation", "rhs_dilation"))
    groups, parts = op.attrs["groups"], op.attrs["batch_groups"]
    sizes = list(
        zip(
            map(dilated, x.type.shape[2:], lhs_dilation),
            map(dilated, w.type.shape[2:], rhs_dilation),
            map(dilated, g.type.shape[2:], strides),
            (low for low, _ in op.attrs["padding"]),
        )
    )
    # dx: the cotangent, spread by the strides, against the flipped kernel with its channels exchanged.
    # The padding makes the result as long as x, whatever x has beyond the last window.
    kernel = b.emit("flip", w, axes=tuple(range(2, rank + 2))) if rank else w
    kernel = _exchange_channels(b, kernel, groups * parts)
    dx = b.emit(
        "conv",
        g,
        kernel,
        strides=lhs_dilation,
        padding=tuple((k - low - 1, n + low - out) for n, k, out, low in sizes),
        lhs_dilation=strides,
        rhs_dilation=rhs_dilation,
        groups=groups * parts,
        batch_groups=1,
        precision=op.attrs["precision"],
    )
    if parts > 1:
        dx = _channels_to_batch(b, dx, parts)
    # dw: examples and channels change places, the cotangent is the kernel. What lies beyond the last
    # window is cropped.
    dw = b.emit(
        "conv",
        _swapped(b, x),
        _swapped(b, g),
        strides=rhs_dilation,
        padding=tuple((low, out - n + k - low - 1) for n, k, out, low in sizes),
        lhs_dilation=lhs_dilation,
        rhs_dilation=strides,
        groups=parts,
        batch_groups=groups,
        precision=op.attrs["precision"],
    )
    return (dx, _swapped(b, dw))


def _swapped(b: Builder, v: Value) -> Value:
    """`v` with its first two dimensions exchanged."""
    result: Value = b.emit("permute", v, axes=(1, 0, *range(2, v.type.rank)))
    return result


def _exchange_channels(b: Builder, w: Value, groups: int) -> Value:
    """w[groups * o, c, ..] -> [groups * c, o, ..]."""
    if groups == 1:
        return _swapped(b, w)
    total, channels, *spatial = w.type.shape
    outputs = total // groups
    split = b.emit("reshape", w, shape=(groups, outputs, channels, *spatial))
    swapped = b.emit("permute", split, axes=(0, 2, 1, *range(3, split.type.rank)))
    result: Value = b.emit("reshape", swapped, shape=(groups * channels, outputs, *spatial))
    return result


def _channels_to_batch(b: Builder, v: Value, parts: int) -> Value:
    """v[n, parts * c, ..] -> [parts * n, c, ..]."""
    n, channels, *spatial = v.type.shape
    split = b.emit("reshape", v, shape=(n, parts, channels // parts, *spatial))
    moved = b.emit("permute", split, axes=(1, 0, *range(2, split.type.rank)))
    result: Value = b.emit("reshape", moved, shape=(parts * n, channels // parts, *spatial))
    return result


register(
    OpDef(
        "conv",
        "conv",
        _infer,
        _eval,
        "N-dimensional convolution of x[N, C, ..] with w[O, C / groups, ..]: strides, padding, dilation of "
        "either operand, groups of channels or of examples (XLA ConvWithGeneralPadding).",
        _vjp,
        {
            "strides": REQUIRED,
            "padding": REQUIRED,
            "lhs_dilation": REQUIRED,
            "rhs_dilation": REQUIRED,
            "groups": 1,
            "batch_groups": 1,
            "precision": "",
        },
        reads=("operand0", "operand1"),
    )
)
