"""Dispatch, composites and tracing: what is cached, what is recorded, what is called."""

from __future__ import annotations

from typing import Any, NamedTuple

import graphc as gc
import numpy as np
import pytest
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType
from graphc.ir.verify import verify
from graphc.runtime import dispatch
from graphc.runtime import ops as xp
from graphc.runtime.composite import Composite
from graphc.runtime.ops_elementwise import OPS
from graphc.runtime.spec import broadcast_shapes, spec_of


def test_specs_are_interned() -> None:
    assert spec_of(gc.float32, (2, 3)) is gc.zeros(2, 3)._spec is (gc.ones(2, 3) * 2)._spec
    assert spec_of(gc.float32, ()) is not spec_of(gc.float32, (), weak=True)


def test_a_changing_number_makes_no_new_entry() -> None:
    x = gc.ones(3, 1, 2)
    x * 0.5
    known = len(OPS["multiply"].cache)
    for v in (0.25, -1.0, 1e9, float("inf")):
        x * v
    assert len(OPS["multiply"].cache) == known
    x * 2
    assert len(OPS["multiply"].cache) == known + 1


def test_caches_are_bounded() -> None:
    cache: dict[int, int] = {}
    for i in range(10):
        dispatch.remember(cache, i, i, most=4)
    assert list(cache) == [6, 7, 8, 9]


def test_zeros_and_nan_are_different_numbers() -> None:
    x = gc.tensor([1.0])
    assert [str((x / v).item()) for v in (0.0, -0.0, 0.0)] == ["inf", "-inf", "inf"]
    assert [(x * v).isnan().item() for v in (float("nan"), float("nan"), 1.0)] == [True, True, False]
    assert ((x == True).item(), (x + True).dtype) == (True, gc.float32)  # noqa: E712


def test_broadcast_shapes() -> None:
    assert broadcast_shapes((2, 1), (3,), ()) == (2, 3)
    assert broadcast_shapes((0, 1), (1, 5)) == (0, 5)
    with pytest.raises(ValueError, match=r"\[2\] and \[3\] do not broadcast: dimension -1 is 2 and 3"):
        broadcast_shapes((2,), (3,))


def counted() -> tuple[Composite, list[int]]:
    calls: list[int] = []

    @gc.composite
    def f(x: gc.Tensor, scale: float = 2.0, axis: int = -1, *, flip: bool = False) -> gc.Tensor:
        calls.append(1)
        y = xp.sum(x * scale, axis=axis)
        return -y if flip else y

    return f, calls


def test_composites_are_traced_once_a_signature() -> None:
    f, calls = counted()
    x = gc.ones(2, 3)
    for scale in (1.0, 2.0, 3.0):
        assert f(x, scale).tolist() == [3 * scale] * 2
    assert len(calls) == 1
    assert f(x, axis=0).tolist() == [4.0] * 3 and f(x, 2.0, 0).tolist() == [4.0] * 3
    assert f(x, flip=True).tolist() == [-6.0] * 2
    assert f(x.double()).dtype is gc.float64
    assert len(calls) == 5
    assert f.__name__ == "f"


def test_composites_are_one_call() -> None:
    f, _ = counted()
    x = gc.ones(2, 3, requires_grad=True)
    y = f(x)
    assert y.grad_fn is not None and y.grad_fn.name == "f"
    traced = gc.trace_function(lambda x: f(x) + 1, ["f32[2, 3]"]).function
    assert [op.name for op in traced.ops] == ["call", "constant", "cast", "broadcast", "add"]
    assert traced.ops[0].attrs["function"].name == "f"
    verify(traced)


def test_composites_nest_and_take_structures() -> None:
    class Pair(NamedTuple):
        first: Any
        second: Any

    @gc.composite
    def inner(pair: list[gc.Tensor], k: float) -> Pair:
        return Pair(pair[0] * k, {"sum": pair[0] + pair[1], "none": None})

    @gc.composite
    def outer(x: gc.Tensor, k: float) -> Any:
        p = inner([x, x * 2], k)
        return p.first + p.second["sum"], "text", [p.second]

    x = gc.ones(2)
    y, text, rest = outer(x, 5.0)
    assert y.tolist() == [8, 8] and text == "text" and rest[0]["none"] is None and rest[0]["sum"].tolist() == [3, 3]
    assert inner([x, x], k=2.0).first.tolist() == [2, 2]


def test_composites_that_decide_by_a_float_get_it_fixed() -> None:
    @gc.composite
    def f(x: gc.Tensor, p: float) -> gc.Tensor:
        return x if p == 0.0 else x * p

    @gc.composite
    def g(x: gc.Tensor, p: float) -> gc.Tensor:
        return f(x, p) + 1

    x = gc.ones(1)
    assert [g(x, p).item() for p in (0.0, 2.0, 3.0, 0.0)] == [2, 3, 4, 2]
    assert [f(x, p).item() for p in (0.0, 2.0)] == [1, 2]


def test_composites_draw_random_numbers() -> None:
    @gc.composite
    def noisy(x: gc.Tensor) -> gc.Tensor:
        return x + gc.rand(3) + gc.rand(3)

    gc.manual_seed(1)
    got = [noisy(gc.zeros(3)) for _ in range(2)]
    gc.manual_seed(1)
    for y in got:
        np.testing.assert_array_equal(y.numpy(), (gc.rand(3) + gc.rand(3)).numpy())


