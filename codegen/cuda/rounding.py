"""The operands of tensor-core products, rounded from what they are."""

from __future__ import annotations

from graphc.codegen.expr import Expr, bitcast, cast, const, not_equal, select
from graphc.ir.types import F32, U32, DType


def rounded(x: Expr, dtype: DType) -> Expr:
    """An operand's element as the tensor cores take it: 16-bit floats, or float32 rounded to tf32 (ties to even)."""
    if dtype is not F32:
        return cast(x, dtype)
    x = cast(x, F32)
    bits = bitcast(x, U32)
    nearest = (bits + ((bits >> const(U32, 13)) & const(U32, 1)) + const(U32, 0xFFF)) & const(U32, 0xFFFFE000)
    return select(not_equal(x, x), x, bitcast(nearest, F32))
