"""float16 and bfloat16 inputs of normalisations and losses: computed in float32, rounded once."""

from __future__ import annotations

from graphc.ir.types import BF16, F16, F32
from graphc.runtime import ops as xp
from graphc.runtime.tensor import Tensor


def widened(x: Tensor) -> Tensor:
    """`x`, in float32 if its dtype is narrower."""
    return xp.astype(x, F32) if x.dtype in (F16, BF16) else x


def narrowed(result: Tensor, like: Tensor) -> Tensor:
    """`result` in the dtype of `like`."""
    return result if result.dtype == like.dtype else xp.astype(result, like.dtype)
