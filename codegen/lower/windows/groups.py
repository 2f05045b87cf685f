"""Gradients by the kernel of convolutions with many groups of few channels (depthwise): lanes over groups.

Read with window and result exchanged, as in gradient.py: k runs over (example, pixel), the results of a group are a
small image for each of its inputs and outputs. Neighbouring groups have the same sums of different channels, so a task
takes as many groups as a vector has lanes and some blocks of 256 k. It turns the part of x that they need into a padded
copy [input][row][column][group], and that of the other operand into [output][k][group], by squares in registers.
Then every place of the results is an accumulator, and a pixel is a load for each of its places, and one for its
outputs. A second kernel adds up the sums of blocks.

The same goes for one group with few outputs and many inputs (`shared`): its inputs are taken for groups, all of which meet the same
other operand, one element for all lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from graphc.codegen.expr import Expr, cast, const, index, load, logical_and, var
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
    Transpose,
    Vector,
)
from graphc.codegen.lower.affine import Levels, ceil_div, greatest_of, least_of, linear, normal, tidy
from graphc.codegen.lower.contraction import BLOCK, Contraction, widened
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body, KernelBuilder
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.codegen.lower.windows.schedule import registers
from graphc.ir.types import Dim, DType

COPY_BYTES = 640 * 1024  # of x and the other operand, in a task
MOST_OUTPUTS = 16  # of a group: from there on its own outputs fill the lanes
LEAST_GROUPS = 4
SQUARE = 16  # transposed at once, at most
TASKS = 8  # that there should be for some threads


class GroupSchedule(NamedTuple):
    """How the results are computed.

    literal: values of the extents that the kernel is made for; it serves no others.
    width: groups of a task, a lane each.
    outputs: of a tile. taps: positions of the window's last dimension in a tile. whole: with all its rows.
    blocks: of 256 k in a task.
    shared: groups are the inputs of a single one.
    """

    literal: tuple[tuple[str, int], ...]
    width: int
    outputs: int
    taps: int
    whole: bool
    blocks: int
    shared: bool = False


class Plane(NamedTuple):
    """The geometry as two dimensions, of a line where there is one only."""

    flat: bool
    window: tuple[int, int]
    out: tuple[int, int]
    image: tuple[int, int]
    strides: tuple[int, int]
    reach: tuple[int, int]
    low: tuple[int, int]

    @property
    def columns(self) -> int:
        """Columns of the padded copy; of one dimension, its positions are rows."""
        return 1 if self.flat else _covered(self, 1)

    @property
    def line(self) -> int:
        """Pixels in a row."""
        return 1 if self.flat else self.out[1]

    @property
    def margin(self) -> int:
        """Rows that an example needs over those of its pixels, a stride each."""
        d = 1 if self.flat else 0
        return max(0, (self.window[d] - 1) * self.reach[d] + 1 - self.strides[d])

    @property
    def step(self) -> int:
        """Rows of the copy from one row of pixels to the next."""
        return self.strides[1 if self.flat else 0]


def _covered(p: Plane, d: int) -> int:
    return (p.out[d] - 1) * p.strides[d] + (p.window[d] - 1) * p.reach[d] + 1


def plane_of(g: Geometry) -> Plane:
    """The geometry of one or two dimensions."""
    if len(g.out) == 2:
        parts = (g.window, g.out, g.image, g.strides, g.reach, g.low)
        return Plane(False, *((p[0], p[1]) for p in parts))
    first = zip((1, 1, 1, 1, 1, 0), (g.window, g.out, g.image, g.strides, g.reach, g.low), strict=True)
    return Plane(True, *((one, p[0]) for one, p in first))


def copied_rows(g: Geometry, blocks: int) -> int:
    """Rows of a task's copy of x, for each input of a group."""
    p, k = plane_of(g), blocks * BLOCK
    return ((k - 2) // p.line + 2) * p.step + ((k - 2) // g.pixels + 2) * p.margin


def inputs_as_groups(g: Geometry) -> Geometry:
    """The geometry of a single group as that of as many groups as it has inputs."""
    return replace(g, count=g.channels, channels=1)


def choose(
    g: Geometry, examples: int, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...], shared: bool = False
) -> tuple[float, GroupSchedule] | None:  # fmt: skip
    """The cheapest schedule for about so many examples, with its cycles; None if there is none."""
    if shared:
        if g.count > 1:
            return None
        g = inputs_as_groups(g)
    plain = len(g.out) <= 2 and all(d == 1 for d in g.spread)
    if g.count < LEAST_GROUPS or g.outputs >= MOST_OUTPUTS or not plain:
        return None
    full = max(1, vector_bits // dtype.bits)
    width = full
    while width > g.count:
        width //= 2
    p = plane_of(g)
    room = registers(vector_bits) - 2
    tiles = []
    for outputs in [d for d in range(1, g.outputs + 1) if g.outputs % d == 0]:
        room = registers(vector_bits) - 1 - outputs
        if g.positions * outputs <= room:
            tiles.append((outputs, p.window[1], True))
        elif outputs <= room:
            pieces = -(-p.window[1] * outputs // room)
            tiles.append((outputs, min(room // outputs, -(-p.window[1] // pieces)), False))
    best: tuple[float, GroupSchedule] | None = None
    lane_blocks = -(-g.count // width)
    depth = examples * g.pixels
    for blocks in (1, 2, 4, 8, 16):
        x = g.channels * copied_rows(g, blocks) * p.columns * width
        y = g.outputs * blocks * BLOCK * (1 if shared else width)
        if (x + y) * dtype.bits // 8 > COPY_BYTES:
            break
        tasks = lane_blocks * max(1, -(-depth // (blocks * BLOCK)))
        for outputs, taps, whole in tiles:
            # A vector turned costs as much as six of terms, a line to look at as some more.
            rows = taps * (p.window[0] if whole else 1)
            step = max(rows * outputs, rows + outputs * (0.5 if shared else 1), 4)
            terms = g.channels * g.outputs * g.positions / (rows * outputs) * step
            lines = g.channels * copied_rows(g, blocks) * (1 if p.flat else 20)
            turned = 6 * x / width + (3 * y / full if shared else 6 * y / width)
            cost = tasks * (
                turned * min(1.0, depth / (blocks * BLOCK)) + lines + min(depth, blocks * BLOCK) * terms
            )
            cost *= 1 + 0.5 * max(0.0, 1 - tasks / TASKS)
            if best is None or cost < best[0]:
                best = cost, GroupSchedule(literal, width, outputs, taps, whole, blocks, shared)
    return best


class GroupKernels(KernelBuilder):
    """Builds the kernels of a contraction whose root is such a `conv`; g as `gradient_geometry` gives it."""

    def __init__(
        self, c: Contraction, g: Geometry, schedule: GroupSchedule, results: Sequence[Buffer]
    ) -> None:
        super().__init__(c, results)
        g = inputs_as_groups(g) if schedule.shared else g
        self.g, self.s, self.p = g, schedule, plane_of(g)
        self.depth = dim_expr(g.examples) * g.pixels
        self.share = schedule.blocks * BLOCK
        self.lane_blocks = -(-g.count // schedule.width)
        self.pitch = self.p.columns * schedule.width  # elements of a row of the copy
        self.input = copied_rows(g, schedule.blocks) * self.pitch
        self.lanes = 1 if schedule.shared else schedule.width  # of an element of the other operand
        self.output = self.share * self.lanes
        self.copied = Buffer("copied", self.dtype, "local")
        self.turned = Buffer("turned", self.dtype, "local")
        self.places = g.outputs * g.channels * g.positions  # of a group
        self.block = self.lane_blocks * self.places * schedule.width  # elements of the sums of a block
        blocks: Dim = (g.examples * g.pixels + (BLOCK - 1)) // BLOCK
        self.sums = self.new_scratch("sums", blocks * self.block, self.dtype)

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        return (self._contract(), self._finish()), tuple(self.scratch)

    def _first_group(self, q: Expr) -> Expr:
        """The group of a task's first lane; the last ones share groups with those before."""
        g, s = self.g, self.s
        return q * s.width if g.count % s.width == 0 else least_of(q * s.width, index(g.count - s.width))

    def _contract(self) -> Kernel:
        g, p = self.g, self.p
        task, q, group, low, high, first_row, n0 = (
            self.name(x) for x in ("task", "q", "group", "low", "high", "row", "first")
        )
        shares = ceil_div(self.depth, self.share)
        n, start, stop, tile = (self.name(x) for x in ("n", "start", "stop", "block"))
        loops = [task, q, group, low, high, n0, first_row, n, start, stop]
        copies: Body = [
            Let(start, greatest_of(low - n * g.pixels, index(0))),
            Let(stop, least_of(high - n * g.pixels, index(g.pixels))),
            *self._copy(group, n, n0, first_row, start, stop, loops),
            *self._turn_other(group, n, low, start, stop, loops),
        ]
        order = [task, q, low, high, n0, first_row, tile]
        body: Body = [
            Let(q, task // greatest_of(shares, index(1))),
            Let(group, self._first_group(q)),
            Let(low, (task - q * shares) * self.share),
            Let(high, least_of(low + self.share, self.depth)),
            Let(n0, low // g.pixels),
            Let(first_row, low // p.line),
            For(n, n0, (high - 1) // g.pixels + 1, tuple(copies), index(1)),
            For(tile, low, high, tuple(self._tiles(q, low, high, n0, first_row, tile, order)), index(BLOCK)),
        ]
        whole: Body = [
            Alloc(self.copied, g.channels * self.input),
            Alloc(self.turned, g.outputs * self.output + (self.s.width if self.s.shared else 0)),
            *self._clear(),
            For(task, var("begin"), var("end"), tuple(body), index(1)),
        ]
        work = self.depth * (g.count * self.places * 2)
        return self.kernel("contract", shares * self.lane_blocks, work, whole)

    # The copies

    def _columns(self) -> tuple[int, int]:
        """The columns of the copy that are of x, not of padding."""
        p = self.p
        low = max(0, p.low[1])
        return low, max(low, min(p.columns, p.image[1] + p.low[1]))

    def _clear(self) -> Body:
        """Padding beside x. No task writes there."""
        if self.p.flat:
            return []
        row, column, lane = self.name("row"), self.name("column"), self.name("lane")
        put = Store(self.copied, row * self.pitch + column * self.s.width + lane, const(self.dtype, 0))
        first, last = self._columns()
        sides = [(0, first), (last, self.p.columns)]
        each = tuple(For(column, index(a), index(b), (put,), index(1)) for a, b in sides if a < b)
        rows = self.g.channels * self.input // self.pitch
        return (
            [Vector(lane, self.s.width, (For(row, index(0), index(rows), each, index(1)),))] if each else []
        )

    def _copy(
        self, group: Expr, n: Expr, n0: Expr, first_row: Expr, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """The rows of an example's pixels start .. stop, of every input."""
        g, p = self.g, self.p
        x, pull = self.c.root.operands[0], self.c.pull
        c, to, first, rows = (self.name(v) for v in ("c", "to", "first", "rows"))
        outer = index(0) if g.channels == 1 else c
        loops = [*loops, c, to, first, rows]
        across = p.out[1] if p.flat else p.out[0]
        begin, end = start // p.line, (stop - 1) // p.line + 1
        local = (n * across + begin - first_row) * p.step + (n - n0) * p.margin
        lets: Body = [
            Let(first, begin * p.step),  # in the padded image
            Let(rows, (end - begin) * p.step + p.margin),
            Let(to, outer * self.input + local * self.pitch),
        ]
        d = 1 if p.flat else 0
        before, inside = p.low[d], p.image[d]

        def channel(lane: Expr) -> Expr:
            return (group + lane) * g.channels + outer

        if p.flat:
            low, high = self.name("low"), self.name("high")
            lets += [
                Let(low, least_of(greatest_of(before - first, index(0)), rows)),
                Let(high, greatest_of(least_of(before + inside - first, rows), low)),
            ]

            def at(lane: Expr, j: Expr) -> Expr:
                return pull.at(x, Position(x.type.shape, (channel(lane), n, first + j - before)))

            order = [*loops, low, high]
            body: Body = [
                *self._zeros(to, index(0), low),
                *self._turn(self.copied, to, at, low, high, order),
                *self._zeros(to, high, rows),
            ]
        else:
            row = self.name("row")
            left, right = map(index, self._columns())

            def at(lane: Expr, j: Expr) -> Expr:
                where = (channel(lane), n, first + row - before, j - p.low[1])
                return pull.at(x, Position(x.type.shape, where))

            here = to + row * self.pitch
            filled = self._turn(self.copied, here, at, left, right, [*loops, row])
            padding = self._zeros(here, left, right)
            there = first + row
            valid = logical_and(there >= before, there < before + inside)
            body = [For(row, index(0), rows, (If(valid, tuple(filled), tuple(padding)),), index(1))]
        body = [*lets, *body]
        return [For(c, index(0), index(g.channels), tuple(body), index(1))] if g.channels > 1 else body

    def _zeros(self, to: Expr, low: Expr, high: Expr) -> Body:
        j, lane = self.name("j"), self.name("lane")
        put = Store(self.copied, to + j * self.s.width + lane, const(self.dtype, 0))
        return [Vector(lane, self.s.width, (For(j, low, high, (put,), index(1)),))]

    def _turn_other(
        self, group: Expr, n: Expr, low: Expr, start: Expr, stop: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """The other operand at an example's pixels start .. stop, of every output."""
        g, c, width = self.g, self.c, self.s.width
        o = self.name("o") if g.outputs > 1 else index(0)

        def at(lane: Expr, j: Expr) -> Expr:
            return c.left.at((group + lane, index(0)), (o,), (n, *delinearise(j, g.out)))

        to = o * self.output + (n * g.pixels - low) * self.lanes
        order = [*loops, *([o] if o.op == "var" else [])]
        if self.s.shared:
            j, lane = self.name("j"), self.name("lane")
            e = tidy(
                widened(c, c.left.at((index(0), index(0)), (o,), (n, *delinearise(j + lane, g.out)))),
                [*order, j, lane],
            )
            put = Store(self.turned, normal(to + j + lane, Levels([*order, j, lane])), e)
            some = If(j + lane < stop, (*c.pull.take_reports(), put))
            body: Body = [For(j, start, stop, (Vector(lane, width, (some,)),), index(width))]
        else:
            body = self._turn(self.turned, to, at, start, stop, order)
        return [For(o, index(0), index(g.outputs), tuple(body), index(1))] if g.outputs > 1 else body

    def _turn(
        self, target: Buffer, to: Expr, at: Callable[[Expr, Expr], Expr], low: Expr, high: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """target[to + j * width + lane] = at(lane, j) for j from low to high, by squares where that can be."""
        width, pull = self.s.width, self.c.pull
        known = high.data - low.data if low.op == high.op == "const" else None
        size = min(SQUARE, width)
        while known is not None and size > max(1, known):
            size //= 2
        lane, j = self.name("lane"), self.name("j")
        e = at(lane, j)
        checks = pull.take_reports()
        order = [*loops, j, lane]
        put = Store(target, normal(to + j * width + lane, Levels(order)), tidy(cast(e, self.dtype), order))

        def singles(low: Expr, high: Expr) -> Body:
            return [For(j, low, high, (Vector(lane, width, (*checks, put)),), index(1))]

        if known == 0:
            return []
        if size == 1 or checks or e.op != "load" or len(e.args) > 1:
            return singles(low, high)
        levels = Levels([*loops, j])
        along, across = linear(e.args[0], j, levels), linear(e.args[0], lane, levels)
        if along is None or across is None or along[0] is not index(1):
            return singles(low, high)
        slope, place = across

        def square(half: int) -> Transpose:
            source = normal(place + slope * half, levels)
            return Transpose(
                target, normal(to + j * width + half, levels), index(width), e.data, source, slope, size
            )

        # The last square reaches back over the one before.
        step = self.name("step")
        parts = tuple(square(half) for half in range(0, width, size))
        squares = For(step, low, high, (Let(j, least_of(step, high - size)), *parts), index(size))
        if known is not None:
            return [squares]
        return [If(high - low >= size, (squares,), tuple(singles(low, high)))]

    # The sums

    def _tiles(
        self, q: Expr, low: Expr, high: Expr, n0: Expr, first_row: Expr, block: Expr, loops: list[Expr]
    ) -> Body:  # fmt: skip
        """All sums of a block."""
        g, p, s = self.g, self.p, self.s
        o = self.name("o") if g.outputs > s.outputs else index(0)
        c = self.name("c") if g.channels > 1 else index(0)
        k0 = self.name("k") if not s.whole and p.window[0] > 1 else index(0)
        stop = self.name("stop")
        order = [*loops, stop, *(v for v in (o, c, k0) if v.op == "var")]
        body: Body = []
        for tap in range(0, p.window[1], s.taps):
            taps = range(tap, min(tap + s.taps, p.window[1]))
            downs = [index(d) for d in range(p.window[0])] if s.whole else [k0]
            where = [(down, tap) for down in downs for tap in taps]
            body.append(self._tile(q, low, n0, first_row, block, stop, o, c, where, order))
        for v, top, step in ((k0, p.window[0], 1), (c, g.channels, 1), (o, g.outputs, s.outputs)):
            if v.op == "var":
                body = [For(v, index(0), index(top), tuple(body), index(step))]
        return [Let(stop, least_of(block + BLOCK, high)), *body]

    def _tile(
        self, q: Expr, low: Expr, n0: Expr, first_row: Expr, block: Expr, stop: Expr, o: Expr, c: Expr,
        where: list[tuple[Expr, int]], loops: list[Expr],
    ) -> Vector:  # fmt: skip
        """The sums of a block, of s.outputs outputs from o, of input c, at the places `where`."""
        g, p, s = self.g, self.p, self.s
        lane, row, column, first, last, n = (
            self.name(x) for x in ("lane", "row", "column", "from", "to", "n")
        )
        sums = [[self.name("sum", self.dtype) for _ in where] for _ in range(s.outputs)]
        here = self.name("here")
        order = [*loops, row, n, first, last, here, column, lane]
        levels = Levels(order)
        # One dimension: rows are examples, and the columns of the copy are its rows.
        k = row * (g.pixels if p.flat else p.line) + column - low
        ys = [
            load(
                self.turned,
                normal((o + i) * self.output + k * self.lanes + (index(0) if s.shared else lane), levels),
            )
            for i in range(s.outputs)
        ]
        step: Body = []
        for j, (down, tap) in enumerate(where):
            away = column * p.strides[1] + tap * p.reach[1]
            at = here + down * (p.reach[0] * self.pitch) + away * s.width + lane
            x = load(self.copied, normal(at, levels))
            step += [Assign(sums[i][j], multiply_add(y, x, sums[i][j])) for i, y in enumerate(ys)]
        if p.flat:
            unit = g.pixels
            lets: Body = [Let(n, row)]
            local = (row * g.pixels - first_row) * p.step + (n - n0) * p.margin
        else:
            unit = p.line
            lets = [Let(n, row // p.out[0])]
            local = (row - first_row) * p.step + (n - n0) * p.margin
        lets += [
            Let(here, normal(c * self.input + local * self.pitch, levels)),
            Let(first, greatest_of(block - row * unit, index(0))),
            Let(last, least_of(stop - row * unit, index(unit))),
        ]
        columns = For(column, first, last, tuple(step), index(1))
        rows = For(row, block // unit, (stop - 1) // unit + 1, (*lets, columns), index(1))
        flat = [t for mine in sums for t in mine]
        put: Body = []
        for i, mine in enumerate(sums):
            for (down, tap), t in zip(where, mine, strict=True):
                place = ((o + i) * g.channels + c) * g.positions + down * p.window[1] + tap
                at = block // BLOCK * self.block + (q * self.places + place) * s.width + lane
                put.append(Store(self.sums, normal(at, Levels([*loops, lane])), t))
        return Vector(lane, s.width, (*(Declare(t, const(self.dtype, 0)) for t in flat), rows, *put))

    def _finish(self) -> Kernel:
        """Adds up the sums of blocks, in order."""
        g, s = self.g, self.s
        q, group, o, c, place, kb, lane = (
            self.name(x) for x in ("task", "group", "o", "c", "place", "kb", "lane")
        )
        total = self.name("sum", self.dtype)
        at = (q * self.places + (o * g.channels + c) * g.positions + place) * s.width + lane
        count = ceil_div(self.depth, BLOCK)
        batch = (index(0), group + lane) if s.shared else (group + lane, c)
        done = self.finished(batch, o, delinearise(place, g.window), total, [q, group, o, c, place, lane])
        if g.count % s.width:
            done = [If(group + lane >= q * s.width, tuple(done))]
        more = Assign(total, total + load(self.sums, kb * self.block + at))
        region: Body = [
            Declare(total, const(self.dtype, 0)),
            If(count > 0, (Assign(total, load(self.sums, at)),)),
            For(kb, index(1), count, (more,), index(1)),
            *done,
        ]
        body: Body = [Vector(lane, s.width, tuple(region))]
        for v, top in ((place, g.positions), (c, g.channels), (o, g.outputs)):
            body = [For(v, index(0), index(top), tuple(body), index(1))]
        body = [For(q, var("begin"), var("end"), (Let(group, self._first_group(q)), *body), index(1))]
        work = count * self.block + g.count * self.places * 4
        return self.kernel("finish", index(self.lane_blocks), work, body)
