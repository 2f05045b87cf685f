"""Inlining: every `call` becomes a copy of the body of its function, to any depth.

Copied operations keep their own source line, or take the call's if they have none.
"""

from __future__ import annotations

from graphc.ir.function import Function, Loc, Operation, Value


def inline(function: Function) -> Function:
    """`function` without calls. Linear in the size of the result."""
    return _flat(function, {})


def _flat(function: Function, done: dict[int, Function]) -> Function:
    if id(function) in done:
        return done[id(function)]
    result = function
    if any(op.name == "call" for op in function.ops):
        ops: list[Operation] = []
        replaced: dict[Value, Value] = {}
        for op in function.ops:
            operands = [replaced.get(v, v) for v in op.operands]
            if op.name == "call":
                results = _copy(_flat(op.attrs["function"], done), operands, op.loc, ops)
                replaced.update(zip(op.results, results, strict=True))
            elif any(v in replaced for v in op.operands):
                ops.append(Operation(op.name, operands, op.attrs, op.results, op.loc))
            else:
                ops.append(op)
        results = [replaced.get(v, v) for v in function.results]
        result = Function(function.name, function.params, ops, results, function.param_names)
    done[id(function)] = result
    return result


def _copy(body: Function, args: list[Value], loc: Loc | None, ops: list[Operation]) -> list[Value]:
    """Append the operations of `body`, with fresh results, applied to `args`."""
    env = dict(zip(body.params, args, strict=True))
    for op in body.ops:
        results = [Value(r.type) for r in op.results]
        ops.append(Operation(op.name, [env[v] for v in op.operands], op.attrs, results, op.loc or loc))
        env.update(zip(op.results, results, strict=True))
    return [env[r] for r in body.results]
