"""erf: an odd polynomial to 1; above, 1 - erfc with the complement small enough to need few digits.

Float32 takes erfc on [1, 4] as one polynomial. Float64 takes exp(-x*x) * erfcx(x), with the scaled
complement erfcx a polynomial in (x - 2)/(x + 2) (M. M. Shepherd, J. G. Laframboise, Chebyshev
approximation of (1 + 2x)exp(x^2)erfc x, Math. Comp. 36, 1981).
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, absolute, const, fma, select
from graphc.codegen.math.exponential import exp
from graphc.codegen.math.floating import clamp, copy_sign, format_of, horner
from graphc.ir.types import F32


def erf(x: Expr) -> Expr:
    a = absolute(x)
    # Around the middle of its interval the polynomial has smaller terms, so smaller roundings.
    small = fma(a, horner("erf" + format_of(x).suffix, a * a - 0.5), a)
    # From 4 (or 6) on, 1 - erfc rounds to 1.
    if x.dtype is F32:
        complement = horner("erfc_large32", clamp(a, None, 4.0) - 2.25)
    else:
        y = clamp(a, None, 6.0)
        complement = exp(-(y * y)) * horner("erfcx64", (y - 2.0) / (y + 2.0))
    return copy_sign(select(a < 1.0, small, const(x.dtype, 1.0) - complement), x)
