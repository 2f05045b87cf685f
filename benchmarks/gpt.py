"""One training step of a small GPT (Radford et al. 2019) with AdamW: one text for graphc and PyTorch, another for JAX.

Pre-norm blocks of causal attention and a tanh-gelu perceptron four times as wide, learned positions, tied output
weights. All libraries start from the same weights. A step may be told which layers to keep, for stochastic depth (Huang et al.
2016); it is then another graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RATE, DECAY = 3e-4, 0.01
Step = Callable[..., Any]


@dataclass(frozen=True)
class Size:
    layers: int
    width: int
    heads: int
    length: int
    batch: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights of the products, the output's included."""
        return 12 * self.layers * self.width**2 + self.vocabulary * self.width

    @property
    def flops(self) -> float:
        """Multiplications and additions of one step: three times the forward pass, causal attention counted as half."""
        tokens = self.batch * self.length
        attention = 2 * self.layers * self.width * self.length
        return 3.0 * tokens * (2 * self.parameters + attention)


SMALL = Size(4, 128, 4, 128, 16, 256)
GPT2 = Size(12, 768, 12, 1024, 16, 50304)
TOY = Size(2, 16, 2, 8, 2, 11)


def model_of(nn: Any, functional: Any, size: Size) -> Any:
    """The model as a module of a library that has PyTorch's names."""

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.before_attention, self.before_perceptron = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
            self.qkv, self.out = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
            self.up, self.down = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

        def forward(self, x: Any) -> Any:
            n, t, c = x.shape
            y = self.qkv(self.before_attention(x)).reshape(n, t, 3, size.heads, c // size.heads).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(y[0], y[1], y[2], is_causal=True)
            x = x + self.out(y.permute(0, 2, 1, 3).reshape(n, t, c))
            return x + self.down(functional.gelu(self.up(self.before_perceptron(x)), approximate="tanh"))

    class GPT(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(size.vocabulary, size.width)
            self.positions = nn.Embedding(size.length, size.width)
            self.blocks = nn.ModuleList([Block() for _ in range(size.layers)])
            self.norm = nn.LayerNorm(size.width)

        def forward(self, tokens: Any, targets: Any, keep: tuple[bool, ...] = ()) -> Any:
            x = self.tokens(tokens) + self.positions.weight
            for i, block in enumerate(self.blocks):
                if not keep or keep[i]:
                    x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return functional.cross_entropy(logits.reshape(-1, size.vocabulary), targets.reshape(-1))

    return GPT()


def weights(size: Size) -> dict[str, np.ndarray]:
    """A value for each parameter, by name: normal numbers of standard deviation 0.02, ones and zeros for the rest."""
    import graphc as gc

    rng = np.random.default_rng(0)
    found = {}
    for name, p in model_of(gc.nn, gc.nn.functional, size).named_parameters():
        if name.endswith("bias"):
            found[name] = np.zeros(p.shape, np.float32)
        elif "norm" in name or "before" in name:
            found[name] = np.ones(p.shape, np.float32)
        else:
            found[name] = rng.normal(0, 0.02, p.shape).astype(np.float32)
    return found


def data(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the tokens that follow them, [batch, length]."""
    tokens = np.random.default_rng(1).integers(0, size.vocabulary, (size.batch, size.length + 1))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def graphc(size: Size, device: str = "cpu", dtype: str = "float32", compiled: bool = True) -> Step:
    """One compiled program (or eager operations)."""
    import graphc as gc

    model = model_of(gc.nn, gc.nn.functional, size)
    model.load_state_dict({k: gc.asarray(v) for k, v in weights(size).items()})
    model = model.to(device=device, dtype=getattr(gc, dtype))
    optimizer = gc.optim.AdamW(model.parameters(), lr=RATE)
    x, t = (gc.asarray(a, device=device) for a in data(size))

    def step(x: Any, t: Any, keep: tuple[bool, ...] = ()) -> Any:
        loss = model(x, t, keep)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = gc.compile(step) if compiled else step
    return lambda keep=(): run(x, t, keep)


def torch(size: Size, device: str = "cpu", dtype: str = "float32", compiled: bool = False) -> Step:
    """PyTorch, operation by operation or compiled."""
    import torch

    model = model_of(torch.nn, torch.nn.functional, size)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(size).items()})
    model = model.to(device=device, dtype=getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    x, t = (torch.from_numpy(a).to(device) for a in data(size))
    forward = torch.compile(model) if compiled else model
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step(keep: tuple[bool, ...] = ()) -> Any:
        loss = forward(x, t, keep)
        optimizer.zero_grad()
        loss.backward()
        update()
        return loss

    return step


def jax(size: Size) -> Step:
    """JAX, the whole step compiled, once for each set of layers."""
    import jax
    import jax.numpy as jnp

    from benchmarks.adam import jax_adam

    def norm(p: Any, name: str, x: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        return jnp.einsum("bhij,bhjd->bhid", jax.nn.softmax(scores), v)

    def loss_of(p: Any, tokens: Any, targets: Any, keep: tuple[bool, ...]) -> Any:
        x = p["tokens.weight"][tokens] + p["positions.weight"]
        n, t, c = x.shape
        for i in (i for i in range(size.layers) if not keep or keep[i]):
            block = f"blocks.{i}"
            y = linear(p, f"{block}.qkv", norm(p, f"{block}.before_attention", x))
            y = attend(*y.reshape(n, t, 3, size.heads, c // size.heads).transpose(2, 0, 3, 1, 4))
            x = x + linear(p, f"{block}.out", y.transpose(0, 2, 1, 3).reshape(n, t, c))
            up = linear(p, f"{block}.up", norm(p, f"{block}.before_perceptron", x))
            x = x + linear(p, f"{block}.down", jax.nn.gelu(up))
        logits = jax.nn.log_softmax(norm(p, "norm", x) @ p["tokens.weight"].T)
        return -jnp.take_along_axis(logits, targets[..., None], -1).mean()

    params = {name: jnp.asarray(w) for name, w in weights(size).items()}
    run = jax_adam(loss_of, params, RATE, *map(jnp.asarray, data(size)), decay=DECAY)
    return lambda keep=(): run(keep)


def subsets(layers: int, count: int = 20, seed: int = 6) -> list[tuple[bool, ...]]:
    """Which layers to keep in each of `count` steps, each with a chance of one half: 13 different sets of four layers in 20."""
    return [tuple(bool(b) for b in row) for row in np.random.default_rng(seed).integers(0, 2, (count, layers))]


STEPS: dict[str, Callable[[Size], Step]] = {
    "graphc": graphc,
    "torch": torch,
    "torch.compile": lambda size: torch(size, compiled=True),
    "jax": jax,
}
