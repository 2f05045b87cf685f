"""Cases of every operation: the table, the form of a case, and the elementwise families.

A family makes the cases of one operation for given element types (its *roles*: usually one dtype that
all operands share; source and target of a cast; elements and indices of a gather). Which types an
operation accepts is asked of its type rule, so that no combination can be forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from graphc.ir.function import Builder
from graphc.ir.registry import IRTypeError, operations
from graphc.ir.types import ALL_DTYPES, BOOL, F32, I64, DType, TensorType, dtype

from tests.codegen.values import Array, Shape, combinations, plain

Fill = Callable[[Shape, int], Array]  # (shape, seed)
Roles = tuple[DType, ...]

LENGTHS = (1, 15, 16, 17, 31, 32, 33, 4095, 4096, 4097, 10000)
SHAPES: tuple[Shape, ...] = ((), (1, 1), (1, 7, 1), (3, 1, 5), (2, 33), (1, 3, 1, 17, 2), (2, 3, 4, 5), (2, 1, 3, 2, 16))
EMPTY: tuple[Shape, ...] = ((0,), (0, 3), (3, 0), (2, 0, 3), (0, 0), (4, 1, 0))


@dataclass(frozen=True)
class Operand:
    shape: Shape
    fill: Fill


@dataclass(frozen=True)
class Case:
    """One application of an operation. `layouts`: whether its operands can come through layout operations."""

    operands: tuple[Operand, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    layouts: bool = True


def of(dtype: DType, shape: Shape, values: Callable[[DType, Shape, int], Array] = plain) -> Operand:
    return Operand(shape, lambda s, seed: values(dtype, s, seed))


def rotating(items: tuple[Any, ...], op: str, roles: Roles, count: int) -> list[Any]:
    """A few of `items`; other operations and types get others, so that together they get all."""
    names = sorted(operations())
    start = names.index(op) + sum(ALL_DTYPES.index(d) * (i + 1) for i, d in enumerate(roles))
    return [items[(start * count + i) % len(items)] for i in range(min(count, len(items)))]


# --------------------------------------------------------------- elementwise, compare


def _count(op: str) -> int:
    """How many operands an operation of the strict families takes."""
    for count, d in itertools.product((1, 2, 3), ALL_DTYPES):
        try:
            operations()[op].infer((TensorType(d),) * count, {})
            return count
        except IRTypeError:
            continue
    raise AssertionError(f"{op} takes no operands")


def _elementwise_shapes(op: str, roles: Roles, size: int) -> list[Shape]:
    lengths = [(n,) for n in rotating(LENGTHS, op, roles, 2)]
    return [(size,), *lengths, *rotating(SHAPES, op, roles, 1), *rotating(EMPTY, op, roles, 1)]


def _over_shapes(op: str, roles: Roles, dtypes: Roles, attrs: dict[str, Any]) -> list[Case]:
    arrays = combinations(dtypes)

    def fill(i: int) -> Fill:
        # From somewhere in the middle, so that short operands differ from case to case.
        return lambda shape, seed: np.resize(np.roll(arrays[i], 7 * len(shape) * (seed // 16)), shape)

    shapes = _elementwise_shapes(op, roles, len(arrays[0]))
    return [Case(tuple(Operand(s, fill(i)) for i in range(len(dtypes))), attrs) for s in shapes]


def _elementwise(op: str, roles: Roles) -> list[Case]:
    return _over_shapes(op, roles, roles * _count(op), {})


def _select(op: str, roles: Roles) -> list[Case]:
    return _over_shapes(op, roles, (BOOL, *roles * 2), {})


def _cast(op: str, roles: Roles) -> list[Case]:
    cases = _over_shapes(op, roles, roles[:1], {"dtype": roles[1]})
    # There are many pairs of types: the special values, and one more shape each.
    return [cases[0], cases[1 + (ALL_DTYPES.index(roles[0]) + ALL_DTYPES.index(roles[1])) % (len(cases) - 1)]]


# --------------------------------------------------------------- create, control, random


def _constant(op: str, roles: Roles) -> list[Case]:
    (d,) = roles
    values = combinations((d,))[0]
    few = rotating(tuple(values), op, roles, 3)
    arrays = [*map(np.asarray, few), values, values.reshape(1, -1, 1), values[:0], values[:1]]
    return [Case((), {"value": a}) for a in arrays]


def _full(op: str, roles: Roles) -> list[Case]:
    (d,) = roles
    shapes = [(), *rotating(SHAPES, op, roles, 2), *rotating(EMPTY, op, roles, 1), (4097,)]
    return [Case((of(d, ()),), {"shape": s}) for s in shapes]


def _iota(op: str, roles: Roles) -> list[Case]:
    shapes = [(1,), (300,), (70000,), (3, 5), (2, 33, 4), (0, 3), (3, 0)]
    return [Case((), {"shape": s, "axis": a, "dtype": roles[0]}) for s in shapes for a in range(len(s))]


def _call(op: str, roles: Roles) -> list[Case]:
    b = Builder("swapped")
    x, y = b.param(TensorType(roles[0], (3, 5))), b.param(TensorType(roles[0], (2,)))
    f = b.build([y, b.flip(x, axes=(1,)), x])
    return [Case((of(roles[0], (3, 5)), of(roles[0], (2,))), {"function": f})]


def _identity(op: str, roles: Roles) -> list[Case]:
    return _over_shapes(op, roles, roles, {})


def _check_index(op: str, roles: Roles) -> list[Case]:
    from tests.codegen.values import indices

    def fill(shape: Shape, seed: int) -> Array:
        return indices(roles[0], shape, seed, 9)

    return [Case((Operand(s, fill),), {"size": 9}) for s in ((), (33,), (3, 5), (0,), (2, 0))]


def _random_bits(op: str, roles: Roles) -> list[Case]:
    keys = (0, 1, 2**64 - 1, 0x123456789ABCDEF0)
    offsets = (0, 1, 2, 3, 2**33 + 1, 2**64 - 7)
    cases = []
    for i, (key, offset) in enumerate(itertools.product(keys, offsets)):
        shape = ((33,), (), (3, 5), (4097,), (0,), (2, 1, 7))[i % 6]
        operands = tuple(
            Operand((), lambda s, seed, v=v: np.full(s, v, np.uint64))  # type: ignore[misc]
            for v in (key, offset)
        )
        cases.append(Case(operands, {"shape": shape, "dtype": roles[0]}, layouts=False))
    return cases


Family = Callable[[str, Roles], list[Case]]


def family_of(op: str) -> Family:
    """What makes the cases of an operation. Raises `KeyError` for an operation that has none."""
    from tests.codegen import structured_cases

    single: dict[str, Family] = {
        "select": _select,
        "cast": _cast,
        "bitcast": _cast,
        "constant": _constant,
        "full": _full,
        "iota": _iota,
        "call": _call,
        "stop_gradient": _identity,
        "check_index": _check_index,
        "random_bits": _random_bits,
        **structured_cases.SINGLE,
    }
    families: dict[str, Family] = {"elementwise": _elementwise, "compare": _elementwise, **structured_cases.FAMILIES}
    return single[op] if op in single else families[operations()[op].family]


def _candidates(op: str) -> list[Roles]:
    if op in ("cast", "bitcast"):
        return list(itertools.product(ALL_DTYPES, repeat=2))
    if operations()[op].family == "indexing":
        return [(d, I64) for d in ALL_DTYPES] + [(F32, d) for d in ALL_DTYPES if d is not I64]
    return [(d,) for d in ALL_DTYPES]


def apply(b: Builder, op: str, case: Case, values: list[Any]) -> tuple[Any, ...]:
    return tuple(b.emit_op(op, *values, **case.attrs).results)


# The rules about element types, by their words.
REFUSALS = "is defined for|must have the dtype|element|integer dtype|random bits are|not bool|must be numbers"


def accepted(op: str) -> list[tuple[Roles, list[Case]]]:
    """The element types that the operation's type rule accepts, each with its cases."""
    import re

    out = []
    for roles in _candidates(op):
        cases = family_of(op)(op, roles)
        b = Builder("probe")
        arrays = [o.fill(o.shape, 0) for o in cases[0].operands]
        try:
            apply(b, op, cases[0], [b.param(TensorType(dtype(a.dtype), a.shape)) for a in arrays])
        except IRTypeError as error:
            assert re.search(REFUSALS, str(error)), f"a case of {op} is malformed: {error}"
            continue
        out.append((roles, cases))
    return out
