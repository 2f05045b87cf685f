"""Every float32 argument of every one-argument function, through native code.

    pytest -m slow -s tests/codegen/test_math_exhaustive.py

prints the largest error of each; docs/numerics.md has the numbers. One core, about a minute each.
"""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen import math
from graphc.codegen.expr import Expr, absolute, binary, bitcast, cast, const, equal, select, to_bits, var
from graphc.codegen.math.accuracy import BOUNDS, ulp_error
from graphc.codegen.math.floating import both, either, is_nan, sign_bit
from graphc.ir.types import F32, F64, U64

from tests.codegen.compiled_expression import CompiledExpression
from tests.codegen.math_references import REFERENCES

# Small enough for all arrays of a chunk to stay in the cache.
CHUNK = 1 << 16


def ulp_expression(computed: Expr, exact: Expr) -> Expr:
    """`ulp_error` of a float32 against a float64, as native code: it would take most of the time."""
    info = np.finfo(np.float32)
    binade = bitcast(binary("and", to_bits(exact), const(U64, 0x7FF0000000000000)), F64)
    least = float(info.smallest_normal)
    error = absolute(cast(computed, F64) - exact) / select(binade > least, binade, const(F64, least))
    error = error * (1 / float(info.eps))
    infinity = float("inf")
    rounded = cast(exact, F32)
    infinite = either(equal(absolute(computed), infinity), equal(absolute(exact), infinity))
    zero, wrong = const(F64, 0.0), const(F64, infinity)
    error = select(infinite, select(equal(rounded, computed), zero, wrong), error)
    one, other = is_nan(computed), is_nan(exact)
    error = select(either(one, other), select(both(one, other), zero, wrong), error)
    zeros = both(equal(computed, 0.0), equal(exact, 0.0))
    return select(both(zeros, binary("ne", sign_bit(computed), sign_bit(rounded))), wrong, error)


COMPUTED, EXACT = var("computed", F32), var("exact", F64)


def test_the_native_error_is_the_error() -> None:
    rng = np.random.default_rng(0)
    computed = rng.integers(0, 1 << 32, 5000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    wide = np.where(np.isnan(computed), 1.0, computed).astype(np.float64)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1.0], np.float32)
    exact = np.concatenate([wide * (1 + rng.uniform(-1e-6, 1e-6, 5000)), np.tile([0.0, -0.0, np.inf, -np.inf, np.nan, 1e39, 1e-46, 1.0], 8)])
    computed = np.concatenate([computed, np.repeat(special, 8)])
    native = CompiledExpression(ulp_expression(COMPUTED, EXACT))({"computed": computed, "exact": exact})
    wanted = ulp_error(computed, exact)
    assert np.array_equal(native, wanted) and np.isinf(wanted).any() and (wanted[:5000] < 100).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(math.UNARY))
def test_every_argument(name: str) -> None:
    function = CompiledExpression(math.UNARY[name](var("x", F32)))
    measure = CompiledExpression(ulp_expression(COMPUTED, EXACT))
    computed, error = np.empty(CHUNK, np.float32), np.empty(CHUNK)
    worst, where = -1.0, np.float32(0)
    for start in range(0, 1 << 32, CHUNK):
        x = np.arange(start, start + CHUNK, dtype=np.uint32).view(np.float32)
        function({"x": x}, computed)
        with np.errstate(all="ignore"):
            measure({"computed": computed, "exact": REFERENCES[name](x.astype(np.float64))}, error)
        i = int(np.argmax(error))
        if error[i] > worst:
            worst, where = float(error[i]), x[i]
    print(f"{name:8} {worst:.4f} ulp at {float(where).hex()}", flush=True)
    assert worst <= BOUNDS[name][0]
