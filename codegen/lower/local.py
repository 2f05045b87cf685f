"""Kernels in which a task packs a block of lanes into memory of its own and meets all rows.

A block is as many lanes as the schedule says; or, where the schedule has runs (of the lanes' innermost
free dimension), as many whole runs as fit, or a part of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.codegen.expr import Expr, const, equal, index, load, select, var
from graphc.codegen.loops import Alloc, Buffer, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import ceil_div, decided, greatest_of, least_of, tidy
from graphc.codegen.lower.contraction import widened
from graphc.codegen.lower.index import delinearise, dim_expr
from graphc.codegen.lower.microkernel import (
    BLOCK,
    Tile,
    all_blocks,
    block_sum,
    clear,
    equal_zero,
    region,
)
from graphc.codegen.lower.packing import LaneCopy, depth_nest
from graphc.ir.types import BOOL, Dim, Shape, size_of

if TYPE_CHECKING:
    from graphc.codegen.lower.kernels import ContractionKernels

Body = list[Stmt]


@dataclass(frozen=True)
class _Block:
    """A block of lanes: `count` lanes from lane `first`; of `outer` runs, `run_width` of each from `x`."""

    lets: Body
    names: list[Expr]
    first: Expr
    count: Expr
    outer: Expr
    x: Expr
    run_width: Expr


class LocalKernels:
    """Builds the kernels; `k` holds what all schedules share."""

    def __init__(self, k: ContractionKernels) -> None:
        self.k, self.c, self.s = k, k.c, k.s
        self.free: Shape = (k.lanes.free or (1,)) if k.s.run else (k.lanes.size,)
        self.run, self.outer = dim_expr(self.free[-1]), dim_expr(size_of(self.free[:-1]))
        self.width = least_of(index(self.s.block), self.run)
        one = index(1)
        self.per_block = one if len(self.free) == 1 else index(self.s.block) // greatest_of(self.width, one)
        self.run_blocks = ceil_div(self.run, self.s.block)
        outer_blocks = (self.outer + (self.per_block - 1)) // greatest_of(self.per_block, one)
        self.blocks = outer_blocks * self.run_blocks
        self.batches = dim_expr(size_of(self.c.batch))
        self.strips = ceil_div(k.count_rows, self.s.rows)
        self.per = self.s.block // self.s.lanes  # tiles of a block

    def build(self) -> list[Kernel]:
        """One kernel, or two for split sums."""
        k, s = self.k, self.s
        task, kb, rest, batch_flat, number = (k.name(n) for n in ("task", "kb", "rest", "batch", "block"))
        batch, batch_lets = k.batch_coords(batch_flat, self.c.batch, range(len(self.c.batch)))
        block = self._block(number)
        units = self.batches * self.blocks
        lets: Body = [
            Let(kb, task // greatest_of(units, index(1)) if s.split else index(0)),
            Let(rest, task - kb * units),
            Let(batch_flat, rest // greatest_of(self.blocks, index(1))),
            Let(number, rest - batch_flat * self.blocks),
            *batch_lets,
            *block.lets,
        ]
        start, stop = k.name("start"), k.name("stop")
        loops = [task, kb, batch_flat, *batch, number, *block.names, start]
        local = Buffer("block", k.dtype, "local")
        strip, m0, n0 = k.name("strip"), k.name("m"), k.name("j")
        inner_loops = [*loops, strip, m0, n0]
        row, row_lets = k.row_reader(batch, strip, m0, inner_loops)
        tile_number = ((batch_flat * self.blocks + number) * self.strips + strip) * self.per + n0 // s.lanes
        tile, tile_lets = self._tile(kb, tile_number)

        def lane(v: Expr, at: Expr) -> Expr:
            return load(local, n0 + ((at - start) * s.block + v))

        body = list(tile_lets)
        if s.split:
            body += block_sum(tile, k.dtype, row, lane, start, stop, const(BOOL, True))
        else:
            body += all_blocks(tile, k.dtype, row, lane, start, stop)
            if k.depth.op != "const":
                body.append(If(equal(k.depth, 0), tuple(clear(tile, k.dtype))))
            elif k.depth.data == 0:
                body += clear(tile, k.dtype)
            finish = k.epilogue(tile, batch, m0, block.first + n0, block.first + block.count, inner_loops)
            done = const(BOOL, True) if self._one_chunk() else stop >= k.depth
            body.append(If(done, tuple(finish)))
        per_strip: Body = [
            Let(m0, strip * s.rows),
            *row_lets,
            For(n0, index(0), block.count, tuple(body), index(s.lanes)),
        ]
        in_chunk: Body = [
            Let(stop, least_of(start + s.chunk, k.depth)),
            *self._pack(local, batch, block, start, stop, loops),
            For(strip, index(0), self.strips, tuple(per_strip), index(1)),
        ]
        if s.split:
            in_task: Body = [*lets, Let(start, kb * BLOCK), *in_chunk]
        else:
            # An empty sum is one empty chunk.
            last = greatest_of(k.depth, index(1))
            in_task = [*lets, For(start, index(0), last, tuple(in_chunk), index(s.chunk))]
        whole: Body = [Alloc(local, s.chunk * s.block)]
        if tile.buffer.kind == "local":
            whole.append(Alloc(tile.buffer, s.rows * s.lanes))
        whole.append(For(task, var("begin"), var("end"), tuple(in_task), index(1)))
        parallel = units * (ceil_div(k.depth, BLOCK) if s.split else index(1))
        kernels = [k.kernel("contract", parallel, k.work(), whole)]
        return [*kernels, self._finish(tile.buffer)] if s.split else kernels

    def _block(self, number: Expr) -> _Block:
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
        return _Block(lets, [i, outer, x, width, count, first], first, count, outer, x, width)

    def _one_chunk(self) -> bool:
        depth = self.k.depth
        return depth.op == "const" and bool(depth.data <= self.s.chunk)

    def _tile(self, kb: Expr, number: Expr) -> tuple[Tile, Body]:
        """Where a tile's total is kept."""
        k, s = self.k, self.s
        size = s.rows * s.lanes
        base = k.name("total")
        if s.split:
            depth_blocks = (size_of(self.c.depth) + (BLOCK - 1)) // BLOCK
            buffer = k.new_scratch("sums", self._tiles() * size * depth_blocks)
            per_sum = self.batches * self.blocks * self.strips * self.per
            return Tile(buffer, base, s.rows, s.lanes), [Let(base, (kb * per_sum + number) * size)]
        if self._one_chunk():
            return Tile(Buffer("tile", k.dtype, "local"), index(0), s.rows, s.lanes), []
        # Totals wait in memory between chunks. Where there is one chunk, a place in the cache will do.
        buffer = k.new_scratch("totals", self._tiles() * size)
        place = select(k.depth <= s.chunk, var("begin"), number) * size
        return Tile(buffer, base, s.rows, s.lanes), [Let(base, place)]

    def _tiles(self) -> Dim:
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
        return size_of(self.c.batch) * strips * blocks * self.per

    # Packing

    def _pack(
        self, local: Buffer, batch: list[Expr], block: _Block, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:
        s = self.s
        if not s.run:
            room = ceil_div(block.count, s.lanes) * s.lanes
            copy = LaneCopy(self.k, local, batch, block.first, room, block.count, index(0), s.block, loops)
            return copy.all(start, stop)
        return [*self._clear_tails(local, block.count, start, stop), *self._pack_runs(local, batch, block, start, stop, loops)]

    def _pack_runs(
        self, local: Buffer, batch: list[Expr], block: _Block, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:
        k, s = self.k, self.s
        nest = depth_nest(k, s.near, start, stop)
        o, x, lane = k.name("o"), k.name("x"), k.name("lane")
        outer = delinearise(block.outer + o, self.free[:-1])
        coords = (*outer, block.x + x + lane)[: len(k.lanes.free)]
        e = widened(self.c, k.lanes.at(batch, coords, nest.coords))
        checks = k.checks()
        place = (nest.flat - start) * s.block + o * block.run_width + x + lane
        put: Body = [*checks, Store(local, place, tidy(e, [*loops, *nest.loops, o, x, lane]))]

        def copies(masked: bool) -> Body:
            return region(lane, s.run, [If(x + lane < block.run_width, tuple(put))] if masked else put)

        turn = k.choose(x + s.run <= block.run_width, copies)
        runs: Body = [For(x, index(0), block.run_width, tuple(turn), index(s.run))]
        rows = block.count // greatest_of(block.run_width, index(1)) if len(self.free) > 1 else index(1)
        return nest.wrap([For(o, index(0), rows, tuple(runs), index(1))])

    def _clear_tails(self, local: Buffer, count: Expr, start: Expr, stop: Expr) -> Body:
        """The lanes past the last element are read by the micro kernel: give them a value."""
        k, s = self.k, self.s
        at, z = k.name("k"), k.name("lane") if s.lanes > 1 else index(0)
        last = (count // s.lanes) * s.lanes
        zero = region(z, s.lanes, [Store(local, (at - start) * s.block + last + z, const(k.dtype, 0))])
        return [If(decided(last < count), (For(at, start, stop, tuple(zero), index(1)),))]

    # Split sums

    def _finish(self, sums: Buffer) -> Kernel:
        """Add up the sums of the blocks of k in order, then the epilogue."""
        k, s = self.k, self.s
        t, q, j, strip, unit, number, b, m0 = (
            k.name(n) for n in ("tile", "q", "j", "strip", "unit", "block", "batch", "m")
        )
        batch, batch_lets = k.batch_coords(b, self.c.batch, range(len(self.c.batch)))
        block = self._block(number)
        size = s.rows * s.lanes
        local = Buffer("tile", k.dtype, "local")
        tile = Tile(local, index(0), s.rows, s.lanes)
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
        body: Body = [Alloc(local, size), For(t, var("begin"), var("end"), tuple(turn), index(1))]
        return k.kernel("finish", tiles, tiles * size * ceil_div(k.depth, BLOCK), body)
