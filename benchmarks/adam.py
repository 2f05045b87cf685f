"""Adam and AdamW in JAX, which has no optimizer of its own: a whole training step as one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def jax_adam(loss_of: Callable[..., Any], params: Any, rate: float, *data: Any, decay: float = 0.0) -> Callable[..., Any]:
    """A step of Adam (of AdamW, with `decay`) on loss_of(params, *data, *static) that gives the loss once it is there.

    params: a tree of arrays. The step takes the static (hashable) arguments; another value is another compilation.
    """
    import jax
    import jax.numpy as jnp

    def update(state: Any, data: Any, static: Any) -> Any:
        n, p, m, v = state
        loss, g = jax.value_and_grad(loss_of)(p, *data, *static)
        n = n + 1
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
        c, d = 1 - 0.9**n, 1 - 0.999**n

        def moved(w: Any, a: Any, b: Any) -> Any:
            return w * (1 - rate * decay) - rate * (a / c) / (jnp.sqrt(b / d) + 1e-8)

        return (n, jax.tree.map(moved, p, m, v), m, v), loss

    run = jax.jit(update, static_argnums=2, donate_argnums=0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state: Any = (jnp.float32(0), params, zeros, jax.tree.map(jnp.zeros_like, params))

    def step(*static: Any) -> Any:
        nonlocal state
        state, loss = run(state, data, static)
        return loss.block_until_ready()

    return step
