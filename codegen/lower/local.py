"""Kernels in which a task packs a block of lanes into memory of its own and meets all rows."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from graphc.codegen.expr import Expr, const, index, load, var
from graphc.codegen.loops import Alloc, Buffer, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import ceil_div, decided, greatest_of, least_of, tidy
from graphc.codegen.lower.blocks import Block, Blocks
from graphc.codegen.lower.contraction import BLOCK, widened
from graphc.codegen.lower.index import delinearise
from graphc.codegen.lower.microkernel import (
    Tile,
    block_sum,
    region,
)
from graphc.codegen.lower.packing import LaneCopy, depth_nest
from graphc.ir.types import BOOL

if TYPE_CHECKING:
    from graphc.codegen.lower.kernels import ContractionKernels

Body = list[Stmt]


class LocalKernels:
    """Builds the kernels; `k` holds what all schedules share."""

    def __init__(self, k: ContractionKernels) -> None:
        self.k, self.c, self.s = k, k.c, k.s
        self.blocks = Blocks(k)

    def build(self) -> list[Kernel]:
        """One kernel, or two for split sums."""
        k, s = self.k, self.s
        task = k.name("task")
        kb, batch_flat, batch, number, lets, names = self.blocks.unit(task)
        block = self.blocks.block(number)
        lets += block.lets
        start, stop = k.name("start"), k.name("stop")
        loops = [task, *names, *block.names, start]
        local = Buffer("block", k.dtype, "local")
        strip, m0 = k.name("strip"), k.name("m")
        row, row_lets = k.row_reader(batch, strip, m0, [*loops, strip, m0])
        sums: list[Tile] = []

        def panel(n0: Expr, width: int, inside: bool | None) -> Body:
            tile, body = self.blocks.tile(
                kb, self.blocks.number(batch_flat, number, strip, n0 // s.lanes), width, n0 % s.lanes
            )
            sums.append(tile)

            def lane(v: Expr, at: Expr) -> Expr:
                return load(local, n0 + ((at - start) * s.block + v))

            if s.split:
                return [*body, *block_sum(tile, k.dtype, row, lane, start, stop, const(BOOL, True), run=k.run)]
            body += k.whole_sum(tile, row, lane, start, stop)
            end = block.first + (n0 + width if inside else block.count)
            inner = [*loops, strip, m0, n0]
            return k.finished(body, tile, batch, m0, block.first + n0, end, inner, functools.partial(self.blocks.at_the_end, stop))

        per_strip: Body = [Let(m0, strip * s.rows), *row_lets, *k.panels(index(0), block.count, panel)]
        in_chunk: Body = [
            Let(stop, least_of(start + s.chunk, k.depth)),
            *self._pack(local, batch, block, start, stop, loops),
            For(strip, index(0), self.blocks.strips, tuple(per_strip), index(1)),
        ]
        if s.split:
            in_task: Body = [*lets, Let(start, kb * BLOCK), *in_chunk]
        else:
            in_task = [*lets, self.blocks.chunks(start, in_chunk)]
        whole: Body = [Alloc(local, s.chunk * s.block)]
        whole.append(For(task, var("begin"), var("end"), tuple(in_task), index(1)))
        kernels = [k.kernel("contract", self.blocks.units, k.work(), whole)]
        return [*kernels, self.blocks.finish(sums[0].buffer)] if s.split else kernels

    def _pack(
        self, local: Buffer, batch: list[Expr], block: Block, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:
        s = self.s
        if not s.run:
            room = ceil_div(block.count, s.lanes) * s.lanes
            copy = LaneCopy(self.k, local, batch, block.first, room, block.count, index(0), s.block, loops)
            return copy.all(start, stop)
        return [*self._clear_tails(local, block.count, start, stop), *self._pack_runs(local, batch, block, start, stop, loops)]

    def _pack_runs(
        self, local: Buffer, batch: list[Expr], block: Block, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:
        k, s = self.k, self.s
        nest = depth_nest(k, s.near, start, stop)
        o, x, lane = k.name("o"), k.name("x"), k.name("lane")
        outer = delinearise(block.outer + o, self.blocks.free[:-1])
        coords = (*outer, block.x + x + lane)[: len(k.lanes.free)]
        e = widened(self.c, k.lanes.at(batch, coords, nest.coords))
        checks = k.checks()
        place = (nest.flat - start) * s.block + o * block.run_width + x + lane
        put: Body = [*checks, Store(local, place, tidy(e, [*loops, *nest.loops, o, x, lane]))]

        def copies(masked: bool) -> Body:
            return region(lane, s.run, [If(x + lane < block.run_width, tuple(put))] if masked else put)

        turn = k.choose(x + s.run <= block.run_width, copies)
        runs: Body = [For(x, index(0), block.run_width, tuple(turn), index(s.run))]
        rows = block.count // greatest_of(block.run_width, index(1)) if len(self.blocks.free) > 1 else index(1)
        return nest.wrap([For(o, index(0), rows, tuple(runs), index(1))])

    def _clear_tails(self, local: Buffer, count: Expr, start: Expr, stop: Expr) -> Body:
        """The lanes past the last element are read by the micro kernel: give them a value."""
        k, s = self.k, self.s
        at, z = k.name("k"), k.name("lane") if s.lanes > 1 else index(0)
        last = (count // s.lanes) * s.lanes
        zero = region(z, s.lanes, [Store(local, (at - start) * s.block + last + z, const(k.dtype, 0))])
        return [If(decided(last < count), (For(at, start, stop, tuple(zero), index(1)),))]
