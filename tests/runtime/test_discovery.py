"""What `help`, `dir`, `repr` and messages tell, and small things that programs for PyTorch ask for."""

from __future__ import annotations

import pydoc
from pathlib import Path

import graphc as gc
import numpy as np
import pytest
from graphc import nn


def _optimizer() -> gc.optim.SGD:
    return gc.optim.SGD([nn.Parameter(gc.ones(1))], lr=0.5)


def test_help_lists_functions() -> None:
    text = pydoc.plain(pydoc.render_doc(gc))
    for shown in ("arange(start", "where(condition", "manual_seed("):
        assert shown in text


@pytest.mark.parametrize("kind", [gc.optim.Adam, gc.optim.AdamW, gc.optim.Adagrad])
def test_help_of_an_optimizer_shows_its_formula(kind: type) -> None:
    assert "p = p - lr / " in pydoc.plain(pydoc.render_doc(kind))


@pytest.mark.parametrize("module", [gc.nn.init, gc.io, gc.optim.lr_scheduler], ids=lambda m: m.__name__)
def test_dir_has_the_module_s_own_names(module: object) -> None:
    names = dir(module)
    assert names
    for name in names:
        assert getattr(module, name).__module__ == module.__name__  # type: ignore[attr-defined]


def test_repr_of_schedules() -> None:
    assert repr(gc.optim.lr_scheduler.StepLR(_optimizer(), 3)) == "StepLR(step_size=3, gamma=0.1, epoch=0, lr=0.5)"
    assert "patience=2, lr=0.5" in repr(gc.optim.lr_scheduler.ReduceLROnPlateau(_optimizer(), patience=2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"the value of 'epoch' must be a Tensor or a NumPy array, not an int; make it one with graphc.tensor"),
        ({"a": 1}, r"not a dict; a file holds one flat dict"),
        ("three", r"not a str; strings are metadata: save\(tensors, path, metadata={'epoch': 'three'}\)"),
    ],
)
def test_what_save_says_of_other_values(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gc.save({"epoch": value}, tmp_path / "x")


def test_load_gives_tensors_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(9)]
    gc.save({name: gc.ones(1) for name in reversed(names)}, tmp_path / "x")
    assert list(gc.load(tmp_path / "x")) == names


def test_names_of_element_types() -> None:
    names = {"half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64"}
    assert {name: getattr(gc, name).name for name in names} == names


def test_cuda_is_not_there() -> None:
    assert gc.cuda.is_available() is False and gc.cuda.device_count() == 0


def test_pin_memory_changes_nothing() -> None:
    batches = [list(gc.data.DataLoader(gc.data.TensorDataset(np.arange(4)), 2, pin_memory=pin)) for pin in (False, True)]
    assert [b[0].tolist() for b in batches[0]] == [b[0].tolist() for b in batches[1]]


def test_dropout2d_drops_whole_channels() -> None:
    gc.manual_seed(0)
    layer = nn.Dropout2d(0.5)
    y = layer(gc.ones((8, 16, 3, 3))).numpy()
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y.min(axis=(2, 3)) == y.max(axis=(2, 3))).all()
    assert layer.eval()(gc.ones((2, 3, 1, 1))).tolist() == gc.ones((2, 3, 1, 1)).tolist()
    with pytest.raises(ValueError, match="not of shape"):
        nn.functional.dropout2d(gc.ones((2, 3)))


def test_reduce_on_plateau() -> None:
    optimizer = _optimizer()
    schedule = gc.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1, min_lr=0.1)
    rates = []
    for loss in (1.0, 0.9, 0.9, 0.95, 0.9, 0.9, gc.tensor(0.9), 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6):
        schedule.step(loss)
        rates.append(schedule.get_last_lr()[0])
    # Worked out by hand from the definition: one bad epoch is borne, the second reduces, one after it does not count.
    assert rates == [0.5] * 3 + [0.25] * 3 + [0.125] * 3 + [0.1] * 5
    other = gc.optim.lr_scheduler.ReduceLROnPlateau(_optimizer())
    other.load_state_dict(schedule.state_dict())
    assert other.best == 0.5 and other.num_bad_epochs == schedule.num_bad_epochs


def test_reduce_on_plateau_upwards() -> None:
    optimizer = _optimizer()
    schedule = gc.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0, threshold=0.1, threshold_mode="abs")
    for value in (0.5, 0.7):
        schedule.step(value)
    assert schedule.get_last_lr() == [0.5]
    schedule.step(0.75)
    assert schedule.get_last_lr() == pytest.approx([0.05])
