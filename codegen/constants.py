"""Constants in the order in which they are read.

The weight of a linear layer is stored [outputs, inputs] and read the other way round. Where it is a constant, it is
turned once, when the program is built, and its kernels read it where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import Array
from graphc.ir.types import TensorType, size_of


def laid_out(f: Function, constants: Mapping[int, Array]) -> tuple[Function, dict[int, Array]]:
    """The function and its constants (values of parameters by position), those that are only read permuted in that order.

    A parameter that changes has the type of what it was read as; positions stay.
    """
    f, axes = in_order_of_reading(f, constants)
    found = {i: np.ascontiguousarray(np.transpose(a, axes[i])) if i in axes else a for i, a in constants.items()}
    return f, found


def in_order_of_reading(f: Function, positions: Iterable[int]) -> tuple[Function, dict[int, tuple[int, ...]]]:
    """The function with some parameters, if they are only read permuted, in that order; and the axes of those."""
    axes = {f.params[i]: order for i in positions if (order := _only_order(f, f.params[i]))}
    if not axes:
        return f, {}
    b = Builder(f.name)
    env: dict[Value, Value] = {}
    for p, name in zip(f.params, f.param_names, strict=True):
        order = axes.get(p)
        shape = tuple(p.type.shape[a] for a in order) if order else p.type.shape
        env[p] = b.param(TensorType(p.type.dtype, shape), name)
    for op in f.ops:
        if op.name == "permute" and axes.get(op.operands[0]):
            env[op.result] = env[op.operands[0]]
            continue
        copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
        b.append(copy)
        env.update(zip(op.results, copy.results, strict=True))
    return b.build([env[r] for r in f.results]), {i: axes[p] for i, p in enumerate(f.params) if p in axes}


def last_laid_out(f: Function, arrays: Sequence[Array]) -> tuple[Function, tuple[Array, ...]]:
    """`laid_out` for constants that are the function's last parameters."""
    first = len(f.params) - len(arrays)
    f, held = laid_out(f, {first + i: a for i, a in enumerate(arrays)})
    return f, tuple(held.values())


# Products with more rows read turned weights about as fast as others.
FEW_ROWS = 8


def turned_by_few_rows(f: Function, candidates: Iterable[int]) -> list[int]:
    """Those of some parameters (by position) which are only read permuted, and only by products of at most FEW_ROWS rows.

    Such a product takes about as long as its weights take to be read, and half as long if neighbours along its result are
    neighbours in memory.
    """
    found = []
    for i in candidates:
        if _only_order(f, f.params[i]) != (1, 0):
            continue
        turned = {op.result for op in f.ops if f.params[i] in op.operands}
        readers = [op for op in f.ops if not turned.isdisjoint(op.operands)]
        if turned.isdisjoint(f.results) and all(_few_rows(op, turned) for op in readers):
            found.append(i)
    return found


def _few_rows(op: Operation, matrices: Set[Value]) -> bool:
    """Whether an operation is a product of few rows with one of some matrices, whose rows are added up."""
    if op.name != "dot" or op.operands[1] not in matrices or op.attrs["rhs_contract"] != (0,):
        return False
    left = op.operands[0].type
    rows = size_of(left.shape[:-1])
    return op.attrs["lhs_contract"] == (left.rank - 1,) and isinstance(rows, int) and rows <= FEW_ROWS


def _only_order(f: Function, p: Value) -> tuple[int, ...] | None:
    """The axes of the permutations that are all that reads a parameter; None where there is anything else."""
    found: set[tuple[int, ...]] = set()
    for op in f.ops:
        if p in op.operands:
            if op.name != "permute":
                return None
            found.add(tuple(op.attrs["axes"]))
    return found.pop() if len(found) == 1 and p not in f.results else None
