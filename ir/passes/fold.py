"""Constant folding: operations on constants become constants, where NumPy's bits are the compiled ones.

That is the case for layout, for everything on integers and bools, and for the elementwise operations of
IEEE 754; not for exp, log ... (defined to the bit by the code generator only) and not for reductions of
floats (their order is the code generator's). What repeats one scalar stays a `full` of the result.
"""

from __future__ import annotations

import numpy as np
from graphc.ir.function import DenseArray, Function, Operation, Value
from graphc.ir.ops.elementwise import APPROXIMATE
from graphc.ir.passes.rewrite import Rewriter
from graphc.ir.registry import Array, OpDef, lookup
from graphc.ir.types import TensorType

# Results of more elements are left to be computed.
LIMIT = 1024

ELEMENTWISE_FAMILIES = frozenset({"elementwise", "compare"})
# broadcast and pad are not here: they would turn a few constants into many.
LAYOUT = frozenset({"reshape", "permute", "slice", "concat", "flip"})
EXACT_REDUCTIONS = frozenset({"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"})


def fold(function: Function) -> Function:
    """`function` with operations on constants evaluated. Linear, but for the evaluation itself."""
    b = Rewriter(function)
    for original in function.ops:
        op = b.current(original)
        value = _folded(b, op)
        if value is None:
            b.append(op)
        else:
            b.replace(op.results, [value])
    return b.finish()


def _folded(b: Rewriter, op: Operation) -> Value | None:
    if not op.operands or len(op.results) != 1:
        return None
    for v in op.operands:
        # Nearly always one of them is not a constant, and nothing more need be known.
        made = b.definition(v)
        if made is None or (made.name != "constant" and b.uniform(v) is None):
            return None
    definition = lookup(op.name)
    if not _is_exact(op, definition):
        return None
    b.loc = op.loc
    elementwise = definition.family in ELEMENTWISE_FAMILIES
    uniform = [b.uniform(v) for v in op.operands]
    scalars = [u for u in uniform if u is not None]
    type = op.result.type
    if elementwise and len(scalars) == len(uniform):
        return b.constant(_evaluate(op, definition, [s.array for s in scalars], type.with_shape(())), type)

    if not _is_small(type):
        return None
    arrays = [_array(b, v, u) for v, u in zip(op.operands, uniform)]
    known = [a for a in arrays if a is not None]
    if len(known) < len(arrays):
        return None
    folded: Value = b.emit("constant", value=_evaluate(op, definition, known, type))
    return folded


def _is_exact(op: Operation, definition: OpDef) -> bool:
    floats = any(v.type.dtype.is_float for v in op.operands)
    if definition.family in ELEMENTWISE_FAMILIES:
        return not floats or op.name not in APPROXIMATE
    return op.name in LAYOUT or (op.name in EXACT_REDUCTIONS and not floats)


def _array(b: Rewriter, value: Value, uniform: DenseArray | None) -> Array | None:
    """The elements of `value` if they are known and few."""
    op = b.definition(value)
    if op is not None and op.name == "constant":
        array: Array = op.attrs["value"].array
        return array
    if uniform is None or not _is_small(value.type):
        return None
    return np.full(_static_shape(value.type), uniform.array)


def _evaluate(op: Operation, definition: OpDef, arrays: list[Array], type: TensorType) -> DenseArray:
    with np.errstate(all="ignore"):
        (result,) = definition.eval(arrays, op.attrs, (type,))
    result = np.asarray(result)
    if result.dtype != type.dtype.numpy or result.shape != _static_shape(type):
        raise AssertionError(f"the meaning of {op.name} gave {result.dtype}{list(result.shape)}, not {type}")
    return DenseArray(result)


def _is_small(type: TensorType) -> bool:
    # Not by the size alone: that of [0, B] is 0.
    return all(isinstance(d, int) for d in type.shape) and int(type.size) <= LIMIT


def _static_shape(type: TensorType) -> tuple[int, ...]:
    return tuple(int(d) for d in type.shape)
