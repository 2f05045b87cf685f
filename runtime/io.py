"""Tensors on disk, in the safetensors format: `save` and `load`. Pickle is neither written nor read.

The format (https://github.com/huggingface/safetensors, "Format"): an unsigned 64-bit little-endian
length N, N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"?:
{str: str}}, then the row-major little-endian data without gaps. Invariant: a file under its final
name is complete, because it is written beside it, flushed to disk and then renamed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from graphc.ir import types
from graphc.runtime.tensor import Tensor, asarray

_NAMES = {
    types.BOOL: "BOOL",
    types.I8: "I8",
    types.I16: "I16",
    types.I32: "I32",
    types.I64: "I64",
    types.U8: "U8",
    types.U16: "U16",
    types.U32: "U32",
    types.U64: "U64",
    types.F16: "F16",
    types.BF16: "BF16",
    types.F32: "F32",
    types.F64: "F64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# What the format's reference implementation allows for the header.
_MAX_HEADER = 100_000_000
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
    # Widest first keeps every tensor aligned to its element size; the name makes the order total.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": _checked_metadata(metadata)} if metadata else {}
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _NAMES[types.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: the folder {str(target.parent)!r} of {target.name!r} does not exist; make it first")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in order:
                file.write(arrays[name].reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], device: Any = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of the file.

    Raises `ValueError`, naming the file and what is wrong, when it is not safetensors, is truncated or
    contradicts itself; `OSError` when it cannot be read.
    """
    state = {}
    with open(path, "rb") as file:
        header, start, size = _header(path, file)
        for name, (dtype, shape, begin, end) in _entries(path, header, size - start).items():
            file.seek(start + begin)
            array = np.fromfile(file, np.uint8, end - begin).view(dtype.numpy).reshape(shape)
            tensor = asarray(array)
            state[name] = tensor if device is None else tensor.to(device)
    return state


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata strings of a safetensors file. Raises as `load` does."""
    with open(path, "rb") as file:
        header, _, _ = _header(path, file)
    return dict(header.get("__metadata__", {}))


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or name == "__metadata__":
        raise TypeError(f"save: tensor names are strings other than '__metadata__', not {name!r}")
    return name


def _checked_array(name: str, tensor: Any) -> np.ndarray[Any, Any]:
    array = tensor.detach().to("cpu").numpy() if isinstance(tensor, Tensor) else tensor
    if not isinstance(array, (np.ndarray, np.generic)):
        raise TypeError(f"save: {name!r} is a {type(tensor).__name__}, not a Tensor or NumPy array")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array, dtype=types.dtype(array.dtype).numpy, order="C")


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"save: metadata maps strings to strings; {key!r}: {value!r} is not")
    return dict(metadata)


def _wrong(path: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(f"{os.fspath(path)!r} is not a valid safetensors file: {why}")


def _header(path: str | os.PathLike[str], file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data starts, and the size of the file."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    for magic, what in _PICKLED.items():
        if first.startswith(magic):
            raise _wrong(
                path,
                f"it is {what}. graphc reads no pickles, because they run code; "
                "convert it where it was made with safetensors.torch.save_file",
            )
    if len(first) < 8:
        raise _wrong(path, f"it has {len(first)} bytes, and the length of the header alone takes 8")
    length = int.from_bytes(first, "little")
    if length > _MAX_HEADER:
        raise _wrong(path, f"it starts with a header length of {length} bytes, more than the format allows")
    if 8 + length > size:
        raise _wrong(path, f"it is truncated: the header takes {length} bytes, and {size - 8} are there")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _wrong(path, f"its header is a JSON {type(header).__name__}, not an object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong(path, "its __metadata__ does not map strings to strings")
    return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return table


def _entries(
    path: str | os.PathLike[str], header: dict[str, Any], size: int
) -> dict[str, tuple[types.DType, tuple[int, ...], int, int]]:
    """Name -> (dtype, shape, begin, end), checked: the data is covered exactly, without gap or overlap."""
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = (*shape, begin, end)
            if not all(type(n) is int and n >= 0 for n in numbers):
                raise TypeError
        except (TypeError, KeyError, ValueError):
            raise _wrong(path, f"the entry of {name!r} has no proper dtype, shape and data_offsets") from None
        if code not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise _wrong(path, f"{name!r} has the dtype {code!r}, and graphc has {known}")
        expected = math.prod(shape) * _DTYPES[code].itemsize
        if end - begin != expected:
            raise _wrong(
                path,
                f"{name!r} of {code}{list(shape)} takes {expected} bytes, and its data_offsets "
                f"[{begin}, {end}] span {end - begin}",
            )
        entries[name] = (_DTYPES[code], shape, begin, end)
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise _wrong(path, f"the data of {name!r} starts at {begin}, and the tensor before it ends at {at}")
        at = end
    if at > size:
        raise _wrong(path, f"it is truncated: the tensors take {at} bytes, and {size} are there")
    if at < size:
        raise _wrong(path, f"{size - at} bytes follow the last tensor")
    return entries
