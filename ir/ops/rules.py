"""Type rules shared by the families of operations, and the form of their error messages.

A type rule is an `Infer` (see registry.py). Every failure goes through `type_error`, so that every
message names the operation with its operand types, the rule that is broken, and the cure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Attrs
from graphc.ir.registry import Infer, IRTypeError
from graphc.ir.types import BOOL, F32, Dim, DimExpr, DType, Shape, TensorType

KIND_NAMES = {"b": "bool", "i": "signed integer", "u": "unsigned integer", "f": "floating point"}


def type_error(name: str, types: Sequence[TensorType], rule: str, cure: str = "") -> IRTypeError:
    """The error for `name` applied to `types`: `add(f32[3], f64[3]): <rule>; <cure>`."""
    call = f"{name}({', '.join(map(str, types))})"
    return IRTypeError(f"{call}: {rule}" + (f"; {cure}" if cure else ""))


def check_count(name: str, types: Sequence[TensorType], count: int) -> None:
    """Raises unless there are `count` operands."""
    if len(types) != count:
        raise type_error(name, types, f"{name} takes {count} operand{'s' * (count != 1)}, not {len(types)}")


def check_kinds(name: str, types: Sequence[TensorType], dtype: DType, kinds: str) -> None:
    """Raises unless `dtype` is of one of `kinds` ("b", "i", "u", "f")."""
    if dtype.kind not in kinds:
        allowed = " or ".join(KIND_NAMES[k] for k in kinds)
        raise type_error(name, types, f"{name} is defined for {allowed} elements, not {dtype}", "cast the operand")


def check_same_dtype(name: str, types: Sequence[TensorType]) -> None:
    for t in types[1:]:
        if t.dtype is not types[0].dtype:
            cure = f"cast one of them, for example to {promoted(types[0].dtype, t.dtype)}"
            raise type_error(name, types, f"operands must have the same dtype, not {types[0].dtype} and {t.dtype}", cure)


def check_same_shape(name: str, types: Sequence[TensorType]) -> None:
    for t in types[1:]:
        if t.shape != types[0].shape:
            rule = f"operands must have the same shape, not {show_shape(types[0].shape)} and {show_shape(t.shape)}"
            raise type_error(name, types, rule, "emit broadcast or reshape first")


def show_shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def promoted(a: DType, b: DType) -> DType:
    """The dtype that an error message proposes for operands of dtypes `a` and `b`."""
    return max((a, b), key=lambda d: ("biuf".index(d.kind), d.bits))


def same_types(name: str, count: int, kinds: str, result: DType | None = None) -> Infer:
    """The rule of strict elementwise operations: `count` operands of one dtype and one shape.

    The result has that type, or that shape and dtype `result`.
    """

    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        check_count(name, types, count)
        check_same_dtype(name, types)
        check_kinds(name, types, types[0].dtype, kinds)
        check_same_shape(name, types)
        return (types[0] if result is None else types[0].with_dtype(result),)

    return infer


def select_types(name: str) -> Infer:
    """The rule of `select(cond, a, b)`: a bool condition, two operands of one type, one shape."""

    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        check_count(name, types, 3)
        if types[0].dtype is not BOOL:
            raise type_error(name, types, f"the condition must be bool, not {types[0].dtype}", "compare it with 0 (ne)")
        check_same_dtype(name, types[1:])
        check_same_shape(name, types)
        return (types[1],)

    return infer


def check_axis(name: str, types: Sequence[TensorType], axis: Any, rank: int) -> int:
    """`axis` if it is an integer in [0, rank)."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < rank:
        raise type_error(
            name, types, f"axis {axis!r} is not in [0, {rank})", "axes in the IR are never negative: add the rank"
        )
    return axis


def check_axes(name: str, types: Sequence[TensorType], axes: Any, rank: int) -> tuple[int, ...]:
    """`axes` if it is a strictly ascending tuple of axes of an operand of rank `rank`."""
    if not isinstance(axes, tuple):
        raise type_error(name, types, f"axes must be a tuple of integers, not {axes!r}", f"write ({axes!r},)")
    for a in axes:
        check_axis(name, types, a, rank)
    if any(a >= b for a, b in itertools.pairwise(axes)):
        raise type_error(name, types, f"axes {axes} are not ascending and distinct", "sort them and drop repeats")
    return axes


def check_ints(
    name: str, types: Sequence[TensorType], attr: str, value: Any, count: int, least: int | None = None
) -> tuple[int, ...]:
    """`value` if it is a tuple of `count` integers, each at least `least`."""
    good = isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not good or len(value) != count:
        raise type_error(name, types, f"{attr} must be {count} integer{'s' * (count != 1)}, not {value!r}")
    if least is not None and any(v < least for v in value):
        raise type_error(name, types, f"{attr} must be at least {least} everywhere, not {value!r}")
    return tuple(value)


def check_shape(name: str, types: Sequence[TensorType], attr: str, value: Any) -> Shape:
    """`value` if it is a shape: a tuple of integers >= 0 and symbolic dimensions."""
    if not isinstance(value, tuple) or not all(_is_dim(d) for d in value):
        raise type_error(name, types, f"{attr} must be a tuple of dimensions (integers >= 0 or symbolic), not {value!r}")
    return value


def check_dtype(name: str, types: Sequence[TensorType], value: Any) -> DType:
    """`value` if it is a `DType`."""
    if not isinstance(value, DType):
        raise type_error(name, types, f"dtype must be an element type, not {value!r}", "pass a graphc dtype")
    return value


def _is_dim(d: Dim) -> bool:
    return isinstance(d, DimExpr) or (isinstance(d, int) and not isinstance(d, bool) and d >= 0)


def removed(shape: Shape, axes: Sequence[int]) -> Shape:
    """`shape` without `axes`."""
    return tuple(d for i, d in enumerate(shape) if i not in axes)


# precision of a product -> what is done to its operands (docs/ir.md)
PRECISIONS = {
    "": "as the target does it best",
    "exact": "chains of fma on every target",
    "tf32": "float32 operands rounded to 11 bits",
    "bf16": "float32 operands rounded to bfloat16",
}


def check_precision(name: str, types: tuple[TensorType, ...], value: object) -> None:
    """Raises `IRTypeError` unless `value` is a precision that a product of these operands can have."""
    if value not in PRECISIONS:
        known = ", ".join(f'"{p}"' for p in PRECISIONS)
        raise type_error(name, types, f"precision must be one of {known}, not {value!r}")
    if value in ("tf32", "bf16") and types[0].dtype is not F32:
        rule = f'precision "{value}" says how float32 operands are rounded, and these are {types[0].dtype}'
        raise type_error(name, types, rule, 'leave precision "", or cast the operands to f32')
