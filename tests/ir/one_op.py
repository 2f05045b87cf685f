"""Functions of a single operation, for the tests of the operation table."""

from __future__ import annotations

from typing import Any

import numpy as np
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType, dtype


def function_of(name: str, *types: TensorType | str, **attrs: Any) -> Function:
    """The function that applies `name` to its parameters; types may be texts such as "f32[B, 3]"."""
    b = Builder("one")
    params = [b.param(TensorType.parse(t) if isinstance(t, str) else t) for t in types]
    return b.build(b.emit_op(name, *params, **attrs).results)


def infer(name: str, *types: str, **attrs: Any) -> str:
    """The result types as text."""
    return "; ".join(map(str, function_of(name, *types, **attrs).result_types))


def run(name: str, *arrays: Any, **attrs: Any) -> Any:
    """What the operation gives for arrays: one array, or a list of several."""
    held = [np.asarray(a) for a in arrays]
    f = function_of(name, *(TensorType(dtype(a.dtype), a.shape) for a in held), **attrs)
    results = interpret(f, held)
    return results[0] if len(results) == 1 else results


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays agree in dtype, shape and every bit, any NaN counting as any other."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind in "fV":
        nan = (a != a) & (b != b)
        bits = np.dtype(f"u{a.dtype.itemsize}")
        return bool(np.all(nan | (np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits))))
    return bool(np.array_equal(a, b))
