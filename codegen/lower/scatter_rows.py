"""Scatters whose owners have rows of the result: by looking at every update, or by sorted segments.

Segments: the updates are sorted by the bucket of rows that they fall into, equal buckets in their order (a counting sort without
atomics): chunks of updates are counted by bucket, the counts become places, each chunk moves its updates there. Then each bucket, small enough
to stay near a core, takes x and applies its updates in the order that they came in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphc.codegen.expr import Expr, binary, cast, index, load, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import ceil_div, minimum
from graphc.codegen.lower.scattering import Scattering, lanes
from graphc.ir.types import I32, I64, Dim

COUNTED = 16  # lanes over buckets
CHUNKS = 64  # at most


def lower_rows(s: Scattering, width: int) -> Lowered:
    """An item is a row of a line; a thread takes its rows of a line at once, and looks at all updates for those it owns."""
    rows, inner, total = dim_expr(s.rows), dim_expr(s.inner), dim_expr(s.total)
    line, low, high, lane = (s.names.fresh(n) for n in ("line", "low", "high", "l"))
    u, row = s.names.fresh("u"), s.names.fresh("row")
    start, end = var("begin") - line * rows, var("end") - line * rows
    first = line * rows
    found = s.row(u)
    reports = s.pull.take_reports()

    def apply(column: Expr) -> list[Stmt]:
        value = s.update(line, u, column)
        return [*s.pull.take_reports(), s.applied((first + row) * inner + column, value)]

    own = binary("and", row >= low, row < high)
    add = If(own, (lanes(s.names, index(0), inner, lane, width, apply),))
    body: list[Stmt] = [
        Let(low, select(start < 0, index(0), start)),
        Let(high, minimum(end, rows)),
        lanes(s.names, (first + low) * inner, (first + high) * inner, lane, width, s.begun),
        For(u, index(0), total, (*reports, Let(row, found), add), index(1)),
    ]
    if s.target is not s.out:
        body.append(lanes(s.names, (first + low) * inner, (first + high) * inner, lane, width, s.finished))
    lines = For(line, var("begin") // rows, (var("end") + rows - 1) // rows, tuple(body), index(1))
    buffers = (*s.params, *(b.buffer for b in s.scratch), s.out)
    parallel = dim_expr(s.outer) * rows
    work = (parallel + total * dim_expr(s.outer) * 4) * inner
    return s.lowered([s.kernel("scatter", buffers, parallel, work, Vector(lane, width, (lines,)))])


@dataclass(frozen=True)
class Segments:
    """How updates are sorted. shift: a bucket has 1 << shift rows; chunk: updates that are sorted together, at least;
    piece: columns of an item that has part of its bucket's rows, or 0; width: lanes over columns."""

    shift: int
    chunk: int
    piece: int
    width: int

    def __str__(self) -> str:
        return f"segments {self.shift} {self.chunk} {self.piece} {self.width}"


def lower_segments(s: Scattering, by: Segments) -> Lowered:
    """Three kernels that sort the updates, and one that applies them."""
    return _Sorted(s, by).lowered()


