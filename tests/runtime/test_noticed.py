"""Changes of the Python state that a compiled function must notice, in places that are not plain attributes."""

from __future__ import annotations

import array
import builtins
import collections
import contextvars
import ctypes
import enum
import functools
import itertools
import math
import os
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import replay

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
    return lambda x: x * sum(1 << i for i in range(4) if i in chosen), lambda: (
        chosen.remove(1),
        chosen.add(3),
    )


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


def _walk(items: Callable[[], Any]) -> Callable[[Any], Any]:
    """Its result depends on the items and their order."""

    def f(x: Any) -> Any:
        for v in items():
            x = x * v + 1
        return x

    return f


def _dict_order() -> Case:
    d = {"a": 2.0, "b": 3.0}
    return _walk(lambda: d.values()), lambda: d.update(a=d.pop("a"))


def _ordered_dict() -> Case:
    d = collections.OrderedDict(a=2.0, b=3.0)
    return _walk(lambda: d.values()), lambda: d.move_to_end("a")


def _order_of_attributes() -> Case:
    h = types.SimpleNamespace(a=2.0, b=3.0)
    return _walk(lambda: vars(h).values()), lambda: vars(h).update(a=vars(h).pop("a"))


def _order_of_tensors() -> Case:
    d = {gc.tensor([2.0]): 1, gc.tensor([3.0]): 2}
    return _walk(lambda: list(d)), lambda: d.update([(k, d.pop(k)) for k in list(d)[:1]])


def _order_of_children() -> Case:
    net = gc.nn.Sequential(gc.nn.Linear(4, 4), gc.nn.Linear(4, 4))
    return lambda x: net(x), lambda: net._modules.update([("0", net._modules.pop("0"))])


def _kind_of(items: Any, change: Callable[[Any], None]) -> Case:
    return lambda x: x * {int: 2, float: 3, bool: 5, tuple: 7}[type(next(iter(items)))], lambda: (
        items.clear(),
        change(items),
    )  # type: ignore[func-returns-value]


def _kind_of_key() -> Case:
    return _kind_of({1: 0}, lambda d: d.update({1.0: 0}))


def _kind_of_item() -> Case:
    return _kind_of({1, 2}, lambda s: s.update({True, 2}))


def _kind_inside_item() -> Case:
    found = {(1, 2)}
    return lambda x: x * type(next(iter(found))[0])(1.5), lambda: (found.clear(), found.add((1.0, 2)))  # type: ignore[func-returns-value, arg-type]


def _zero_key() -> Case:
    d = {0.0: 1}
    return lambda x: x * math.copysign(2.0, next(iter(d))), lambda: (d.clear(), d.update({-0.0: 1}))  # type: ignore[func-returns-value]


def _defaults() -> Case:
    def g(x: Any, k: float = 2.0) -> Any:
        return x * k

    return lambda x: g(x), lambda: setattr(g, "__defaults__", (5.0,))


def _keyword_defaults() -> Case:
    def g(x: Any, *, k: float = 2.0) -> Any:
        return x * k

    return lambda x: g(x), lambda: g.__kwdefaults__.update(k=5.0)


def _own_defaults() -> Case:
    def f(x: Any, k: float = 2.0) -> Any:
        return x * k

    return f, lambda: setattr(f, "__defaults__", (5.0,))


def _code() -> Case:
    def g(x: Any) -> Any:
        return x * 2

    return lambda x: g(x), lambda: setattr(g, "__code__", (lambda x: x * 3).__code__)


def _own_code() -> Case:
    def f(x: Any) -> Any:
        return x * 2

    return f, lambda: setattr(f, "__code__", (lambda x: x * 3).__code__)


def _attribute_of_a_function() -> Case:
    def g(x: Any) -> Any:
        return x * g.factor  # type: ignore[attr-defined]

    g.factor = 2.0  # type: ignore[attr-defined]
    return lambda x: g(x), lambda: setattr(g, "factor", 3.0)


