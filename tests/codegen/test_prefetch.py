"""The prefetch statement: it changes nothing, wherever it points."""

from __future__ import annotations

import numpy as np
from graphc.codegen.c.c99 import emit_kernels
from graphc.codegen.expr import index, load, var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import Buffer, For, Kernel, Prefetch, Store, print_kernel, without_columns
from graphc.ir.types import F32

from tests.codegen.kernel_oracle import assert_same


def kernel() -> tuple[Kernel, Buffer, Buffer]:
    """y[i] = x[i] + x[i], far beyond both of which lines are asked for."""
    x, y, i = Buffer("x", F32, "in"), Buffer("y", F32, "out"), var("i")
    ahead = (Prefetch(x, i * (1 << 30)), Prefetch(y, i * 16 - (1 << 40), True))
    body = (For(i, var("begin"), var("end"), (*ahead, Store(y, i, load(x, i) + load(x, i))), index(1)),)
    return Kernel("twice", (x, y), (), index(7), index(1), body), x, y


def test_values_do_not_change() -> None:
    k, x, y = kernel()
    assert_same(k, {x: np.arange(7, dtype=np.float32), y: np.zeros(7, np.float32)}, {}, 0, 7)


def test_text() -> None:
    k, _, _ = kernel()
    text = print_kernel(k)
    assert "prefetch x[(i * 1073741824)]\n" in text and "] to write\n" in text
    emitted = emit_kernel(k, host_target())
    assert emitted.count("call void @llvm.prefetch.p0(ptr") == 2 and "i32 1, i32 3, i32 1)" in emitted


def test_c_does_without() -> None:
    k, _, _ = kernel()
    (loop,) = without_columns(k.body)
    assert isinstance(loop, For) and [type(s) for s in loop.body] == [Store]
    assert "prefetch" not in emit_kernels([k])
