"""Every float32 argument of every one-argument function, through native code.

    pytest -m slow -s tests/codegen/test_math_exhaustive.py

prints the largest error of each; docs/numerics.md has the numbers. One core, one to three minutes each.
"""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen import math
from graphc.codegen.expr import var
from graphc.codegen.math.accuracy import BOUNDS, ulp_error
from graphc.ir.types import F32

from tests.codegen.compiled_expression import CompiledExpression
from tests.codegen.math_references import REFERENCES

# Small enough for all temporaries of a chunk to stay in the cache.
CHUNK = 1 << 16
LEAST_NORMAL, EPS = float(np.finfo(np.float32).smallest_normal), float(np.finfo(np.float32).eps)


def largest_error(computed: np.ndarray, exact: np.ndarray) -> tuple[float, int]:
    """The largest `ulp_error` and where; that function is called only where the quick formula fails."""
    spacing = np.maximum((exact.view(np.int64) & 0x7FF0000000000000).view(np.float64), LEAST_NORMAL)
    error = np.abs(computed - exact)
    error /= spacing
    unusual = ~(error < 1e6) & ~(np.isnan(computed) & np.isnan(exact)) & (computed != exact)
    unusual |= (exact == 0) & (np.signbit(computed) != np.signbit(exact))
    error *= 1 / EPS
    error[np.isnan(error)] = 0.0
    if unusual.any():
        error[unusual] = ulp_error(computed[unusual], exact[unusual])
    i = int(np.argmax(error))
    return float(error[i]), i


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(math.UNARY))
def test_every_argument(name: str) -> None:
    function = CompiledExpression(math.UNARY[name](var("x", F32)))
    out = np.empty(CHUNK, np.float32)
    worst, where = -1.0, np.float32(0)
    for start in range(0, 1 << 32, CHUNK):
        x = np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)
        function({"x": x}, out)
        with np.errstate(all="ignore"):
            error, i = largest_error(out, REFERENCES[name](x.astype(np.float64)))
        if error > worst:
            worst, where = error, x[i]
    print(f"{name:8} {worst:.4f} ulp at {float(where).hex()}", flush=True)
    assert worst <= BOUNDS[name][0]
