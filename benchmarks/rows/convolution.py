"""Convolutions and pooling, forward and with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "convolutions"
SHAPE = (32, 64, 56, 56)  # examples, channels, height, width; as many output channels


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


@row("3 x 3, 32 x 64 x 56 x 56", FAMILY, figure=Figure("1.06 of the limit", of_limit=1.06))
def forward(size: Size) -> Case:
    x, w, _, flops = _arrays(size)
    functions = {"graphc": _graphc_conv, "torch": _torch_conv, "torch.compile": _torch_conv, "jax": _jax_conv}
    functions["onnxruntime"] = lambda: lambda graph: graph("Conv", "x0", w, pads=[1, 1, 1, 1])
    made = peers.of(functions, x, w)
    return Case(made, flops=flops, limit="fma")


@row("3 x 3 with both gradients, 32 x 64 x 56 x 56", FAMILY, figure=Figure("1.09 of the limit", of_limit=1.09), rounds=5)
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


@row("depthwise 3 x 3, 32 x 64 x 56 x 56", FAMILY)
def depthwise(size: Size) -> Case:
    x, w, _, _ = _arrays(size)
    w, channels = w[:, :1].copy(), x.shape[1]

    def graphc() -> Any:
        import graphc as gc

        return lambda x, w: gc.nn.functional.conv2d(x, w, padding=1, groups=channels)

    def torch() -> Any:
        from torch.nn import functional

        return lambda x, w: functional.conv2d(x, w, padding=1, groups=channels)

    def jax() -> Any:
        from jax import lax

        numbers = ("NCHW", "OIHW", "NCHW")
        return lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=channels
        )

    def onnxruntime() -> Any:
        return lambda graph: graph("Conv", "x0", w, pads=[1, 1, 1, 1], group=channels)

    functions = {"graphc": graphc, "torch": torch, "jax": jax, "onnxruntime": onnxruntime}
    return Case(peers.of(functions, x, w), bytes=2.0 * x.nbytes, limit="memory")


@row("max pool 2 x 2 with its gradient, 32 x 64 x 56 x 56", FAMILY, figure=Figure("2.7 of the limit", of_limit=2.7))
def max_pool(size: Size) -> Case:
    n, c, h, w = size(SHAPE, (2, 3, 6, 8))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c, h, w), np.float32)
    dy = rng.standard_normal((n, c, h // 2, w // 2), np.float32)

    def graphc() -> Any:
        import graphc as gc

        def f(x: Any, dy: Any) -> Any:
            y, pull = gc.vjp(lambda x: gc.nn.functional.max_pool2d(x, 2), x)
            return (y, *pull(dy))

        return f

    def jax() -> Any:
        import jax
        import jax.numpy as jnp
        from jax import lax

        def pool(x: Any) -> Any:
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

        def f(x: Any, dy: Any) -> Any:
            y, pull = jax.vjp(pool, x)
            return (y, *pull(dy))

        return f

    made = peers.of({"graphc": graphc, "jax": jax}, x, dy)
    for name, compiled in (("torch", False), ("torch.compile", True)):
        made[name] = lambda compiled=compiled: _torch_pool(compiled, x, dy)
    return Case(made, bytes=2.0 * x.nbytes + 2.0 * dy.nbytes, limit="memory")


def _torch_pool(compiled: bool, x: np.ndarray, dy: np.ndarray) -> Any:
    import torch
    from torch.nn import functional

    arg, cotangent = torch.tensor(x).requires_grad_(), torch.tensor(dy)

    def pool(x: Any) -> Any:
        return functional.max_pool2d(x, 2)

    run = torch.compile(pool, dynamic=False) if compiled else pool

    def step() -> Any:
        y = run(arg)
        return (y, *torch.autograd.grad(y, (arg,), cotangent))

    return step
