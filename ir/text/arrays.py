"""Arrays in attributes as text: `dense<f32[2, 2]>(1.0, 2.0, 3.0, 4.0)`, `(splat 1.0)` or `("base64")`.

Invariant: reading gives back the same bits, those of NaNs and negative zeros included.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
from graphc.ir.function import DenseArray
from graphc.ir.types import DType, TensorType, dtype

# An array of more elements prints as the base64 of its little-endian bytes.
READABLE_ELEMENTS = 16

# Bits of the fraction, by which the bits of the usual NaN are known.
_FRACTION = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}


@dataclass(frozen=True)
class Splat:
    """The text of the one element that fills an array."""

    element: str


def array_text(value: DenseArray) -> str:
    array = value.array
    kind = dtype(array.dtype)
    head = f"dense<{kind.short}[{', '.join(map(str, array.shape))}]>"
    flat = array.reshape(-1)
    if flat.size <= READABLE_ELEMENTS:
        return f"{head}({', '.join([_element_text(x, kind) for x in flat])})"
    raw = array.tobytes()
    if raw == raw[: kind.itemsize] * flat.size:
        return f"{head}(splat {_element_text(flat[0], kind)})"
    if not np.little_endian:
        raw = array.byteswap().tobytes()
    return f'{head}("{base64.b64encode(raw).decode("ascii")}")'


def read_array(type: TensorType, payload: list[str] | Splat | str) -> DenseArray:
    """The array of `type` from its elements' texts, the text of all of them, or base64.

    Raises `ValueError` for elements that do not fit the type.
    """
    if not all(isinstance(d, int) for d in type.shape):
        raise ValueError(f"an array cannot have the symbolic shape of {type}")
    kind = type.dtype
    size = int(type.size)
    if isinstance(payload, str):
        try:
            raw = base64.b64decode(payload, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the bytes of {type} are not base64: {error}") from None
        if len(raw) != size * kind.itemsize:
            raise ValueError(f"{type} has {size * kind.itemsize} bytes, the text has {len(raw)}")
        flat = np.frombuffer(raw, kind.numpy)
        if not np.little_endian:
            flat = flat.byteswap()
    elif isinstance(payload, Splat):
        flat = np.repeat(_element(payload.element, kind), size)
    else:
        if len(payload) != size:
            raise ValueError(f"{type} has {size} elements, the text has {len(payload)}")
        flat = np.concatenate([np.empty(0, kind.numpy), *[_element(t, kind) for t in payload]])
    return DenseArray(flat.reshape(tuple(map(int, type.shape))))


def _element_text(x: Any, kind: DType) -> str:
    """The shortest decimal that reads back to the same bits; `nan:0x..` for a NaN of other than the usual bits."""
    if kind.kind == "b":
        return "true" if x else "false"
    if not kind.is_float:
        return str(int(x))
    if x != x:
        bits = int(np.asarray(x).reshape(1).view(f"u{kind.itemsize}")[0])
        return "nan" if bits == quiet_nan(kind) else f"nan:{bits:#x}"
    # `str` of a narrow float is shorter than `repr` of the float64 it equals: 0.1, not 0.10000000149011612.
    short = str(x)
    reads_back = not {".", "e"}.isdisjoint(short) and kind.numpy.type(float(short)) == x
    return short if reads_back else repr(float(x))


def _element(text: str, kind: DType) -> np.ndarray[Any, Any]:
    """One element as an array of shape [1]."""
    if kind.kind == "b":
        if text not in ("true", "false"):
            raise ValueError(f"{text} is not an element of a bool array; write true or false")
        return np.array([text == "true"])
    if not kind.is_float:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text} is not an element of an array of {kind.name}") from None
        low = -(1 << (kind.bits - 1)) if kind.kind == "i" else 0
        if not low <= value < low + (1 << kind.bits):
            raise ValueError(f"{text} does not fit into {kind.name}")
        return np.array([value], kind.numpy)
    if text.startswith("nan"):
        bits = int(text[len("nan:") :], 16) if ":" in text else quiet_nan(kind)
        if bits >> kind.bits:
            raise ValueError(f"{text} does not fit into {kind.name}")
        unsigned = np.array([bits], f"u{kind.itemsize}")
        if not np.isnan(unsigned.view(kind.numpy)[0]):
            raise ValueError(f"{text} are not the bits of a NaN of {kind.name}")
        return unsigned.view(kind.numpy)
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text} is not an element of an array of {kind.name}") from None
    with np.errstate(over="ignore"):
        return np.array([number]).astype(kind.numpy)


def quiet_nan(kind: DType) -> int:
    """The bits that plain `nan` stands for: sign clear, exponent and the fraction's first bit set."""
    fraction = _FRACTION[kind.name]
    return ((1 << (kind.bits - 1)) - 1) >> (fraction - 1) << (fraction - 1)
