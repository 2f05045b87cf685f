"""The short paths of eager calls give what the long ones give: item, reshape, views, backward of a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import autograd
from graphc.runtime.dispatch import apply, execute, lookup
from graphc.runtime.ops_layout import BROADCAST, FLIP, PERMUTE, RESHAPE, SLICE

VALUES = {
    "bool": [True, False],
    "float16": [1.5, -0.0, float("inf")],
    "bfloat16": [1.5, -3.0],
    "float32": [0.1, -0.0, 3e38, float("-inf")],
    "float64": [0.1, 1e308, -0.0],
    **{f"int{b}": [-(2 ** (b - 1)), 2 ** (b - 1) - 1] for b in (8, 16, 32, 64)},
    **{f"uint{b}": [0, 2**b - 1] for b in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("dtype", VALUES)
def test_item_is_the_number_that_numpy_gives(dtype: str) -> None:
    for value in VALUES[dtype]:
        t = gc.asarray(value, dtype=dtype)
        want = t.numpy().item()
        for x in (t, t.reshape(1, 1), gc.stack([t, t])[1], gc.stack([t, t, t])[::2][1]):
            got = x.item()
            assert type(got) is type(want) and got == want and str(got) == str(want)
    assert np.isnan(gc.asarray(np.nan, dtype="float32").item())


def test_reshape_takes_integers_only_also_where_it_has_seen_equal_ones() -> None:
    x = gc.arange(4)
    assert x.reshape(2, 2).shape == x.reshape((2, 2)).shape == x.reshape(2, -1).shape == (2, 2)
    assert x.reshape(np.int64(2), 2).shape == (2, 2) and x.reshape(shape=(4, 1)).shape == (4, 1)
    with pytest.raises(TypeError, match="a shape consists of integers, not 2.0"):
        x.reshape(2.0, 2)
    with pytest.raises(TypeError):
        x.reshape()
    with pytest.raises(ValueError, match="the products must be equal"):
        x.reshape(3, 2)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        (RESHAPE, ((20, 6),)),
        (PERMUTE, ((2, 0, 1, 3),)),
        (FLIP, ((1, 3),)),
        (BROADCAST, ((7, 2, 3, 4, 5),)),
        (SLICE, (((1, 1, 1), (0, 2, 2), (2, 2, 1), (4, 1, 1)), (1, 2, 2, 1))),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_views_lie_where_they_are_worked_out_to_lie(op: Any, attrs: Any) -> None:
    whole = gc.arange(240).reshape(2, 2, 3, 4, 5)
    rows = [whole[0], whole[1]]
    # A reshape of these is a copy.
    strided = [whole[0].permute(0, 1, 2, 3), gc.arange(120).reshape(5, 4, 3, 2).permute(3, 2, 1, 0)]
    for x in rows if op is RESHAPE else rows + strided:
        want = execute(lookup(op, (x,), attrs), (x,))[0]
        for _ in range(2):
            got = apply(op, (x,), attrs)
            assert got._address == want._address and got._strides == want._strides and got.tolist() == want.tolist()


def diamond(w: gc.Tensor, v: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
    a = gc.exp(w * c)
    b = a * a + a * v
    return (b + gc.tanh(b) * w).sum()


def unused(w: gc.Tensor, v: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
    gc.exp(w * v)
    return (w * w * c).mean()


def twins(w: gc.Tensor, v: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
    """Two nodes of one kind over the same operands are two nodes."""
    return (gc.sin(w * v) + gc.sin(w * v) * 2).sum()


def parts(w: gc.Tensor, v: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
    x, y = gc.chunk(gc.concat([w, v]) * 2, 2)
    return gc.nn.functional.softmax(x, -1)[0] * y.sum() + gc.nn.functional.cross_entropy(x[None], gc.asarray([1]))


def interrupted(w: gc.Tensor, v: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
    return (w.detach() * v + (w * c).detach() * 3).sum()


FUNCTIONS: list[Callable[..., gc.Tensor]] = [diamond, unused, twins, parts, interrupted]


def leaves() -> tuple[gc.Tensor, ...]:
    rng = np.random.default_rng(0)
    w, v, c = (gc.asarray(rng.standard_normal(4).astype(np.float32)) for _ in range(3))
    return w.requires_grad_(), v.requires_grad_(), c


def gradients(f: Callable[..., gc.Tensor], calls: int, keep: bool = False) -> list[Any]:
    w, v, c = leaves()
    for _ in range(calls):
        loss = f(w, v, c)
        loss.backward(retain_graph=keep)
        if keep:
            loss.backward()
    return [None if t.grad is None else t.grad.numpy().tobytes() for t in (w, v, c)]


@pytest.mark.parametrize("keep", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_backward_of_a_scalar(f: Callable[..., gc.Tensor], keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [gradients(f, n, keep) for n in (1, 3)]
    monkeypatch.setattr(autograd, "quick_backward", lambda x: None)
    assert short == [gradients(f, n, keep) for n in (1, 3)]


def test_graphs_of_the_same_operations_in_another_order_are_different() -> None:
    w, v, _ = leaves()
    for f in (lambda: (w * w - v).sum(), lambda: (v * v - w).sum(), lambda: (w * v - v).sum(), lambda: (w * v - w).sum()):
        for _ in range(2):
            w.grad = v.grad = None
            f().backward()
            with_seed = gc.autograd.grad(f(), [w, v], grad_outputs=[gc.asarray(1.0)])
            assert w.grad.tolist() == with_seed[0].tolist() and v.grad.tolist() == with_seed[1].tolist()


def test_a_second_backward_is_refused_by_name() -> None:
    w, v, _ = leaves()
    loss = (w * v).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time: its saved values were freed by the first backward"):
        loss.backward()


def test_gradients_of_two_leaves_are_two_tensors() -> None:
    w, v, _ = leaves()
    (w + v).sum().backward()
    w.grad.add_(1.0)
    assert v.grad.tolist() == [1.0] * 4 and w.grad.tolist() == [2.0] * 4
