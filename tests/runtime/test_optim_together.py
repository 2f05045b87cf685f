"""Eager steps as one program over all parameters: the bits of the updates one by one, whatever holds the tensors."""

from __future__ import annotations

import copy
import gc as collector
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime.optim import together
from graphc.runtime.optim.optimizer import Optimizer
from graphc.runtime.tensor import Parameter

SHAPES = [(3,), (2, 5), (), (1,), (7, 11), (0, 4), (33,)]
MAKERS: dict[str, Any] = {
    "sgd": lambda c, p: c(p, lr=0.1),
    "momentum": lambda c, p: c(p, lr=0.1, momentum=0.9, dampening=0.5, nesterov=False, weight_decay=0.1),
    "adam": lambda c, p: c(p, lr=0.1, amsgrad=True, maximize=True),
    "adamw": lambda c, p: c(p, lr=0.1),
    "rmsprop": lambda c, p: c(p, lr=0.1, centered=True, momentum=0.9),
    "adagrad": lambda c, p: c(p, lr=0.1),
}
CLASSES = {
    "sgd": gc.optim.SGD, "momentum": gc.optim.SGD, "adam": gc.optim.Adam, "adamw": gc.optim.AdamW, "rmsprop": gc.optim.RMSprop,
    "adagrad": gc.optim.Adagrad,
}  # fmt: skip


def parameters(dtype: str = "float32", seed: int = 0) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    return [Parameter(gc.asarray(rng.normal(size=s)).astype(getattr(gc, dtype))) for s in SHAPES]


def gradients(dtype: str, step: int) -> list[Any]:
    rng = np.random.default_rng(100 + step)
    return [gc.asarray(rng.normal(size=s)).astype(getattr(gc, dtype)) for s in SHAPES]


