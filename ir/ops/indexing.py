"""Reading and writing at positions that are known at run time only.

gather, scatter_add and scatter index one axis of x: the index's dimensions stand in the place of that
axis, `x.shape[:axis] + index.shape + x.shape[axis + 1:]`. take_along, put_along_add and put_along take
an index of the rank of x, which picks along `axis` separately in each line; elsewhere its dimensions
are those of x.

An index may have any integer dtype. It must lie in [-size, size), negative positions count from the
end; otherwise an `IndexError` names the operation, the index, the axis and its size. Where several
updates meet, they are added to the element of x in ascending row-major order of the index position
(*_add; float16 and bfloat16 in float32, rounded once), or the last one stays (scatter, put_along).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.create import filled
from graphc.ir.ops.rules import check_axis, check_count, show_shape, type_error
from graphc.ir.registry import REQUIRED, Array, Eval, Infer, OpDef, Vjp, register
from graphc.ir.types import BOOL, I64, Shape, TensorType, size_of

Types = tuple[TensorType, ...]


def _picked(name: str, along: bool, types: Types, axis: int) -> Shape:
    """The shape of what `index` (operand 1) picks from x (operand 0)."""
    x, index = types[:2]
    if not index.dtype.is_integer:
        raise type_error(
            name, types, f"the index must have an integer dtype, not {index.dtype}", "cast it to i64"
        )
    check_axis(name, types, axis, x.rank)
    if not along:
        return (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if index.rank != x.rank or any(m != n for i, (m, n) in enumerate(zip(index.shape, x.shape)) if i != axis):
        rule = f"index and x may differ in dimension {axis} only, not {show_shape(index.shape)} and {show_shape(x.shape)}"
        raise type_error(name, types, rule, "broadcast the index")
    return index.shape


def _read_infer(name: str, along: bool) -> Infer:
    def infer(types: Types, attrs: Attrs) -> Types:
        check_count(name, types, 2)
        return (types[0].with_shape(_picked(name, along, types, attrs["axis"])),)

    return infer


def _write_infer(name: str, along: bool, add: bool) -> Infer:
    def infer(types: Types, attrs: Attrs) -> Types:
        check_count(name, types, 3)
        x, _, updates = types
        if add and x.dtype is BOOL:
            raise type_error(
                name, types, f"{name} is defined for numbers, not bool elements", "cast x to an integer type"
            )
        if updates.dtype is not x.dtype:
            raise type_error(
                name, types, f"updates must have the dtype {x.dtype} of x, not {updates.dtype}", "cast them"
            )
        shape = _picked(name, along, types, attrs["axis"])
        if updates.shape != shape:
            rule = f"updates must have the shape {show_shape(shape)}, not {show_shape(updates.shape)}"
            raise type_error(name, types, rule, "broadcast them")
        return (x,)

    return infer


def positions(name: str, index: Array, axis: int, size: int) -> Array:
    """`index` as i64 in [0, size); raises `IndexError` for the first element out of [-size, size)."""
    # u64 does not fit into i64: compare before converting.
    bad = (index >= size) | (index < -size) if index.dtype.kind == "i" else index >= size
    if bad.any():
        first = index[bad][0]
        raise IndexError(
            f"{name}: index {first} is out of range for axis {axis} of size {size}; it must be in [{-size}, {size})"
        )
    whole = index.astype(np.int64)
    return np.where(whole < 0, whole + size, whole)


def _places(name: str, along: bool, x: Array, index: Array, axis: int) -> tuple[Array | slice, ...]:
    """What to index x with to reach the picked elements."""
    where = positions(name, index, axis, x.shape[axis])
    if not along:
        return (*(slice(None),) * axis, where)
    grid: list[Array] = list(np.ogrid[tuple(slice(0, n) for n in index.shape)])
    grid[axis] = where
    return tuple(grid)


def _read_eval(name: str, along: bool) -> Eval:
    def eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
        x, index = args
        return (np.asarray(x[_places(name, along, x, index, attrs["axis"])]),)

    return eval


def _write_eval(name: str, along: bool, add: bool) -> Eval:
    def eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
        x, index, updates = args
        axis = attrs["axis"]
        if not along:
            # One update for each position: the index's dimensions become one, which comes first.
            lead = np.moveaxis(x, axis, 0)
            where = positions(name, index, axis, x.shape[axis]).reshape(-1)
            tail = updates.reshape(*x.shape[:axis], len(where), *x.shape[axis + 1 :])
            updates = np.moveaxis(tail, axis, 0)
        else:
            lead = np.moveaxis(x, axis, 0)
            where = np.moveaxis(positions(name, index, axis, x.shape[axis]), axis, 0)
            updates = np.moveaxis(updates, axis, 0)
        small = types[0].dtype.is_float and types[0].dtype.bits < 32
        out = lead.astype(np.float32 if small and add else lead.dtype)
        with np.errstate(all="ignore"):
            for at, update in zip(where, updates):
                rows = (at, *np.ogrid[tuple(slice(0, n) for n in lead.shape[1:])]) if along else at
                out[rows] = out[rows] + update.astype(out.dtype) if add else update
        return (np.moveaxis(out, 0, axis).astype(types[0].dtype.numpy),)

    return eval


def _read_vjp(writer: str) -> Vjp:
    def vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
        (g,) = cotangents
        assert g is not None
        x, index = op.operands
        return (b.emit(writer, filled(b, 0, x.type), index, g, axis=op.attrs["axis"]), None)

    return vjp


def _add_vjp(reader: str) -> Vjp:
    def vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
        (g,) = cotangents
        assert g is not None
        return (g, None, b.emit(reader, g, op.operands[1], axis=op.attrs["axis"]))

    return vjp


def _set_vjp(reader: str, writer: str) -> Vjp:
    """An overwritten element has no influence, neither of x nor of an earlier update."""

    def vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
        (g,) = cotangents
        assert g is not None
        (x, index, updates), axis = op.operands, op.attrs["axis"]
        none = filled(b, 0, updates.type)
        dx = b.emit(writer, g, index, none, axis=axis)
        picked = b.emit(reader, g, index, axis=axis)
        return (dx, None, b.emit("select", _stays(b, reader, writer, x, index, updates, axis), picked, none))

    return vjp


def _stays(b: Builder, reader: str, writer: str, x: Value, index: Value, updates: Value, axis: int) -> Value:
    """Which updates are the last at their place: write the position of each, and see whether it is still there."""
    if reader == "take_along":
        order = b.emit("iota", shape=index.type.shape, axis=axis, dtype=I64)
        written = b.emit(writer, filled(b, -1, x.type.with_dtype(I64)), index, order, axis=axis)
        stays: Value = b.emit("eq", b.emit(reader, written, index, axis=axis), order)
        return stays
    size = size_of(index.type.shape)
    line = b.emit("iota", shape=(size,), axis=0, dtype=I64)
    order = b.emit("reshape", line, shape=index.type.shape)
    empty = filled(b, -1, TensorType(I64, (x.type.shape[axis],)))
    written = b.emit(writer, empty, index, order, axis=0)
    last = b.emit("eq", b.emit(reader, written, index, axis=0), order)
    axes = tuple(range(axis, axis + index.type.rank))
    stays = b.emit("broadcast", last, shape=updates.type.shape, axes=axes)
    return stays


def _indexing(name: str, infer: Infer, eval: Eval, vjp: Vjp, doc: str) -> None:
    register(OpDef(name, "indexing", infer, eval, doc, vjp, {"axis": REQUIRED}, reads=("operand1",)))


# (along, reader, adder, setter, the source of the reader's meaning)
_FAMILIES = (
    (False, "gather", "scatter_add", "scatter", "x[..., index, ...] at `axis` (array API take)"),
    (
        True,
        "take_along",
        "put_along_add",
        "put_along",
        "In each line along `axis`, x[index] (array API take_along_axis)",
    ),
)

for _along, _reader, _adder, _setter, _source in _FAMILIES:
    _indexing(
        _reader, _read_infer(_reader, _along), _read_eval(_reader, _along), _read_vjp(_adder), f"{_source}."
    )
    _indexing(
        _adder,
        _write_infer(_adder, _along, add=True),
        _write_eval(_adder, _along, add=True),
        _add_vjp(_reader),
        f"x with the updates added in order where {_reader} reads; the transpose of {_reader}.",
    )
    _indexing(
        _setter,
        _write_infer(_setter, _along, add=False),
        _write_eval(_setter, _along, add=False),
        _set_vjp(_reader, _setter),
        f"x with the updates in place of what {_reader} reads; of several the last one stays.",
    )
