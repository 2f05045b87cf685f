"""Modules: registration, state, hooks, text, containers, initialisation, clipping."""

from __future__ import annotations

import math
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc import nn
from graphc.runtime.nn import init


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 2, bias=False)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.second(self.norm(self.first(x)))


NAMES = ["first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight"]
BUFFERS = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


def test_parameters_buffers_and_modules_by_name() -> None:
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_buffers()] == BUFFERS
    assert [name for name, _ in net.named_modules()] == ["", "first", "norm", "second"]
    assert [name for name, _ in net.named_children()] == ["first", "norm", "second"]
    assert next(net.modules()) is net
    assert list(net.children()) == [net.first, net.norm, net.second]
    assert [name for name, _ in net.named_parameters(recurse=False)] == []
    assert net.get_submodule("norm") is net.norm
    assert net.get_parameter("first.weight") is net.first.weight
    assert all(p.requires_grad for p in net.parameters())
    assert not any(b.requires_grad for b in net.buffers())


def test_a_shared_parameter_counts_once_and_is_saved_under_both_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert len(list(net.parameters())) == 3
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_shared_module_counts_once_and_is_saved_under_both_names() -> None:
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(net.parameters())) == 2
    assert len(list(net.modules())) == 3
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    net.load_state_dict(net.state_dict())


def test_assignment_registers_replaces_and_protects() -> None:
    net = Net()
    net.extra = nn.Parameter(gc.zeros((2,)))
    assert [name for name, _ in net.named_parameters()] == ["extra", *NAMES]
    del net.extra
    assert [name for name, _ in net.named_parameters()] == NAMES
    net.second = None
    assert [name for name, _ in net.named_parameters()] == NAMES[:-1]
    net.second = nn.Identity()
    net.first.bias = None
    assert net.first(gc.ones((1, 3))).shape == (1, 4)
    with pytest.raises(TypeError) as error:
        net.first.weight = gc.ones((4, 3))
    assert str(error.value) == (
        "Linear.weight is a parameter and cannot be assigned a Tensor; assign an nn.Parameter or None"
    )
    with pytest.raises(TypeError) as error:
        net.norm.running_mean = 3.0
    assert str(error.value) == (
        "BatchNorm1d.running_mean is a buffer and cannot be assigned a float; assign a Tensor or None"
    )
    with pytest.raises(TypeError) as error:
        net.first = 3
    assert str(error.value) == "Net.first is a child module and cannot be assigned a int; assign a Module or None"
    with pytest.raises(AttributeError) as error:
        net.missing  # noqa: B018
    assert str(error.value) == "Net has no attribute 'missing'"


def test_a_plain_attribute_may_become_a_parameter_and_a_module() -> None:
    net = Net()
    net.thing = None
    net.thing = nn.Parameter(gc.zeros((1,)))
    assert "thing" in dict(net.named_parameters())
    net.thing = nn.ReLU()
    assert "thing" not in dict(net.named_parameters())
    assert "thing" in dict(net.named_children())


def test_names_that_cannot_be_registered() -> None:
    net = Net()
    for name, kind in (("a.b", "buffer"), ("", "buffer")):
        with pytest.raises(ValueError) as error:
            net.register_buffer(name, gc.zeros((1,)))
        assert str(error.value) == f"a {kind} needs a non-empty name without dots, not {name!r}"
    with pytest.raises(ValueError) as error:
        net.register_parameter("forward", None)
    assert str(error.value) == "Net already has an attribute 'forward'; choose another name"
    with pytest.raises(TypeError) as error:
        net.register_parameter("w", gc.zeros((1,)))  # type: ignore[arg-type]
    assert str(error.value) == "register_parameter('w') needs an nn.Parameter or None, not Tensor"

    class Early(nn.Module):
        def __init__(self) -> None:
            self.x = 1

    with pytest.raises(AttributeError) as error:
        Early()
    assert str(error.value) == (
        "Early.x is assigned before Module.__init__() has run; call super().__init__() first"
    )


