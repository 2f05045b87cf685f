"""After fusion: reductions over the same dimensions that read the same memory share a kernel.

The gradients of a layer's gain and bias are two sums down the columns of one cotangent; neither reads the other, so fusion,
which follows values to their readers, leaves them apart. Nothing changes a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from graphc.codegen.fuse import ALONE, CONTRACT, MOST_OPERATIONS, REDUCE
from graphc.codegen.lower.row_group import domain_of, is_columns, single_pass
from graphc.ir.function import Builder, Module, Operation, Value
from graphc.ir.types import Shape

MOST_RESULTS = 8
Now = Callable[[Value], Value]
Domain = tuple[Shape, tuple[int, ...]]


def merge(module: Module) -> Module:
    """`module` with such groups merged, one pair at a time."""
    calls = list(module.entry.ops)
    results: dict[Value, Value] = {}

    def now(v: Value) -> Value:
        """What stands for a result of a call that was merged."""
        while v in results:
            v = results[v]
        return v

    domains = {op: _domain(op) for op in calls}
    while (pair := _pair(calls, domains, now)) is not None:
        i, j, at = pair
        merged = _merged(calls[i], calls[j], now)
        domains[merged] = domains[calls[i]]
        for op, offset in ((calls[i], 0), (calls[j], len(calls[i].results))):
            results.update({r: merged.results[offset + k] for k, r in enumerate(op.results)})
        calls = [merged if k == at else op for k, op in enumerate(calls) if k == at or k not in (i, j)]
    if not results:
        return module
    b = Builder(module.entry.name)
    env: dict[Value, Value] = {}
    for p, name in zip(module.entry.params, module.entry.param_names, strict=True):
        env[p] = b.param(p.type, name)

    for op in calls:
        b.loc = op.loc
        made = b.emit_op(op.name, *(env[now(v)] for v in op.operands), **op.attrs)
        env.update(zip(op.results, made.results, strict=True))
    return Module([b.build([env[now(r)] for r in module.entry.results]), *(op.attrs["function"] for op in calls)])


def _domain(op: Operation) -> Domain | None:
    """What a call reduces, if it is a row group."""
    group = op.attrs["function"]
    names = {o.name for o in group.ops}
    return domain_of(group) if names & REDUCE and not names & (CONTRACT | ALONE) else None


def _pair(calls: list[Operation], domains: dict[Operation, Domain | None], now: Now) -> tuple[int, int, int] | None:
    """Two calls that may be one, and its place: that of the first if the second is ready there, that of the second if nobody in
    between waits for the first."""
    made_at = {r: k for k, op in enumerate(calls) for r in op.results}
    alike: dict[Domain, list[int]] = {}
    for k, op in enumerate(calls):
        domain = domains[op]
        if domain is not None:
            alike.setdefault(domain, []).append(k)
    for (shape, axes), places in alike.items():
        # Columns are spread over chunks only where one pass does it: the others stay by themselves.
        if is_columns(shape, axes):
            places = [k for k in places if single_pass(calls[k].attrs["function"])]
        reads = {k: {now(v) for v in calls[k].operands if v.type.shape == shape} for k in places}
        for i, j in itertools.combinations(places, 2):
            first, second = calls[i], calls[j]
            if reads[i].isdisjoint(reads[j]) or not _fit(first, second):
                continue
            if all(made_at.get(now(v), -1) < i for v in second.operands):
                return i, j, i
            if not any(now(v) in first.results for op in calls[i + 1 : j + 1] for v in op.operands):
                return i, j, j
    return None


def _fit(first: Operation, second: Operation) -> bool:
    a, b = first.attrs["function"], second.attrs["function"]
    return len(a.ops) + len(b.ops) <= MOST_OPERATIONS and len(a.results) + len(b.results) <= MOST_RESULTS


def _merged(first: Operation, second: Operation, now: Now) -> Operation:
    a, c = first.attrs["function"], second.attrs["function"]
    b = Builder(a.name)
    operands: list[Value] = []
    params: dict[Value, Value] = {}
    results: list[Value] = []
    for call, group in ((first, a), (second, c)):
        env: dict[Value, Value] = {}
        for v, p in zip(map(now, call.operands), group.params, strict=True):
            if v not in params:
                params[v] = b.param(p.type)
                operands.append(v)
            env[p] = params[v]
        for op in group.ops:
            b.loc = op.loc
            copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
            b.append(copy)
            env.update(zip(op.results, copy.results, strict=True))
        results += [env[r] for r in group.results]
    return Operation("call", operands, {"function": b.build(results)}, [Value(r.type) for r in results], second.loc)
