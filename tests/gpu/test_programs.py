"""gc.compile on a device, and training: the bits of the CPU, decisions, donation, graphs, values of the host."""

from __future__ import annotations

from typing import Any

import graphc as gc
import numpy as np
import pytest

from tests.gpu.test_tensors import array, same


def model() -> gc.nn.Module:
    gc.manual_seed(3)
    return gc.nn.Sequential(gc.nn.Linear(6, 8), gc.nn.GELU(), gc.nn.LayerNorm(8), gc.nn.Dropout(0.25), gc.nn.Linear(8, 4))


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: gc.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: gc.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: gc.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: gc.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: gc.optim.Adagrad(p, lr=0.01),
}


def train(device: str, optimizer: str, compiled: bool, steps: int = 4) -> tuple[list[float], gc.nn.Module, Any]:
    net = model().to(device)
    made = OPTIMIZERS[optimizer](net.parameters())
    schedule = gc.optim.StepLR(made, step_size=2, gamma=0.5)

    def step(x: gc.Tensor, labels: gc.Tensor) -> gc.Tensor:
        loss = gc.nn.functional.cross_entropy(net(x), labels)
        made.zero_grad()
        loss.backward()
        gc.nn.clip_grad_norm_(net.parameters(), 1.0)
        made.step()
        return loss

    run = gc.compile(step) if compiled else step
    losses = []
    gc.manual_seed(11)
    for i in range(steps):
        x, labels = gc.asarray(array(5, 6, seed=i)), gc.asarray(np.arange(5) % 4)
        losses.append(run(x.to(device), labels.to(device)))
        schedule.step()
    return [loss.item() for loss in losses], net, made


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_gives_the_bits_of_the_cpu(optimizer: str, compiled: bool) -> None:
    here, net, made = train("cpu", optimizer, compiled)
    there, other, its = train("cuda", optimizer, compiled)
    assert here == there
    for (name, p), (_, q) in zip(net.named_parameters(), other.named_parameters()):
        assert q.device == "cuda:0" and (q.grad is None or q.grad.device == "cuda:0"), name
        same(q, p)
    for name, t in made.state_dict().items():
        same(its.state_dict()[name], t)
    for state in its.state.values():
        assert all(t.device == "cuda:0" for t in state.values())


def test_modules_move_with_buffers_and_gradients() -> None:
    net = gc.nn.Sequential(gc.nn.Conv2d(2, 3, 3), gc.nn.BatchNorm2d(3))
    x = gc.asarray(array(2, 2, 5, 5))
    net(x).sum().backward()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    identity = [id(p) for p in net.parameters()]
    assert net.cuda() is net and [id(p) for p in net.parameters()] == identity
    assert all(t.device == "cuda:0" for t in net.state_dict().values())
    assert all(p.grad is not None and p.grad.device == "cuda:0" for p in net.parameters())
    for name, t in net.state_dict().items():
        same(t, before[name])
    fresh = gc.nn.Sequential(gc.nn.Conv2d(2, 3, 3), gc.nn.BatchNorm2d(3))
    fresh.load_state_dict(net.state_dict())
    assert fresh[0].weight.device == "cpu"
    same(fresh[0].weight, net[0].weight)
    assert all(t.device == "cpu" for t in net.cpu().state_dict().values())
    out = net.cuda()(x.cuda())
    assert out.device == "cuda:0"


def test_state_of_an_optimizer_is_loaded_where_its_parameters_are() -> None:
    _, _, here = train("cpu", "adam", False)
    _, _, there = train("cuda", "adam", False, 1)
    there.load_state_dict(here.state_dict())
    for name, t in here.state_dict().items():
        same(there.state_dict()[name], t)
    assert all(t.device == "cuda:0" for state in there.state.values() for t in state.values())