def test_what_is_not_there() -> None:
    net = Net()
    with pytest.raises(AttributeError) as error:
        net.get_submodule("first.conv")
    assert str(error.value) == "Net has no module 'first.conv': Linear has no child 'conv' (it has: none)"
    with pytest.raises(AttributeError) as error:
        net.get_parameter("first.scale")
    assert str(error.value) == "Net has no parameter 'first.scale': Linear has weight, bias"
    with pytest.raises(TypeError) as error:
        nn.Module()(1)
    assert str(error.value) == "Module defines no forward(), so it cannot be called"


def test_state_dict_round_trip() -> None:
    net, other = Net(), Net()
    net(gc.asarray(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)))
    state = net.state_dict()
    assert list(state) == ["first.weight", "first.bias", "norm.weight", "norm.bias", *BUFFERS, "second.weight"]
    assert not any(t.requires_grad for t in state.values())
    held = [id(p) for p in other.parameters()]
    assert other.load_state_dict(state) == nn.IncompatibleKeys([], [])
    assert [id(p) for p in other.parameters()] == held
    assert all(p.requires_grad for p in other.parameters())
    for name, tensor in other.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name].numpy())


def test_a_state_dict_is_the_state_of_its_moment() -> None:
    net = Net()
    state = net.state_dict()
    before = state["first.weight"].numpy().copy()
    init.ones_(net.first.weight)
    np.testing.assert_array_equal(state["first.weight"].numpy(), before)


def test_load_state_dict_tells_everything_that_is_wrong_and_changes_nothing() -> None:
    net = Net()
    state = net.state_dict()
    del state["first.bias"], state["norm.running_var"]
    state["old.weight"] = gc.zeros((1,))
    state["first.weight"] = gc.zeros((4, 5))
    state["second.weight"] = gc.zeros((2, 4))
    before = net.second.weight.numpy().copy()
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    assert str(error.value) == (
        "Net.load_state_dict: the state does not fit the module\n"
        "  missing: first.bias, norm.running_var\n"
        "  unexpected: old.weight\n"
        "  shape: first.weight is f32[4, 3] in the module and f32[4, 5] in the state\n"
        "pass strict=False to load the names that both have"
    )
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state, strict=False)
    assert str(error.value) == (
        "Net.load_state_dict: the state does not fit the module\n"
        "  shape: first.weight is f32[4, 3] in the module and f32[4, 5] in the state"
    )
    np.testing.assert_array_equal(net.second.weight.numpy(), before)
    del state["first.weight"]
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["first.weight", "first.bias", "norm.running_var"]
    assert result.unexpected_keys == ["old.weight"]
    np.testing.assert_array_equal(net.second.weight.numpy(), np.zeros((2, 4)))
    with pytest.raises(TypeError) as error2:
        net.load_state_dict([])  # type: ignore[arg-type]
    assert str(error2.value) == "Net.load_state_dict needs a dict of tensors, not list"


def test_loading_casts_to_the_dtype_of_the_module() -> None:
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": gc.asarray(np.array([[1.5, 2.5]])), "bias": gc.asarray(np.array([3.0]))})
    assert layer.weight.dtype.name == "float32"
    assert layer.weight.numpy().tolist() == [[1.5, 2.5]]


def test_non_persistent_buffers_stay_out_of_the_state() -> None:
    net = nn.Module()
    net.register_buffer("kept", gc.zeros((1,)))
    net.register_buffer("scratch", gc.zeros((1,)), persistent=False)
    assert [name for name, _ in net.named_buffers()] == ["kept", "scratch"]
    assert list(net.state_dict()) == ["kept"]


