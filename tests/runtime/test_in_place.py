"""Changes in place reach the tensor that PyTorch would change, or say why they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import pytest
from graphc import nn


def _fill(p: gc.Tensor) -> None:
    p.data.fill_(3)


def _add(p: gc.Tensor) -> None:
    p.data.add_(2)


def _operator(p: gc.Tensor) -> None:
    p.data += 2


def _item(p: gc.Tensor) -> None:
    p.data[...] = 3


def _copy(p: gc.Tensor) -> None:
    p.data.copy_(gc.full((2,), 3.0))


def _assign(p: gc.Tensor) -> None:
    p.data = gc.full((2,), 3.0)


def _later(p: gc.Tensor) -> None:
    kept = p.data
    with gc.no_grad():
        p += 1
    kept.add_(1)


CHANGES: list[Callable[[gc.Tensor], None]] = [_fill, _add, _operator, _item, _copy, _assign, _later]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_data_writes_through(change: Callable[[gc.Tensor], None], compiled: bool) -> None:
    run = gc.compile(change) if compiled else change
    p = nn.Parameter(gc.ones(2))
    for _ in range(2):
        p.data = gc.ones(2)
        run(p)
        assert p.tolist() == [3.0, 3.0]
    assert p.requires_grad and p.is_leaf
    (p * p).sum().backward()
    assert p.grad is not None and p.grad.tolist() == [6.0, 6.0]


def test_data_from_outside_of_a_compiled_function() -> None:
    p = nn.Parameter(gc.ones(2))
    kept = p.data

    @gc.compile
    def shrink() -> None:
        kept.mul_(0.5)

    for expected in (0.5, 0.25, 0.125):
        shrink()
        assert p.tolist() == kept.tolist() == [expected] * 2


def test_random_values_reach_the_parameter() -> None:
    p = nn.Parameter(gc.zeros(64))
    p.data.normal_()
    assert p.std().item() > 0.5
    p.data.uniform_(2, 3)
    assert p.min().item() >= 2


def test_a_gradient_sees_the_value_of_its_forward_pass() -> None:
    p = nn.Parameter(gc.ones(2))
    y = (p * p).sum()
    p.data.fill_(5)
    y.backward()
    assert p.grad is not None and p.grad.tolist() == [2.0, 2.0]


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(1),
    "add_": lambda t: t.add_(1),
    "copy_": lambda t: t.copy_(1),
    "normal_": lambda t: t.normal_(),
    "uniform_": lambda t: t.uniform_(),
    "x[0][1] = 2": lambda t: t.__setitem__(1, 2),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_part_says_that_the_whole_would_not_change(name: str, compiled: bool) -> None:
    x = gc.ones((2, 3))

    def change() -> None:
        IN_PLACE[name](x[0])

    for _ in range(2):
        with pytest.raises(TypeError, match=r"x\[\.\.\.\].*would not change x; write"):
            (gc.compile(change) if compiled else change)()
    assert x.tolist() == [[1.0] * 3] * 2


def test_parts_can_be_assigned_and_copied() -> None:
    x = gc.ones((2, 3))
    x[0] += 1
    x[0, 1] = 5
    row = x[1]
    row += 1
    row.mul_(2)
    copy = x[1].clone().zero_()
    assert x.tolist() == [[2.0, 5.0, 2.0], [1.0] * 3]
    assert row.tolist() == [4.0] * 3 and copy.tolist() == [0.0] * 3