def _in_namespace(text: str, **names: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    space: dict[str, Any] = names
    exec(text, space)
    return space["f"], space


def _shadowed_builtin() -> Case:
    f, space = _in_namespace("def f(x):\n    return x * len((1, 2))")
    return f, lambda: space.update(len=lambda t: 7)


def _deleted_global() -> Case:
    f, space = _in_namespace("def f(x):\n    return x * len((1, 2))", len=lambda t: 7)
    return f, lambda: space.pop("len")


def _replaced_builtin() -> Case:
    own = {**vars(builtins)}
    f, _ = _in_namespace("def f(x):\n    return x * len((1, 2))", __builtins__=own)
    return f, lambda: own.update(len=lambda t: 7)


def _global_by_name() -> Case:
    f, space = _in_namespace(
        "def f(x):\n    return x * eval('factor') * globals()['other']", factor=2.0, other=3.0
    )
    return f, lambda: space.update(other=5.0)


def _bytearray() -> Case:
    b = bytearray([2, 3])
    return lambda x: x * b[0], lambda: b.__setitem__(0, 9)


def _memoryview() -> Case:
    b = memoryview(bytearray([2, 3]))
    return lambda x: x * b[0], lambda: b.__setitem__(0, 9)


def _array_of_python() -> Case:
    a = array.array("d", [2.0])
    return lambda x: x * a[0], lambda: a.__setitem__(0, 9.0)


def _array_of_objects() -> Case:
    a = np.array([2.0, None], dtype=object)
    return lambda x: x * a[0], lambda: a.__setitem__(0, 9.0)


def _ctypes() -> Case:
    c = ctypes.c_double(2.0)
    return lambda x: x * c.value, lambda: setattr(c, "value", 9.0)


def _mapping_proxy() -> Case:
    d = {"k": 2.0}
    proxy = types.MappingProxyType(d)
    return lambda x: x * proxy["k"], lambda: d.update(k=3.0)


def _view_of_a_dict() -> Case:
    d = {"k": 2.0}
    values = d.values()
    return lambda x: x * sum(values), lambda: d.update(k=3.0)


def _bound_method_of_a_dict() -> Case:
    d = {"k": 2.0}
    get = d.get
    return lambda x: x * get("k"), lambda: d.update(k=3.0)


def _cached_function() -> Case:
    box = [2.0]

    @functools.lru_cache
    def factor() -> float:
        return box[0]

    return lambda x: x * factor(), lambda: (box.__setitem__(0, 5.0), factor.cache_clear())  # type: ignore[func-returns-value]


def _weak_reference() -> Case:
    h = Holder()
    r = weakref.ref(h)
    return lambda x: r().chosen(x), lambda: setattr(h, "flag", False)  # type: ignore[union-attr]


def _context_variable() -> Case:
    v = contextvars.ContextVar("v", default=2.0)
    return lambda x: x * v.get(), lambda: v.set(3.0)


def _thread_local() -> Case:
    t = threading.local()
    t.k = 2.0
    return lambda x: x * t.k, lambda: setattr(t, "k", 3.0)


def _environment() -> Case:
    os.environ["GRAPHC_TEST_FACTOR"] = "2"
    return lambda x: x * float(os.environ["GRAPHC_TEST_FACTOR"]), lambda: os.environ.update(
        GRAPHC_TEST_FACTOR="3"
    )


def _imported_inside() -> Case:
    module = sys.modules["noticed_module"] = types.ModuleType("noticed_module")
    module.__file__, module.factor = "noticed_module.py", 2.0  # type: ignore[attr-defined]

    def f(x: Any) -> Any:
        from noticed_module import factor  # type: ignore[import-not-found]

        return x * factor

    return f, lambda: setattr(module, "factor", 3.0)


def _module_in_a_dict() -> Case:
    module = types.ModuleType("noticed_module")
    module.__file__, module.factor = "noticed_module.py", 2.0  # type: ignore[attr-defined]
    d = {"m": module}
    return lambda x: x * d["m"].factor, lambda: setattr(module, "factor", 3.0)


def _classes() -> tuple[type, type]:
    return type("A", (), {"factor": 2.0, "__call__": lambda self: 2.0}), type(
        "B", (), {"factor": 3.0, "__call__": lambda self: 3.0}
    )


def _special_method() -> Case:
    a, b = _classes()
    h = a()
    return lambda x: x * h(), lambda: setattr(a, "__call__", b.__call__)  # type: ignore[operator]


def _constructor() -> Case:
    a = _classes()[0]

    def init(self: Any) -> None:
        self.factor = 5.0

    a.__init__ = lambda self: None  # type: ignore[misc]
    return lambda x: x * a().factor, lambda: setattr(a, "__init__", init)


def _class_of_an_object() -> Case:
    a, b = _classes()
    h = a()
    return lambda x: x * h.factor, lambda: setattr(h, "__class__", b)


def _bases_of_a_class() -> Case:
    a, b = _classes()
    c = type("C", (a,), {})
    h = c()
    return lambda x: x * h.factor, lambda: setattr(c, "__bases__", (b,))


def _attribute_before_that_of_the_base() -> Case:
    a, _ = _classes()
    c = type("C", (a,), {})
    h = c()
    return lambda x: x * h.factor, lambda: setattr(c, "factor", 3.0)


def _metaclass() -> Case:
    meta = type("Meta", (type,), {"factor": 2.0})
    c = meta("C", (), {})
    return lambda x: x * c.factor, lambda: setattr(meta, "factor", 3.0)


def _slot_that_was_empty() -> Case:
    h = type("Slots", (), {"__slots__": ("a", "b")})()
    h.a = 2.0
    return lambda x: x * getattr(h, "b", h.a), lambda: setattr(h, "b", 3.0)


def _private_slot() -> Case:
    class Private:
        __slots__ = ("__k",)

        def __init__(self, k: float) -> None:
            self.__k = k

        def read(self) -> float:
            return self.__k

    p = Private(2.0)
    return lambda x: x * p.read(), lambda: p.__init__(3.0)  # type: ignore[misc]


def _attribute_of_a_list() -> Case:
    h = type("List", (list,), {})([1])
    h.factor = 2.0
    return lambda x: x * h.factor, lambda: setattr(h, "factor", 3.0)


def _attribute_of_a_string() -> Case:
    h = type("Text", (str,), {})("a")
    h.factor = 2.0  # type: ignore[attr-defined]
    return lambda x: x * h.factor, lambda: setattr(h, "factor", 3.0)  # type: ignore[attr-defined]


def _method_of_an_enum() -> Case:
    class E(enum.Enum):
        A = 1

        def factor(self) -> int:
            return CONFIG["factor"]

    return lambda x: x * E.A.factor(), lambda: CONFIG.update(factor=7)


CASES = tuple(
    v
    for k, v in list(globals().items())
    if k[0] == "_" and getattr(v, "__annotations__", None) == {"return": "Case"}
)


@pytest.mark.parametrize("most_checks", [replay.MOST_CHECKS, 0], ids=["lines", "loops"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__[1:])
def test_change_is_noticed(
    case: Callable[[], Case], most_checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST_CHECKS", most_checks)
    monkeypatch.setitem(CONFIG, "factor", 2)
    monkeypatch.setitem(STRICT, "factor", 2)
    monkeypatch.setattr(Holder, "doubled", Holder.doubled)
    monkeypatch.setenv("GRAPHC_TEST_FACTOR", "2")
    f, change = case()
    x = gc.tensor(np.arange(4, dtype=np.float32))
    compiled = gc.compile(f)
    for _ in range(3):
        assert compiled(x).tolist() == f(x).tolist()
    assert len(compiled.compile_reports()) == 1
    before = f(x).tolist()
    change()
    expected = f(x).tolist()
    assert expected != before
    for _ in range(3):
        assert compiled(x).tolist() == expected


def _counted() -> Iterator[int]:
    n = 0
    while True:
        n += 1
        yield n


class _Counter:
    def __init__(self) -> None:
        self.n = 0

    def __next__(self) -> int:
        self.n += 1
        return self.n


USED_UP: dict[str, Callable[[], Any]] = {
    "list_iterator": lambda: iter([1, 2, 3, 4, 5]),
    "range_iterator": lambda: iter(range(1, 9)),
    "enumerate": lambda: map(sum, enumerate([1, 2, 3, 4, 5])),
    "dict_valueiterator": lambda: iter({1: 1, 2: 2, 3: 3, 4: 4}.values()),
    "count": lambda: itertools.count(1),
    "generator": _counted,
    "map": lambda: map(float, _counted()),
    "_Counter": _Counter,
    "Random": lambda: (r.random() for r in itertools.repeat(random.Random(3))),
}


@pytest.mark.parametrize("name", USED_UP)
def test_what_a_call_uses_up_is_used_up_by_every_call(name: str) -> None:
    def function() -> Callable[[Any], Any]:
        found = USED_UP[name]()
        return lambda x: x * next(found)

    x = gc.tensor([1.0])
    compiled, f = gc.compile(function()), function()
    assert [compiled(x).item() for _ in range(4)] == [f(x).item() for _ in range(4)]


def test_a_function_that_uses_up_an_iterator_runs_eagerly_and_says_so() -> None:
    found, generator = itertools.count(1), random.Random(1)
    compiled = gc.compile(lambda x: x * next(found))
    text = "the function takes what a count gives, which lies outside of it; pass that as an argument"
    with pytest.warns(UserWarning, match=text):
        for _ in range(12):
            compiled(gc.tensor([1.0]))
    drawing = gc.compile(lambda x: x * generator.random())
    with pytest.warns(
        UserWarning, match="draws random numbers from a generator of Python's module random, not from graphc"
    ):
        for _ in range(12):
            drawing(gc.tensor([1.0]))


@pytest.mark.parametrize("name", USED_UP)
def test_an_iterator_beside_the_function_is_of_no_matter(name: str) -> None:
    holder = types.SimpleNamespace(batches=USED_UP[name](), factor=2.0)
    compiled = gc.compile(lambda x: x * holder.factor)
    for _ in range(4):
        next(holder.batches)
        assert compiled(gc.tensor([1.0])).item() == 2.0
    assert len(compiled.compile_reports()) == 1


@pytest.mark.parametrize(
    "values",
    [
        ({1: 0}, {1.0: 0}, {True: 0}),
        (0j, complex(-0.0, 0.0), complex(0.0, -0.0)),
        (frozenset({1}), frozenset({1.0}), frozenset({True})),
        (slice(1, 2), slice(True, 2), slice(1.0, 2)),
        (range(0), range(5, 5), range(3, 3)),
        (frozenset({(0.0, 1)}), frozenset({(-0.0, 1)}), frozenset({(0, 1)})),
    ],
    ids=lambda v: type(v[0]).__name__,
)
def test_arguments_that_are_equal_and_not_the_same(values: tuple[Any, ...]) -> None:
    compiled = gc.compile(lambda x, v: (x * 2, repr(v)))
    x = gc.tensor([1.0])
    for _ in range(2):
        for v in values:
            want = repr(v)
            if isinstance(v, dict):
                # Numbers in arguments are inputs: tensors inside.
                assert compiled(x, dict.fromkeys(v, "a"))[1] == repr(dict.fromkeys(v, "a"))
            else:
                assert compiled(x, v)[1] == want


def test_a_result_that_was_not_recorded_has_its_value() -> None:
    box: list[int] = []

    def f(x: Any) -> Any:
        box.append(1)
        return x * len(box)

    assert repr(gc.compile(f)(gc.tensor([1.0, 2.0]))) == "tensor([1., 2.])"


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
