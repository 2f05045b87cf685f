"""How the operands of a product reach shared memory on Hopper: as a view of a buffer for the bulk copy engine, if they are one.

A view needs plain loads whose position is linear in the depth, the free index and each batch coordinate, steps of one element
along the depth or along the free index, and all other steps multiples of 16 bytes. What is not a view is packed into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphc.codegen.cuda.products.product import Body, Product, divisor
from graphc.codegen.expr import Expr, index, var
from graphc.codegen.loops import Buffer, Call, Place, TensorMap
from graphc.codegen.lower.affine import Levels, linear, normal, terms
from graphc.codegen.lower.contraction import Operand
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.ir.types import F32, Dim, DType, Shape, size_of

ROW = 128  # bytes along the innermost dimension of a box: a row of a tile
MOST_BATCH = 3  # of the five dimensions that a view can have


@dataclass(frozen=True)
class View:
    """along_k: neighbours in memory run along the depth, else along the free index.

    sizes, strides, start: of the neighbours' dimension, the other one, and the batch dimensions named in `batch`, in
    elements; `start` is the coordinate of index 0. The stride of the neighbours' dimension is 1 and is left out.
    merged: the batch dimensions whose row-major position is the one batch coordinate, in place of `batch`.
    """

    buffer: Buffer
    along_k: bool
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    start: tuple[Expr, ...]
    batch: tuple[int, ...]
    merged: tuple[int, ...] = ()

    def map(self, name: str, rows: int, rounded: bool) -> TensorMap:
        """The tensor map for tiles of `rows` free indices."""
        unit = ROW // self.buffer.dtype.itemsize
        box = (unit, rows) if self.along_k else (unit, unit)
        return TensorMap(name, self.buffer, self.sizes, self.strides, (*box, *(1 for _ in self.sizes[2:])), rounded)

    def outer(self, batch: Sequence[Expr], shape: Shape) -> list[Expr]:
        """The coordinates of the view behind the first two, for batch coordinates in `shape`."""
        if self.merged:
            return [linearise([batch[i] for i in self.merged], tuple(shape[i] for i in self.merged))]
        return [batch[i] for i in self.batch]


def view_of(p: Product, side: Operand, element: DType) -> View | None:
    """One side of a product as a view, or None. element: what the tensor cores are given; float32 means tf32."""
    c = p.c
    batch = [var(f"batch{i}") for i in range(len(c.batch))]
    free, depth = var("free"), var("depth")
    e = side.at(batch, delinearise(free, side.free), delinearise(depth, c.depth))
    if c.pull.take_reports() or e.op != "load" or len(e.args) != 1 or e.dtype is not element:
        return None
    levels = Levels([*batch, free, depth])
    rest = e.args[0]
    steps: list[Expr] = []
    for v in (depth, free, *batch):
        found = linear(rest, v, levels)
        if found is None:
            return None
        step, rest = found
        steps.append(step)
    along_k = _is(steps[0], 1)
    if not along_k and (not _is(steps[1], 1) or element is F32):
        return None
    extents: list[Dim] = [size_of(c.depth), side.size, *c.batch]
    used = tuple(i for i in range(len(batch)) if not _is(steps[2 + i], 0))
    order = [*((0, 1) if along_k else (1, 0)), *(2 + i for i in used)]
    strides = []
    for i in order[1:]:
        step = steps[i]
        if _is(step, 0) and extents[i] == 1:
            step = index(ROW)  # never taken
        if not is_stride(step, p.divides, element):
            return None
        strides.append(step)
    start = split(rest, strides)
    if len(used) > MOST_BATCH or start is None:
        return None
    sizes = tuple(dim_expr(extents[i]) + s for i, s in zip(order, start, strict=True))
    return View(e.data, along_k, sizes, tuple(strides), tuple(start), used)


def _is(e: Expr, value: int) -> bool:
    return e.op == "const" and e.data == value


def is_stride(step: Expr, divides: Mapping[str, int], element: DType) -> bool:
    """Whether a step is surely positive and a multiple of 16 bytes."""
    positive = all(c > 0 for c in terms(step).values()) and not _is(step, 0)
    return positive and divisor(step, divides) * element.itemsize % 16 == 0


def split(offset: Expr, strides: Sequence[Expr]) -> list[Expr] | None:
    """An offset as coordinates, those of the neighbours' dimension first; None if it may be negative or is no such sum.

    >>> split(var("e0") * 24 + 8, [var("e0") * 8])
    [8, 3]
    """
    coordinates = [index(0)] * (len(strides) + 1)
    pending = list(terms(offset).items())
    while pending:
        monomial, c = pending.pop()
        # The widest step that fits; what is left over belongs to the dimensions inside of it.
        best: tuple[int, int, int, int, list[Expr]] | None = None
        for i, stride in enumerate(strides):
            parts = terms(stride)
            if len(parts) != 1:
                continue
            ((factors, scale),) = parts.items()
            left = _without(monomial, factors)
            if left is not None and c >= scale:
                found = (len(left), c // scale, i + 1, scale, left)
                best = found if best is None else min(best, found, key=lambda t: t[:3])
        if c < 0 or (best is None and monomial):
            return None
        if best is None:
            coordinates[0] = coordinates[0] + c
            continue
        _, count, place, scale, left = best
        product = index(count)
        for atom in left:
            product = product * atom
        coordinates[place] = coordinates[place] + product
        if c % scale:
            pending.append((monomial, c % scale))
    return coordinates


def _without(monomial: Sequence[Expr], factors: Sequence[Expr]) -> list[Expr] | None:
    """What is left of a product when it is divided by these factors; None if they are not all in it."""
    left = list(monomial)
    for atom in factors:
        if atom not in left:
            return None
        left.remove(atom)
    return left


class Copies:
    """The bulk copies of one operand's tiles of `rows` free indices.

    parts: of a tile that so many blocks of a cluster share; each asks for one.
    """

    def __init__(
        self, view: View, name: str, rows: int, ring: Buffer, rounded: bool, batch: Shape, parts: int = 1
    ) -> None:
        self.view, self.ring, self.rows, self.batch, self.parts = view, ring, rows, batch, parts
        self.unit = ROW // ring.dtype.itemsize
        self.map = view.map(f"{name}_map", rows // parts, rounded)

    def issue(
        self, stage: Expr, barrier: Place, k: Expr, first: Expr, batch: Sequence[Expr], rank: Expr | None = None
    ) -> Body:
        """Copy depth k .. of the free indices from `first` into `stage`, counted on `barrier`. rank: of this block."""
        v = self.view
        tile = stage * (self.rows * self.unit)
        outer = v.outer(batch, self.batch)
        high = self.map.box[1] if v.along_k else self.unit  # free indices of a box
        out: Body = []
        for i in range(0, self.rows, high):
            inner = (k, first + i) if v.along_k else (first + i, k)
            at = [normal(c + s, Levels([])) for c, s in zip((*inner, *outer), v.start, strict=True)]
            name = f"bulk_load_{len(at)}d"
            args: tuple[Expr | Place | TensorMap, ...] = (Place(self.ring, tile + i * self.unit), self.map, barrier, *at)
            if self.parts > 1:
                assert rank is not None
                part = index(i * self.parts // self.rows)
                out.append(Call(f"{name}_part", (*args, part, rank, index((1 << self.parts) - 1)), (self.ring,)))
            else:
                out.append(Call(name, args, (self.ring,)))
        return out
