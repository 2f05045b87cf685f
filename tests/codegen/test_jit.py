"""From loop-language kernels to running machine code."""

from __future__ import annotations

import subprocess
import sys

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


def test_modules_go_with_their_contexts_in_whatever_order_they_are_finalised() -> None:
    """As Python's collector may after an interrupt; in a process of its own, which would crash."""
    program = """
from graphc.codegen.llvm import worker
from graphc.codegen.llvm.target import llvm_binding
text = "".join(f"define i64 @f{i}(i64 %x) {{ ret i64 %x }}\\n" for i in range(100))
for _ in range(20):
    module = worker.parse(llvm_binding(), text)
    context = module._context
    context.close()
    module.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
