"""One training step of the digits network, in each library: same network, weights, batch and optimizer.

conv 16 3x3 - relu - max pool 2 - conv 32 3x3 - relu - max pool 2 - linear 10, cross entropy, SGD with momentum 0.9, as in
examples/digits.py; 64 images of 8 x 8 pixels. Each maker gives a function that runs one step and returns its loss.
Imports stand inside the makers, because the time to the first step counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BATCH = 64
RATE, MOMENTUM = 0.05, 0.9
# Multiplications of an image: output pixels times 9 for each pair of channels; then the linear layer.
PRODUCTS = (8 * 8 * 9 * 16, 4 * 4 * 9 * 16 * 32, 128 * 10)
Arrays = dict[str, np.ndarray]
Step = Callable[[], Any]


def flops(count: int) -> float:
    """Of one step: forward, the gradients of the weights, and those of the activations but the images."""
    return 2.0 * count * (3 * sum(PRODUCTS) - PRODUCTS[0])


def weights(seed: int = 0) -> Arrays:
    """Initial weights by PyTorch's names, uniform as there."""
    rng = np.random.default_rng(seed)

    def uniform(fan: int, *shape: int) -> np.ndarray:
        return rng.uniform(-(fan**-0.5), fan**-0.5, shape).astype(np.float32)

    return {
        "0.weight": uniform(9, 16, 1, 3, 3),
        "0.bias": uniform(9, 16),
        "3.weight": uniform(144, 32, 16, 3, 3),
        "3.bias": uniform(144, 32),
        "7.weight": uniform(128, 10, 128),
        "7.bias": uniform(128, 10),
    }


def batch(size: int = BATCH, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels, made up: the time does not depend on what they show."""
    rng = np.random.default_rng(seed)
    return rng.random((size, 1, 8, 8), np.float32), rng.integers(0, 10, size)


def graphc_eager(start: Arrays, images: np.ndarray, labels: np.ndarray) -> Step:
    """A step operation by operation."""
    return _graphc(start, images, labels, False)


def graphc_compiled(start: Arrays, images: np.ndarray, labels: np.ndarray) -> Step:
    """A step as one compiled program."""
    return _graphc(start, images, labels, True)


def _graphc(start: Arrays, images: np.ndarray, labels: np.ndarray, compiled: bool) -> Step:
    import graphc as gc

    step = _graphc_step(start)
    run = gc.compile(step) if compiled else step
    x, t = gc.asarray(images), gc.asarray(labels)
    return lambda: run(x, t)


def _graphc_step(start: Arrays) -> Callable[[Any, Any], Any]:
    import graphc as gc

    nn = gc.nn
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    model.load_state_dict({k: gc.asarray(v) for k, v in start.items()})
    optimizer = gc.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def step(x: Any, t: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_eager(start: Arrays, images: np.ndarray, labels: np.ndarray) -> Step:
    """PyTorch, operation by operation."""
    return _torch(start, images, labels, False)


def torch_compiled(start: Arrays, images: np.ndarray, labels: np.ndarray) -> Step:
    """PyTorch with the forward and backward pass compiled, and the optimizer too."""
    return _torch(start, images, labels, True)


def _torch(start: Arrays, images: np.ndarray, labels: np.ndarray, compiled: bool) -> Step:
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in start.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
    x, t = torch.from_numpy(images), torch.from_numpy(labels)

    def loss_of(x: Any, t: Any) -> Any:
        return nn.functional.cross_entropy(model(x), t)

    forward = torch.compile(loss_of) if compiled else loss_of
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> Any:
        loss = forward(x, t)
        optimizer.zero_grad()
        loss.backward()
        update()
        return loss

    return step


def jax_compiled(start: Arrays, images: np.ndarray, labels: np.ndarray) -> Step:
    """JAX with the whole step compiled."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def conv(x: Any, w: Any, b: Any) -> Any:
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return y + b[:, None, None]

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def loss_of(p: Any, x: Any, t: Any) -> Any:
        h = pool(jax.nn.relu(conv(x, p["0.weight"], p["0.bias"])))
        h = pool(jax.nn.relu(conv(h, p["3.weight"], p["3.bias"])))
        scores = h.reshape(h.shape[0], -1) @ p["7.weight"].T + p["7.bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), t[:, None], 1).mean()

    @jax.jit
    def update(p: Any, m: Any, x: Any, t: Any) -> Any:
        loss, g = jax.value_and_grad(loss_of)(p, x, t)
        m = jax.tree.map(lambda a, b: MOMENTUM * a + b, m, g)
        return jax.tree.map(lambda a, b: a - RATE * b, p, m), m, loss

    params = {k: jnp.asarray(v) for k, v in start.items()}
    state = (params, jax.tree.map(jnp.zeros_like, params))
    x, t = jnp.asarray(images), jnp.asarray(labels)

    def step() -> Any:
        nonlocal state
        params, momenta, loss = update(*state, x, t)
        state = (params, momenta)
        return loss.block_until_ready()

    return step


STEPS: dict[str, Callable[[Arrays, np.ndarray, np.ndarray], Step]] = {
    "graphc": graphc_compiled,
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "jax": jax_compiled,
}
EAGER: dict[str, Callable[[Arrays, np.ndarray, np.ndarray], Step]] = {"graphc": graphc_eager, "torch": torch_eager}


def __getattr__(name: str) -> Any:
    # A step to look at, made when it is asked for: python -m benchmarks.profile benchmarks/digits.py:step
    if name == "step":
        return _graphc_step(weights())
    raise AttributeError(name)
