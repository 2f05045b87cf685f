"""From loop-language kernels to running machine code."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.llvm import jit
from graphc.codegen.llvm.target import host_target, make_target

EMPTY = """
define void @nothing(ptr %args, i64 %begin, i64 %end, ptr %error) {
  store i64 42, ptr %args
  ret void
}
"""


def module(text: str) -> str:
    target = host_target()
    return f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n{text}'


def test_object_is_loaded_and_runs():
    import ctypes

    data = jit.compile_text(module(EMPTY))
    address = jit.load(data, "nothing")
    place = np.zeros(1, np.int64)
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(address)(place.ctypes.data, 0, 0, 0)
    assert place[0] == 42


def test_equal_symbols_in_two_objects_have_two_addresses():
    data = jit.compile_text(module(EMPTY))
    assert jit.load(data, "nothing") != jit.load(data, "nothing")


def test_invalid_text_is_refused():
    with pytest.raises(RuntimeError, match="LLVM refused generated code"):
        jit.compile_text("define void @f( {")


def test_old_cpu_is_refused_with_the_cure():
    with pytest.raises(RuntimeError, match="x86-64-v3"):
        make_target("x86-64-v2")
