"""Constants in the order in which they are read.

The weight of a linear layer is stored [outputs, inputs] and read the other way round. Where it is a constant, it is
turned once, when the program is built, and its kernels read it where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import Array
from graphc.ir.types import TensorType


def laid_out(f: Function, constants: Mapping[int, Array]) -> tuple[Function, dict[int, Array]]:
    """The function and its constants (values of parameters by position), those that are only read permuted in that order.

    A parameter that changes has the type of what it was read as; positions stay.
    """
    axes = {f.params[i]: _only_order(f, f.params[i]) for i in constants}
    if not any(axes.values()):
        return f, dict(constants)
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
    arrays = {}
    for i, array in constants.items():
        order = axes[f.params[i]]
        arrays[i] = np.ascontiguousarray(np.transpose(array, order)) if order else array
    return b.build([env[r] for r in f.results]), arrays


def last_laid_out(f: Function, arrays: Sequence[Array]) -> tuple[Function, tuple[Array, ...]]:
    """`laid_out` for constants that are the function's last parameters."""
    first = len(f.params) - len(arrays)
    f, held = laid_out(f, {first + i: a for i, a in enumerate(arrays)})
    return f, tuple(held.values())


def _only_order(f: Function, p: Value) -> tuple[int, ...] | None:
    """The axes of the permutations that are all that reads a parameter; None where there is anything else."""
    found: set[tuple[int, ...]] = set()
    for op in f.ops:
        if p in op.operands:
            if op.name != "permute":
                return None
            found.add(tuple(op.attrs["axes"]))
    return found.pop() if len(found) == 1 and p not in f.results else None
