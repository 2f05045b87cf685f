"""Products of many small matrices: a strip of a result stays in registers from its first term to its stores.

Tiles of tiles.py meet memory of their own between the blocks of k and the epilogue, and find their places among sizes that
are not known, which takes longer than the few terms of a small product. Here everything but the number of products is
literal, a sum is one block of k, and the epilogue takes what the registers hold. An item is one product.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from graphc.codegen.expr import Expr, cast, const, index, load, replace, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Columns,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
    Transpose,
)
from graphc.codegen.lower.affine import Levels, least_of, linear, normal, tidy
from graphc.codegen.lower.contraction import (
    BLOCK,
    Contraction,
    access,
    epilogue_operations,
    transposable,
    widened,
)
from graphc.codegen.lower.dot import dot_contraction
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.kernels import buffers_used, layout_of, moved
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.microkernel import multiply_add, region
from graphc.codegen.lower.nest import group_extents
from graphc.codegen.lower.pull import Pull, guard_loads
from graphc.codegen.lower.tiles import power_of_two, registers
from graphc.ir.function import Function, Operation, Value
from graphc.ir.interpret import specialize
from graphc.ir.types import DType, dim_symbols, size_of, substitute

Body = list[Stmt]
# So many products at least: fewer are not worth a kernel for one size.
LEAST = 16
# Of a matrix: what the first level cache holds with the other one, and its strips of rows.
MOST_TURNED = 3072  # that lie there twice
MOST_ELEMENTS, MOST_ROWS, MOST_VECTORS = 4096, 128, 8
# Multiply-adds that are written out, at most, if a term has fewer.
UNROLLED = 32
SIDE = 16  # of a block that is transposed at once, at most
# Operations of an epilogue that are written out.
EPILOGUE = 500
# Vectors over which lanes may lie apart to be put together by shuffles (llvm/pattern.py).
REACH = 4
# Multiply-adds for a shuffle from which on squares are transposed for each strip.
HALF = 0.5


class SmallSchedule(NamedTuple):
    """How small products are computed.

    literal: values of the extents that the kernel is made for; it serves no others.
    swap: lanes run along the left operand's free dimensions.
    rows, width: of a strip, and of its vectors.
    turned: how lanes are read that are neighbours along the depth: "" by themselves (or as they are), "strip" in squares
        that are transposed in registers for each strip of rows, "once" transposed into memory of the task's own.
    unroll: terms that are written out, a divisor of the depth.
    """

    literal: tuple[tuple[str, int], ...]
    swap: bool
    rows: int
    width: int
    turned: str
    unroll: int


def small_schedule(group: Function, hint: Mapping[str, int], vector_bits: int) -> SmallSchedule | None:
    """The schedule of a `dot` for extents of about these values, where its matrices are small and many."""
    root = _root(group)
    lhs, rhs = (v.type.shape for v in root.operands)
    batch = [lhs[i] for i in root.attrs["lhs_batch"]]
    count = substitute(size_of(batch), hint)
    if not isinstance(count, int) or count < LEAST:
        return None
    sizes = [
        *(d for i, d in enumerate(lhs) if i not in root.attrs["lhs_batch"]),
        *(d for i, d in enumerate(rhs) if i not in root.attrs["rhs_batch"]),
    ]
    values = [substitute(d, hint) for d in sizes]
    if any(not isinstance(v, int) or not 1 <= v <= MOST_ELEMENTS for v in values):
        return None
    symbols = set[str]().union(*(dim_symbols(d) for d in sizes))
    literal = tuple(sorted((s, hint[s]) for s in symbols))
    made = specialize(group, dict(literal))
    return choose(dot_contraction(made, _root(made), Pull(made, _params(made))), count, vector_bits, literal)


def lower_small(group: Function, schedule: SmallSchedule) -> Lowered:
    """The kernel for a group of one `dot` with an epilogue; `schedule` as `small_schedule` gives it."""
    made = specialize(group, dict(schedule.literal))
    buffers = _params(made)
    pull = Pull(made, buffers)
    results = tuple(Buffer(f"r{i}", v.type.dtype, "out") for i, v in enumerate(made.results))
    kernel = SmallKernels(dot_contraction(made, _root(made), pull), schedule, results).build()
    return Lowered((kernel,), tuple(buffers[p] for p in made.params), results, sites=tuple(pull.sites))


def _root(group: Function) -> Operation:
    return next(op for op in group.ops if op.name == "dot")


def _params(group: Function) -> dict[Value, Buffer]:
    return {p: Buffer(f"p{i}", p.type.dtype, "in") for i, p in enumerate(group.params)}


def choose(
    c: Contraction, count: int, vector_bits: int, literal: tuple[tuple[str, int], ...]
) -> SmallSchedule | None:
    """The schedule for about `count` products of literal sizes, None where others are as fast."""
    m, n, depth = c.left.size, c.right.size, size_of(c.depth)
    if not (isinstance(m, int) and isinstance(n, int) and isinstance(depth, int)) or count < LEAST:
        return None
    if min(m, n, depth) < 1 or depth > BLOCK or max(m, n) * depth > MOST_ELEMENTS:
        return None
    left, right = access(c, c.left), access(c, c.right)
    swap = n == 1 and m > 1
    rows, lanes, lanes_of = (n, m, left) if swap else (m, n, right)
    if not (left.direct and right.direct) or rows > MOST_ROWS:
        return None
    most = max(1, vector_bits // c.accumulator.bits)
    width = _width(lanes, most)
    vectors = -(-lanes // width)
    if vectors > MOST_VECTORS:
        return None
    room = 24 if registers(vector_bits) == 32 else 12
    room = min(room, EPILOGUE // max(1, epilogue_operations(c)))
    strip = _strip_rows(rows, room // vectors)
    turned = ""
    if not lanes_of.unit_free and lanes > 1:
        if lanes_of.transposed is None or lanes_of.transposed.outer:
            return None
        few = _strip_rows(rows, (room - width) // vectors)
        # A square takes as many shuffles a row as it has halvings; the same square serves all rows of a strip.
        if depth % width == 0 and (few == rows or few * HALF >= width.bit_length() - 1):
            turned, strip = "strip", few
        elif (min(width, lanes) - 1) * depth >= REACH * width:
            if lanes * depth > MOST_TURNED:
                return None
            turned = "once"
    unroll = width if turned == "strip" else _divisor(depth, max(1, UNROLLED // (strip * vectors)))
    return SmallSchedule(literal, swap, strip, width, turned, unroll)


def _strip_rows(rows: int, most: int) -> int:
    """Rows of a strip, so that all strips have about as many."""
    return -(-rows // -(-rows // max(1, most)))


def _width(lanes: int, most: int) -> int:
    """Lanes of a vector: half of the widest ones take half the time, so as few as leave little empty."""
    found = min(most, power_of_two(lanes))
    if found == most and most > 4 and -(-lanes // (most // 2)) < 2 * -(-lanes // most):
        return most // 2
    return found


def _pieces(n: int) -> list[tuple[int, int, int]]:
    """Start, stop and step of steps over n elements, all powers of two; the last one reaches back."""
    side = min(SIDE, 1 << (n.bit_length() - 1))
    found = [(0, n - n % side, side)]
    if n % side:
        last = min(side, power_of_two(n % side))
        found.append((n - last, n, last))
    return found


def _divisor(n: int, most: int) -> int:
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


class SmallKernels:
    """Builds the kernel of a contraction whose matrices have literal sizes."""

    def __init__(self, c: Contraction, schedule: SmallSchedule, results: Sequence[Buffer]) -> None:
        self.c, self.s = c, schedule
        self.results = [
            (*layout_of(c, v), buffer) for v, buffer in zip(c.group.results, results, strict=True)
        ]
        self.rows, self.lanes = (c.right, c.left) if schedule.swap else (c.left, c.right)
        rows, lanes, depth = self.rows.size, self.lanes.size, size_of(c.depth)
        assert isinstance(rows, int) and isinstance(lanes, int) and isinstance(depth, int)
        self.count_rows, self.count_lanes, self.depth = rows, lanes, depth
        self._names = itertools.count()
        # Lanes that were turned once: lane j of term k at k * pitch + j.
        self.held: Buffer | None = None
        self.pitch = -(-lanes // schedule.width) * schedule.width

    def build(self) -> Kernel:
        c, s, item, strip = self.c, self.s, var("item"), var("strip")
        count = dim_expr(size_of(c.batch))
        batch, inside = self._batch(item)
        allocated, turning = self._turned_once(batch, item) if s.turned == "once" else ([], [])
        inside += turning
        whole = self.count_rows // s.rows
        if whole > 1:
            m0 = self._name("m")
            body = [Let(m0, strip * s.rows), *self._strip(batch, m0, s.rows, [item, *batch, strip, m0])]
            inside.append(For(strip, index(0), index(whole), tuple(body), index(1)))
        elif whole:
            inside += self._strip(batch, index(0), s.rows, [item, *batch])
        if self.count_rows % s.rows:
            inside += self._strip(batch, index(whole * s.rows), self.count_rows % s.rows, [item, *batch])
        loop = (*allocated, For(item, var("begin"), var("end"), tuple(inside), index(1)))
        used = buffers_used(loop)
        buffers = [*c.pull.buffers.values(), *(b for _, _, b in self.results)]
        work = count * (self.count_rows * self.count_lanes * (2 * self.depth + 2))
        return Kernel(
            "products", tuple(b for b in buffers if b in used), group_extents(c.group), count, work, loop
        )

    def _name(self, stem: str, dtype: DType | None = None) -> Expr:
        name = f"{stem}_{next(self._names)}"
        return var(name) if dtype is None else var(name, dtype)

    def _batch(self, item: Expr) -> tuple[list[Expr], Body]:
        """Coordinates of the product, and the statements that name them."""
        coords: list[Expr] = []
        lets: Body = []
        for e in delinearise(item, self.c.batch):
            coords.append(e if e.op in ("const", "var") else self._name("batch"))
            if coords[-1] is not e:
                lets.append(Let(coords[-1], e))
        return coords, lets

    def _strip(self, batch: Sequence[Expr], m0: Expr, rows: int, outer: list[Expr]) -> Body:
        """Rows from m0 on, with all lanes, from their first term to the stores."""
        c, s, dtype = self.c, self.s, self.c.accumulator
        lane = self._name("lane") if s.width > 1 else index(0)
        starts = range(0, self.count_lanes, s.width)
        sums = [[self._name("sum", dtype) for _ in starts] for _ in range(rows)]
        body: Body = [Declare(x, const(dtype, 0)) for row in sums for x in row]
        at = self._name("k") if s.unroll < self.depth else index(0)
        loops = [*outer, at] if at.op == "var" else outer
        terms: Body = []
        squares = (
            [self._square(batch, first, lane, at, loops, terms) for first in starts]
            if s.turned == "strip"
            else []
        )
        for j in range(s.unroll):
            right = [
                squares[v][j] if squares else self._lanes(batch, first, lane, at + j, loops)
                for v, first in enumerate(starts)
            ]
            for i, row in enumerate(sums):
                a = self._element(
                    self.rows.at(batch, delinearise(m0 + i, self.rows.free), delinearise(at + j, c.depth)),
                    loops,
                )
                terms += [Assign(x, multiply_add(a, b, x)) for x, b in zip(row, right, strict=True)]
        body += (
            [For(at, index(0), index(self.depth), tuple(terms), index(s.unroll))] if at.op == "var" else terms
        )
        for i, row in enumerate(sums):
            for x, first in zip(row, starts, strict=True):
                put = self._finished(x, batch, m0 + i, lane + first, [*outer, lane])
                known = self._known(first, lane)
                body += put if known is None else [If(known, tuple(put))]
        return region(lane, s.width, body)

    def _known(self, first: int, lane: Expr) -> Expr | None:
        """Which lanes of the vector from `first` on exist; None: all."""
        return None if first + self.s.width <= self.count_lanes else lane < self.count_lanes - first

    def _element(self, e: Expr, loops: list[Expr]) -> Expr:
        return tidy(widened(self.c, e), loops)

    def _lanes(self, batch: Sequence[Expr], first: int, lane: Expr, k: Expr, loops: list[Expr]) -> Expr:
        known = self._known(first, lane)
        if self.held is not None:
            at = k * self.pitch + lane + first
            return load(self.held, at) if known is None else load(self.held, at, known)
        e = self.lanes.at(batch, delinearise(lane + first, self.lanes.free), delinearise(k, self.c.depth))
        return self._element(e if known is None else guard_loads(e, known), [*loops, lane])

    def _square(
        self, batch: Sequence[Expr], first: int, lane: Expr, k: Expr, loops: list[Expr], body: Body
    ) -> tuple[Expr, ...]:
        """As many vectors of lanes as they have lanes, from k on. Past the last lane it is repeated."""
        source = transposable(self.c, self.lanes)
        assert source is not None
        free = (
            least_of(lane + first, index(self.count_lanes - 1))
            if self._known(first, lane) is not None
            else lane + first
        )
        place = normal(source.position(batch, free, delinearise(k, self.c.depth)), Levels([*loops, lane]))
        names = tuple(self._name("column", self.c.accumulator) for _ in range(self.s.width))
        body.append(Columns(lane, names, source.buffer, place))
        return names

    def _turned_once(self, batch: Sequence[Expr], item: Expr) -> tuple[Body, Body]:
        """The memory that lanes are turned into, and what turns them."""
        source = transposable(self.c, self.lanes)
        assert source is not None
        self.held = held = Buffer("turned", self.c.accumulator, "local")
        free = self._name("free")
        body: Body = []
        for first_k, stop_k, columns in _pieces(self.depth):
            for first_j, stop_j, rows in _pieces(self.count_lanes):
                k, j = self._name("k"), self._name("j")
                levels = Levels([item, *batch, k, j])
                at = source.position(batch, free, delinearise(k, self.c.depth))
                found = linear(at, free, levels)
                assert found is not None
                start = normal(replace(at, {free: j}), levels)
                to = k * self.pitch + j
                square: Stmt = Transpose(
                    held, to, index(self.pitch), source.buffer, start, found[0], rows, columns
                )
                if rows == columns == 1:
                    square = Store(held, to, cast(load(source.buffer, start), held.dtype))
                along = For(j, index(first_j), index(stop_j), (square,), index(rows))
                body.append(For(k, index(first_k), index(stop_k), (along,), index(columns)))
        return [Alloc(held, self.depth * self.pitch)], body

    def _finished(self, total: Expr, batch: Sequence[Expr], row: Expr, lane: Expr, loops: list[Expr]) -> Body:
        """The results of the element whose sum is `total`."""
        c = self.c
        sides = delinearise(row, self.rows.free), delinearise(lane, self.lanes.free)
        left, right = sides[::-1] if self.s.swap else sides
        at = Position(c.result.type.shape, c.place(batch, left, right))
        rounded = cast(total, c.result.type.dtype)
        c.pull.bind(c.result, lambda _: rounded)
        out: Body = []
        stores: Body = []
        for v, layout, buffer in self.results:
            here = at.reshaped(v.type.shape)
            e = tidy(c.pull.at(v, here), loops)
            out += c.pull.take_reports()
            # All values come first: a result may be written where an operand was read.
            value = self._name("value", e.dtype)
            out.append(Let(value, e))
            stores.append(Store(buffer, tidy(moved(here, layout).flat, loops), value))
        return [*out, *stores]
