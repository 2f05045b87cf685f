"""The transpose statement: the emitter against the meaning of the loop language."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.expr import index, var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import Buffer, For, Kernel, Transpose, Vector, print_kernel
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U16, DType

from tests.codegen.kernel_oracle import assert_same


def kernel(source: DType, target: DType, size: int) -> tuple[Kernel, Buffer, Buffer]:
    """Blocks along a row of the source become blocks down a column of the target."""
    x, y = Buffer("x", source, "in"), Buffer("y", target, "out")
    b = var("b")
    block = Transpose(y, b * size * var("ys") + 3, var("ys"), x, b * size + 1, var("xs"), size)
    body = (For(b, var("begin"), var("end"), (block,), index(1)),)
    return Kernel("blocks", (x, y), ("xs", "ys"), index(3), index(1), body), x, y


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize(
    "dtypes", [(BOOL, BOOL), (F32, F32), (F64, F64), (F16, F32), (BF16, F32), (I8, I32), (U16, I32), (I64, I64), (F32, F16)], ids=str
)
def test_blocks(dtypes: tuple[DType, DType], size: int) -> None:
    k, x, y = kernel(*dtypes, size)
    rng = np.random.default_rng(0)
    xs, ys = 3 * size + 2, size + 5
    held = {
        x: rng.integers(0, 100, xs * size + 8).astype(x.dtype.numpy),
        y: np.zeros(3 * size * ys + 8, y.dtype.numpy),
    }
    assert_same(k, held, {"xs": xs, "ys": ys}, 0, 3)


@pytest.mark.parametrize("rows, columns", [(16, 1), (16, 2), (16, 3), (8, 5), (16, 10), (16, 15), (3, 16), (7, 8), (10, 16), (2, 4), (9, 16)])
@pytest.mark.parametrize("dtype", [BOOL, F16, F32, I64], ids=str)
def test_blocks_that_are_no_squares(dtype: DType, rows: int, columns: int) -> None:
    """Rows side by side: what lies behind the last one of either side does not exist."""
    x, y = Buffer("x", dtype, "in"), Buffer("y", dtype, "out")
    k = Kernel("block", (x, y), (), index(1), index(1), (Transpose(y, index(0), index(rows), x, index(0), index(columns), rows, columns),))
    given = np.random.default_rng(0).integers(0, 100, rows * columns).astype(dtype.numpy)
    assert_same(k, {x: given, y: np.zeros(rows * columns, dtype.numpy)}, {}, 0, 1)


def test_text() -> None:
    k, _, _ = kernel(F32, F32, 4)
    assert "transpose 4 x 4 y[(((b * 4) * ys) + 3) step ys] = x[((b * 4) + 1) step xs]" in print_kernel(k)


def test_refusals() -> None:
    for source, target, size in ((BOOL, I8, 4), (F32, F32, 3), (F32, F32, 1)):
        k, _, _ = kernel(source, target, size)
        with pytest.raises(TypeError, match=f"a transpose of {size} x {size} {source} elements to {target}"):
            emit_kernel(k, host_target())
    k, x, y = kernel(F32, F32, 4)
    block = Transpose(y, index(0), index(4), x, index(0), index(4), 4)
    inside = Kernel("inside", (x, y), (), index(1), index(1), (Vector(var("lane"), 8, (block,)),))
    with pytest.raises(TypeError, match="does not stand here"):
        emit_kernel(inside, host_target())
