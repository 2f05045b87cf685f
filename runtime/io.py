"""Tensors on disk, in the safetensors format: `save` and `load`. Pickle is neither written nor read.

Invariant: a file under its final name is complete, because it is written beside it, flushed to disk and
then renamed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from graphc.ir import types
from graphc.runtime.tensor import Tensor, asarray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as serialised

__all__ = ["load", "load_metadata", "save"]


def __dir__() -> list[str]:
    return __all__


_DTYPES = {
    "BOOL": types.BOOL,
    "I8": types.I8,
    "I16": types.I16,
    "I32": types.I32,
    "I64": types.I64,
    "U8": types.U8,
    "U16": types.U16,
    "U32": types.U32,
    "U64": types.U64,
    "F16": types.F16,
    "BF16": types.BF16,
    "F32": types.F32,
    "F64": types.F64,
}
_PICKLED = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle"}


def save(tensors: Any, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a dict of tensors, or the `state_dict` of a Module, to a safetensors file.

    tensors: name -> Tensor or NumPy array, or a Module. metadata: strings to keep in the header.
    The file appears under `path` only when it is complete. Raises `TypeError` for values that are not
    tensors or metadata that is not strings.

    >>> import graphc as gc, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
    >>> gc.save({"w": gc.ones((2, 3))}, path)
    >>> gc.load(path)["w"].shape
    (2, 3)
    """
    if hasattr(tensors, "state_dict"):
        tensors = tensors.state_dict()
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save needs a dict of tensors or a Module, not {type(tensors).__name__}")
    arrays = {_checked_name(name): _checked_array(name, tensor) for name, tensor in tensors.items()}
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: the folder {str(target.parent)!r} of {target.name!r} does not exist; make it first")
    data = serialised(arrays, _checked_metadata(metadata) if metadata else None)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], device: Any = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of their names.

    Raises `ValueError`, naming the file and what is wrong, when it is not safetensors, is truncated or
    contradicts itself; `OSError` when it cannot be read.
    """
    data = Path(path).read_bytes()
    _refuse_pickles(path, data)
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _wrong(path, f"{error}; {len(data)} bytes are there: if they should be more, copy it again") from None
    state = {}
    # The package gives them in no order of its own.
    for name, entry in sorted(entries, key=lambda e: e[0]):
        if entry["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise _wrong(path, f"{name!r} has the dtype {entry['dtype']!r}, and graphc has {known}")
        dtype = _DTYPES[entry["dtype"]]
        array = np.frombuffer(entry["data"], np.uint8).copy().view(dtype.numpy).reshape(entry["shape"])
        tensor = asarray(array)
        state[name] = tensor if device is None else tensor.to(device)
    return state


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata strings of a safetensors file. Raises as `load` does."""
    with open(path, "rb") as file:
        _refuse_pickles(path, file.read(8))
    try:
        with safe_open(path, framework="numpy") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise _wrong(path, str(error)) from None


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or name == "__metadata__":
        raise TypeError(f"save: tensor names are strings other than '__metadata__', not {name!r}")
    return name


def _checked_array(name: str, tensor: Any) -> np.ndarray[Any, Any]:
    array = tensor.detach().to("cpu").numpy() if isinstance(tensor, Tensor) else tensor
    if not isinstance(array, (np.ndarray, np.generic)):
        if isinstance(tensor, Mapping):
            cure = '; a file holds one flat dict: name what is nested "model.weight"'
        elif isinstance(tensor, str):
            cure = f"; strings are metadata: save(tensors, path, metadata={{{name!r}: {tensor!r}}})"
        else:
            cure = "; make it one with graphc.tensor"
        raise TypeError(f"save: the value of {name!r} must be a Tensor or a NumPy array, not {_a(tensor)}{cure}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array, dtype=types.dtype(array.dtype).numpy, order="C")


def _a(value: Any) -> str:
    """The type of `value` with its article: an int, a list."""
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"save: metadata maps strings to strings; {key!r}: {value!r} is not")
    return dict(metadata)


def _wrong(path: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(f"{os.fspath(path)!r} is not a valid safetensors file: {why}")


def _refuse_pickles(path: str | os.PathLike[str], first: bytes) -> None:
    for magic, what in _PICKLED.items():
        if first.startswith(magic):
            raise _wrong(
                path,
                f"it is {what}. graphc reads no pickles, because they run code; "
                "convert it where it was made with safetensors.torch.save_file",
            )
