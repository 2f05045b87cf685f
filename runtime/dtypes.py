"""Questions about element types: finfo, iinfo, result_type, can_cast, isdtype (array API 2024.12)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from graphc.ir.types import ALL_DTYPES, DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime.core import Tensor
from graphc.runtime.dispatch import operand_of
from graphc.runtime.spec import promote_all


class finfo(NamedTuple):
    """The limits of a floating point element type."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType

    @property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return self.smallest_normal


class iinfo(NamedTuple):
    """The limits of an integer element type."""

    bits: int
    max: int
    min: int
    dtype: DType


def _dtype_of(x: Any) -> DType:
    return x._spec.dtype if isinstance(x, Tensor) else as_dtype(x)


def float_info(type: Any, /) -> finfo:
    """The limits of a floating point element type, or of that of a tensor. Raises `TypeError` for others."""
    d = _dtype_of(type)
    if not d.is_float:
        raise TypeError(f"finfo is for floating point types, not {d}; use iinfo")
    source: Any = np
    if d.name == "bfloat16":
        import ml_dtypes as source
    info = source.finfo(d.numpy)
    return finfo(d.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), d)


def integer_info(type: Any, /) -> iinfo:
    """The limits of an integer element type, or of that of a tensor. Raises `TypeError` for others."""
    d = _dtype_of(type)
    if not d.is_integer:
        raise TypeError(f"iinfo is for integer types, not {d}; use finfo")
    info = np.iinfo(d.numpy)
    return iinfo(d.bits, int(info.max), int(info.min), d)


def result_type(*operands: Any) -> DType:
    """The element type of an operation on tensors, element types and Python numbers."""
    dtypes, weak = [], []
    for x in operands:
        if isinstance(x, (bool, int, float)) and not isinstance(x, type):
            spec = operand_of(x, "result_type")._spec
            dtypes.append(spec.dtype)
            weak.append(True)
        else:
            dtypes.append(_dtype_of(x))
            weak.append(isinstance(x, Tensor) and x._spec.weak)
    if not dtypes:
        raise ValueError("result_type needs at least one operand")
    return promote_all(dtypes, weak)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether promotion leads from one element type to the other."""
    try:
        return promote_all([_dtype_of(from_), as_dtype(to)], [False, False]) is as_dtype(to)
    except TypeError:
        return False


_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "",
    "numeric": "iuf",
}


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether an element type is `kind`: an element type, a name such as "real floating", or a tuple of those."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return as_dtype(dtype).kind in _KINDS[kind]
    if isinstance(kind, str) and kind not in {n for d in ALL_DTYPES for n in (d.name, d.short)}:
        raise ValueError(f"{kind!r} is not a kind of element type; there are {', '.join(map(repr, _KINDS))}")
    return as_dtype(dtype) is as_dtype(kind)


FUNCTIONS = {
    "finfo": float_info,
    "iinfo": integer_info,
    "result_type": result_type,
    "can_cast": can_cast,
    "isdtype": isdtype,
}
