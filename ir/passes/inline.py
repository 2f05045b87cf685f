"""Inlining: every `call` becomes a copy of the body of its function, to any depth, but for calls that say `noinline`.

Copied operations keep their own source line, or take the call's if they have none. A function that holds arrays is inlined
whatever its calls say: they become parameters of the function that is compiled.
"""

from __future__ import annotations

from graphc.ir.function import Function, Loc, Operation, Value


def inline(function: Function) -> Function:
    """`function` without calls, but for those that say `noinline`. Linear in the size of the result."""
    return _flat(function, {}, False)


def inline_all(function: Function) -> Function:
    """`function` without calls."""
    return _flat(function, {}, True)


def _flat(function: Function, done: dict[int, Function], everything: bool) -> Function:
    if id(function) in done:
        return done[id(function)]
    result = function
    if any(op.name == "call" for op in function.ops):
        ops: list[Operation] = []
        replaced: dict[Value, Value] = {}
        for op in function.ops:
            operands = [replaced.get(v, v) for v in op.operands]
            body = _flat(op.attrs["function"], done, everything) if op.name == "call" else None
            if body is not None and (everything or not op.attrs.get("noinline") or _holds_arrays(body)):
                results = _copy(body, operands, op.loc, ops)
                replaced.update(zip(op.results, results, strict=True))
            elif any(v in replaced for v in op.operands):
                ops.append(Operation(op.name, operands, op.attrs, op.results, op.loc))
            else:
                ops.append(op)
        results = [replaced.get(v, v) for v in function.results]
        result = Function(function.name, function.params, ops, results, function.param_names)
    done[id(function)] = result
    return result


def _holds_arrays(function: Function) -> bool:
    return any(op.name == "constant" and op.attrs["value"].array.size != 1 for op in function.ops)


def _copy(body: Function, args: list[Value], loc: Loc | None, ops: list[Operation]) -> list[Value]:
    """Append the operations of `body`, with fresh results, applied to `args`."""
    env = dict(zip(body.params, args, strict=True))
    for op in body.ops:
        results = [Value(r.type) for r in op.results]
        ops.append(Operation(op.name, [env[v] for v in op.operands], op.attrs, results, op.loc or loc))
        env.update(zip(op.results, results, strict=True))
    return [env[r] for r in body.results]
