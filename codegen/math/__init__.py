"""exp, log, sin, ... each defined once as an expression over machine operations.

Every emitter renders these same expressions, so all of them agree to the bit.
"""

from collections.abc import Callable

from graphc.codegen.expr import Expr
from graphc.codegen.math.modulo import floor_divide, remainder

FUNCTIONS: dict[str, Callable[..., Expr]] = {}

__all__ = ["FUNCTIONS", "floor_divide", "remainder"]
