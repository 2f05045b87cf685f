"""Weights that a compiled function holds are turned once, and every new value of them is noticed."""

from __future__ import annotations

import gc as collector
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import turned
from graphc.runtime.turned import CALLS, Turned

RNG = np.random.default_rng(0)
INPUTS, OUTPUTS = 130, 70


@pytest.fixture(autouse=True)
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of earlier tests are gone, and small weights are worth it."""
    monkeypatch.setattr(turned, "LEAST", 1024)
    collector.collect()
    assert not turned._copies


def weight(dtype: str = "float32") -> gc.Tensor:
    return gc.tensor(RNG.standard_normal((OUTPUTS, INPUTS)), dtype=getattr(gc, dtype))


def example(rows: int = 1, dtype: str = "float32") -> gc.Tensor:
    return gc.tensor(RNG.standard_normal((rows, INPUTS)), dtype=getattr(gc, dtype))


def compiled(w: gc.Tensor, also: Any = None) -> Any:
    @gc.compile
    def layer(x: Any) -> Any:
        y = gc.nn.functional.relu(gc.nn.functional.linear(x, w))
        return y if also is None else (y, also(w))

    return layer


def is_turned(f: Any) -> bool:
    """Whether the function's one recording reads turned weights."""
    [family] = f._families.values()
    [recording] = family.recordings
    return any(isinstance(v, Turned) for v in recording.replay.__globals__.values())


def check(f: Any, w: gc.Tensor, x: gc.Tensor) -> None:
    """That a call gives what the function's text gives, to the bit."""
    want = gc.nn.functional.relu(gc.nn.functional.linear(x, w))
    got = f(x)
    assert got._spec is want._spec
    assert got.numpy().tobytes() == want.numpy().tobytes()


def settle(f: Any, w: gc.Tensor, x: gc.Tensor, calls: int = CALLS + 2) -> None:
    for _ in range(calls):
        check(f, w, x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_results_are_those_of_the_weight_as_it_lies(rows: int, dtype: str) -> None:
    w, x = weight(dtype), example(rows, dtype)
    f = compiled(w)
    settle(f, w, x)
    assert is_turned(f)
    [copy] = turned._copies.values()
    assert copy.tensor.shape == (INPUTS, OUTPUTS)


def test_many_rows_read_the_weight_as_it_lies() -> None:
    w, x = weight(), example(9)
    f = compiled(w)
    settle(f, w, x)
    assert not is_turned(f) and not turned._copies


def test_small_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned, "LEAST", INPUTS * OUTPUTS * 4 + 1)
    w, x = weight(), example()
    f = compiled(w)
    settle(f, w, x)
    assert not is_turned(f)


def test_a_new_value_is_noticed_at_once() -> None:
    w, x = weight(), example()
    f = compiled(w)
    for calls in (CALLS, 2 * CALLS, 4 * CALLS):
        settle(f, w, x, calls + 2)
        assert is_turned(f)
        w *= 2
        check(f, w, x)
        assert not is_turned(f)
        w[3] = 5.0
        check(f, w, x)
        collector.collect()
        assert not turned._copies


def test_updates_in_place_by_another_program_are_noticed() -> None:
    w = gc.nn.Parameter(weight())
    x, target = example(), gc.zeros((1, OUTPUTS))
    optimizer = gc.optim.SGD([w], lr=0.01)

    @gc.compile
    def step() -> Any:
        loss = ((gc.nn.functional.linear(x, w) - target) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    f = compiled(w)
    with gc.no_grad():
        # One update between calls, several, and none for a while.
        for updates in (1, 0, 0, 0, 0, 0, 0, 3, 1, *[0] * 20, 2, 1, 1):
            for _ in range(updates):
                with gc.enable_grad():
                    step()
            check(f, w, x)


def test_memory_of_numpy_is_never_copied() -> None:
    array = RNG.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    w, x = gc.asarray(array), example()
    f = compiled(w)
    settle(f, w, x)
    assert not is_turned(f)
    array[:] = 1.0
    check(f, w, x)


def test_memory_that_others_hold_is_not_copied() -> None:
    w, x = weight(), example()
    alias = w.detach()
    f = compiled(w)
    settle(f, w, x)
    assert not is_turned(f)
    assert alias.shape == w.shape


def test_weights_that_a_call_changes_or_returns_stay() -> None:
    w, x = weight(), example()

    @gc.compile
    def changes(x: Any) -> Any:
        nonlocal w
        y = gc.nn.functional.linear(x, w)
        w *= 0.5
        return y

    for _ in range(CALLS + 3):
        want = gc.nn.functional.linear(x, w).numpy().copy()
        assert np.array_equal(changes(x).numpy(), want)
    f = compiled(w, lambda w: w)
    for _ in range(CALLS + 3):
        _, same = f(x)
        assert same is w
    g = compiled(w, lambda w: w.sum())
    for _ in range(CALLS + 3):
        _, total = g(x)
        assert total.item() == w.sum().item()
    assert not turned._copies


def test_functions_share_a_copy_and_let_go_of_it() -> None:
    w, x = weight(), example()
    f, g = compiled(w), compiled(w)
    settle(f, w, x)
    settle(g, w, example(2))
    assert is_turned(f) and is_turned(g)
    assert len(turned._copies) == 1
    del f, g
    collector.collect()
    assert not turned._copies


def test_a_weight_that_requires_gradients_later_is_recorded_anew() -> None:
    w, x = weight(), example()
    f = compiled(w)
    settle(f, w, x)
    w.requires_grad_()
    f(x).sum().backward()
    assert w.grad is not None
    with gc.no_grad():
        settle(f, w, x)


def test_several_layers_and_tokens() -> None:
    """Operands of rank 3, a weight used twice, and one that only some calls may read turned."""
    w, v = weight(), weight()

    @gc.compile
    def block(x: Any) -> Any:
        return gc.nn.functional.linear(x, w) + gc.nn.functional.linear(x * 2, w) * gc.nn.functional.linear(
            x, v
        )

    for shape in ((1, 1, INPUTS), (2, 3, INPUTS), (2, 50, INPUTS)):
        x = gc.tensor(RNG.standard_normal(shape), dtype=gc.float32)
        want = gc.nn.functional.linear(x, w) + gc.nn.functional.linear(x * 2, w) * gc.nn.functional.linear(
            x, v
        )
        for _ in range(CALLS + 3):
            assert block(x).numpy().tobytes() == want.numpy().tobytes()
    assert len(turned._copies) == 2


def test_many_layers() -> None:
    """More tensors than are written out one by one."""
    layers = [
        (gc.tensor(RNG.standard_normal((16, 16)) / 4, dtype=gc.float32), gc.zeros(16)) for _ in range(40)
    ]

    def run(x: Any) -> Any:
        for w, b in layers:
            x = gc.nn.functional.relu(gc.nn.functional.linear(x, w, b))
        return x

    f, x = gc.compile(run), gc.ones((1, 16))
    for _ in range(2):
        for _ in range(2 * CALLS + 3):
            assert f(x).numpy().tobytes() == run(x).numpy().tobytes()
        assert len(turned._copies) == 40
        layers[20][0][0] = 0.5


def test_what_was_turned_for_many_signatures_serves_on_after_updates() -> None:
    w = weight()
    f = compiled(w)
    examples = [example(rows) for rows in range(1, 8)]
    for _ in range(3):
        for x in examples:
            settle(f, w, x)
        w *= 2
    # Those that were not called last notice it no later than when they are looked for.
    assert [len(family.recordings) for family in f._families.values()] == [1] * len(examples)
