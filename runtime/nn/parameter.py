"""`Parameter`, and `assign`: how the library gives a tensor another value."""

from __future__ import annotations

from typing import Any

from graphc.ir.types import DType
from graphc.runtime.core import Parameter, Tensor, rebind
from graphc.runtime.ops_elementwise import astype

__all__ = ["Parameter", "assign"]


def assign(tensor: Tensor, value: Tensor, *, device: Any = None, dtype: DType | None = None) -> Tensor:
    """Give `tensor` the value of `value`, detached, in its own dtype and on its own device (or those given); returns `tensor`.

    The tensor stays the same object. Call it inside `no_grad` for parameters.
    """
    if value._spec is tensor._spec and value._meta is None and device is None and dtype is None:
        return rebind(tensor, value, "assign")
    kind = tensor.dtype if dtype is None else dtype
    source = value if value.dtype is kind else astype(value, kind)
    source = source.to(tensor.device if device is None else device)
    return rebind(tensor, source.detach(), "assign")
