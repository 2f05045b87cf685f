"""A compiled call that fails leaves everything as it was before the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn

RNG = np.random.default_rng(0)
X = [gc.asarray(RNG.standard_normal((6, 4)).astype(np.float32)) for _ in range(6)]
Y = [gc.asarray(RNG.integers(0, 3, 6)) for _ in range(6)]
OUT_OF_RANGE = gc.asarray([0, 1, 2, 7, 0, 1])


def _training() -> tuple[nn.Module, Any, Callable[..., gc.Tensor]]:
    gc.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = gc.optim.Adam(net.parameters(), lr=0.1)

    def step(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return net, optimizer, gc.compile(step)


def _bits(net: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_failing_step_changes_nothing(failing: int) -> None:
    net, _, step = _training()
    for i in range(failing):
        step(X[i], Y[i])
    before = _bits(net)
    with pytest.raises(IndexError, match=r"check_index at .*: index 7 is out of range for a dimension of size 3") as caught:
        step(X[failing], OUT_OF_RANGE)
    assert "test_compile_failures.py" in str(caught.value)
    assert _bits(net) == before
    for i in range(failing, 6):
        step(X[i], Y[i])

    reference, _, again = _training()
    for i in range(6):
        again(X[i], Y[i])
    assert _bits(net) == _bits(reference)


def test_a_failing_first_call_leaves_no_trace_in_python_state() -> None:
    net = nn.Linear(4, 3)
    net.seen = 0.5
    net.last = gc.zeros(())
    log: list[gc.Tensor] = [gc.ones(())]
    table: dict[str, gc.Tensor] = {}

    @gc.compile
    def step(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        net.seen = net.seen * 0.5
        net.last = loss.detach()
        log.append(net.last)
        table["last"] = net.last
        return loss

    last = net.last
    with pytest.raises(IndexError, match="index 7"):
        step(X[0], OUT_OF_RANGE)
    assert net.seen == 0.5 and net.last is last and len(log) == 1 and table == {}
    assert net.weight.grad is None and net.weight.numpy().shape == (3, 4)
    step(X[0], Y[0])
    assert net.seen == 0.25 and len(log) == 2 and table["last"].item() == net.last.item()


def test_a_failure_where_python_looks_at_a_value_changes_nothing() -> None:
    net, optimizer, _ = _training()

    @gc.compile
    def step(x: gc.Tensor, y: gc.Tensor) -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    before = _bits(net)
    with pytest.raises(IndexError, match="index 7"):
        step(X[0], OUT_OF_RANGE)
    assert _bits(net) == before
    assert np.isfinite(step(X[0], Y[0]))
