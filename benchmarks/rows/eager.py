"""Single operations on small tensors: what dispatch costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Size, Statement, Work, row

FAMILY = "eager, small tensors"
# Statements over x, y (4 elements), w (requires a gradient) and m (4 x 4), for each library's namespace `xp`.
STATEMENTS: dict[str, dict[str, str]] = {
    "x + y": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "x + y"),
    "x * 2.0": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "x * 2.0"),
    "w + y, recorded": dict.fromkeys(("graphc", "torch"), "w + y"),
    "exp(x)": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "xp.exp(x)"),
    "x.sum()": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "x.sum()"),
    "x[0]": dict.fromkeys(("graphc", "torch", "jax"), "x[0]"),
    "m @ m": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "m @ m"),
    "x.reshape(2, 2)": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "x.reshape(2, 2)"),
    "softmax": {"graphc": "softmax(x, -1)", "torch": "softmax(x, -1)", "jax": "softmax(x, -1)"},
    "x.sum().item()": dict.fromkeys(("graphc", "numpy", "torch", "jax"), "x.sum().item()"),
}
FIGURES = {"x + y": Figure("under 2.5 us", seconds=2.5e-6)}


def _names(peer: str) -> dict[str, Any]:
    x, y = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    m = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    if peer == "graphc":
        import graphc as gc

        w = gc.asarray(x).requires_grad_()
        softmax = gc.nn.functional.softmax
        return {"xp": gc, "x": gc.asarray(x), "y": gc.asarray(y), "w": w, "m": gc.asarray(m), "softmax": softmax}
    if peer == "torch":
        import torch

        w = torch.from_numpy(x.copy()).requires_grad_()
        softmax = torch.nn.functional.softmax
        made = {"x": torch.from_numpy(x), "y": torch.from_numpy(y), "w": w, "m": torch.from_numpy(m)}
        return {"xp": torch, **made, "softmax": softmax}
    if peer == "jax":
        import jax
        import jax.numpy as jnp

        return {"xp": jnp, "x": jnp.asarray(x), "y": jnp.asarray(y), "m": jnp.asarray(m), "softmax": jax.nn.softmax}
    return {"xp": np, "x": x, "y": y, "m": m}


def _statements(texts: dict[str, str]) -> Callable[[Size], Case]:
    def make(size: Size) -> Case:
        def work(peer: str) -> Callable[[], Work]:
            return lambda: Statement(texts[peer], _names(peer))

        return Case({p: work(p) for p in texts})

    return make


for _name, _texts in STATEMENTS.items():
    row(_name, FAMILY, threads=1, figure=FIGURES.get(_name))(_statements(_texts))


@row("20 operations and their gradient", FAMILY, threads=1)
def chain_backward(size: Size) -> Case:
    x = np.linspace(0.1, 1, 64, dtype=np.float32)

    def chain(xp: Any, w: Any, y: Any) -> Any:
        h = w
        for _ in range(5):
            h = xp.tanh(h * y + w)
            h = h - y
        loss = (h * h).sum()
        w.grad = None
        loss.backward()
        return w.grad

    def graphc() -> Work:
        import graphc as gc

        w, y = gc.asarray(x).requires_grad_(), gc.asarray(x)
        return lambda: chain(gc, w, y)

    def torch() -> Work:
        import torch

        w, y = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(x)
        return lambda: chain(torch, w, y)

    return Case({"graphc": graphc, "torch": torch})