def one_by_one(kind: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer by a class that does not say that its updates may be one program."""
    return type(kind.__name__, (kind,), {"update": lambda self, *args: kind.update(self, *args)})


def programs(optimizer: Optimizer) -> int:
    known = together._programs.get(optimizer)
    return 0 if known is None else sum(r is not None for r, _ in known._known.values())


def run(optimizer: Optimizer, params: list[Any], dtype: str, steps: int = 3, skip: Any = lambda step, i: False) -> list[bytes]:
    for step in range(steps):
        for i, (p, g) in enumerate(zip(params, gradients(dtype, step), strict=True)):
            p.grad = None if skip(step, i) else g
        optimizer.step()
    return bits(optimizer, params)


def bits(optimizer: Optimizer, params: list[Any]) -> list[bytes]:
    return [t.numpy().tobytes() for t in (*params, *(s for p in params for s in optimizer.state[p].values()))]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_bits(name: str, dtype: str) -> None:
    kind = CLASSES[name]
    mine, theirs = parameters(dtype), parameters(dtype)
    fast, slow = MAKERS[name](kind, mine), MAKERS[name](one_by_one(kind), theirs)
    assert run(fast, mine, dtype) == run(slow, theirs, dtype)
    assert programs(fast) == 1 and programs(slow) == 0


def test_other_parameters_have_gradients() -> None:
    def skip(step: int, i: int) -> bool:
        return (step + i) % 3 == 0

    mine, theirs = parameters(), parameters()
    fast, slow = gc.optim.Adam(mine, lr=0.1), one_by_one(gc.optim.Adam)(theirs, lr=0.1)
    assert run(fast, mine, "float32", 9, skip) == run(slow, theirs, "float32", 9, skip)
    assert programs(fast) == 3


def test_sets_that_do_not_come_again_get_no_program() -> None:
    params = parameters()
    optimizer = gc.optim.SGD(params, lr=0.1)
    for i in range(1, len(params)):
        run(optimizer, params, "float32", 1, lambda step, k, i=i: k == i)
    assert programs(optimizer) == 1
    assert len(together._programs[optimizer]._met) <= together.MOST_PROGRAMS


def test_programs_are_few() -> None:
    params = [Parameter(gc.zeros(2)) for _ in range(12)]
    optimizer = gc.optim.SGD(params, lr=0.1)
    for i in range(12):
        for _ in range(2):
            for k, p in enumerate(params):
                p.grad = None if k == i else gc.ones(2)
            optimizer.step()
    assert programs(optimizer) == together.MOST_PROGRAMS
    assert [p.numpy().tolist() for p in params] == [params[0].numpy().tolist()] * 12


def test_groups_and_numbers() -> None:
    mine, theirs = parameters(), parameters()
    made = []
    for kind, params in ((gc.optim.AdamW, mine), (one_by_one(gc.optim.AdamW), theirs)):
        groups = [{"params": params[:3], "lr": 0.5}, {"params": params[3:], "weight_decay": 0.2, "maximize": True}]
        optimizer = kind(groups, lr=0.1)
        run(optimizer, params, "float32", 2)
        optimizer.param_groups[0]["lr"] = 0.05
        made.append(run(optimizer, params, "float32", 2))
    assert made[0] == made[1]
    assert programs(optimizer) == 0


def test_what_others_hold_keeps_its_value() -> None:
    params = parameters()
    optimizer = gc.optim.Adam(params, lr=0.1)
    run(optimizer, params, "float32", 2)
    before = [p.numpy().copy() for p in params]
    aliases, arrays = [p.detach() for p in params], [p.numpy() for p in params]
    product = (params[4] * params[4]).sum()  # keeps its operand for the gradient
    run(optimizer, params, "float32", 1)
    for old, alias, array, p in zip(before, aliases, arrays, params, strict=True):
        assert np.array_equal(alias.numpy(), old) and (not old.size or not np.array_equal(p.numpy(), old))
        assert np.array_equal(array, old)
    params[4].grad = None
    product.backward()
    assert np.array_equal(params[4].grad.numpy(), 2 * before[4])


def test_state_that_is_replaced_is_what_counts() -> None:
    mine, theirs = parameters(), parameters()
    made = []
    for kind, params in ((gc.optim.Adam, mine), (one_by_one(gc.optim.Adam), theirs)):
        optimizer = kind(params, lr=0.1)
        run(optimizer, params, "float32", 2)
        optimizer.state[params[0]] = {**optimizer.state[params[0]], "exp_avg": gc.ones(3)}
        run(optimizer, params, "float32", 1)
        optimizer.load_state_dict({k: v + 1 for k, v in optimizer.state_dict().items() if not k.startswith("groups")} | {
            k: v for k, v in optimizer.state_dict().items() if k.startswith("groups")
        })
        made.append(run(optimizer, params, "float32", 2))
    assert made[0] == made[1]


def test_groups_that_change_are_what_counts() -> None:
    params = [Parameter(gc.ones(3)) for _ in range(3)]
    optimizer = gc.optim.SGD([{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 10.0}], lr=1.0)

    def step() -> float:
        for p in params:
            p.grad = gc.ones(3)
        before = params[1][0].item()
        optimizer.step()
        return params[1][0].item() - before

    assert [step(), step()] == [-1.0, -1.0] and programs(optimizer) == 1
    first, second = optimizer.param_groups
    second.params.insert(0, first.params.pop())
    assert [step(), step()] == [-10.0, -10.0]
    second.options["maximize"] = True
    assert [step(), step()] == [10.0, 10.0] and programs(optimizer) == 1


def test_strided_gradients_and_parameters() -> None:
    made = []
    for kind in (gc.optim.SGD, one_by_one(gc.optim.SGD)):
        wide = gc.arange(24.0).reshape(4, 6)
        params = [Parameter(gc.asarray(wide.T.numpy())), Parameter(gc.ones(5))]
        optimizer = kind(params, lr=0.1, momentum=0.5)
        for _ in range(3):
            params[0].grad, params[1].grad = (wide + 1).T, gc.ones(10)[::2]
            optimizer.step()
        made.append(bits(optimizer, params))
    assert made[0] == made[1]


def test_a_gradient_that_is_the_parameter_is_left_to_the_updates() -> None:
    params = [Parameter(gc.ones(3)), Parameter(gc.ones(3))]
    optimizer = gc.optim.SGD(params, lr=0.25)
    for p in params:
        p.grad = p
    optimizer.step()
    assert programs(optimizer) == 0 and [p.numpy().tolist() for p in params] == [[0.75] * 3] * 2
    shared = gc.full((3,), 2.0)
    for p in params:
        p.grad = shared
    optimizer.step()
    assert programs(optimizer) == 1 and [p.numpy().tolist() for p in params] == [[0.25] * 3] * 2


def test_an_update_of_ones_own_is_asked_each_time() -> None:
    class Counting(gc.optim.SGD):
        count = 0

        def update(self, param: Any, grad: Any, state: Any, group: Any) -> Any:
            self.count += 1
            return super().update(param, grad, state, group)

    params = parameters()
    optimizer = Counting(params, lr=0.1)
    run(optimizer, params, "float32", 3)
    assert optimizer.count == 3 * len(params)


def test_an_update_that_looks_at_values_is_made_one_by_one() -> None:
    class Looking(Optimizer):
        together = True

        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 1.0})

        def init_state(self, param: Any, group: Any) -> Any:
            return {}

        def update(self, param: Any, grad: Any, state: Any, group: Any) -> Any:
            return param - group["lr"] * grad, {}

    params = [Parameter(gc.ones(3)), Parameter(gc.ones(2))]
    optimizer = Looking(params)
    for p in params:
        p.grad = gc.ones(p.shape[0])
    for _ in range(3):
        optimizer.step()
    assert programs(optimizer) == 0 and params[0].numpy().tolist() == [-2.0] * 3


def test_errors_are_those_of_the_update() -> None:
    params = [Parameter(gc.ones(3)), Parameter(gc.ones(2))]
    optimizer = gc.optim.SGD(params, lr=0.1)
    params[0].grad = gc.ones(3)
    params[1]._meta.grad = gc.ones(5)
    with pytest.raises(ValueError, match="5"):
        optimizer.step()


def test_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = parameters(), parameters()
    fast, slow = gc.optim.Adam(mine, lr=0.1), gc.optim.Adam(theirs, lr=0.1)
    expected = run(fast, mine, "float32")
    monkeypatch.setenv("GRAPHC_BACKEND", "interpret")
    assert run(slow, theirs, "float32") == expected


def test_optimizers_are_copied_and_forgotten() -> None:
    params = parameters()
    optimizer = gc.optim.Adam(params, lr=0.1)
    run(optimizer, params, "float32")
    twin = copy.deepcopy(optimizer)
    own = twin.param_groups[0].params
    run(twin, own, "float32", 2)
    run(optimizer, params, "float32", 2)
    assert bits(optimizer, params) == bits(twin, own)
    count = len(together._programs)
    del optimizer, twin
    collector.collect()
    assert len(together._programs) <= count - 2
