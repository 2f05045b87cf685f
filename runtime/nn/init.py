"""Initialisation: every function gives a tensor new values in place, from the global generator, and returns it.

Nothing here is recorded for gradients.
"""

from __future__ import annotations

import math

import numpy as np
from graphc.ir.types import F32, F64, DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import ops as xp
from graphc.runtime import random
from graphc.runtime.composite import composite
from graphc.runtime.nn.parameter import assign
from graphc.runtime.tensor import Tensor, asarray, no_grad

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def __dir__() -> list[str]:
    return __all__


# He et al. 2015, arXiv:1502.01852, section 2.2, and PyTorch's values for tanh and selu.
_GAINS = {
    "linear": 1.0,
    "identity": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose2d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before this nonlinearity are larger; `param` is the slope of "leaky_relu"."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope * slope))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ValueError(f"calculate_gain knows {known}, not {nonlinearity!r}")
    return _GAINS[nonlinearity]


def empty(shape: tuple[int, ...], dtype: DType | str = "float32") -> Tensor:
    """A tensor for a parameter that is about to be initialised."""
    return xp.zeros(shape, dtype=as_dtype(dtype))


def _fill(tensor: Tensor, value: Tensor) -> Tensor:
    with no_grad():
        return assign(tensor, value)


def _drawn_in(tensor: Tensor) -> DType:
    """float16 and bfloat16 are drawn in float32 and rounded once."""
    return F64 if tensor.dtype is F64 else F32


def _uniform(tensor: Tensor) -> Tensor:
    return random.rand(tuple(tensor.shape), dtype=_drawn_in(tensor), device=tensor.device)


@composite
def _affine(x: Tensor, scale: float, shift: float) -> Tensor:
    return x * scale + shift


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Every element `value`."""
    return _fill(tensor, xp.full(tuple(tensor.shape), value, dtype=tensor.dtype, device=tensor.device))


def zeros_(tensor: Tensor) -> Tensor:
    """Every element 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element 1."""
    return constant_(tensor, 1.0)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform in [a, b)."""
    return _fill(tensor, _affine(_uniform(tensor), b - a, a))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal with the given mean and standard deviation."""
    return _fill(tensor, _affine(random.randn(tuple(tensor.shape), dtype=_drawn_in(tensor)), std, mean))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal, cut to [a, b]: the inverse distribution function of a uniform draw."""
    if not a < b:
        raise ValueError(f"trunc_normal_ needs a < b, not {a} and {b}")
    low, high = (math.erf((x - mean) / (std * math.sqrt(2.0))) for x in (a, b))
    uniform = _affine(_uniform(tensor), high - low, low)
    return _fill(tensor, xp.clip(_erfinv(uniform) * (std * math.sqrt(2.0)) + mean, a, b))


@composite
def _erfinv(x: Tensor) -> Tensor:
    """The inverse of erf to about 5e-7, relatively (Giles 2010, "Approximating the erfinv function", table 5)."""
    x = xp.clip(x, -0.99999994, 0.99999994)
    w = -xp.log((1 - x) * (1 + x))
    near = _polynomial(w - 2.5, _ERFINV_NEAR)
    far = _polynomial(xp.sqrt(xp.maximum(w, 5)) - 3, _ERFINV_FAR)
    return xp.where(w < 5, near, far) * x


_ERFINV_NEAR = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_FAR = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = x * 0 + coefficients[0]
    for c in coefficients[1:]:
        total = total * x + c
    return total


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan in, fan out) of a weight[out, in, kernel...]. Raises `ValueError` below two axes."""
    if tensor.ndim < 2:
        raise ValueError(f"fan in and fan out need a tensor of at least two axes, not shape {tuple(tensor.shape)}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform in +-gain sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010, AISTATS)."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan in + fan out)) (Glorot & Bengio 2010, AISTATS)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', not {mode!r}")
    fan = fans(tensor)[0 if mode == "fan_in" else 1]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Uniform in +-gain sqrt(3 / fan) (He et al. 2015, arXiv:1502.01852); `a` is the slope of leaky ReLU."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan) (He et al. 2015, arXiv:1502.01852)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """gain times a random orthogonal matrix, axes after the first flattened (Saxe et al. 2014, arXiv:1312.6120)."""
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_ needs a tensor of at least two axes, not shape {tuple(tensor.shape)}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    draw = random.randn((max(rows, columns), min(rows, columns)), device=tensor.device).cpu().numpy().astype(np.float64)
    q, r = np.linalg.qr(draw)
    # The signs of the diagonal make the distribution uniform (Mezzadri 2007, arXiv:math-ph/0609050).
    q = q * np.sign(np.diag(r))
    q = q if rows >= columns else q.T
    return _fill(tensor, asarray((gain * q).reshape(tuple(tensor.shape))))


def default_(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's start of linear and convolution layers: weight and bias uniform in +-1/sqrt(fan in)."""
    fan = fans(weight)[0]
    bound = 1.0 / math.sqrt(fan) if fan else 0.0
    uniform_(weight, -bound, bound)
    if bias is not None:
        uniform_(bias, -bound, bound)
