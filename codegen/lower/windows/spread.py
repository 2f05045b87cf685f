"""Convolutions of a dilated x, as the gradient by the input of a strided one is: phases of the result.

Pixels of the result that lie a dilation apart meet the same positions of the window; at all others they meet the zeros
between elements. So each phase is a convolution without dilation with a part of the window, and its terms of zeros are
left out. All phases read one padded copy of x, and count their pixels alike: as the first one, which has the most. So they are
turns of one loop, over tables of where their terms are.

That changes no bit while weights are finite, but for one case: a sum that is -0.0 (of products too small for the
format) would have become +0.0 by adding +0.0. As only a total that is -0.0 shows it, a tile with
such a total is summed again with all terms, as are strips with infinite or NaN weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from graphc.codegen.expr import Expr, binary, const, equal, index, load, make, not_equal, select, to_bits, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Store, Vector
from graphc.codegen.lower.affine import Levels, greatest_of, least_of, logical_and, normal, tidy
from graphc.codegen.lower.contraction import BLOCK, Contraction, widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body
from graphc.codegen.lower.windows.geometry import Geometry, Ints
from graphc.codegen.lower.windows.kernels import WindowKernels
from graphc.codegen.lower.windows.schedule import WindowSchedule, cycles
from graphc.codegen.lower.windows.schedule import choose as choose_windows
from graphc.ir.types import BOOL, I64, DType

MOST_PHASES = 8


class SpreadSchedule(NamedTuple):
    """literal: values of the extents that the kernels are made for. tile: the schedule of each phase."""

    literal: tuple[tuple[str, int], ...]
    tile: WindowSchedule


@dataclass(frozen=True)
class Phases:
    """The phases of a convolution.

    geometry: of the copy that they share: of the first phase's pixels, with a window of all elements that one of them meets.
    counts: of positions of the window that each residue of pixels meets, for each dimension.
    """

    geometry: Geometry
    counts: tuple[Ints, ...]

    @property
    def positions(self) -> list[int]:
        """How many positions of the window each phase meets."""
        return [math.prod(p) for p in itertools.product(*self.counts)]


def phases_of(g: Geometry) -> Phases | None:
    """The phases of a convolution of a dilated x; None if it is none, or of another kind."""
    total = math.prod(g.spread)
    if total == 1 or total > MOST_PHASES or any(s != 1 for s in (*g.strides, *g.reach)):
        return None
    out, low, window, counts = [], [], [], []
    for spread, size, positions, before in zip(g.spread, g.out, g.window, g.low, strict=True):
        firsts = [(before - a) % spread for a in range(spread)]
        counts.append(tuple(-(-(positions - k) // spread) if positions > k else 0 for k in firsts))
        # What the first pixel of a phase meets first, counted from the first element of x.
        met = [
            ((a + k - before) // spread, n)
            for a, (k, n) in enumerate(zip(firsts, counts[-1], strict=True))
            if n
        ]
        start = min(at for at, _ in met)
        low.append(-start)
        window.append(max(at + n for at, n in met) - start)
        out.append(-(-size // spread))
    ones = (1,) * len(out)
    shared = replace(
        g, window=tuple(window), out=tuple(out), strides=ones, low=tuple(low), spread=ones, reach=ones
    )
    return Phases(shared, tuple(counts))


def choose(
    g: Geometry, examples: int, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...]
) -> tuple[float, SpreadSchedule] | None:
    """The cheapest schedule for about so many examples, with its cycles; None if there is none."""
    phases = phases_of(g)
    if phases is None:
        return None
    shared, blocks = phases.geometry, -(-g.depth // BLOCK)
    best: tuple[float, SpreadSchedule] | None = None
    for rows in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16):
        if rows > g.outputs:
            break
        found = choose_windows(shared, examples, dtype, vector_bits, literal, rows, blocks)
        if found is None:
            continue
        whole = cycles(shared, found[1], examples, dtype, blocks)
        cost = whole * sum(phases.positions) / shared.positions
        if best is None or cost < best[0]:
            best = cost, SpreadSchedule(literal, found[1])
    return best


class SpreadKernels(WindowKernels):
    """Builds the kernels: one that packs weights and writes tables, and the main one."""

    registers = False  # its sums are of several lists of terms

    def __init__(
        self, c: Contraction, g: Geometry, schedule: SpreadSchedule, results: Sequence[Buffer]
    ) -> None:
        phases = phases_of(g)
        assert phases is not None, "a schedule for phases is for a dilated operand"
        super().__init__(c, phases.geometry, schedule.tile, results)
        s, self.whole, self.phases = schedule.tile, g, phases
        self.number = math.prod(g.spread)
        self.phase = self.name("phase")
        # A phase's tables: the terms that are not of zeros, then all terms.
        self.counted = max(phases.positions) * g.channels
        self.entries = self.counted + g.depth
        self.bounds_step = -(-g.depth // BLOCK) + 1
        self.scratch.clear()
        strips = g.count * self.strips
        self.weights = self.new_scratch("weights", strips * g.depth * s.rows, self.dtype)
        self.flags = self.new_scratch("flags", strips, I64)
        self.offsets = self.new_scratch("offsets", self.number * self.entries, I64)
        self.places = self.new_scratch("places", self.number * self.entries, I64)
        self.bounds = self.new_scratch("bounds", self.number * self.bounds_step, I64)
        # Behind the copy of each example is a segment of zeros.
        self.image += self.segment
        self.copy_size += s.images * self.segment
        if s.images == 1:
            self.copy_size += s.block * s.width

    @property
    def _work(self) -> Expr:
        g = self.whole
        terms = sum(self.phases.positions) * self.g.pixels * g.channels
        return dim_expr(g.examples) * (g.count * g.outputs * (terms * 2 + g.pixels * 2))

    # Tables

    def _packed(self, c: Expr, ks: Sequence[Expr]) -> Expr:
        """Which of a strip's weights that of channel c at position ks of the window is: those of a phase lie together,
        so that they are read in order. Positions of a phase are alike modulo the dilation."""
        whole = self.whole
        total, before, inside, block = index(0), index(1), index(0), index(1)
        for d, (k, spread, size) in enumerate(zip(ks, whole.spread, whole.window, strict=True)):
            first, turn = k % spread, k // spread
            count = (size + (spread - 1) - first) // spread
            smaller = first * (size // spread) + least_of(first, index(size % spread))
            total = total + before * smaller * math.prod(whole.window[d + 1 :])
            before, inside, block = before * count, inside * count + turn, block * count
        return total * whole.channels + c * block + inside

    def _tables(self, phase: Expr) -> Body:
        """Offsets in the copy and places among the weights of a phase's terms, and how many come before each block."""
        whole, g, rows = self.whole, self.g, self.s.rows
        pixel = delinearise(phase, whole.spread)
        c, *ks = [self.name("k") for _ in (whole.channels, *whole.window)]
        counter, every = self.name("counter"), self.name("every")
        base = phase * self.entries
        meets: Expr = const(BOOL, True)
        down: list[Expr] = []
        for k, a, spread, low, shared in zip(ks, pixel, whole.spread, whole.low, g.low, strict=True):
            # Of x is position k of the window where a + k - low is a multiple of the dilation: this one, from the copy's start.
            element = k + a + (shared * spread - low)
            turns = -(-max(0, low - shared * spread) // spread) * spread
            meets = logical_and(meets, equal((element + turns) % spread, 0))
            down.append((element + turns) // spread - turns // spread)
        offset = (c * g.inner + linearise(down[1:], g.window[1:])) * self.segment + down[0] * g.line
        place = self._packed(c, ks) * rows
        counted: Body = [
            Store(self.offsets, base + counter, offset),
            Store(self.places, base + counter, place),
            Store(self.offsets, base + self.counted + every, offset),
            Assign(counter, counter + 1),
        ]
        zeros: Body = [Store(self.offsets, base + self.counted + every, index(self.image - self.segment))]
        body: Body = [
            Let(every, linearise((c, *ks), (whole.channels, *whole.window))),
            If(
                equal(every % BLOCK, 0),
                (Store(self.bounds, phase * self.bounds_step + every // BLOCK, counter),),
            ),
            Store(self.places, base + self.counted + every, place),
            If(meets, tuple(counted), tuple(zeros)),
        ]
        for v, d in reversed(list(zip((c, *ks), (whole.channels, *whole.window), strict=True))):
            body = [For(v, index(0), index(d), tuple(body), index(1))]
        last = Store(self.bounds, phase * self.bounds_step + (self.bounds_step - 1), counter)
        return [Declare(counter, index(0)), *body, last]

    def _pack(self) -> Kernel:
        """Strips of weights, a strip a task, with a flag each; and a task for the tables of each phase."""
        g, rows, c = self.whole, self.s.rows, self.c
        strips = g.count * self.strips
        task, b, first, lane, phase = (self.name(n) for n in ("task", "group", "first", "row", "phase"))
        depth = [self.name("k") for _ in (g.channels, *g.window)]
        width = 1 << (rows - 1).bit_length() if rows > 1 else 2
        r = least_of(first + lane, index(g.outputs - 1))
        loops = [task, b, first, lane, *depth]
        e = tidy(widened(c, c.left.at((b, index(0)), (r,), tuple(depth))), loops)
        checks = c.pull.take_reports()
        place = normal((task * g.depth + self._packed(depth[0], depth[1:])) * rows + lane, Levels(loops))
        bad, value = self.name("bad", I64), self.name("value", c.accumulator)
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
        low = greatest_of(begin - strips, index(0))
        tables = For(phase, low, end - strips, tuple(self._tables(phase)), index(1))
        total = strips + self.number
        return self.kernel("pack", index(total), index(total * g.depth * rows * 4), [packed, tables])

    # The main kernel

    def _copies(self, b: Expr, n0: Expr, images: Expr, row: Expr, loops: list[Expr]) -> Body:
        """The copy, and its zeros."""
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
        return [*super()._copies(b, n0, images, row, loops), *body]

    def _strip(self, tiles: For) -> Body:
        return [For(self.phase, index(0), index(self.number), (tiles,), index(1))]

    def _position(self, pixel: Expr) -> tuple[Expr, ...]:
        first = delinearise(self.phase, self.whole.spread)
        inside = delinearise(pixel, self.g.out)
        return tuple(p * s + a for p, s, a in zip(inside, self.whole.spread, first, strict=True))

    def _there(self, pixel: Expr) -> Expr | None:
        """Later phases may have a pixel less in a dimension than the first one."""
        there = super()._there(pixel)
        whole = self.whole
        for at, size, spread in zip(self._position(pixel), whole.out, whole.spread, strict=True):
            if size % spread:
                there = at < size if there is None else logical_and(there, at < size)
        return there

    def _sum(self, strip: Expr, bases: list[Expr]) -> Body:
        whole, s = self.whole, self.s
        start, lane, block, stop, k = (self.name(n) for n in ("weights", "lane", "block", "stop", "k"))
        again, attempt, low, high, table = (
            self.name(n) for n in ("again", "attempt", "low", "high", "table")
        )
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
        bound = self.phase * self.bounds_step + block // BLOCK
        lets: Body = [
            Let(stop, least_of(block + BLOCK, index(whole.depth))),
            Let(low, table + select(equal(attempt, 0), load(self.bounds, bound), self.counted + block)),
            Let(high, table + select(equal(attempt, 0), load(self.bounds, bound + 1), self.counted + stop)),
        ]
        turn: Body = [*lets, Vector(lane, s.width, tuple(region))]
        all_blocks = For(block, index(0), index(whole.depth), tuple(turn), index(BLOCK))
        scale: Body = [Let(start, strip * (whole.depth * s.rows)), Let(table, self.phase * self.entries)]
        if not self.dtype.is_float:
            return [*scale, Let(attempt, index(0)), all_blocks]
        one: Body = [all_blocks, Vector(lane, s.width, tuple(self._negative_zero(again, lane, len(flat))))]
        first = load(self.flags, strip)
        attempts = For(attempt, first, index(2), (If(not_equal(again, 0), tuple(one)),), index(1))
        return [*scale, Declare(again, index(1)), attempts]

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
