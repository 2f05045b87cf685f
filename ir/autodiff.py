"""Derivatives as transformations of functions: `vjp` (reverse mode) and `jvp` (by double vjp).

The reverse walk handles activity, sums over uses and zeros once, so that most gradient rules in
`ops/` are one line. Contributions to a cotangent are added in reverse program order, the order of a
function's text, so the bits of a gradient are determined. The output is IR again: any order works.

jvp is the vjp of the vjp, which is linear in its cotangents (Radul et al., "You Only Linearize
Once", POPL 2023; J. Townsend, "A new trick for calculating Jacobian vector products", 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.ops.create import filled
from graphc.ir.registry import lookup

# (callee, differentiated parameters, results with cotangents) -> its gradient; the callee is kept
# alive by the entry, so that its id stays its own.
Memo = dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[Function, Function]]


def vjp(f: Function, wrt: Sequence[int] | None = None) -> Function:
    """The function that returns the results of `f` and their vector-Jacobian product.

    Parameters: those of `f`, then a cotangent `ct_...` for each floating result. Results: those of
    `f`, then the gradient for each parameter in `wrt`.

    wrt: indices of floating parameters; by default all of them.
    Raises `TypeError` if an operation between `wrt` and the results has no gradient, or a parameter
    in `wrt` is not floating; `IndexError` for an index that is not a parameter's.
    """
    chosen = _checked_wrt(f, wrt)
    gradient = _gradient(f, chosen, _float_results(f), {})
    name = f"{f.name}_vjp" if wrt is None else "_".join([f"{f.name}_vjp", *map(str, chosen)])
    results = (*f.results, *gradient.results)
    return Function(name, gradient.params, gradient.ops, results, gradient.param_names)


def jvp(f: Function, wrt: Sequence[int] | None = None) -> Function:
    """The function that returns the results of `f` and their Jacobian-vector product.

    Parameters: those of `f`, then a tangent `t_...` for each parameter in `wrt`. Results: those of
    `f`, then a tangent for each floating result. Arguments and errors are those of `vjp`.
    """
    chosen = _checked_wrt(f, wrt)
    seeds = _float_results(f)
    memo: Memo = {}
    pullback = _gradient(f, chosen, seeds, memo)
    count = len(f.params)
    cotangents = range(count, count + len(seeds))
    # The pullback is linear in its cotangents, so its derivative does not depend on them.
    pushforward = _gradient(pullback, tuple(cotangents), tuple(range(len(chosen))), memo)
    b = Builder(f.name)
    zeros = {p: filled(b, 0.0, p.type) for p in (pullback.params[i] for i in cotangents)}
    ops = [*b.build(()).ops, *(_renamed(op, zeros) for op in pushforward.ops)]
    results = [*f.results, *(zeros.get(r, r) for r in pushforward.results)]
    names = list(f.param_names)
    for i in chosen:
        names.append(_fresh(f"t_{f.param_names[i]}", names))
    params = (*f.params, *pushforward.params[count + len(seeds) :])
    return Function(f"{f.name}_jvp", params, _live(ops, results, keep=set(f.ops)), results, names)


def vjp_of_call(
    b: Builder, op: Operation, cotangents: Sequence[Value | None], active: Sequence[bool], memo: Memo | None = None
) -> list[Value | None]:
    """Emits a call of the gradient of the function that `op` calls, for its `active` operands."""
    callee: Function = op.attrs["function"]
    memo = {} if memo is None else memo
    wrt = tuple(i for i, wanted in enumerate(active) if wanted)
    seeds = tuple(i for i, g in enumerate(cotangents) if g is not None)
    key = (id(callee), wrt, seeds)
    if key not in memo:
        memo[key] = (callee, _gradient(callee, wrt, seeds, memo))
    gradient = memo[key][1]
    given = [g for g in cotangents if g is not None]
    call = b.emit_op("call", *op.operands, *given, function=gradient)
    out: list[Value | None] = [None] * len(op.operands)
    for i, g in zip(wrt, call.results):
        out[i] = g
    return out


def gradient(f: Function, wrt: tuple[int, ...], seeds: tuple[int, ...]) -> Function:
    """The gradients for the parameters `wrt`, given cotangents of the results `seeds`.

    Parameters: those of `f`, then a cotangent for each of `seeds`. Results: one gradient for each of `wrt`.
    """
    return _gradient(f, wrt, seeds, {})


def _gradient(f: Function, wrt: tuple[int, ...], seeds: tuple[int, ...], memo: Memo) -> Function:
    """The gradients for parameters `wrt`, given cotangents of the results `seeds`, as a function.

    It shares the values and operations of `f`, which come first.
    """
    names = list(f.param_names)
    params = [*f.params]
    active = _active_values(f, wrt)
    b = Builder(f.name)
    ct: dict[Value, Value] = {}
    for i in seeds:
        result = f.results[i]
        g = Value(result.type)
        params.append(g)
        names.append(_fresh(f"ct_{i}", names))
        if result in active:
            _accumulate(b, ct, result, g)
    for op in reversed(f.ops):
        given = tuple(ct.pop(r, None) if r in active else None for r in op.results)
        if all(g is None for g in given):
            continue
        b.loc = op.loc
        wanted = [v in active for v in op.operands]
        for v, wants, part in zip(op.operands, wanted, _pull_back(b, op, given, wanted, memo), strict=True):
            if wants and part is not None:
                if part.type != v.type:
                    raise RuntimeError(f"internal error: the gradient of {op} gave {part.type} for an operand {v.type}")
                _accumulate(b, ct, v, part)
    b.loc = None
    results = [ct[f.params[i]] if f.params[i] in ct else filled(b, 0.0, f.params[i].type) for i in wrt]
    parts = "_".join(["grad", *map(str, wrt), "of", *map(str, seeds)])
    ops = [*f.ops, *_live(b.build(()).ops, results)]
    return Function(f"{f.name}_{parts}", params, ops, results, names)


def _pull_back(
    b: Builder, op: Operation, cotangents: tuple[Value | None, ...], wanted: Sequence[bool], memo: Memo
) -> Sequence[Value | None]:
    if op.name == "call":
        return vjp_of_call(b, op, cotangents, wanted, memo)
    definition = lookup(op.name)
    if definition.vjp is None:
        at = f" at {op.loc}" if op.loc else ""
        types = ", ".join(str(v.type) for v in op.operands)
        raise TypeError(
            f"{op.name}({types}){at} has no gradient: {definition.no_gradient}; "
            "put stop_gradient on its operand if the gradient should be zero there"
        )
    return definition.vjp(b, op, cotangents)


def _active_values(f: Function, wrt: Sequence[int]) -> set[Value]:
    """The floating values that depend on the parameters `wrt` through floating values."""
    active = {f.params[i] for i in wrt}
    for op in f.ops:
        if op.name != "stop_gradient" and any(v in active for v in op.operands):
            active.update(r for r in op.results if r.type.dtype.is_float)
    return active


def _accumulate(b: Builder, ct: dict[Value, Value], value: Value, g: Value) -> None:
    ct[value] = b.emit("add", ct[value], g) if value in ct else g


def _live(ops: Sequence[Operation], results: Sequence[Value], keep: set[Operation] | None = None) -> list[Operation]:
    """`ops` without those that neither `results` need nor `keep` contains."""
    needed = set(results)
    out = []
    for op in reversed(ops):
        if (keep and op in keep) or any(r in needed for r in op.results):
            needed.update(op.operands)
            out.append(op)
    return out[::-1]


def _renamed(op: Operation, names: dict[Value, Value]) -> Operation:
    """`op` with operands replaced; the same object if none is."""
    if not any(v in names for v in op.operands):
        return op
    return Operation(op.name, [names.get(v, v) for v in op.operands], op.attrs, op.results, op.loc)


def _checked_wrt(f: Function, wrt: Sequence[int] | None) -> tuple[int, ...]:
    if wrt is None:
        return tuple(i for i, p in enumerate(f.params) if p.type.dtype.is_float)
    for i in wrt:
        if not 0 <= i < len(f.params):
            raise IndexError(f"@{f.name} has {len(f.params)} parameters; there is no parameter {i} to differentiate by")
        if not f.params[i].type.dtype.is_float:
            raise TypeError(
                f"@{f.name} cannot be differentiated by its parameter {f.param_names[i]}: {f.params[i].type}, "
                "which is not floating point; leave it out of wrt"
            )
    return tuple(wrt)


def _float_results(f: Function) -> tuple[int, ...]:
    return tuple(i for i, r in enumerate(f.results) if r.type.dtype.is_float)


def _fresh(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
