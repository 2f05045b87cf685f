"""Products of few rows with a large matrix: the matrix passes once, several whole stretches of its rows side by side.

A unit is as many lanes as the schedule says. A task takes all of its units at once, so that stretches are as long as the number
of threads allows, and keeps the sums of all of them in memory of its own, in the first level cache. It takes STEP values of
k at a time: every tile is loaded, gets its STEP terms in order, and is stored again. Tiles are one vector wide: the processor
then sees STEP streams that all advance line by line, and fetches each ahead (with four lines of one stream after the other it
took up to twice as long).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from graphc.codegen.expr import Expr, const, equal, index, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import ceil_div, greatest_of, least_of
from graphc.codegen.lower.contraction import BLOCK
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.microkernel import Tile, multiply_add, region
from graphc.ir.types import size_of

if TYPE_CHECKING:
    from graphc.codegen.lower.kernels import ContractionKernels

Body = list[Stmt]
STEP = 8
SUMS = 4096  # elements of the sums that a task keeps
_numbers = itertools.count()


class StreamKernels:
    """Builds the kernel; `k` holds what all schedules share."""

    def __init__(self, k: ContractionKernels) -> None:
        self.k, self.c, self.s = k, k.c, k.s
        self.sums: Buffer
        self.totals: Buffer

    def build(self) -> list[Kernel]:
        k, s = self.k, self.s
        u, strip, m0 = k.name("unit"), k.name("strip"), k.name("m")
        units = ceil_div(k.count_lanes, s.block)
        batches = dim_expr(size_of(k.c.batch))
        batch, lets = k.batch_coords(u, k.c.batch, range(len(k.c.batch)))
        wide = s.block * max(1, SUMS // (s.rows * s.block))
        self.sums, self.totals = k.new_local("sums", s.rows * wide), k.new_local("totals", s.rows * wide)
        first, last, start, end = k.name("first"), k.name("last"), k.name("start"), k.name("end")
        loops = [u, *batch, start, end, first, strip, m0]
        self.row, row_lets = k.row_reader(batch, strip, m0, loops)
        self.batch = batch
        b, stop, whole, at, rest = (k.name(n) for n in ("block", "stop", "whole", "k", "k"))
        inner = [*loops, b]
        per_block: Body = [
            Let(stop, least_of(b + BLOCK, k.depth)),
            Let(whole, b + (stop - b) // STEP * STEP),
            *self._tiles(first, last, lambda n0, width: self._clear(self._tile(self.sums, n0 - first, width))),
            For(at, b, whole, tuple(self._terms(first, last, at, STEP, [*inner, at])), index(STEP)),
            For(rest, whole, stop, tuple(self._terms(first, last, rest, 1, [*inner, rest])), index(1)),
            *self._tiles(first, last, lambda n0, width: self._add(n0 - first, width, b)),
        ]

        def finish(n0: Expr, width: int, inside: bool | None) -> Body:
            end = n0 + width if inside else k.count_lanes
            tile = self._tile(self.totals, n0 - first, width)
            return k.epilogue(tile, batch, m0, n0, end, [*loops, n0])

        nothing = self._tiles(first, last, lambda n0, width: self._clear(self._tile(self.totals, n0 - first, width)))
        in_strip: Body = [
            Let(m0, strip * s.rows),
            *row_lets,
            If(equal(k.depth, 0), tuple(nothing)),
            For(b, index(0), k.depth, tuple(per_block), index(BLOCK)),
            *k.panels(first, last, finish),
        ]
        in_stretch: Body = [
            Let(last, least_of(first + wide, end)),
            For(strip, index(0), ceil_div(k.count_rows, s.rows), tuple(in_strip), index(1)),
        ]
        safe = greatest_of(units, index(1))
        in_unit: Body = [
            *lets,
            Let(start, greatest_of(var("begin") - u * safe, index(0)) * s.block),
            Let(end, least_of((var("end") - u * safe) * s.block, k.count_lanes)),
            For(first, start, end, tuple(in_stretch), index(wide)),
        ]
        body: Body = [For(u, var("begin") // safe, (var("end") + (safe - 1)) // safe, tuple(in_unit), index(1))]
        return [k.kernel("contract", batches * units, k.work(), body)]

    def _tiles(self, first: Expr, last: Expr, body: Callable[[Expr, int], Body]) -> Body:
        """`body(first lane, lanes)` for every tile of the block."""
        return self.k.panels(first, last, lambda n0, width, inside: body(n0, width))

    def _tile(self, buffer: Buffer, place: Expr, width: int) -> Tile:
        return Tile(buffer, place * self.s.rows, self.s.rows, width)

    def _clear(self, tile: Tile) -> Body:
        lane = self._lane(tile.lanes)
        zero = const(self.k.dtype, 0)
        return region(lane, tile.lanes, [Store(tile.buffer, tile.at(i, lane), zero) for i in range(tile.rows)])

    def _add(self, place: Expr, width: int, b: Expr) -> Body:
        """The sums of a block of k onto the totals; they are the totals where it is the first."""
        sums, totals, lane = self._tile(self.sums, place, width), self._tile(self.totals, place, width), self._lane(width)
        put: Body = [Store(totals.buffer, totals.at(i, lane), sums.read(i, lane)) for i in range(self.s.rows)]
        add: Body = [
            Store(totals.buffer, totals.at(i, lane), totals.read(i, lane) + sums.read(i, lane)) for i in range(self.s.rows)
        ]
        return [If(equal(b, 0), tuple(region(lane, width, put)), tuple(region(lane, width, add)))]

    def _terms(self, first: Expr, last: Expr, at: Expr, count: int, loops: list[Expr]) -> Body:
        """The terms of k = at .. at + count for every tile from lane `first` to `last`."""
        k = self.k

        def panel(n0: Expr, width: int, inside: bool | None) -> Body:
            tile, lane = self._tile(self.sums, n0 - first, width), self._lane(width)

            def terms(masked: bool) -> Body:
                read = k.direct_lanes(self.batch, n0, [*loops, n0], width, masked)
                sums = [var(f"sum{next(_numbers)}", k.dtype) for _ in range(tile.rows)]
                body: Body = [Declare(x, tile.read(i, lane)) for i, x in enumerate(sums)]
                for j in range(count):
                    lanes = read(lane, at + j)
                    body += [Assign(x, multiply_add(self.row(i, at + j), lanes, x)) for i, x in enumerate(sums)]
                body += [Store(tile.buffer, tile.at(i, lane), x) for i, x in enumerate(sums)]
                return region(lane, width, body)

            if inside is not None:
                return terms(not inside)
            return k.choose(n0 + width <= k.count_lanes, terms, hot=True)

        return k.panels(first, last, panel)

    def _lane(self, width: int) -> Expr:
        return var(f"lane_of{next(_numbers)}") if width > 1 else index(0)
