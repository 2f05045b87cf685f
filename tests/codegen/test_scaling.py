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
from graphc.codegen.math.floating import clamp, format_of
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
    _, pattern = round_to_integer(clamp(x, None, 50.0), 1.0)
    assert scaling(scaled(x, pattern, format_of(x))) is None
    _, pattern = round_to_integer(clamp(x, -50.0, None), 1.0)
    assert scaling(scaled(x, pattern, format_of(x))) is not None
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


def softmax(shape: tuple[int, ...], turned: bool = False) -> Function:
    """exp(x - max(x)) along rows, and its sum; turned: of elements at other positions than those of the maximum."""
    b = Builder("softmax")
    x = b.param(TensorType(F32, shape))
    top = b.broadcast(b.max(x, axes=(1,)), shape=shape, axes=(0,))
    e = b.exp(b.sub(b.flip(x, axes=(1,)) if turned else x, top))
    return b.build([e, b.sum(e, axes=(1,)), top])


def test_an_element_less_the_greatest_needs_no_bound_above() -> None:
    """The test of x > 89 is left out, and scaling stays one instruction; of other elements nothing is known."""
    tall = text(softmax((40, 100)), WIDE)
    bound = "0x4056400000000000"
    assert bound not in tall and "scalef.ps.512" in tall
    turned = text(softmax((40, 100), turned=True), WIDE)
    assert bound in turned and "scalef.ps.512" in turned


@pytest.mark.parametrize("turned", [False, True])
def test_bits_of_rows(turned: bool) -> None:
    """Rows with infinities of either sign, nothing but them, NaN, and differences that overflow or vanish."""
    x = np.random.default_rng(1).standard_normal((9, 101)).astype(np.float32) * 40
    x[1, 3], x[2, 5], x[3, 7], x[4] = np.inf, -np.inf, np.nan, -np.inf
    x[5], x[6, ::2], x[7, :2] = np.inf, -np.inf, (3e38, -3e38)
    assert_compiled(softmax((9, 101), turned), [x])
