"""Convolutions of a dilated x, as the gradient by the input of a strided one is: a kernel for each phase of the result.

Pixels of the result that lie a dilation apart meet the same positions of the window; at all others they meet the zeros
between elements. So each phase is a convolution without dilation with a part of the window (its own geometry), and its
terms of zeros are left out. That changes no bit while weights are finite, but for one case: a sum that is -0.0
(of products too small for the format) would have become +0.0 by adding +0.0. As only a total that is -0.0 shows it, a tile with
such a total is summed again with all terms, as are strips with infinite or NaN weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from graphc.codegen.expr import Expr, binary, const, equal, index, load, make, not_equal, select, to_bits, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Kernel, Let, Store, Vector
from graphc.codegen.lower.affine import Levels, greatest_of, least_of, normal, tidy
from graphc.codegen.lower.contraction import BLOCK, Contraction, widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body
from graphc.codegen.lower.windows.geometry import Geometry, Ints
from graphc.codegen.lower.windows.kernels import WindowKernels
from graphc.codegen.lower.windows.schedule import WindowSchedule, cycles
from graphc.codegen.lower.windows.schedule import choose as choose_windows
from graphc.ir.types import BOOL, I64, DType

MOST_PHASES = 8


class SpreadSchedule(NamedTuple):
    """literal: values of the extents that the kernels are made for. phases: a schedule each, all of as many rows."""

    literal: tuple[tuple[str, int], ...]
    phases: tuple[WindowSchedule, ...]


@dataclass(frozen=True)
class Phase:
    """One phase: its first pixel, the first position of the window that it meets, and its own geometry.

    It meets `positions` positions, which may be none; then its geometry's window is not read.
    """

    pixel: Ints
    first: Ints
    counts: Ints
    geometry: Geometry

    @property
    def positions(self) -> int:
        total = 1
        for n in self.counts:
            total *= n
        return total


def phases_of(g: Geometry) -> list[Phase] | None:
    """The phases of a convolution of a dilated x; None if it is none, or of another kind."""
    total = 1
    for s in g.spread:
        total *= s
    if total == 1 or total > MOST_PHASES or any(s != 1 for s in (*g.strides, *g.reach)):
        return None
    found = []
    for pixel in itertools.product(*(range(s) for s in g.spread)):
        out, first, counts, low = [], [], [], []
        for a, spread, size, window, before in zip(pixel, g.spread, g.out, g.window, g.low, strict=True):
            out.append(-(-(size - a) // spread) if size > a else 0)
            k = (before - a) % spread
            first.append(k)
            counts.append(-(-(window - k) // spread) if window > k else 0)
            low.append(-((a + k - before) // spread))
        if 0 in out:
            continue
        ones = (1,) * len(out)
        met = tuple(max(1, n) for n in counts)
        own = replace(g, window=met, out=tuple(out), strides=ones, low=tuple(low), spread=ones, reach=ones)
        found.append(Phase(pixel, tuple(first), tuple(counts), own))
    return found


def choose(
    g: Geometry, examples: int, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...]
) -> tuple[float, SpreadSchedule] | None:
    """The cheapest schedule for about so many examples, with its cycles; None if there is none."""
    phases = phases_of(g)
    if phases is None:
        return None
    best: tuple[float, SpreadSchedule] | None = None
    blocks = -(-g.depth // BLOCK)
    heavy = max(phases, key=lambda p: p.positions)
    for rows in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16):
        if rows > g.outputs:
            break
        found = choose_windows(heavy.geometry, examples, dtype, vector_bits, literal, rows, blocks)
        if found is None:
            continue
        # All are cut as the one with the most terms is.
        first = found[1]
        cuts = -(-vectors_of(heavy, first) // first.block)
        each = [first._replace(block=-(-vectors_of(p, first) // cuts)) for p in phases]
        cost = sum(cycles(p.geometry, s, examples, dtype, blocks) for p, s in zip(phases, each, strict=True))
        if best is None or cost < best[0]:
            best = cost, SpreadSchedule(literal, tuple(each))
    return best


def vectors_of(phase: Phase, s: WindowSchedule) -> int:
    """Vectors of an example's pixels."""
    return -(-phase.geometry.pixels // s.width)


class PhaseKernels(WindowKernels):
    """The main kernel of one phase. weights, flags: of all phases, by strip."""

    def __init__(
        self, c: Contraction, whole: Geometry, phase: Phase, s: WindowSchedule, results: Sequence[Buffer], weights: Buffer,
        flags: Buffer, scratch: list[Scratch], number: int,
    ) -> None:  # fmt: skip
        super().__init__(c, phase.geometry, s, results)
        self.whole, self.phase, self.number = whole, phase, number
        self.weights, self.flags = weights, flags
        self.scratch = scratch
        self.less = phase.positions * whole.channels  # terms that are not of zeros
        entries = self.less + whole.depth
        self.offsets = self.new_scratch(f"offsets{number}", entries, I64)
        self.places = self.new_scratch(f"places{number}", entries, I64)
        # Behind the copy of each example is a segment of zeros.
        self.image += self.segment
        self.copy_size += s.images * self.segment
        if s.images == 1:
            self.copy_size += s.block * s.width

    def share(self, host: PhaseKernels, blocks: int) -> None:
        """Take the names and memory of another phase, and so many blocks of an image, the last ones maybe empty."""
        self._names, self.copied, self.tile = host._names, host.copied, host.tile
        self.blocks = blocks

    def tables(self) -> Body:
        """Offsets in the copy and places among the weights: of the terms that count, then of all terms."""
        whole, phase, g = self.whole, self.phase, self.g
        c, *js = [self.name("c"), *(self.name("j") for _ in g.window)]
        ks = [j * s + k for j, s, k in zip(js, whole.spread, phase.first, strict=True)]
        k = linearise((c, *ks), (whole.channels, *whole.window))
        down, *inner = js
        offset = (c * g.inner + linearise(inner, g.window[1:])) * self.segment + down * g.line
        short = linearise((c, *js), (whole.channels, *g.window))
        loops = [c, *js]

        def nest(body: Body, sizes: Sequence[int]) -> Body:
            for v, stop in reversed(list(zip(loops, sizes, strict=True))):
                body = [For(v, index(0), index(stop), tuple(body), index(1))]
            return body

        def at(e: Expr) -> Expr:
            return normal(e, Levels(loops))

        rows = self.s.rows
        counted: Body = [
            Store(self.offsets, at(short), at(offset)),
            Store(self.places, at(short), at(k * rows)),
            Store(self.offsets, at(k + self.less), at(offset)),
        ]
        every = self.name("k")
        zeros = self.image - self.segment
        fill: Body = [
            Store(self.offsets, every + self.less, index(zeros)),
            Store(self.places, every + self.less, every * rows),
        ]
        body: Body = [For(every, index(0), index(whole.depth), tuple(fill), index(1))]
        return [*body, *nest(counted, (whole.channels, *phase.counts))] if phase.positions else body

    def _copies(self, b: Expr, n0: Expr, images: Expr, row: Expr, loops: list[Expr]) -> Body:
        """The copy, and its zeros; nothing is copied where only zeros are met."""
        i, at, lane = self.name("image"), self.name("at"), self.name("lane")
        zero = Store(self.copied, at + lane, const(self.dtype, 0))
        start = i * self.image + (self.image - self.segment)
        stop = start + self.segment
        if self.s.images == 1:
            stop = index(self.copy_size - self.s.width)
        zeros: Body = [
            For(at, start, stop, (Vector(lane, self.s.width, (zero,)),), index(self.s.width)),
        ]
        body: Body = [For(i, index(0), images, tuple(zeros), index(1))]
        return [*super()._copies(b, n0, images, row, loops), *body] if self.phase.positions else body

    def _position(self, pixel: Expr) -> tuple[Expr, ...]:
        inside = delinearise(pixel, self.g.out)
        return tuple(p * s + a for p, s, a in zip(inside, self.whole.spread, self.phase.pixel, strict=True))

    def _sum(self, strip: Expr, bases: list[Expr]) -> Body:
        whole, s = self.whole, self.s
        start, lane, block, stop, k = (self.name(n) for n in ("weights", "lane", "block", "stop", "k"))
        again, attempt, low, high = (self.name(n) for n in ("again", "attempt", "low", "high"))
        sums = [[self.name("sum", self.dtype) for _ in bases] for _ in range(s.rows)]
        offset, place = load(self.offsets, k), load(self.places, k)
        xs = [load(self.copied, base + offset + lane) for base in bases]
        step: Body = []
        for i in range(s.rows):
            a = load(self.weights, start + place + i)
            step += [Assign(t, multiply_add(a, x, t)) for t, x in zip(sums[i], xs, strict=True)]
        flat = [t for row in sums for t in row]
        places = [(index(i * s.width) + lane, t) for i, t in enumerate(flat)]
        put = [Store(self.tile, at, t) for at, t in places]
        add = [Store(self.tile, at, load(self.tile, at) + t) for at, t in places]
        keep = If(equal(block, 0), tuple(put), tuple(add))
        region: Body = [
            *(Declare(t, const(self.dtype, 0)) for t in flat),
            For(k, low, high, tuple(step), index(1)),
        ]
        region.append(keep)
        lets: Body = [
            Let(stop, least_of(block + BLOCK, index(whole.depth))),
            Let(low, select(equal(attempt, 0), self._terms_before(block), self.less + block)),
            Let(high, select(equal(attempt, 0), self._terms_before(stop), self.less + stop)),
        ]
        turn: Body = [*lets, Vector(lane, s.width, tuple(region))]
        all_blocks = For(block, index(0), index(whole.depth), tuple(turn), index(BLOCK))
        scale = Let(start, strip * (whole.depth * s.rows))
        if not self.dtype.is_float:
            return [scale, Let(attempt, index(0)), all_blocks]
        one: Body = [all_blocks, Vector(lane, s.width, tuple(self._negative_zero(again, lane, len(flat))))]
        first = load(self.flags, strip)
        attempts = For(attempt, first, index(2), (If(not_equal(again, 0), tuple(one)),), index(1))
        return [scale, Declare(again, index(1)), attempts]

    def _negative_zero(self, again: Expr, lane: Expr, vectors: int) -> Body:
        """Sets `again` to 1 where a total of the tile is -0.0, else to 0. Sums of blocks that are -0.0 matter nowhere else."""
        i = self.name("i")
        bits = to_bits(load(self.tile, i * self.s.width + lane))
        some, one, none = self.name("some", bits.dtype), const(bits.dtype, 1), const(bits.dtype, 0)
        here = equal(bits, const(bits.dtype, 1 << (bits.dtype.bits - 1)))
        found = Assign(some, binary("or", some, select(here, one, none)))
        every = make("lanes", BOOL, (not_equal(some, none),), "or")
        return [
            Declare(some, none),
            For(i, index(0), index(vectors), (found,), index(1)),
            Assign(again, select(every, index(1), index(0))),
        ]

    def _terms_before(self, k: Expr) -> Expr:
        """How many of the terms that count come before k."""
        whole, phase = self.whole, self.phase
        channel = k // whole.positions
        inside = k - channel * whole.positions
        total = channel * phase.positions
        for js in itertools.product(*(range(n) for n in phase.counts)):
            at = 0
            for j, s, first, size in zip(js, whole.spread, phase.first, whole.window, strict=True):
                at = at * size + j * s + first
            total = total + select(inside > at, index(1), index(0))
        return total


class SpreadKernels:
    """Builds the kernels: one that packs weights and writes tables, and one for each phase."""

    def __init__(
        self, c: Contraction, g: Geometry, schedule: SpreadSchedule, results: Sequence[Buffer]
    ) -> None:
        self.c, self.g = c, g
        phases = phases_of(g)
        assert phases is not None
        self.rows = schedule.phases[0].rows
        self.strips = -(-g.outputs // self.rows)
        strips = g.count * self.strips
        self.weights = Buffer("weights", c.accumulator, "scratch")
        self.flags = Buffer("flags", I64, "scratch")
        self.scratch = [
            Scratch(self.weights, c.accumulator, strips * g.depth * self.rows),
            Scratch(self.flags, I64, strips),
        ]
        self.phases = [
            PhaseKernels(c, g, p, s, results, self.weights, self.flags, self.scratch, i)
            for i, (p, s) in enumerate(zip(phases, schedule.phases, strict=True))
        ]
        blocks = max(p.blocks for p in self.phases)
        for p in self.phases:
            p.share(self.phases[0], blocks)

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        return (self._pack(), self._contract()), tuple(self.scratch)

    def _contract(self) -> Kernel:
        """A task does all phases of its pixels one after the other, so that they meet in the caches."""
        host, g = self.phases[0], self.g
        task = host.name("task")
        body: Body = []
        for p in self.phases:
            body += p.task(task)
        whole: Body = [
            Alloc(host.copied, max(p.copy_size for p in self.phases)),
            Alloc(host.tile, max(p.s.rows * p.s.vectors * p.s.width for p in self.phases)),
            For(task, var("begin"), var("end"), tuple(body), index(1)),
        ]
        terms = sum(p.less * p.g.pixels for p in self.phases)
        work = dim_expr(g.examples) * (g.count * g.outputs * (terms * 2 + g.pixels * 2))
        return host.kernel("contract", host.tasks, work, whole)

    def _pack(self) -> Kernel:
        """Strips of weights, a strip a task, with a flag each; and a task for the tables of each phase."""
        g, rows, c = self.g, self.rows, self.c
        host = self.phases[0]
        strips = g.count * self.strips
        task, b, first, lane = (host.name(n) for n in ("task", "group", "first", "row"))
        depth = [host.name("k") for _ in (g.channels, *g.window)]
        flat = linearise(depth, (g.channels, *g.window))
        width = 1 << (rows - 1).bit_length() if rows > 1 else 2
        r = least_of(first + lane, index(g.outputs - 1))
        loops = [task, b, first, lane, *depth]
        e = tidy(widened(c, c.left.at((b, index(0)), (r,), tuple(depth))), loops)
        checks = c.pull.take_reports()
        place = normal((task * g.depth + flat) * rows + lane, Levels(loops))
        bad, value = host.name("bad", I64), host.name("value", c.accumulator)
        body: Body = [*checks, Let(value, e), If(lane < rows, (Store(self.weights, place, value),))]
        if c.accumulator.is_float:
            # Neither infinity nor NaN less itself is zero.
            body.append(Assign(bad, select(equal(value - value, 0), bad, index(1))))
        for v, d in reversed(list(zip(depth, (g.channels, *g.window), strict=True))):
            body = [For(v, index(0), index(d), tuple(body), index(1))]
        found = make("lanes", BOOL, (not_equal(bad, 0),), "or")
        flag = Store(self.flags, task, select(found, index(1), index(0)))
        begin, end = var("begin"), var("end")
        lets: Body = [Let(b, task // self.strips), Let(first, (task - b * self.strips) * rows)]
        copy = Vector(lane, width, (Declare(bad, index(0)), *body, flag))
        packed = For(task, begin, least_of(end, index(strips)), (*lets, copy), index(1))
        whole: Body = [packed]
        for i, p in enumerate(self.phases):
            one = host.name("table")
            low = greatest_of(begin, index(strips + i))
            high = least_of(end, index(strips + i + 1))
            whole.append(For(one, low, high, tuple(p.tables()), index(1)))
        total = strips + len(self.phases)
        return host.kernel("pack", index(total), index(total * g.depth * rows * 4), whole)
