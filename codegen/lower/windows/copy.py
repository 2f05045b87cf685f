"""The padded copy of a task's input: see geometry.py for its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, const, equal, index, select
from graphc.codegen.loops import Buffer, For, If, Let, Stmt, Store, Vector
from graphc.codegen.lower.affine import Levels, decided, greatest_of, least_of, logical_and, normal, tidy
from graphc.codegen.lower.index import Position, linearise
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.ir.function import Value
from graphc.ir.types import BOOL, DType

Body = list[Stmt]
Name = Callable[[str], Expr]


class WindowCopy:
    """Writes the copy of `rows` rows of each segment, from row `first`, of one example and group."""

    def __init__(
        self, g: Geometry, x: Value, pull: Pull, buffer: Buffer, dtype: DType, width: int, segment: int, name: Name,
        swapped: bool = False,
    ) -> None:  # fmt: skip
        """swapped: the first dimension of x is the channels, the second one the examples."""
        self.g, self.x, self.pull, self.buffer, self.dtype = g, x, pull, buffer, dtype
        self.width, self.segment, self.name, self.swapped = width, segment, name, swapped

    def body(
        self, example: Expr, channel: Expr, base: Expr, first: Expr, rows: Expr, loops: Sequence[Expr]
    ) -> Body:
        """channel: of x, the group's first one. base: where the copy starts."""
        g = self.g
        c, phase, at = self.name("c"), self.name("phase"), self.name("segment")
        inner = [self.name("k") if d > 1 else index(0) for d in g.window[1:]]
        kin = linearise(inner, g.window[1:])
        place = base + ((c * g.inner + kin) * g.phases + phase) * self.segment
        order = [*loops, c, *(k for k in inner if k.op == "var"), phase, at]
        lines = self._line if g.line == 1 and len(g.window) == 1 else self._lines
        body: Body = [Let(at, place), *lines(example, channel + c, inner, phase, at, first, rows, order)]
        nest = [
            (c, g.channels),
            *((k, d) for k, d in zip(inner, g.window[1:], strict=True) if d > 1),
            (phase, g.phases),
        ]
        for v, stop in reversed(nest):
            body = [For(v, index(0), index(stop), tuple(body), index(1))]
        return body

    def _image(self, n: Expr, c: Expr) -> tuple[Expr, Expr]:
        return (c, n) if self.swapped else (n, c)

    def _value(self, coords: Sequence[Expr], inside: Expr, order: Sequence[Expr]) -> tuple[Body, Expr]:
        """x at coordinates where `inside` holds, zero elsewhere, in the dtype of sums."""
        value = self.pull.at_if(self.x, Position(self.x.type.shape, coords), inside)
        if value.op != "load":
            value = select(inside, value, const(value.dtype, 0))
        return self.pull.take_reports(), tidy(cast(value, self.dtype), order)

    def _line(
        self, n: Expr, c: Expr, inner: list[Expr], phase: Expr, at: Expr, first: Expr, rows: Expr, order: list[Expr]
    ) -> Body:  # fmt: skip
        """One dimension: a segment is one line of pixels."""
        g = self.g
        u, lane = self.name("u"), self.name("lane")
        here, inside = self._source(0, (first + u + lane) * g.strides[0] + phase * g.phase_step)
        checks, value = self._value((*self._image(n, c), here), inside, [*order, u, lane])
        put = Store(self.buffer, at + u + lane, value)
        turn = Vector(lane, self.width, (*checks, put))
        return [For(u, index(0), rows, (turn,), index(self.width))]

    def _lines(
        self, n: Expr, c: Expr, inner: list[Expr], phase: Expr, at: Expr, first: Expr, rows: Expr, order: list[Expr]
    ) -> Body:  # fmt: skip
        """Lines of the last dimension. Vectors reach over a line's end: what they write there is written
        again, as a line's last vectors are written before its first ones, and lines in order."""
        g, w = self.g, self.width
        last = len(g.out) - 1
        j, lane = self.name("row"), self.name("lane")
        middle = [self.name("i") for _ in g.out[1:last]]
        vectors = -(-g.out[last] // w)
        back = self.name("back") if vectors > 1 else index(0)
        start = (index(vectors - 1) - back) * w
        row, valid = self._source(0, (first + j) * g.strides[0] + phase * g.phase_step)
        coords = [*self._image(n, c), row]
        for d, i in enumerate(middle, 1):
            here, ok = self._source(d, i * g.strides[d] + inner[d - 1] * g.reach[d])
            coords.append(here)
            valid = logical_and(valid, ok)
        over = vectors * w - g.out[last]
        here, inside = self._source(
            last, (start + lane) * g.strides[last] + inner[last - 1] * g.reach[last], over
        )
        loops = [*order, *([back] if vectors > 1 else []), j, *middle, lane]
        checks, value = self._value((*coords, here), inside, loops)
        to = normal(
            at + j * g.line + linearise(middle, g.out[1:last]) * g.out[last] + start + lane, Levels(loops)
        )
        filled: Body = [*checks, Store(self.buffer, to, value)]
        empty: Body = [Store(self.buffer, to, const(self.dtype, 0))]

        def lines(low: Expr, high: Expr, body: Body) -> Body:
            for v, d in reversed(list(zip(middle, g.out[1:last], strict=True))):
                body = [For(v, index(0), index(d), tuple(body), index(1))]
            return [For(j, low, high, tuple(body), index(1))]

        # The loops over lines are inside of the vector region: masks are the same for all of them.
        lets: Body = []
        if middle or g.spread[0] > 1:
            body = lines(index(0), rows, [If(valid, tuple(filled), tuple(empty))])
        else:
            low, high, lets = self._valid_rows(phase, first, rows)
            body = [*lines(index(0), low, empty), *lines(low, high, filled), *lines(high, rows, empty)]
        body = [*lets, Vector(lane, w, tuple(body))]
        return [For(back, index(0), index(vectors), tuple(body), index(1))] if vectors > 1 else body

    def _valid_rows(self, phase: Expr, first: Expr, rows: Expr) -> tuple[Expr, Expr, Body]:
        """The rows of a segment that lie in x, of `rows` rows from `first`."""
        g = self.g
        low, high = self.name("low"), self.name("high")
        step, before = g.strides[0], g.low[0] - phase * g.phase_step

        def least(edge: Expr) -> Expr:
            """The first row at or behind `edge`; what division makes of negative numbers is cut off."""
            return least_of(greatest_of((edge + (step - 1)) // step - first, index(0)), rows)

        return low, high, [Let(low, least(before)), Let(high, greatest_of(low, least(before + g.image[0])))]

    def _source(self, d: int, padded: Expr, over: int = 0) -> tuple[Expr, Expr]:
        """The coordinate of x in spatial dimension d of a padded coordinate, and whether there is one.

        over: so many pixels behind the last one are asked for as well.
        """
        g = self.g
        at, size, spread = padded - g.low[d], g.image[d], g.spread[d]
        covered = (size - 1) * spread + 1
        inside: Expr = const(BOOL, True)
        if g.low[d] > 0:
            inside = logical_and(inside, decided(at >= 0))
        furthest = (g.out[d] - 1 + over) * g.strides[d] + (g.window[d] - 1) * g.reach[d] - g.low[d]
        if furthest >= covered or d == 0:
            inside = logical_and(inside, decided(at < covered))
        if spread > 1:
            inside = logical_and(inside, equal(at % spread, 0))
            at = at // spread
        return at, inside
