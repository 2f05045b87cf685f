"""Changes of the Python state that a compiled function must notice, in places that are not plain attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest

CONFIG = {"factor": 2}


class Holder:
    """Reads what lies outside in every way that a class offers."""

    def __init__(self) -> None:
        self.flag = True

    @property
    def factor(self) -> int:
        return CONFIG["factor"]

    @staticmethod
    def static(x: Any) -> Any:
        return x * CONFIG["factor"]

    @classmethod
    def of_class(cls, x: Any) -> Any:
        return x * CONFIG["factor"]

    def chosen(self, x: Any) -> Any:
        return x * 2 if self.flag else x * 3

    def doubled(self, x: Any) -> Any:
        return x * 2


STRICT = {"factor": 2}


class Strict:
    """Its `__getattr__` does not raise what Python expects."""

    def __getattr__(self, name: str) -> Any:
        return STRICT[name]


Case = tuple[Callable[..., Any], Callable[[], Any]]  # a function, and what changes its result


def _set() -> Case:
    chosen = {0, 1}
    return lambda x: x * sum(1 << i for i in range(4) if i in chosen), lambda: (chosen.remove(1), chosen.add(3))


def _array() -> Case:
    factors = np.array([1.0, 2.0])
    return lambda x: x * float(factors[1]), lambda: factors.__setitem__(1, 5.0)


def _property() -> Case:
    h = Holder()
    return lambda x: x * h.factor, lambda: CONFIG.update(factor=7)


def _static() -> Case:
    h = Holder()
    return lambda x: h.static(x), lambda: CONFIG.update(factor=7)


def _of_class() -> Case:
    h = Holder()
    return lambda x: h.of_class(x), lambda: CONFIG.update(factor=7)


def _method() -> Case:
    h = Holder()
    return lambda x: h.doubled(x), lambda: setattr(Holder, "doubled", lambda self, x: x * 5)


def _partial() -> Case:
    h = Holder()
    return functools.partial(Holder.chosen, h), lambda: setattr(h, "flag", False)


def _partial_inside() -> Case:
    h = Holder()
    g = functools.partial(Holder.chosen, h)
    return lambda x: g(x) + 1, lambda: setattr(h, "flag", False)


def _compiled_inside() -> Case:
    factor = [2.0]
    g = gc.compile(lambda x: x * factor[0])
    return lambda x: g(x) + 1, lambda: factor.__setitem__(0, 9.0)


def _strict() -> Case:
    s = Strict()
    return lambda x: x * s.factor, lambda: STRICT.update(factor=5)


CASES = (_set, _array, _property, _static, _of_class, _method, _partial, _partial_inside, _compiled_inside, _strict)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__[1:])
def test_change_is_noticed(case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG, "factor", 2)
    monkeypatch.setattr(Holder, "doubled", Holder.doubled)
    f, change = case()
    x = gc.tensor(np.arange(4, dtype=np.float32))
    compiled = gc.compile(f)
    for _ in range(3):
        assert compiled(x).tolist() == f(x).tolist()
    before = f(x).tolist()
    change()
    expected = f(x).tolist()
    assert expected != before
    for _ in range(3):
        assert compiled(x).tolist() == expected


def test_a_failed_call_restores_sets_and_arrays() -> None:
    seen: set[int] = set()
    counts = np.zeros(3)

    def f(x: Any, i: Any) -> Any:
        seen.add(1)
        counts[1] += 1
        return x[i]

    x = gc.tensor(np.arange(4, dtype=np.float32))
    with pytest.raises(IndexError):
        gc.compile(f)(x, gc.tensor(np.array([9])))
    assert seen == set()
    assert counts.tolist() == [0, 0, 0]


def test_the_class_of_a_tensor_belongs_to_the_signature() -> None:
    def f(x: Any) -> Any:
        return x * 2 if isinstance(x, gc.nn.Parameter) else x * 3

    plain = gc.tensor([1.0], requires_grad=True)
    given = gc.nn.Parameter(gc.tensor([1.0]))
    compiled = gc.compile(f)
    assert [compiled(x).item() for x in (given, plain, given, plain)] == [2.0, 3.0, 2.0, 3.0]


def test_what_a_call_that_raised_left_behind() -> None:
    """A tensor without a value yet is an input of the next call, and has that of the time when it was made."""
    holder, y = Holder(), gc.tensor([1.0])
    holder.made = gc.tensor([0.0])  # type: ignore[attr-defined]

    def f(fails: bool) -> Any:
        before = holder.made  # type: ignore[attr-defined]
        holder.made = y * 2  # type: ignore[attr-defined]
        if fails:
            raise KeyError
        return before + 0

    compiled = gc.compile(f)
    for fails in (False, True, True, False, True):
        expected = 2 * y.item()  # what the last call made, unless this is the first
        y.copy_(y + 1)
        if fails:
            with pytest.raises(KeyError):
                compiled(fails)
        elif expected > 2:
            assert compiled(fails).item() == expected
        else:
            compiled(fails)
    y.copy_(y * 100)
    assert holder.made.item() == 12.0  # type: ignore[attr-defined]


weight: Any = None


def test_a_global_with_the_name_of_an_attribute_is_of_no_matter() -> None:
    global weight
    layer = gc.nn.Linear(2, 2)
    compiled = gc.compile(lambda x: x @ layer.weight)
    x = gc.ones((1, 2))
    for _ in range(4):
        weight = compiled(x)
    assert len(compiled.compile_reports()) == 1
