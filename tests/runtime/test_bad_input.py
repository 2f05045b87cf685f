"""Bad input gets an error that names the operation, the operands, the rule and the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import backend

F = gc.nn.functional
M = gc.ones((2, 3))

AXES: dict[str, Callable[[], Any]] = {
    "sum(f32[2, 3])": lambda: M.sum(axis=2),
    "mean(f32[2, 3])": lambda: gc.mean(M, axis=-3),
    "argmax(f32[2, 3])": lambda: M.argmax(axis=2),
    "concat(f32[2, 3], f32[2, 3])": lambda: gc.concat([M, M], axis=2),
    "permute_dims(f32[2, 3])": lambda: M.permute(0, 2),
    "flip(f32[2, 3])": lambda: gc.flip(M, axis=4),
    "take(f32[2, 3], i64[1])": lambda: gc.take(M, gc.asarray([0]), axis=4),
    "softmax(f32[2, 3])": lambda: F.softmax(M, axis=2),
}


@pytest.mark.parametrize("operation", AXES)
def test_axis_out_of_range(operation: str) -> None:
    with pytest.raises(IndexError) as caught:
        AXES[operation]()
    text = str(caught.value)
    assert text.startswith(f"{operation}: axis ") and "is out of range for rank 2; it must be in [-2, 1]\n  at " in text
    assert "test_bad_input.py" in text


def test_axis_named_twice() -> None:
    with pytest.raises(ValueError, match=r"^mean\(f32\[2, 3\]\): axes \(0, 0\) name an axis twice\n  at .*test_bad_input"):
        M.mean(axis=(0, 0))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (gc.nn.Conv2d(1, 1, 3), "conv2d: axis 2 of x of shape (1, 1, 2, 2) has 2 positions with its padding, and a window of size 3"),
        (gc.nn.MaxPool2d(3), "max_pool2d: axis 2 of x of shape (1, 1, 2, 2) has 2 positions"),
        (gc.nn.AvgPool2d(3), "avg_pool2d: axis 2 of x of shape (1, 1, 2, 2) has 2 positions"),
    ],
    ids=["conv", "max", "avg"],
)
def test_window_larger_than_the_input(layer: gc.nn.Module, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        layer(gc.ones((1, 1, 2, 2)))
    assert str(caught.value).startswith(name)


def test_layers_take_numpy_arrays() -> None:
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    for layer in (gc.nn.Linear(8, 2), gc.nn.Conv2d(3, 2, 3), gc.nn.BatchNorm2d(3), gc.nn.ReLU(), gc.nn.MaxPool2d(2)):
        assert layer(x).numpy().tobytes() == layer(gc.asarray(x)).numpy().tobytes()
    assert F.cross_entropy(np.ones((2, 3), np.float32), np.asarray([0, 1])).item() == pytest.approx(np.log(3))


@pytest.mark.parametrize("x", [None, [[1.0, 2.0]], "x"], ids=["None", "list", "str"])
def test_what_is_no_tensor(x: Any) -> None:
    with pytest.raises(TypeError, match=rf"^linear: {type(x).__name__} is not a tensor; use graphc.asarray .*\n  at .*test_bad"):
        gc.nn.Linear(2, 2)(x)


def test_integers_that_do_not_fit() -> None:
    with pytest.raises(OverflowError, match="the integer 300 does not fit in int8, which holds -128 to 127"):
        gc.asarray([1, 300], dtype=gc.int8)
    with pytest.raises(OverflowError, match="the integer -1 does not fit in uint8"):
        gc.tensor(-1, dtype=gc.uint8)
    with pytest.raises(OverflowError, match=f"the integer {2**70} does not fit in 64 bits"):
        gc.asarray([1, 2**70])


def test_tangent_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"^jvp: tangent 0 is f32\[2\], and its primal f32\[3\]"):
        gc.jvp(lambda x: x * x, (gc.ones((3,)),), (gc.ones((2,)),))


def test_optimizer_without_a_list() -> None:
    with pytest.raises(TypeError, match=r"^SGD needs a list of parameters, such as module.parameters\(\), not int"):
        gc.optim.SGD(3, lr=0.1)  # type: ignore[arg-type]


def test_saving_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder '.*missing' of 'net.safetensors' does not exist; make it first"):
        gc.save({"x": M}, tmp_path / "missing" / "net.safetensors")


def test_the_gradient_of_a_norm_at_the_origin() -> None:
    x = gc.zeros((3,), requires_grad=True)
    x.norm().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.0]
    y = gc.asarray([3.0, 4.0]).requires_grad_()
    assert y.norm().item() == 5.0


def test_a_fault_of_the_compiler_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(function: Any, donate: Any, **how: bool) -> None:
        raise TypeError("a table lacks a row")

    monkeypatch.setattr(backend, "_compiler", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(gc.InternalError, match="cannot be compiled: TypeError: a table lacks a row; this is a fault of graphc") as caught:
        gc.ones((7, 13, 3)).tanh().hypot(gc.ones((7, 13, 1)))
    (saved,) = tmp_path.iterdir()
    assert str(saved) in str(caught.value) and saved.read_text().startswith("func @")
