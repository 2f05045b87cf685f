"""Scaling by powers of two in one instruction: where it is written, and that it gives the bits of two multiplications."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.expr import var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.scaling import scaling
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.lower.lower import lower, variant
from graphc.codegen.math.exponential import exp, round_to_integer, scaled
from graphc.codegen.math.floating import format_of
from graphc.ir.function import Builder, Function
from graphc.ir.types import F32, F64, DType, TensorType

from tests.codegen.compiled import assert_compiled

WIDE = Target(**{**vars(host_target()), "vector_bits": 512})
NARROW = Target(**{**vars(host_target()), "vector_bits": 256})


def one(name: str, dtype: DType, size: int = 1024) -> Function:
    b = Builder(name)
    return b.build([b.emit(name, b.param(TensorType(dtype, (size,))))])


def text(f: Function, target: Target) -> str:
    canonical = canonicalise(f)
    sizes: dict[str, Any] = dict(canonical.extents)
    kernel = lower(canonical.function, target, sizes, variant(canonical.function, target, sizes)).kernels[0]
    return emit_kernel(kernel, target)


@pytest.mark.parametrize("name", ["exp", "exp2"])
@pytest.mark.parametrize(("dtype", "suffix"), [(F32, "ps"), (F64, "pd")], ids=str)
def test_one_instruction_where_the_target_has_it(name: str, dtype: DType, suffix: str) -> None:
    assert f"scalef.{suffix}.512" in text(one(name, dtype), WIDE)
    assert "scalef" not in text(one(name, dtype), NARROW)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_what_is_found(dtype: DType) -> None:
    """Exponentials of a clamped argument, whose exponent two factors reach; nothing else."""
    x = var("x", dtype)
    assert scaling(exp(x)) is not None
    n, pattern = round_to_integer(x, 1.0)
    assert scaling(scaled(x, pattern, format_of(x))) is None and n.dtype is dtype
    assert scaling(x * x * x) is None and scaling(x + x) is None


@pytest.mark.parametrize("name", ["exp", "exp2"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", [1, 15, 16, 40, 4099])
def test_bits(name: str, dtype: DType, size: int) -> None:
    """Denormal results round once; what lies beyond is 0 or infinite."""
    reach = {("exp", F32): 110.0, ("exp", F64): 760.0, ("exp2", F32): 160.0, ("exp2", F64): 1090.0}[name, dtype]
    x = np.linspace(-reach, reach, size).astype(dtype.numpy)
    special = [-np.inf, np.inf, np.nan, -0.0, 0.0, 5e-324, -87.4, -103.5, -745.1, 88.8, 709.8, -149.5, -1074.5]
    x[: min(size, len(special))] = np.array(special[: min(size, len(special))]).astype(dtype.numpy)
    assert_compiled(one(name, dtype, size), [x])
