"""The sizes of windows over spatial axes, shared by convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def per_axis(value: Any, rank: int, what: str) -> tuple[int, ...]:
    """One integer for every spatial axis, from one integer or `rank` of them."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{what} must be an integer or {rank} of them, not {value!r}")
    return values


def padding_pairs(
    padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], what: str
) -> tuple[tuple[int, int], ...]:
    """(low, high) for every spatial axis, from integers, "valid" or "same" (stride 1, extra at the end)."""
    rank = len(kernel)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"{what}: padding='same' needs stride 1, not {tuple(stride)}")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise ValueError(f"{what}: padding must be integers, 'valid' or 'same', not {padding!r}")
    return tuple((p, p) for p in per_axis(padding, rank, f"{what}: padding"))


def check_windows(
    what: str, x: Any, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[tuple[int, int]]
) -> None:
    """Raise `ValueError` if no window fits into the padded spatial axes of `x`."""
    for axis, (n, k, d, (low, high)) in enumerate(zip(x.shape[2:], kernel, dilation, padding, strict=True), start=2):
        if isinstance(n, int) and n + low + high < d * (k - 1) + 1:
            raise ValueError(
                f"{what}: axis {axis} of x of shape {tuple(x.shape)} has {n + low + high} positions with its padding, and a "
                f"window of size {k} and dilation {d} takes {d * (k - 1) + 1}; use a smaller window or more padding"
            )


def with_batch(x: Any, rank: int, what: str) -> tuple[Any, bool]:
    """`x` as [N, C, spatial...], and whether the batch axis was missing and has been put in front."""
    if x.ndim == rank + 2:
        return x, False
    if x.ndim == rank + 1:
        return x.reshape((1, *x.shape)), True
    axes = ", ".join(["N", "C", *"DHW"[3 - rank :]])
    raise ValueError(f"{what} needs x of shape [{axes}] (N may be missing), not {tuple(x.shape)}")
