"""Products of matrices and vectors: matmul, tensordot, vecdot, outer, einsum.

All become the IR operation `dot`; k is contracted in ascending order (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import BOOL, Shape
from graphc.runtime import emission as e
from graphc.runtime.core import ABSTRACT, Tensor, contiguous_strides, make
from graphc.runtime.dispatch import Op, apply, operand_of, remember
from graphc.runtime.ops_elementwise import OPS
from graphc.runtime.ops_layout import expand_dims, matrix_transpose
from graphc.runtime.precision import attribute, setting
from graphc.runtime.spec import Spec, broadcast_shapes, promote_all

Attrs = tuple[Any, ...]


def _operands(b: Builder, values: Sequence[Value], weak: Sequence[bool]) -> list[Value]:
    dtype = promote_all([v.type.dtype for v in values], list(weak))
    if dtype is BOOL:
        raise TypeError("a product of bool matrices is not defined; cast them with astype")
    return [e.cast(b, v, dtype) for v in values]


def _show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _emit_matmul(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    x, y = _operands(b, values, weak)
    transposed_x, transposed_y, *level = attrs if len(attrs) > 1 else (False, False, *attrs)
    exactness = attribute(tuple(level), x.type.dtype)
    if transposed_x:
        x = e.permute(b, x, (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2))
    if transposed_y:
        y = e.permute(b, y, (*range(y.type.rank - 2), y.type.rank - 1, y.type.rank - 2))
    if not x.type.rank or not y.type.rank:
        raise ValueError("matmul needs at least one dimension in each operand; use * for numbers")
    k_y = y.type.rank - 2 if y.type.rank > 1 else 0
    if x.type.shape[-1] != y.type.shape[k_y]:
        raise ValueError(
            f"the last dimension of the left operand is {x.type.shape[-1]} and dimension {k_y} of the right one is "
            f"{y.type.shape[k_y]}; they are contracted and must be equal: transpose or reshape one of them"
        )
    if x.type.rank <= 2 and y.type.rank <= 2:
        result: Value = b.emit("dot", x, y, lhs_contract=(x.type.rank - 1,), rhs_contract=(k_y,), **exactness)
        return result
    if y.type.rank <= 2:
        # One matrix for the whole batch: the batch dimensions are rows.
        result = b.emit("dot", x, y, lhs_contract=(x.type.rank - 1,), rhs_contract=(k_y,), **exactness)
        return result
    if x.type.rank == 1:
        x = e.reshape(b, x, (1, x.type.shape[0]))
        dropped = True
    else:
        dropped = False
    batch = broadcast_shapes(x.type.shape[:-2], y.type.shape[:-2])
    x = e.broadcast(b, x, (*batch, *x.type.shape[-2:]))
    y = e.broadcast(b, y, (*batch, *y.type.shape[-2:]))
    axes = tuple(range(len(batch)))
    n = len(batch)
    result = b.emit(
        "dot", x, y, lhs_batch=axes, rhs_batch=axes, lhs_contract=(n + 1,), rhs_contract=(n,), **exactness
    )
    return e.reshape(b, result, (*batch, result.type.shape[-1])) if dropped else result


def _emit_dot(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    x, y = _operands(b, values, weak)
    lhs_batch, rhs_batch, lhs, rhs, *level = attrs
    for i, j in zip(lhs, rhs):
        if x.type.shape[i] != y.type.shape[j]:
            raise ValueError(
                f"dimension {i} of the left operand is {x.type.shape[i]} and dimension {j} of the right one is "
                f"{y.type.shape[j]}; they are contracted and must be equal"
            )
    exactness = attribute(tuple(level), x.type.dtype)
    result: Value = b.emit(
        "dot", x, y, lhs_batch=lhs_batch, rhs_batch=rhs_batch, lhs_contract=lhs, rhs_contract=rhs, **exactness
    )
    return result


_MATMUL = Op("matmul", _emit_matmul)
_DOT = Op("dot", _emit_dot)


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The matrix product over the last two dimensions; the others are batch dimensions and broadcast.

    >>> import graphc as gc
    >>> (gc.ones((2, 3)) @ gc.ones((3, 4))).shape
    (2, 4)
    """
    a, b = operand_of(x1, "matmul"), operand_of(x2, "matmul")
    if a._strides is None and b._strides is None:
        return apply(_MATMUL, (a, b), setting.attrs)
    # A transposed view of contiguous memory is read as it lies, not copied.
    sides = _turned(a), _turned(b)
    if sides == (None, None) or a._meta is not None or b._meta is not None or a._traced is not None or b._traced is not None:
        return apply(_MATMUL, (a, b), setting.attrs)
    given = [t if spec is None else make(spec, t._buffer, t._address) for t, spec in zip((a, b), sides)]
    return apply(_MATMUL, given, (*[spec is not None for spec in sides], *setting.attrs))


