"""Activation functions and the layers that apply them.

Every function is one composite, so one fused kernel. Softmax, log-softmax and logsumexp compute
float16 and bfloat16 in float32 and round once at the end.
"""

from __future__ import annotations

import math
from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.wide import narrowed, widened
from graphc.runtime.tensor import Tensor


@composite
def relu(x: Tensor) -> Tensor:
    """max(x, 0), with gradient 0 at 0; NaN stays NaN."""
    return xp.where(x <= 0, 0, x)


@composite
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return xp.where(x <= 0, 0, xp.where(x >= 6, 6, x))


@composite
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, `negative_slope` * x elsewhere."""
    return xp.where(x > 0, x, x * negative_slope)


@composite
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016, arXiv:1511.07289)."""
    # The inner select keeps exp, and so its gradient, finite where the outer one does not take it.
    return xp.where(x > 0, x, alpha * xp.expm1(xp.where(x > 0, 0, x)))


@composite
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), from exp(-|x|), which neither overflows nor loses small results."""
    positive = x >= 0
    e = xp.exp(xp.where(positive, -x, x))
    return xp.where(positive, 1, e) / (1 + e)


@composite
def logsigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|))."""
    return xp.where(x < 0, x, 0) - xp.log1p(xp.exp(_minus_abs(x)))


@composite
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""
    return x * sigmoid(x)


@composite
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x), Phi the normal distribution function (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    approximate: "none" uses erf; "tanh" uses 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    if approximate == "none":
        return 0.5 * x * (1 + xp.erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")


@composite
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return xp.tanh(x)


@composite
def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""
    z = x * beta
    soft = (xp.where(z >= 0, z, 0) + xp.log1p(xp.exp(_minus_abs(z)))) / beta
    return xp.where(z > threshold, x, soft)


@composite
def softmax(x: Tensor, dim: int = -1, *, axis: int | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim` (or `axis`), computed as exp(x - max(x)) / sum."""
    dim = dim if axis is None else axis
    z = widened(x)
    e = xp.exp(z - xp.stop_gradient(xp.max(z, axis=dim, keepdims=True)))
    return narrowed(e / xp.sum(e, axis=dim, keepdims=True), x)


@composite
def log_softmax(x: Tensor, dim: int = -1, *, axis: int | None = None) -> Tensor:
    """x - log(sum(exp(x))) along `dim` (or `axis`), computed after subtracting the maximum."""
    dim = dim if axis is None else axis
    z = widened(x)
    z = z - xp.stop_gradient(xp.max(z, axis=dim, keepdims=True))
    return narrowed(z - xp.log(xp.sum(xp.exp(z), axis=dim, keepdims=True)), x)


@composite
def logsumexp(x: Tensor, dim: int = -1, keepdim: bool = False, *, axis: int | None = None) -> Tensor:
    """log(sum(exp(x))) along `dim` (or `axis`), computed after subtracting the maximum (where that is finite)."""
    dim = dim if axis is None else axis
    z = widened(x)
    m = xp.stop_gradient(xp.max(z, axis=dim, keepdims=True))
    m = xp.where(xp.isfinite(m), m, 0)
    total = xp.log(xp.sum(xp.exp(z - m), axis=dim, keepdims=True)) + m
    return narrowed(total if keepdim else xp.squeeze(total, axis=dim), x)


def _minus_abs(x: Tensor) -> Tensor:
    # Selecting, where abs has the gradient 0 at 0, gives the one-sided derivative there.
    return xp.where(x >= 0, -x, x)


class _Activation(Module):
    """A layer without parameters that applies one function with fixed options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options
        for name, value in options.items():
            setattr(self, name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())


class ReLU(_Activation):
    """Applies `relu`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return relu(x)


class ReLU6(_Activation):
    """Applies `relu6`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return relu6(x)


class LeakyReLU(_Activation):
    """Applies `leaky_relu`."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__(negative_slope=negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x, self.negative_slope)


class ELU(_Activation):
    """Applies `elu`."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        return elu(x, self.alpha)


class SiLU(_Activation):
    """Applies `silu`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


class GELU(_Activation):
    """Applies `gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__(approximate=approximate)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, self.approximate)


class Sigmoid(_Activation):
    """Applies `sigmoid`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return sigmoid(x)


class LogSigmoid(_Activation):
    """Applies `logsigmoid`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return logsigmoid(x)


class Tanh(_Activation):
    """Applies `tanh`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return tanh(x)


class Softplus(_Activation):
    """Applies `softplus`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__(beta=beta, threshold=threshold)

    def forward(self, x: Tensor) -> Tensor:
        return softplus(x, self.beta, self.threshold)


class Softmax(_Activation):
    """Applies `softmax` along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x, self.dim)


class LogSoftmax(_Activation):
    """Applies `log_softmax` along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__(dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        return log_softmax(x, self.dim)
