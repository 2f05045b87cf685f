"""Fusion: a function becomes an entry of calls, one function for each kernel group.

Kinds of groups:
- map: elementwise operations and layout over one domain;
- row: reductions over the same dimensions of one domain, with what feeds and follows them, so that
  softmax, layer norm and their gradients read memory once;
- contract: one dot or conv, with the elementwise operations that follow it as its epilogue;
- alone: an operation with a kernel of its own (scatter, scan, attention), or a call that is not inlined (calls.py);
  only layout comes with it.

Operations are visited from the results backwards; each joins the group of its consumers where
that is legal (no cycle between groups, positions that line up) and pays. Layout operations,
constants and iotas cost nothing inside a kernel: they are repeated in every group that reads them.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from graphc.codegen.groups import Group, module_of, own_results, without
from graphc.codegen.likely import likely
from graphc.codegen.positions import (
    Positions,
    Tokens,
    in_place,
    squeezed,
    step,
    tokens_of,
    units_out,
    with_units,
)
from graphc.ir.function import Function, Module, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import Dim, size_of

FREE = frozenset(
    ("reshape", "permute", "broadcast", "slice", "flip", "full", "iota", "constant", "stop_gradient")
)
REDUCE = frozenset(("sum", "prod", "max", "min", "any", "all", "argmax", "argmin"))
CONTRACT = frozenset(("dot", "conv"))
ALONE = frozenset(
    ("scatter_add", "scatter", "put_along_add", "put_along", "linear_scan", "attention", "attention_grad", "call")
)
# Operations that read their first operand at computed positions, or several times.
_REREAD = frozenset(
    ("gather", "take_along", "max_pool", "max_pool_grad", "max_pool_take", "sum_pool", "sum_pool_grad")
)
_HEAVY = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow", "atan2", "hypot", "logaddexp", "nextafter", "remainder", "floor_divide", "random_bits", "div", "sqrt", "reciprocal", "gather", "take_along", "pad", "concat"]
) | _REREAD
# A reduction with fewer rows than this and longer rows than that keeps to itself, so that it can
# run on several threads.
_FEW_ROWS, _LONG_ROW = 16, 16384
# Cheap operations are computed at most so many times an element before they get a kernel of their own;
# what is computed once a row costs less.
_MOST_REPEATS, _MOST_REPEATS_A_ROW = 4, 16
# What follows a concat of more operands than this is computed in another kernel, once for all of them.
_MOST_PIECES = 8



def _at_most(d: Dim, limit: int, otherwise: bool) -> bool:
    size = likely(d)
    return size <= limit if size is not None else otherwise


# Larger groups take long to compile, and long chains then repeat one kernel instead.
MOST_OPERATIONS = 256


class _Fuser:
    def __init__(self, f: Function, banned: frozenset[Operation] = frozenset()) -> None:
        self.f = f
        self.banned = banned
        self.wanted = set(f.results)
        self.users: dict[Value, list[Operation]] = {}
        self.producer: dict[Value, Operation] = {}
        for op in f.ops:
            for v in op.operands:
                self.users.setdefault(v, []).append(op)
            for r in op.results:
                self.producer[r] = op
        self.group_of: dict[Operation, Group] = {}
        self.groups: list[Group] = []
        self._reading: dict[Value, dict[Group, list[Operation]]] = {}
        self.positions = Positions()
        self._read_at: dict[Value, dict[Group, AbstractSet[Tokens]]] = {}
        self._free = {op for op in f.ops if op.name in FREE and self.wanted.isdisjoint(op.results)}

    def free(self, op: Operation) -> bool:
        return op in self._free

    def reading(self, value: Value) -> dict[Group, list[Operation]]:
        """The groups that read `value`, each with the operations in it that do, through free ones."""
        found = self._reading.get(value)
        if found is None:
            found = {}
            for op in self.users.get(value, ()):
                if self.free(op):
                    for group, ops in self.reading(op.result).items():
                        found.setdefault(group, []).extend(ops)
                elif op in self.group_of:  # else nobody wants its results
                    found.setdefault(self.group_of[op], []).append(op)
            self._reading[value] = found
        return found

    def read_at(self, value: Value) -> dict[Group, AbstractSet[Tokens]]:
        """The positions of `value`, seen from the current element, at which each group reads it."""
        found = self._read_at.get(value)
        if found is None:
            found = {}
            for op in dict.fromkeys(self.users.get(value, ())):
                at: dict[Group, AbstractSet[Tokens]]
                if op in self._free:
                    at = self.read_at(op.result)
                elif op in self.group_of:
                    at = {self.group_of[op]: self._own_positions(op)}
                else:
                    continue
                same = in_place(op.name)
                for group, positions in at.items():
                    if not same:
                        positions = {p for q in positions for v, p in self.positions.step(op, q) if v is value}
                    found[group] = found[group] | positions if group in found else positions
            self._read_at[value] = found
        return found

    def _own_positions(self, op: Operation) -> AbstractSet[Tokens]:
        """The positions at which the group of `op` asks for its results."""
        group = self.group_of[op]
        found: AbstractSet[Tokens] = frozenset()
        for r in op.results:
            found |= self.read_at(r).get(group, frozenset())
            if r in group.results:
                found |= {self.positions.of_result(r)}
        return found

    def run(self) -> list[Group]:
        for op in reversed(self.f.ops):
            if self.free(op):
                # Asked for in this order, so that no recursion is as deep as a chain is long.
                self.reading(op.result), self.read_at(op.result)
                continue
            readers: dict[Group, list[Operation]] = {}
            for r in op.results:
                for group, ops in self.reading(r).items():
                    readers.setdefault(group, []).extend(ops)
            wanted = any(r in self.wanted for r in op.results)
            if not readers and not wanted:
                continue
            group = self.choose(op, readers, wanted)
            group.ops.append(op)
            self.group_of[op] = group
            for r in op.results:
                others = set(self.reading(r)) - {group}
                if others or r in self.wanted:
                    group.results.append(r)
                if others:
                    group.feed(others)
        for group in self.groups:
            group.fed_by.clear()  # or they would be a cycle, left to Python's collector
        return self.groups

    def choose(self, op: Operation, readers: dict[Group, list[Operation]], wanted: bool) -> Group:
        extra = wanted or len(readers) > 1 or len(op.results) > 1
        for group, ops in readers.items():
            if len(group.ops) >= MOST_OPERATIONS or (extra and not self.can_output(op, group)):
                continue
            if any(other is not group and other.reaches(group) for other in readers):
                continue
            if self.joins(op, group, ops):
                if extra and group.kind == "map" and squeezed(op.results[0].type.shape) != squeezed(group.shape):
                    # The reduction that makes this a row group comes next; `run` sees to it that it does.
                    group.kind, group.axes = "row", self.row_of(op, group) or ()
                return group
        if op.name in REDUCE:
            axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
            group = Group("row", op.operands[0].type.shape, tuple(axes))
        else:
            kind = "contract" if op.name in CONTRACT else "alone" if op.name in ALONE else "map"
            group = Group(kind, op.results[0].type.shape)
        group.number = len(self.groups)
        self.groups.append(group)
        return group

    def can_output(self, op: Operation, group: Group) -> bool:
        """Whether the result of `op` can be a further result of `group`."""
        shape = op.results[0].type.shape
        if group.kind == "row":
            if op.name in REDUCE:
                return True
            return shape == group.shape or squeezed(shape) == squeezed(group.kept())
        if squeezed(shape) == squeezed(group.shape):
            return True
        axes = self.row_of(op, group) if op.name not in REDUCE else None
        return axes is not None and squeezed(shape) == squeezed(without(group.shape, axes))

    def joins(self, op: Operation, group: Group, readers: list[Operation]) -> bool:
        if group.kind == "alone" and all(r.name in ("attention", "attention_grad") for r in readers):
            # The scale is one number: what it is made of costs nothing.
            return op.results[0].type.rank == 0 and can_map(op)
        if group.kind == "alone" or any(r.name in ALONE or r.name in CONTRACT for r in readers):
            return False
        if op.name in ALONE:
            return False
        if op.name in REDUCE:
            return self.reduction_joins(op, group)
        if op.name in CONTRACT:
            if (
                group.kind != "map"
                or squeezed(op.result.type.shape) != squeezed(group.shape)
                or any(lookup(o.name).family in ("pool", "indexing") for o in group.ops)
                or not self.lines_up(op.result, group, tokens_of(group.shape), ())
            ):
                return False
            group.kind = "contract"
            return True
        # A pool has the kernel to itself: what reads it reads it for several windows, and lines are those of one pool.
        if lookup(op.name).family == "pool" and (
            group.kind != "map" or any(lookup(o.name).family == "pool" for o in group.ops)
        ):
            return False
        if op.name == "concat" and len(op.operands) > _MOST_PIECES:
            return False
        heavy = op.name in _HEAVY
        if any(r.name in _REREAD and op.results[0] in self.sources(r) for r in readers):
            return False
        if heavy and self.spreads(op, group):
            return False
        if self.repeats(op, group) > self.most_repeats(op, group):
            return False
        if extra_results := [r for r in op.results[1:] if self.users.get(r) or r in self.wanted]:
            return bool(extra_results) and squeezed(op.results[0].type.shape) == squeezed(group.shape)
        return True

    def sources(self, reader: Operation) -> set[Value]:
        """The values that `reader` reads at computed positions, seen through free operations."""
        found: set[Value] = set()
        stack = [reader.operands[0]]
        while stack:
            v = stack.pop()
            if v in found:
                continue
            found.add(v)
            op = self.producer.get(v)
            if op is not None and self.free(op):
                stack.extend(op.operands)
        return found

    def repeats(self, op: Operation, group: Group) -> int:
        """How often an element of `op` would be computed for an element of `group`: once for each position
        at which it is read."""
        places: set[Tokens] = set()
        return len(places.union(*(self.read_at(r).get(group, ()) for r in op.results)))

    def most_repeats(self, op: Operation, group: Group) -> int:
        if group.kind == "row" and squeezed(op.results[0].type.shape) == squeezed(group.kept()):
            return _MOST_REPEATS_A_ROW
        return 1 if op.name in _HEAVY else _MOST_REPEATS

    def spreads(self, op: Operation, group: Group) -> bool:
        """Whether each element of `op` would be computed several times in `group`."""
        size = size_of(op.results[0].type.shape)
        if size == size_of(group.shape):
            return False
        if group.kind == "row":
            return size != size_of(group.kept())
        return self.row_of(op, group) is None

    def row_of(self, op: Operation, group: Group) -> tuple[int, ...] | None:
        """The reduced axes, if `op` is computed once a row from a reduction over the domain of a map
        group, so that the reduction can come in later and make it a row group."""
        if group.kind != "map" or op in self.banned:
            return None
        shape = op.results[0].type.shape
        stack, seen = [op], {op}
        while stack:
            o = stack.pop()
            for v in o.operands:
                p = self.producer.get(v)
                if p is None or p in seen:
                    continue
                seen.add(p)
                if p.name in REDUCE:
                    axes = p.attrs["axes"] if "axes" in p.attrs else (p.attrs["axis"],)
                    rows = size_of(p.results[0].type.shape)
                    length = size_of(p.operands[0].type.shape[a] for a in axes)
                    serial = _at_most(rows, _FEW_ROWS, False) and not _at_most(length, _LONG_ROW, True)
                    if p.operands[0].type.shape == group.shape and not serial:
                        return tuple(axes)
                elif squeezed(v.type.shape) == squeezed(shape) and can_map(p):
                    stack.append(p)
        return None

    def reduction_joins(self, op: Operation, group: Group) -> bool:
        shape = op.operands[0].type.shape
        axes = tuple(op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],))
        kept = tuple(d for i, d in enumerate(shape) if i not in axes)
        if group.kind == "row":
            if (shape, axes) != (group.shape, group.axes):
                return False
        elif group.kind != "map" or (group.shape != shape and squeezed(group.shape) != squeezed(kept)):
            return False
        rows, length = size_of(kept), size_of(shape[a] for a in axes)
        whole = group.kind == "row" or group.shape == shape
        if whole and _at_most(rows, _FEW_ROWS, False) and not _at_most(length, _LONG_ROW, True):
            return False
        if group.kind == "map" and any(lookup(o.name).family == "pool" for o in group.ops):
            return False
        if group.kind == "map" and group.shape != shape and len(group.results) and any(
            o.name in _REREAD for o in group.ops
        ):
            return False
        tokens = tokens_of(shape)
        candidate = Group("row", shape, axes, [*group.ops, op], group.results)
        if not self.lines_up(op.results[0], candidate, tokens, axes):
            return False
        group.kind, group.shape, group.axes = "row", shape, axes
        return True

    def lines_up(self, value: Value, group: Group, tokens: Tokens, axes: tuple[int, ...]) -> bool:
        """Whether every path from the group's results to `value` reads it at the current position.

        Positions are tuples of tokens, one for each domain dimension. For a row group, `value` and
        every other reduction must be read at the kept coordinates.
        """
        members = set(group.ops)
        kept = tuple(t for i, t in enumerate(tokens) if i not in axes)
        wanted = units_out(kept if axes else tokens, group.kept() if axes else group.shape)
        seen: set[tuple[Value, Tokens]] = set()
        stack: list[tuple[Value, Tokens]] = []
        for r in group.results:
            shape = r.type.shape
            if r is value:
                continue
            if shape == group.shape:
                stack.append((r, tokens))
            elif axes and squeezed(shape) == squeezed(group.kept()):
                stack.append((r, with_units(kept, group.kept(), shape)))
            elif not axes and squeezed(shape) == squeezed(group.shape):
                stack.append((r, with_units(tokens, group.shape, shape)))
            else:
                return False
        while stack:
            v, at = stack.pop()
            if (v, at) in seen:
                continue
            seen.add((v, at))
            op = self.producer.get(v)
            if v is value or (op is not None and op in members and op.name in REDUCE):
                if units_out(at, v.type.shape) != wanted:
                    return False
                if v is not value and op is not None:
                    stack.append((op.operands[0], tokens))
            elif op is not None and (op in members or self.free(op)):
                stack.extend(step(op, at))
        return True


def can_map(op: Operation) -> bool:
    """Whether `op` is elementwise, or costs nothing inside a kernel."""
    return op.name in FREE or lookup(op.name).family in ("elementwise", "compare")


def fuse(f: Function) -> Module:
    """The module of `f` after fusion: entry `f.name`, whose operations are calls of the groups.

    Every result of the entry is the result of a call, and no value is returned twice.
    """
    f = own_results(f)
    fuser = _Fuser(f)
    groups = fuser.run()
    while lost := [g for g in groups if g.kind == "row" and not any(op.name in REDUCE for op in g.ops)]:
        # A group was promised a reduction that could not come in: again, without that promise.
        fuser = _Fuser(f, fuser.banned.union(*(g.ops for g in lost)))
        groups = fuser.run()
    return module_of(f, groups, fuser.free)
