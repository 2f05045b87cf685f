"""Slabs of an operand of tensor-core products in shared memory, as `ldmatrix` reads them.

A unit is 16 bytes: 8 elements of 16 bits or 4 of 32, along the depth or along the free index:
- by depth: a row for each free index, with the slab's k; `ldmatrix` gives fragments as they are;
- by free: a row for each k, with the tile's free indices; `ldmatrix` transposes (16-bit elements only).

Units of a row are exchanged by the row's number, so that the eight rows that are read together lie in different banks.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.cuda.products.rounding import rounded
from graphc.codegen.expr import Expr, bits_const, index, load, select, var
from graphc.codegen.loops import Alloc, Buffer, Call, If, Let, Place, Store, Vector
from graphc.codegen.lower.affine import Levels, depends, least_of, linear, logical_and, normal, tidy
from graphc.codegen.lower.contraction import Operand, access
from graphc.codegen.lower.index import delinearise, dim_expr
from graphc.ir.types import F32, DType, size_of

ROW = 64  # bytes of the depth in a slab: two steps of any instruction


def is_copied(p: Product, side: Operand, dtype: DType, by_free: bool) -> bool:
    """Whether units of an operand can be copied as they lie: loads of 16 neighbouring bytes at multiples of 16, under one condition."""
    unit = 16 // dtype.itemsize
    if dtype is F32 and (by_free or not p.packed):
        return False
    batch = [var(f"batch{i}") for i in range(len(p.c.batch))]
    free, depth, lane = var("free"), var("depth"), var("lane")
    if by_free:
        along, base = side.size, "free"
        e = side.at(batch, p.lane_coords(side.free, None, free, lane, unit), delinearise(depth, p.c.depth))
    else:
        along, base = size_of(p.c.depth), "depth"
        e = side.at(batch, delinearise(free, side.free), p.lane_coords(p.c.depth, None, depth, lane, unit))
    if p.c.pull.take_reports() or e.op != "load" or e.dtype is not dtype or p.divisor(along) % unit:
        return False
    found = linear(e.args[0], lane, Levels([*batch, free, depth, lane]))
    if found is None or found[0] is not index(1) or any(depends(cond, lane) for cond in e.args[1:]):
        return False
    return divisor(found[1], {**p.divides, base: unit}) % unit == 0


class TensorStager:
    """One operand of a tile of `width` free indices in `stages` stages of shared memory."""

    def __init__(self, p: Product, side: Operand, dtype: DType, width: int, threads: int, stages: int, name: str) -> None:
        self.p, self.side, self.dtype = p, side, dtype
        self.width, self.threads = width, threads
        self.unit = 16 // dtype.itemsize
        self.slab = ROW // dtype.itemsize
        self.count = dim_expr(side.size)
        self.access = access(p.c, side)
        # By depth as it lies, by free as it lies, or through registers.
        copied = [by_free for by_free in (False, True) if is_copied(p, side, dtype, by_free)]
        self.asynchronous = bool(copied)
        self.by_free = copied[0] if copied else self.access.unit_free and dtype is not F32
        self.row_units = width // self.unit if self.by_free else self.slab // self.unit
        self.rows = self.slab if self.by_free else width
        self.stage_size = width * self.slab
        self.units = self.rows * self.row_units
        self.steps = -(-self.units // threads)
        self.buffer = Buffer(name, dtype, "shared")
        self.held = Buffer(f"{name}_next", dtype, "local")
        self.allocs: Body = [Alloc(self.buffer, stages * self.stage_size)]
        if not self.asynchronous:
            self.allocs.append(Alloc(self.held, self.steps * self.unit))
        self._coords: dict[Expr, Sequence[Expr]] = {}

    def prepare(self, body: Body, first: Expr, batch: Sequence[Expr]) -> None:
        """Name what does not change along the depth."""
        self.batch = list(batch)
        self.places = [self._place(var("thread"), e) for e in range(self.steps)]
        for row, unit in self.places:
            free = unit * self.unit if self.by_free else row
            if free in self._coords:
                continue
            last = self.count - (self.unit if self.by_free and self.asynchronous else 1)
            flat = self.p.let(body, "free", least_of(first + free, last))
            if self.by_free and not self.asynchronous:
                self._coords[free] = [self.p.let(body, "first", first + free)]
            else:
                self._coords[free] = self.p.coords(body, "f", flat, self.side.free)

    def _place(self, thread: Expr, e: int) -> tuple[Expr, Expr]:
        """The row and the unit in the row of this thread's unit `e`."""
        units, threads = self.row_units, self.threads
        if not self.by_free and not self.asynchronous and not self.access.unit_depth:
            # Neighbouring threads read neighbouring free indices.
            if threads % self.width == 0:
                return thread % self.width, thread // self.width + e * (threads // self.width)
            q = thread + e * threads
            return q % self.width, q // self.width
        if threads % units == 0:
            return thread // units + e * (threads // units), thread % units
        q = thread + e * threads
        return q // units, q % units

    def position(self, row: Expr, unit: Expr) -> Expr:
        """Where a unit of a row lies in a stage, in elements."""
        return (row * self.row_units + self.exchanged(row, unit)) * self.unit

    def exchanged(self, row: Expr, unit: Expr) -> Expr:
        if self.row_units >= 8:
            return unit ^ (row % 8)
        if self.row_units == 4:
            return unit ^ (row // 2 % 4)
        if self.row_units == 2:
            return unit ^ (row // 4 % 2)
        return unit

    def _guarded(self, e: int, body: Body) -> Body:
        if (e + 1) * self.threads <= self.units:
            return body
        return [If(var("thread") + e * self.threads < self.units, tuple(body))]

    def issue(self, start: Expr, stage: Expr) -> Body:
        """Begin to bring the slab from k = `start`; zeros follow the last k."""
        p = self.p
        out: Body = []
        levels = [*self.batch, *(v for coords in self._coords.values() for v in coords), start]
        for e, (row, unit) in enumerate(self.places):
            free = unit * self.unit if self.by_free else row
            k = start + (row if self.by_free else unit * self.unit)
            if self.asynchronous:
                if self.by_free:
                    depth = delinearise(k, p.c.depth)
                else:
                    depth = p.lane_coords(p.c.depth, out, k, index(0), self.unit)
                value = self.side.at(self.batch, self._coords[free], depth)
                p.c.pull.take_reports()
                source = Place(value.data, normal(value.args[0], Levels(levels)))
                target = Place(self.buffer, stage * self.stage_size + self.position(row, unit))
                inside = k < p.depth
                for cond in value.args[1:]:
                    inside = logical_and(inside, cond)
                there = select(inside, index(16), index(0))
                out += self._guarded(e, [Call("copy_async_16", (target, source, there), (self.buffer,))])
                continue
            lane = p.name("l")
            at = k if self.by_free else k + lane
            inside = at < p.depth
            depth = delinearise(least_of(at, p.depth - 1), p.c.depth)
            if self.by_free:
                (first,) = self._coords[free]
                coords: Sequence[Expr] = delinearise(least_of(first + lane, self.count - 1), self.side.free)
            else:
                coords = self._coords[free]
            value = tidy(self.side.at(self.batch, coords, depth), [*levels, lane])
            checks = p.checks()
            value = rounded(value, self.dtype)
            value = select(inside, value, bits_const(self.dtype, 0))
            name = p.name("element", self.dtype)
            body: Body = [*checks, Let(name, value), Store(self.held, lane + e * self.unit, name)]
            out += self._guarded(e, [Vector(lane, self.unit, tuple(body))])
        return out

    def commit(self, stage: Expr) -> Body:
        """Put the slab that `issue` loaded into registers into `stage`."""
        if self.asynchronous:
            return []
        out: Body = []
        for e, (row, unit) in enumerate(self.places):
            lane = self.p.name("l")
            at = stage * self.stage_size + self.position(row, unit) + lane
            store = Store(self.buffer, at, load(self.held, lane + e * self.unit))
            out += self._guarded(e, [Vector(lane, self.unit, (store,))])
        return out

    def fragment(self, into: Place, stage: Expr, free: Expr, step: int, left: bool) -> Body:
        """Load the fragment of 16 free indices from `free` (a multiple of 16) at k step 0 or 1: four registers.

        left: rows of a product, in the order in which the instruction wants them; else columns, two fragments of 8.
        """
        lane = var("thread") % 32
        matrix, line = lane // 8, lane % 8
        # Of the four matrices of 8 free indices x 16 bytes of k: which half of the free indices and of the k.
        near, far = matrix % 2, matrix // 2
        half_free, half_k = (near, far) if left else (far, near)
        if self.by_free:
            row = half_k * 8 + line + step * 16
            unit = free // 8 + half_free
            name = "ldmatrix_x4_trans"
        else:
            row = free + half_free * 8 + line
            unit = half_k + step * 2
            name = "ldmatrix_x4"
        at = Place(self.buffer, stage * self.stage_size + self.position(row, unit))
        return [Call(name, (into, at), (into.buffer,))]
