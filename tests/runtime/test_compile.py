"""compile: equality of bits with eager execution, state, decisions, and when it gives up."""

from __future__ import annotations

import gc as collector
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime.compiled import PATIENCE, Compiled

F = gc.nn.functional
SCALE = 2.0


def same(a: Any, b: Any) -> None:
    """Equal to the bit, through nested structures."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, gc.Tensor):
        assert a.dtype is b.dtype and a.shape == b.shape
        assert a.numpy().tobytes() == b.numpy().tobytes(), (a, b)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    else:
        assert a == b or (a != a and b != b)


def recordings(f: Compiled) -> list[int]:
    """How many recordings each signature has; none may have given up."""
    assert not any(family.eager for family in f._families.values())
    return [len(family.recordings) for family in f._families.values()]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_function_of_tensors() -> None:
    def f(x: gc.Tensor, y: gc.Tensor) -> dict[str, Any]:
        z = gc.exp(x) @ y
        return {"z": z, "pair": (z.sum(), [x.T]), "constant": 3, "name": "n"}

    c = gc.compile(f)
    for _ in range(3):
        x, y = gc.randn(3, 4), gc.randn(4, 2)
        same(c(x, y), f(x, y))
    assert recordings(c) == [1]
    same(c(gc.randn(2, 4).zero_(), gc.ones(4, 2)), f(gc.zeros(2, 4), gc.ones(4, 2)))
    assert recordings(c) == [1, 1]


def test_python_numbers_are_inputs() -> None:
    @gc.compile
    def f(x: gc.Tensor, lr: float, n: int) -> Any:
        return x * lr + n, lr * 2 + n, 1.0 - lr

    for lr, n in [(0.1, 1), (0.2, 5), (-0.0, 0), (math.inf, -3), (math.nan, 7)]:
        same(f(gc.ones(2), lr, n), (gc.ones(2) * lr + n, lr * 2 + n, 1.0 - lr))
    assert recordings(f) == [1]


def test_strings_flags_and_objects_belong_to_the_signature() -> None:
    @gc.compile
    def f(x: gc.Tensor, mode: str, flip: bool = False, table: Any = None) -> gc.Tensor:
        y = x + 1 if mode == "up" else x - 1
        return -y if flip else y

    for _ in range(2):
        assert [f(gc.ones(1), m, flip=b).item() for m in ("up", "down") for b in (False, True)] == [2, -2, 0, 0]
    assert recordings(f) == [1, 1, 1, 1]


def test_numpy_arguments_are_tensors() -> None:
    @gc.compile
    def f(x: Any) -> gc.Tensor:
        return x * 2

    for i in range(3):
        same(f(np.full(3, i, np.float32)), gc.full((3,), 2.0 * i))
    assert recordings(f) == [1]


def test_views_as_arguments() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x * 2 + x.T

    base = gc.randn(6, 6)
    for view in (base[::2, ::2], base.T[1:4, 1:4], gc.flip(base)[:3, :3]):
        same(f(view), view * 2 + view.T)
    assert recordings(f) == [1]


def network(dropout: float = 0.25) -> tuple[gc.nn.Module, gc.optim.Optimizer]:
    gc.manual_seed(3)
    layers = [gc.nn.Linear(6, 8), gc.nn.BatchNorm1d(8), gc.nn.GELU(), gc.nn.Dropout(dropout), gc.nn.Linear(8, 3)]
    model = gc.nn.Sequential(*layers)
    return model, gc.optim.AdamW(model.parameters(), lr=0.05)


def step_of(model: gc.nn.Module, optimizer: gc.optim.Optimizer, late: bool) -> Callable[..., gc.Tensor]:
    def step(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        if not late:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if late:
            optimizer.zero_grad()
        return loss

    return step


OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("late", [False, True], ids=["zero_grad first", "zero_grad last"])
def test_training_step(name: str, late: bool) -> None:
    def run(compiled: bool) -> Any:
        model, _ = network()
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(gc.optim, name)(model.parameters(), lr=0.05, **options)
        step = step_of(model, optimizer, late)
        f = gc.compile(step) if compiled else step
        data = gc.Generator(1)
        losses = []
        for i in range(6):
            if i == 4:
                optimizer.lr = 0.01
            x, y = gc.randn(16, 6, generator=data), gc.randint(0, 3, (16,), generator=data)
            losses.append(f(x, y).detach())
        if compiled:
            assert recordings(f) == [1] if late else [2]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return losses, list(model.state_dict().values()), list(optimizer.state_dict().values()), grads, gc.rand(2)

    same(run(True), run(False))


def test_evaluation_and_training_have_recordings_of_their_own() -> None:
    model, _ = network()
    f = gc.compile(model)
    x = gc.randn(5, 6)
    with gc.no_grad():
        for _ in range(3):
            model.train()
            f(x)
            model.eval()
            same(f(x), model(x))
    assert recordings(f) == [2]
    assert f.training is False and len(list(f.parameters())) == 6


def test_gradients_flow_through_a_compiled_model() -> None:
    model, _ = network(0.0)
    plain, _ = network(0.0)
    f = gc.compile(model)
    for _ in range(3):
        x = gc.randn(5, 6, requires_grad=True)
        z = x.detach().requires_grad_()
        (f(x) ** 2).sum().backward()
        (plain(z) ** 2).sum().backward()
        same(x.grad, z.grad)
        for p, q in zip(model.parameters(), plain.parameters()):
            same(p.grad, q.grad)
        same(list(model.state_dict().values()), list(plain.state_dict().values()))
    assert recordings(f) == [1]
    y = f(gc.randn(5, 6)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


def test_part_of_a_graph_compiled() -> None:
    w = gc.tensor([2.0, 3.0], requires_grad=True)

    @gc.compile
    def middle(x: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
        return x * w, x + 1

    for _ in range(3):
        w.grad = None
        x = gc.tensor([1.0, 5.0], requires_grad=True)
        a, b = middle(x * 3)
        (a * b).sum().backward()
        xs, ws = x.detach().requires_grad_(), w.detach().requires_grad_()
        a, b = xs * 3 * ws, xs * 3 + 1
        (a * b).sum().backward()
        same(x.grad, xs.grad)
        same(w.grad, ws.grad)
    y = middle(x * 3)[0].sum()
    with pytest.raises(RuntimeError, match="create_graph through the compiled function middle"):
        gc.autograd.grad(y, x, create_graph=True)


def test_backward_of_the_loss_of_a_compiled_step_is_refused_as_eagerly() -> None:
    model, optimizer = network()
    step = gc.compile(step_of(model, optimizer, True))
    for _ in range(3):
        loss = step(gc.randn(4, 6), gc.zeros(4, dtype=gc.int64))
        with pytest.raises(RuntimeError, match="a second time"):
            loss.backward()


def test_accumulating_gradients() -> None:
    def run(compiled: bool) -> Any:
        w = gc.tensor([1.0, 2.0], requires_grad=True)

        def add(x: gc.Tensor) -> None:
            (w * x).sum().backward()

        f = gc.compile(add) if compiled else add
        for i in range(4):
            f(gc.full((2,), float(i)))
        return w.grad

    same(run(True), run(False))


def test_clipping_gradients_in_place() -> None:
    def run(compiled: bool) -> Any:
        model, optimizer = network()

        def step(x: gc.Tensor) -> gc.Tensor:
            (model(x) ** 2).sum().backward()
            norm = gc.nn.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return norm

        f = gc.compile(step) if compiled else step
        data = gc.Generator(2)
        norms = [f(gc.randn(4, 6, generator=data)) for _ in range(4)]
        return norms, [p.grad for p in model.parameters()], [p.detach() for p in model.parameters()]

    same(run(True), run(False))


def test_random_state_is_taken_and_returned() -> None:
    def f(n: gc.Tensor) -> gc.Tensor:
        return gc.rand(3) + gc.randn(3) * n + gc.randint(0, 9, (3,))

    c = gc.compile(f)
    results = []
    for g in (f, c):
        gc.manual_seed(5)
        results.append([g(gc.ones(3)) for _ in range(4)] + [gc.rand(2)])
    same(*results)
    gc.manual_seed(5)
    same(c(gc.ones(3)), results[0][0])


def test_seeding_inside() -> None:
    def f() -> gc.Tensor:
        gc.manual_seed(9)
        return gc.rand(2)

    c = gc.compile(f)
    same([c() for _ in range(3)], [f() for _ in range(3)])


def test_decisions() -> None:
    def f(x: gc.Tensor) -> gc.Tensor:
        if x.sum() > 0:
            return x * 2 if x.max() > 5 else x + 1
        return -x

    c = gc.compile(f)
    for _ in range(3):
        for v in (1.0, -1.0, 9.0, 2.0):
            same(c(gc.full((2,), v)), f(gc.full((2,), v)))
    assert recordings(c) == [3]


def test_state_changes_only_for_the_right_outcome() -> None:
    total = gc.zeros(1)

    @gc.compile
    def f(x: gc.Tensor) -> None:
        nonlocal total
        total.add_(x)
        if x.sum() > 0:
            total.mul_(2)

    expected = 0.0
    for v in (1.0, 2.0, -3.0, 4.0, -1.0, 5.0):
        f(gc.full((1,), v))
        expected = (expected + v) * (2 if v > 0 else 1)
        assert total.item() == expected
    assert recordings(f) == [2]


def test_loops_by_value() -> None:
    def f(x: gc.Tensor, n: int) -> gc.Tensor:
        for _ in range(n):
            x = x * 2
        while x.sum() > 100:
            x = x / 2
        return x

    c = gc.compile(f)
    for _ in range(2):
        for n in (1, 3, 2, 3, 1):
            same(c(gc.full((3,), 11.0), n), f(gc.full((3,), 11.0), n))
    assert recordings(c) == [3]


def test_a_value_that_is_new_every_time_runs_eagerly() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> float:
        return (x * 2).sum().item()

    with pytest.warns(UserWarning, match=r"f runs eagerly from now on: Python decides by a value at .*test_compile.py:\d+: return"):
        for i in range(PATIENCE + 3):
            assert f(gc.full((2,), float(i))) == 4.0 * i
    assert f(gc.ones(2)) == 4


def test_numpy_inside_runs_eagerly() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x + gc.from_numpy(np.full(2, next(counter), np.float32))

    counter = iter(range(10))
    with pytest.warns(UserWarning, match="a NumPy array becomes a tensor at .*; pass it as an argument"):
        same(f(gc.zeros(2)), gc.full((2,), 0.0))
    same(f(gc.zeros(2)), gc.full((2,), 1.0))


def test_reading_much_runs_eagerly() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> float:
        return float(x.numpy().sum())

    with pytest.warns(UserWarning, match="read it outside the compiled function"):
        assert f(gc.ones(1000)) == 1000


def test_globals_and_closures_are_guards() -> None:
    global SCALE
    offset = 1.0

    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x * SCALE + offset

    try:
        for SCALE, offset in [(2.0, 1.0), (2.0, 1.0), (3.0, 1.0), (3.0, 4.0), (3.0, 4.0)]:
            assert f(gc.ones(1)).item() == SCALE + offset
    finally:
        SCALE = 2.0


class Counter:
    def __init__(self) -> None:
        self.n = 0
        self.rate = 0.5
        self.mode = "plus"
        self.state = gc.zeros(2)
        self.log: list[Any] = []

    def __call__(self, x: gc.Tensor) -> gc.Tensor:
        self.n += 1
        self.rate = self.rate * 0.9
        self.state = self.state * self.rate + x
        return self.state * self.n if self.mode == "plus" else -self.state


def test_attributes_that_change_are_state() -> None:
    plain, object_ = Counter(), Counter()
    f = gc.compile(object_)
    for i in range(7):
        if i == 5:
            plain.mode = object_.mode = "minus"
        same(f(gc.ones(2)), plain(gc.ones(2)))
        assert (plain.n, plain.rate) == (object_.n, object_.rate) and type(object_.n) is int
        same(object_.state, plain.state)
    # The first call shows which numbers change.
    assert recordings(f) == [2]


def test_growing_state_runs_eagerly() -> None:
    log: list[Any] = []

    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        log.append(x)
        return x + len(log)

    with pytest.warns(UserWarning, match="grows or shrinks"):
        for i in range(12):
            assert f(gc.zeros(1)).item() == i + 1
    assert len(log) == 12


def test_replaced_layers_and_parameters_are_noticed() -> None:
    model = gc.nn.Sequential(gc.nn.Linear(2, 2), gc.nn.ReLU())
    f = gc.compile(model)
    x = gc.randn(3, 2)
    for change in (lambda: None, lambda: None, lambda: setattr(model[0], "weight", gc.nn.Parameter(gc.ones(2, 2))),
                   lambda: model[0].weight.requires_grad_(False), lambda: model[0].to(gc.float64)):  # fmt: skip
        change()
        same(f(x), model(x))
        assert f(x).requires_grad == model(x).requires_grad
    model.append(gc.nn.Tanh())
    same(f(x), model(x))


@pytest.fixture(params=["compiled", "interpret"])
def either_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter updates in place wherever it may."""
    monkeypatch.setenv("GRAPHC_BACKEND", request.param)


