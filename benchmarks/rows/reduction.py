"""Reductions and normalisations over rows, forward and with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "reductions and normalisations"


def _matrix(size: Size, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size(rows, 8), size(columns, 8)), np.float32)


def _sum(size: Size, axis: int) -> Case:
    x = _matrix(size, 4096, 4096)
    functions = peers.namespaces(lambda xp: lambda v: v.sum(axis))
    axes = np.array([axis], np.int64)
    functions["onnxruntime"] = lambda: lambda graph: graph("ReduceSum", "x0", axes, keepdims=0)
    return Case(peers.of(functions, x), bytes=float(x.nbytes), limit="read")


@row("sum over axis 0, 4096 x 4096", FAMILY, figure=Figure("2.25 of the limit", of_limit=2.25))
def sum_columns(size: Size) -> Case:
    return _sum(size, 0)


@row("sum over axis 1, 4096 x 4096", FAMILY, figure=Figure("2.25 of the limit", of_limit=2.25))
def sum_rows(size: Size) -> Case:
    return _sum(size, 1)


@row("softmax, 4096 x 1024", FAMILY, figure=Figure("1.54 of the limit", of_limit=1.54))
def softmax(size: Size) -> Case:
    x = _matrix(size, 4096, 1024)

    def graphc() -> Any:
        import graphc as gc

        return lambda v: gc.nn.functional.softmax(v, -1)

    def torch() -> Any:
        import torch

        return lambda v: torch.softmax(v, -1)

    def jax() -> Any:
        import jax

        return jax.nn.softmax

    def onnxruntime() -> Any:
        return lambda graph: graph("Softmax", "x0", axis=-1)

    functions = {"graphc": graphc, "torch": torch, "torch.compile": torch, "jax": jax, "onnxruntime": onnxruntime}
    return Case(peers.of(functions, x), bytes=2.0 * x.nbytes, limit="memory")


@row("layer norm with gradients, 4096 x 1024", FAMILY, figure=Figure("1.63 of the limit", of_limit=1.63))
def layer_norm(size: Size) -> Case:
    x, dy = _matrix(size, 4096, 1024), _matrix(size, 4096, 1024, 1)
    n = x.shape[1]
    w, b = np.linspace(0.5, 1.5, n, dtype=np.float32), np.linspace(-1, 1, n, dtype=np.float32)

    def graphc() -> Any:
        import graphc as gc

        def f(x: Any, w: Any, b: Any, dy: Any) -> Any:
            y, pull = gc.vjp(lambda x, w, b: gc.nn.functional.layer_norm(x, (n,), w, b), x, w, b)
            return (y, *pull(dy))

        return f

    def jax() -> Any:
        import jax
        import jax.numpy as jnp

        def norm(x: Any, w: Any, b: Any) -> Any:
            mean = x.mean(-1, keepdims=True)
            var = ((x - mean) ** 2).mean(-1, keepdims=True)
            return (x - mean) / jnp.sqrt(var + 1e-5) * w + b

        def f(x: Any, w: Any, b: Any, dy: Any) -> Any:
            y, pull = jax.vjp(norm, x, w, b)
            return (y, *pull(dy))

        return f

    made = peers.of({"graphc": graphc, "jax": jax}, x, w, b, dy)
    for name, compiled in (("torch", False), ("torch.compile", True)):
        made[name] = lambda compiled=compiled: _torch_layer_norm(compiled, x, w, b, dy)
    # Reads x and dy, writes y and dx; x is needed again for dx, but a row of it may stay in a cache.
    return Case(made, bytes=4.0 * x.nbytes, limit="memory", tolerance=1e-3)


def _torch_layer_norm(compiled: bool, x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> Any:
    import torch
    from torch.nn import functional

    args = [torch.tensor(a).requires_grad_() for a in (x, w, b)]
    cotangent = torch.tensor(dy)

    def forward(x: Any, w: Any, b: Any) -> Any:
        return functional.layer_norm(x, (x.shape[1],), w, b)

    run = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> Any:
        y = run(*args)
        return (y, *torch.autograd.grad(y, args, cotangent))

    return step
