"""safetensors files: round trips, interoperability, and what a broken file says."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import graphc as gc
import ml_dtypes
import numpy as np
import pytest
from graphc.runtime import io

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_round_trip(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
    io.save({"x": gc.asarray(array)}, tmp_path / "t.safetensors")
    loaded = io.load(tmp_path / "t.safetensors")
    assert list(loaded) == ["x"]
    assert loaded["x"].dtype.name == name
    assert loaded["x"].shape == shape
    assert loaded["x"].numpy().tobytes() == array.tobytes()


def test_many_tensors_of_mixed_widths(tmp_path: Path) -> None:
    state = {
        "b": np.ones(3, np.int8),
        "a": np.arange(5.0),
        "ünïcode": np.full((2, 2), 2, np.float32),
        "c": np.float32(7),
    }
    io.save(state, tmp_path / "t", metadata={"epoch": "3", "note": "é"})
    loaded = io.load(tmp_path / "t")
    assert set(loaded) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
    assert io.load_metadata(tmp_path / "t") == {"epoch": "3", "note": "é"}


def test_non_contiguous_and_big_endian_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3).T
    io.save({"t": array, "big": np.arange(3, dtype=">f4"), "g": gc.asarray(array)}, tmp_path / "t")
    loaded = io.load(tmp_path / "t")
    np.testing.assert_array_equal(loaded["t"].numpy(), array)
    np.testing.assert_array_equal(loaded["g"].numpy(), array)
    np.testing.assert_array_equal(loaded["big"].numpy(), [0, 1, 2])


def test_the_reference_implementation_reads_what_save_writes(tmp_path: Path) -> None:
    import safetensors.numpy as reference

    state = {"w": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), "i": np.arange(4)}
    io.save(state, tmp_path / "t", metadata={"k": "v"})
    loaded = reference.load_file(tmp_path / "t")
    assert set(loaded) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_load_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    import safetensors.numpy as reference

    state = {"w": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16), "flag": np.array([True, False])}
    reference.save_file(state, tmp_path / "t", metadata={"k": "v"})
    loaded = io.load(tmp_path / "t")
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
    assert io.load_metadata(tmp_path / "t") == {"k": "v"}


def test_a_module_is_saved_by_its_state(tmp_path: Path) -> None:
    model = gc.nn.Sequential(gc.nn.Linear(3, 2), gc.nn.BatchNorm1d(2))
    io.save(model, tmp_path / "m")
    loaded = io.load(tmp_path / "m")
    assert set(loaded) == set(model.state_dict())
    other = gc.nn.Sequential(gc.nn.Linear(3, 2), gc.nn.BatchNorm1d(2))
    other.load_state_dict(loaded)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), tensor.numpy())


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t"
    io.save({"x": np.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        io.save({"x": np.ones(3), "y": "text"}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_save_into_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        io.save({"x": np.ones(3)}, tmp_path / "none" / "t")


def test_saving_over_a_loaded_file_does_not_disturb_what_was_loaded(tmp_path: Path) -> None:
    io.save({"x": np.ones(3)}, tmp_path / "t")
    loaded = io.load(tmp_path / "t")
    io.save({"x": np.zeros(3)}, tmp_path / "t")
    np.testing.assert_array_equal(loaded["x"].numpy(), np.ones(3))


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ([1], None, "save needs a dict of tensors or a Module, not list"),
        ({1: np.ones(2)}, None, "save: tensor names are strings other than '__metadata__', not 1"),
        ({"__metadata__": np.ones(2)}, None, "save: tensor names are strings other than '__metadata__', not '__metadata__'"),
        ({"x": [1.0]}, None, "save: the value of 'x' must be a Tensor or a NumPy array, not a list; make it one with graphc.tensor"),
        ({"x": np.ones(2)}, {"a": 1}, "save: metadata maps strings to strings; 'a': 1 is not"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, tensors: object, metadata: object, message: str) -> None:
    with pytest.raises(TypeError) as error:
        io.save(tensors, tmp_path / "t", metadata)  # type: ignore[arg-type]
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "header too small"),
        (b"abc", "header too small"),
        (b"some text file", "header too large"),
        (_file(b"{}", length=50), "invalid header length"),
        (_file(b"[]"), "invalid JSON in header"),
        (_file(b"{nope}"), "invalid JSON in header"),
        (_file({"x": {"dtype": "F32"}}), "invalid JSON in header"),
        (_file({"x": {**ENTRY, "shape": [3]}}, EIGHT), "invalid shape"),
        (_file({"x": ENTRY}, bytes(6)), "incomplete"),
        (_file({"x": ENTRY}, bytes(9)), "incomplete"),
        (_file({"x": ENTRY, "y": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "offset"),
    ],
)
def test_what_a_broken_file_says(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        io.load(path)
    text = str(error.value)
    assert text.startswith(f"{str(path)!r} is not a valid safetensors file: ")
    assert text.endswith(f"; {len(content)} bytes are there: if they should be more, copy it again")
    assert why in text


def test_a_dtype_that_graphc_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(_file({"x": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}, EIGHT))
    with pytest.raises(ValueError) as error:
        io.load(path)
    assert str(error.value) == (
        f"{str(path)!r} is not a valid safetensors file: 'x' has the dtype 'F8_E4M3', and graphc has "
        "BOOL, I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64"
    )


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_pickles_are_named_and_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps({}))
        what = "a zip archive, as torch.save writes"
    else:
        path.write_bytes(pickle.dumps({"x": 1}, protocol=2))
        what = "a pickle"
    with pytest.raises(ValueError) as error:
        io.load(path)
    assert str(error.value) == (
        f"{str(path)!r} is not a valid safetensors file: it is {what}. graphc reads no pickles, because they run "
        "code; convert it where it was made with safetensors.torch.save_file"
    )


def test_every_truncation_of_a_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t"
    io.save({"a": np.arange(3.0), "b": np.ones(2, np.int8)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a valid safetensors file"):
            io.load(path)