@pytest.mark.usefixtures("either_backend")
def test_updates_in_place_spare_values_held_elsewhere() -> None:
    w = gc.zeros(4)

    @gc.compile
    def f() -> None:
        w.add_(1)

    f()
    f()
    held, view = w.detach(), w[1:]
    array = w.numpy()
    for _ in range(3):
        f()
    assert w.tolist() == [5] * 4
    assert held.tolist() == [2] * 4 and view.tolist() == [2] * 3 and array.tolist() == [2] * 4
    shared = np.zeros(3, np.float32)
    v = gc.from_numpy(shared)

    @gc.compile
    def g() -> None:
        v.add_(1)

    for _ in range(3):
        g()
    assert v.tolist() == [3] * 3 and shared.tolist() == [0] * 3


def test_updates_reuse_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_BACKEND", "interpret")
    w = gc.zeros(1000)

    @gc.compile
    def f() -> None:
        w.add_(1)

    f()
    f()
    address = w.data_ptr()
    f()
    assert w.data_ptr() == address and w[0].item() == 3


def test_arguments_rebound_inside() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        x += 1
        return x

    for i in range(3):
        x = gc.full((2,), float(i))
        assert f(x) is x
        assert x.tolist() == [i + 1.0] * 2


def test_exceptions_leave_nothing_behind() -> None:
    w = gc.ones(2)

    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        y = x * w
        if x.shape[0] != 2:
            raise KeyError("shape")
        return y

    for _ in range(2):
        with pytest.raises(KeyError):
            f(gc.ones(1))
    assert w._traced is None
    same(f(gc.ones(2)), gc.ones(2))
    same(f(gc.ones(2)), gc.ones(2))
    with pytest.raises(ValueError, match="do not broadcast"):
        f(gc.ones(3))


