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
    """JAX, the whole step compiled."""
    import jax
    import jax.numpy as jnp

    from benchmarks.adam import jax_adam

    layers, images, labels = data(widths, count)

    def loss_of(p: Any, x: Any, t: Any) -> Any:
        for i in range(0, len(p), 2):
            x = (x if i == 0 else jax.nn.relu(x)) @ p[i].T + p[i + 1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1).mean()

    params = [jnp.asarray(a) for layer in layers for a in layer]
    return jax_adam(loss_of, params, RATE, jnp.asarray(images), jnp.asarray(labels))


def inference(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Callable[[], Any]]:
    """What gives each library's function of the inputs alone, with weights of its own that do not change."""

    def text(linear: Any, relu: Any, array: Any) -> Callable[[Any], Any]:
        held = [(array(w), array(b)) for w, b in layers]

        def f(x: Any) -> Any:
            for i, (w, b) in enumerate(held):
                x = linear(x if i == 0 else relu(x), w, b)
            return x

        return f

    def graphc() -> Any:
        import graphc as gc

        # Memory of NumPy arrays may change between calls; a model's weights have memory of their own.
        return text(gc.nn.functional.linear, gc.nn.functional.relu, lambda a: gc.asarray(a, copy=True))

    def torch() -> Any:
        import torch

        return text(torch.nn.functional.linear, torch.relu, torch.from_numpy)

    def jax() -> Any:
        import jax
        import jax.numpy as jnp

        return text(lambda x, w, b: x @ w.T + b, jax.nn.relu, jnp.asarray)

    def onnxruntime() -> Any:
        def make(graph: Any) -> None:
            x = "x0"
            for i, (w, b) in enumerate(layers):
                x = graph("Gemm", x if i == 0 else graph("Relu", x), w, b, transB=1)

        return make

    return {"graphc": graphc, "torch": torch, "torch.compile": torch, "jax": jax, "onnxruntime": onnxruntime}


STEPS = {"graphc": graphc, "torch": torch_eager, "torch.compile": torch_compiled, "jax": jax}
