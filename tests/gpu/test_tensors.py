"""Tensors on a device: moving, creation, operations, indexing, gradients, pickling, text."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphc as gc
import numpy as np
import pytest

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "bfloat16", "float32", "float64"]


def array(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def same(a: Any, b: Any) -> None:
    x, y = (t.cpu().numpy() if isinstance(t, gc.Tensor) else np.asarray(t) for t in (a, b))
    assert x.dtype == y.dtype and x.shape == y.shape
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_there_and_back(name: str) -> None:
    x = gc.asarray(array(3, 5, 2) * 3).astype(name)
    y = x.to("cuda")
    assert y.is_cuda and y.device == "cuda:0" and y.dtype is x.dtype and not x.is_cuda
    same(y, x)
    same(y.to("cuda:0").cpu().cuda().T.contiguous(), x.T.contiguous())
    assert y.to("cuda") is y and y.cpu().device == "cpu" and x.cpu() is x


def test_to_changes_device_and_element_type_at_once() -> None:
    x = gc.asarray(array(7))
    y = x.to("cuda", gc.float16)
    assert (str(y.device), y.dtype) == ("cuda:0", gc.float16)
    same(y, x.astype(gc.float16))
    z = y.to("cpu", dtype=gc.float64)
    assert (str(z.device), z.dtype) == ("cpu", gc.float64)
    assert x.to(y).device == "cuda:0" and x.to(y).dtype is gc.float16
    same(x.cuda(0).to(copy=True), x)


def test_specs_tell_devices_apart() -> None:
    x = gc.ones(3)
    assert x._spec is not x.cuda()._spec and x.cuda()._spec is gc.zeros(3, device="cuda")._spec
    assert str(x.cuda()._spec) == "f32[3] on cuda:0" and str(x._spec) == "f32[3]"
    assert x.cuda()._spec.with_shape((4,)) is gc.zeros(4, device="cuda")._spec


MADE: dict[str, Callable[..., gc.Tensor]] = {
    "zeros": lambda **d: gc.zeros(2, 3, **d),
    "ones int64": lambda **d: gc.ones((5,), dtype="int64", **d),
    "full float": lambda **d: gc.full((4, 4), 0.1, **d),
    "full float64": lambda **d: gc.full((4,), 0.1, dtype="float64", **d),
    "full int16": lambda **d: gc.full((3,), -2, dtype="int16", **d),
    "full bool": lambda **d: gc.full((3,), True, **d),
    "full of nothing": lambda **d: gc.full((0, 3), 1.0, **d),
    "arange": lambda **d: gc.arange(2, 17, 3, **d),
    "linspace": lambda **d: gc.linspace(0, 1, 7, **d),
    "eye": lambda **d: gc.eye(4, 5, k=1, **d),
    "tensor": lambda **d: gc.tensor([[1, 2], [3, 4]], **d),
    "asarray": lambda **d: gc.asarray(np.arange(6.0), **d),
    "empty": lambda **d: gc.empty(3, **d),
}


@pytest.mark.parametrize("name", MADE)
def test_creation(name: str) -> None:
    here, there = MADE[name](), MADE[name](device="cuda")
    assert there.device == "cuda:0"
    same(there, here)


def test_like_and_new_stay_where_the_tensor_is() -> None:
    x = gc.ones(2, 3, device="cuda")
    for y in (gc.zeros_like(x), gc.ones_like(x), gc.full_like(x, 7), x.new_zeros(3), x.new_tensor([1.0]), gc.rand_like(x), gc.bernoulli(x)):
        assert y.device == "cuda:0"
    assert gc.zeros_like(x, device="cpu").device == "cpu"


FILLS = (0, True, -1, -0.0, 2.5, -2.5, float("nan"), float("inf"), 300, 2**40, 2**63, 1e-45, 70000.0, np.float32(2.5), np.int8(-3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_fill_are_taken_or_refused_as_on_the_cpu(dtype: str) -> None:
    def outcome(device: str, value: Any) -> Any:
        try:
            return gc.full((5,), value, dtype=dtype, device=device).cpu().numpy().tobytes()
        except (TypeError, ValueError, OverflowError) as error:
            return type(error)

    for value in FILLS:
        assert outcome("cuda", value) == outcome("cpu", value), value


def test_random_numbers_are_those_of_the_cpu() -> None:
    for draw in (
        lambda **d: gc.rand(5, 3, **d), lambda **d: gc.randn(7, **d), lambda **d: gc.randint(0, 9, (11,), **d),
        lambda **d: gc.randperm(13, **d), lambda **d: gc.rand(3, dtype="float64", **d),
    ):  # fmt: skip
        gc.manual_seed(5)
        here = [draw() for _ in range(2)]
        gc.manual_seed(5)
        there = [draw(device="cuda") for _ in range(2)]
        for a, b in zip(here, there):
            same(b, a)


def test_generators_belong_to_devices() -> None:
    g = gc.Generator(3, device="cuda")
    assert g.device == "cuda:0"
    x = gc.rand(4, generator=g)
    assert x.device == "cuda:0"
    same(x, gc.rand(4, generator=gc.Generator(3)))
    same(gc.rand(4, generator=pickle.loads(pickle.dumps(g))), gc.rand(4, generator=g))
    with pytest.raises(RuntimeError, match="rand: the generator is on cuda:0 and the numbers are wanted on cpu.*Generator"):
        gc.rand(3, device="cpu", generator=g)
    gc.cuda.manual_seed(9)
    a = gc.rand(3, device="cuda")
    gc.cuda.manual_seed_all(9)
    same(gc.rand(3, device="cuda"), a)


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "arithmetic": lambda x, y: (x + y) * 2 - y / 3,
    "numbers": lambda x, y: 1 - x**2 + (x > 0.5) * 3,
    "scalars of the cpu": lambda x, y: x * gc.asarray(2.5) + gc.asarray(3),
    "matmul": lambda x, y: x @ y.T,
    "reductions": lambda x, y: gc.stack([x.sum(), x.mean(), y.max(), x.std()]),
    "rows": lambda x, y: gc.nn.functional.softmax(x, axis=-1) + y.sum(axis=0, keepdims=True),
    "views": lambda x, y: (x.T.reshape(-1)[3:20:2], x[1:, ::-1], y[..., None].expand(5, 7, 3)),
    "misaligned": lambda x, y: x.reshape(-1)[1:6] + y.reshape(-1)[3:8],
    "sort of indexing": lambda x, y: x[gc.tensor([0, 2])] + y[[1, 1]],
    "mask": lambda x, y: x[x > 0],
    "where": lambda x, y: gc.where(x > y, x, 0),
    "concat": lambda x, y: gc.concat([x, y], axis=1),
    "cumulative": lambda x, y: x.cumsum(axis=1),
    "arguments": lambda x, y: (x.argmax(axis=1), x.T.argmin()),
    "cast": lambda x, y: (x * 10).astype("int8").astype("float16"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_the_bits_of_the_cpu(name: str) -> None:
    f = OPERATIONS[name]
    x, y = gc.asarray(array(5, 7)), gc.asarray(array(5, 7, seed=1))
    here, there = f(x, y), f(x.cuda(), y.cuda())
    for a, b in zip(here, there) if isinstance(here, tuple) else [(here, there)]:
        assert b.device == "cuda:0"
        same(b, a)


def test_assignment() -> None:
    x = gc.zeros(4, 5)
    y = x.cuda()
    for t in (x, y):
        t[1] = 3
        t[:, 2] = gc.arange(4.0)
        t[gc.tensor([0, 3]), 1] = gc.asarray([7.0, 8.0])
        t[t > 7.5] = -1
        t[(t == 3).cpu()] = 4  # a mask of the CPU, as indices may be
        t += 0.5
        t.mul_(2)
        t.copy_(t.cpu() * 3)
    same(y, x)
    assert y.device == "cuda:0"


def test_gradients_flow_between_devices() -> None:
    x = gc.asarray(array(3, 4)).requires_grad_()
    w = gc.asarray(array(4, 2, seed=2)).cuda().requires_grad_()
    y = (x.cuda() @ w).tanh().cpu() * 2
    assert y.device == "cpu" and y.requires_grad
    y.sum().backward()
    a, b = gc.asarray(array(3, 4)).requires_grad_(), gc.asarray(array(4, 2, seed=2)).requires_grad_()
    ((a @ b).tanh() * 2).sum().backward()
    assert x.grad.device == "cpu" and w.grad.device == "cuda:0"
    same(x.grad, a.grad)
    same(w.grad, b.grad)


def test_gradients_with_hooks_and_second_derivatives() -> None:
    x = gc.asarray(array(6)).cuda().requires_grad_()
    seen = []
    y = x * x
    y.register_hook(lambda g: seen.append(g.device))
    (dx,) = gc.autograd.grad((y * x).sum(), x, create_graph=True)
    (ddx,) = gc.autograd.grad(dx.sum(), x)
    assert seen and all(d == "cuda:0" for d in seen)
    np.testing.assert_allclose(ddx.cpu().numpy(), 6 * array(6), rtol=1e-6)


def test_leaves_keep_their_device_in_transforms() -> None:
    def f(x: gc.Tensor) -> gc.Tensor:
        return (x.sin() * x).sum()

    x = gc.asarray(array(5))
    same(gc.grad(f)(x.cuda()), gc.grad(f)(x))
    value, tangent = gc.jvp(f, (x.cuda(),), (gc.ones(5, device="cuda"),))
    here = gc.jvp(f, (x,), (gc.ones(5),))
    same(value, here[0])
    same(tangent, here[1])


def test_python_looks_at_values() -> None:
    x = gc.asarray([1.5, 2.0]).cuda()
    assert x.tolist() == [1.5, 2.0] and x[1].item() == 2.0 and bool((x > 1).all()) and float(x[0]) == 1.5
    assert repr(x) == "tensor([1.5, 2. ], device='cuda:0')"
    assert repr(x.astype("int32")) == "tensor([1, 2], dtype=graphc.int32, device='cuda:0')"
    assert [v.item() for v in x] == [1.5, 2.0] and 2.0 in x and f"{x[0]:.2f}" == "1.50"


def test_numpy_asks_for_a_copy() -> None:
    x = gc.ones(2, device="cuda")
    for use in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.add.reduce(x)):
        with pytest.raises(TypeError, match=r"f32\[2\] on cuda:0 cannot become a NumPy array.*x\.cpu\(\)"):
            use()


def test_two_devices_in_an_operation() -> None:
    x = gc.ones(2, 3, device="cuda")
    with pytest.raises(RuntimeError) as caught:
        x + gc.ones(3)
    text = str(caught.value)
    assert text.startswith("add(f32[2, 3] on cuda:0, f32[3] on cpu): the operands are on cuda:0 and cpu")
    assert 'x.to("cuda:0")' in text and "test_tensors.py" in text
    with pytest.raises(RuntimeError, match=r"matmul\(f32\[3, 2\] on cpu, f32\[2, 3\] on cuda:0\)"):
        gc.ones(3, 2) @ x
    with pytest.raises(RuntimeError, match="linear|matmul"):
        gc.nn.Linear(3, 2)(x)
    y = gc.ones(3)
    with pytest.raises(RuntimeError, match="add in place: the result .* is on cuda:0 and the tensor .* on cpu"):
        z = gc.asarray(1.0)
        z += gc.ones((), device="cuda")
    assert (x * gc.asarray(2)).device == "cuda:0" and y.device == "cpu"


def test_two_cuda_devices() -> None:
    if gc.cuda.device_count() < 2:
        pytest.skip("there is one device")
    x, y = gc.ones(3, device="cuda:0"), gc.asarray(array(3)).to("cuda:1")
    with pytest.raises(RuntimeError, match=r"add\(f32\[3\] on cuda:0, f32\[3\] on cuda:1\): the operands are on cuda:0 and cuda:1"):
        x + y
    same(y.to("cuda:0"), y.cpu())
    with gc.cuda.device(1):
        assert gc.zeros(2, device="cuda").device == "cuda:1" and gc.cuda.current_device() == 1
    assert gc.cuda.current_device() == 0


def test_default_device() -> None:
    with gc.device("cuda"):
        assert gc.zeros(2).device == gc.tensor([1]).device == gc.rand(2).device == "cuda:0"
        assert gc.nn.Linear(2, 3).weight.device == "cuda:0"
        assert gc.zeros(2, device="cpu").device == "cpu"
    assert gc.zeros(2).device == "cpu" and gc.get_default_device() == "cpu"


def test_pickles_and_files(tmp_path: Path) -> None:
    x = gc.asarray(array(3, 4)).cuda()
    same(pickle.loads(pickle.dumps(x)), x)
    assert pickle.loads(pickle.dumps(x)).device == "cuda:0" and copy.deepcopy(x).device == "cuda:0"
    gc.save({"x": x}, tmp_path / "x.safetensors")
    assert gc.load(tmp_path / "x.safetensors")["x"].device == "cpu"
    same(gc.load(tmp_path / "x.safetensors", device="cuda")["x"], x)
    assert pickle.loads(pickle.dumps(gc.device("cuda"))) is gc.device("cuda:0")


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("name", [n for n in DTYPES if n != "bfloat16"])
def test_dlpack(name: str, version: Any) -> None:
    class Other:
        """Another library's tensor."""

        def __init__(self, x: gc.Tensor) -> None:
            self.x = x

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.x.__dlpack_device__()

        def __dlpack__(self, stream: Any = None, max_version: Any = None) -> Any:
            return self.x.__dlpack__(stream=stream, max_version=version)

    x = (gc.asarray(array(4, 6)) * 5).astype(name).cuda()
    assert x.__dlpack_device__() == (2, 0)
    y = gc.from_dlpack(Other(x))
    assert y.data_ptr() == x.data_ptr() and y.device == "cuda:0"
    same(y, x)
    z = gc.asarray(Other(x.T))
    same(z, x.T)
    kept = x.cpu()
    del x
    same(y + y, kept + kept)
    capsule = Other(y).__dlpack__()
    del capsule


