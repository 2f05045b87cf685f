"""Blocks of lanes and strips of rows: how a contraction is cut into tasks, and split sums put together.

A block is as many lanes as the schedule says; or, where the schedule has runs (of the lanes' innermost
free dimension), as many whole runs as fit, or a part of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.codegen.expr import Expr, index, load, select, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import ceil_div, greatest_of, least_of
from graphc.codegen.lower.contraction import BLOCK
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.microkernel import Tile, clear, equal_zero, region
from graphc.codegen.lower.tiles import power_of_two
from graphc.ir.types import Dim, Shape, size_of

if TYPE_CHECKING:
    from graphc.codegen.lower.kernels import ContractionKernels

Body = list[Stmt]


@dataclass(frozen=True)
class Block:
    """A block of lanes: `count` lanes from lane `first`; of `outer` runs, `run_width` of each from `x`."""

    lets: Body
    names: list[Expr]
    first: Expr
    count: Expr
    outer: Expr
    x: Expr
    run_width: Expr


class Blocks:
    """The cut of a contraction under its schedule; tiles are numbered by batch, block, strip, place in the block."""

    def __init__(self, k: ContractionKernels) -> None:
        self.k, self.s = k, k.s
        self.totals: Buffer | None = None
        self.free: Shape = (k.lanes.free or (1,)) if k.s.run else (k.lanes.size,)
        self.run, self.outer = dim_expr(self.free[-1]), dim_expr(size_of(self.free[:-1]))
        self.width = least_of(index(self.s.block), self.run)
        one = index(1)
        self.per_block = one if len(self.free) == 1 else index(self.s.block) // greatest_of(self.width, one)
        self.run_blocks = ceil_div(self.run, self.s.block)
        outer_blocks = (self.outer + (self.per_block - 1)) // greatest_of(self.per_block, one)
        self.blocks = outer_blocks * self.run_blocks
        self.batches = dim_expr(size_of(k.c.batch))
        self.strips = ceil_div(k.count_rows, self.s.rows)
        self.per = self.s.block // self.s.lanes  # tiles of a block
        self.depth_blocks = ceil_div(k.depth, BLOCK) if self.s.split else one

    @property
    def units(self) -> Expr:
        """Pairs of a batch index and a block, for each block of k in split sums."""
        return self.depth_blocks * self.batches * self.blocks

    def unit(self, unit: Expr) -> tuple[Expr, Expr, list[Expr], Expr, Body, list[Expr]]:
        """A unit's block of k, batch index, batch coordinates, block number, with statements and names."""
        k = self.k
        kb, rest, batch_flat, number = (k.name(n) for n in ("kb", "rest", "batch", "block"))
        batch, batch_lets = k.batch_coords(batch_flat, k.c.batch, range(len(k.c.batch)))
        each = self.batches * self.blocks
        lets: Body = [
            Let(kb, unit // greatest_of(each, index(1)) if self.s.split else index(0)),
            Let(rest, unit - kb * each),
            Let(batch_flat, rest // greatest_of(self.blocks, index(1))),
            Let(number, rest - batch_flat * self.blocks),
            *batch_lets,
        ]
        return kb, batch_flat, batch, number, lets, [kb, rest, batch_flat, *batch, number]

    def block(self, number: Expr) -> Block:
        k, s = self.k, self.s
        i, outer, x, width, count, first = (k.name(n) for n in ("i", "outer", "x", "w", "count", "n"))
        lets: Body = [
            Let(i, number // greatest_of(self.run_blocks, index(1))),
            Let(outer, i * self.per_block),
            Let(x, (number - i * self.run_blocks) * s.block),
            Let(width, least_of(self.width, self.run - x)),
            Let(count, least_of(self.per_block, self.outer - outer) * width),
            Let(first, outer * self.run + x),
        ]
        return Block(lets, [i, outer, x, width, count, first], first, count, outer, x, width)

    def number(self, batch: Expr, block: Expr, strip: Expr, place: Expr) -> Expr:
        return ((batch * self.blocks + block) * self.strips + strip) * self.per + place

    def tiles(self) -> Dim:
        """At least the number of tiles: blocks that are not full are at least half full, but for the last."""
        s, k = self.s, self.k
        strips = (k.rows.size + (s.rows - 1)) // s.rows
        run, others = self.free[-1], size_of(self.free[:-1])
        if len(self.free) == 1:
            blocks: Dim = (run + (s.block - 1)) // s.block
        elif isinstance(run, int) and run > 0:
            per_block = max(1, s.block // min(run, s.block))
            blocks = ((others + (per_block - 1)) // per_block) * -(-run // s.block)
        else:
            blocks = (k.lanes.size * 2) // s.block + others + 1
        return size_of(k.c.batch) * strips * blocks * self.per

    # Sums: chunk by chunk, or split

    @property
    def one_chunk(self) -> bool:
        """Whether the whole depth is surely taken at once."""
        depth, chunk = self.k.depth, self.s.chunk
        return chunk == 0 or (depth.op == "const" and bool(depth.data <= chunk))

    def chunks(self, start: Expr, body: Body) -> Stmt:
        """`body` for every chunk of the depth; an empty sum is one empty chunk."""
        return For(start, index(0), greatest_of(self.k.depth, index(1)), tuple(body), index(self.s.chunk))

    def at_the_end(self, stop: Expr, body: Body) -> Body:
        """`body` after the last chunk."""
        return body if self.one_chunk else [If(stop >= self.k.depth, tuple(body))]

    def tile(self, kb: Expr, number: Expr, lanes: int, at: Expr) -> tuple[Tile, Body]:
        """Where the total of a tile, or of `lanes` of it from lane `at` on, is kept."""
        k, s = self.k, self.s
        if s.split:
            return self.partial(kb, number)
        if self.one_chunk:
            return self.own_tile(lanes), []
        # Totals wait in memory between chunks. Where there is one chunk, a place in the cache will do.
        size, base = s.rows * s.lanes, k.name("total")
        buffer = self.totals = self.totals or k.new_scratch("totals", self.tiles() * size)
        place = select(k.depth <= s.chunk, var("begin"), number) * size
        return Tile(buffer, base, s.rows, lanes), [Let(base, place + at * s.rows if s.tail else place)]

    def own_tile(self, lanes: int) -> Tile:
        """A tile in memory of the task's own."""
        rows = self.s.rows
        return Tile(self.k.new_local("tile", power_of_two(rows) * lanes), index(0), rows, lanes)

    def partial(self, kb: Expr, number: Expr) -> tuple[Tile, Body]:
        """Where the sum of a block of k of a tile goes."""
        k, s = self.k, self.s
        size, base = s.rows * s.lanes, k.name("total")
        depth_blocks = (size_of(k.c.depth) + (BLOCK - 1)) // BLOCK
        buffer = k.new_scratch("sums", self.tiles() * size * depth_blocks)
        each = self.batches * self.blocks * self.strips * self.per
        return Tile(buffer, base, s.rows, s.lanes), [Let(base, (kb * each + number) * size)]

    def finish(self, sums: Buffer) -> Kernel:
        """The kernel that adds up the sums of the blocks of k in order, then does the epilogue."""
        k, s = self.k, self.s
        t, q, j, strip, unit, number, b, m0 = (
            k.name(n) for n in ("tile", "q", "j", "strip", "unit", "block", "batch", "m")
        )
        batch, batch_lets = k.batch_coords(b, k.c.batch, range(len(k.c.batch)))
        block = self.block(number)
        size = s.rows * s.lanes
        tile = self.own_tile(s.lanes)
        local = tile.buffer
        tiles = self.batches * self.blocks * self.strips * self.per
        kb, i = k.name("kb"), k.name("i")
        lane = k.name("lane") if s.lanes > 1 else index(0)

        def rows(value: Expr) -> Body:
            put = Store(local, tile.at(i, lane), value)
            return [For(i, index(0), index(s.rows), tuple(region(lane, s.lanes, [put])), index(1))]

        first = load(sums, t * size + i * s.lanes + lane)
        more = tile.read(i, lane) + load(sums, (kb * tiles + t) * size + i * s.lanes + lane)
        add_up: Body = [
            *rows(first),
            For(kb, index(1), ceil_div(k.depth, BLOCK), tuple(rows(more)), index(1)),
        ]
        add_up = [If(equal_zero(k.depth), tuple(clear(tile, k.dtype)), tuple(add_up))]
        lets: Body = [
            Let(q, t // self.per),
            Let(j, (t - q * self.per) * s.lanes),
            Let(unit, q // self.strips),
            Let(strip, q - unit * self.strips),
            Let(b, unit // self.blocks),
            Let(number, unit - b * self.blocks),
            *batch_lets,
            *block.lets,
            Let(m0, strip * s.rows),
        ]
        loops = [t, q, j, unit, strip, b, *batch, number, *block.names, m0]
        finish = k.epilogue(tile, batch, m0, block.first + j, block.first + block.count, loops)
        turn: Body = [*lets, If(j < block.count, (*add_up, *finish))]
        body: Body = [For(t, var("begin"), var("end"), tuple(turn), index(1))]
        return k.kernel("finish", tiles, tiles * size * ceil_div(k.depth, BLOCK), body)
