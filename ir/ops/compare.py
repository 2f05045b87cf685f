"""Comparisons and classifications: elementwise operations with bool results, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from graphc.ir.function import Attrs
from graphc.ir.ops.rules import same_types
from graphc.ir.registry import Array, OpDef, register
from graphc.ir.types import BOOL, TensorType

_ARRAY_API = "array API 2024.12"


def _evaluated(f: Callable[..., Array]) -> Callable[..., Sequence[Array]]:
    def evaluate(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
        # 16-bit floats compare as float32, which holds all of them.
        wide = [a.astype(np.float32) if a.dtype.itemsize == 2 and a.dtype.kind in "fV" else a for a in args]
        with np.errstate(all="ignore"):
            return [np.asarray(f(*wide))]

    return evaluate


def _signbit(x: Array) -> Array:
    return np.signbit(x) if x.dtype.kind == "f" else np.less(x, x.dtype.type(0))


# name: (number of operands, dtype kinds allowed, meaning, documentation)
_TABLE: dict[str, tuple[int, str, Callable[..., Array], str]] = {
    "eq": (2, "biuf", np.equal, f"a == b; false if either is NaN, true for +0 and -0 ({_ARRAY_API}, equal)."),
    "ne": (2, "biuf", np.not_equal, f"a != b; true if either is NaN ({_ARRAY_API}, not_equal)."),
    "lt": (2, "biuf", np.less, f"a < b; false if either is NaN ({_ARRAY_API}, less)."),
    "le": (2, "biuf", np.less_equal, f"a <= b; false if either is NaN ({_ARRAY_API}, less_equal)."),
    "gt": (2, "biuf", np.greater, f"a > b; false if either is NaN ({_ARRAY_API}, greater)."),
    "ge": (2, "biuf", np.greater_equal, f"a >= b; false if either is NaN ({_ARRAY_API}, greater_equal)."),
    "isnan": (1, "biuf", np.isnan, f"Whether x is NaN ({_ARRAY_API}, isnan)."),
    "isinf": (1, "biuf", np.isinf, f"Whether x is +inf or -inf ({_ARRAY_API}, isinf)."),
    "isfinite": (1, "biuf", np.isfinite, f"Whether x is neither infinite nor NaN ({_ARRAY_API}, isfinite)."),
    "signbit": (1, "biuf", _signbit, f"Whether the sign bit is set, as for -0.0 ({_ARRAY_API}, signbit)."),
}

for _name, (_count, _kinds, _meaning, _doc) in _TABLE.items():
    register(
        OpDef(
            name=_name,
            family="compare",
            infer=same_types(_name, _count, _kinds, result=BOOL),
            eval=_evaluated(_meaning),
            doc=_doc,
            no_gradient="its result is bool",
            reads=(),
        )
    )
