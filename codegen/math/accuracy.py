"""How errors are measured, and the bounds that are promised and tested.

An error is in ulp: the distance of the computed value from the exact one, in units of the spacing
of the format's floats at the exact value (below the least normal, the spacing of denormals). A
correctly rounded function has an error of at most 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# function -> (float32, float64): no error is larger. For one-argument float32 functions every
# argument has been tried (tests/codegen/test_math_exhaustive.py) and the bound is the largest error
# rounded up; the other bounds lie a little above the largest error found (tests/codegen/test_math.py).
BOUNDS: dict[str, tuple[float, float]] = {
    "exp": (0.8, 0.8),
    "exp2": (0.92, 0.85),
    "expm1": (1.02, 1.1),
    "log": (0.76, 0.8),
    "log1p": (0.83, 0.8),
    "log2": (0.91, 0.8),
    "log10": (0.88, 0.8),
    "sin": (0.501, 0.8),
    "cos": (0.501, 0.8),
    "tan": (0.502, 0.9),
    "asin": (0.64, 0.6),
    "acos": (0.62, 0.6),
    "atan": (1.02, 1.0),
    "sinh": (0.76, 0.8),
    "cosh": (0.88, 0.95),
    "tanh": (0.95, 1.0),
    "asinh": (0.501, 1.5),
    "acosh": (0.501, 1.85),
    "atanh": (0.501, 1.3),
    "erf": (0.91, 1.0),
    "pow": (0.502, 0.6),
    "atan2": (0.502, 1.35),
    "hypot": (0.502, 0.51),
    "logaddexp": (0.502, 1.6),
}


def ulp_error(computed: Array, exact: Array, low: Array | None = None) -> Array:
    """The error of `computed` (float32 or float64) in ulp.

    `exact` (float64) plus the optional `low` is the exact value. 0 where both are NaN, or where the
    exact value rounds to the computed infinity; infinite where just one is NaN, where just one is
    beyond the largest float, or where a zero has the wrong sign.
    """
    info = np.finfo(computed.dtype)
    with np.errstate(all="ignore"):
        # The power of two below |exact|, by its exponent field; the least normal for smaller ones.
        binade = (exact.view(np.int64) & 0x7FF0000000000000).view(np.float64)
        step = np.maximum(binade, float(info.smallest_normal))
        error = np.abs((computed.astype(np.float64) - exact) - (0.0 if low is None else low))
        # Two divisions: in float64 the spacing of denormals times a small step would underflow.
        error = error / step / float(info.eps)
        unusual = ~np.isfinite(error) | ((computed == 0) & (exact == 0))
        if unusual.any():
            c, e = computed[unusual], exact[unusual]
            rounded = e.astype(computed.dtype)
            same = (rounded == c) & (np.signbit(rounded) == np.signbit(c)) | np.isnan(c) & np.isnan(e)
            error[unusual] = np.where(same, 0.0, np.inf)
    return error


def table() -> str:
    """The table of docs/numerics.md: bounds, and how many machine operations each function takes."""
    from graphc.codegen.expr import children_first, var
    from graphc.codegen.math import BINARY, FUNCTIONS
    from graphc.ir.types import F32, F64, DType

    def operations(name: str, dtype: DType) -> int:
        names = ("x", "y") if name in BINARY else ("x",)
        nodes = children_first((FUNCTIONS[name](*(var(n, dtype) for n in names)),))
        return sum(1 for e in nodes if e.op not in ("const", "var", "bitcast"))

    lines = [
        "| function | float32, ulp | float64, ulp | float32, operations | float64, operations |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (single, double) in BOUNDS.items():
        counts = f"{operations(name, F32)} | {operations(name, F64)}"
        lines.append(f"| {name} | {single} | {double} | {counts} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
