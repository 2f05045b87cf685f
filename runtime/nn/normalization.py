"""Normalisation: batch, layer, group and root-mean-square, as functions and layers.

float16 and bfloat16 are computed in float32 and rounded once at the end. Variances are means of squared
deviations from the mean, in two passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphc.ir.types import BF16, F16, F32, F64
from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn import init
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter, assign
from graphc.runtime.nn.wide import narrowed, widened
from graphc.runtime.tensor import Tensor, no_grad

# The spacing of each floating-point dtype at 1.
_SPACING = {F16: 2.0**-10, BF16: 2.0**-7, F32: 2.0**-23, F64: 2.0**-52}


@composite
def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes, whose sizes are `normalized_shape`.

    Ba, Kiros & Hinton 2016, arXiv:1607.06450. weight and bias have the shape `normalized_shape`.
    """
    axes = _last_axes("layer_norm", x, normalized_shape)
    z = _standardised(widened(x), axes, eps)
    return narrowed(_affine(z, weight, bias), x)


@composite
def rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes (Zhang & Sennrich 2019, arXiv:1910.07467).

    eps: the spacing of the dtype at 1 unless given.
    """
    axes = _last_axes("rms_norm", x, normalized_shape)
    z = widened(x)
    if eps is None:
        eps = _SPACING[x.dtype]
    z = z / xp.sqrt(xp.mean(z * z, axis=axes, keepdims=True) + eps)
    return narrowed(_affine(z, weight, None), x)


@composite
def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer norm over each of `num_groups` groups of channels of x[N, C, ...] (Wu & He 2018, arXiv:1803.08494).

    weight and bias are [C].
    """
    shape = tuple(x.shape)
    if len(shape) < 2 or shape[1] % num_groups:
        raise ValueError(f"group_norm: the {shape[1:2]} channels of shape {shape} cannot be cut into {num_groups} groups")
    grouped = xp.reshape(widened(x), (shape[0], num_groups, math.prod(shape[1:]) // num_groups))
    z = xp.reshape(_standardised(grouped, (2,), eps), shape)
    return narrowed(_affine(z, _channel(weight, x), _channel(bias, x)), x)


@composite
def batch_norm_training(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the statistics of x[N, C, ...] itself: (y, mean[C], unbiased variance[C])."""
    axes = (0, *range(2, x.ndim))
    count = math.prod(x.shape[a] for a in axes)
    z = widened(x)
    # Nothing depends on where deviations are measured from, so no gradient flows through it, and that of x needs no sum that waits
    # for another. What their mean is by rounding is taken off again: the corrected two-pass algorithm (Chan, Golub & LeVeque 1983).
    origin = xp.stop_gradient(_channel(xp.mean(z, axis=axes), x))
    centred = z - origin
    rest = _channel(xp.mean(centred, axis=axes), x)
    var = _channel(xp.mean(centred * centred, axis=axes), x) - rest * rest
    var = xp.where(var < 0, 0.0, var)  # where all of a channel is one large number
    scale = 1 / xp.sqrt(var + eps)
    if weight is not None:
        scale = scale * _channel(weight, x)
    y = (centred - rest) * scale
    if bias is not None:
        y = y + _channel(bias, x)
    mean = origin + rest
    # Running statistics are measurements: no gradient flows through them.
    mean, var = xp.stop_gradient(mean), xp.stop_gradient(var)
    channels = (x.shape[1],)
    unbiased = var * (count / (count - 1)) if count != 1 else var
    return narrowed(y, x), xp.reshape(mean, channels), xp.reshape(unbiased, channels)


@composite
def batch_norm_inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Batch norm of x[N, C, ...] by given mean[C] and var[C]."""
    z = (widened(x) - _channel(mean, x)) / xp.sqrt(_channel(var, x) + eps)
    return narrowed(_affine(z, _channel(weight, x), _channel(bias, x)), x)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean[C]) / sqrt(var[C] + eps) * weight[C] + bias[C] (Ioffe & Szegedy 2015, arXiv:1502.03167).

    training: use the statistics of the batch, and move `running_mean` and `running_var` (where given) towards
    them by `momentum`, the variance unbiased. Otherwise use the running statistics.
    """
    if x.ndim < 2:
        raise ValueError(f"batch_norm needs x of shape [N, C, ...], not {tuple(x.shape)}")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm(training=False) needs running_mean and running_var")
        return batch_norm_inference(x, running_mean, running_var, weight, bias, eps)
    count = math.prod(n for axis, n in enumerate(x.shape) if axis != 1)
    if count == 1:
        raise ValueError(
            f"batch_norm in training needs more than one value for each channel, and x has the shape {tuple(x.shape)}"
        )
    y, mean, var = batch_norm_training(x, weight, bias, eps)
    with no_grad():
        for running, measured in ((running_mean, mean), (running_var, var)):
            if running is not None:
                assign(running, _moved(running, measured, momentum))
    return y


@composite
def _moved(running: Tensor, measured: Tensor, momentum: float | Tensor) -> Tensor:
    return running * (1 - momentum) + xp.astype(measured, running.dtype) * momentum


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + eps)


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        z = z * weight
    return z if bias is None else z + bias


def _channel(parameter: Tensor | None, x: Tensor) -> Any:
    """parameter[C] as [C, 1, ...], which broadcasts against `x`: along the batch too where that is 1."""
    return None if parameter is None else xp.reshape(parameter, (x.shape[1], *(1,) * (x.ndim - 2)))


def _last_axes(name: str, x: Tensor, normalized_shape: Any) -> tuple[int, ...]:
    sizes = _sizes(normalized_shape)
    if len(sizes) > x.ndim or tuple(x.shape[x.ndim - len(sizes) :]) != sizes or not sizes:
        raise ValueError(f"{name}: the last axes of shape {tuple(x.shape)} are not normalized_shape {sizes}")
    return tuple(range(x.ndim - len(sizes), x.ndim))


def _sizes(normalized_shape: Any) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


class LayerNorm(Module):
    """Applies `layer_norm` with weight (ones) and bias (zeros) of `normalized_shape`.

    >>> import graphc as gc
    >>> gc.nn.LayerNorm(8)(gc.ones((2, 8))).shape
    (2, 8)
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = _sizes(normalized_shape), eps, elementwise_affine
        shape = self.normalized_shape
        self.register_parameter("weight", Parameter(init.empty(shape)) if elementwise_affine else None)
        self.register_parameter("bias", Parameter(init.empty(shape)) if elementwise_affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to ones and bias to zeros."""
        _reset_affine(self)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """Applies `rms_norm` with a weight (ones) of `normalized_shape`."""

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = _sizes(normalized_shape), eps, elementwise_affine
        weight = Parameter(init.empty(self.normalized_shape)) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to ones."""
        _reset_affine(self)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Applies `group_norm` with weight[num_channels] (ones) and bias[num_channels] (zeros)."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        if num_groups <= 0 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_channels {num_channels} must be a multiple of num_groups {num_groups}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.register_parameter("weight", Parameter(init.empty((num_channels,))) if affine else None)
        self.register_parameter("bias", Parameter(init.empty((num_channels,))) if affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to ones and bias to zeros."""
        _reset_affine(self)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _BatchNorm(Module):
    ranks: tuple[int, ...]
    axes: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.register_parameter("weight", Parameter(init.empty((num_features,))) if affine else None)
        self.register_parameter("bias", Parameter(init.empty((num_features,))) if affine else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", xp.zeros((num_features,)) if tracked else None)
        self.register_buffer("running_var", xp.ones((num_features,)) if tracked else None)
        self.register_buffer("num_batches_tracked", xp.zeros((), dtype="int64") if tracked else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the running statistics."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            init.zeros_(self.num_batches_tracked)

    def reset_parameters(self) -> None:
        """Set weight to ones and bias to zeros."""
        _reset_affine(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ranks or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}({self.num_features}) needs x of shape {self.axes} with C = {self.num_features}, "
                f"not {tuple(x.shape)}"
            )
        momentum: Any = self.momentum
        if self.training and self.track_running_stats:
            with no_grad():
                assign(self.num_batches_tracked, self.num_batches_tracked + 1)
                if momentum is None:  # the cumulative average of all batches
                    momentum = 1 / xp.astype(self.num_batches_tracked, self.running_mean.dtype)
        measure = self.training or not self.track_running_stats
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, measure, momentum, self.eps
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """`batch_norm` of x[N, C] or x[N, C, L], with running statistics as buffers.

    momentum: how far the running statistics move towards those of the batch; `None` averages over all batches.
    track_running_stats=False uses the statistics of the batch in evaluation too.
    """

    ranks, axes = (2, 3), "[N, C] or [N, C, L]"


class BatchNorm2d(_BatchNorm):
    """`batch_norm` of x[N, C, H, W], as `BatchNorm1d`.

    >>> import graphc as gc
    >>> gc.nn.BatchNorm2d(3)(gc.ones((2, 3, 4, 4))).shape
    (2, 3, 4, 4)
    """

    ranks, axes = (4,), "[N, C, H, W]"


class BatchNorm3d(_BatchNorm):
    """`batch_norm` of x[N, C, D, H, W], as `BatchNorm1d`."""

    ranks, axes = (5,), "[N, C, D, H, W]"


def _reset_affine(module: Any) -> None:
    if module.weight is not None:
        init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)
