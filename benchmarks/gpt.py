"""One training step of a small GPT (Radford et al. 2019) with AdamW: one text for graphc and PyTorch.

Pre-norm blocks of causal attention and a tanh-gelu perceptron four times as wide, learned positions, tied output
weights. The two libraries start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RATE = 3e-4
Step = Callable[[], Any]


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

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight
            for block in self.blocks:
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

    def step(x: Any, t: Any) -> Any:
        loss = model(x, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = gc.compile(step) if compiled else step
    return lambda: run(x, t)


def torch(size: Size, device: str = "cpu", dtype: str = "float32", compiled: bool = False) -> Step:
    """PyTorch, operation by operation or compiled."""
    import torch

    model = model_of(torch.nn, torch.nn.functional, size)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(size).items()})
    model = model.to(device=device, dtype=getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    x, t = (torch.from_numpy(a).to(device) for a in data(size))
    forward = torch.compile(model) if compiled else model
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> Any:
        loss = forward(x, t)
        optimizer.zero_grad()
        loss.backward()
        update()
        return loss

    return step
