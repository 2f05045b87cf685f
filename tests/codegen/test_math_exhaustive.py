"""Every float32 argument of every one-argument function, through native code.

    pytest -m slow -s tests/codegen/test_math_exhaustive.py

prints the largest error of each; docs/numerics.md has the numbers. One core, a few minutes each.
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

CHUNK = 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(math.UNARY))
def test_every_argument(name: str) -> None:
    function = CompiledExpression(math.UNARY[name](var("x", F32)))
    out = np.empty(CHUNK, np.float32)
    worst, where = -1.0, np.float32(0)
    for start in range(0, 1 << 32, CHUNK):
        x = np.arange(start, start + CHUNK, dtype=np.uint64).astype(np.uint32).view(np.float32)
        function({"x": x}, out)
        with np.errstate(all="ignore"):
            error = ulp_error(out, REFERENCES[name](x.astype(np.float64)))
        i = int(np.argmax(error))
        if error[i] > worst:
            worst, where = float(error[i]), x[i]
    print(f"{name:8} {worst:.4f} ulp at {float(where).hex()}", flush=True)
    assert worst <= BOUNDS[name][0]
