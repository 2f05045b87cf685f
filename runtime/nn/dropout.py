"""Dropout (Srivastava et al. 2014, JMLR 15): zero elements at random, scale the rest by 1 / (1 - p)."""

from __future__ import annotations

from graphc.runtime import ops as xp
from graphc.runtime import random
from graphc.runtime.composite import composite
from graphc.runtime.nn.module import Module
from graphc.runtime.tensor import Tensor


@composite
def _dropped(x: Tensor, uniform: Tensor, p: float) -> Tensor:
    return xp.where(uniform >= p, x * (1 / (1 - p)), 0)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """x with each element zeroed with probability `p` and the rest scaled by 1 / (1 - p); x itself unless training."""
    _check(p)
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    return _dropped(x, random.rand(tuple(x.shape), device=x.device), p)


def dropout2d(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """x [N, C, H, W] or [C, H, W] with each channel zeroed with probability `p`, the rest scaled by 1 / (1 - p)."""
    _check(p)
    if x.ndim not in (3, 4):
        raise ValueError(f"dropout2d: x is [N, C, H, W] or [C, H, W], not of shape {tuple(x.shape)}; use dropout")
    if not training or p == 0.0:
        return x
    if p == 1.0:
        return x * 0.0
    return _dropped(x, random.rand((*x.shape[:-2], 1, 1), device=x.device), p)


def _check(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be between 0 and 1, not {p}")


class Dropout(Module):
    """Applies `dropout` while training, from the global generator; the identity in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        _check(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """Applies `dropout2d` while training, which zeroes whole channels; the identity in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout2d(x, self.p, self.training)