def test_index_errors_at_run_time() -> None:
    total = gc.zeros(1)

    @gc.compile
    def f(x: gc.Tensor, i: gc.Tensor) -> gc.Tensor:
        total.add_(1)
        return x[i]

    x = gc.arange(4)
    for i in (0, 3, -4):
        assert f(x, gc.tensor([i])).item() == i % 4
    with pytest.raises(IndexError, match="4"):
        f(x, gc.tensor([4]))


def test_nested_compile_is_inlined() -> None:
    inner = gc.compile(lambda x: gc.exp(x) + 1)

    @gc.compile
    def outer(x: gc.Tensor) -> gc.Tensor:
        return inner(x) * inner(x * 2)

    for _ in range(3):
        x = gc.randn(3)
        same(outer(x), (gc.exp(x) + 1) * (gc.exp(x * 2) + 1))
    assert recordings(outer) == [1] and recordings(inner) == []


def test_transformations_inside() -> None:
    def f(x: gc.Tensor) -> Any:
        return gc.grad(lambda a: (a**3).sum())(x), gc.jvp(gc.sin, (x,), (gc.ones(3),))

    c = gc.compile(f)
    for _ in range(3):
        x = gc.randn(3)
        same(c(x), f(x))
    assert recordings(c) == [1]


def test_gradient_penalty_inside() -> None:
    w = gc.tensor([1.0, 2.0], requires_grad=True)

    def f(x: gc.Tensor) -> gc.Tensor:
        x = x.detach().requires_grad_()
        (g,) = gc.autograd.grad((w * x * x).sum(), x, create_graph=True)
        loss = (g * g).sum()
        loss.backward()
        return loss.detach()

    c = gc.compile(f)
    for _ in range(3):
        w.grad = None
        expected = f(gc.tensor([3.0, 4.0]))
        grad, w.grad = w.grad, None
        same(c(gc.tensor([3.0, 4.0])), expected)
        same(w.grad, grad)


