"""The columns statement: the emitter and the C dialect against the meaning of the loop language."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.c.c99 import emit_kernels
from graphc.codegen.expr import index, var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import (
    Buffer,
    Columns,
    For,
    Kernel,
    Let,
    Store,
    Vector,
    print_kernel,
    without_columns,
)
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, DType

from tests.codegen.c_kernels import c_library, call
from tests.codegen.kernel_oracle import assert_same, interpret


def kernel(source: DType, target: DType, size: int) -> tuple[Kernel, Buffer, Buffer]:
    """y[b, j, lane] = x[lane, b * size + j], rows at a distance that is an extent."""
    x, y = Buffer("x", source, "in"), Buffer("y", target, "out")
    b, lane = var("b"), var("lane")
    names = tuple(var(f"column_{j}", target) for j in range(size))
    strip = Columns(lane, names, x, lane * var("xs") + b * size + 1)
    puts = [Store(y, (b * size + j) * size + lane, n) for j, n in enumerate(names)]
    body = (For(b, var("begin"), var("end"), (Vector(lane, size, (strip, *puts)),), index(1)),)
    return Kernel("strips", (x, y), ("xs",), index(3), index(1), body), x, y


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("dtypes", [(F32, F32), (F64, F64), (F16, F32), (BF16, F32), (I8, I32), (I64, I64)], ids=str)
def test_strips(dtypes: tuple[DType, DType], size: int) -> None:
    k, x, y = kernel(*dtypes, size)
    rng = np.random.default_rng(0)
    xs = 3 * size + 5
    held = {
        x: rng.integers(0, 100, size * xs).astype(x.dtype.numpy),
        y: np.zeros(3 * size * size, y.dtype.numpy),
    }
    assert_same(k, held, {"xs": xs}, 0, 3)


def test_text() -> None:
    k, _, _ = kernel(F32, F32, 4)
    assert "columns column_0 .. column_3 = x[(((lane * xs) + (b * 4)) + 1) ..]" in print_kernel(k)


def test_in_c_it_is_one_name_after_the_other() -> None:
    k, _, _ = kernel(F32, F32, 4)
    (loop,) = without_columns(k.body)
    assert isinstance(loop, For) and isinstance(loop.body[0], Vector)
    assert all(isinstance(s, Let) for s in loop.body[0].body[:4])
    x, y = k.buffers
    held = {x: np.arange(60, dtype=np.float32), y: np.zeros(48, np.float32)}
    after, _ = call(c_library(emit_kernels([k]), "-O1").strips, k, held, {"xs": 14}, 0, 3)
    want, _ = interpret(k, held, {"xs": 14}, 0, 3)
    assert np.array_equal(after[y], want[y]) and want[y].any()


def test_refusals() -> None:
    k, _, _ = kernel(BOOL, BOOL, 4)
    with pytest.raises(TypeError, match="columns of 4 bool elements do not stand in a region of 4 lanes"):
        emit_kernel(k, host_target())
    k, x, _ = kernel(F32, F32, 4)
    outside = Kernel("outside", (x,), (), index(1), index(1), (Columns(var("lane"), (var("c", F32),) * 4, x, var("lane")),))
    with pytest.raises(TypeError, match="columns of 4 f32 elements do not stand in a region of 0 lanes"):
        emit_kernel(outside, host_target())
