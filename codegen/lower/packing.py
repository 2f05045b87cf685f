"""Packing: copies of a contraction's operands in the order in which the micro kernel reads them.

Layout operations, padding and conversions in front of the contraction are part of the reads here.
Where neighbours in memory run along the depth, blocks are transposed in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.codegen.expr import Expr, index, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Report, Stmt, Store, Transpose
from graphc.codegen.lower.affine import (
    Levels,
    ceil_div,
    greatest_of,
    least_of,
    linear,
    logical_and,
    normal,
    split_lanes,
    tidy,
)
from graphc.codegen.lower.contraction import Access, Operand, Transposable, transposable, widened
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.codegen.lower.microkernel import region
from graphc.codegen.lower.pull import guard_loads
from graphc.ir.types import size_of

if TYPE_CHECKING:
    from graphc.codegen.lower.kernels import ContractionKernels

Body = list[Stmt]
# Lanes copied at a time: enough for two vectors; more only makes more code.
WIDTH = 32


@dataclass(frozen=True)
class DepthNest:
    """coords: of the contracted dimensions; loops: their variables, outermost first; flat: their index."""

    coords: list[Expr]
    loops: list[Expr]
    flat: Expr
    wrap: Callable[[Body], Body]


def depth_nest(
    k: ContractionKernels, near: bool, start: Expr | None = None, stop: Expr | None = None
) -> DepthNest:
    """Loops over the contracted dimensions with flat index from `start` (0) to `stop` (the end).

    near: the first dimension is innermost (see Schedule.near), else they are in order.
    """
    first, *others = k.c.depth or (1,)
    v, names = k.name("k"), [k.name("k") if d != 1 else index(0) for d in others]
    inner, position = dim_expr(size_of(others)), linearise(names, tuple(others))
    bounds = {n: (index(0), dim_expr(d)) for n, d in zip(names, others, strict=True) if d != 1}
    channel = (index(0), dim_expr(first))
    if start is not None and stop is not None:
        safe = greatest_of(inner, index(1))
        if not bounds:
            channel = (start, stop)
        elif near:
            channel = ((start - position + (inner - 1)) // safe, (stop - position + (inner - 1)) // safe)
        else:
            # Only the innermost loop is cut, so that everything else is hoisted.
            channel = (start // safe, (stop + (inner - 1)) // safe)
            last, (low, high) = list(bounds.items())[-1]
            before = v * inner + linearise([index(0) if n is last else n for n in names], tuple(others))
            bounds[last] = (greatest_of(low, start - before), least_of(high, stop - before))
    loops = [*bounds.items(), (v, channel)] if near else [(v, channel), *bounds.items()]

    def wrap(body: Body) -> Body:
        for name, (low, high) in reversed(loops):
            body = [For(name, low, high, tuple(body), index(1))]
        return body

    return DepthNest([v, *names][: len(k.c.depth)], [n for n, _ in loops], v * inner + position, wrap)


def guard_checks(checks: Body, cond: Expr) -> Body:
    """Run-time checks that only count where `cond` holds."""
    return [Report(logical_and(cond, r.cond), r.site, r.value) for r in checks if isinstance(r, Report)]


def lane_coords(side: Operand, base: Expr, lane: Expr, width: int) -> tuple[Expr, ...]:
    """Coordinates of `width` neighbouring lanes from `base`, a multiple of `width`."""
    return split_lanes(base, lane, width, side.free)


def small_index(side: Operand, free: Expr) -> Expr | None:
    """`free`, a flat index of a side, if its divisions may be done in 32 bits."""
    return free if isinstance(side.size, int) and side.size < 1 << 31 else None


# Packing for all tasks


def pack_kernel(k: ContractionKernels) -> Kernel | None:
    """The kernel that packs rows and lanes for all tasks, if the schedule has one."""
    sections = []
    if k.packed_rows is not None:
        sections.append(_rows_section(k, k.packed_rows))
    if k.packed_lanes is not None:
        sections.append(_lanes_section(k, k.packed_lanes))
    if k.copied is not None and k.offsets is not None:
        sections += _table_sections(k, k.copied, k.offsets)
    if not sections:
        return None
    begin, end = var("begin"), var("end")
    body: Body = []
    offset = index(0)
    for count, make_body in sections:
        t = k.name("task")
        start, stop = greatest_of(begin - offset, index(0)), least_of(end - offset, count)
        body.append(For(t, start, stop, tuple(make_body(t)), index(1)))
        offset = offset + count
    # A task packs depth x tile elements.
    work = offset * k.depth * (4 * max(k.s.rows, k.s.lanes))
    return k.kernel("pack", offset, work, body)


Section = tuple[Expr, Callable[[Expr], Body]]


@dataclass(frozen=True)
class _Panel:
    """A strip or panel being packed: its number, its batch coordinates, where it goes, and its names."""

    number: Expr
    batch: list[Expr]
    base: Expr
    lets: Body
    loops: list[Expr]


def _panel(k: ContractionKernels, a: Access, panels: Expr, tile: int, t: Expr) -> _Panel:
    number, b, base = k.name("panel"), k.name("batch"), k.name("base")
    lets: Body = [Let(b, t // panels), Let(number, t - b * panels), Let(base, t * k.depth * tile)]
    batch, more = k.batch_coords(b, tuple(k.c.batch[i] for i in a.batch), a.batch)
    return _Panel(number, batch, base, [*lets, *more], [t, b, *batch, number, base])


def _rows_section(k: ContractionKernels, buffer: Buffer) -> Section:
    """Strips [depth][tile rows]; past the last row it is repeated."""
    side, a, tile = k.rows, k.row_access, k.s.rows
    size, panels = dim_expr(side.size), ceil_div(dim_expr(side.size), tile)

    def body(t: Expr) -> Body:
        p = _panel(k, a, panels, tile, t)
        nest = depth_nest(k, near=False)
        lets, copies = list(p.lets), []
        for i in range(tile):
            r = k.name("row")
            lets.append(Let(r, least_of(p.number * tile + i, size - 1)))
            e = widened(k.c, side.at(p.batch, delinearise(r, side.free), nest.coords))
            copies += [*k.checks(), Store(buffer, p.base + nest.flat * tile + i, tidy(e, [*p.loops, r, *nest.loops]))]
        return [*lets, *nest.wrap(copies)]

    return dim_expr(k.batch_dim(a.batch)) * panels, body


def _table_sections(k: ContractionKernels, copied: Buffer, offsets: Buffer) -> list[Section]:
    """The padded copy of the rows' operand, a plane a task, and the table of offsets of k."""
    patches = k.c.patches
    assert patches is not None
    planes, spatial = patches.shape[:2], patches.shape[2:]
    run = spatial[-1] if spatial else 1
    width = 8 if isinstance(run, int) and run <= 8 else 16

    def plane(t: Expr) -> Body:
        short = isinstance(run, int) and run <= width
        n, c, x, lane = k.name("n"), k.name("c"), index(0) if short else k.name("x"), k.name("lane")
        outer = [k.name("at") if d != 1 else index(0) for d in spatial[:-1]]
        at = (n, c, *outer, x + lane)[: len(patches.shape)]
        order = [t, n, c, *outer, x, lane]
        value = widened(k.c, patches.element(at))
        checks = k.checks()
        place = normal(linearise(at, patches.shape), Levels(order))
        put = [If(x + lane < dim_expr(run), (*checks, Store(copied, place, tidy(value, order))))]
        body = region(lane, width, put)
        if not short:
            body = [For(x, index(0), dim_expr(run), tuple(body), index(width))]
        for name, d in zip(reversed(outer), reversed(spatial[:-1]), strict=True):
            if d != 1:
                body = [For(name, index(0), dim_expr(d), tuple(body), index(1))]
        channels = dim_expr(planes[1])
        return [Let(n, t // channels), Let(c, t - n * channels), *body]

    def table(t: Expr) -> Body:
        nest = depth_nest(k, near=False)
        return nest.wrap([Store(offsets, nest.flat, normal(patches.reach(nest.coords), Levels([t, *nest.loops])))])

    return [(dim_expr(size_of(planes)), plane), (index(1), table)]


def _lanes_section(k: ContractionKernels, buffer: Buffer) -> Section:
    """Panels [depth][tile lanes]; past the last lane they hold zeros."""
    side, a, tile = k.lanes, k.lane_access, k.s.lanes
    size, panels = dim_expr(side.size), ceil_div(dim_expr(side.size), tile)

    def body(t: Expr) -> Body:
        p = _panel(k, a, panels, tile, t)
        first = p.number * tile
        count = least_of(index(tile), size - first)
        copy = LaneCopy(k, buffer, p.batch, first, index(tile), count, p.base, tile, p.loops)
        return [*p.lets, *copy.all(index(0), k.depth)]

    return dim_expr(k.batch_dim(a.batch)) * panels, body


class LaneCopy:
    """Copies lanes first .. first + count of the depth range [start, stop) to `buffer`.

    Element (k, lane) goes to base + (k - start) * step + lane. Lanes from `count` to `room` get zeros.
    `first` is a multiple of the tile's lanes.
    """

    def __init__(
        self, k: ContractionKernels, buffer: Buffer, batch: list[Expr], first: Expr, room: Expr, count: Expr,
        base: Expr, step: int, loops: list[Expr],
    ) -> None:  # fmt: skip
        self.k, self.buffer, self.batch = k, buffer, batch
        self.first, self.room, self.count = first, room, count
        self.base, self.step, self.loops = base, step, loops

    def all(self, start: Expr, stop: Expr) -> Body:
        whole = start.op == "const" and stop is self.k.depth
        transposed = self._transposed(start, stop, whole)
        if transposed is not None:
            return transposed
        return self.gathered(start, stop, index(0), min(WIDTH, self.k.s.lanes), whole)

    def gathered(self, start: Expr, stop: Expr, first_lane: Expr, width: int, whole: bool) -> Body:
        """Lanes from `first_lane` on, `width` at a time, each finding its own place once for all k."""
        k, side = self.k, self.k.lanes
        nest = depth_nest(k, k.s.near) if whole else depth_nest(k, k.s.near, start, stop)
        j, lane = k.name("j"), k.name("lane") if width > 1 else index(0)
        base = self.first + j
        e = widened(k.c, side.at(self.batch, lane_coords(side, base, lane, width), nest.coords))
        checks = k.checks()
        order = [*self.loops, start, j, lane, *nest.loops]
        place = self.base + (nest.flat - start) * self.step + j + lane
        small = small_index(side, base + lane)

        def copies(masked: bool) -> Body:
            read, tests = e, checks
            if masked:
                cond = j + lane < self.count
                read, tests = guard_loads(e, cond), guard_checks(checks, cond)
            return region(lane, width, nest.wrap([*tests, Store(self.buffer, place, tidy(read, order, small))]))

        body = k.choose(j + width <= self.count, copies)
        return [For(j, first_lane, self.room, tuple(body), index(width))]

    def _transposed(self, start: Expr, stop: Expr, whole: bool) -> Body | None:
        """Square blocks by register transposition, the rest gathered; None where memory does not lie so."""
        k = self.k
        n = min(k.vector_bits // k.dtype.bits, k.s.lanes)
        source = transposable(k.c, k.lanes)
        if n < 4 or source is None or (source.outer and not whole):
            return None
        o, r, j = k.name("o"), k.name("k"), k.name("j")
        _, *others = k.c.depth
        inner = dim_expr(size_of(others)) if source.outer else k.depth
        low, high = (index(0), inner) if source.outer else (start, stop)
        depth = o * inner + r if source.outer else r
        full = low + (high - low) // n * n
        lanes = self.count // n * n
        order = [*self.loops, start, o, j, r]
        levels = Levels(order)
        free = var("free")
        at = source.position(self.batch, free, self._depth_coords(source, o, r))
        split = linear(at, free, levels)
        assert split is not None
        slope, rest = split
        block = Transpose(
            self.buffer, self.base + (depth - start) * self.step + j, index(self.step),
            source.buffer, normal(rest + slope * (self.first + j), levels), slope, n,
        )  # fmt: skip
        # Along the depth first: as many streams as rows of a block, each in order.
        loop: Body = [For(j, index(0), lanes, (For(r, low, full, (block,), index(n)),), index(n))]
        # The last k of every run, then the last lanes.
        tail_r, tail_j, lane = k.name("k"), k.name("j"), k.name("lane")
        tail_depth = o * inner + tail_r if source.outer else tail_r
        mine = self.first + tail_j + lane
        e = widened(k.c, k.lanes.at(self.batch, delinearise(mine, k.lanes.free), self._depth_coords(source, o, tail_r)))
        k.checks()
        put = Store(
            self.buffer, self.base + (tail_depth - start) * self.step + tail_j + lane,
            tidy(e, [*self.loops, start, o, tail_j, lane, tail_r], small_index(k.lanes, mine)),
        )  # fmt: skip
        ends: Body = region(lane, n, [For(tail_r, full, high, (put,), index(1))])
        loop.append(For(tail_j, index(0), lanes, tuple(ends), index(n)))
        if source.outer:
            loop = [For(o, index(0), dim_expr(k.c.depth[0]), tuple(loop), index(1))]
        return [*loop, *self.gathered(start, stop, lanes, n, whole)]

    def _depth_coords(self, source: Transposable, o: Expr, r: Expr) -> Sequence[Expr]:
        return (o, *delinearise(r, self.k.c.depth[1:])) if source.outer else delinearise(r, self.k.c.depth)
