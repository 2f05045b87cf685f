"""Accumulators of the contract's lanes in threads, and their combination by halving.

The contract has P lanes (32, or for shorter rows the power of two that holds them: a lane without an element
holds the identity, which changes nothing when combined from either side, -0.0 for sums included, so a tree over
the lanes that have elements gives the same bits). `width` consecutive lanes live in one thread, P / width threads
share a row: lane l is slot l % width of thread l // width. Halving, l with l + P/2 and so on down, first meets
partners in other threads (shuffles), then in the same one; the lower lane is always the first operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, cast, const, equal, load, select, shuffle
from graphc.codegen.loops import Alloc, Buffer, Let, Stmt, Store
from graphc.codegen.lower.nest import Names
from graphc.codegen.lower.row_group import (
    RowGroup,
    accumulator,
    better,
    combine,
    finish,
    identity_of,
    ordered,
    same_value,
)
from graphc.ir.function import Operation
from graphc.ir.types import BOOL, I64, DType

POSITIONAL = ("argmax", "argmin")


def keeps_operand(op: Operation) -> bool:
    """Whether combine(a, b) and combine(b, a) may differ in bits: of +0 and -0, the first is kept."""
    return op.name in ("max", "min") and accumulator(op.operands[0].type.dtype).is_float


@dataclass
class Plain:
    """One reduction's accumulators: `width` elements of a thread's array."""

    row: RowGroup
    op: Operation
    width: int

    def __post_init__(self) -> None:
        self.identity, self.dtype = identity_of(self.op)
        name = self.row.names.fresh("acc", self.dtype)
        self.array = Buffer(name.data, self.dtype, "local")

    def declare(self) -> list[Stmt]:
        return [Alloc(self.array, self.width)]

    def clear(self) -> list[Stmt]:
        return [Store(self.array, const(I64, v), self.identity) for v in range(self.width)]

    def step(self, i: Expr, slot: Expr, x: Expr | None = None) -> list[Stmt]:
        """Accumulate the element at reduced position `i`, or `x` in its place."""
        x = self.row.element(self.op, i) if x is None else x
        checks = self.row.pull.take_reports()
        return [*checks, Store(self.array, slot, combine(self.op, load(self.array, slot), x))]

    def tree(self, threads: int) -> tuple[list[Stmt], Expr]:
        """The lanes of `threads` threads combined; every one of them gets the value."""
        return halve(self.op, [load(self.array, const(I64, v)) for v in range(self.width)], threads, self.row.names)

    def total(self, value: Expr) -> Expr:
        return finish(self.op, value, self.row.length)


Accumulator = Union[Plain, "Extremum"]


def halve(op: Operation, values: list[Expr], threads: int, names: Names) -> tuple[list[Stmt], Expr]:
    """`values` are the lanes of this thread, of `threads` threads of a warp; see the head of this file."""
    out: list[Stmt] = []
    dtype = values[0].dtype
    first_kept = keeps_operand(op)

    def named(stem: str, value: Expr) -> Expr:
        name = names.fresh(stem, dtype)
        out.append(Let(name, value))
        return name

    half = threads // 2
    while half:
        # Where operands commute, both partners compute the same value, and none has to be sent back.
        how = "down" if first_kept else "xor"
        others = [named("other", shuffle(v, how, half, threads)) for v in values]
        values = [named("both", combine(op, v, o)) for v, o in zip(values, others, strict=True)]
        half //= 2
    while len(values) > 1:
        half = len(values) // 2
        values = [named("both", combine(op, values[v], values[v + half])) for v in range(half)]
    if first_kept and threads > 1:
        values = [named("both", shuffle(values[0], "from", 0, threads))]
    return out, values[0]


@dataclass
class Extremum:
    """argmax or argmin: the best value of each lane and where it is; the first of equals, the first NaN.

    Which of two candidates wins does not depend on the order in which they meet.
    """

    row: RowGroup
    op: Operation
    width: int
    place: DType = I64  # I32 where positions fit

    def __post_init__(self) -> None:
        self.dtype = accumulator(self.op.operands[0].type.dtype)
        self.identity = reduction("max" if self.op.name == "argmax" else "min", self.dtype)[0]
        self.far = const(self.place, 2 ** (self.place.bits - 1) - 1)
        self.best = Buffer(self.row.names.fresh("best", self.dtype).data, self.dtype, "local")
        self.where = Buffer(self.row.names.fresh("where", self.place).data, self.place, "local")

    def declare(self) -> list[Stmt]:
        return [Alloc(self.best, self.width), Alloc(self.where, self.width)]

    def clear(self) -> list[Stmt]:
        slots = [const(I64, v) for v in range(self.width)]
        return [s for v in slots for s in (Store(self.best, v, self.identity), Store(self.where, v, self.far))]

    def step(self, i: Expr, slot: Expr, x: Expr | None = None) -> list[Stmt]:
        """Meet the element at reduced position `i`, or `x` in its place."""
        names = self.row.names
        x = ordered(self.op.name, self.row.element(self.op, i) if x is None else x)
        checks = self.row.pull.take_reports()
        element, is_better = names.fresh("element", self.dtype), names.fresh("better", BOOL)
        best, where = load(self.best, slot), load(self.where, slot)
        return [
            *checks,
            Let(element, x),
            Let(is_better, better(self.op.name, element, best, equal(where, self.far))),
            Store(self.where, slot, select(is_better, cast(i, self.place), where)),
            Store(self.best, slot, select(is_better, element, best)),
        ]

    def meet(self, a: tuple[Expr, Expr], b: tuple[Expr, Expr]) -> tuple[list[Stmt], tuple[Expr, Expr]]:
        """The winner of two candidates (value, place)."""
        names = self.row.names
        take = names.fresh("take", BOOL)
        best, where = names.fresh("best", self.dtype), names.fresh("where", self.place)
        wins = better(self.op.name, b[0], a[0], equal(a[1], self.far)) & (b[1] < self.far)
        wins = wins | (same_value(a[0], b[0]) & (b[1] < a[1]))
        return [
            Let(take, wins),
            Let(best, select(take, b[0], a[0])),
            Let(where, select(take, b[1], a[1])),
        ], (best, where)

    def candidates(self) -> list[tuple[Expr, Expr]]:
        return [(load(self.best, const(I64, v)), load(self.where, const(I64, v))) for v in range(self.width)]

    def winner(self, threads: int) -> tuple[list[Stmt], tuple[Expr, Expr]]:
        """The winner of the lanes of `threads` threads, known to all of them."""
        names = self.row.names
        first, *others = self.candidates()
        out: list[Stmt] = []
        for other in others:
            more, first = self.meet(first, other)
            out += more
        half = threads // 2
        while half:
            best, where = names.fresh("best", self.dtype), names.fresh("where", self.place)
            out += [Let(best, shuffle(first[0], "xor", half, threads)), Let(where, shuffle(first[1], "xor", half, threads))]
            more, first = self.meet(first, (best, where))
            out += more
            half //= 2
        return out, first