def test_dlpack_gives_its_memory_back() -> None:
    from graphc.runtime.cuda import dlpack

    gc.cuda.empty_cache()  # what other tests left
    dlpack.forget_unused()
    before = len(dlpack._exported)
    x = gc.ones(100, device="cuda")
    y = gc.from_dlpack(x)
    assert len(dlpack._exported) == before + 1
    del y
    assert len(dlpack._exported) == before
    x.__dlpack__()
    dlpack.forget_unused()
    assert len(dlpack._exported) == before
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(x)
    dlpack.forget_unused()
    assert len(dlpack._exported) == before


def test_memory_of_another_library_is_kept_while_work_waits_for_it(simulated: None) -> None:
    from graphc.runtime.cuda import dlpack

    gc.cuda.empty_cache()
    dlpack.forget_unused()
    before = len(dlpack._exported)
    x = gc.full((3000,), 2.0, device="cuda")
    y = gc.from_dlpack(x)
    s = gc.cuda.Stream()
    with gc.cuda.stream(s):
        z = y + 1  # waits in s
    del x, y
    others = [gc.full((3000,), 7.0, device="cuda") for _ in range(3)]
    gc.cuda.current_stream().synchronize()
    with gc.cuda.stream(s):
        assert z.tolist() == [3.0] * 3000 and len(others) == 3
    gc.from_dlpack(others[0])
    assert len(dlpack._exported) <= before + 1


