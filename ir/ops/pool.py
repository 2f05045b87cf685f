"""Pooling windows over the last dimensions: maxima, sums, and what their gradients need.

Every operation has the attributes `window`, `strides`, `padding` ((low, high), ..) and `dilation`, with
one entry for each pooled dimension; those are the last ones, any number of dimensions before them are
the batch. Window position p of output position o is element o * strides + p * dilation - low of the input; where that
is outside of the input there is no element.

Orders and identities, part of the bit contract:
- max_pool: of the window's elements in row-major order the first maximum; NaN is above everything. A
  window without an element has the lowest value of the dtype and index -1.
- sum_pool: the window's elements are added in row-major order, starting from -0.0; a window without an
  element gives +0.0.
- max_pool_grad, sum_pool_grad: for each input element the windows that hold it are taken in row-major
  order of their output positions, and their cotangents added to +0.0.
float16 and bfloat16 are summed in float32 and rounded once; integers wrap.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.conv import check_pairs, dilated, output_size, placed, windows
from graphc.ir.ops.layout import is_negative
from graphc.ir.ops.rules import check_count, check_ints, check_kinds, check_shape, show_shape, type_error
from graphc.ir.registry import REQUIRED, Array, Eval, Infer, OpDef, Vjp, register
from graphc.ir.types import I32, Dim, DType, Shape, TensorType

Types = tuple[TensorType, ...]
WINDOW = {"window": REQUIRED, "strides": REQUIRED, "padding": REQUIRED, "dilation": REQUIRED}


def pooled_shape(name: str, types: Types, shape: Shape, attrs: Attrs) -> Shape:
    """The shape of the windows over an input of `shape`; raises if the attributes do not fit."""
    window = attrs["window"]
    rank = len(window) if isinstance(window, tuple) else 1
    if not 0 < rank <= len(shape):
        rule = (
            f"window {window!r} must have between 1 and {len(shape)} entries, one for each pooled dimension"
        )
        raise type_error(name, types, rule)
    window = check_ints(name, types, "window", window, rank, least=1)
    strides = check_ints(name, types, "strides", attrs["strides"], rank, least=1)
    dilation = check_ints(name, types, "dilation", attrs["dilation"], rank, least=1)
    padding = check_pairs(name, types, attrs["padding"], rank)
    result: list[Dim] = list(shape[: len(shape) - rank])
    for n, k, step, (low, high), d in zip(shape[len(result) :], window, strides, padding, dilation):
        if is_negative(low) or is_negative(high):
            raise type_error(name, types, f"padding {padding} must be >= 0", "slice the input to crop it")
        size = output_size(n, k, step, low, high, 1, d)
        if is_negative(size):
            rule = f"the window covers {dilated(k, d)} elements of dimension {len(result)}, more than the {n + low + high} there are"
            raise type_error(name, types, rule, "pad the input, or take a smaller window or dilation")
        result.append(size)
    return tuple(result)


def _forward_infer(name: str, index: bool) -> Infer:
    """x -> values, and with `index` the i32 positions of the maxima."""

    def infer(types: Types, attrs: Attrs) -> Types:
        check_count(name, types, 1)
        check_kinds(name, types, types[0].dtype, "iuf")
        values = types[0].with_shape(pooled_shape(name, types, types[0].shape, attrs))
        return (values, values.with_dtype(I32)) if index else (values,)

    return infer


def _check_index(name: str, types: Types, shape: Shape) -> None:
    if types[1].dtype is not I32:
        raise type_error(
            name, types, f"the index must be i32, not {types[1].dtype}", "pass the second result of max_pool"
        )
    if types[1].shape != shape:
        rule = f"the index must have the shape {show_shape(shape)} of the windows, not {show_shape(types[1].shape)}"
        raise type_error(name, types, rule, "pass the second result of max_pool")


def _backward_infer(name: str, index: bool) -> Infer:
    """dy, and with `index` the positions of the maxima -> the cotangent of the input."""

    def infer(types: Types, attrs: Attrs) -> Types:
        check_count(name, types, 2 if index else 1)
        check_kinds(name, types, types[0].dtype, "iuf")
        shape = check_shape(name, types, "input_shape", attrs["input_shape"])
        expected = pooled_shape(name, types, shape, attrs)
        if types[0].shape != expected:
            rule = f"windows over {show_shape(shape)} have the shape {show_shape(expected)}, the cotangent has {show_shape(types[0].shape)}"
            raise type_error(name, types, rule)
        if index:
            _check_index(name, types, expected)
        return (types[0].with_shape(shape),)

    return infer


def _take_infer(types: Types, attrs: Attrs) -> Types:
    name = "max_pool_take"
    check_count(name, types, 2)
    check_kinds(name, types, types[0].dtype, "iuf")
    shape = pooled_shape(name, types, types[0].shape, attrs)
    _check_index(name, types, shape)
    return (types[0].with_shape(shape),)


def _read(x: Array, shape: Shape, attrs: Attrs) -> tuple[Array, Array]:
    """The elements at each window position, [positions, *shape], and whether they exist."""
    rank = len(attrs["window"])
    padding = [(int(low), int(high)) for low, high in attrs["padding"]]
    out = [int(d) for d in shape[len(shape) - rank :]]
    exists = np.ones(x.shape[x.ndim - rank :], bool)
    read, there = (
        windows(placed(a, padding, (1,) * rank), attrs["window"], out, attrs["strides"], attrs["dilation"])
        for a in (x, exists)
    )
    return read, there.reshape(len(there), *(1,) * (x.ndim - rank), *out)


def _accumulator(shape: Shape, dtype: DType, start: float) -> Array:
    """An array to add up in: float32 for the small floats, with `start` everywhere."""
    wide = np.dtype(np.float32) if dtype.is_float and dtype.bits < 32 else dtype.numpy
    return np.full([int(d) for d in shape], start if dtype.is_float else 0, wide)


def _max_pool_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    dtype, shape = types[0].dtype, [int(d) for d in types[0].shape]
    lowest = -np.inf if dtype.is_float else np.iinfo(dtype.numpy).min
    values, index = np.full(shape, lowest, dtype.numpy), np.full(shape, -1, np.int32)
    read, exists = _read(args[0], types[0].shape, attrs)
    with np.errstate(invalid="ignore"):
        for k, (element, there) in enumerate(zip(read, exists)):
            better = (element > values) | ((element != element) & (values == values))
            won = there & ((index < 0) | better)
            values, index = np.where(won, element, values), np.where(won, np.int32(k), index)
    return (values, index)


def _max_pool_take_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    x, index = args
    taken = np.zeros([int(d) for d in types[0].shape], x.dtype)
    read, exists = _read(x, types[0].shape, attrs)
    for k, (element, there) in enumerate(zip(read, exists)):
        taken = np.where(there & (index == k), element, taken)
    return (taken,)


def _sum_pool_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    total = _accumulator(types[0].shape, types[0].dtype, -0.0)
    read, exists = _read(args[0], types[0].shape, attrs)
    with np.errstate(all="ignore"):
        for element, there in zip(read, exists):
            total = np.where(there, total + element.astype(total.dtype), total)
        total = np.where(exists.any(axis=0), total, np.zeros_like(total))
        return (total.astype(types[0].dtype.numpy),)


def _spread_eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    """max_pool_grad (with an index) and sum_pool_grad (without)."""
    dy, shape = args[0], [int(d) for d in types[0].shape]
    window, out = attrs["window"], dy.shape[dy.ndim - len(attrs["window"]) :]
    padding = [(int(low), int(high)) for low, high in attrs["padding"]]
    lead = dy.ndim - len(window)
    padded = [n + low + high for n, (low, high) in zip(shape[lead:], padding)]
    total = _accumulator((*shape[:lead], *padded), types[0].dtype, 0.0)
    dy = dy.astype(total.dtype)
    positions = list(enumerate(itertools.product(*map(range, window))))
    with np.errstate(all="ignore"):
        # Of the windows that hold an element, the first in output order hold it at the last position.
        for k, position in reversed(positions):
            cut: list[Any] = [...]
            for p, d, n, step in zip(position, attrs["dilation"], out, attrs["strides"]):
                cut.append(slice(p * d, p * d + (n - 1) * step + 1 if n else p * d, step))
            total[tuple(cut)] += np.where(args[1] == k, dy, np.zeros_like(dy)) if len(args) == 2 else dy
        inner: list[Any] = [..., *(slice(low, low + n) for n, (low, _) in zip(shape[lead:], padding))]
        return (total[tuple(inner)].astype(types[0].dtype.numpy),)


def _window(op: Operation) -> dict[str, Any]:
    return {k: op.attrs[k] for k in WINDOW}


def _gradient(name: str, index: Callable[[Operation], tuple[Value, ...]], to_input: bool) -> Vjp:
    """The rule whose cotangent of operand 0 is `name` of the cotangent and of the index."""

    def vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
        g, held = cotangents[0], index(op)
        rest = [None] * (len(op.operands) - 1)
        if g is None:
            return [None, *rest]
        shape = {"input_shape": op.operands[0].type.shape} if to_input else {}
        return [b.emit(name, g, *held, **_window(op), **shape), *rest]

    return vjp


def _pool(
    name: str, infer: Infer, eval: Eval, doc: str, vjp: Vjp, reads: tuple[str, ...], to_input: bool = False
) -> None:
    attrs = {**WINDOW, "input_shape": REQUIRED} if to_input else WINDOW
    register(OpDef(name, "pool", infer, eval, doc, vjp, attrs, reads))


_pool(
    "max_pool",
    _forward_infer("max_pool", index=True),
    _max_pool_eval,
    "The first maximum of each window and its row-major position in the window, i32 (ONNX MaxPool).",
    _gradient("max_pool_grad", lambda op: (op.results[1],), to_input=True),
    ("results",),
)
_pool(
    "max_pool_grad",
    _backward_infer("max_pool_grad", index=True),
    _spread_eval,
    "dy[o] added to the element at position index[o] of window o; the transpose of max_pool_take.",
    _gradient("max_pool_take", lambda op: (op.operands[1],), to_input=False),
    ("operand1",),
    to_input=True,
)
_pool(
    "max_pool_take",
    _take_infer,
    _max_pool_take_eval,
    "The element of x at position index[o] of window o; 0 where there is none.",
    _gradient("max_pool_grad", lambda op: (op.operands[1],), to_input=True),
    ("operand1",),
)
_pool(
    "sum_pool",
    _forward_infer("sum_pool", index=False),
    _sum_pool_eval,
    "The sum of each window (ONNX AveragePool before its division).",
    _gradient("sum_pool_grad", lambda op: (), to_input=True),
    (),
)
_pool(
    "sum_pool_grad",
    _backward_infer("sum_pool_grad", index=False),
    _spread_eval,
    "dy[o] added to every element of window o; the transpose of sum_pool.",
    _gradient("sum_pool", lambda op: (), to_input=False),
    (),
    to_input=True,
)
