"""Recordings replayed: with lines of their own and in loops, what they must notice, decisions known before the program runs."""

from __future__ import annotations

import collections
import inspect
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import compiled, replay
from graphc.runtime.compiled import SIGNATURES, Compiled

from tests.runtime import test_compile
from tests.runtime.test_compile import recordings, same

PLAIN = [
    name
    for name, f in vars(test_compile).items()
    if name.startswith("test_") and not inspect.signature(f).parameters and not hasattr(f, "pytestmark")
]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(params=["lines", "loops"])
def either_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tensors and checks have a line each, many are looped over."""
    if request.param == "loops":
        monkeypatch.setattr(replay, "MOST_TENSORS", 0)
        monkeypatch.setattr(replay, "MOST_CHECKS", 0)


@pytest.mark.parametrize("name", PLAIN)
def test_loops_do_what_lines_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_TENSORS", 0)
    monkeypatch.setattr(replay, "MOST_CHECKS", 0)
    getattr(test_compile, name)()


def misses(f: Compiled) -> int:
    return sum(len(family.recordings) for family in f._families.values())


# Arguments

Pair = collections.namedtuple("Pair", "a b")


class Lookalike:
    """Passes every question on to a tensor, and is none."""

    def __init__(self, t: gc.Tensor) -> None:
        self.t = t

    def __getattr__(self, name: str) -> Any:
        return getattr(self.t, name)


ONE, TWO = gc.asarray([1.0, 2.0]), gc.asarray([3.0, 4.0])
ARGUMENTS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "count": [((ONE,), {}), ((ONE, TWO), {}), ((ONE, TWO, ONE), {}), ((), {})],
    "the same tensor twice": [((ONE, TWO), {}), ((ONE, ONE), {}), ((TWO, ONE), {})],
    "names": [((ONE,), {"k": TWO}), ((ONE,), {"m": TWO}), ((ONE,), {}), ((ONE,), {"m": TWO, "k": ONE})],
    "nested": [(([ONE, (TWO, {"n": ONE})],), {}), (([ONE, (TWO, {"n": 2.0})],), {}), (([ONE, [TWO, {"n": ONE}]],), {})],
    "named tuples": [((Pair(ONE, TWO),), {}), (((ONE, TWO),), {}), ((Pair(ONE, (TWO, ONE)),), {})],
    "empty": [(((),), {}), (([],), {}), (({},), {}), ((ONE, ()), {})],
    "numbers": [((ONE, 1), {}), ((ONE, 1.0), {}), ((ONE, True), {}), ((ONE, None), {}), ((ONE, "1"), {}), ((ONE, math.nan), {})],
    "values": [((ONE, slice(1)), {}), ((ONE, slice(2)), {}), ((ONE, range(2)), {}), ((ONE, b"x"), {}), ((ONE, 1j), {})],
    "parameters": [((gc.nn.Parameter(ONE),), {}), ((ONE,), {}), ((gc.nn.Parameter(ONE, requires_grad=False),), {})],
    "views": [((gc.stack([ONE, TWO]).T[0],), {}), ((ONE,), {})],
    "arrays": [((np.ones(2, np.float32),), {}), ((ONE,), {}), ((np.float32(3),), {})],
    "things that are no tensors": [((ONE,), {}), ((Lookalike(ONE),), {})],
}


def described(*args: Any, **kwargs: Any) -> Any:
    """What a function can tell of its arguments, and something computed from the tensors among them."""
    leaves: list[Any] = []

    def walk(x: Any) -> str:
        if isinstance(x, (tuple, list)):
            return f"{type(x).__name__}({', '.join(map(walk, x))})"
        if isinstance(x, dict):
            return f"dict({', '.join(f'{k}={walk(v)}' for k, v in x.items())})"
        if isinstance(x, gc.Tensor):
            leaves.append(x)
            return "tensor"
        return type(x).__name__

    text = walk(args) + walk(kwargs)
    doubled = [[x * 2, x.requires_grad] for x in leaves if x.ndim]
    return text, doubled, [[a is b for b in leaves] for a in leaves]


@pytest.mark.usefixtures("either_form")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_recording_serves_its_own_arguments_only(name: str) -> None:
    f = gc.compile(described)
    cases = ARGUMENTS[name]
    for order in (cases, cases, cases[::-1]):
        for args, kwargs in order:
            for _ in range(2):
                got = f(*args, **kwargs)
            # A number is a tensor inside, an array too.
            if name in ("numbers", "arrays", "nested"):
                assert len(got) == 3
            else:
                same(got, described(*args, **kwargs))
    count = misses(f)
    for args, kwargs in cases:
        f(*args, **kwargs)
    assert misses(f) == count


def test_signatures_are_bounded() -> None:
    f = gc.compile(lambda x, name: x + len(name))
    for i in range(SIGNATURES + 20):
        f(ONE, f"{i}")
    assert len(f._families) == SIGNATURES
    same(f(ONE, "0"), ONE + 1)


def test_calls_that_alternate_are_served_by_what_served_before() -> None:
    f = gc.compile(lambda x: x * 2)
    for _ in range(3):
        for x in (ONE, gc.ones(3), gc.ones((2, 2))):
            same(f(x), x * 2)
    assert recordings(f) == [1, 1, 1] and len(f._recent) == 3


# Tensors from outside


def weights() -> gc.Tensor:
    return gc.asarray(np.arange(6, dtype=np.float32).reshape(2, 3)).requires_grad_()


CHANGES: dict[str, Callable[[gc.Tensor], Any]] = {
    "nothing": lambda w: None,
    "another value": lambda w: setattr(w, "data", gc.full((2, 3), 7.0)),
    "in place": lambda w: w.data.add_(1.0),
    "another type": lambda w: setattr(w, "data", gc.full((2, 3), 0.5, dtype=gc.float64)),
    "another shape": lambda w: setattr(w, "data", gc.full((5, 3), 0.5)),
    "strided": lambda w: setattr(w, "data", gc.full((3, 2), 2.0).T),
    "frozen": lambda w: w.requires_grad_(False),
    "memory of NumPy": lambda w: setattr(w, "data", gc.from_numpy(np.full((2, 3), 4.0, np.float32))),
}


@pytest.mark.usefixtures("either_form")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_tensor_from_outside_is_noticed(change: str) -> None:
    w, plain = weights(), weights()
    f = gc.compile(lambda: (w * 2, w.shape))
    step = gc.compile(lambda: update(w))

    def update(t: gc.Tensor) -> gc.Tensor:
        with gc.no_grad():
            t.mul_(0.5)
        return t.sum()

    for i in range(4):
        if i == 2:
            CHANGES[change](w)
            CHANGES[change](plain)
        for _ in range(2):
            got, shape = f()
            same((got, shape), (plain * 2, plain.shape))
            assert got.requires_grad == plain.requires_grad
        same(step(), update(plain))
    same(w.detach(), plain.detach())


@pytest.mark.usefixtures("either_form")
def test_two_recordings_that_write_the_same_tensors() -> None:
    w, held = gc.zeros(3), []
    add, double = gc.compile(lambda: w.add_(1)), gc.compile(lambda: w.mul_(2))
    expected = 0.0
    for i in range(12):
        if i % 3:
            add()
            expected += 1
        else:
            double()
            expected *= 2
        if i == 7:
            held.append((w.detach(), expected))
        assert w.tolist() == [expected] * 3
    assert all(t.tolist() == [v] * 3 for t, v in held)


def test_hooks_that_come_and_go_are_noticed_without_a_look_at_all_tensors() -> None:
    w = gc.ones(2, requires_grad=True)

    @gc.compile
    def f() -> Any:
        w.grad = None
        (w * 3).sum().backward()
        return w.grad

    assert [f().tolist() for _ in range(3)] == [[3.0, 3.0]] * 3
    handle = w.register_hook(lambda g: g * 10)
    assert [f().tolist() for _ in range(2)] == [[30.0, 30.0]] * 2
    handle.remove()
    assert f().tolist() == [3.0, 3.0]


def test_threads_replay_one_recording() -> None:
    w = gc.asarray(np.linspace(0, 1, 1000, dtype=np.float32))
    f = gc.compile(lambda x, s: {"y": gc.exp(x * w) * s, "n": s * 2})
    x = gc.full((1000,), 0.5)
    expected = [f(x, float(i)) for i in range(4)]
    wrong: list[Any] = []

    def work(i: int) -> None:
        for _ in range(50):
            got = f(x, float(i))
            if got["n"] != expected[i]["n"] or got["y"].numpy().tobytes() != expected[i]["y"].numpy().tobytes():
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and recordings(f) == [1]


def test_gradients_that_are_set_to_none_first_may_be_there_or_not() -> None:
    """A model that leaves layers out: what the others left in `.grad` makes no new recording."""
    layers = [gc.nn.Linear(3, 3) for _ in range(3)]
    optimizer = gc.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)

    @gc.compile
    def step(x: gc.Tensor, keep: tuple[bool, ...]) -> gc.Tensor:
        for layer, kept in zip(layers, keep):
            x = layer(x) if kept else x
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()
        return x.detach()

    for keep in [(True, False, True), (False, True, True), (True, True, False)] * 3:
        step(gc.ones((2, 3)), keep)
        assert [layer.weight.grad is not None for layer in layers] == list(keep)
    assert recordings(step) == [1, 1, 1]


# Decisions


@pytest.mark.usefixtures("either_form")
def test_decisions_by_numbers_are_known_before_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    total, count = gc.zeros(1000), gc.zeros((), dtype=gc.int64)

    def f(x: gc.Tensor, n: int, rate: float) -> Any:
        total.add_(x)
        count.add_(1)
        if n % 2 == 0 and rate * 2 > 1.0:
            total.mul_(rate)
        for i in range(n):
            total.add_(i)
        if count % 3 == 0:
            total.sub_(1)
        return total * 1

    c = gc.compile(f)
    x = gc.ones(1000)
    cases = [(2, 0.75), (1, 0.75), (2, 0.25), (0, 0.9)] * 6
    want = []
    for n, rate in cases:
        want.append(f(x, n, rate))
    total, count = gc.zeros(1000), gc.zeros((), dtype=gc.int64)
    seen: list[Any] = []
    for k, (n, rate) in enumerate(cases):
        if k == 14:
            # From here on every recording there is has been made.
            address = total.data_ptr()
            for family in c._families.values():
                for r in family.recordings:
                    assert not r.late
                    program = r.program()
                    run = program.run
                    monkeypatch.setattr(program, "direct", None, raising=False)
                    monkeypatch.setattr(program, "run", lambda *a, run=run: (seen.append(run), run(*a)))
                    r.replay = r._first_replay
            c._last, c._recent = compiled._nobody, []
        same(c(x, n, rate), want[k])
    # One program a call, and the sum is updated where it is.
    assert len(seen) == len(cases) - 14 and total.data_ptr() == address


def test_decisions_by_both_kinds_of_values() -> None:
    def f(x: gc.Tensor, n: int) -> gc.Tensor:
        y = x * n
        if n > 1:
            y = y + 1
        if y.sum() > 10:
            y = -y
        return y if n != 3 else y * 2

    c = gc.compile(f)
    for _ in range(3):
        for v, n in [(1.0, 1), (1.0, 2), (9.0, 1), (9.0, 2), (1.0, 3), (9.0, 3)]:
            same(c(gc.full((2,), v), n), f(gc.full((2,), v), n))
    assert recordings(c) == [6]


# The Python state is looked through again only where it may be another

later: Any
members = {1.0}


class Options:
    pass


def _options(x: gc.Tensor, name: str) -> gc.Tensor:
    return x * getattr(Options, "factor", 1.0)


def _members(x: gc.Tensor, name: str) -> gc.Tensor:
    return x * len(members)


def _later(x: gc.Tensor, name: str) -> gc.Tensor:
    return x * later["factor"] if name == "late" else x


def test_a_name_that_appears_after_the_first_recording_is_guarded() -> None:
    global later
    f = gc.compile(_later)
    f(ONE, "early"), f(ONE, "early")
    later = {"factor": 2.0}
    try:
        same(f(ONE, "late"), ONE * 2.0)
        same(f(ONE, "late"), ONE * 2.0)
        later["factor"] = 3.0
        same(f(ONE, "late"), ONE * 3.0)
    finally:
        del later


def test_an_attribute_of_a_class_that_appears_is_guarded() -> None:
    f = gc.compile(_options)
    f(ONE, "a"), f(ONE, "a")
    try:
        Options.factor = 2.0  # type: ignore[attr-defined]
        same(f(ONE, "b"), ONE * 2.0)
        Options.factor = 3.0  # type: ignore[attr-defined]
        same(f(ONE, "b"), ONE * 3.0)
    finally:
        del Options.factor  # type: ignore[attr-defined]


def test_a_set_that_has_grown_is_seen_by_the_next_recording() -> None:
    f = gc.compile(_members)
    same(f(ONE, "a"), ONE)
    members.add(2.0)
    try:
        same(f(ONE, "b"), ONE * 2)
    finally:
        members.discard(2.0)


def test_a_hook_registered_after_the_first_recording_is_guarded() -> None:
    w = gc.ones(2, requires_grad=True)
    factor = 2.0

    @gc.compile
    def f(x: gc.Tensor, name: str) -> Any:
        w.grad = None
        (w * x).sum().backward()
        return w.grad

    f(ONE, "a"), f(ONE, "a")
    w.register_hook(lambda g: g * factor)
    for factor in (2.0, 2.0, 5.0):
        same(f(ONE, "b"), ONE * factor)
