"""Groups of operations that share a kernel, and the module that calls them one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphc.codegen.prepare import prepare
from graphc.ir.function import Builder, Function, Module, Operation, Value
from graphc.ir.passes.inline import inline_all
from graphc.ir.types import Shape


@dataclass(eq=False)
class Group:
    """One kernel's operations while fusion makes it. kind: "map", "row", "contract" or "alone" (see fuse.py)."""

    kind: str
    shape: Shape  # the domain: result shape; for a row group the shape that is reduced
    axes: tuple[int, ...] = ()
    ops: list[Operation] = field(default_factory=list)  # in reverse program order
    results: list[Value] = field(default_factory=list)
    feeds: set[Group] = field(default_factory=set)  # groups that read this one's results
    number: int = 0
    ahead: int = 0  # the numbers of all groups that need this one, directly or not, as bits
    fed_by: set[Group] = field(default_factory=set)

    def feed(self, readers: set[Group]) -> None:
        """Note that these groups read this one's results."""
        self.feeds |= readers
        new = 0
        for g in readers:
            g.fed_by.add(self)
            new |= g.ahead | 1 << g.number
        stack = [(self, new)]
        while stack:
            g, new = stack.pop()
            if new & ~g.ahead:
                g.ahead |= new
                stack.extend((source, new) for source in g.fed_by)

    def reaches(self, goal: Group) -> bool:
        """Whether `goal` needs this group's results, directly or not."""
        return self is goal or bool(self.ahead >> goal.number & 1)

    def kept(self) -> Shape:
        return without(self.shape, self.axes)


def without(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(d for i, d in enumerate(shape) if i not in axes)


Free = Callable[[Operation], bool]


def module_of(f: Function, groups: Sequence[Group], free: Free) -> Module:
    """An entry of calls, and a function for each group. Operations that are `free` belong to no group:
    they are repeated in every group that reads them."""
    producer = {r: op for op in f.ops for r in op.results}
    entry = Builder(f.name)
    env: dict[Value, Value] = {}
    for p, name in zip(f.params, f.param_names, strict=True):
        env[p] = entry.param(p.type, name)
    functions: list[Function] = []
    for i, group in enumerate(_topological(f, groups)):
        body, inputs = _outline(group, f"group{i}", producer, free)
        functions.append(body)
        locs = [op.loc for op in reversed(group.ops) if op.loc]
        entry.loc = locs[-1] if locs else None
        call = Operation("call", inputs, {"function": body, "noinline": False}, group.results)
        entry.copy(call, env)
    return Module([entry.build([env[r] for r in f.results]), *functions])


def separate(f: Function) -> Module:
    """The module of `f` with a group for every operation, those of calls included: no fusion at all, for comparison."""
    if any(op.name == "call" for op in f.ops):
        f = prepare(inline_all(f))[0]
    f = own_results(f)
    entry = Builder(f.name)
    env: dict[Value, Value] = {}
    for p, name in zip(f.params, f.param_names, strict=True):
        env[p] = entry.param(p.type, name)
    functions: list[Function] = []
    for i, op in enumerate(f.ops):
        b = Builder(f"group{i}")
        inputs = list(dict.fromkeys(op.operands))
        inner = {v: b.param(v.type, f"x{k}") for k, v in enumerate(inputs)}
        copy = b.append(
            Operation(op.name, [inner[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
        )
        body = b.build(copy.results)
        functions.append(body)
        entry.loc = op.loc
        call = entry.emit_op("call", *(env[v] for v in inputs), function=body)
        env.update(zip(op.results, call.results, strict=True))
    return Module([entry.build([env[r] for r in f.results]), *functions])


def own_results(f: Function) -> Function:
    """Results that are parameters, or are returned twice, become copies of their own."""
    seen: set[Value] = set(f.params)
    if len(set(f.results)) == len(f.results) and not seen & set(f.results):
        return f
    ops, results = list(f.ops), []
    for r in f.results:
        if r in seen:
            copy = Operation("stop_gradient", [r], {}, [Value(r.type)])
            ops.append(copy)
            r = copy.result
        seen.add(r)
        results.append(r)
    return Function(f.name, f.params, ops, results, f.param_names)


def _topological(f: Function, groups: Sequence[Group]) -> list[Group]:
    """Groups in an order that respects data, as close to program order as that allows."""
    position = {op: i for i, op in enumerate(f.ops)}
    needs: dict[Group, int] = dict.fromkeys(groups, 0)
    for g in groups:
        for n in g.feeds:
            needs[n] += 1
    first = {g: min(position[op] for op in g.ops) for g in groups}
    ready = [(first[g], i, g) for i, g in enumerate(groups) if needs[g] == 0]
    heapq.heapify(ready)
    order: list[Group] = []
    while ready:
        _, _, g = heapq.heappop(ready)
        order.append(g)
        for n in g.feeds:
            needs[n] -= 1
            if needs[n] == 0:
                heapq.heappush(ready, (first[n], len(groups) + len(order), n))
    if len(order) != len(groups):
        raise AssertionError("fusion made a cycle of groups")
    return order


def _outline(
    group: Group, name: str, producer: dict[Value, Operation], free: Free
) -> tuple[Function, list[Value]]:
    """The function of a group and the values it reads from outside."""
    inside = set(group.ops)
    needed: list[Operation] = []
    inputs: dict[Value, None] = {}
    done: set[Operation] = set()

    def collect(v: Value) -> None:
        stack = [(v, False)]
        while stack:
            value, ready = stack.pop()
            op = producer.get(value)
            if op is None or not (op in inside or free(op)):
                inputs.setdefault(value)
                continue
            if op in done:
                continue
            if ready:
                done.add(op)
                needed.append(op)
                continue
            stack.append((value, True))
            stack.extend((o, False) for o in reversed(op.operands))

    for r in group.results:
        collect(r)
    b = Builder(name)
    env: dict[Value, Value] = {}
    for i, v in enumerate(inputs):
        env[v] = b.param(v.type, f"x{i}")
    for op in needed:
        b.loc = op.loc
        copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
        b.append(copy)
        env.update(zip(op.results, copy.results, strict=True))
    return b.build([env[r] for r in group.results]), list(inputs)
