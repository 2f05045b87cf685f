"""Convolutions with a large window and few results, as the gradient by a kernel is: lanes over output channels.

Seen from such a convolution, a pixel is a position of the window, so k runs over (example, pixel), and the results are
a small image for each channel. Its geometry is that of windows/geometry.py with window and result exchanged. As elements
of x are broadcast, the copy of x is just the padded image, once: row for row of pixels, result (channel, place) takes
elements a stride apart from offset(channel, place) on.

A task goes through chunks of k. For each it makes the padded copy of x, and a copy of the other operand [k][output
channels]. Then all tiles take the blocks of 256 k in the chunk: rows are places of the results (broadcast from the
first copy), lanes are output channels (vectors of the second one). Between chunks, chains that are not at the end of
their block wait in memory, as do totals. Where there are few results, each task does some blocks of k, and a second
kernel adds up their sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

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
    Stmt,
    Store,
    Transpose,
    Vector,
)
from graphc.codegen.lower.affine import Levels, ceil_div, greatest_of, least_of, linear, normal, tidy
from graphc.codegen.lower.contraction import BLOCK, Contraction, Transposable, transposable, widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body, KernelBuilder
from graphc.codegen.lower.windows.copy import WindowCopy
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.codegen.lower.windows.gradient_schedule import (
    GradientSchedule,
    copied_segment,
    padded,
    padded_outputs,
    padded_rows,
)
from graphc.ir.types import Dim


class GradientKernels(KernelBuilder):
    """Builds the kernels of a contraction whose root is such a `conv`; g as `gradient_geometry` gives it."""

    def __init__(
        self, c: Contraction, g: Geometry, schedule: GradientSchedule, results: Sequence[Buffer]
    ) -> None:
        super().__init__(c, results)
        self.g, self.s = g, schedule
        self.lanes = padded_outputs(g, schedule)
        # A tile may have vectors to spare, of which no lane is an output channel.
        self.stored = -(-g.outputs // schedule.width) * schedule.width
        self.padded = padded(replace(g, channels=schedule.block))
        self.segment = copied_segment(g, schedule)
        self.image = schedule.block * self.segment  # the copy of one example
        self.parts = g.channels // schedule.block
        # The other operand lies in panels [k][lanes of a tile], so that a tile reads one after the other.
        self.panel = schedule.vectors * schedule.width
        self.chunk = schedule.blocks * BLOCK or schedule.images * schedule.pixels
        self.places = schedule.block * g.positions  # results of a task, for each output channel
        self.copied = Buffer("copied", self.dtype, "local")
        self.turned = Buffer("turned", self.dtype, "local")
        self.chain = Buffer("chain", self.dtype, "local")
        self.total = Buffer("total", self.dtype, "local")
        self.examples = dim_expr(g.examples)
        self.depth = self.examples * g.pixels
        if schedule.blocks:
            self.count = ceil_div(self.depth, BLOCK)
            blocks: Dim = (g.examples * g.pixels + (BLOCK - 1)) // BLOCK
            size = blocks * (g.count * g.channels * g.positions * self.lanes)
            self.total = self.new_scratch("sums", size, self.dtype)

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        kernels = (self._split(), self._finish()) if self.s.blocks else (self._sequential(),)
        return kernels, tuple(self.scratch)

    @property
    def _work(self) -> Expr:
        g = self.g
        return self.depth * (g.count * g.channels * g.positions * g.outputs * 2)

    def _turned_at(self, k: Expr, o: Expr) -> Expr:
        """Where the first lane of a vector of output channels from o is, at k of the chunk."""
        if self.lanes == self.panel:
            return k * self.panel + o
        panel = o // self.panel
        return panel * (self.chunk * self.panel) + k * self.panel + (o - panel * self.panel)

    def _allocations(self) -> Body:
        return [
            Alloc(self.copied, self.s.images * self.image + self.s.width),
            Alloc(self.turned, self.chunk * self.lanes),
        ]

    def _clear(self) -> Body:
        """Lanes behind the last output channel get a value."""
        g, lane, k = self.g, self.name("lane"), self.name("k")
        if self.lanes == g.outputs:
            return []
        at = self._turned_at(k, index(self.lanes - self.s.width)) + lane
        return [
            Vector(
                lane,
                self.s.width,
                (
                    For(
                        k,
                        index(0),
                        index(self.chunk),
                        (Store(self.turned, at, const(self.dtype, 0)),),
                        index(1),
                    ),
                ),
            )
        ]

    # One kernel that goes through all of k

    def _sequential(self) -> Kernel:
        """A task is some channels of a group; its totals stay with it."""
        g, s = self.g, self.s
        task, b, part, n, p0 = (self.name(x) for x in ("task", "group", "part", "n", "first"))
        images, low, high = self.name("images"), self.name("low"), self.name("high")
        loops = [task, b, part, n, p0, images, low, high]
        chunk: Body = [
            Let(images, least_of(index(s.images), self.examples - n)),
            Let(low, n * g.pixels + p0),
            Let(high, low + (images * g.pixels if s.pixels >= g.pixels else least_of(index(s.pixels), index(g.pixels) - p0))),
            *self._chunk(b, part, n, images, low, high, loops),
        ]  # fmt: skip
        body: Body = [
            Let(b, task // self.parts),
            Let(part, task - b * self.parts),
            *self._clear(),
            *self._zero(),
            For(n, index(0), self.examples, (For(p0, index(0), index(g.pixels), tuple(chunk), index(s.pixels)),), index(s.images)),
            *self._store_all(b, part, [task, b, part]),
        ]  # fmt: skip
        whole: Body = [
            *self._allocations(),
            Alloc(self.chain, self.places * self.lanes),
            Alloc(self.total, self.places * self.lanes),
            For(task, var("begin"), var("end"), tuple(body), index(1)),
        ]
        return self.kernel("contract", index(g.count * self.parts), self._work, whole)

    def _zero(self) -> Body:
        """Totals of an empty sum."""
        i, lane = self.name("i"), self.name("lane")
        zero = Store(self.total, i + lane, const(self.dtype, 0))
        stop = index(self.places * self.lanes)
        each: Body = [For(i, index(0), stop, (Vector(lane, self.s.width, (zero,)),), index(self.s.width))]
        return each if self.g.examples == 0 or not isinstance(self.g.examples, int) else []

    def _store_all(self, b: Expr, part: Expr, loops: list[Expr]) -> Body:
        """The epilogue of a task's totals."""
        g, s = self.g, self.s
        c, place, v, lane = (self.name(x) for x in ("c", "place", "v", "lane"))
        total = load(self.total, (c * g.positions + place) * self.lanes + v + lane)
        order = [*loops, c, place, v, lane]
        inner = self.finished((b, part * s.block + c), v + lane, delinearise(place, g.window), total, order)
        return self._each_result(c, s.block, place, v, lane, inner)

    def _each_result(self, c: Expr, channels: int, place: Expr, v: Expr, lane: Expr, inner: Body) -> Body:
        g, s = self.g, self.s
        if g.outputs % s.width:
            inner = [If(v + lane < g.outputs, tuple(inner))]
        body: Stmt = For(
            v, index(0), index(self.stored), (Vector(lane, s.width, tuple(inner)),), index(s.width)
        )
        body = For(place, index(0), index(g.positions), (body,), index(1))
        return [For(c, index(0), index(channels), (body,), index(1))]

    # Two kernels: sums of blocks of k, and what adds them up

    def _split(self) -> Kernel:
        g, s = self.g, self.s
        task, b, part, rest, low, high, n, images = (
            self.name(x) for x in ("task", "group", "part", "rest", "low", "high", "n", "images")
        )
        share = ceil_div(self.count, s.blocks)
        safe = greatest_of(share, index(1))
        loops = [task, b, part, rest, low, high, n, images]
        body: Body = [
            Let(rest, task // safe),
            Let(b, rest // self.parts),
            Let(part, rest - b * self.parts),
            Let(low, (task - rest * share) * (s.blocks * BLOCK)),
            Let(high, least_of(low + s.blocks * BLOCK, self.depth)),
            Let(n, low // g.pixels),
            Let(images, (high - 1) // g.pixels + 1 - n),
            *self._chunk(b, part, n, images, low, high, loops),
        ]
        whole: Body = [
            *self._allocations(),
            *self._clear(),
            For(task, var("begin"), var("end"), tuple(body), index(1)),
        ]
        return self.kernel("contract", share * (g.count * self.parts), self._work, whole)

    def _finish(self) -> Kernel:
        g, s = self.g, self.s
        task, b, c, kb, place, v, lane = (
            self.name(x) for x in ("task", "group", "c", "kb", "place", "v", "lane")
        )
        sum_ = self.name("sum", self.dtype)
        size = g.count * g.channels * g.positions * self.lanes
        at = (task * g.positions + place) * self.lanes + v + lane
        finished = self.finished(
            (b, c), v + lane, delinearise(place, g.window), sum_, [task, b, c, place, v, lane]
        )
        if g.outputs % s.width:
            finished = [If(v + lane < g.outputs, tuple(finished))]
        inner: Body = [
            Declare(sum_, const(self.dtype, 0)),
            If(self.count > 0, (Assign(sum_, load(self.total, at)),)),
            For(
                kb,
                index(1),
                self.count,
                (Assign(sum_, sum_ + load(self.total, kb * size + at)),),
                index(1),
            ),
            *finished,
        ]
        each = For(v, index(0), index(self.stored), (Vector(lane, s.width, tuple(inner)),), index(s.width))
        body: Body = [
            Let(b, task // g.channels),
            Let(c, task - b * g.channels),
            For(place, index(0), index(g.positions), (each,), index(1)),
        ]
        results = g.count * g.channels
        work = self.count * size
        return self.kernel(
            "finish", index(results), work, [For(task, var("begin"), var("end"), tuple(body), index(1))]
        )

    # A chunk of k

    def _chunk(
        self, b: Expr, part: Expr, n: Expr, images: Expr, low: Expr, high: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """k from `low` to `high`: of `images` examples from n."""
        g, s = self.g, self.s
        i = self.name("image") if s.images > 1 else index(0)
        copy = WindowCopy(
            self.padded, self.c.root.operands[0], self.c.pull, self.copied, self.dtype, s.width, self.segment,
            self.name, swapped=True,
        )  # fmt: skip
        channel = part * s.block
        if g.count > 1:
            channel = b * g.channels + channel
        named = [i] if i.op == "var" else []
        rows = index(padded_rows(g, s.pixels))
        row = self._first_row(n + i, low)
        first = row * g.strides[0]
        copies = copy.body(n + i, channel, i * self.image, first, rows, [*loops, *named])
        turns = self._turn(b, n + i, low, high, [*loops, *named])
        each: Body = [*copies, *turns]
        if named:
            each = [For(i, index(0), images, tuple(each), index(1))]
        return [*each, *self._blocks(b, part, n, low, high, loops)]

    def _first_row(self, n: Expr, low: Expr) -> Expr:
        """The first row of pixels that an example's copy is made for, of k from `low`."""
        return greatest_of(low - n * self.g.pixels, index(0)) // self.g.line

    def _turn(
        self, b: Expr, n: Expr, low: Expr, high: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """The copy [k][output channels] of one example's part of the chunk."""
        g, c = self.g, self.c
        start, stop = self.name("start"), self.name("stop")
        lets: Body = [
            Let(start, greatest_of(low - n * g.pixels, index(0))),
            Let(stop, least_of(high - n * g.pixels, index(g.pixels))),
        ]
        loops = [*loops, start, stop]
        base = n * g.pixels - low
        source = transposable(c, c.left)
        body: Body = []
        o0 = 0
        while o0 < g.outputs:
            size = min(16, self.s.width, 1 << ((g.outputs - o0).bit_length() - 1))
            together = (g.outputs - o0) // size if size == min(16, self.s.width) else 1
            o = self.name("o") if together > 1 else index(o0)
            body += self._turn_rows(b, n, source, o, size, start, stop, base, o0, together, loops)
            o0 += size * together
        return [*lets, *body]

    def _turn_rows(
        self, b: Expr, n: Expr, source: Transposable | None, o: Expr, size: int, start: Expr, stop: Expr, base: Expr, o0: int,
        together: int, loops: list[Expr],
    ) -> Body:  # fmt: skip
        """`together` times `size` output channels from o0."""
        g, c = self.g, self.c
        body: Body = []
        p, rest = self.name("p"), start
        order = [*loops, *([o] if o.op == "var" else []), p]
        free = var("free")

        def coords(at: Expr) -> tuple[Expr, ...]:
            return (n, *delinearise(at, g.out))

        if source is not None and size > 1:
            levels = Levels(order)
            split = linear(source.position((b, index(0)), free, coords(p)), free, levels)
            along = linear(source.position((b, index(0)), o, coords(p)), p, levels)
            if split is not None and along is not None and along[0] is index(1):
                slope, at = split
                rest = self.name("rest")
                body.append(Let(rest, start + (stop - start) // size * size))
                block = Transpose(
                    self.turned, normal(self._turned_at(base + p, o), levels), index(self.panel),
                    source.buffer, normal(at + slope * o, levels), slope, size,
                )  # fmt: skip
                body.append(For(p, start, rest, (block,), index(size)))
        q, lane = self.name("p"), self.name("lane") if size > 1 else index(0)
        order = [*loops, *([o] if o.op == "var" else []), rest, q, lane]
        e = widened(c, c.left.at((b, index(0)), (o + lane,), coords(q)))
        checks = c.pull.take_reports()
        put = Store(self.turned, normal(self._turned_at(base + q, o) + lane, Levels(order)), tidy(e, order))
        one: Body = [For(q, rest, stop, (*checks, put), index(1))]
        body += [Vector(lane, size, tuple(one))] if size > 1 else one
        if together > 1:
            return [For(o, index(o0), index(o0 + size * together), tuple(body), index(size))]
        return body

    def _blocks(
        self, b: Expr, part: Expr, n: Expr, low: Expr, high: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """The blocks of k that meet the chunk: every tile."""
        g, s = self.g, self.s
        block, start, stop = self.name("block"), self.name("start"), self.name("stop")
        c, v, k0 = (
            self.name("c"),
            self.name("v"),
            self.name("k") if not s.whole and g.window[0] > 1 else index(0),
        )
        lets: Body = [Let(start, greatest_of(block, low)), Let(stop, least_of(block + BLOCK, high))]
        order = [*loops, block, start, stop, v, c, *([k0] if k0.op == "var" else [])]
        body = self._tile(b, part, n, low, block, start, stop, v, c, k0, order)
        if k0.op == "var":
            body = [For(k0, index(0), index(g.window[0]), tuple(body), index(1))]
        body = [For(c, index(0), index(s.block), tuple(body), index(s.channels))]
        body = [For(v, index(0), index(self.lanes), tuple(body), index(s.vectors * s.width))]
        return [For(block, low // BLOCK * BLOCK, high, (*lets, *body), index(BLOCK))]

    def _element(self, at: Sequence[Expr], steps: Sequence[int]) -> Expr:
        """Where an element of the copy is, `steps` times `at` from the first one."""
        return linearise([i * s for i, s in zip(at, steps, strict=True)], self.padded.out)

    def _tile(
        self, b: Expr, part: Expr, n: Expr, low: Expr, block: Expr, start: Expr, stop: Expr,
        v: Expr, c: Expr, k0: Expr, loops: list[Expr],
    ) -> Body:  # fmt: skip
        """The terms of k from `start` to `stop`, in one block: s.channels from c, all places or those of one k0."""
        g, s = self.g, self.s
        lane = self.name("lane")
        places, offsets = [], []
        for extra in range(s.channels):
            for first in range(g.window[0]) if s.whole else (k0,):
                for inner in itertools.product(*(range(d) for d in g.window[1:])):
                    at = (first if isinstance(first, Expr) else index(first), *map(index, inner))
                    places.append((c + extra) * g.positions + linearise(at, g.window))
                    offsets.append((c + extra) * self.segment + self._element(at, g.reach))
        sums = [[self.name("sum", self.dtype) for _ in range(s.vectors)] for _ in places]
        image, first_pixel, last_pixel, p = (self.name(x) for x in ("image", "from", "to", "p"))
        outer = image if s.images > 1 else index(0)
        line, low_, high_, base, row = (self.name(x) for x in ("line", "low", "high", "base", "row"))
        width = g.out[-1]
        # A line of pixels, of those from first_pixel to last_pixel.
        at = delinearise(line, g.out[:-1]) if len(g.out) > 1 else ()
        if at and at[0].op != "const":
            at = (at[0] - row, *at[1:])
        down = self._element((*at, index(0) if at else -row), g.strides)
        k = (n + outer) * g.pixels + line * width + p - low
        step: Body = []
        panel = v * self.chunk + k * self.panel
        vectors = [load(self.turned, panel + (j * s.width) + lane) for j in range(s.vectors)]
        order = [*loops, lane, image, first_pixel, last_pixel, row, line, low_, high_, base, p]
        for mine, offset in zip(sums, offsets, strict=True):
            a = load(self.copied, normal(base + offset + p * g.strides[-1], Levels(order)))
            step += [
                Assign(t, multiply_add(tidy(x, order), a, t)) for t, x in zip(mine, vectors, strict=True)
            ]
        pixels = (
            Let(low_, greatest_of(first_pixel - line * width, index(0))),
            Let(high_, least_of(last_pixel - line * width, index(width))),
            Let(base, normal(outer * self.image + down, Levels(order))),
            For(p, low_, high_, tuple(step), index(1)),
        )
        lines: Body = [For(line, first_pixel // width, (last_pixel - 1) // width + 1, pixels, index(1))]
        if len(g.out) == 1:
            lines = [Let(line, index(0)), *pixels]
        span: Body = [
            Let(first_pixel, greatest_of(start - (n + outer) * g.pixels, index(0))),
            Let(last_pixel, least_of(stop - (n + outer) * g.pixels, index(g.pixels))),
            Let(row, self._first_row(n + outer, low)),
            *lines,
        ]
        if s.images > 1:
            span = [For(image, start // g.pixels - n, (stop - 1) // g.pixels + 1 - n, tuple(span), index(1))]
        flat = [
            (place * self.lanes + v + (j * s.width) + lane, t)
            for place, mine in zip(places, sums, strict=True)
            for j, t in enumerate(mine)
        ]
        region: Body = [Declare(t, const(self.dtype, 0)) for _, t in flat]
        if s.blocks:
            size = g.count * g.channels * g.positions * self.lanes
            base = block // BLOCK * size + ((b * g.channels + part * s.block) * g.positions) * self.lanes
            region += [*span, *(Store(self.total, base + at, t) for at, t in flat)]
            return [Vector(lane, s.width, tuple(region))]
        resumed = [Assign(t, load(self.chain, at)) for at, t in flat]
        region += [If(start > block, tuple(resumed)), *span]
        put = [Store(self.total, at, t) for at, t in flat]
        add = [Store(self.total, at, load(self.total, at) + t) for at, t in flat]
        wait = [Store(self.chain, at, t) for at, t in flat]
        done = If(equal(block, 0), tuple(put), tuple(add))
        whole = stop >= least_of(block + BLOCK, self.depth)
        region.append(If(whole, (done,), tuple(wait)))
        return [Vector(lane, s.width, tuple(region))]
