"""exp, log, sin, ... each defined once as an expression over machine operations.

Every emitter renders these same expressions, so all of them agree to the bit. All functions take
and give float32 or float64 expressions, are free of branches, and are right for NaN, infinities,
signed zeros and denormals; `docs/numerics.md` has their largest errors.
"""

from collections.abc import Callable

from graphc.codegen.expr import Expr
from graphc.codegen.math.error_function import erf
from graphc.codegen.math.exponential import exp, exp2, expm1
from graphc.codegen.math.hyperbolic import acosh, asinh, atanh, cosh, sinh, tanh
from graphc.codegen.math.inverse_trigonometric import acos, asin, atan, atan2
from graphc.codegen.math.logarithm import log, log1p, log2, log10
from graphc.codegen.math.modulo import floor_divide, remainder
from graphc.codegen.math.power import hypot, logaddexp, pow
from graphc.codegen.math.trigonometric import cos, sin, tan

UNARY: dict[str, Callable[[Expr], Expr]] = {
    f.__name__: f
    for f in (
        exp, exp2, expm1, log, log1p, log2, log10, sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, asinh, acosh, atanh, erf,
    )
}  # fmt: skip
BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    f.__name__: f for f in (pow, atan2, hypot, logaddexp, floor_divide, remainder)
}
FUNCTIONS: dict[str, Callable[..., Expr]] = {**UNARY, **BINARY}

__all__ = ["BINARY", "FUNCTIONS", "UNARY", *FUNCTIONS]