def test_a_module_that_moved_after_its_optimizer_was_made() -> None:
    net = gc.nn.Linear(3, 2)
    made = gc.optim.Adam(net.parameters())
    net.cuda()
    net(gc.ones(4, 3, device="cuda")).sum().backward()
    with pytest.raises(RuntimeError, match="Adam.step: a parameter .* is on cuda:0 and its state on cpu; move the module before"):
        made.step()


def test_decisions_bring_their_outcome_back() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x * 2 if x.sum() > 0 else -x

    for values in ([1.0, 2.0], [-1.0, -2.0], [3.0, 1.0], [-4.0, 1.0]):
        x = gc.tensor(values).cuda()
        y = f(x)
        assert y.device == "cuda:0" and y.tolist() == ([2 * v for v in values] if sum(values) > 0 else [-v for v in values])
    assert [len(family.recordings) for family in f._families.values()] == [2]


def test_numbers_and_scalars_of_the_cpu_are_inputs() -> None:
    @gc.compile
    def f(x: gc.Tensor, scale: float, shift: gc.Tensor) -> Any:
        return x * scale + shift, scale + 1

    x = gc.arange(3.0, device="cuda")
    for scale, shift in ((2.0, 1.0), (3.0, 5.0), (2.0, 5.0)):
        y, n = f(x, scale, gc.asarray(shift))
        assert y.tolist() == [v * scale + shift for v in range(3)] and n == scale + 1


def test_host_values_are_sent_once(compiled: None) -> None:
    x = gc.arange(3.0, device="cuda")
    context = x.device.context
    (x * 2.5).tolist()
    known = len(context._sent)
    for _ in range(5):
        x = x * 2.5
    assert len(context._sent) == known
    assert x.tolist() == [v * 2.5**5 for v in range(3)]


def test_signatures_tell_devices_apart() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        return x + 1

    for _ in range(2):
        assert f(gc.ones(2)).device == "cpu" and f(gc.ones(2, device="cuda")).device == "cuda:0"
    assert [len(family.recordings) for family in f._families.values()] == [1, 1]