def test_composites_may_not_look_at_values_or_around() -> None:
    @gc.composite
    def f(x: gc.Tensor) -> gc.Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(gc.AbstractValueError, match=r"(?s)needed while the function is traced.*test_dispatch.py.*use tensor operations"):
        f(gc.ones(2))

    @gc.composite
    def around(x: gc.Tensor) -> gc.Tensor:
        inside = gc.composite(lambda y: y + x)
        return inside(x)

    with pytest.raises(TypeError, match="pass it as an argument"):
        around(gc.ones(2))
    with pytest.raises(TypeError, match="must be hashable"):
        f(gc.ones(2), {1, 2})


def test_composites_read_tensors_from_outside() -> None:
    table = gc.ones(2)

    @gc.composite
    def f(x: gc.Tensor) -> gc.Tensor:
        return x + table

    assert f(gc.zeros(2)).tolist() == [1, 1]
    table += 4
    assert f(gc.zeros(2)).tolist() == [5, 5]


def test_trace_function() -> None:
    model = gc.nn.Sequential(gc.nn.Linear(3, 4), gc.nn.ReLU(), gc.nn.Linear(4, 2))
    traced = gc.trace_function(model, ["f32[B, 3]"])
    f = traced.function
    verify(f)
    assert f.param_names[1:] == ("_0_weight", "_0_bias", "_2_weight", "_2_bias")
    assert [str(t) for t in f.result_types] == ["f32[B, 2]"]
    assert [c is p for c, p in zip(traced.captured, model.parameters())] == [True] * 4
    x = np.ones((5, 3), np.float32)
    (y,) = interpret(f, [x, *(c.numpy() for c in traced.captured)])
    # The interpreter's functions are NumPy's; these here are exact in both.
    np.testing.assert_array_equal(y, model(gc.tensor(x)).detach().numpy())
    assert not any(p.is_abstract for p in model.parameters())


def test_trace_of_a_training_step() -> None:
    model = gc.nn.Linear(3, 1)
    optimizer = gc.optim.SGD(model.parameters(), lr=0.1)

    def step(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        optimizer.zero_grad()
        loss = gc.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    before = [p.tolist() for p in model.parameters()]
    traced = gc.trace_function(step, ["f32[B, 3]", "f32[B, 1]"])
    verify(traced.function)
    assert [p.tolist() for p in model.parameters()] == before and all(p.grad is None for p in model.parameters())
    written = [traced.captured[i] for i, _ in traced.writes]
    assert all(any(p is w for w in written) for p in model.parameters())
    x, y = gc.randn(4, 3), gc.randn(4, 1)
    results = interpret(traced.function, [x.numpy(), y.numpy(), *(c.numpy() for c in traced.captured)])
    step(x, y)
    for i, j in traced.writes:
        np.testing.assert_array_equal(results[j], traced.captured[i].numpy())


def test_abstract_tensors() -> None:
    seen: list[gc.Tensor] = []

    def f(x: gc.Tensor, pair: Any) -> Any:
        seen.append(x)
        assert x.is_abstract and str(x.shape[0]) == "B" and repr(x) == "tensor(f32[B, 4], abstract)"
        assert str(x.size) == "4*B" and x.size(1) == 4 and str(x.reshape(-1, 2).shape) == "(2*B, 2)"
        return x.mean() + pair["a"], 3, [pair["b"][0].flatten()]

    traced = gc.trace_function(f, ["f32[B, 4]", {"a": "f32[]", "b": [TensorType.parse("f32[2, B]")]}])
    assert traced.function.param_names == ("x", "pair_a", "pair_b_0")
    assert traced.leaves == [0, ("constant", 3), 1]
    with pytest.raises(gc.AbstractValueError, match="has no value yet"):
        seen[0] + 1
    for bad in (float, bool, lambda x: x.tolist(), lambda x: x.numpy(), lambda x: len(x)):
        with pytest.raises((gc.AbstractValueError, TypeError), match=r"needed while|symbolic"):
            gc.trace_function(bad, ["f32[B]"])
    with pytest.raises(TypeError, match="an input is a type"):
        gc.trace_function(f, [3, 4])


def test_mean_over_a_symbolic_dimension_is_that_over_a_known_one() -> None:
    def f(x: gc.Tensor) -> Any:
        return x.mean(0), x.var(), gc.std(x, axis=1)

    traced = gc.trace_function(f, ["f32[B, 7]"]).function
    x = gc.randn(5, 7)
    for got, want in zip(interpret(traced, [x.numpy()]), f(x)):
        np.testing.assert_array_equal(got, want.numpy())


def test_eager_is_what_the_interpreter_says() -> None:
    x = gc.randn(4, 6)
    for f in (lambda x: x * 3 + x.sum(0), lambda x: gc.clip(x, -0.5, 0.5).mean(1), lambda x: x.T @ x, lambda x: gc.floor(x / 0.3)):
        traced = gc.trace_function(f, [x._spec.type]).function
        np.testing.assert_array_equal(interpret(traced, [x.numpy()])[0], f(x).numpy())


def test_interpreting_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_BACKEND", "interpret")
    x = gc.arange(7 * 11 * 13).reshape(7, 11, 13)
    y = x * 3 - 1
    runs = [entry.run for key, entry in OPS["multiply"].cache.items() if key[1] is x._spec]
    assert [type(run.__self__).__name__ for run in runs] == ["Interpreted"]
    assert y[1, 2, 3].item() == x[1, 2, 3].item() * 3 - 1
