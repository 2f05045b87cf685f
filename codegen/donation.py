"""Donation: which results of a fused module may be written in place of an input.

A result may take the memory of an input if nothing reads the input afterwards, if the kernel that
writes it reads the input at the element being written and nowhere else, and if no later launch can
report an error: a program that fails must not have changed its inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from graphc.codegen.positions import UNKNOWN, Positions, Tokens, squeezed, step, units_out
from graphc.ir.function import Function, Module, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import Dim

# (parameter, result) of a group that are one buffer, read and written.
InPlace = tuple[tuple[int, int], ...]
_OWN_KERNELS = ("concat", "dot", "conv", "linear_scan", "scatter", "scatter_add", "put_along", "put_along_add")


def accepted(module: Module, donate: Sequence[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    """The pairs (input, output) of the module's entry that may share memory."""
    entry = module.entry
    last_read: dict[Value, int] = {}
    writer: dict[Value, int] = {}
    last_report = -1
    # (index, size) of what launches before have looked at in full: such an index is in range, or the run has ended.
    checked: set[tuple[Value, Dim]] = set()
    for i, op in enumerate(entry.ops):
        for v in op.operands:
            last_read[v] = i
        for r in op.results:
            writer[r] = i
        if _may_report(op, checked):
            last_report = i
    own: dict[tuple[int, int, int], bool] = {}  # many calls are of one group
    found: set[tuple[int, int]] = set()
    taken: set[int] = set()
    for source, target in donate:
        x, y = entry.params[source], entry.results[target]
        at = writer.get(y, -1)
        if x.type != y.type or at <= last_report or last_read.get(x, -1) > at or source in taken:
            continue
        op = entry.ops[at]
        if x in op.operands:
            group: Function = op.attrs["function"]
            key = (id(group), op.operands.index(x), op.results.index(y))
            if key not in own:
                own[key] = _at_own_element(group, *key[1:])
            if not own[key]:
                continue
        found.add((source, target))
        taken.add(source)
    return frozenset(found)


def _may_report(call: Operation, checked: set[tuple[Value, Dim]]) -> bool:
    """Whether a launch looks at an index that is not known to be in range; what it looks at in full joins `checked`."""
    group = call.attrs["function"]
    producer = {r: op for op in group.ops for r in op.results}
    outside = dict(zip(group.params, call.operands))
    found = False
    for op in group.ops:
        if op.name == "check_index":
            index, size = op.operands[0], op.attrs["size"]
        elif lookup(op.name).family == "indexing":
            index, size = op.operands[1], op.operands[0].type.shape[op.attrs["axis"]]
        else:
            continue
        while index in producer and producer[index].name in ("reshape", "permute"):
            index = producer[index].operands[0]
        key = (outside.get(index), size)
        if key in checked:
            continue
        found = True
        if key[0] is not None and all(o.name in _WHOLE or lookup(o.name).family in _WHOLE for o in group.ops):
            checked.add((key[0], size))
    return found


# Operations and families that read their operands in full.
_WHOLE = ("elementwise", "compare", "reduce", "create", "reshape", "permute", "broadcast", "gather", "scatter_add", "check_index")


def in_place(module: Module, donated: frozenset[tuple[int, int]]) -> Mapping[int, InPlace]:
    """The parameters and results that are one buffer, for each of the entry's operations; () where there are none."""
    entry = module.entry
    writer = {r: i for i, op in enumerate(entry.ops) for r in op.results} if donated else {}
    found: defaultdict[int, InPlace] = defaultdict(tuple)
    for source, target in sorted(donated):
        x, y = entry.params[source], entry.results[target]
        call = writer[y]
        op = entry.ops[call]
        if x in op.operands:
            found[call] += ((op.operands.index(x), op.results.index(y)),)
    return found


def _at_own_element(group: Function, param: int, result: int) -> bool:
    """Whether a map group reads a parameter only at the element of the result that it writes."""
    if any(lookup(op.name).family == "reduce" or op.name in _OWN_KERNELS for op in group.ops):
        return False
    x, y = group.params[param], group.results[result]
    if squeezed(x.type.shape) != squeezed(y.type.shape):
        return False
    positions = Positions()
    own = units_out(positions.of_result(y), y.type.shape)
    producer = {r: op for op in group.ops for r in op.results}
    stack: list[tuple[Value, Tokens]] = [(r, positions.of_result(r)) for r in group.results]
    seen = set(stack)
    while stack:
        v, at = stack.pop()
        if v is x and (UNKNOWN in at or units_out(at, v.type.shape) != own):
            return False
        op = producer.get(v)
        for read in step(op, at) if op is not None else ():
            if read not in seen:
                seen.add(read)
                stack.append(read)
    return True
