"""Row groups with reductions down the columns of their domain: what joins, and to the bit what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.grouping import grouped
from graphc.codegen.lower.lanes import is_joined
from graphc.codegen.prepare import prepare
from graphc.ir.function import Builder, Function
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import BF16, F16, F32, F64, I32, DType, TensorType
from graphc.ir.verify import verify
from graphc.runtime.nn import functional

from tests.codegen.compiled import assert_compiled
from tests.codegen.row_groups import gradient, traced
from tests.codegen.values import Shape, mixed, plain


def groups(f: Function, device: bool = False) -> list[Function]:
    module = grouped(prepare(run_pipeline(f, DEFAULT))[0], device)
    for g in module:
        verify(g)
    return [op.attrs["function"] for op in module.entry.ops]


def joined(f: Function) -> int:
    return sum(map(is_joined, groups(f)))


def check(f: Function) -> None:
    """On one thread and on three."""
    kinds = [mixed if p.type.dtype.is_float else plain for p in f.params]
    assert_compiled(f, [np.asarray(k(p.type.dtype, p.type.shape, i)) for i, (k, p) in enumerate(zip(kinds, f.params, strict=True))])


def normalisation(norm: str, shape: Shape, dtype: DType = F32) -> Function:
    """The gradient of a normalisation of the last dimension, with that of its gain."""
    n, x = shape[-1:], f"{dtype.name}{list(shape)}"
    if norm == "layer":
        return gradient(traced(lambda x, w, b: functional.layer_norm(x, n, w, b), x, *[f"{dtype.name}{list(n)}"] * 2))
    return gradient(traced(lambda x, w: functional.rms_norm(x, n, w), x, f"{dtype.name}{list(n)}"))


def classes_with_bias(rows: int, classes: int) -> Function:
    """Cross-entropy of logits with a bias: its gradient is the sum of the logits' gradient down the columns."""

    def loss(x: Any, b: Any, t: Any) -> Any:
        return functional.cross_entropy(x + b, t)

    return gradient(traced(loss, f"f32[{rows}, {classes}]", f"f32[{classes}]", f"i32[{rows}]"))


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("shape", [(128, 65), (129, 100), (131, 67), (2, 67, 257), (300, 1024), (4229, 96)], ids=str)
def test_normalisations(norm: str, shape: Shape) -> None:
    f = normalisation(norm, shape)
    assert joined(f) == 1
    check(f)


@pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
def test_dtypes(dtype: DType) -> None:
    f = normalisation("layer", (160, 72), dtype)
    assert joined(f) == 1
    check(f)


def test_more_rows_than_a_chunk_and_wide_rows() -> None:
    check(normalisation("layer", (8300, 66)))
    f = normalisation("rms", (130, 5003))
    assert joined(f) == 1
    check(f)


def test_a_bias_under_a_loss() -> None:
    f = classes_with_bias(331, 101)
    assert joined(f) == 1
    assert_compiled(f, [mixed(F32, (331, 101), 1), mixed(F32, (101,), 2), abs(plain(I32, (331,), 3)) % 101, np.float32([1.5]).reshape(())])


@pytest.mark.parametrize("names", [("sum", "sum"), ("max", "prod"), ("any", "all"), ("sum", "min")], ids="-".join)
def test_reductions_of_all_kinds(names: tuple[str, str]) -> None:
    """Along and down, of values of the operand, of rows and of the whole."""
    b = Builder("both")
    x = b.param(TensorType(F32, (200, 70)))
    logical = names[0] in ("any", "all")
    source = b.gt(x, b.neg(x)) if logical else x
    along = b.emit(names[0], source, axes=(1,))
    down = b.emit(names[1], source, axes=(0,))
    results = [along, down]
    if not logical:
        y = b.sub(x, b.broadcast(along, shape=(200, 70), axes=(0,)))
        again = b.emit(names[1], y, axes=(0,))
        results += [y, b.mul(again, again), b.emit(names[0], y, axes=(1,))]
    f = b.build(results)
    assert joined(f) >= 1
    check(f)


def square(axis: int) -> Function:
    """Columns of x less its row maxima, which lie along this axis."""
    b = Builder("square")
    x = b.param(TensorType(F32, (130, 130)))
    top = b.max(x, axes=(1,))
    y = b.sub(x, b.broadcast(top, shape=(130, 130), axes=(axis,)))
    return b.build([top, b.sum(b.exp(y), axes=(0,))])


def test_rows_are_read_where_they_are() -> None:
    """What is known of a row serves its own elements, not those of a column of the same number."""
    assert joined(square(0)) == 1 and joined(square(1)) == 0
    check(square(0))
    check(square(1))


def both(rows: int, columns: int) -> Function:
    b = Builder("both")
    x = b.param(TensorType(F32, (rows, columns)))
    return b.build([b.max(x, axes=(1,)), b.sum(x, axes=(0,))])


def test_what_stays_apart() -> None:
    """Short rows, few rows, columns whose accumulators no cache holds, and everything on a device."""
    assert joined(both(128, 65)) == 1
    for rows, columns in ((128, 64), (127, 65), (128, 40000)):
        assert joined(both(rows, columns)) == 0
    assert not any(is_joined(g) for g in groups(both(128, 65), device=True))


def test_a_row_that_waits_for_a_column_stays_apart() -> None:
    b = Builder("waits")
    x = b.param(TensorType(F32, (130, 70)))
    total = b.sum(x, axes=(0,))
    f = b.build([b.max(b.mul(x, b.broadcast(total, shape=(130, 70), axes=(1,))), axes=(1,)), total])
    assert joined(f) == 0
    check(f)
