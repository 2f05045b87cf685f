"""linear_scan against the interpreter: lines alone, in groups that are not full, side by side, in both directions."""

from __future__ import annotations

import pytest
from graphc.ir.function import Builder
from graphc.ir.types import BF16, F32, F64, I32, TensorType

from tests.codegen.compiled import assert_compiled
from tests.codegen.values import Shape, mixed, plain

CASES: tuple[tuple[Shape, int], ...] = (
    ((50,), 0),
    ((1, 33), 1),
    ((7, 12), 1),
    ((17, 5), 1),
    ((9, 3), 0),
    ((4, 40), 0),
    ((3, 6, 17), 1),
    ((2, 5, 2100), 1),
    ((3, 4, 5, 6), 2),
    ((0, 4), 1),
    ((4, 0), 0),
    ((5, 1), 1),
)


@pytest.mark.parametrize("shape, axis", CASES, ids=str)
def test_scans(shape: Shape, axis: int) -> None:
    b = Builder("scans")
    args, results = [], []
    for k, d in enumerate((F32, BF16, F64, I32)):
        factor, addend = b.param(TensorType(d, shape)), b.param(TensorType(d, shape))
        args += [plain(d, shape, k), (mixed if d.is_float else plain)(d, shape, k + 10)]
        results += [b.emit("linear_scan", factor, addend, axis=axis, reverse=r) for r in (False, True)]
    assert_compiled(b.build(results), args)
