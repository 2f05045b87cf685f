"""An operand of a tensor-core product that the producing threads bring into swizzled shared memory themselves.

Where 16 bytes of it lie together in memory, under one condition (a convolution's image with its channels last), by
asynchronous copies; else computed, element by element.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.cuda.products.rounding import rounded
from graphc.codegen.cuda.products.swizzle import is_copied
from graphc.codegen.expr import Expr, binary, const, index, load, select, var
from graphc.codegen.loops import Alloc, Buffer, Call, For, Let, Place, Store, Vector
from graphc.codegen.lower.affine import Levels, least_of, logical_and, normal, tidy
from graphc.codegen.lower.contraction import Operand
from graphc.codegen.lower.index import delinearise, dim_expr
from graphc.ir.types import size_of

THREADS = 128
ROW = 128  # bytes
UNITS = 8  # of 16 bytes in a row


class Gather:
    """Tiles of `rows` free indices and 128 bytes of depth, in a ring of stages.

    Neighbouring threads take neighbouring free indices: the rows of 8 of them fall into different banks, as unit u of row r lies
    at u xor (r mod 8). Free indices beyond the operand repeat the last one; k beyond the depth is zero.
    """

    def __init__(self, p: Product, side: Operand, rows: int, ring: Buffer) -> None:
        self.p, self.side, self.rows, self.ring = p, side, rows, ring
        self.width = 16 // ring.dtype.itemsize
        self.line = ROW // ring.dtype.itemsize
        self.along = min(rows, THREADS)
        self.copied = is_copied(p, side, ring.dtype, False)

    def prepare(self, body: Body, batch: Sequence[Expr], first: Expr) -> list[tuple[Expr, list[Expr]]]:
        """For each of a thread's free indices its row in the tile, and its coordinates."""
        p, last = self.p, dim_expr(self.side.size) - 1
        places = []
        for start in range(0, self.rows, THREADS // UNITS if self.copied else self.along):
            own = var("thread") // UNITS if self.copied else var("thread") % self.along
            row = p.let(body, "row", own + start)
            free = p.let(body, "free", least_of(first + row, last))
            places.append((row, p.coords(body, "f", free, self.side.free)))
        return places

    def issue(
        self, stage: Expr, k: Expr, batch: Sequence[Expr], places: Sequence[tuple[Expr, list[Expr]]]
    ) -> Body:
        """Bring depth k .. of this thread's rows into `stage`."""
        if self.copied:
            return self._copy(stage, k, batch, places)
        p, c = self.p, self.p.c
        depth = dim_expr(size_of(c.depth))
        whole = divisor(depth, p.divides) % self.line == 0
        even = p.divisor(size_of(c.depth)) % self.width == 0  # units lie inside or outside
        apart = THREADS // self.along  # threads that share a row
        own = -(-UNITS // apart)  # units of a thread: all are loaded before the first is stored
        begin = var("thread") // self.along if apart > 1 else index(0)
        out: Body = []
        for row, coords in places:
            held = Buffer(str(p.name("held").data), self.ring.dtype, "local")
            i, lane = p.name("i"), p.name("lane")
            inner: Body = []
            unit = p.let(inner, "unit", begin + i * apart)
            start = p.let(inner, "start", k + unit * self.width)
            here = start + lane
            if even:
                first = start if whole else p.let(inner, "first", least_of(start, depth - self.width))
                position = p.lane_coords(c.depth, inner, first, lane, self.width)
            else:
                position = delinearise(least_of(here, depth - 1), c.depth)
            value = rounded(self.side.at(batch, coords, position), self.ring.dtype)
            inside = None if whole else (start if even else here) < depth
            if inside is not None:
                value = select(inside, value, const(self.ring.dtype, 0))
            loops = [e for e in (*batch, *coords, start, lane) if e.op == "var"]
            named = p.name("value", self.ring.dtype)
            each: Body = [*p.checks(inside), Let(named, tidy(value, loops)), Store(held, i * self.width + lane, named)]
            inner.append(Vector(lane, self.width, tuple(each)))
            out += [Alloc(held, own * self.width), For(i, index(0), index(own), tuple(inner), index(1), unroll=True)]
            n, lane = p.name("i"), p.name("lane")
            unit = begin + n * apart
            at = stage * (self.rows * self.line) + row * self.line + binary("xor", unit, row % 8) * self.width
            store = Store(self.ring, at + lane, load(held, n * self.width + lane))
            out.append(For(n, index(0), index(own), (Vector(lane, self.width, (store,)),), index(1), unroll=True))
        return out

    def _copy(
        self, stage: Expr, k: Expr, batch: Sequence[Expr], places: Sequence[tuple[Expr, list[Expr]]]
    ) -> Body:
        """Neighbouring threads copy neighbouring units of a row: whole lines of memory where channels are many."""
        p, c = self.p, self.p.c
        out: Body = []
        unit = var("thread") % UNITS
        start = p.let(out, "start", k + unit * self.width)
        depth = p.lane_coords(c.depth, out, start, index(0), self.width)
        for row, coords in places:
            value = self.side.at(batch, coords, depth)
            p.c.pull.take_reports()
            inside = start < p.depth
            for cond in value.args[1:]:
                inside = logical_and(inside, cond)
            levels = Levels([e for e in (*batch, *coords, start) if e.op == "var"])
            at = stage * (self.rows * self.line) + row * self.line + binary("xor", unit, row % 8) * self.width
            target, source = Place(self.ring, at), Place(value.data, normal(value.args[0], levels))
            size = select(inside, index(16), index(0))
            out.append(Call("copy_async_16", (target, source, size), (self.ring,)))
        return out