def test_backward_into_an_outer_graph_runs_eagerly() -> None:
    x = gc.ones(2, requires_grad=True)

    @gc.compile
    def f(y: gc.Tensor) -> None:
        (y * y).sum().backward()

    with pytest.warns(UserWarning, match="compute the loss inside it"):
        f(x * 3)
    same(x.grad, gc.full((2,), 18.0))
    f(x * 3)
    same(x.grad, gc.full((2,), 36.0))


def test_grad_mode_is_part_of_the_signature() -> None:
    w = gc.ones(2, requires_grad=True)

    @gc.compile
    def f() -> gc.Tensor:
        return w * 2

    for _ in range(2):
        assert f().requires_grad
        with gc.no_grad():
            assert not f().requires_grad
    assert recordings(f) == [1, 1]


def test_methods_and_decorators() -> None:
    class Model:
        def __init__(self, k: float) -> None:
            self.k = k

        @gc.compile
        def double(self, x: gc.Tensor) -> gc.Tensor:
            return x * self.k

    a, b = Model(2.0), Model(3.0)
    for _ in range(3):
        assert a.double(gc.ones(1)).item() == 2 and b.double(gc.ones(1)).item() == 3
    with pytest.raises(TypeError, match="takes a function or a module"):
        gc.compile(3)


