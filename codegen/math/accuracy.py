"""How errors are measured, and the bounds that are promised and tested.

An error is in ulp: the distance of the computed value from the exact one, in units of the spacing
of the format's floats at the exact value (below the least normal, the spacing of denormals). A
correctly rounded function has an error of at most 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# function -> (float32, float64): no error is larger, over all arguments. For one-argument float32
# functions every argument has been tried (tests/codegen/test_math_exhaustive.py).
BOUNDS: dict[str, tuple[float, float]] = {}


def ulp_error(computed: Array, reference: Array, low: Array | None = None) -> Array:
    """The error of `computed` (float32 or float64) in ulp.

    `reference` (float64) plus the optional `low` is the exact value. 0 where both are NaN, or where
    the exact value rounds to the computed infinity or beyond the largest float; infinite where just
    one is NaN or where a zero has the wrong sign.
    """
    info = np.finfo(computed.dtype)
    least = info.minexp - info.nmant
    with np.errstate(all="ignore"):
        exact = np.where(np.isfinite(reference), reference, 0.0)
        _, exponent = np.frexp(exact)
        step = np.ldexp(1.0, np.maximum(exponent - 1 - info.nmant, least).astype(np.int32))
        value = np.where(np.isfinite(computed), computed, 0.0).astype(np.float64)
        error = value - exact
        if low is not None:
            error = error - low
        error = np.abs(error) / step
        same_infinity = reference.astype(computed.dtype) == computed
        infinite = ~np.isfinite(computed) | ~np.isfinite(reference)
        error = np.where(infinite, np.where(same_infinity, 0.0, np.inf), error)
        nan = np.isnan(computed) | np.isnan(reference)
        error = np.where(nan, np.where(np.isnan(computed) == np.isnan(reference), 0.0, np.inf), error)
        zeros = (computed == 0) & (reference == 0) & (np.signbit(computed) != np.signbit(reference))
        return np.where(zeros, np.inf, error)