def test_train_eval_requires_grad_zero_grad_apply() -> None:
    net = Net()
    assert net.training
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    assert not any(p.requires_grad for p in net.requires_grad_(False).parameters())
    net.requires_grad_()
    net(gc.ones((4, 3)) * gc.reshape(gc.arange(4), (4, 1))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all(not p.grad.numpy().any() for p in net.parameters())  # type: ignore[union-attr]
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    seen: list[nn.Module] = []
    net.apply(seen.append)
    assert seen == [net.first, net.norm, net.second, net]
    with pytest.raises(TypeError, match=r"train\(mode\) needs a bool, not int"):
        net.train(1)  # type: ignore[arg-type]


def test_to_casts_floats_in_place_and_keeps_the_objects() -> None:
    net = Net()
    held = [id(t) for t in (*net.parameters(), *net.buffers())]
    net(gc.ones((4, 3)) * gc.reshape(gc.arange(4), (4, 1))).sum().backward()
    assert net.to(gc.float64) is net
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == held
    assert all(p.dtype.name == "float64" and p.requires_grad and p.is_leaf for p in net.parameters())
    assert all(p.grad is not None and p.grad.dtype.name == "float64" for p in net.parameters())
    assert net.norm.num_batches_tracked.dtype.name == "int64"
    assert net.half().first.weight.dtype.name == "float16"
    assert net.to("cpu", gc.float32).first.weight.dtype.name == "float32"
    with pytest.raises(TypeError) as error:
        net.to(gc.int32)
    assert str(error.value) == "Module.to casts parameters to floating-point dtypes only, not to int32"


def test_forward_hooks_see_and_replace() -> None:
    layer = nn.Linear(2, 2)
    x = gc.asarray([[1.0, 2.0]])
    plain = layer(x).numpy()
    calls: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        calls.append(("before", module, args))
        return args[0] * 0

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        calls.append(("after", module, args))
        return output + 1

    pre, post = layer.register_forward_pre_hook(before), layer.register_forward_hook(after)
    np.testing.assert_allclose(layer(x).numpy(), layer.bias.numpy()[None] + 1, rtol=1e-6)
    assert [c[0] for c in calls] == ["before", "after"]
    assert calls[0][2] == (x,) and not calls[1][2][0].numpy().any()
    pre.remove()
    pre.remove()
    np.testing.assert_array_equal(layer(x).numpy(), plain + np.float32(1))
    with post:
        assert len(calls) == 3
    np.testing.assert_array_equal(layer(x).numpy(), plain)
    layer.register_forward_hook(lambda module, args, output: None)
    np.testing.assert_array_equal(layer(x).numpy(), plain)
    with pytest.raises(TypeError, match=r"a hook must be callable, not int"):
        layer.register_forward_hook(3)  # type: ignore[arg-type]


def test_repr_is_that_of_pytorch() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.ModuleList([nn.Linear(4, 2), nn.Identity()]),
        nn.Dropout(0.1),
    )
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)\n"
        "  (1): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  (2): ReLU()\n"
        "  (3): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)\n"
        "  (4): ModuleList(\n"
        "    (0): Linear(in_features=4, out_features=2, bias=True)\n"
        "    (1): Identity()\n"
        "  )\n"
        "  (5): Dropout(p=0.1)\n"
        ")"
    )


# Containers


def test_sequential() -> None:
    net = nn.Sequential({"a": nn.Linear(2, 3), "b": nn.ReLU()})
    assert [name for name, _ in net.named_parameters()] == ["a.weight", "a.bias"]
    assert net(gc.ones((1, 2))).shape == (1, 3)
    net.append(nn.Linear(3, 1))
    assert len(net) == 3 and isinstance(net[-1], nn.Linear) and len(net[1:]) == 2
    net[1] = nn.Tanh()
    assert isinstance(net[1], nn.Tanh)
    with pytest.raises(IndexError) as error:
        net[3]
    assert str(error.value) == "index 3 is outside a Sequential of length 3"
    with pytest.raises(TypeError) as error2:
        nn.Sequential(lambda x: x)  # type: ignore[arg-type]
    assert str(error2.value) == "Sequential holds modules, not function"


def test_module_list() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2)])
    layers.append(nn.ReLU()).extend([nn.Linear(2, 3)])
    layers.insert(0, nn.Tanh())
    assert [type(m).__name__ for m in layers] == ["Tanh", "Linear", "ReLU", "Linear"]
    assert [name for name, _ in layers.named_parameters()] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    del layers[0]
    assert [type(m).__name__ for m in layers[:2]] == ["Linear", "ReLU"]
    layers[-1] = nn.Identity()
    assert isinstance(layers[2], nn.Identity) and len(layers) == 3


