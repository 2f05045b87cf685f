"""Before fusion: bring a function into the form that the kernel families expect.

- a reduction over several groups of adjacent dimensions becomes one reduction a group, the
  innermost first (this order is part of the bit contract);
- constants of more than one element become parameters, returned beside the function, in the order in which they are read;
- a concat of very many operands becomes a concat of concats, so that kernels keep a moderate size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from graphc.codegen.constants import last_laid_out
from graphc.ir.function import Builder, DenseArray, Function, Operation, Value
from graphc.ir.passes.dce import dce
from graphc.ir.registry import Array
from graphc.ir.types import BF16, F16, F32, size_of

MOST_JOINED = 64
REDUCTIONS = ("sum", "prod", "max", "min", "any", "all")


def axis_groups(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Runs of adjacent axes, in ascending order."""
    runs: list[list[int]] = []
    for a in sorted(axes):
        if runs and a == runs[-1][-1] + 1:
            runs[-1].append(a)
        else:
            runs.append([a])
    return [tuple(r) for r in runs]


def _join(b: Builder, pieces: Sequence[Value], axis: int) -> Value:
    while len(pieces) > 1:
        parts = [pieces[i : i + MOST_JOINED] for i in range(0, len(pieces), MOST_JOINED)]
        pieces = [b.emit("concat", *part, axis=axis) if len(part) > 1 else part[0] for part in parts]
    return pieces[0]


def _counts(f: Function) -> set[float]:
    """How many elements a sum over the first dimension and others adds up, and what statistics make of that number. Other batches
    have others."""
    found: set[float] = set()
    for op in f.ops:
        if op.name == "sum" and op.attrs["axes"][:1] == (0,):
            count = size_of(op.operands[0].type.shape[a] for a in op.attrs["axes"])
            if isinstance(count, int) and count > 2:
                found |= {count, count - 1, *(float(t(n)) for t in (np.float32, np.float64) for n in (1 / count, count / (count - 1)))}
    return found


def _divided(f: Function, sizes: set[float]) -> Function:
    """`f` where statistics are divided by a count again: that it is a power of two, so that they could be multiplied, is chance, and
    for another batch kernels would be others."""
    made = {op.result: op for op in f.ops if op.name in ("constant", "full")}

    def count_of(v: Value) -> Operation | None:
        """The constant of which `v` consists, if it is one divided by such a count."""
        op = made.get(v)
        op = made.get(op.operands[0]) if op is not None and op.name == "full" else op
        if op is None or op.name != "constant" or not v.type.dtype.is_float or op.attrs["value"].array.size != 1:
            return None
        x = float(op.attrs["value"].array.reshape(()))
        return op if 0 < x < 1 and math.frexp(x)[0] == 0.5 and 1 / x in sizes else None

    # As many as there are channels: where it is done for every element it should not take longer.
    found = {
        op: held
        for op in f.ops
        if op.name == "mul"
        and sum(d != 1 for d in op.result.type.shape) <= 1
        and (held := count_of(op.operands[1])) is not None
    }
    if not found:
        return f
    b = Builder(f.name)
    env = {p: b.param(p.type, name) for p, name in zip(f.params, f.param_names, strict=True)}
    for op in f.ops:
        b.loc = op.loc
        if op not in found:
            b.copy(op, env)
            continue
        array = found[op].attrs["value"].array
        count = b.emit("constant", value=DenseArray((1 / array).astype(array.dtype).reshape(())))
        x = env[op.operands[0]]
        if x.type.shape:
            count = b.emit("full", count, shape=x.type.shape)
        env[op.result] = b.emit("div", x, count)
    return dce(b.build([env[r] for r in f.results]))


def prepare(f: Function, counts: bool = False) -> tuple[Function, tuple[Array, ...]]:
    """The prepared function, whose last parameters are the returned constant arrays.

    counts: floating-point numbers that are the size of a batch, such as the divisor of a mean, are parameters too, so that
    kernels do not depend on them.
    """
    sizes = _counts(f) if counts else set()
    f = _divided(f, sizes) if sizes else f
    held: list[tuple[Value, Operation]] = [
        (op.result, op)
        for op in f.ops
        if op.name == "constant"
        and ((array := op.attrs["value"].array).size != 1 or (sizes and op.result.type.dtype.is_float and float(array) in sizes))
    ]
    split = any(op.name in REDUCTIONS and len(axis_groups(op.attrs["axes"])) > 1 for op in f.ops)
    split = split or any(op.name == "concat" and len(op.operands) > MOST_JOINED for op in f.ops)
    if not held and not split:
        return f, ()
    b = Builder(f.name)
    env: dict[Value, Value] = {}
    for p, name in zip(f.params, f.param_names, strict=True):
        env[p] = b.param(p.type, name)
    arrays: dict[object, Value] = {}
    constants: list[Array] = []
    for value, op in held:
        dense = op.attrs["value"]
        if dense not in arrays:
            arrays[dense] = b.param(value.type, f"constant{len(constants)}")
            constants.append(np.ascontiguousarray(dense.array))
        env[value] = arrays[dense]
    for op in f.ops:
        if op.results and op.results[0] in env:
            continue
        b.loc = op.loc
        if op.name in REDUCTIONS:
            value, dtype = env[op.operands[0]], op.result.type.dtype
            groups = axis_groups(op.attrs["axes"])
            # Small floats are summed in float32 and rounded once, at the end.
            wide = dtype in (F16, BF16) and len(groups) > 1
            if wide:
                value = b.emit("cast", value, dtype=F32)
            for group in reversed(groups):
                value = b.emit(op.name, value, axes=group)
            env[op.result] = b.emit("cast", value, dtype=dtype) if wide else value
        elif op.name == "concat" and len(op.operands) > MOST_JOINED:
            env[op.result] = _join(b, [env[v] for v in op.operands], op.attrs["axis"])
        else:
            copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
            b.append(copy)
            env.update(zip(op.results, copy.results, strict=True))
    return last_laid_out(b.build([env[r] for r in f.results]), constants)
