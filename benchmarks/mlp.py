"""One training step of a multilayer perceptron with relu, cross entropy and Adam, in each library."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RATE = 1e-3
Step = Callable[[], Any]


def data(widths: Sequence[int], count: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
    """(weight [out, in] and bias of each layer, inputs, labels)."""
    rng = np.random.default_rng(0)
    layers = []
    for a, b in itertools.pairwise(widths):
        scale = a**-0.5
        layers.append((rng.uniform(-scale, scale, (b, a)).astype(np.float32), np.zeros(b, np.float32)))
    return layers, rng.random((count, widths[0]), np.float32), rng.integers(0, widths[-1], count)


def graphc(widths: Sequence[int], count: int) -> Step:
    """One compiled program."""
    import graphc as gc

    layers, images, labels = data(widths, count)
    parameters = [gc.nn.Parameter(gc.asarray(a)) for layer in layers for a in layer]
    optimizer = gc.optim.Adam(parameters, lr=RATE)

    def step(x: Any, t: Any) -> Any:
        for i in range(0, len(parameters), 2):
            x = gc.nn.functional.linear(x if i == 0 else gc.nn.functional.relu(x), parameters[i], parameters[i + 1])
        loss = gc.nn.functional.cross_entropy(x, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = gc.compile(step)
    x, t = gc.asarray(images), gc.asarray(labels)
    return lambda: run(x, t)


def _torch(widths: Sequence[int], count: int, compiled: bool) -> Step:
    import torch
    from torch.nn import functional

    layers, images, labels = data(widths, count)
    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for layer in layers for a in layer]
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    x, t = torch.from_numpy(images), torch.from_numpy(labels)

    def loss_of(x: Any, t: Any) -> Any:
        for i in range(0, len(parameters), 2):
            x = functional.linear(x if i == 0 else functional.relu(x), parameters[i], parameters[i + 1])
        return functional.cross_entropy(x, t)

    forward = torch.compile(loss_of) if compiled else loss_of
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> Any:
        loss = forward(x, t)
        optimizer.zero_grad()
        loss.backward()
        update()
        return loss

    return step


def torch_eager(widths: Sequence[int], count: int) -> Step:
    """PyTorch, operation by operation."""
    return _torch(widths, count, False)


def torch_compiled(widths: Sequence[int], count: int) -> Step:
    """PyTorch, compiled."""
    return _torch(widths, count, True)


def jax(widths: Sequence[int], count: int) -> Step:
    """JAX, the whole step compiled; Adam written out, as JAX has none of its own."""
    import jax
    import jax.numpy as jnp

    layers, images, labels = data(widths, count)
    params = [jnp.asarray(a) for layer in layers for a in layer]

    def loss_of(p: Any, x: Any, t: Any) -> Any:
        for i in range(0, len(p), 2):
            x = (x if i == 0 else jax.nn.relu(x)) @ p[i].T + p[i + 1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1).mean()

    @jax.jit
    def update(n: Any, p: Any, m: Any, v: Any, x: Any, t: Any) -> Any:
        loss, g = jax.value_and_grad(loss_of)(p, x, t)
        n = n + 1
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        c, d = 1 - 0.9**n, 1 - 0.999**n
        p = [w - RATE * (a / c) / (jnp.sqrt(b / d) + 1e-8) for w, a, b in zip(p, m, v, strict=True)]
        return n, p, m, v, loss

    zeros = [jnp.zeros_like(p) for p in params]
    state: Any = (jnp.float32(0), params, zeros, zeros)
    x, t = jnp.asarray(images), jnp.asarray(labels)

    def step() -> Any:
        nonlocal state
        *state, loss = update(*state, x, t)
        return loss.block_until_ready()

    return step


STEPS = {"graphc": graphc, "torch": torch_eager, "torch.compile": torch_compiled, "jax": jax}