def test_module_dict() -> None:
    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.ReLU()
    assert table.keys() == ["a", "b"] and "a" in table and len(table) == 2
    assert [name for name, _ in table.named_parameters()] == ["a.weight", "a.bias"]
    assert dict(table.items())["b"] is table.values()[1]
    del table["a"]
    assert list(table) == ["b"]
    with pytest.raises(KeyError, match=r"ModuleDict has no 'a'; it has: b"):
        table["a"]


def test_parameter_list() -> None:
    parameters = nn.ParameterList([gc.zeros((2,)), nn.Parameter(gc.ones((1,)))])
    parameters.append(gc.zeros((3,)))
    assert [p.shape for p in parameters] == [(2,), (1,), (3,)]
    assert all(p.requires_grad for p in parameters)
    assert [name for name, _ in parameters.named_parameters()] == ["0", "1", "2"]
    parameters[0] = gc.ones((5,))
    assert parameters[0].shape == (5,) and len(parameters) == 3


# Initialisation

SHAPE = (200, 100)


@pytest.mark.parametrize(
    ("fill", "low", "high", "mean", "std"),
    [
        (lambda t: init.uniform_(t, -2.0, 3.0), -2.0, 3.0, 0.5, 5 / math.sqrt(12)),
        (lambda t: init.normal_(t, 1.0, 2.0), None, None, 1.0, 2.0),
        (lambda t: init.trunc_normal_(t), -2.0, 2.0, 0.0, 0.87963),
        (lambda t: init.trunc_normal_(t, 1.0, 0.5, 0.0, 1.5), 0.0, 1.5, 0.88518, 0.36047),
        (lambda t: init.xavier_uniform_(t, 2.0), -2 * math.sqrt(6 / 300), 2 * math.sqrt(6 / 300), 0.0, 2 * math.sqrt(2 / 300)),
        (lambda t: init.xavier_normal_(t), None, None, 0.0, math.sqrt(2 / 300)),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), -math.sqrt(6 / 100), math.sqrt(6 / 100), 0.0, math.sqrt(2 / 100)),
        (lambda t: init.kaiming_normal_(t, 1.0, "fan_out"), None, None, 0.0, math.sqrt(1 / 200)),
        (lambda t: init.default_(t, None), -0.1, 0.1, 0.0, 0.1 / math.sqrt(3)),
    ],
)
def test_random_initialisation(fill: Any, low: Any, high: Any, mean: float, std: float) -> None:
    gc.manual_seed(0)
    tensor = nn.Parameter(gc.zeros(SHAPE))
    fill(tensor)
    values = tensor.numpy().astype(np.float64)
    assert tensor.requires_grad and tensor.is_leaf
    # Of n draws the mean is off by std / sqrt(n), the deviation by about as much: five of those.
    margin = 5 * std / math.sqrt(values.size)
    assert abs(values.mean() - mean) < margin
    assert abs(values.std() - std) < margin
    if low is not None:
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high


def test_draws_are_as_fine_as_the_dtype() -> None:
    for dtype, bits in (("float64", 53), ("float32", 24)):
        values = init.uniform_(gc.zeros((1000,), dtype=dtype)).numpy().astype(np.float64)
        assert np.all(values * 2.0**bits % 1 == 0) and np.any(values * 2.0 ** (bits - 2) % 1 != 0)
    assert len(np.unique(init.normal_(gc.zeros((1000,), dtype="bfloat16")).astype("float32").numpy())) > 300


def test_the_seed_decides_the_weights() -> None:
    gc.manual_seed(5)
    a = nn.Linear(7, 3)
    gc.manual_seed(5)
    b = nn.Linear(7, 3)
    gc.manual_seed(6)
    c = nn.Linear(7, 3)
    np.testing.assert_array_equal(a.weight.numpy(), b.weight.numpy())
    assert not np.array_equal(a.weight.numpy(), c.weight.numpy())


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 2)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    tensor = init.orthogonal_(gc.zeros(shape), gain=2.0).numpy().reshape(shape[0], -1).astype(np.float64)
    product = tensor @ tensor.T if tensor.shape[0] <= tensor.shape[1] else tensor.T @ tensor
    # Rounding of the result to float32.
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


