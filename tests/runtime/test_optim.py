"""Optimizers against their published algorithms written in NumPy, schedules, state, errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn, optim

STEPS = 6
SHAPES = [(4, 3), (5,)]


def _start() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in SHAPES]


def _gradients(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return [rng.standard_normal(shape) for shape in SHAPES]


def _run(make: Any, dtype: str = "float64", steps: int = STEPS) -> tuple[list[nn.Parameter], Any]:
    parameters = [nn.Parameter(gc.asarray(value.astype(dtype))) for value in _start()]
    optimizer = make(parameters)
    for step in range(steps):
        for parameter, grad in zip(parameters, _gradients(step), strict=True):
            parameter.grad = gc.asarray(grad.astype(dtype))
        optimizer.step()
    return parameters, optimizer


# Each algorithm for one parameter: (p, g, state, t from 1) -> p


def _sgd(lr: float, momentum: float = 0, dampening: float = 0, wd: float = 0, nesterov: bool = False) -> Any:
    def rule(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        g = g + wd * p
        if momentum:
            s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
            g = g + momentum * s["b"] if nesterov else s["b"]
        return p - lr * g

    return rule


def _adam(lr: float, b1: float, b2: float, eps: float, wd: float = 0, decoupled: bool = False, ams: bool = False) -> Any:
    def rule(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        if decoupled:
            p = p * (1 - lr * wd)
        else:
            g = g + wd * p
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        s["top"] = np.maximum(s.get("top", 0.0), s["v"]) if ams else s["v"]
        m_hat, v_hat = s["m"] / (1 - b1**t), s["top"] / (1 - b2**t)
        return p - lr * m_hat / (np.sqrt(v_hat) + eps)

    return rule


def _rmsprop(lr: float, alpha: float, eps: float, wd: float = 0, momentum: float = 0, centered: bool = False) -> Any:
    def rule(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        g = g + wd * p
        s["v"] = alpha * s.get("v", 0.0) + (1 - alpha) * g * g
        spread = s["v"]
        if centered:
            s["m"] = alpha * s.get("m", 0.0) + (1 - alpha) * g
            spread = spread - s["m"] ** 2
        step = g / (np.sqrt(spread) + eps)
        if momentum:
            s["b"] = step = momentum * s.get("b", 0.0) + step
        return p - lr * step

    return rule


def _adagrad(lr: float, decay: float, wd: float, start: float, eps: float) -> Any:
    def rule(p: np.ndarray, g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        g = g + wd * p
        s["v"] = s.get("v", start) + g * g
        return p - lr / (1 + (t - 1) * decay) * g / (np.sqrt(s["v"]) + eps)

    return rule


CASES: dict[str, tuple[Any, Any]] = {
    "sgd": (lambda p: optim.SGD(p, 0.1), _sgd(0.1)),
    "sgd_decay": (lambda p: optim.SGD(p, 0.1, weight_decay=0.2), _sgd(0.1, wd=0.2)),
    "sgd_momentum": (lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01), _sgd(0.1, 0.9, wd=0.01)),
    "sgd_dampening": (lambda p: optim.SGD(p, 0.1, 0.9, 0.3), _sgd(0.1, 0.9, 0.3)),
    "sgd_nesterov": (lambda p: optim.SGD(p, 0.1, 0.8, nesterov=True), _sgd(0.1, 0.8, nesterov=True)),
    "adam": (lambda p: optim.Adam(p, 0.05), _adam(0.05, 0.9, 0.999, 1e-8)),
    "adam_decay": (lambda p: optim.Adam(p, 0.05, (0.8, 0.9), 1e-3, 0.1), _adam(0.05, 0.8, 0.9, 1e-3, 0.1)),
    "amsgrad": (lambda p: optim.Adam(p, 0.05, (0.5, 0.6), amsgrad=True), _adam(0.05, 0.5, 0.6, 1e-8, ams=True)),
    "adamw": (lambda p: optim.AdamW(p, 0.05, weight_decay=0.3), _adam(0.05, 0.9, 0.999, 1e-8, 0.3, True)),
    "rmsprop": (lambda p: optim.RMSprop(p, 0.05), _rmsprop(0.05, 0.99, 1e-8)),
    "rmsprop_all": (
        lambda p: optim.RMSprop(p, 0.05, 0.9, 1e-3, 0.1, 0.5, centered=True),
        _rmsprop(0.05, 0.9, 1e-3, 0.1, 0.5, True),
    ),
    "adagrad": (lambda p: optim.Adagrad(p, 0.1), _adagrad(0.1, 0, 0, 0, 1e-10)),
    "adagrad_all": (lambda p: optim.Adagrad(p, 0.1, 0.2, 0.1, 0.3, 1e-3), _adagrad(0.1, 0.2, 0.1, 0.3, 1e-3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_steps_follow_the_algorithm(name: str, dtype: str) -> None:
    make, rule = CASES[name]
    parameters, _ = _run(make, dtype)
    values, states = _start(), [{} for _ in SHAPES]  # type: ignore[var-annotated]
    for step in range(STEPS):
        for i, grad in enumerate(_gradients(step)):
            values[i] = rule(values[i], grad, states[i], step + 1)
    for parameter, value in zip(parameters, values, strict=True):
        assert parameter.dtype.name == dtype
        # Six steps of a dozen roundings, some behind a cancellation (centered RMSprop).
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(parameter.numpy(), value, rtol=tolerance, atol=tolerance)


def test_every_optimizer_is_tested() -> None:
    listed = {name for name in optim.__all__ if isinstance(getattr(optim, name), type)}
    optimizers = {n for n in listed if issubclass(getattr(optim, n), optim.Optimizer)} - {"Optimizer"}
    tested = {type(make([nn.Parameter(gc.zeros((1,)))])).__name__ for make, _ in CASES.values()}
    assert optimizers == tested


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad])
def test_maximize_turns_the_gradient_round(make: Any) -> None:
    up = nn.Parameter(gc.zeros((3,)))
    down = nn.Parameter(gc.zeros((3,)))
    one, other = make([up], maximize=True), make([down])
    for _ in range(3):
        up.grad, down.grad = gc.asarray([1.0, -2.0, 0.5]), gc.asarray([-1.0, 2.0, -0.5])
        one.step()
        other.step()
    np.testing.assert_array_equal(up.numpy(), down.numpy())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_parameters_are_updated_in_float32(name: str) -> None:
    value = gc.asarray(np.linspace(-1, 1, 7).astype(np.float32)).astype("bfloat16")
    narrow, wide = nn.Parameter(value), nn.Parameter(value.astype("float32"))
    one, other = CASES[name][0]([narrow]), CASES[name][0]([wide])
    grad = gc.asarray(np.linspace(1, 2, 7).astype(np.float32)).astype("bfloat16")
    narrow.grad, wide.grad = grad, grad.astype("float32")
    one.step()
    other.step()
    assert narrow.dtype.name == "bfloat16"
    np.testing.assert_array_equal(narrow.astype("float32").numpy(), wide.astype("bfloat16").astype("float32").numpy())
    for tensor in one.state[narrow].values():
        assert tensor.dtype.name in ("float32", "int64")


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    a, b = nn.Parameter(gc.ones((2,))), nn.Parameter(gc.ones((2,)))
    optimizer = optim.Adam([a, b], weight_decay=0.1)
    a.grad = gc.ones((2,))
    optimizer.step()
    assert a.numpy()[0] != 1 and b.numpy().tolist() == [1, 1]
    assert optimizer.state[a]["step"].item() == 1 and optimizer.state[b]["step"].item() == 0


def test_the_learning_rate_is_a_tensor_that_stays() -> None:
    w = nn.Parameter(gc.zeros((1,)))
    optimizer = optim.SGD([w], lr=0.1)
    held = optimizer.param_groups[0].tensors["lr"]
    assert optimizer.lr == 0.1 and optimizer.param_groups[0]["lr"] == 0.1
    optimizer.param_groups[0]["lr"] = 0.25
    assert optimizer.param_groups[0].tensors["lr"] is held and held.item() == 0.25 and held.dtype.name == "float64"
    w.grad = gc.ones((1,))
    optimizer.step()
    assert w.item() == -0.25
    optimizer.lr = 0.5
    optimizer.step()
    assert w.item() == -0.75


def test_parameter_groups() -> None:
    a, b, c = (nn.Parameter(gc.zeros((1,))) for _ in range(3))
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 1.0}], lr=0.5)
    optimizer.add_param_group({"params": [c], "lr": 2.0, "momentum": 0.9})
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 1.0, 2.0]
    assert optimizer.param_groups[2]["params"] == [c]
    for parameter in (a, b, c):
        parameter.grad = gc.ones((1,))
    optimizer.step()
    assert [p.item() for p in (a, b, c)] == [-0.5, -1.0, -2.0]
    assert set(optimizer.state[c]) == {"momentum_buffer"} and not optimizer.state[a]
    assert list(optimizer.param_groups[0]) == [
        "params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize",
    ]  # fmt: skip
    assert repr(optimizer).startswith("SGD(\n  ParamGroup(1 parameters, lr=0.5, momentum=0.0,")
    adam = optim.Adam([{"params": [a], "betas": (0.5, 0.6)}])
    assert adam.param_groups[0]["betas"] == (0.5, 0.6)
    adam.param_groups[0]["betas"] = (0.1, 0.2)
    assert adam.param_groups[0]["beta2"] == 0.2


def test_closures_and_zero_grad() -> None:
    w = nn.Parameter(gc.asarray([2.0]))
    optimizer = optim.SGD([w], lr=0.25)

    def closure() -> gc.Tensor:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with gc.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert w.item() == 1.0 and w.requires_grad and w.is_leaf
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is not None and w.grad.item() == 0.0
    optimizer.zero_grad()
    assert w.grad is None


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    make, _ = CASES[name]
    whole, _ = _run(make, "float32")
    half, optimizer = _run(make, "float32", 3)
    gc.save({f"p{i}": p for i, p in enumerate(half)}, tmp_path / "weights")
    gc.save(optimizer.state_dict(), tmp_path / "optimizer")

    parameters = [nn.Parameter(gc.zeros(shape)) for shape in SHAPES]
    resumed = make(parameters)
    with gc.no_grad():
        for parameter, value in zip(parameters, gc.load(tmp_path / "weights").values(), strict=True):
            parameter[...] = value
    resumed.lr = 123.0
    resumed.load_state_dict(gc.load(tmp_path / "optimizer"))
    for step in range(3, STEPS):
        for parameter, grad in zip(parameters, _gradients(step), strict=True):
            parameter.grad = gc.asarray(grad.astype(np.float32))
        resumed.step()
    for a, b in zip(parameters, whole, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_load_state_dict_tells_everything_that_is_wrong() -> None:
    w = nn.Parameter(gc.zeros((2,)))
    optimizer = optim.SGD([w], 0.1, 0.9)
    state = optimizer.state_dict()
    assert list(state) == ["groups.0.lr", "groups.0.momentum", "groups.0.dampening", "groups.0.weight_decay", "state.0.momentum_buffer"]
    del state["groups.0.lr"]
    state["state.1.momentum_buffer"] = gc.zeros((2,))
    state["state.0.momentum_buffer"] = gc.zeros((3,))
    with pytest.raises(ValueError) as error:
        optimizer.load_state_dict(state)
    assert str(error.value) == (
        "SGD.load_state_dict: the state does not fit the optimizer\n"
        "  missing: groups.0.lr\n"
        "  unexpected: state.1.momentum_buffer\n"
        "  shape: state.0.momentum_buffer is (2,) in the optimizer and (3,) in the state"
    )


def _w() -> nn.Parameter:
    return nn.Parameter(gc.zeros((2,)))


W = _w()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: optim.SGD([]), ValueError, "SGD got no parameters; module.parameters() can be iterated only once"),
        (lambda: optim.SGD(W), TypeError, "SGD needs a list of parameters, not one tensor; write [parameter]"),
        (lambda: optim.SGD([1.0]), TypeError, "SGD optimizes floating-point tensors, not a float"),
        (lambda: optim.SGD([gc.asarray([1])]), TypeError, "SGD optimizes floating-point tensors, not a int64 tensor"),
        (lambda: optim.SGD([W * 2]), ValueError, "SGD cannot optimize the result of an operation; pass leaf tensors"),
        (lambda: optim.SGD([W, W]), ValueError, "SGD: a parameter of shape (2,) is given twice"),
        (lambda: optim.SGD([W], lr=-1.0), ValueError, "SGD needs lr >= 0, not -1.0"),
        (lambda: optim.SGD([W], lr=math.nan), ValueError, "SGD needs lr >= 0, not nan"),
        (lambda: optim.SGD([W], nesterov=True), ValueError, "SGD: Nesterov momentum needs momentum > 0 and dampening 0"),
        (lambda: optim.Adam([W], betas=(1.0, 0.9)), ValueError, "Adam needs 0 <= beta1 < 1, not 1.0"),
        (
            lambda: optim.Adagrad([W], initial_accumulator_value=-1.0),
            ValueError,
            "Adagrad needs initial_accumulator_value >= 0, not -1.0",
        ),
        (
            lambda: optim.SGD([{"params": [W], "speed": 1}]),
            TypeError,
            "SGD has no option 'speed'; it has: lr, momentum, dampening, weight_decay, nesterov, maximize",
        ),
        (lambda: optim.SGD([{"lr": 1}]), TypeError, "SGD: a parameter group needs the key 'params'"),
        (
            lambda: optim.SGD([W], momentum=0.0).param_groups[0].__setitem__("momentum", 0.9),
            ValueError,
            "SGD was made with momentum=0 and has no buffers for it; make it with momentum > 0",
        ),
        (
            lambda: optim.SGD([W]).param_groups[0].__setitem__("nesterov", True),
            ValueError,
            "'nesterov' of a parameter group is fixed when the group is made; make another optimizer, or use "
            "add_param_group",
        ),
        (
            lambda: optim.SGD([{"params": [W]}, {"params": [W]}]),
            ValueError,
            "SGD: a parameter of shape (2,) is given twice",
        ),
    ],
)
def test_errors(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        make()
    assert str(error.value) == message


# Schedules


def _rates(make: Any, steps: int, lr: float = 1.0) -> list[float]:
    optimizer = optim.SGD([_w()], lr=lr)
    scheduler = make(optimizer)
    rates = [optimizer.lr]
    for _ in range(steps):
        scheduler.step()
        rates.append(optimizer.lr)
    assert scheduler.get_last_lr() == [rates[-1]]
    return rates


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: optim.StepLR(o, 2, 0.5), [1, 1, 0.5, 0.5, 0.25]),
        (lambda o: optim.MultiStepLR(o, [3, 1], 0.5), [1, 0.5, 0.5, 0.25, 0.25]),
        (lambda o: optim.ExponentialLR(o, 0.5), [1, 0.5, 0.25, 0.125, 0.0625]),
        (lambda o: optim.LambdaLR(o, lambda epoch: 1 / (1 + epoch)), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        (lambda o: optim.LinearLR(o, 0.25, 1.0, 3), [0.25, 0.5, 0.75, 1, 1]),
        (lambda o: optim.ConstantLR(o, 0.5, 2), [0.5, 0.5, 1, 1, 1]),
        (lambda o: optim.PolynomialLR(o, 4, 2.0), [1, 9 / 16, 4 / 16, 1 / 16, 0]),
        (lambda o: optim.CosineAnnealingLR(o, 4, 0.2), [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]),
        (lambda o: optim.OneCycleLR(o, 2.0, 5, 0.4, 4.0, 10.0), [0.5, 2.0, 0.05 + 1.95 * 0.75, 0.05 + 1.95 * 0.25, 0.05]),
        (
            lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.5, 1.0, 2), optim.ExponentialLR(o, 0.1)], [2]),
            [0.5, 0.75, 1.0, 0.1, 0.01],
        ),
    ],
)
def test_schedules(make: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(_rates(make, 4), expected, rtol=1e-12, atol=1e-15)


def test_schedules_of_groups_and_their_state() -> None:
    optimizer = optim.SGD([{"params": [_w()], "lr": 1.0}, {"params": [_w()], "lr": 10.0}])
    scheduler = optim.LambdaLR(optimizer, [lambda e: 0.5**e, lambda e: 0.1**e])
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5, 1.0]
    other = optim.LambdaLR(optim.SGD([{"params": [_w()], "lr": 1.0}, {"params": [_w()], "lr": 10.0}]), scheduler.lr_lambdas)
    other.load_state_dict(scheduler.state_dict())
    assert other.epoch == 1 and other.get_last_lr() == [0.5, 1.0]
    other.step()
    np.testing.assert_allclose(other.get_last_lr(), [0.25, 0.1])
    with pytest.raises(ValueError, match=r"LambdaLR.load_state_dict: the state has no 'epoch'"):
        other.load_state_dict({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: optim.StepLR(o, 0), "StepLR needs step_size > 0, not 0"),
        (lambda o: optim.LambdaLR(o, []), "LambdaLR got 0 functions for 1 parameter groups"),
        (lambda o: optim.LinearLR(o, 0.0), "LinearLR needs 0 < start_factor <= 1"),
        (lambda o: optim.CosineAnnealingLR(o, 0), "CosineAnnealingLR needs T_max > 0, not 0"),
        (lambda o: optim.PolynomialLR(o, 0), "PolynomialLR needs total_iters > 0, not 0"),
        (lambda o: optim.OneCycleLR(o, 1.0, 1), "OneCycleLR needs total_steps > 1 and 0 < pct_start < 1, not 1 and 0.3"),
        (lambda o: optim.SequentialLR(o, [], []), "SequentialLR needs one ascending milestone less than its 0 schedulers"),
    ],
)
def test_schedule_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make(optim.SGD([_w()]))
    assert str(error.value).startswith(message)
    with pytest.raises(TypeError, match=r"StepLR needs an Optimizer, not float"):
        optim.StepLR(0.1, 1)  # type: ignore[arg-type]
