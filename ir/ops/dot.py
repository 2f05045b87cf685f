"""The general product `dot`: batch dimensions, contracted dimensions, free dimensions.

The contracted dimensions count as one, row-major in the order in which `lhs_contract` names them; it
is the k of the bit contract. `precision` is a wish that the interpreter and CPUs do not need: docs/ir.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.fma import contract
from graphc.ir.ops.rules import (
    KIND_NAMES,
    check_count,
    check_ints,
    check_precision,
    check_same_dtype,
    type_error,
)
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import BOOL, TensorType

Types = tuple[TensorType, ...]
Axes = tuple[int, ...]


def free_axes(rank: int, batch: Axes, contract: Axes) -> Axes:
    """The axes of an operand that are neither batch nor contracted, ascending."""
    return tuple(i for i in range(rank) if i not in batch and i not in contract)


def _axes(types: Types, attr: str, value: Any) -> Axes:
    return check_ints("dot", types, attr, value, len(value) if isinstance(value, tuple) else 1, least=0)


def _infer(types: Types, attrs: Attrs) -> Types:
    check_count("dot", types, 2)
    check_same_dtype("dot", types)
    lhs, rhs = types
    if lhs.dtype is BOOL:
        rule = f"dot is defined for numbers, not {KIND_NAMES['b']} elements"
        raise type_error("dot", types, rule, "cast the operands to an integer type")
    for side, t in (("lhs", lhs), ("rhs", rhs)):
        axes = [a for attr in (f"{side}_batch", f"{side}_contract") for a in _axes(types, attr, attrs[attr])]
        if len(set(axes)) != len(axes) or any(a >= t.rank for a in axes):
            rule = f"{side}_batch and {side}_contract {tuple(axes)} must be distinct axes below the rank {t.rank}"
            raise type_error("dot", types, rule)
    for kind in ("batch", "contract"):
        left, right = attrs[f"lhs_{kind}"], attrs[f"rhs_{kind}"]
        if len(left) != len(right):
            rule = f"lhs_{kind} {left} and rhs_{kind} {right} must name equally many axes"
            raise type_error("dot", types, rule)
        for i, j in zip(left, right):
            if lhs.shape[i] != rhs.shape[j]:
                what = "contracted" if kind == "contract" else "batch"
                rule = f"{what} dimensions must agree, but lhs dimension {i} is {lhs.shape[i]} and rhs dimension {j} is {rhs.shape[j]}"
                raise type_error("dot", types, rule, "transpose or reshape an operand")
    check_precision("dot", types, attrs["precision"])
    free = [lhs.shape[i] for i in free_axes(lhs.rank, attrs["lhs_batch"], attrs["lhs_contract"])]
    free += [rhs.shape[i] for i in free_axes(rhs.rank, attrs["rhs_batch"], attrs["rhs_contract"])]
    return (lhs.with_shape([lhs.shape[i] for i in attrs["lhs_batch"]] + free),)


def _eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    sides = []
    for side, x in zip(("lhs", "rhs"), args):
        batch, contracted = attrs[f"{side}_batch"], attrs[f"{side}_contract"]
        free = free_axes(x.ndim, batch, contracted)
        groups = [_size(x, axes) for axes in (contracted, batch, free)]
        sides.append(x.transpose(contracted + batch + free).reshape(groups))
    lhs, rhs = sides
    result = contract(lhs[:, :, :, None], rhs[:, :, None, :], types[0].dtype)
    return (result.reshape([int(d) for d in types[0].shape]),)


def _size(x: Array, axes: Axes) -> int:
    size = 1
    for a in axes:
        size *= x.shape[a]
    return size


def _vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    lhs, rhs = op.operands
    lhs_batch, rhs_batch = op.attrs["lhs_batch"], op.attrs["rhs_batch"]
    lhs_contract, rhs_contract = op.attrs["lhs_contract"], op.attrs["rhs_contract"]
    lhs_free = free_axes(lhs.type.rank, lhs_batch, lhs_contract)
    rhs_free = free_axes(rhs.type.rank, rhs_batch, rhs_contract)
    # g is batch, lhs free, rhs free.
    batch = tuple(range(len(lhs_batch)))
    left = tuple(range(len(batch), len(batch) + len(lhs_free)))
    right = tuple(range(len(batch) + len(lhs_free), g.type.rank))

    same = {"precision": op.attrs["precision"]}
    # batch, lhs free, then the contracted dimensions in the order of rhs.
    dl = b.emit(
        "dot", g, rhs, lhs_batch=batch, rhs_batch=rhs_batch, lhs_contract=right, rhs_contract=rhs_free, **same
    )
    by_rhs = sorted(range(len(rhs_contract)), key=rhs_contract.__getitem__)
    dl = _permuted(b, dl, lhs_batch + lhs_free + tuple(lhs_contract[i] for i in by_rhs))
    # batch, the contracted dimensions in the order of lhs, rhs free.
    dr = b.emit(
        "dot", lhs, g, lhs_batch=lhs_batch, rhs_batch=batch, lhs_contract=lhs_free, rhs_contract=left, **same
    )
    by_lhs = sorted(range(len(lhs_contract)), key=lhs_contract.__getitem__)
    dr = _permuted(b, dr, rhs_batch + tuple(rhs_contract[i] for i in by_lhs) + rhs_free)
    return (dl, dr)


def _permuted(b: Builder, x: Value, destination: Axes) -> Value:
    """`x` with dimension i moved to dimension destination[i]."""
    axes = tuple(sorted(range(len(destination)), key=destination.__getitem__))
    if axes == tuple(range(len(axes))):
        return x
    result: Value = b.emit("permute", x, axes=axes)
    return result


register(
    OpDef(
        "dot",
        "dot",
        _infer,
        _eval,
        "The product of two tensors summed over the contracted dimensions; the result has the batch dimensions, "
        "then the free dimensions of lhs, then those of rhs (XLA DotGeneral).",
        _vjp,
        {"lhs_batch": (), "rhs_batch": (), "lhs_contract": REQUIRED, "rhs_contract": REQUIRED, "precision": ""},
        reads=("operand0", "operand1"),
    )
)
