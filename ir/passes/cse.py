"""Common subexpression elimination: of operations with equal name, operands and attributes the first stays.

Equality is by bits (`attr_key`): 0.0 is not -0.0. All operations are functions of their operands and
attributes (random bits too), so every operation takes part.
"""

from __future__ import annotations

from typing import Any

from graphc.ir.function import Function, Operation, Value
from graphc.ir.passes.rewrite import Rewriter

# Operations whose operands may be exchanged without changing a bit (which NaN is not a bit of the
# contract). maximum and minimum are not among them for floats: of +0 and -0 they take the first.
COMMUTATIVE = frozenset({"add", "mul", "and", "or", "xor", "eq", "ne"})
COMMUTATIVE_INTEGER = frozenset({"maximum", "minimum"})


def commutes(op: Operation) -> bool:
    return op.name in COMMUTATIVE or (
        op.name in COMMUTATIVE_INTEGER and not op.operands[0].type.dtype.is_float
    )


def cse(function: Function) -> Function:
    """`function` with equal operations merged into the first, which keeps its source line. Linear."""
    b = Rewriter(function)
    number: dict[Value, int] = {p: i for i, p in enumerate(function.params)}
    first: dict[Any, Operation] = {}
    for original in function.ops:
        op = b.current(original)
        operands = [number[v] for v in op.operands]
        if len(operands) == 2 and commutes(op):
            operands.sort()
        key = (op.name, tuple(operands), op.attrs.key())
        earlier = first.get(key)
        if earlier is not None:
            b.replace(op.results, earlier.results)
            continue
        first[key] = b.append(op)
        for r in op.results:
            number[r] = len(number)
    return b.finish()
