"""Every operation, compiled, for every element type that it accepts: the bits of its meaning.

Operands are of all ranks, empty, of lengths around vector widths and chunks, with special values; they
come straight from memory and through fused layout operations, and results go through them.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from graphc.ir.function import Builder, Value
from graphc.ir.registry import operations
from graphc.ir.types import ALL_DTYPES, F32, I64, TensorType, dtype

from tests.codegen.compiled import assert_compiled
from tests.codegen.layouts import WAYS_IN, WAYS_OUT
from tests.codegen.operation_cases import SHAPES, Case, Roles, accepted, apply, of
from tests.codegen.values import Array, Shape

OPERATIONS = sorted(operations())


class Packed:
    """One function of many cases: it compiles as many kernels, but is planned and run once."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.b = Builder(op)
        self.args: list[Array] = []
        self.results: list[Value] = []
        self.labels: list[str] = []

    def param(self, array: Array) -> Value:
        self.args.append(array)
        return self.b.param(TensorType(dtype(array.dtype), array.shape))

    def result(self, label: str, *values: Value) -> None:
        for v in values:
            self.results.append(v)
            self.labels.append(f"{label} -> {v.type}")

    def add(self, case: Case) -> None:
        arrays = [o.fill(o.shape, 16 * len(self.args) + i) for i, o in enumerate(case.operands)]
        self.result(describe(self.op, arrays, case), *apply(self.b, self.op, case, [self.param(a) for a in arrays]))

    def add_through(self, case: Case, way_in: str, way_out: str) -> None:
        """The case with layout operations before and after it."""
        values = []
        for i, operand in enumerate(case.operands):

            def param(shape: Shape, i: int = i, operand: Any = operand) -> Value:
                return self.param(operand.fill(shape, 16 * len(self.args) + i))

            values.append(WAYS_IN[way_in](self.b, param, operand.shape) if operand.shape else param(()))
        label = f"{way_in} {self.op}({', '.join(str(v.type) for v in values)}) {case.attrs} {way_out}"
        for v in apply(self.b, self.op, case, values):
            self.result(label, WAYS_OUT[way_out](self.b, v))

    def check(self, **options: Any) -> None:
        assert_compiled(self.b.build(self.results), self.args, self.labels, **options)


def describe(op: str, arrays: list[Array], case: Case) -> str:
    operands = ", ".join(str(TensorType(dtype(a.dtype), a.shape)) for a in arrays)
    return f"{op}({operands}) {case.attrs}"


def test_no_operation_without_cases() -> None:
    """Every operation of the registry has cases for at least one element type, and every type has a role."""
    for op in OPERATIONS:
        types = {roles[0] for roles, _ in accepted(op)}
        assert types, f"{op} accepts nothing"


def _some(op: str, cases: list[Case], roles: Roles, first: Roles, count: int) -> list[Case]:
    """All cases for one element type; others read memory alike, and get a few each."""
    if roles in ((F32,), (F32, I64)) or roles == first:
        return cases
    start = zlib.crc32(f"{op} {roles}".encode())
    return [cases[(start + i) % len(cases)] for i in range(min(count, len(cases)))]


WHOLE = ("elementwise", "compare", "reduce", "control")  # families that choose by themselves


@pytest.mark.parametrize("op", OPERATIONS)
def test_operation(op: str) -> None:
    packed = Packed(op)
    found = accepted(op)
    for roles, cases in found:
        whole = operations()[op].family in WHOLE
        for case in cases if whole else _some(op, cases, roles, found[0][0], 2):
            packed.add(case)
    # Unoptimised, so that no rule replaces the operation by another.
    packed.check(optimise=False)


POINTWISE = [op for op in OPERATIONS if operations()[op].family in ("elementwise", "compare")]
STRUCTURED = [op for op in OPERATIONS if op not in POINTWISE]


@pytest.mark.parametrize("start", range(0, len(POINTWISE), 10))
def test_elementwise_between_layout_operations(start: int) -> None:
    """What positions are does not depend on the operation: every operation sees some ways in and out."""
    packed = Packed("chain")
    for number, op in enumerate(POINTWISE[start : start + 10], start):
        found = accepted(op)
        for i in range(2):
            _, cases = found[(number + 7 * i) % len(found)]
            shape = SHAPES[(number + i) % len(SHAPES)]
            operands = tuple(replace(o, shape=shape) for o in cases[0].operands)
            packed.op = op
            packed.add_through(replace(cases[0], operands=operands), *_ways(2 * number + i))
    packed.check()


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_every_way_in_and_out(way_in: str) -> None:
    packed = Packed("add")
    for i, way_out in enumerate(WAYS_OUT):
        for k, roles in enumerate(((F32,), ALL_DTYPES[i : i + 1])):
            shape = (*SHAPES, (0, 3), (40, 100), (100, 40))[(3 * i + k) % 10]
            packed.add_through(Case((of(roles[0], shape), of(roles[0], shape))), way_in, way_out)
    packed.check()


def _ways(number: int) -> tuple[str, str]:
    """Pairs of ways; any 81 numbers in a row give all of them."""
    ways_in, ways_out = list(WAYS_IN), list(WAYS_OUT)
    return ways_in[number % len(ways_in)], ways_out[(number + number // len(ways_in)) % len(ways_out)]


@pytest.mark.parametrize("op", STRUCTURED)
def test_operation_between_layout_operations(op: str) -> None:
    packed = Packed(op)
    found = accepted(op)
    for k, (roles, cases) in enumerate(found):
        open_cases = [c for c in cases if c.layouts and c.operands and c.operands[0].shape]
        for i, case in enumerate(_some(op, open_cases, roles, found[0][0], 1) if open_cases else ()):
            packed.add_through(case, *_ways(zlib.crc32(op.encode()) + k + i))
    packed.check()
