"""After fusion, for CPUs: positions within pooling windows take one byte in memory, two where windows are large.

They are i32 in the language. What one kernel writes and others read, and no caller sees, is cast where it is stored and cast back
where it is read: inside kernels that are there anyway. -1 stays -1, so nothing changes a bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphc.codegen.fuse import ALONE, CONTRACT, REDUCE
from graphc.ir.function import Builder, Function, Module, Operation, Value
from graphc.ir.types import I8, I16, I32, DType, TensorType

_LAYOUT = frozenset(("reshape", "permute", "broadcast", "slice", "flip"))


def narrow(module: Module) -> Module:
    """`module` with such values narrow between its kernels."""
    calls = module.entry.ops
    users: dict[Value, list[Operation]] = {}
    for op in calls:
        for v in op.operands:
            users.setdefault(v, []).append(op)
    kept = set(module.entry.results)
    chosen: dict[Value, DType] = {}
    for op in calls:
        f: Function = op.attrs["function"]
        for r, inner in zip(op.results, f.results, strict=True):
            if r.type.dtype is I32 and r not in kept and r in users:
                dtype = _held(f, inner)
                if dtype is not None and all(_is_map(u.attrs["function"]) for u in (op, *users[r])):
                    chosen[r] = dtype
    if not chosen:
        return module
    b = Builder(module.entry.name)
    env: dict[Value, Value] = {}
    for p, name in zip(module.entry.params, module.entry.param_names, strict=True):
        env[p] = b.param(p.type, name)
    for op in calls:
        b.loc = op.loc
        f = op.attrs["function"]
        given = {p: chosen[v] for p, v in zip(f.params, op.operands, strict=True) if v in chosen}
        left = {i: chosen[r] for i, r in enumerate(op.results) if r in chosen}
        attrs = {**op.attrs, "function": _with(f, given, left)} if given or left else op.attrs
        made = b.emit_op(op.name, *(env[v] for v in op.operands), **attrs)
        env.update(zip(op.results, made.results, strict=True))
    entry = b.build([env[r] for r in module.entry.results])
    return Module([entry, *(op.attrs["function"] for op in entry.ops)])


def _held(f: Function, value: Value) -> DType | None:
    """The dtype that holds every element of a value of `f`; None if it is not a matter of window positions."""
    producer = {r: op for op in f.ops for r in op.results}
    while value in producer and producer[value].name in _LAYOUT:
        (value,) = producer[value].operands
    op = producer.get(value)
    if op is None or op.name != "max_pool" or value is not op.results[1]:
        return None
    positions = math.prod(op.attrs["window"])
    return next((d for d in (I8, I16) if positions <= 1 << (d.bits - 1)), None)


def _is_map(f: Function) -> bool:
    return not any(op.name in REDUCE | CONTRACT | ALONE for op in f.ops)


def _with(f: Function, given: Mapping[Value, DType], left: Mapping[int, DType]) -> Function:
    """`f` with parameters and results of other dtypes, cast at its ends."""
    b = Builder(f.name)
    env: dict[Value, Value] = {}
    for p, name in zip(f.params, f.param_names, strict=True):
        env[p] = b.param(TensorType(given[p], p.type.shape) if p in given else p.type, name)
    for p in given:
        env[p] = b.emit("cast", env[p], dtype=p.type.dtype)
    for op in f.ops:
        b.loc = op.loc
        made = b.emit_op(op.name, *(env[v] for v in op.operands), **op.attrs)
        env.update(zip(op.results, made.results, strict=True))
    results = [env[r] for r in f.results]
    return b.build([b.emit("cast", r, dtype=left[i]) if i in left else r for i, r in enumerate(results)])
