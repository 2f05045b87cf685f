"""Random programs: eager, compiled and traced execution agree to the bit, with gradients and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest

F = gc.nn.functional


def bits(t: gc.Tensor | None) -> Any:
    return None if t is None else (t.dtype.name, t.shape, t.numpy().tobytes())


# Each maps tensors of shape [4, 6] to one of shape [4, 6]; i is a small random integer.
STEPS: list[Callable[[gc.Tensor, gc.Tensor, int], gc.Tensor]] = [
    lambda x, y, i: x + y,
    lambda x, y, i: x * y - i,
    lambda x, y, i: x / (y * y + 1.5),
    lambda x, y, i: gc.exp(-x * x) + gc.tanh(y),
    lambda x, y, i: gc.where(x > y, x, y * 0.5),
    lambda x, y, i: gc.maximum(x, y[i]),
    lambda x, y, i: x - gc.mean(x, axis=i % 2, keepdims=True),
    lambda x, y, i: F.softmax(x, dim=i % 2),
    lambda x, y, i: F.layer_norm(x, (6,)),
    lambda x, y, i: F.gelu(x) * gc.sum(y),
    lambda x, y, i: (x.T @ y).T[:4] if i % 2 else (x @ y.T) @ y,
    lambda x, y, i: gc.flip(x, axis=i % 2) + gc.roll(y, i, axis=1),
    lambda x, y, i: gc.concat([x[:, i:], y[:, :i]], axis=1),
    lambda x, y, i: gc.stack([x, y], axis=i % 3).sum(i % 3),
    lambda x, y, i: x.reshape(6, 4).T + y[::-1],
    lambda x, y, i: gc.take(x, gc.tensor([i, 0, 3, i]), axis=0) * y,
    lambda x, y, i: gc.cumulative_sum(x, axis=i % 2) - y,
    lambda x, y, i: gc.clip(x, -0.5, 0.5 + i),
    lambda x, y, i: gc.pad(x[1:, 1:], [(1, 0), (0, 1)], value=i) + gc.triu(y),
    lambda x, y, i: x + gc.rand(4, 6) * y,
    lambda x, y, i: gc.sqrt(gc.abs(x) + 0.1) * gc.sign(y),
    lambda x, y, i: x * gc.max(y, axis=1, keepdims=True) + x.argmax().float(),
]


def written(x: gc.Tensor, y: gc.Tensor, i: int) -> gc.Tensor:
    """Writes in place on the way."""
    z = x * 1.25
    z[i] = y[i] * 2
    z[:, gc.tensor([0, i])] += 1
    z[z < -0.5] = 0.25
    z *= y
    return z


STEPS.append(written)


def program(seed: int) -> Callable[[gc.Tensor, gc.Tensor], gc.Tensor]:
    """A random straight line of steps over a few values."""
    rng = np.random.default_rng(seed)
    plan = [(int(rng.integers(len(STEPS))), rng.integers(100, size=2), int(rng.integers(4))) for _ in range(8)]

    def run(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        values = [x, y]
        for step, (a, b), i in plan:
            values.append(STEPS[step](values[a % len(values)], values[b % len(values)], i))
        return sum(values[3:], values[2])

    return run


@pytest.mark.parametrize("seed", range(24))
def test_eager_compiled_and_traced(seed: int) -> None:
    f = program(seed)
    w = gc.Generator(seed)
    x, y = gc.randn(4, 6, generator=w), gc.randn(4, 6, generator=w)

    def step(x: gc.Tensor, y: gc.Tensor) -> Any:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        out = f(x, y)
        loss = (out * gc.sin(out)).mean()
        loss.backward()
        return out.detach(), loss.detach(), x.grad, y.grad

    compiled = gc.compile(step)
    gc.manual_seed(seed)
    expected = [step(x, y), step(y, x), gc.rand(1)]
    gc.manual_seed(seed)
    # The first call records, the second replays.
    got = [compiled(x, y), compiled(y, x), gc.rand(1)]
    for a, b in zip([*expected[0], *expected[1], expected[2]], [*got[0], *got[1], got[2]]):
        assert bits(a) == bits(b)
    assert [len(family.recordings) for family in compiled._families.values()] == [1]

    @gc.composite
    def whole(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        return f(x, y)

    gc.manual_seed(seed)
    fused = whole(x, y)
    gc.manual_seed(seed)
    assert bits(fused) == bits(f(x, y))


@pytest.mark.parametrize("seed", range(100, 112))
def test_gradients_node_by_node(seed: int) -> None:
    """With a hook on the way, backward runs one node at a time: the same sums in the same order."""
    f = program(seed)
    w = gc.Generator(seed)
    x, y = gc.randn(4, 6, generator=w), gc.randn(4, 6, generator=w)
    found = []
    for hooked in (False, True):
        gc.manual_seed(seed)
        a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
        out = f(a, b)
        if hooked:
            out.register_hook(lambda g: None)
        (out * gc.sin(out)).mean().backward()
        found.append([bits(a.grad), bits(b.grad)])
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(200, 206))
def test_second_derivatives(seed: int) -> None:
    f = program(seed)
    w = gc.Generator(seed)
    x, y = gc.randn(4, 6, generator=w), gc.randn(4, 6, generator=w)

    def step(x: gc.Tensor, y: gc.Tensor) -> Any:
        a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
        first = gc.autograd.grad((f(a, b) ** 2).mean(), [a, b], create_graph=True, allow_unused=True)
        total = sum((g * g).sum() for g in first if g is not None)
        total.backward()
        return total.detach(), a.grad, b.grad

    compiled = gc.compile(step)
    gc.manual_seed(seed)
    expected = [*step(x, y), *step(y, x)]
    gc.manual_seed(seed)
    got = [*compiled(x, y), *compiled(y, x)]
    assert [bits(t) for t in got] == [bits(t) for t in expected]
