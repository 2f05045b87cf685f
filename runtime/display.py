"""How a tensor is shown."""

from __future__ import annotations

import numpy as np
from graphc.ir.types import BOOL, F32, I64
from graphc.runtime.core import Parameter, Tensor, alias
from graphc.runtime.device import CPU
from graphc.runtime.grad_mode import local
from graphc.runtime.interop import item, looked_at


def show(x: Tensor) -> str:
    """The values, then what cannot be seen from them: `tensor([1., 2.], requires_grad=True)`."""
    name = "Parameter" if isinstance(x, Parameter) else "tensor"
    notes = []
    spec = x._spec
    tracer = local.tracer
    if spec.weak and tracer is not None and tracer.execute and (x._traced is None or x._traced[0] is not None):
        # A Python number that is being recorded.
        return repr(item(x))
    if x.is_abstract:
        return f"{name}({spec}, abstract)"
    if spec.dtype not in (F32, I64, BOOL) or spec.size == 0:
        notes.append(f"dtype=graphc.{spec.dtype.name}")
    if spec.device is not CPU:
        notes.append(f"device={str(spec.device)!r}")
    if spec.size == 0 and len(spec.shape) != 1:
        notes.append(f"shape={spec.shape}")
    if x._meta is not None and x._meta.node is not None:
        notes.append(f"grad_fn=<{x._meta.node.name}>")
    elif x.requires_grad:
        notes.append("requires_grad=True")
    array = looked_at(alias(x))
    if spec.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    text = np.array2string(array, separator=", ", prefix=f"{name}(", precision=4, threshold=1000, floatmode="maxprec")
    return f"{name}({', '.join([text, *notes])})"


def show_formatted(x: Tensor, spec: str) -> str:
    """`format(x, spec)`: a rank-0 tensor is formatted as its number."""
    return format(item(x), spec) if not x.shape else format(show(x), spec)