def test_metrics_and_losses_take_device_tensors() -> None:
    scores, labels = gc.asarray(array(8, 5)), gc.asarray(np.arange(8) % 5)
    assert gc.metrics.accuracy(scores.cuda(), labels.cuda()) == gc.metrics.accuracy(scores, labels)
    same(gc.nn.functional.cross_entropy(scores.cuda(), labels.cuda()), gc.nn.functional.cross_entropy(scores, labels))
    same(gc.nn.functional.one_hot(labels.cuda(), 5), gc.nn.functional.one_hot(labels, 5))


def test_streams_of_batches_through_pinned_memory() -> None:
    data = gc.data.TensorDataset(array(20, 3), np.arange(20))
    for workers in (0, 2):
        loader = gc.data.DataLoader(data, batch_size=6, num_workers=workers, pin_memory=True)
        found = []
        for x, y in loader:
            assert x.is_pinned() and y.is_pinned() and x.device == "cpu"
            found.append((x.to("cuda", non_blocking=True), y.cuda(non_blocking=True)))
        same(gc.concat([x for x, _ in found]), array(20, 3))
        same(gc.concat([y for _, y in found]), np.arange(20))


def test_pinned_memory() -> None:
    x = gc.asarray(array(50))
    p = x.pin_memory()
    assert p.is_pinned() and not x.is_pinned() and p.pin_memory() is p
    same(p, x)
    with pytest.raises(TypeError, match="pin_memory: a tensor f32.50. on cuda:0 is not in memory of the CPU"):
        x.cuda().pin_memory()
