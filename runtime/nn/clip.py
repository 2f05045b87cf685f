"""Clipping of gradients, in place, between backward and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn.parameter import assign
from graphc.runtime.nn.wide import widened
from graphc.runtime.tensor import Tensor, asarray, no_grad


@composite
def _norm(grad: Tensor, norm_type: float) -> Tensor:
    size = xp.abs(widened(grad))
    if norm_type == math.inf:
        return xp.max(size)
    if norm_type == 2.0:
        return xp.sqrt(xp.sum(size * size))
    return xp.sum(size**norm_type) ** (1 / norm_type)


@composite
def _scaled(grad: Tensor, total: Tensor, max_norm: Tensor) -> Tensor:
    factor = max_norm / (xp.astype(total, max_norm.dtype) + 1e-6)
    return grad * xp.astype(xp.where(factor > 1, 1, factor), grad.dtype)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by max_norm / norm where their common norm is above `max_norm` (Pascanu et al. 2013).

    norm_type: p of the norm over the elements of all gradients together; may be infinity. Returns the norm before
    clipping. error_if_nonfinite waits for the norm and raises `ValueError` if it is NaN or infinite.
    """
    grads = _gradients(parameters)
    if max_norm < 0:
        raise ValueError(f"clip_grad_norm_ needs max_norm >= 0, not {max_norm}")
    if not grads:
        return asarray(0.0)
    with no_grad():
        norms = [_norm(grad, float(norm_type)) for grad in grads]
        total = norms[0] if len(norms) == 1 else _norm(xp.stack([n.to(norms[0].device) for n in norms]), float(norm_type))
        if error_if_nonfinite and not math.isfinite(total.item()):
            raise ValueError(f"the norm of the gradients is {total.item()}; pass error_if_nonfinite=False to scale anyway")
        limit = asarray(float(max_norm), dtype="float64", device="cpu")
        for grad in grads:
            assign(grad, _scaled(grad, total.to(grad.device), limit))
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Hold every element of every gradient between -clip_value and clip_value; NaN stays NaN."""
    if clip_value < 0:
        raise ValueError(f"clip_grad_value_ needs clip_value >= 0, not {clip_value}")
    with no_grad():
        for grad in _gradients(parameters):
            assign(grad, xp.where(grad > clip_value, clip_value, xp.where(grad < -clip_value, -clip_value, grad)))


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    items = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in items if p.grad is not None]
