"""Whole training steps: compiled and eager give the same bits, and changing numbers records nothing anew."""

from __future__ import annotations

from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn, optim

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, 0.05),
    "sgd_dampened": lambda p: optim.SGD(p, 0.05, 0.9, 0.1, 0.01),
    "sgd_nesterov": lambda p: optim.SGD(p, 0.05, 0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01),
    "amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.05, 0.1),
}


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(64, 5),
    )


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        h = self.norm(self.lift(gc.squeeze(x, axis=1)))
        y, _ = self.attention(h, h, h, is_causal=True, need_weights=False)
        return self.out(nn.functional.gelu(h + y).mean(axis=1))


def _run(build: Any, make: Any, compiled: bool, steps: int = 5) -> tuple[list[float], dict[str, Any], Any]:
    gc.manual_seed(3)
    model = build()
    optimizer = make(model.parameters())

    def step(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    run = gc.compile(step) if compiled else step
    rng = np.random.default_rng(0)
    losses = []
    for i in range(steps):
        x = gc.asarray(rng.standard_normal((6, 1, 8, 8)).astype(np.float32))
        losses.append(run(x, gc.asarray(rng.integers(0, 5, 6))).item())
        optimizer.lr = 0.03 / (i + 1)
    state = {n: t.numpy().copy() for n, t in [*model.state_dict().items(), *optimizer.state_dict().items()]}
    return losses, state, run


@pytest.mark.parametrize("build", [_convolutional, Attentive])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_step_equals_the_eager_one_to_the_bit(name: str, build: Any) -> None:
    eager, expected, _ = _run(build, OPTIMIZERS[name], False)
    losses, state, run = _run(build, OPTIMIZERS[name], True)
    assert losses == eager
    assert list(state) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)
    # The learning rate and the step count have changed at every step. The first step finds no gradients to
    # forget, which may make a recording of its own; one more serves all the others.
    (family,) = run._families.values()
    assert not family.eager and 1 <= len(family.recordings) <= 2


def test_a_step_learns() -> None:
    gc.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = optim.AdamW(model.parameters(), 0.05)
    x = gc.asarray(rng.standard_normal((64, 4)).astype(np.float32))
    y = gc.asarray(np.argmax(x.numpy()[:, :3], axis=1))

    @gc.compile
    def step() -> gc.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    first = step().item()
    for _ in range(60):
        last = step().item()
    assert last < 0.1 * first
    assert gc.metrics.accuracy(model(x), y) > 0.98
