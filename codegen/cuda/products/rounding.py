"""The operands of tensor-core products: which types they have there, and how elements are rounded to them."""

from __future__ import annotations

from graphc.codegen.expr import Expr, bitcast, cast, const, not_equal, select
from graphc.ir.types import BF16, F16, F32, U32, DType


def rounded(x: Expr, dtype: DType) -> Expr:
    """An operand's element as the tensor cores take it: 16-bit floats, or float32 rounded to tf32 (ties to even)."""
    if dtype is not F32:
        return cast(x, dtype)
    x = cast(x, F32)
    bits = bitcast(x, U32)
    nearest = (bits + ((bits >> const(U32, 13)) & const(U32, 1)) + const(U32, 0xFFF)) & const(U32, 0xFFFFE000)
    return select(not_equal(x, x), x, bitcast(nearest, F32))


def operand_type(dtype: DType, precision: str) -> DType | None:
    """What the operands of a product become on tensor cores; None where it is done by fma.

    >>> operand_type(F32, "tf32"), operand_type(BF16, ""), operand_type(F32, "")
    (f32, bf16, None)
    """
    if dtype in (F16, BF16):
        return None if precision == "exact" else dtype
    if dtype is F32:
        return {"tf32": F32, "bf16": BF16}.get(precision)
    return None
