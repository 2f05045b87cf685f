"""A row group while it is lowered, and the pieces of reductions that all its forms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, cast, const, equal, index, load, not_equal, select
from graphc.codegen.loops import Buffer, Let, Stmt, Store
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.nest import (
    Names,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import BF16, BOOL, F16, F32, DType, Shape, size_of

LANES = 32
CHUNK = 4096
REDUCE = frozenset(("sum", "prod", "max", "min", "any", "all", "argmax", "argmin"))
LANE_OP = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}

# Values that are worth keeping for the next sweep.
EXPENSIVE = frozenset(
    (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
        "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow", "atan2", "hypot", "logaddexp",
        "random_bits", "div", "sqrt", "reciprocal",
    )
)  # fmt: skip


def accumulator(dtype: DType) -> DType:
    """The dtype in which a reduction of `dtype` accumulates."""
    return F32 if dtype in (F16, BF16) else dtype


def axes_of(op: Operation) -> tuple[int, ...]:
    """The dimensions that a reduction reduces."""
    return tuple(op.attrs["axes"]) if "axes" in op.attrs else (op.attrs["axis"],)


def domain_of(group: Function) -> tuple[Shape, tuple[int, ...]]:
    """The shape that is reduced, and the reduced axes."""
    first = next(op for op in group.ops if op.name in REDUCE)
    return first.operands[0].type.shape, axes_of(first)


def levels_of(group: Function) -> dict[Value, int]:
    """For every value, how many reductions lie in a row below it."""
    level: dict[Value, int] = dict.fromkeys(group.params, 0)
    for op in group.ops:
        base = max((level[v] for v in op.operands), default=0)
        for r in op.results:
            level[r] = base + (op.name in REDUCE)
    return level


def single_pass(group: Function) -> bool:
    """Whether one pass over the domain does it: no reduction needs another's result, nothing of full size a reduction's."""
    shape, _ = domain_of(group)
    level = levels_of(group)
    return max(level.values()) == 1 and not any(level[r] for r in group.results if r.type.shape == shape)


@dataclass
class RowGroup:
    """One row group while it is being lowered."""

    group: Function
    pull: Pull
    names: Names
    shape: Shape  # the reduced operand's shape
    axes: tuple[int, ...]
    kept: tuple[Expr, ...] = ()  # coordinates of the current item, one a kept dimension
    maxima: dict[Expr, Operation] = field(default_factory=dict)  # the name of each greatest element, once it is known

    def __post_init__(self) -> None:
        self.kept_dims = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        self.kept_shape: Shape = tuple(self.shape[i] for i in self.kept_dims)
        self.length = dim_expr(size_of(self.shape[a] for a in self.axes))
        self.reductions = [op for op in self.group.ops if op.name in REDUCE and axes_of(op) == self.axes]
        self.levels = levels_of(self.group)

    def is_full(self, value: Value) -> bool:
        """Whether a result has the full shape (else the kept shape)."""
        return value.type.shape == self.shape

    def coords(self, i: Expr) -> tuple[Expr, ...]:
        """Domain coordinates of reduced position `i` at the current item."""
        reduced = delinearise(i, tuple(self.shape[a] for a in self.axes))
        out: list[Expr] = [index(0)] * len(self.shape)
        for a, c in zip(self.axes, reduced, strict=True):
            out[a] = c
        for d, c in zip(self.kept_dims, self.kept, strict=True):
            out[d] = c
        return tuple(out)

    def element(self, op: Operation, i: Expr) -> Expr:
        """The operand of reduction `op` at reduced position `i`, in the accumulator's dtype."""
        x = self.pull.at(op.operands[0], Position(self.shape, self.coords(i)))
        return cast(x, accumulator(x.dtype))

    def flat_kept(self) -> Expr:
        return Position(self.kept_shape, self.kept).flat

    def bind(self, op: Operation, value: Expr) -> None:
        """`value` is the result of `op` at the current item from now on."""
        dtype = op.results[0].type.dtype
        self.pull.bind(op.results[0], lambda at: cast(value, dtype))

    def store_kept(self, targets: list[tuple[Value, Buffer]]) -> list[Stmt]:
        out: list[Stmt] = []
        for value, buffer in targets:
            if not self.is_full(value) or not self.axes:
                at = Position(self.kept_shape, self.kept).reshaped(value.type.shape)
                out.append(Store(buffer, at.flat, self.pull.at(value, at)))
        return [*take_reports(self.pull), *out]


