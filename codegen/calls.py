"""Calls that are not inlined (`noinline`): kernels of their own, made once for all calls of a function.

The update of a parameter is such a call. The passes and fusion see one operation of it, whatever it consists of; its function goes
through them once in a process, and every call then launches the same groups, which are canonical and compiled already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from graphc.codegen.fuse import can_map
from graphc.codegen.prepare import prepare
from graphc.ir.function import Builder, Function, Module, Operation, Value
from graphc.ir.passes import run_pipeline
from graphc.ir.passes.cse import cse
from graphc.ir.passes.inline import inline_all

Grouping = Callable[[Function], Module]
MOST_REMEMBERED = 1024
# The groups of a call with what lays out its operands, under `_key_of` these; the functions called are held, so that their ids last.
_known: dict[Any, tuple[Module, list[Function]]] = {}
# One object for each group of equal text.
_groups: dict[Any, Function] = {}


def expanded(module: Module, grouping: Grouping, kind: object) -> Module:
    """`module` with groups that consist of a call replaced by the groups of what they call.

    grouping: makes the groups of a function; kind: tells it from others.
    """
    if not any(_calls(op) for op in module.entry.ops):
        return module
    b = Builder(module.entry.name)
    env: dict[Value, Value] = {}
    for p, name in zip(module.entry.params, module.entry.param_names, strict=True):
        env[p] = b.param(p.type, name)
    functions: dict[str, Function] = {}

    def launch(op: Operation, env: dict[Value, Value]) -> None:
        functions[op.attrs["function"].name] = op.attrs["function"]
        b.copy(op, env)

    for op in module.entry.ops:
        b.loc = op.loc
        if not _calls(op):
            launch(op, env)
            continue
        inner = _groups_of(op.attrs["function"], grouping, kind).entry
        values = dict(zip(inner.params, [env[v] for v in op.operands], strict=True))
        for part in inner.ops:
            launch(part, values)
        env.update(zip(op.results, [values[r] for r in inner.results], strict=True))
    return Module([b.build([env[r] for r in module.entry.results]), *functions.values()])


def _calls(op: Operation) -> bool:
    return any(o.name == "call" for o in op.attrs["function"].ops)


def _groups_of(body: Function, grouping: Grouping, kind: object) -> Module:
    """The groups of a function that consists of a call and of what lays out its operands; every group is in its entry."""
    called = [op.attrs["function"] for op in body.ops if op.name == "call"]
    key = (_key_of(body), kind)
    found = _known.get(key)
    if found is None:
        if len(_known) >= MOST_REMEMBERED:
            _known.clear()
            _groups.clear()
        name = called[0].name
        # Named unlike any group.
        flat = inline_all(Function(f"call.{name}", body.params, body.ops, body.results, body.param_names))
        prepared, arrays = prepare(run_pipeline(flat, ("fold", "simplify", "cse", "dce")))
        if arrays:  # made by folding; they are parameters of the whole function only
            prepared, _ = prepare(run_pipeline(flat, ("simplify", "cse", "dce")))
        found = _known[key] = (_named(_numbers_together(grouping(prepared)), name), called)
    return found[0]


def _numbers_together(module: Module) -> Module:
    """`module` with one group for all that is computed from numbers alone: bias corrections, the count of steps."""
    entry = module.entry
    known = {p for p in entry.params if not p.type.shape}
    together: list[Operation] = []
    for op in entry.ops:
        if all(v in known for v in op.operands) and all(can_map(o) and not o.result.type.shape for o in op.attrs["function"].ops):
            together.append(op)
            known.update(op.results)
    if len(together) < 2:
        return module
    b = Builder("numbers")
    made = {v: b.param(v.type) for v in dict.fromkeys(v for op in together for v in op.operands if v in entry.params)}
    operands = list(made)
    for op in together:
        b.loc = op.loc
        made.update(zip(op.results, b.inline(op.attrs["function"], *[made[v] for v in op.operands]), strict=True))
    others = [op for op in entry.ops if op not in together]
    read = {*entry.results, *(v for op in others for v in op.operands)}
    results = [r for op in together for r in op.results if r in read]
    group = cse(b.build([made[r] for r in results]))
    first = Operation("call", operands, {"function": group, "noinline": False}, results)
    function = Function(entry.name, entry.params, [first, *others], entry.results, entry.param_names)
    return Module([function, *(op.attrs["function"] for op in function.ops)])


def _key_of(body: Function) -> Any:
    """Equal for bodies that call the same function in the same way."""
    number: dict[Value, int] = {}
    for p in body.params:
        number[p] = len(number)
    ops = []
    for op in body.ops:
        what = id(op.attrs["function"]) if op.name == "call" else op.attrs.key()
        ops.append((op.name, what, tuple([number[v] for v in op.operands])))
        for r in op.results:
            number[r] = len(number)
    return (tuple([p.type for p in body.params]), tuple(ops), tuple([number[r] for r in body.results]))


def _named(module: Module, name: str) -> Module:
    """`module` with one object for each group of equal text, under a name that other groups do not have."""
    entry = module.entry
    b = Builder(entry.name)
    env = {p: b.param(p.type) for p in entry.params}
    for op in entry.ops:
        group: Function = op.attrs["function"]
        key = group.structure()
        if key not in _groups:
            digest = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
            _groups[key] = Function(f"{name}_{digest}", group.params, group.ops, group.results, group.param_names)
        made = b.emit_op("call", *[env[v] for v in op.operands], function=_groups[key])
        env.update(zip(op.results, made.results, strict=True))
    built = b.build([env[r] for r in entry.results])
    return Module([built, *{op.attrs["function"].name: op.attrs["function"] for op in built.ops}.values()])
