"""Padding and normalising: functions without parameters that no layer family owns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn.wide import narrowed, widened
from graphc.runtime.tensor import Tensor, asarray

_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """`x` padded at the ends of its last axes.

    pad: (low, high) of the last axis, then of the one before it, and so on; negative amounts crop ("constant" only).
    mode: "constant" puts `value`; "reflect" mirrors without repeating the edge; "replicate" repeats the edge;
    "circular" goes on at the other end.
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad needs pairs (low, high) for at most {x.ndim} axes, not {tuple(pad)}")
    pairs = {x.ndim - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    if mode == "constant":
        return _pad_constant(x, tuple(pairs.get(axis, (0, 0)) for axis in range(x.ndim)), value)
    if mode not in _MODES:
        raise ValueError(f"pad: mode must be one of 'constant', {', '.join(map(repr, _MODES))}, not {mode!r}")
    for axis, (low, high) in sorted(pairs.items()):
        size = x.shape[axis]
        most = {"reflect": size - 1, "circular": size}.get(mode)
        if min(low, high) < 0 or (most is not None and max(low, high) > most):
            limit = "" if most is None else f" and at most {most}"
            raise ValueError(f"pad(mode={mode!r}): axis {axis} of size {size} takes amounts >= 0{limit}, not {(low, high)}")
        if low or high:
            x = xp.take(x, asarray(np.pad(np.arange(size), (low, high), _MODES[mode]), device=x.device), axis=axis)  # type: ignore[call-overload]
    return x


@composite
def _pad_constant(x: Tensor, pairs: tuple[tuple[int, int], ...], value: float) -> Tensor:
    crop = tuple(slice(max(0, -low), n - max(0, -high)) for n, (low, high) in zip(x.shape, pairs, strict=True))
    grow = tuple((max(0, low), max(0, high)) for low, high in pairs)
    return xp.pad(x[crop], grow, value=value)


@composite
def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, *, axis: int | None = None) -> Tensor:
    """x / max(||x||_p, eps) along `dim` (or `axis`)."""
    dim = dim if axis is None else axis
    z = widened(x)
    if p == 2.0:
        # The floor goes under the root, whose slope at 0 is infinite.
        norm = xp.sqrt(xp.maximum(xp.sum(z * z, axis=dim, keepdims=True), eps * eps))
    elif p == 1.0:
        norm = xp.maximum(xp.sum(xp.abs(z), axis=dim, keepdims=True), eps)
    else:
        total = xp.sum(xp.abs(z) ** p, axis=dim, keepdims=True)
        some = total > 0
        norm = xp.maximum(xp.where(some, xp.where(some, total, 1) ** (1 / p), 0), eps)
    return narrowed(z / norm, x)
