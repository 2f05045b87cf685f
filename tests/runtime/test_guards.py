"""compile notices every change of the Python state that a function reads: its results are always those of the function."""

from __future__ import annotations

import collections
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest

X = gc.asarray([1.0, 2.0, 3.0])
WHOLE = gc.asarray([1, 2, 3])
factor: Any = 1


class Settings:
    factor: Any = 1.0


class Base:
    factor: Any = 1.0


class Instance(Base):
    def scaled(self, x: gc.Tensor) -> gc.Tensor:
        return x * self.factor


class Slotted:
    __slots__ = ("factor", "unset")

    def __init__(self) -> None:
        self.factor: Any = 1.0


slotted, instance = Slotted(), Instance()
queue: collections.deque[Any] = collections.deque([1.0])
other = types.ModuleType("other_module")
other.__file__ = "other_module.py"
exec("FACTOR = 1.0\ndef scaled(x):\n    return x * FACTOR\nclass Inner:\n    factor = 1.0\n", vars(other))
other.dropout = gc.nn.Dropout(0.5)  # type: ignore[attr-defined]
sys.modules["other_module"] = other


def _set(owner: Any, name: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        if isinstance(owner, (dict, collections.deque)):
            owner[name] = value
        else:
            setattr(owner, name, value)

    return change


STATES: dict[str, tuple[Callable[[gc.Tensor], gc.Tensor], Callable[[Any], None]]] = {
    "global": (lambda x: x * factor, _set(globals(), "factor")),
    "class": (lambda x: x * Settings.factor, _set(Settings, "factor")),
    "base class of an object": (lambda x: instance.scaled(x), _set(Base, "factor")),
    "slot": (lambda x: x * slotted.factor, _set(slotted, "factor")),
    "deque": (lambda x: x * queue[0], _set(queue, 0)),
    "number of another module": (lambda x: x * other.FACTOR, _set(other, "FACTOR")),  # type: ignore[attr-defined]
    "function of another module": (lambda x: other.scaled(x), _set(other, "FACTOR")),  # type: ignore[attr-defined]
    "class of another module": (lambda x: x * other.Inner.factor, _set(other.Inner, "factor")),  # type: ignore[attr-defined]
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("values", [(1.0, 2.0), (0.0, -0.0), (2, 2.0), (1, True), (1.0, 1)], ids=str)
def test_a_change_is_noticed(name: str, values: tuple[Any, Any]) -> None:
    f, change = STATES[name]
    compiled = gc.compile(f)
    for value in (values[0], values[0], values[1], values[1], values[0]):
        change(value)
        got, want = compiled(WHOLE), f(WHOLE)
        assert got.dtype is want.dtype and got.numpy().tobytes() == want.numpy().tobytes()


def test_a_module_of_another_module_switched_to_eval() -> None:
    f = gc.compile(lambda x: other.dropout(x))  # type: ignore[attr-defined]
    gc.manual_seed(0)
    other.dropout.train()  # type: ignore[attr-defined]
    f(X), f(X)
    other.dropout.eval()  # type: ignore[attr-defined]
    assert f(X).tolist() == X.tolist()


_generator = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("draw", "seed"),
    [
        (lambda: random.random(), random.seed),
        (lambda: np.random.rand(), np.random.seed),
        (lambda: float(_generator.random()), lambda s: _generator.bit_generator.__setstate__(np.random.PCG64(s).state)),
    ],
    ids=["random", "numpy.random", "generator"],
)
def test_random_numbers_of_python_are_drawn_in_every_call(draw: Callable[[], float], seed: Callable[[int], None]) -> None:
    def f(x: gc.Tensor) -> gc.Tensor:
        return x * draw()

    compiled = gc.compile(f)
    seed(0)
    got = [compiled(X).tolist() for _ in range(4)]
    seed(0)
    assert got == [f(X).tolist() for _ in range(4)] and got[0] != got[1]


def test_a_function_that_draws_from_python_runs_eagerly_and_says_so() -> None:
    compiled = gc.compile(lambda x: x * random.random())
    with pytest.warns(UserWarning, match="draws random numbers from Python's module random, not from graphc"):
        for _ in range(12):
            compiled(X)


def test_hooks_of_parameters_are_called() -> None:
    w = gc.ones((3,), requires_grad=True)
    scale = 2.0

    def f(x: gc.Tensor) -> gc.Tensor:
        w.grad = None
        (w * x).sum().backward()
        assert w.grad is not None
        return w.grad

    compiled = gc.compile(f)
    assert [compiled(X).tolist() for _ in range(2)] == [[1.0, 2.0, 3.0]] * 2
    first = w.register_hook(lambda g: g * scale)
    assert [compiled(X).tolist() for _ in range(2)] == [[2.0, 4.0, 6.0]] * 2
    scale = 10.0
    assert compiled(X).tolist() == [10.0, 20.0, 30.0]
    second = w.register_hook(lambda g: g + 1)
    assert [compiled(X).tolist() for _ in range(2)] == [[11.0, 21.0, 31.0]] * 2
    first.remove()
    assert compiled(X).tolist() == [2.0, 3.0, 4.0]
    second.remove()
    assert compiled(X).tolist() == [1.0, 2.0, 3.0]
