"""Pooling windows as expressions: the window is unrolled, conditions stand only where they can fail.

Orders and identities are those of ir/ops/pool.py. Window position p of output o is the input element
o * stride + p * dilation - low of its dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from graphc.codegen.elementwise import least
from graphc.codegen.expr import Expr, cast, const, equal, index, logical_and, not_equal, select
from graphc.codegen.lower.affine import decided
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.pull import Pull, pullable
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, F32, I32, I64, Dim, DType

TRUE = const(BOOL, True)


class Window:
    """The literal window of a pooling operation over the last dimensions of input and output."""

    def __init__(self, op: Operation, input: Sequence[Dim], output: Sequence[Dim]) -> None:
        a = op.attrs
        self.sizes: tuple[int, ...] = a["window"]
        self.strides: tuple[int, ...] = a["strides"]
        self.dilation: tuple[int, ...] = a["dilation"]
        self.padding: tuple[tuple[Dim, Dim], ...] = a["padding"]
        self.rank = len(self.sizes)
        self.input = tuple(input)[len(input) - self.rank :]
        self.output = tuple(output)[len(output) - self.rank :]

    def positions(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, self.sizes)))

    def element(self, d: int, o: Expr, p: int | Expr) -> tuple[Expr, Expr]:
        """The input coordinate that position p of output o reads in dimension d, and whether it exists."""
        low, high = self.padding[d]
        reach, size = self.dilation[d], self.sizes[d]
        at = o * self.strides[d] + p * reach - dim_expr(low)
        inside = TRUE
        first, last = (p, p) if isinstance(p, int) else (0, size - 1)
        if not isinstance(low, int) or low > first * reach:
            inside = decided(at >= 0)
        # The last output's last position is at most high beyond the end.
        if not isinstance(high, int) or high > (size - 1 - last) * reach:
            inside = logical_and(inside, decided(at < dim_expr(self.input[d])))
        return at, inside

    def flat(self, p: Sequence[Expr]) -> Expr:
        total = index(0)
        for x, n in zip(p, self.sizes, strict=True):
            total = total * n + x
        return total


def _split(w: Window, at: Position) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    lead = len(at.shape) - w.rank
    return at.coords[:lead], at.coords[lead:]


def _windowed(pull: Pull, w: Window, x: Value, at: Position) -> list[tuple[Expr, Expr]]:
    """Each window position's element and whether it exists, in row-major order."""
    lead, out = _split(w, at)
    found = []
    for position in w.positions():
        coords, inside = list(lead), TRUE
        for d, (o, p) in enumerate(zip(out, position, strict=True)):
            c, here = w.element(d, o, p)
            coords.append(c)
            inside = logical_and(inside, here)
        found.append((pull.at_if(x, Position(x.type.shape, coords), inside), inside))
    return found


