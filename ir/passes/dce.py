"""Dead code elimination: an operation stays if a result is used or if leaving it out could be noticed."""

from __future__ import annotations

from graphc.ir.function import Function, Operation, Value
from graphc.ir.text.printer import functions_of

# Operations that raise at run time, which is what they are there for. The index errors of gather and
# the like go with the operation, as a read that nobody makes.
EFFECTS = frozenset({"check_index"})


def dce(function: Function) -> Function:
    """`function` without operations that do nothing for its results. Parameters stay. Linear."""
    effects: dict[int, bool] = {}
    live: set[Value] = set(function.results)
    kept: list[Operation] = []
    for op in reversed(function.ops):
        if any(r in live for r in op.results) or _has_effect(op, effects):
            kept.append(op)
            live.update(op.operands)
    if len(kept) == len(function.ops):
        return function
    kept.reverse()
    return Function(function.name, function.params, kept, function.results, function.param_names)


def _has_effect(op: Operation, known: dict[int, bool]) -> bool:
    """Whether `op`, or an operation in a function that it holds, is in `EFFECTS`."""
    if op.name in EFFECTS:
        return True
    for inner in functions_of(op):
        if id(inner) not in known:
            known[id(inner)] = any(_has_effect(o, known) for o in inner.ops)
        if known[id(inner)]:
            return True
    return False
