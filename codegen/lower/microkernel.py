"""The micro kernel: a tile of rows x lanes in registers, summed over blocks of 256 k.

Each block starts a chain of fused multiply-adds from +0.0 and is added to the tile's total in memory
(docs/architecture.md, the bit contract). Totals live in `Tile`, so that one kernel may come back to
a tile, and another one may finish it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.codegen.expr import Expr, const, equal, fma, index, load, var
from graphc.codegen.loops import Assign, Buffer, Columns, Declare, For, If, Let, Stmt, Store, Vector
from graphc.codegen.lower.affine import greatest_of, least_of
from graphc.codegen.lower.contraction import BLOCK
from graphc.ir.types import DType

_numbers = itertools.count()


@dataclass(frozen=True)
class Tile:
    """Where a tile's total is: element (row i, lane j) at `base` + i * lanes + j of `buffer`."""

    buffer: Buffer
    base: Expr
    rows: int
    lanes: int

    def at(self, row: Expr | int, lane: Expr) -> Expr:
        return self.base + _index(row) * self.lanes + lane

    def read(self, row: Expr | int, lane: Expr) -> Expr:
        return load(self.buffer, self.at(row, lane))


def _index(i: Expr | int) -> Expr:
    return i if isinstance(i, Expr) else index(i)


RowLoad = Callable[[int, Expr], Expr]  # row of the tile, k -> element
LaneLoad = Callable[[Expr, Expr], Expr]  # lane variable, k -> element
# Lane variable, names, k -> the statement that gives the names the elements at k, k + 1, ...
Turn = Callable[[Expr, tuple[Expr, ...], Expr], Columns]


def block_sum(
    tile: Tile,
    dtype: DType,
    row: RowLoad,
    lane: LaneLoad,
    start: Expr,
    stop: Expr,
    first: Expr,
    unroll: bool = False,
    turn: Turn | None = None,
    run: Expr | None = None,
) -> list[Stmt]:
    """Add the block of k in [start, stop) to the tile; it is the tile's first block where `first`.

    run: rows are read in runs of so many k (see `Access`), as outer * run + inner.
    turn: how as many k as the tile has lanes are read at once; what is left is read by `lane`.
    """
    n = next(_numbers)
    lane_var = var(f"lane{n}") if tile.lanes > 1 else index(0)
    sums = [var(f"sum{n}_{i}", dtype) for i in range(tile.rows)]
    body: list[Stmt] = [Declare(s, const(dtype, 0)) for s in sums]

    def step(k: Expr) -> list[Stmt]:
        b = lane(lane_var, k)
        return [Assign(s, multiply_add(row(i, k), b, s)) for i, s in enumerate(sums)]

    k = var(f"k{n}")
    if unroll and run is None and start.op == stop.op == "const":
        for i in range(start.data, stop.data):
            body += step(index(i))
    else:
        if turn is not None:
            at, n_k = var(f"k{n}_at"), tile.lanes
            names = tuple(var(f"column{n}_{j}", dtype) for j in range(n_k))
            square: list[Stmt] = [turn(lane_var, names, at)]
            for j, b in enumerate(names):
                square += [Assign(s, multiply_add(row(i, at + j), b, s)) for i, s in enumerate(sums)]
            whole = var(f"whole{n}")
            body += [Let(whole, start + (stop - start) // n_k * n_k), For(at, start, whole, tuple(square), index(n_k))]
            start = whole
        if run is not None:
            outer, safe = var(f"outer{n}"), greatest_of(run, index(1))
            low, high = greatest_of(start - outer * run, index(0)), least_of(stop - outer * run, run)
            inside = For(k, low, high, tuple(step(outer * run + k)), index(1))
            body.append(For(outer, start // safe, (stop + (safe - 1)) // safe, (inside,), index(1)))
        else:
            body.append(For(k, start, stop, tuple(step(k)), index(1)))
    put = [Store(tile.buffer, tile.at(i, lane_var), s) for i, s in enumerate(sums)]
    add = [Store(tile.buffer, tile.at(i, lane_var), tile.read(i, lane_var) + s) for i, s in enumerate(sums)]
    if first.op == "const":
        body += put if first.data else add
    else:
        body.append(If(first, tuple(put), tuple(add)))
    return region(lane_var, tile.lanes, body)


def all_blocks(
    tile: Tile,
    dtype: DType,
    row: RowLoad,
    lane: LaneLoad,
    start: Expr,
    stop: Expr,
    unroll: bool = False,
    turn: Turn | None = None,
    run: Expr | None = None,
) -> list[Stmt]:
    """Every block of [start, stop), where `start` is a multiple of 256; the very first k is 0."""
    if start.op == stop.op == "const" and start.data == 0 and stop.data <= BLOCK:
        return block_sum(tile, dtype, row, lane, start, stop, equal_zero(start), unroll, turn, run)
    n = next(_numbers)
    b, end = var(f"block{n}"), var(f"stop{n}")
    inner = block_sum(tile, dtype, row, lane, b, end, equal_zero(b), turn=turn, run=run)
    body: list[Stmt] = [Let(end, least_of(b + BLOCK, stop)), *inner]
    return [For(b, start, stop, tuple(body), index(BLOCK))]


def equal_zero(e: Expr) -> Expr:
    from graphc.ir.types import BOOL

    return const(BOOL, e.data == 0) if e.op == "const" else equal(e, 0)


def clear(tile: Tile, dtype: DType) -> list[Stmt]:
    """The tile of an empty sum."""
    n = next(_numbers)
    lane = var(f"lane{n}") if tile.lanes > 1 else index(0)
    return region(lane, tile.lanes, [Store(tile.buffer, tile.at(i, lane), const(dtype, 0)) for i in range(tile.rows)])


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """One term of the chain; integers wrap."""
    return fma(a, b, c) if c.dtype.is_float else c + a * b


def region(lane: Expr, width: int, body: Sequence[Stmt]) -> list[Stmt]:
    """`body` for all lanes at once; as it stands where there is one."""
    return [Vector(lane, width, tuple(body))] if width > 1 else list(body)
