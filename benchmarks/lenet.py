"""One training step of LeNet-5 (LeCun et al. 1998) on images of 28 x 28 pixels, with relu, max pooling and Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RATE = 1e-3
Step = Callable[[], Any]
# (output channels, input channels) of the 5 x 5 convolutions, the first padded by 2; (outputs, inputs) of the linear layers.
CONVOLUTIONS, LINEARS = ((6, 1), (16, 6)), ((120, 400), (84, 120), (10, 84))
# Multiplications of an image: output pixels times 25 for each pair of channels; then the linear layers.
PRODUCTS = (28 * 28 * 25 * 6, 10 * 10 * 25 * 16 * 6, *(a * b for a, b in LINEARS))


def flops(count: int) -> float:
    """Of one step: forward, the gradients of the weights, and those of the activations but the images."""
    return 2.0 * count * (3 * sum(PRODUCTS) - PRODUCTS[0])


def model_of(nn: Any) -> Any:
    """The network as a module of a library that has PyTorch's names."""
    (a, b), (c, d, e) = CONVOLUTIONS, LINEARS
    return nn.Sequential(
        nn.Conv2d(a[1], a[0], 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(b[1], b[0], 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(c[1], c[0]), nn.ReLU(), nn.Linear(d[1], d[0]), nn.ReLU(), nn.Linear(e[1], e[0]),
    )  # fmt: skip


def weights() -> list[np.ndarray]:
    """Weight and bias of each layer in turn, uniform as PyTorch starts them."""
    rng = np.random.default_rng(0)
    found = []
    for shape in [(o, i, 5, 5) for o, i in CONVOLUTIONS] + list(LINEARS):
        bound = float(np.prod(shape[1:])) ** -0.5
        found += [rng.uniform(-bound, bound, s).astype(np.float32) for s in (shape, shape[:1])]
    return found


def data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels, made up."""
    rng = np.random.default_rng(1)
    return rng.random((count, 1, 28, 28), np.float32), rng.integers(0, 10, count)


def graphc(count: int) -> Step:
    """One compiled program."""
    import graphc as gc

    model = model_of(gc.nn)
    model.load_state_dict({k: gc.asarray(v) for k, v in zip(model.state_dict(), weights(), strict=True)})
    optimizer = gc.optim.Adam(model.parameters(), lr=RATE)

    def step(x: Any, t: Any) -> Any:
        loss = gc.nn.functional.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = gc.compile(step)
    x, t = (gc.asarray(a) for a in data(count))
    return lambda: run(x, t)


def torch(count: int, compiled: bool = False) -> Step:
    """PyTorch, operation by operation or compiled."""
    import torch

    model = model_of(torch.nn)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in zip(model.state_dict(), weights(), strict=True)})
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, t = (torch.from_numpy(a) for a in data(count))
    forward = torch.compile(model) if compiled else model
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> Any:
        loss = torch.nn.functional.cross_entropy(forward(x), t)
        optimizer.zero_grad()
        loss.backward()
        update()
        return loss

    return step


def jax(count: int) -> Step:
    """JAX, the whole step compiled."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from benchmarks.adam import jax_adam

    def conv(x: Any, w: Any, b: Any, padding: int) -> Any:
        y = lax.conv_general_dilated(x, w, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return y + b[:, None, None]

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def loss_of(p: Any, x: Any, t: Any) -> Any:
        h = pool(jax.nn.relu(conv(x, p[0], p[1], 2)))
        h = pool(jax.nn.relu(conv(h, p[2], p[3], 0))).reshape(x.shape[0], -1)
        for i in (4, 6, 8):
            h = (h if i == 4 else jax.nn.relu(h)) @ p[i].T + p[i + 1]
        return -jnp.take_along_axis(jax.nn.log_softmax(h), t[:, None], 1).mean()

    return jax_adam(loss_of, [jnp.asarray(p) for p in weights()], RATE, *map(jnp.asarray, data(count)))


STEPS: dict[str, Callable[[int], Step]] = {
    "graphc": graphc,
    "torch": torch,
    "torch.compile": lambda count: torch(count, compiled=True),
    "jax": jax,
}
