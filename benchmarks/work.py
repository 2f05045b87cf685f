"""How much work a group of operations is: bytes it must move, and operations of the vector unit it must do.

An operation is one lane of one machine instruction; a fused multiply-add counts once. What a group reads twice,
or keeps to itself, is not counted: these are lower bounds.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from graphc.codegen.elementwise import scalar
from graphc.codegen.expr import children_first, var
from graphc.ir.function import Function, Operation
from graphc.ir.registry import lookup
from graphc.ir.types import Shape

# Philox 4x32-10 gives four words for ten rounds of about ten operations.
RANDOM_WORD = 25


def count(shape: Shape) -> int:
    """The number of elements of a shape without symbols."""
    return math.prod(int(d) for d in shape)


def bytes_of(group: Function) -> int:
    """Bytes of the distinct parameters and of the results."""
    return sum(int(v.type.nbytes) for v in {*group.params, *group.results})


def operations_of(group: Function) -> int:
    """Operations of all that the group computes."""
    return sum(_operations(op) for op in group.ops)


def _operations(op: Operation) -> int:
    family = lookup(op.name).family
    results = sum(count(r.type.shape) for r in op.results)
    first: Shape = op.operands[0].type.shape if op.operands else ()
    if op.name == "call":
        return operations_of(op.attrs["function"])
    if op.name == "dot":
        return results * math.prod(int(first[i]) for i in op.attrs["lhs_contract"])
    if op.name == "conv":
        return results * count(op.operands[1].type.shape[1:])
    if family in ("elementwise", "compare"):
        dtypes = tuple(v.type.dtype for v in op.operands)
        attrs = tuple(sorted((k, v) for k, v in op.attrs.items()))
        return results * _nodes(op.name, dtypes, attrs, op.results[0].type.dtype)
    if family == "pool":
        return results * math.prod(int(d) for d in op.attrs.get("window", (1,)))
    if family == "random":
        return results * RANDOM_WORD
    if family in ("reduce", "scan"):
        return count(first)
    if family == "indexing" and len(op.operands) == 3:
        return count(op.operands[2].type.shape)
    return 0


@functools.cache
def _nodes(name: str, dtypes: tuple[Any, ...], attrs: tuple[Any, ...], result: Any) -> int:
    """Machine operations of one element: the nodes of its expression that are neither operands nor literals."""
    args = tuple(var(f"x{i}", d) for i, d in enumerate(dtypes))
    order = children_first((scalar(name, args, dict(attrs), result),))
    return sum(e.op not in ("var", "const", "bitcast") for e in order)