def test_compiled_functions_hold_no_old_values() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x * 2

    for _ in range(3):
        f(gc.ones(1 << 16))
    collector.collect()
    before = gc.memory.stats().live_bytes
    for _ in range(5):
        f(gc.ones(1 << 16))
    collector.collect()
    assert gc.memory.stats().live_bytes <= before


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.float16, np.bool_])
def test_numpy_scalars_are_inputs(kind: type) -> None:
    def f(x: gc.Tensor, a: Any) -> gc.Tensor:
        return x * a

    c = gc.compile(f)
    for v in range(5):
        same(c(gc.ones(3), kind(v)), f(gc.ones(3), kind(v)))
    assert recordings(c) == [1]


def test_arguments_by_value() -> None:
    def f(x: gc.Tensor, s: slice, r: range) -> gc.Tensor:
        return x[s] * len(r)

    c = gc.compile(f)
    for stop in (1, 2, 1, 2):
        same(c(gc.ones(3), slice(0, stop), range(stop)), f(gc.ones(3), slice(0, stop), range(stop)))
    assert recordings(c) == [1, 1]


def test_objects_that_are_new_in_every_call_are_not_recorded_for_ever() -> None:
    class Batch:
        def __init__(self, x: gc.Tensor) -> None:
            self.x = x

    c = gc.compile(lambda batch: batch.x + 1)
    with pytest.warns(UserWarning, match="each of 64 calls in a row passed another Batch; pass what it holds as tensors"):
        for i in range(80):
            assert c(Batch(gc.full((1,), i))).tolist() == [i + 1]
    assert len(c._families) == 64
