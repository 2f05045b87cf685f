"""Scaled dot product attention, forward and with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "attention"
LONG, CAUSAL = (1, 8, 512, 64), (8, 8, 256, 64)  # batch, heads, length, width


def _arrays(size: Size, shape: tuple[int, int, int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    toy = (1, 2, 8, 4)
    return [rng.standard_normal(size(shape, toy), np.float32) for _ in range(4)]


def _graphc(causal: bool) -> Any:
    import graphc as gc

    return lambda q, k, v: gc.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _torch(causal: bool) -> Any:
    from torch.nn import functional

    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _jax(causal: bool) -> Any:
    import jax
    import jax.numpy as jnp

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        return jnp.einsum("bhij,bhjd->bhid", jax.nn.softmax(scores), v)

    return attend


def _flops(q: np.ndarray, products: int, causal: bool) -> float:
    """Of so many products of [length, length] by width; half of the scores where attention is causal."""
    b, h, t, d = q.shape
    return products * 2.0 * b * h * t * t * d * (0.5 if causal else 1.0)


def _forward(size: Size, shape: tuple[int, int, int, int], causal: bool) -> Case:
    q, k, v, _ = _arrays(size, shape)
    length = q.shape[2]
    mask = np.where(np.tril(np.ones((length, length), bool)), 0.0, -np.inf).astype(np.float32)

    def onnxruntime() -> Any:
        def make(graph: Any) -> None:
            scores = graph("MatMul", "x0", graph("Transpose", "x1", perm=[0, 1, 3, 2]))
            scores = graph("Mul", scores, np.array(q.shape[-1] ** -0.5, np.float32))
            weights = graph("Softmax", graph("Add", scores, mask) if causal else scores, axis=-1)
            graph("MatMul", weights, "x2")

        return make

    functions = {
        "graphc": lambda: _graphc(causal), "torch": lambda: _torch(causal), "torch.compile": lambda: _torch(causal),
        "jax": lambda: _jax(causal), "onnxruntime": onnxruntime,
    }  # fmt: skip
    return Case(peers.of(functions, q, k, v), flops=_flops(q, 2, causal), limit="fma", tolerance=1e-3)


def _with_gradients(size: Size, shape: tuple[int, int, int, int], causal: bool) -> Case:
    q, k, v, dy = _arrays(size, shape)

    def graphc() -> Any:
        import graphc as gc

        def f(q: Any, k: Any, v: Any, dy: Any) -> Any:
            y, pull = gc.vjp(_graphc(causal), q, k, v)
            return (y, *pull(dy))

        return f

    def jax() -> Any:
        import jax

        def f(q: Any, k: Any, v: Any, dy: Any) -> Any:
            y, pull = jax.vjp(_jax(causal), q, k, v)
            return (y, *pull(dy))

        return f

    def torch() -> Any:
        import torch

        args = [torch.tensor(a).requires_grad_() for a in (q, k, v)]
        cotangent, attend = torch.tensor(dy), _torch(causal)

        def step() -> Any:
            y = attend(*args)
            return (y, *torch.autograd.grad(y, args, cotangent))

        return step

    made = peers.of({"graphc": graphc, "jax": jax}, q, k, v, dy)
    made["torch"] = torch
    # Two products forward, four in the gradient of the unfused form.
    return Case(made, flops=_flops(q, 6, causal), limit="fma", tolerance=1e-3)


@row("causal, 8 x 8 heads of 256 x 64", FAMILY, figure=Figure("1.73 of the limit", of_limit=1.73))
def causal_forward(size: Size) -> Case:
    return _forward(size, CAUSAL, True)


@row("causal, 8 x 8 heads of 256 x 64, with gradients", FAMILY, figure=Figure("1.94 of the limit", of_limit=1.94))
def causal_with_gradients(size: Size) -> Case:
    return _with_gradients(size, CAUSAL, True)


@row("attention with gradients, 8 heads of 512 x 64", FAMILY)
def long_with_gradients(size: Size) -> Case:
    return _with_gradients(size, LONG, False)