def _max_pool(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    x = op.operands[0]
    w = Window(op, x.type.shape, op.results[0].type.shape)
    dtype = x.type.dtype
    best, where = const(dtype, float("-inf") if dtype.is_float else least(dtype)), const(I32, -1)
    some = const(BOOL, False)
    for k, (e, there) in enumerate(_windowed(pull, w, x, at)):
        won = there
        if some.op != "const" or some.data:
            better = e > best
            if dtype.is_float:
                better = better | (not_equal(e, e) & equal(best, best))
            if some.op != "const":
                better = ~some | better
            won = logical_and(there, better)
        best, where = select(won, e, best), select(won, const(I32, k), where)
        some = _either(some, there)
    return best if result == 0 else where


def _either(a: Expr, b: Expr) -> Expr:
    for x, y in ((a, b), (b, a)):
        if x.op == "const":
            return x if x.data else y
    return a if a is b else a | b


def total_dtype(dtype: DType) -> DType:
    """The dtype that elements are added in."""
    return F32 if dtype.is_float and dtype.bits < 32 else dtype


def _sum_pool(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    x = op.operands[0]
    w = Window(op, x.type.shape, op.result.type.shape)
    wide = total_dtype(x.type.dtype)
    total, some = const(wide, -0.0 if wide.is_float else 0), const(BOOL, False)
    for e, there in _windowed(pull, w, x, at):
        total = select(there, total + cast(e, wide), total)
        some = _either(some, there)
    return cast(select(some, total, const(wide, 0)), x.type.dtype)


def _max_pool_take(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    x, held = op.operands
    w = Window(op, x.type.shape, op.result.type.shape)
    lead, out = _split(w, at)
    k = cast(pull.at(held, at), I64)
    count = index(1)
    for n in w.sizes:
        count = count * n
    inside = logical_and(k >= 0, k < count)
    coords: list[Expr] = []
    rest = k
    for d in reversed(range(w.rank)):
        p = rest if d == 0 else rest % w.sizes[d]
        rest = rest // w.sizes[d]
        c, here = w.element(d, out[d], p)
        coords.insert(0, c)
        inside = logical_and(inside, here)
    e = pull.at_if(x, Position(x.type.shape, (*lead, *coords)), inside)
    return select(inside, e, const(e.dtype, 0))


def _holders(w: Window, d: int, i: Expr) -> list[tuple[Expr, Expr, Expr]]:
    """The outputs whose windows hold input coordinate i of dimension d, ascending: (o, p, whether)."""
    low, stride, reach, size = w.padding[d][0], w.strides[d], w.dilation[d], w.sizes[d]
    moved = i + dim_expr(low)
    found = []
    if reach == 1:
        last, phase = moved // stride, moved % stride
        for back in reversed(range(-(-size // stride))):
            o, p = last - back, phase + back * stride
            there = TRUE if stride - 1 + back * stride < size else decided(p < size)
            if back and (not isinstance(low, int) or low < back * stride):
                there = logical_and(there, decided(o >= 0))
            if not _always_below(w, d, back):
                there = logical_and(there, decided(o < dim_expr(w.output[d])))
            found.append((o, p, there))
        return found
    for p_literal in reversed(range(size)):
        at = moved - p_literal * reach
        there = decided(at >= 0)
        if stride > 1:
            there = logical_and(there, equal(at % stride, 0))
        o = at // stride
        found.append((o, index(p_literal), logical_and(there, decided(o < dim_expr(w.output[d])))))
    return found


def _always_below(w: Window, d: int, back: int) -> bool:
    n, low, out = w.input[d], w.padding[d][0], w.output[d]
    if isinstance(n, int) and isinstance(low, int) and isinstance(out, int):
        return (n - 1 + low) // w.strides[d] - back < out
    return False


def _spread(
    pull: Pull, op: Operation, at: Position, term: Callable[[Position, Expr, Expr, Expr], Expr]
) -> Expr:
    """For an input element, `term(output position, window position, total, whether)` over its windows."""
    dy = op.operands[0]
    w = Window(op, op.result.type.shape, dy.type.shape)
    lead, coords = _split(w, at)
    total = const(total_dtype(dy.type.dtype), 0)
    for chosen in itertools.product(*(_holders(w, d, i) for d, i in enumerate(coords))):
        there = TRUE
        for _, _, here in chosen:
            there = logical_and(there, here)
        where = Position(dy.type.shape, (*lead, *(o for o, _, _ in chosen)))
        total = term(where, w.flat([p for _, p, _ in chosen]), total, there)
    return cast(total, dy.type.dtype)


def _sum_pool_grad(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    def term(where: Position, p: Expr, total: Expr, there: Expr) -> Expr:
        e = cast(pull.at_if(op.operands[0], where, there), total.dtype)
        return select(there, total + e, total)

    return _spread(pull, op, at, term)


def _max_pool_grad(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    dy, held = op.operands

    def term(where: Position, p: Expr, total: Expr, there: Expr) -> Expr:
        chosen = logical_and(there, equal(pull.at_if(held, where, there), cast(p, I32)))
        e = cast(pull.at_if(dy, where, there), total.dtype)
        return select(chosen, total + e, total)

    return _spread(pull, op, at, term)


for _name, _rule in {
    "max_pool": _max_pool,
    "max_pool_take": _max_pool_take,
    "sum_pool": _sum_pool,
    "sum_pool_grad": _sum_pool_grad,
    "max_pool_grad": _max_pool_grad,
}.items():
    pullable(_name, _rule)

