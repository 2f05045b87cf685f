"""The CUDA C text of whole programs on the device (by g++ where there is no GPU): the bits of the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime.cuda import execute

from tests.gpu.test_tensors import array, same

pytestmark = pytest.mark.usefixtures("compiled")


def digits() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(example: ModuleType, device: str, optimizer: str) -> tuple[list[float], str]:
    gc.manual_seed(0)
    images, labels = example.read_digits()
    model = example.make_model().to(device)
    step = gc.compile(example.make_step(model, example.make_optimizer(optimizer, model, 0.05)))
    losses = []
    for i in range(2):
        part = slice(16 * i, 16 * i + 16)
        losses.append(step(gc.asarray(images[part], device=device), gc.asarray(labels[part]).to(device)))
    return [loss.item() for loss in losses], example.fingerprint(model)


@pytest.mark.parametrize("optimizer", ["sgd"])
def test_digits_have_the_weights_of_the_cpu(optimizer: str) -> None:
    example = digits()
    assert trained(example, "cuda", optimizer) == trained(example, "cpu", optimizer)


def test_views_are_packed_on_the_device() -> None:
    for name in ("float32", "bool"):
        x = (gc.asarray(array(4, 5, 6)) * 9).astype(name)
        y = x.cuda()
        for view in (lambda t: t.T, lambda t: t[::-1, 1:, ::2], lambda t: t[2, None].expand(3, 5, 6)):
            assert view(y)._strides is not None
            same(view(y).contiguous(), view(x))


def chain(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    for i in range(4):
        x = gc.nn.functional.softmax(x @ w + i, axis=-1)
    return x


def test_graphs_serve_calls_with_other_addresses() -> None:
    w = gc.asarray(array(6, 6)).cuda()
    f = gc.compile(chain)
    expected = gc.compile(chain)
    kept: list[Any] = []
    for i in range(12):
        x = gc.asarray(array(5, 6, seed=i % 5))
        y = f(x.cuda(), w)
        if i % 3:
            kept.append(y)  # so that results lie elsewhere the next time
        same(y, expected(x, w.cpu()))
    (family,) = f._families.values()
    program = family.recordings[0]._program
    assert isinstance(program, execute.Executable)
    assert len(program.program.launches) >= execute.CHAIN and 1 <= len(program._graphs) <= execute.GRAPHS


def test_graphs_report_errors() -> None:
    @gc.compile
    def f(x: gc.Tensor, i: gc.Tensor) -> gc.Tensor:
        y = chain(x, x)
        return gc.take(y, i, axis=0)

    x, good = gc.asarray(array(6, 6)).cuda(), gc.tensor([1, 5], device="cuda")
    bad = gc.tensor([1, 6], device="cuda")
    for i in range(6):
        f(x, good).tolist()
        y = f(x, bad)
        with pytest.raises(IndexError, match=r"index 6 is out of range for axis 0 of size 6"):
            y.tolist()
        assert f(x, good).shape == (2, 6), i


def test_one_stream_after_another_on_one_program() -> None:
    f = gc.compile(chain)
    w, x = gc.asarray(array(6, 6)).cuda(), gc.asarray(array(5, 6)).cuda()
    gc.cuda.synchronize()
    here = f(x, w)
    gc.cuda.synchronize()
    s = gc.cuda.Stream()
    with gc.cuda.stream(s):
        there = [f(x, w) for _ in range(3)]
        s.synchronize()
        for y in there:
            same(y, here)


def test_every_kind_of_element_type_and_constants() -> None:
    table = np.arange(40, dtype=np.float32)

    @gc.composite
    def f(x: gc.Tensor) -> gc.Tensor:
        return x + gc.tensor(list(table[:32]), device=x.device)[: x.shape[0]]

    @gc.compile
    def g(xs: list[gc.Tensor]) -> list[gc.Tensor]:
        return [*(x * x + 1 for x in xs), f(xs[0].astype("float32"))]

    xs = [gc.arange(20).astype(name) for name in ("float16", "bfloat16", "float32", "float64", "int8", "uint32")]
    for a, b in zip(g([x.cuda() for x in xs]), g(xs)):
        same(a, b)


def test_host_values_change_and_repeat() -> None:
    x = gc.arange(4.0, device="cuda")
    for value in (2.0, 3.0, 2.0, 5.0, 3.0):
        assert (x * value).tolist() == [v * value for v in range(4)]
        assert (gc.asarray(value) - x).tolist() == [value - v for v in range(4)]


def test_an_order_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gc.asarray(array(33, 40))
    expected = gc.nn.functional.softmax(x, axis=0).sum(axis=1)
    for seed in ("0", "1", "7"):
        monkeypatch.setenv("GRAPHC_CUDA_SEED", seed)
        same(gc.nn.functional.softmax(x.cuda(), axis=0).sum(axis=1), expected)
