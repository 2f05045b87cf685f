"""Convolutions 3 x 3, forward and with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Case, Size, row
from benchmarks.rows import peers

FAMILY = "convolutions"
SHAPE = (16, 64, 56, 56)  # examples, channels, height, width; as many output channels


def _arrays(size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    n, c, h, w = size(SHAPE, (2, 3, 5, 5))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c, h, w), np.float32)
    kernel = rng.standard_normal((c, c, 3, 3), np.float32) / (3 * c**0.5)
    dy = rng.standard_normal((n, c, h, w), np.float32)
    return x, kernel.astype(np.float32), dy, 2.0 * n * c * c * h * w * 9


def _graphc_conv() -> Any:
    import graphc as gc

    return lambda x, w: gc.nn.functional.conv2d(x, w, padding=1)


def _jax_conv() -> Any:
    from jax import lax

    numbers = ("NCHW", "OIHW", "NCHW")
    return lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def _torch_conv() -> Any:
    from torch.nn import functional

    return lambda x, w: functional.conv2d(x, w, padding=1)


@row("3 x 3, 16 x 64 x 56 x 56", FAMILY)
def forward(size: Size) -> Case:
    x, w, _, flops = _arrays(size)
    made = peers.of({"graphc": _graphc_conv, "torch": _torch_conv, "jax": _jax_conv}, x, w)
    return Case(made, flops=flops, limit="fma")


@row("3 x 3 with both gradients, 16 x 64 x 56 x 56", FAMILY)
def with_gradients(size: Size) -> Case:
    x, w, dy, flops = _arrays(size)

    def graphc() -> Any:
        import graphc as gc

        conv = _graphc_conv()

        def f(x: Any, w: Any, dy: Any) -> Any:
            y, pull = gc.vjp(conv, x, w)
            return (y, *pull(dy))

        return f

    def jax() -> Any:
        import jax

        conv = _jax_conv()

        def f(x: Any, w: Any, dy: Any) -> Any:
            y, pull = jax.vjp(conv, x, w)
            return (y, *pull(dy))

        return f

    def torch() -> Any:
        import torch

        args = [torch.tensor(a).requires_grad_() for a in (x, w)]
        conv, cotangent = _torch_conv(), torch.tensor(dy)

        def step() -> Any:
            y = conv(*args)
            return (y, *torch.autograd.grad(y, args, cotangent))

        return step

    made = peers.of({"graphc": graphc, "jax": jax}, x, w, dy)
    made["torch"] = torch
    return Case(made, flops=3 * flops, limit="fma", tolerance=1e-3)
