"""Convolutions (cross-correlations, as everywhere in deep learning) of one to three axes, and their transpose."""

from __future__ import annotations

from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn import init
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter
from graphc.runtime.nn.spatial import check_windows, padding_pairs, per_axis, with_batch
from graphc.runtime.tensor import Tensor


@composite
def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x[N, C, L], weight[O, C/groups, K], bias[O] -> [N, O, L']; padding: integers, "valid" or "same"."""
    return _conv("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


@composite
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x[N, C, H, W], weight[O, C/groups, Kh, Kw], bias[O] -> [N, O, H', W'], as `conv1d`."""
    return _conv("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


@composite
def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """x[N, C, D, H, W], weight[O, C/groups, Kd, Kh, Kw], bias[O] -> [N, O, D', H', W'], as `conv1d`."""
    return _conv("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)


def _conv(
    name: str,
    rank: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    x, single = with_batch(x, rank, name)
    _check_weight(name, rank, weight)
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"{name}: x of shape {tuple(x.shape)} has {x.shape[1]} channels, and weight of shape "
            f"{tuple(weight.shape)} (out, in/groups, kernel...) with groups={groups} takes {weight.shape[1] * groups}"
        )
    strides, dilations = per_axis(stride, rank, f"{name}: stride"), per_axis(dilation, rank, f"{name}: dilation")
    pairs = padding_pairs(padding, weight.shape[2:], strides, dilations, name)
    check_windows(name, x, weight.shape[2:], dilations, pairs)
    y = xp.conv(
        x,
        weight,
        strides=strides,
        padding=pairs,
        rhs_dilation=dilations,
        groups=groups,
    )
    return _finished(y, bias, rank, single)


def _check_weight(name: str, rank: int, weight: Tensor) -> None:
    if weight.ndim != rank + 2:
        raise ValueError(f"{name} needs a weight of rank {rank + 2}, not shape {tuple(weight.shape)}")


def _finished(y: Tensor, bias: Tensor | None, rank: int, single: bool) -> Tensor:
    if bias is not None:
        y = y + xp.reshape(bias, (bias.shape[0], *(1,) * rank))
    return xp.squeeze(y, axis=0) if single else y


@composite
def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The gradient of `conv2d` with respect to its input, as a map: x[N, C, H, W], weight[C, O/groups, Kh, Kw].

    H' = (H - 1) * stride - 2 * padding + dilation * (Kh - 1) + output_padding + 1. Computed as a convolution of x,
    dilated by the stride, with the flipped kernel (Dumoulin & Visin 2016, arXiv:1603.07285, section 4).
    """
    name = "conv_transpose2d"
    x, single = with_batch(x, 2, name)
    _check_weight(name, 2, weight)
    inputs, per_group = weight.shape[:2]
    if x.shape[1] != inputs or inputs % groups:
        raise ValueError(
            f"{name}: x of shape {tuple(x.shape)} needs as many channels as weight of shape {tuple(weight.shape)} "
            f"(in, out/groups, kernel...) has inputs, a multiple of groups={groups}"
        )
    strides, pads, extra, dilations = (
        per_axis(v, 2, f"{name}: {what}")
        for v, what in ((stride, "stride"), (padding, "padding"), (output_padding, "output_padding"), (dilation, "dilation"))
    )
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(f"{name}: output_padding {extra} must be less than stride {strides} or dilation {dilations}")
    kernel = weight.shape[2:]
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    w = xp.reshape(weight, (groups, inputs // groups, per_group, *kernel))
    w = xp.reshape(xp.permute_dims(w, (0, 2, 1, 3, 4)), (groups * per_group, inputs // groups, *kernel))
    y = xp.conv(
        x,
        xp.flip(w, axis=(2, 3)),
        strides=(1, 1),
        padding=tuple((r - p, r - p + e) for r, p, e in zip(reach, pads, extra, strict=True)),
        lhs_dilation=strides,
        rhs_dilation=dilations,
        groups=groups,
    )
    return _finished(y, bias, 2, single)


class _Conv(Module):
    rank: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups <= 0 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: in_channels {in_channels} and out_channels {out_channels} must be multiples of groups {groups}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis(kernel_size, self.rank, f"{name}: kernel_size")
        self.stride = per_axis(stride, self.rank, f"{name}: stride")
        self.dilation = per_axis(dilation, self.rank, f"{name}: dilation")
        pairs = padding_pairs(padding, self.kernel_size, self.stride, self.dilation, name)
        self.padding = padding if isinstance(padding, str) else tuple(low for low, _ in pairs)
        self.weight = Parameter(init.empty(self._weight_shape()))
        self.register_parameter("bias", Parameter(init.empty((out_channels,))) if bias else None)
        self.reset_parameters()

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, uniform in +-1/sqrt(fan in), as PyTorch does."""
        init.default_(self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        plain = (0,) * self.rank
        if self.padding != plain:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self.rank:
            text += f", dilation={self.dilation}"
        if getattr(self, "output_padding", plain) != plain:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + (", bias=False" if self.bias is None else "")


class Conv1d(_Conv):
    """`conv1d` with weight[out, in/groups, K] and bias[out] as parameters."""

    rank = 1

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(_Conv):
    """`conv2d` with weight[out, in/groups, Kh, Kw] and bias[out] as parameters.

    >>> import graphc as gc
    >>> gc.nn.Conv2d(1, 16, 3, padding=1)(gc.ones((2, 1, 8, 8))).shape
    (2, 16, 8, 8)
    """

    rank = 2

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(_Conv):
    """`conv3d` with weight[out, in/groups, Kd, Kh, Kw] and bias[out] as parameters."""

    rank = 3

    def forward(self, x: Tensor) -> Tensor:
        return conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose2d(_Conv):
    """`conv_transpose2d` with weight[in, out/groups, Kh, Kw] and bias[out] as parameters."""

    rank = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.output_padding = per_axis(output_padding, 2, "ConvTranspose2d: output_padding")

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