def test_constants_gains_and_errors() -> None:
    assert init.constant_(gc.zeros((2,)), 3.0).numpy().tolist() == [3.0, 3.0]
    assert init.ones_(gc.zeros((2,))).numpy().tolist() == [1.0, 1.0]
    assert init.zeros_(gc.ones((2,))).numpy().tolist() == [0.0, 0.0]
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("leaky_relu", 0.2) == math.sqrt(2 / 1.04)
    assert init.calculate_gain("tanh") == 5 / 3
    with pytest.raises(ValueError, match=r"calculate_gain knows linear, .*, leaky_relu, not 'cube'"):
        init.calculate_gain("cube")
    with pytest.raises(ValueError) as error:
        init.xavier_normal_(gc.zeros((3,)))
    assert str(error.value) == "fan in and fan out need a tensor of at least two axes, not shape (3,)"
    with pytest.raises(ValueError, match=r"trunc_normal_ needs a < b, not 1.0 and 1.0"):
        init.trunc_normal_(gc.zeros((3,)), a=1.0, b=1.0)
    with pytest.raises(ValueError, match=r"mode must be 'fan_in' or 'fan_out', not 'fan'"):
        init.kaiming_normal_(gc.zeros((3, 3)), mode="fan")


# Clipping


def _with_gradients(*values: Any) -> list[nn.Parameter]:
    parameters = []
    for value in values:
        parameter = nn.Parameter(gc.zeros(np.shape(value)))
        parameter.grad = gc.asarray(np.asarray(value, np.float32))
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize(("norm_type", "norm"), [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0)])
def test_clip_grad_norm(norm_type: float, norm: float) -> None:
    parameters = [*_with_gradients([3.0, -4.0], [[12.0]]), nn.Parameter(gc.zeros((1,)))]
    total = nn.clip_grad_norm_(parameters, 2.0, norm_type)
    assert total.item() == norm
    for parameter, value in zip(parameters, ([3.0, -4.0], [[12.0]]), strict=False):
        # One rounding of the factor and one of the product.
        np.testing.assert_allclose(parameter.grad.numpy(), np.array(value) * (2 / (norm + 1e-6)), rtol=2e-7)
    assert parameters[2].grad is None
    held = parameters[0].grad.numpy().copy()
    nn.clip_grad_norm_(parameters, 100.0, norm_type)
    np.testing.assert_array_equal(parameters[0].grad.numpy(), held)


def test_clip_grad_norm_of_nothing_and_of_nan() -> None:
    assert nn.clip_grad_norm_([nn.Parameter(gc.zeros((1,)))], 1.0).item() == 0.0
    with pytest.raises(ValueError, match=r"the norm of the gradients is nan"):
        nn.clip_grad_norm_(_with_gradients([math.nan]), 1.0, error_if_nonfinite=True)
    with pytest.raises(ValueError, match=r"needs max_norm >= 0, not -1"):
        nn.clip_grad_norm_(_with_gradients([1.0]), -1)


def test_clip_grad_value() -> None:
    (parameter,) = _with_gradients([-3.0, 0.5, math.nan, 2.0])
    nn.clip_grad_value_(parameter, 1.0)
    np.testing.assert_array_equal(parameter.grad.numpy(), [-1.0, 0.5, math.nan, 1.0])


def test_modules_can_be_copied_and_pickled() -> None:
    import copy
    import pickle

    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    x = gc.asarray(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert repr(other) == repr(net) and not other.training
        assert all(p.requires_grad and p.is_leaf for p in other.parameters())
        np.testing.assert_array_equal(other(x).numpy(), net(x).numpy())
        init.zeros_(other[0].weight)
        assert net[0].weight.numpy().any()