# (type, strides) -> the type of the contiguous matrices that such a tensor is the transposed view of, or None.
_layouts: dict[Any, Spec | None] = {}


def _turned(t: Tensor) -> Spec | None:
    strides, spec = t._strides, t._spec
    if strides is None or strides is ABSTRACT:
        return None
    key = (spec, strides)
    if key not in _layouts:
        shape, turned = spec.shape, None
        if len(shape) >= 2:
            turned = spec.with_shape((*shape[:-2], shape[-1], shape[-2]))
            plain = contiguous_strides(turned)
            turned = turned if strides == (*plain[:-2], plain[-1], plain[-2]) else None
        remember(_layouts, key, turned)
    return _layouts[key]


def tensordot(x1: Tensor, x2: Tensor, /, *, axes: Any = 2) -> Tensor:
    """The product summed over `axes`: the last n of x1 and the first n of x2, or a pair of axis lists."""
    a, b = operand_of(x1, "tensordot"), operand_of(x2, "tensordot")
    ranks = len(a._spec.shape), len(b._spec.shape)
    if isinstance(axes, int):
        left, right = tuple(range(ranks[0] - axes, ranks[0])), tuple(range(axes))
    else:
        left, right = (tuple(e.normal_axis(i, r) for i in side) for side, r in zip(axes, ranks))
    if len(left) != len(right):
        raise ValueError(f"tensordot: axes name {len(left)} axes on the left and {len(right)} on the right")
    return apply(_DOT, (a, b), ((), (), left, right, *setting.attrs))


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The inner products of vectors along `axis`; the other dimensions broadcast."""
    a, b = operand_of(x1, "vecdot"), operand_of(x2, "vecdot")
    from graphc.runtime.ops_layout import broadcast_to, moveaxis

    shape = broadcast_shapes(a._spec.shape, b._spec.shape)
    a, b = (moveaxis(broadcast_to(t, shape), axis, -1) for t in (a, b))
    last = len(shape) - 1
    batch = tuple(range(last))
    return apply(_DOT, (a, b), (batch, batch, (last,), (last,), *setting.attrs))


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The products of all pairs of elements of two vectors."""
    a, b = operand_of(x1, "outer"), operand_of(x2, "outer")
    if len(a._spec.shape) != 1 or len(b._spec.shape) != 1:
        raise ValueError(f"outer takes two vectors, not {a._spec} and {b._spec}; flatten them")
    return apply(OPS["multiply"], (expand_dims(a, 1), b))


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Sums of products by index letters, such as `"bij,bjk->bik"`. Operands are contracted left to right.

    Letters repeated within one operand and "..." are not supported. Raises `ValueError` for them.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    tensors = [operand_of(x, "einsum") for x in operands]
    if not arrow:
        letters = sorted(set(left) - {","})
        output = "".join(c for c in letters if left.count(c) == 1)
    if len(inputs) != len(tensors):
        raise ValueError(f"einsum: {equation!r} names {len(inputs)} operands, {len(tensors)} were given")
    for names, t in zip(inputs, tensors):
        if "." in names or len(set(names)) != len(names) or len(names) != len(t._spec.shape):
            raise ValueError(f"einsum: {names!r} must name each of the {len(t._spec.shape)} dimensions of {t._spec} once")
    missing = set(output) - set(left)
    if missing or len(set(output)) != len(output):
        raise ValueError(f"einsum: the output {output!r} must name letters of the operands, each once")
    names, result = inputs[0], tensors[0]
    for i in range(1, len(tensors)):
        later = set(output).union(*inputs[i + 1 :])
        names, result = _contract_pair(names, result, inputs[i], tensors[i], later)
    names, result = _sum_out(names, result, set(output))
    from graphc.runtime.ops_layout import permute_dims

    return permute_dims(result, [names.index(c) for c in output]) if names != output else result


def _sum_out(names: str, x: Tensor, kept: set[str]) -> tuple[str, Tensor]:
    from graphc.runtime.ops_reduce import sum as total

    gone = tuple(i for i, c in enumerate(names) if c not in kept)
    return ("".join(c for c in names if c in kept), total(x, gone)) if gone else (names, x)


def _contract_pair(a: str, x: Tensor, b: str, y: Tensor, later: set[str]) -> tuple[str, Tensor]:
    a, x = _sum_out(a, x, later | set(b))
    b, y = _sum_out(b, y, later | set(a))
    batch = [c for c in a if c in b and c in later]
    gone = [c for c in a if c in b and c not in later]
    places = (tuple(a.index(c) for c in batch), tuple(b.index(c) for c in batch))
    contracted = (tuple(a.index(c) for c in gone), tuple(b.index(c) for c in gone))
    names = "".join(batch) + "".join(c for c in a if c not in b) + "".join(c for c in b if c not in a)
    return names, apply(_DOT, (x, y), (*places, *contracted, *setting.attrs))


__all__ = ["einsum", "matmul", "matrix_transpose", "outer", "tensordot", "vecdot"]
