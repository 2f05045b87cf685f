"""Convolutions with lanes over output pixels: the kernels of one schedule.

1. pack: the weights into strips [k][rows], and the table of offsets of k in a segment (geometry.py).
2. contract: a task makes the padded copy of its part of the input, then meets all output channels. A tile is
   rows (output channels) times vectors (of pixels); for each k one load a vector and one broadcast a row. A single block
   of at most 256 k is finished in registers, if what follows is short; several are added up in memory, then the epilogue follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr, const, equal, index, load, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Store,
    Vector,
)
from graphc.codegen.lower.affine import Levels, greatest_of, least_of, normal, tidy
from graphc.codegen.lower.contraction import BLOCK, Contraction, epilogue_operations, widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body, KernelBuilder
from graphc.codegen.lower.windows.copy import WindowCopy
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.codegen.lower.windows.schedule import WindowSchedule, copy_elements, segment
from graphc.ir.types import I64

# Operations of an epilogue that are written out, for all sums of a tile.
DIRECT = 600


class WindowKernels(KernelBuilder):
    """Builds the kernels of a contraction whose root is a `conv`, by example."""

    registers = True  # sums of one block of k may be finished in registers

    def __init__(
        self, c: Contraction, g: Geometry, schedule: WindowSchedule, results: Sequence[Buffer]
    ) -> None:
        super().__init__(c, results)
        self.g, self.s = g, schedule
        self.strips = -(-g.outputs // schedule.rows)
        self.segment = segment(g, schedule)
        self.vectors = -(-g.pixels // schedule.width)  # of an image
        self.blocks = -(-self.vectors // schedule.block)
        self.image = g.segments() * self.segment  # the copy of one example
        self.copy_size = copy_elements(g, schedule)
        size = g.count * self.strips * g.depth * schedule.rows
        self.weights = self.new_scratch("weights", size, self.dtype)
        self.offsets = self.new_scratch("offsets", g.depth, I64)
        self.copied = Buffer("copied", self.dtype, "local")
        self.tile = Buffer("tile", self.dtype, "local")
        self._direct_known: bool | None = None

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        return (self._pack(), self._contract()), tuple(self.scratch)

    # Packing

    def _pack(self) -> Kernel:
        """Strips of weights, a strip a task, and one task for the table."""
        g, s = self.g, self.s
        strips = g.count * self.strips
        task, b = self.name("task"), self.name("group")
        first = self.name("first")
        c, *ks = [self.name("k") if d > 1 else index(0) for d in (g.channels, *g.window)]
        flat = linearise((c, *ks), (g.channels, *g.window))
        lane, width = self.name("row"), 1 << (s.rows - 1).bit_length()
        r = least_of(first + lane, index(g.outputs - 1)) if g.outputs % s.rows else first + lane
        loops = [task, b, first, *(k for k in (c, *ks) if k.op == "var"), lane]
        e = widened(self.c, self.c.left.at((b, index(0)), (r,), (c, *ks)))
        checks = self.c.pull.take_reports()
        place = normal((task * g.depth + flat) * s.rows + lane, Levels(loops))
        put: Body = [*checks, Store(self.weights, place, tidy(e, loops))]
        if width > s.rows:
            put = [If(lane < s.rows, tuple(put))]
        copy: Body = [Vector(lane, width, tuple(put))] if width > 1 else put
        if width == 1:
            copy = [Let(lane, index(0)), *put]
        nest = [(c, g.channels), *zip(ks, g.window, strict=True)]
        copies = self._nest(nest, copy)
        lets: Body = [Let(b, task // self.strips), Let(first, (task - b * self.strips) * s.rows)]
        begin, end = var("begin"), var("end")
        stop = least_of(end, index(strips))
        packed = For(task, begin, stop, (*lets, *copies), index(1))
        table = If(end > strips, tuple(self._table()))
        total = strips + 1
        return self.kernel("pack", index(total), index(total * g.depth * s.rows * 4), [packed, table])

    def _nest(self, loops: Sequence[tuple[Expr, int]], body: Body) -> Body:
        for v, stop in reversed(loops):
            if v.op == "var":
                body = [For(v, index(0), index(stop), tuple(body), index(1))]
        return body

    def _table(self) -> Body:
        g = self.g
        c, k0, *ks = [self.name("k") if d > 1 else index(0) for d in (g.channels, *g.window)]
        flat = linearise((c, k0, *ks), (g.channels, *g.window))
        row = k0 * g.reach[0]
        phase, down = row % g.strides[0] // g.phase_step, row // g.strides[0]
        at = ((c * g.inner + linearise(ks, g.window[1:])) * g.phases + phase) * self.segment + down * g.line
        return self._nest(
            [(c, g.channels), (k0, g.window[0]), *zip(ks, g.window[1:], strict=True)],
            [Store(self.offsets, flat, at)],
        )

    # The main kernel

    def _contract(self) -> Kernel:
        s = self.s
        task = self.name("task")
        whole: Body = [
            Alloc(self.copied, self.copy_size),
            *([] if self._direct() else [Alloc(self.tile, s.rows * s.vectors * s.width)]),
            For(task, var("begin"), var("end"), tuple(self.task(task)), index(1)),
        ]
        return self.kernel("contract", self.tasks, self._work, whole)

    @property
    def _work(self) -> Expr:
        g = self.g
        return dim_expr(g.examples) * (g.count * g.outputs * g.pixels * (g.depth * 2 + 2))

    @property
    def _sets(self) -> Expr:
        return (dim_expr(self.g.examples) + (self.s.images - 1)) // self.s.images

    @property
    def tasks(self) -> Expr:
        """How many tasks there are."""
        return self._sets * (self.g.count * self.blocks * self.s.parts)

    def task(self, task: Expr) -> Body:
        """What one task does."""
        g, s, sets, blocks = self.g, self.s, self._sets, self.blocks
        part, unit, b, rest, n0, first = (
            self.name(n) for n in ("part", "unit", "group", "rest", "n", "first")
        )
        images, row = self.name("images"), self.name("row")
        lets: Body = [
            Let(unit, task // s.parts),
            Let(part, task - unit * s.parts),
            Let(b, unit // greatest_of(sets * blocks, index(1))),
            Let(rest, unit - b * (sets * blocks)),
            Let(n0, rest // blocks * s.images),
            Let(first, (rest - rest // blocks * blocks) * (s.block * s.width)),  # pixel
            Let(images, least_of(index(s.images), dim_expr(g.examples) - n0)),
            Let(row, first // g.line),
        ]
        loops = [task, unit, part, b, rest, n0, first, images, row]
        strip, tile = self.name("strip"), self.name("t")
        share = -(-self.strips // s.parts)
        low, high = part * share, least_of((part + 1) * share, index(self.strips))
        count = self.name("count")
        lets.append(Let(count, images * least_of(index(s.block), index(self.vectors) - first // s.width)))
        tiles = self._tile(b, strip, tile, n0, first, row, count, [*loops, count])
        strips = self._strip(For(tile, index(0), count, tuple(tiles), index(s.vectors)))
        return [
            *lets,
            *self._copies(b, n0, images, row, loops),
            For(strip, low, high, tuple(strips), index(1)),
        ]

    def _strip(self, tiles: For) -> Body:
        """What is done for a strip of output channels, given the loop over its tiles."""
        return [tiles]

    def _copies(self, b: Expr, n0: Expr, images: Expr, row: Expr, loops: list[Expr]) -> Body:
        g, s = self.g, self.s
        copy = WindowCopy(
            g, self.c.root.operands[0], self.c.pull, self.copied, self.dtype, s.width, self.segment, self.name
        )
        i = self.name("image") if s.images > 1 else index(0)
        example, channel = n0 + i, index(0)
        if self.c.root.attrs["groups"] > 1:
            channel = b * g.channels
        if self.c.root.attrs["batch_groups"] > 1:
            example = b * dim_expr(g.examples) + example
        rows = g.rows(min(s.block * s.width, g.pixels))
        order = [*loops, *([i] if s.images > 1 else [])]
        body = copy.body(example, channel, i * self.image, row, index(rows), order)
        return [For(i, index(0), images, tuple(body), index(1))] if s.images > 1 else body

    def _tile(
        self, b: Expr, strip: Expr, t: Expr, n0: Expr, first: Expr, row: Expr, count: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """One tile: vectors t .. t + s.vectors of the task, a strip of output channels."""
        g, s = self.g, self.s
        lets: Body = []
        bases = []
        skip = first - row * g.line
        for v in range(s.vectors):
            at = self.name("at")
            lets.append(
                Let(at, self._vector_place(least_of(t + v, count - 1) if s.images > 1 and v else t + v, skip))
            )
            bases.append(at)
        if self._direct():
            start, lane, k = self.name("weights"), self.name("lane"), self.name("k")
            sums = [[self.name("sum", self.dtype) for _ in bases] for _ in range(s.rows)]
            step = self._step(start, bases, sums, k, lane)
            region: Body = [
                *(Declare(total, const(self.dtype, 0)) for row_sums in sums for total in row_sums),
                For(k, index(0), index(g.depth), tuple(step), index(1)),
                *self._finished_sums(sums, lane, b, strip, t, n0, first, count, [*loops, strip, t]),
            ]
            weights = Let(start, (b * self.strips + strip) * (g.depth * s.rows))
            return [*lets, weights, Vector(lane, s.width, tuple(region))]
        summed = self._sum(b * self.strips + strip, bases)
        return [*lets, *summed, *self._epilogue(b, strip, t, n0, first, count, [*loops, strip, t])]

    def _direct(self) -> bool:
        """Whether sums are finished where they are, in registers, and never meet the tile."""
        if self._direct_known is None:
            written = self.s.rows * self.s.vectors * epilogue_operations(self.c)
            self._direct_known = self.registers and self.g.depth <= BLOCK and written <= DIRECT
        return self._direct_known

    def _step(self, start: Expr, bases: list[Expr], sums: list[list[Expr]], k: Expr, lane: Expr) -> Body:
        """The term k of all sums; the strip's weights are at `start`."""
        offset = load(self.offsets, k)
        xs = [load(self.copied, base + offset + lane) for base in bases]
        step: Body = []
        for i, row in enumerate(sums):
            a = load(self.weights, start + k * self.s.rows + i)
            step += [Assign(total, multiply_add(a, x, total)) for total, x in zip(row, xs, strict=True)]
        return step

    def _sum(self, strip: Expr, bases: list[Expr]) -> Body:
        """The sums over all k of a strip and of vectors at `bases` of the copy, into the tile."""
        g, s = self.g, self.s
        start = self.name("weights")
        lets: Body = [Let(start, strip * (g.depth * s.rows))]
        lane = self.name("lane")
        sums = [[self.name("sum", self.dtype) for _ in bases] for _ in range(s.rows)]
        block, stop, k = self.name("block"), self.name("stop"), self.name("k")
        step = self._step(start, bases, sums, k, lane)
        flat = [(i, v, total) for i, row_sums in enumerate(sums) for v, total in enumerate(row_sums)]
        places = [(index((i * s.vectors + v) * s.width) + lane, total) for i, v, total in flat]
        region: Body = [Declare(total, const(self.dtype, 0)) for _, _, total in flat]
        put = [Store(self.tile, place, total) for place, total in places]
        add = [Store(self.tile, place, load(self.tile, place) + total) for place, total in places]
        if g.depth <= BLOCK:
            region += [For(k, index(0), index(g.depth), tuple(step), index(1)), *put]
            summed: Body = [Vector(lane, s.width, tuple(region))]
        else:
            region += [
                For(k, block, stop, tuple(step), index(1)),
                If(equal(block, 0), tuple(put), tuple(add)),
            ]
            turn: Body = [
                Let(stop, least_of(block + BLOCK, index(g.depth))),
                Vector(lane, s.width, tuple(region)),
            ]
            summed = [For(block, index(0), index(g.depth), tuple(turn), index(BLOCK))]
        return [*lets, *summed]

    def _finished_sums(
        self, sums: list[list[Expr]], lane: Expr, b: Expr, strip: Expr, t: Expr, n0: Expr, first: Expr, count: Expr,
        loops: list[Expr],
    ) -> Body:  # fmt: skip
        """The results of a tile whose sums are in registers."""
        g, s = self.g, self.s
        body: Body = []
        for v in range(s.vectors):
            image, pixel = self.name("image"), self.name("p")
            mine: Body = [
                Let(image, (t + v) // self.vectors if s.images > 1 else index(0)),
                Let(pixel, first + (t + v - image * self.vectors) * s.width),
            ]
            there = self._there(pixel + lane)
            for i, row in enumerate(sums):
                o = strip * s.rows + i
                order = [*loops, image, pixel, lane]
                inner = self.finished((b, n0 + image), o, self._position(pixel + lane), row[v], order)
                if there is not None:
                    inner = [If(there, tuple(inner))]
                if g.outputs % s.rows and i >= g.outputs % s.rows:
                    inner = [If(o < g.outputs, tuple(inner))]
                mine += inner
            body += [If(t + v < count, tuple(mine))] if v else mine
        return body

    def _vector_place(self, number: Expr, skip: Expr) -> Expr:
        """Where the first pixel of a task's vector is in the first segment of its image."""
        s = self.s
        if s.images == 1:
            return skip + number * s.width
        image = number // self.vectors
        return image * self.image + (number - image * self.vectors) * s.width

    def _position(self, pixel: Expr) -> tuple[Expr, ...]:
        """Where a pixel, counted through, is in the result."""
        return delinearise(pixel, self.g.out)

    def _there(self, pixel: Expr) -> Expr | None:
        """Whether there is such a pixel; None where there always is."""
        return pixel < self.g.pixels if self.g.pixels % self.s.width else None

    def _epilogue(
        self, b: Expr, strip: Expr, t: Expr, n0: Expr, first: Expr, count: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        g, s = self.g, self.s
        v, i, image, pixel, lane = (self.name(n) for n in ("v", "i", "image", "p", "lane"))
        lets: Body = [Let(image, (t + v) // self.vectors if s.images > 1 else index(0))]
        lets.append(Let(pixel, first + (t + v - image * self.vectors) * s.width))
        o = strip * s.rows + i
        loops = [*loops, v, image, pixel, i, lane]
        total = load(self.tile, (i * s.vectors + v) * s.width + lane)
        inner = self.finished((b, n0 + image), o, self._position(pixel + lane), total, loops)
        there = self._there(pixel + lane)
        if there is not None:
            inner = [If(there, tuple(inner))]
        rows = (
            least_of(index(s.rows), index(g.outputs) - strip * s.rows)
            if g.outputs % s.rows
            else index(s.rows)
        )
        each = For(i, index(0), rows, (Vector(lane, s.width, tuple(inner)),), index(1))
        return [For(v, index(0), least_of(index(s.vectors), count - t), (*lets, each), index(1))]