@dataclass(frozen=True)
class Added:
    """A reduction down the columns while rows are gone through: element i of a row joins what lies at `base` + i of `memory`."""

    op: Operation
    memory: Buffer
    base: Expr


def sweeps_of(
    row: RowGroup, targets: Sequence[tuple[Value, Buffer]], added: Sequence[Value] = ()
) -> dict[Value, set[int]]:
    """In which sweeps each value is needed: that of a reduction has its level, what has the full shape is stored in the next, and
    so are operands of reductions down the columns (`added`)."""
    sweeps: dict[Value, set[int]] = {}
    producer = {r: op for op in row.group.ops for r in op.results}

    def visit(root: Value, sweep: int) -> None:
        stack = [root]
        while stack:
            v = stack.pop()
            if sweep in sweeps.setdefault(v, set()):
                continue
            sweeps[v].add(sweep)
            op = producer.get(v)
            if op is not None and op.name not in REDUCE:
                stack += op.operands

    for op in row.reductions:
        visit(op.operands[0], row.levels[op.results[0]])
    for v in (*(v for v, _ in targets if row.is_full(v)), *added):
        visit(v, row.levels[v] + 1)
    return sweeps


def identity_of(op: Operation) -> tuple[Expr, DType]:
    dtype = accumulator(op.operands[0].type.dtype)
    return reduction(op.name, dtype)[0], dtype


def combine(op: Operation, acc: Expr, x: Expr) -> Expr:
    if op.name in ("max", "min") and acc.dtype.is_float:
        # Equal bits (which NaN it is does not count), and what the accumulator waits for is one instruction of most
        # processors: `x > acc ? x : acc` gives acc where one is NaN, and of two zeros.
        extreme = select(x > acc if op.name == "max" else x < acc, x, acc)
        return select(not_equal(x, x), x, extreme)
    return reduction(op.name, accumulator(op.operands[0].type.dtype))[1](acc, x)


def finish(op: Operation, total: Expr, length: Expr) -> Expr:
    """The value of a reduction from its combined chunks: an empty sum is +0.0."""
    if op.name == "sum" and total.dtype.is_float:
        return select(equal(length, 0), const(total.dtype, 0.0), total)
    return total


def stores_at(
    row: RowGroup, full: list[tuple[Value, Buffer]], i: Expr, added: Sequence[Added] = ()
) -> list[Stmt]:
    """Stores at reduced position `i`. All values come first: one may be read from the memory of another."""
    at = Position(row.shape, row.coords(i))
    named = [(row.names.fresh("v", v.type.dtype), b, at.flat, row.pull.at(v, at)) for v, b in full]
    for a in added:
        total = combine(a.op, load(a.memory, a.base + i), row.element(a.op, i))
        named.append((row.names.fresh("v", total.dtype), a.memory, a.base + i, total))
    lets = [Let(name, value) for name, _, _, value in named]
    return [*take_reports(row.pull), *lets, *(Store(b, place, name) for name, b, place, _ in named)]


def ordered(name: str, x: Expr) -> Expr:
    if x.dtype is BOOL:
        raise TypeError(f"{name} of bool is computed on integers: cast first")
    return x


def better(name: str, x: Expr, best: Expr, unset: Expr) -> Expr:
    greater = x > best if name == "argmax" else x < best
    better = greater | unset
    if x.dtype.is_float:
        better = better | (not_equal(x, x) & equal(best, best))
    return better


def same_value(best: Expr, winner: Expr) -> Expr:
    same = equal(best, winner)
    if best.dtype.is_float:
        same = same | (not_equal(best, best) & not_equal(winner, winner))
    return same


def is_columns(shape: Shape, axes: tuple[int, ...]) -> bool:
    return any(d != 1 for d in shape[max(axes) + 1 :]) if axes else False
