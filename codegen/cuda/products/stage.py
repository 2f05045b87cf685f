"""Staging: slabs of an operand on their way into shared memory, k-major (all of a tile's free indices at each k).

Three ways, chosen by how the operand lies in memory:
- "wide": 16-byte asynchronous copies along the free index;
- "narrow": 4-byte asynchronous copies; those along the depth are transposed by where they go;
- "registers": loads of any expression (fused producers, padding, conversions) into registers, stored a slab later.

Free indices beyond the operand read its last element, and k beyond the depth likewise: what they give is never used.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.products.patches import PatchTable
from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.expr import Expr, index, load, var
from graphc.codegen.loops import Alloc, Buffer, Call, If, Place, Store
from graphc.codegen.lower.affine import Levels, least_of, normal, tidy
from graphc.codegen.lower.contraction import Access, Operand, access, widened
from graphc.codegen.lower.index import delinearise, dim_expr

LINE = 8  # neighbouring threads along the depth: 32 bytes of float32, a sector
LONG_LINE = 32  # where rows of shared memory may have any pitch: a whole warp


class Stager:
    """One operand of a tile of `width` free indices, `slab` k at a time, in `stages` stages of shared memory."""

    def __init__(
        self, p: Product, side: Operand, width: int, run: int, slab: int, threads: int, stages: int, name: str,
        table: PatchTable | None = None,
    ) -> None:  # fmt: skip
        """run: free indices that a thread reads at once. table: where a convolution's patches are read from."""
        self.p, self.side, self.table = p, side, table
        self.width, self.slab, self.threads = width, slab, threads
        self.count = dim_expr(side.size)
        self.access = access(p.c, side)
        if table is not None:
            self.way, self.along_depth = "narrow" if p.dtype.bits == 32 else "registers", False
        else:
            self.way, self.along_depth = _way(p, side, self.access, width)
        self.vector = 4 if self.way == "wide" else 1
        # Transposed stores of neighbouring k fall into different banks, and 16-byte reads stay aligned.
        self.line = min(LINE if run > 1 else LONG_LINE, slab)
        self.stride = width
        if self.along_depth and width > 1:
            self.stride += 4 if run > 1 else 1
        self.buffer = Buffer(name, p.dtype, "shared")
        self.stage_size = slab * self.stride
        pieces = slab * width // self.vector
        self.steps = -(-pieces // threads)
        self.pieces = pieces
        self.held = Buffer(f"{name}_next", p.dtype, "local")
        self.allocs: Body = [Alloc(self.buffer, stages * self.stage_size)]
        if not self.asynchronous:
            self.allocs.append(Alloc(self.held, self.steps))
        self._coords: dict[Expr, Sequence[Expr]] = {}

    @property
    def asynchronous(self) -> bool:
        return self.way != "registers"

    def prepare(self, body: Body, first: Expr, batch: Sequence[Expr]) -> None:
        """Name what does not change along the depth: the coordinates of this thread's free indices."""
        self.batch = list(batch)
        thread = var("thread")
        self.places = [self._piece(thread, e) for e in range(self.steps)]
        for free, _ in self.places:
            if free not in self._coords:
                last = self.count - self.vector
                flat = self.p.let(body, "free", first + free if self.width == 1 else least_of(first + free, last))
                coords: Sequence[Expr] = self.p.coords(body, "f", flat, self.side.free)
                if self.table is not None:
                    coords = [self.p.let(body, "corner", self.table.corner(self.batch, coords))]
                self._coords[free] = coords

    def _piece(self, thread: Expr, e: int) -> tuple[Expr, Expr]:
        """The free index and the k, inside of the tile, of this thread's piece `e`."""
        width, threads = self.width // self.vector, self.threads
        if self.along_depth:
            line = self.line
            if (width * line) % threads == 0:
                r = width * line // threads
                return thread // line + (e % r) * (threads // line), thread % line + (e // r) * line
            q = thread + e * threads
            return q // line % width, q % line + q // (line * width) * line
        if threads % width == 0:
            return thread % width * self.vector, thread // width + e * (threads // width)
        q = thread + e * threads
        return q % width * self.vector, q // width

    def _element(self, e: int, start: Expr, whole: bool) -> Expr:
        """The element of piece `e` of the slab from `start`; `whole`: all its k surely exist."""
        free, k = self.places[e]
        at = start + k if whole else least_of(start + k, self.p.depth - 1)
        coords = self._coords[free]
        if self.table is not None:
            return self.table.at(coords[0], at)
        return self.side.at(self.batch, coords, delinearise(at, self.p.c.depth))

    def _where(self, e: int, body: Body) -> Body:
        """`body` for the threads that have a piece `e`."""
        if (e + 1) * self.threads <= self.pieces:
            return body
        return [If(var("thread") + e * self.threads < self.pieces, tuple(body))]

    def _levels(self) -> list[Expr]:
        return [*self.batch, *(v for coords in self._coords.values() for v in coords)]

    def issue(self, start: Expr, stage: Expr, whole: bool) -> Body:
        """Begin to bring the slab from k = `start`: copies into `stage`, or loads into registers."""
        out: Body = []
        levels = [*self._levels(), start]
        for e in range(self.steps):
            value = self._element(e, start, whole)
            if self.asynchronous:
                self.p.c.pull.take_reports()
                free, k = self.places[e]
                target = Place(self.buffer, stage * self.stage_size + k * self.stride + free)
                source = Place(value.data, normal(value.args[0], Levels(levels)))
                name, size = ("copy_async_16", 16) if self.way == "wide" else ("copy_async_4", 4)
                out += self._where(e, [Call(name, (target, source, index(size)), (self.buffer,))])
            else:
                widened_value = tidy(widened(self.p.c, value), levels)
                out += self._where(e, [*self.p.checks(), Store(self.held, index(e), widened_value)])
        return out

    def commit(self, stage: Expr) -> Body:
        """Put the slab that `issue` loaded into registers into `stage`."""
        if self.asynchronous:
            return []
        out: Body = []
        for e, (free, k) in enumerate(self.places):
            target = stage * self.stage_size + k * self.stride + free
            out += self._where(e, [Store(self.buffer, target, load(self.held, index(e)))])
        return out


def _way(p: Product, side: Operand, a: Access, width: int) -> tuple[str, bool]:
    """How an operand is staged, and whether neighbouring threads take neighbouring k."""
    along_depth = a.unit_depth and not a.unit_free
    batch = [var(f"batch{i}") for i in range(len(p.c.batch))]
    free, depth = var("free"), var("depth")
    e = side.at(batch, delinearise(free, side.free), delinearise(depth, p.c.depth))
    plain = not p.c.pull.take_reports() and e.op == "load" and len(e.args) == 1 and e.dtype is p.dtype
    if not plain or p.dtype.bits != 32:
        return "registers", along_depth
    if a.unit_free and width % 4 == 0 and divisor(dim_expr(side.size), p.divides) % 4 == 0:
        position = normal(e.args[0], Levels([*batch, free, depth]))
        if divisor(position, {**p.divides, "free": 4}) % 4 == 0:
            return "wide", False
    return "narrow", along_depth
