"""How many elementary operations a group takes for each element of its domain: what `Kernel.work` is made of.

An operation is one lane of one vector instruction of 32 bits a lane, so that kernels of one kind can be compared: sixteen
exponentials are not sixteen additions.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from graphc.codegen.elementwise import scalar
from graphc.codegen.expr import children_first, var
from graphc.ir.function import Function, Operation
from graphc.ir.registry import lookup

# Instructions of the throughput of so many others.
SLOW = {"div": 8, "sqrt": 8, "idiv": 20, "rem": 20}
RANDOM_WORD = 25  # Philox gives four words for ten rounds of about ten operations
INDEXING = 8  # an address of its own for every lane


def work_of(group: Function) -> int:
    """Elementary operations for each element of the domain, loads and the store included.

    What has one element (a learning rate), or one for each row that is reduced, does not count.
    """
    kept = {op.results[0].type.shape for op in group.ops if _shrinks(op)}
    once = [op for op in group.ops if op.results and (_single(op) or (op.results[0].type.shape in kept and not _shrinks(op)))]
    few = [p for p in group.params if all(d == 1 for d in p.type.shape)]
    return 1 + len(group.params) - len(few) + sum(map(operations_of, group.ops)) - sum(map(operations_of, once))


def _shrinks(op: Operation) -> bool:
    return lookup(op.name).family == "reduce" and op.results[0].type.shape != op.operands[0].type.shape


def _single(op: Operation) -> bool:
    return not _shrinks(op) and all(d == 1 for d in op.results[0].type.shape)


def operations_of(op: Operation) -> int:
    """Elementary operations of one element of an operation. Layout is folded into addresses."""
    family = lookup(op.name).family
    if family == "random":
        return RANDOM_WORD
    if family == "indexing":
        return INDEXING
    if family == "pool":
        window = [w for w in op.attrs.get("window", ()) if isinstance(w, int)]
        return max(INDEXING, 2 * math.prod(window))
    if family in ("elementwise", "compare"):
        attrs = tuple(sorted(op.attrs.items()))
        return _instructions(op.name, tuple(v.type.dtype for v in op.operands), attrs, op.results[0].type.dtype)
    return 0 if family == "layout" else 1


@functools.cache
def _instructions(name: str, dtypes: tuple[Any, ...], attrs: tuple[Any, ...], result: Any) -> int:
    """Instructions of one element: the nodes of the operation's expression that are neither operands nor literals."""
    args = tuple(var(f"x{i}", d) for i, d in enumerate(dtypes))
    total = 0
    for e in children_first((scalar(name, args, dict(attrs), result),)):
        if e.op not in ("var", "const", "bitcast"):
            total += SLOW.get(e.op, 1) * max(1, e.dtype.itemsize // 4)
    return max(1, total)