def test_a_program_may_take_and_give_tensors_elsewhere() -> None:
    w = gc.asarray(array(4, 3)).cuda()

    @gc.compile
    def f(x: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
        y = x.cuda() @ w
        return y, (y * 2).cpu() + 1

    @gc.composite
    def g(x: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
        return (x.to(v.device) @ v).to("cpu")

    for seed in range(3):
        x = gc.asarray(array(5, 4, seed=seed))
        a, b = f(x)
        assert (str(a.device), str(b.device)) == ("cuda:0", "cpu")
        same(a, x @ w.cpu())
        same(b, (x @ w.cpu()) * 2 + 1)
        same(g(x, w), x @ w.cpu())


def test_parameters_are_updated_in_place() -> None:
    p = gc.zeros(64, device="cuda")

    @gc.compile
    def f(x: gc.Tensor) -> None:
        p.add_(x)

    x = gc.ones(64, device="cuda")
    f(x)
    places = []
    for _ in range(3):
        f(x)
        places.append(p.data_ptr())
    assert len(set(places)) == 1
    kept = p.detach()
    f(x)
    assert kept[0].item() == 4.0 and p[0].item() == 5.0


def test_creation_and_random_numbers_inside() -> None:
    @gc.compile
    def f(x: gc.Tensor) -> gc.Tensor:
        noise = gc.rand(3, device=x.device)
        return x + gc.arange(3, device=x.device) + noise + gc.tensor([1.0, 2.0, 3.0], device=x.device)

    results = {}
    for device in ("cpu", "cuda"):
        gc.manual_seed(2)
        results[device] = [f(gc.ones(3, device=device)) for _ in range(3)]
    for a, b in zip(results["cpu"], results["cuda"]):
        same(b, a)
        assert b.device == "cuda:0"


def test_two_devices_inside_a_program() -> None:
    @gc.compile
    def f(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        return x + y

    with pytest.raises(RuntimeError, match="the operands are on cuda:0 and cpu"):
        f(gc.ones(2, device="cuda"), gc.ones(2))


def test_autograd_through_a_compiled_function() -> None:
    @gc.compile
    def f(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return gc.nn.functional.softmax(x @ w, axis=-1)

    grads = {}
    for device in ("cpu", "cuda"):
        x = gc.asarray(array(4, 3)).to(device).requires_grad_()
        w = gc.asarray(array(3, 5)).to(device).requires_grad_()
        for _ in range(2):
            x.grad = w.grad = None
            (f(x, w) ** 2).sum().backward()
        grads[device] = (x.grad, w.grad)
    for a, b in zip(grads["cpu"], grads["cuda"]):
        same(b, a)


def test_seeding_inside_with_generators_of_several_devices(simulated: None) -> None:
    gc.rand(2, device="cuda:0"), gc.rand(2, device="cuda:1")

    @gc.compile
    def f() -> gc.Tensor:
        gc.manual_seed(9)
        return gc.rand(3)

    first = f().numpy()
    gc.manual_seed(1)
    assert first.tobytes() == f().numpy().tobytes()
    with gc.cuda.device(1):
        gc.manual_seed(9)
        assert gc.rand(3, device="cuda").cpu().numpy().tobytes() == first.tobytes()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_training_on_another_device_than_the_default_one(place: str, optimizer: str) -> None:
    def train() -> bytes:
        gc.manual_seed(5)
        with gc.device("cpu"):
            model = gc.nn.Sequential(gc.nn.Linear(3, 4), gc.nn.Dropout(0.3), gc.nn.Linear(4, 2)).to(place)
        made = getattr(gc.optim, optimizer)(model.parameters(), lr=0.1)
        schedule = gc.optim.lr_scheduler.StepLR(made, 1)
        x, y = gc.ones(5, 3, device=place), gc.zeros(5, dtype="int64", device=place)

        def step() -> Any:
            made.zero_grad()
            loss = gc.nn.functional.cross_entropy(model(x) * 2.0, y)
            loss.backward()
            gc.nn.clip_grad_norm_(model.parameters(), 1.0)
            made.step()
            return loss

        compiled = gc.compile(step)
        for f in (step, compiled, compiled, compiled):
            assert f().device == place
            schedule.step()
        return b"".join(p.cpu().numpy().tobytes() for p in model.parameters())

    wanted = train()
    with gc.device(f"cuda:{gc.cuda.device_count() - 1}"):
        assert train() == wanted


def test_random_numbers_beside_a_tensor_are_where_it_is() -> None:
    x = gc.full((3, 4), 0.5)
    with gc.device("cuda"):
        for y in (gc.rand_like(x), gc.randn_like(x), gc.bernoulli(x), gc.multinomial(x, 2), x.clone().uniform_(), x.clone().normal_()):
            assert y.device == "cpu"
        assert (x * np.float64(2)).device == (np.float64(2) * x).device == "cpu"


def test_gradients_are_clipped_on_several_devices() -> None:
    def clipped(*places: str) -> list[Any]:
        ws = [gc.ones(3, device=p).requires_grad_() for p in places]
        for w in ws:
            (w * 2).sum().backward()
        return [gc.nn.clip_grad_norm_(ws, 1.0).item(), *(w.grad.tolist() for w in ws)]

    assert clipped("cpu", "cuda") == clipped("cuda", "cpu") == clipped("cpu", "cpu")


def test_parameters_and_gradients_go_from_one_gpu_to_another() -> None:
    if gc.cuda.device_count() < 2:
        pytest.skip("there is one device")
    model = gc.nn.Linear(2, 2).to("cuda:0").to("cuda:1")
    assert model.weight.device == "cuda:1" and model.weight.requires_grad
    x = gc.ones(3, device="cuda:0").requires_grad_()
    (x.to("cuda:1") * 2).sum().backward()
    assert x.grad.device == "cuda:0" and x.grad.tolist() == [2.0] * 3
