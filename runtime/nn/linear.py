"""Linear maps, identity and flattening."""

from __future__ import annotations

import math

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn import init
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter
from graphc.runtime.tensor import Tensor


@composite
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: x[..., in], weight[out, in], bias[out] -> [..., out]."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: x of shape {tuple(x.shape)} has {x.shape[-1]} features, and weight of shape "
            f"{tuple(weight.shape)} (out, in) takes {weight.shape[-1]}"
        )
    y = xp.matmul(x, xp.permute_dims(weight, (1, 0)))
    return y if bias is None else y + bias


class Linear(Module):
    """y = x @ weight.T + bias on the last axis.

    weight[out_features, in_features] and bias[out_features] start uniform in +-1/sqrt(in_features), as
    PyTorch's do (Kaiming uniform with a = sqrt(5)).

    >>> import graphc as gc
    >>> gc.nn.Linear(20, 30)(gc.ones((128, 20))).shape
    (128, 30)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.empty((out_features, in_features)))
        self.register_parameter("bias", Parameter(init.empty((out_features,))) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        init.default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Identity(Module):
    """Returns its input; takes and ignores any arguments."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """Joins the axes from `start_dim` to `end_dim` into one; by default all but the batch.

    >>> import graphc as gc
    >>> gc.nn.Flatten()(gc.ones((2, 3, 4))).shape
    (2, 12)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.start_dim % x.ndim, self.end_dim % x.ndim
        if first > last:
            raise ValueError(
                f"Flatten(start_dim={self.start_dim}, end_dim={self.end_dim}): start comes after end for shape "
                f"{tuple(x.shape)}"
            )
        shape = tuple(x.shape)
        return xp.reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
