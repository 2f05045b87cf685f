"""Pooling over windows of one or two spatial axes."""

from __future__ import annotations

import math
from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.spatial import check_windows, per_axis, with_batch
from graphc.runtime.tensor import Tensor


@composite
def max_pool1d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The largest value of each window: x[N, C, L] -> [N, C, L']; as `max_pool2d`."""
    return _max_pool("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode)


@composite
def max_pool2d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The largest value of each window: x[N, C, H, W] -> [N, C, H', W']; a NaN in the window wins.

    stride: the kernel size unless given. padding: at most half the kernel, with -inf. ceil_mode: keep the
    last window that starts inside the input or its left padding. The gradient goes to the first largest position.
    """
    return _max_pool("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode)


def _max_pool(
    name: str, rank: int, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Tensor:
    x, single = with_batch(x, rank, name)
    dilations = per_axis(dilation, rank, f"{name}: dilation")
    kernel, strides, pads = _window(name, rank, x, kernel_size, stride, padding, dilations, ceil_mode)
    check_windows(name, x, kernel, dilations, pads)
    y = xp.max_pool(x, window=kernel, strides=strides, padding=pads, dilation=dilations)
    return xp.squeeze(y, axis=0) if single else y


@composite
def avg_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window: x[N, C, L] -> [N, C, L']; as `avg_pool2d`."""
    return _avg_pool("avg_pool1d", 1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


@composite
def avg_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window: x[N, C, H, W] -> [N, C, H', W'].

    count_include_pad: whether zeros of the padding count; what `ceil_mode` adds beyond the padding never does.
    """
    return _avg_pool("avg_pool2d", 2, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _avg_pool(
    name: str, rank: int, x: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, include: bool
) -> Tensor:
    x, single = with_batch(x, rank, name)
    ones = (1,) * rank
    kernel, strides, pads = _window(name, rank, x, kernel_size, stride, padding, ones, ceil_mode)
    check_windows(name, x, kernel, ones, pads)
    total = xp.sum_pool(x, window=kernel, strides=strides, padding=pads, dilation=ones)
    plain = per_axis(padding, rank, f"{name}: padding")
    if all(low == high == 0 for low, high in pads) or (include and all(p == (q, q) for p, q in zip(pads, plain))):
        y = total / math.prod(kernel)
    else:
        # How many counted positions each window covers, as a pooled map of ones.
        sizes = tuple(n + (2 * p if include else 0) for n, p in zip(x.shape[2:], plain, strict=True))
        rest = tuple((low - p, high - p) if include else (low, high) for (low, high), p in zip(pads, plain))
        counted = xp.full((1, 1, *sizes), 1, dtype=x.dtype, device=x.device)
        y = total / xp.sum_pool(counted, window=kernel, strides=strides, padding=rest, dilation=ones)
    return xp.squeeze(y, axis=0) if single else y


def _window(
    name: str, rank: int, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: tuple[int, ...], ceil: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    kernel = per_axis(kernel_size, rank, f"{name}: kernel_size")
    strides = kernel if stride is None else per_axis(stride, rank, f"{name}: stride")
    plain = per_axis(padding, rank, f"{name}: padding")
    pairs = []
    for n, k, s, p, d in zip(x.shape[2:], kernel, strides, plain, dilation, strict=True):
        if not 0 <= 2 * p <= k:
            raise ValueError(f"{name}: padding {p} must be between 0 and half the kernel size {k}")
        high = p
        if ceil:
            reach = n + 2 * p - d * (k - 1) - 1
            windows = -(-reach // s) + 1
            # A window that would start in the right padding is left out.
            if (windows - 1) * s >= n + p:
                windows -= 1
            high = p + max(0, (windows - 1) * s - reach)
        pairs.append((p, high))
    return kernel, strides, tuple(pairs)


@composite
def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """Means over windows that divide H and W into `output_size` parts: x[N, C, H, W] -> [N, C, Ho, Wo].

    Part i of n over m positions is floor(i m / n) up to ceil((i + 1) m / n), as in PyTorch. A `None` keeps the size.
    """
    x, single = with_batch(x, 2, "adaptive_avg_pool2d")
    wanted = (output_size,) * 2 if output_size is None or isinstance(output_size, int) else tuple(output_size)
    for axis, parts in zip((2, 3), wanted, strict=True):
        size = x.shape[axis]
        if parts is None or parts == size:
            continue
        if parts == 1:
            x = xp.mean(x, axis=axis, keepdims=True)
            continue
        if isinstance(size, int) and size % parts == 0:
            # Parts that do not overlap: one reduction over the elements of each.
            split = (*x.shape[:axis], parts, size // parts, *x.shape[axis + 1 :])
            x = xp.mean(xp.reshape(x, split), axis=axis + 1)
            continue
        spans = [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
        means = [xp.mean(_span(x, axis, begin, end), axis=axis, keepdims=True) for begin, end in spans]
        x = xp.concat(means, axis=axis)
    return xp.squeeze(x, axis=0) if single else x


def _span(x: Tensor, axis: int, begin: int, end: int) -> Tensor:
    return x[(slice(None),) * axis + (slice(begin, end),)]


class _Pool(Module):
    rank: int

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.padding, self.ceil_mode = kernel_size, padding, ceil_mode
        self.stride = kernel_size if stride is None else stride

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _MaxPool(_Pool):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = dilation

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"


class MaxPool1d(_MaxPool):
    """Applies `max_pool1d`."""

    def forward(self, x: Tensor) -> Tensor:
        return max_pool1d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool2d(_MaxPool):
    """Applies `max_pool2d`.

    >>> import graphc as gc
    >>> gc.nn.MaxPool2d(2)(gc.ones((1, 3, 8, 8))).shape
    (1, 3, 4, 4)
    """

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad


class AvgPool1d(_AvgPool):
    """Applies `avg_pool1d`."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool1d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(_AvgPool):
    """Applies `avg_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AdaptiveAvgPool2d(Module):
    """Applies `adaptive_avg_pool2d`; `AdaptiveAvgPool2d(1)` is global average pooling."""

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"
