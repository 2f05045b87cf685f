"""Pull: the scalar expression of an SSA value at a position, through everything fused in between.

Layout operations only transform the position; elementwise operations combine the pulled operands.
A caller *binds* the values that it computes itself (a reduction's result, an accumulator).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.codegen.elementwise import scalar
from graphc.codegen.expr import (
    Expr,
    binary,
    bits_const,
    cast,
    const,
    equal,
    float_bits,
    index,
    load,
    logical_and,
    select,
)
from graphc.codegen.loops import Buffer, Report, Stmt
from graphc.codegen.lower.index import Position, dim_expr
from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import BOOL, I64, U64

Bound = Callable[[Position], Expr]
Rule = Callable[["Pull", Operation, int, Position], Expr]


class Pull:
    """Pulls values of one group function.

    buffers: the memory of its parameters (and of whatever else is materialised).
    reports: run-time checks that the pulled expressions need; the caller takes them (`take_reports`) and
        emits them where the expressions are used.
    """

    def __init__(self, function: Function, buffers: dict[Value, Buffer]) -> None:
        self.function = function
        self.buffers = buffers
        self.bound: dict[Value, Bound] = {}
        self.reports: list[Stmt] = []
        self.sites: list[Operation] = []
        self.producer: dict[Value, tuple[Operation, int]] = {
            r: (op, i) for op in function.ops for i, r in enumerate(op.results)
        }
        self._memo: dict[Any, Expr] = {}

    def bind(self, value: Value, rule: Bound) -> None:
        self.bound[value] = rule
        self._memo.clear()

    def at(self, value: Value, position: Position) -> Expr:
        """The expression of `value` at `position` (in the value's own shape)."""
        if value in self.bound:
            return self.bound[value](position)
        if value in self.buffers:
            return load(self.buffers[value], position.flat)
        key = (value, position.key())
        if key not in self._memo:
            self._fill(value, position)
        return self._memo[key]

    def _fill(self, value: Value, position: Position) -> None:
        """Remember `value` at `position`; elementwise operands come first, so that the depth of the
        recursion does not grow with the length of elementwise chains."""
        stack = [(value, position)]
        while stack:
            v, at = stack[-1]
            key = (v, at.key())
            if v in self.bound or v in self.buffers or key in self._memo:
                stack.pop()
                continue
            op, result = self.producer[v]
            if op.name not in _RULES:
                operands = [(o, at.reshaped(o.type.shape)) for o in op.operands]
                missing = [
                    (o, p)
                    for o, p in operands
                    if o not in self.bound and o not in self.buffers and (o, p.key()) not in self._memo
                ]
                if missing:
                    stack += missing
                    continue
            self._memo[key] = _rule(op)(self, op, result, at)
            stack.pop()

    def take_reports(self) -> list[Stmt]:
        """The checks that what was pulled since the last call needs.

        Code that is made next checks for itself: it may pull the same expressions, and run without this code.
        """
        reports, self.reports = self.reports, []
        if reports:
            self._memo.clear()
        return reports

    def at_if(self, value: Value, position: Position, cond: Expr) -> Expr:
        """`at`, where the position may be out of range unless `cond`; unspecified there."""
        sub = Pull(self.function, self.buffers)
        sub.bound, sub.producer = self.bound, self.producer
        sub.reports, sub.sites = [], self.sites
        expr = sub.at(value, position)
        self.reports += [Report(logical_and(cond, r.cond), r.site, r.value) for r in sub.reports]  # type: ignore[union-attr]
        return guard_loads(expr, cond)

    def check(self, op: Operation, given: Expr, size: Expr) -> Expr:
        """The index `given` (any integer dtype) normalised from [-size, size) to [0, size); reports it if
        out of range."""
        if op not in self.sites:
            self.sites.append(op)
        position = cast(given, I64)
        if given.dtype is U64:
            # What does not fit into i64 must not come out as an index from the end.
            most = 2**63 - 1
            position = select(given > most, index(most), position)
        wrapped = select(position < 0, position + size, position)
        bad = binary("or", wrapped < 0, wrapped >= size)
        self.reports.append(Report(bad, self.sites.index(op) + 1, position))
        return select(bad, index(0), wrapped)


def guard_loads(expr: Expr, cond: Expr) -> Expr:
    """`expr` with every load done only where `cond` holds."""
    from graphc.codegen.expr import children_first, make

    if cond.op == "const":
        return expr if cond.data else const(expr.dtype, 0)
    done: dict[Expr, Expr] = {}
    for node in children_first((expr,)):
        args = tuple(done[a] for a in node.args)
        if node.op == "load":
            both = logical_and(args[1], cond) if len(args) == 2 else cond
            done[node] = load(node.data, args[0], both)
        else:
            done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
    return done[expr]


def _rule(op: Operation) -> Rule:
    if op.name in _RULES:
        return _RULES[op.name]
    if lookup(op.name).family in ("elementwise", "compare"):
        return _elementwise
    raise KeyError(f"{op.name} cannot be fused into a consumer")


def can_pull(op: Operation) -> bool:
    """Whether `op` can be computed element by element inside another kernel."""
    return op.name in _RULES or lookup(op.name).family in ("elementwise", "compare")


def _elementwise(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    args = [pull.at(v, at.reshaped(v.type.shape)) for v in op.operands]
    return scalar(op.name, args, op.attrs, op.results[0].type.dtype)


def _same(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    return pull.at(op.operands[0], at)


def _reshape(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    return pull.at(op.operands[0], at.reshaped(op.operands[0].type.shape))


def _permute(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source = op.operands[0]
    coords = [index(0)] * source.type.rank
    for target, axis in enumerate(op.attrs["axes"]):
        coords[axis] = at.coords[target]
    return pull.at(source, Position(source.type.shape, coords))


def _broadcast(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source = op.operands[0]
    if source.type.shape == op.result.type.shape:
        return pull.at(source, at)
    coords = [
        index(0) if source.type.shape[i] == 1 else at.coords[axis]
        for i, axis in enumerate(op.attrs["axes"])
    ]
    return pull.at(source, Position(source.type.shape, coords))


def _slice(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source = op.operands[0]
    coords = [
        c * dim_expr(stride) + dim_expr(start)
        for c, start, stride in zip(at.coords, op.attrs["start"], op.attrs["stride"], strict=True)
    ]
    return pull.at(source, Position(source.type.shape, coords))


def _pad(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source, filler = op.operands
    inside = const(BOOL, True)
    coords = []
    dims = zip(at.coords, source.type.shape, op.attrs["low"], op.attrs["high"], op.attrs["interior"], strict=True)
    for c, size, low, high, interior in dims:
        moved = c - dim_expr(low)
        if interior != 0:
            step = dim_expr(interior) + 1
            inside = logical_and(inside, logical_and(moved >= 0, equal(moved % step, 0)))
            moved = moved // step
        elif low != 0:
            inside = logical_and(inside, moved >= 0)
        if high != 0 or interior != 0:
            inside = logical_and(inside, moved < dim_expr(size))
        coords.append(moved)
    value = pull.at_if(source, Position(source.type.shape, coords), inside)
    return select(inside, value, pull.at(filler, Position(())))


def _concat(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    axis = op.attrs["axis"]
    c = at.coords[axis]
    starts, total = [], index(0)
    for v in op.operands:
        starts.append(total)
        total = total + dim_expr(v.type.shape[axis])
    expr: Expr | None = None
    for k in reversed(range(len(op.operands))):
        v = op.operands[k]
        coords = list(at.coords)
        coords[axis] = c - starts[k]
        here = const(BOOL, True)
        if k > 0:
            here = logical_and(here, c >= starts[k])
        if k + 1 < len(op.operands):
            here = logical_and(here, c < starts[k + 1])
        piece = pull.at_if(v, Position(v.type.shape, coords), here)
        expr = piece if expr is None else select(c < starts[k + 1], piece, expr)
    assert expr is not None
    return expr


def _flip(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source = op.operands[0]
    coords = [
        dim_expr(d) - 1 - c if i in op.attrs["axes"] else c
        for i, (c, d) in enumerate(zip(at.coords, source.type.shape, strict=True))
    ]
    return pull.at(source, Position(source.type.shape, coords))


def _constant(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    array = op.attrs["value"].array
    dtype = op.result.type.dtype
    if array.size != 1:
        raise KeyError("constants of several elements are kernel inputs")
    item = array.reshape(())
    if dtype.is_float:
        if dtype.bits == 16:
            return bits_const(dtype, int(item.view("uint16")))
        return bits_const(dtype, int(item.view(f"uint{dtype.bits}")))
    return const(dtype, item.item())


def _full(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    return pull.at(op.operands[0], Position(()))


def _iota(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    return cast(at.coords[op.attrs["axis"]], op.result.type.dtype)


def _gather(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source, indices = op.operands
    axis, rank = op.attrs["axis"], indices.type.rank
    where = pull.at(indices, Position(indices.type.shape, at.coords[axis : axis + rank]))
    row = pull.check(op, where, dim_expr(source.type.shape[axis]))
    coords = (*at.coords[:axis], row, *at.coords[axis + rank :])
    return _picked(pull, source, axis, coords)


def _take_along(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    source, indices = op.operands
    axis = op.attrs["axis"]
    where = pull.at(indices, at)
    coords = list(at.coords)
    coords[axis] = pull.check(op, where, dim_expr(source.type.shape[axis]))
    return _picked(pull, source, axis, coords)


def _picked(pull: Pull, source: Value, axis: int, coords: Sequence[Expr]) -> Expr:
    """The element at checked coordinates. Of an empty dimension there is none: every index was reported."""
    shape = source.type.shape
    return const(source.type.dtype, 0) if shape[axis] == 0 else pull.at(source, Position(shape, coords))


def _check_index(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    value = pull.at(op.operands[0], at)
    pull.check(op, value, dim_expr(op.attrs["size"]))
    return value


_RULES: dict[str, Rule] = {
    "stop_gradient": _same,
    "reshape": _reshape,
    "permute": _permute,
    "broadcast": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "flip": _flip,
    "constant": _constant,
    "full": _full,
    "iota": _iota,
    "gather": _gather,
    "take_along": _take_along,
    "check_index": _check_index,
}


def pullable(name: str, rule: Rule) -> None:
    """Register how an operation is pulled (pooling, random bits: in files of their own)."""
    _RULES[name] = rule


__all__ = ["Bound", "Pull", "can_pull", "float_bits", "guard_loads", "pullable"]