class _Sorted:
    """counts: of each bucket in each chunk, later where its next update goes; starts: where each bucket's updates start, and their
    end; rows: in sorted order the row of each update within its bucket; moved: which update it is, or its value
    where that is one element."""

    def __init__(self, s: Scattering, by: Segments) -> None:
        self.s, self.by = s, by
        self.total = dim_expr(s.total)
        size = 1 << by.shift
        buckets: Dim = (s.rows + (size - 1)) // size
        self.buckets = dim_expr(buckets)
        # Never many chunks, whatever the number of updates.
        self.chunk = by.chunk * ceil_div(self.total + 1, by.chunk * CHUNKS)
        self.chunks = (self.total + self.chunk - 1) // self.chunk
        self.single = s.inner == 1 and s.outer == 1
        self.counts, self.starts = Buffer("counts", I64, "scratch"), Buffer("starts", I64, "scratch")
        self.rows = Buffer("rows", I32, "scratch")
        self.moved = Buffer("moved", s.updates.type.dtype if self.single else I64, "scratch")
        self.scratch = (
            Scratch(self.counts, I64, buckets * CHUNKS),
            Scratch(self.starts, I64, buckets + 1),
            Scratch(self.rows, I32, s.total),
            Scratch(self.moved, self.moved.dtype, s.total),
        )

    def lowered(self) -> Lowered:
        return self.s.lowered([self.count(), self.place(), self.move(), self.apply()], self.scratch)

    def walk(self, chunk: Expr, u: Expr, body: list[Stmt]) -> For:
        stop = minimum((chunk + 1) * self.chunk, self.total)
        return For(u, chunk * self.chunk, stop, tuple(body), index(1))

    def count(self) -> Kernel:
        s, names = self.s, self.s.names
        chunk, b, u, row = (names.fresh(n) for n in ("chunk", "b", "u", "row"))
        first = chunk * self.buckets
        found = s.row(u)
        reports = s.pull.take_reports()
        slot = first + (row >> self.by.shift)
        body = (
            For(b, index(0), self.buckets, (Store(self.counts, first + b, index(0)),), index(1)),
            self.walk(chunk, u, [*reports, Let(row, found), Store(self.counts, slot, load(self.counts, slot) + 1)]),
        )
        loop = For(chunk, var("begin"), var("end"), body, index(1))
        return s.kernel("scatter_count", (*s.params, self.counts), self.chunks, self.total * 20, loop)

    def place(self) -> Kernel:
        """Counts become places: one bucket after the other, in a bucket one chunk after the other."""
        s, names = self.s, self.s.names
        lane = names.fresh("l")
        c, mine, sum_ = names.fresh("chunk"), names.fresh("n"), names.fresh("sum")
        d, b, own, total = names.fresh("chunk"), names.fresh("b"), names.fresh("n"), names.fresh("total")

        def before(bucket: Expr) -> list[Stmt]:
            at = c * self.buckets + bucket
            step = (Let(mine, load(self.counts, at)), Store(self.counts, at, sum_), Assign(sum_, sum_ + mine))
            return [Declare(sum_, index(0)), For(c, index(0), self.chunks, step, index(1)), Store(self.starts, bucket, sum_)]

        def moved(bucket: Expr) -> list[Stmt]:
            at = d * self.buckets + bucket
            return [Store(self.counts, at, load(self.counts, at) + load(self.starts, bucket))]

        body: list[Stmt] = [
            Vector(lane, COUNTED, (lanes(names, index(0), self.buckets, lane, COUNTED, before),)),
            Declare(total, index(0)),
            For(
                b,
                index(0),
                self.buckets,
                (Let(own, load(self.starts, b)), Store(self.starts, b, total), Assign(total, total + own)),
                index(1),
            ),
            Store(self.starts, self.buckets, total),
        ]
        again = names.fresh("l")
        row = lanes(names, index(0), self.buckets, again, COUNTED, moved)
        body.append(Vector(again, COUNTED, (For(d, index(0), self.chunks, (row,), index(1)),)))
        work = self.buckets * (self.chunks * 2 + 10)
        return s.kernel("scatter_place", (self.counts, self.starts), index(1), work, *body)

    def move(self) -> Kernel:
        s, names = self.s, self.s.names
        chunk, u, row, at = (names.fresh(n) for n in ("chunk", "u", "row", "at"))
        found = s.row(u)
        s.pull.take_reports()  # they were counted
        slot = chunk * self.buckets + (row >> self.by.shift)
        value = s.update(index(0), u, index(0)) if self.single else u
        body: list[Stmt] = [
            Let(row, found),
            Let(at, load(self.counts, slot)),
            Store(self.counts, slot, at + 1),
            Store(self.rows, at, cast(row & ((1 << self.by.shift) - 1), I32)),
            *s.pull.take_reports(),
            Store(self.moved, at, value),
        ]
        loop = For(chunk, var("begin"), var("end"), (self.walk(chunk, u, body),), index(1))
        return s.kernel("scatter_move", (*s.params, self.counts, self.rows, self.moved), self.chunks, self.total * 30, loop)

    def apply(self) -> Kernel:
        s, names, by = self.s, self.s.names, self.by
        inner, rows, width = dim_expr(s.inner), dim_expr(s.rows), by.width
        pieces = ceil_div(inner, by.piece) if by.piece else index(1)
        item, line, bucket, piece, low, high = (names.fresh(n) for n in ("item", "line", "bucket", "piece", "low", "high"))
        lane, i, row = names.fresh("l"), names.fresh("i"), names.fresh("row")
        start, stop = names.fresh("start"), names.fresh("stop")

        def over(make: Callable[[Expr], list[Stmt]]) -> Stmt:
            if not by.piece:
                return lanes(names, low * inner, high * inner, lane, width, make)
            r = names.fresh("r")
            return For(r, low, high, (lanes(names, r * inner + start, r * inner + stop, lane, width, make),), index(1))

        def add(column: Expr) -> list[Stmt]:
            u = load(self.moved, i)
            value = u if self.single else s.update(line, u, column)
            return [*s.pull.take_reports(), s.applied(row * inner + column, value)]

        head: list[Stmt] = [
            Let(piece, item % pieces),
            Let(bucket, item // pieces % self.buckets),
            Let(line, item // pieces // self.buckets),
            Let(low, line * rows + bucket * (1 << by.shift)),
            Let(high, line * rows + minimum((bucket + 1) * (1 << by.shift), rows)),
            Let(start, piece * by.piece),
            Let(stop, minimum(start + by.piece, inner) if by.piece else inner),
        ]
        one = Let(row, low + cast(load(self.rows, i), I64))
        first, last = load(self.starts, bucket), load(self.starts, bucket + 1)
        if self.single:
            # One element after the other: a region of its own for what goes in vectors.
            update: Stmt = For(i, first, last, (one, *add(index(0))), index(1))
            after: list[Stmt] = [] if s.target is s.out else [Vector(lane, width, (over(s.finished),))]
            body = [*head, Vector(lane, width, (over(s.begun),)), update, *after]
            loop: Stmt = For(item, var("begin"), var("end"), tuple(body), index(1))
        else:
            update = For(i, first, last, (one, lanes(names, start, stop, lane, width, add)), index(1))
            after = [] if s.target is s.out else [over(s.finished)]
            loop = Vector(lane, width, (For(item, var("begin"), var("end"), (*head, over(s.begun), update, *after), index(1)),))
        buffers = (*s.params, *(b.buffer for b in s.scratch), self.starts, self.rows, self.moved, s.out)
        parallel = dim_expr(s.outer) * self.buckets * pieces
        work = (rows + self.total * 4) * inner * dim_expr(s.outer) + self.total * 10
        return s.kernel("scatter_apply", buffers, parallel, work, loop)


__all__ = ["Segments", "lower_rows", "lower_segments"]
