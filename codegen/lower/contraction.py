"""A contraction: what `dot` and `conv` have in common, and how an operand can be read.

result[batch, left free, right free] = sum over depth of left[batch, left free, depth] *
right[batch, right free, depth]. A schedule then calls one side the rows and the other the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.codegen.expr import Expr, cast, children_first, index, replace, var
from graphc.codegen.loops import Buffer
from graphc.codegen.lower.affine import Levels, depends, linear, tidy
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import F32, I32, I64, U32, Dim, DType, Shape, size_of

BLOCK = 256  # k of a chain of fused multiply-adds (docs/architecture.md, the bit contract)
LEAST_RUN = 8
Coords = Sequence[Expr]
Element = Callable[[Coords, Coords, Coords], Expr]  # batch, free, depth coordinates -> element


@dataclass(frozen=True)
class Operand:
    """One side: the dimensions that are neither batch nor contracted, and its element there."""

    free: Shape
    at: Element

    @property
    def size(self) -> Dim:
        return size_of(self.free)


@dataclass(frozen=True)
class Patches:
    """The right operand as positions in a padded copy of a tensor: that of the free index plus that of depth.

    element: the copy's element at its coordinates. corner: batch and free coordinates -> the place of
    depth 0 in the copy; reach: depth coordinates -> what they add to it.
    """

    shape: Shape
    element: Callable[[Coords], Expr]
    corner: Callable[[Coords, Coords], Expr]
    reach: Callable[[Coords], Expr]


@dataclass(frozen=True)
class Contraction:
    """The root operation of a group as a contraction.

    place: batch, left free and right free coordinates -> the coordinates in the root's result.
    patches: another way to read the right operand.
    """

    group: Function
    root: Operation
    pull: Pull
    batch: Shape
    depth: Shape
    left: Operand
    right: Operand
    place: Callable[[Coords, Coords, Coords], tuple[Expr, ...]]
    patches: Patches | None = None

    @property
    def result(self) -> Value:
        return self.root.result

    @property
    def accumulator(self) -> DType:
        """What products are summed in: float32 for small floats; integers wrap alike in 32 bits."""
        dtype = self.result.type.dtype
        if dtype.is_float:
            return F32 if dtype.bits < 32 else dtype
        if dtype.bits < 32:
            return I32 if dtype.kind == "i" else U32
        return dtype


@dataclass(frozen=True)
class Transposable:
    """Memory whose neighbours run along the depth, or (`outer`) along all but its first dimension.

    position: batch coordinates, flat free index, depth coordinates -> the element's place in `buffer`.
    """

    buffer: Buffer
    outer: bool
    position: Callable[[Sequence[Expr], Expr, Sequence[Expr]], Expr]


@dataclass(frozen=True)
class Access:
    """How the elements of one side lie in memory, seen from flat batch, free and depth indices.

    batch: which batch dimensions it depends on.
    direct: every element is one unconditional load, its position linear in the depth index.
    unit_free: neighbours along the free index are neighbours in memory; unit_depth likewise.
    transposed: neighbours along the depth are, so that square blocks can be transposed in registers.
    run: not `direct`, but every element is one unconditional load, and its position is linear in the depth index
        within each run of so many: heads of an attention put side by side. None where it is not so.
    run_unit: within a run, neighbours along the depth are neighbours in memory.
    unit_inner: neighbours along the free index are neighbours in memory, at least within runs.
    """

    batch: tuple[int, ...]
    direct: bool
    unit_free: bool
    unit_depth: bool
    transposed: Transposable | None = None
    run: Expr | None = None
    run_unit: bool = False
    unit_inner: bool = False


def element(c: Contraction, side: Operand, batch: Coords, free: Expr, depth: Expr) -> Expr:
    """The widened element at flat free and depth indices; run-time checks are left in `c.pull`."""
    return widened(c, side.at(batch, delinearise(free, side.free), delinearise(depth, c.depth)))


def widened(c: Contraction, e: Expr) -> Expr:
    return cast(e, c.accumulator)


def access(c: Contraction, side: Operand) -> Access:
    """The structure of one side's reads. Leaves no checks behind."""
    batch = [var(f"batch{i}") for i in range(len(c.batch))]
    free, depth = var("free"), var("depth")
    e = tidy(element(c, side, batch, free, depth), [*batch, free, depth])
    checked = bool(c.pull.take_reports())
    used = tuple(i for i, b in enumerate(batch) if depends(e, b))
    while e.op == "cast":
        e = e.args[0]
    if e.op != "load" or checked:
        return Access(used, False, False, False)
    levels = Levels([*batch, free, depth])
    along_free = linear(e.args[0], free, levels)
    along_depth = linear(e.args[0], depth, levels)
    direct = len(e.args) == 1 and along_depth is not None
    run, run_unit, unit_free = None, False, _is_one(along_free)
    if along_depth is None and len(e.args) == 1:
        run, run_unit = _run(e.args[0], batch, free, depth)
    inner = unit_free or (along_free is None and _run(e.args[0], batch, depth, free)[1])
    return Access(used, direct, unit_free, _is_one(along_depth), transposable(c, side), run, run_unit, inner)


def _run(position: Expr, batch: Sequence[Expr], free: Expr, depth: Expr) -> tuple[Expr | None, bool]:
    """A run of the depth within which positions are linear, and whether neighbours in it are neighbours in memory.

    As the depth is nothing but a name here, it may be a free index as well.
    """
    nodes = children_first((position,))
    lengths = dict.fromkeys(n.args[1] for n in nodes if n.op == "irem" and n.args[0] is depth)
    outer, inner = var("outer"), var("inner")
    for length in lengths:
        if length.op == "const" and length.data < LEAST_RUN:
            continue
        inside = in_run(position, depth, length, outer, inner)
        found = linear(inside, inner, Levels([*batch, free, outer, inner]))
        if found is not None and not depends(inside, depth):
            return length, _is_one(found)
    return None, False


def in_run(e: Expr, depth: Expr, length: Expr, outer: Expr, inner: Expr) -> Expr:
    """`e` where `depth` is outer * length + inner, of which nothing but quotients and remainders by the length is read."""
    return replace(e, {depth // length: outer, depth % length: inner})


def transposable(c: Contraction, side: Operand) -> Transposable | None:
    """How blocks of a side can be transposed: plain loads, linear in the free index, unit steps in depth."""
    batch = [var(f"batch{i}") for i in range(len(c.batch))]
    free, outer, inner = var("free"), var("outer"), var("inner")

    def read(batch: Sequence[Expr], free: Expr, depth: Sequence[Expr]) -> Expr | None:
        e = side.at(batch, delinearise(free, side.free), depth)
        checked = bool(c.pull.take_reports())
        return e if e.op == "load" and len(e.args) == 1 and not checked else None

    def depth_coords(split: bool) -> Sequence[Expr]:
        if split:
            return (outer, *delinearise(inner, c.depth[1:]))
        return delinearise(inner, c.depth)

    levels = Levels([*batch, free, outer, inner])
    for split in (False, True):
        if split and len(c.depth) < 2:
            break
        e = read(batch, free, depth_coords(split))
        if e is None:
            return None
        along, across = linear(e.args[0], inner, levels), linear(e.args[0], free, levels)
        if along is None or across is None or along[0] is not index(1):
            continue
        if Levels([inner, outer, free]).of(across[0]):
            continue
        return Transposable(e.data, split, _position(c, side))
    return None


def _position(c: Contraction, side: Operand) -> Callable[[Sequence[Expr], Expr, Sequence[Expr]], Expr]:
    def position(batch: Sequence[Expr], free: Expr, depth: Sequence[Expr]) -> Expr:
        e = side.at(batch, delinearise(free, side.free), depth)
        c.pull.take_reports()
        return e.args[0]

    return position


def _is_one(found: tuple[Expr, Expr] | None) -> bool:
    return found is not None and found[0].op == "const" and found[0].data == 1


def epilogue_operations(c: Contraction) -> int:
    """The number of operations that follow the root for one element, positions not counted."""
    at = Position(c.result.type.shape, [var(f"i{d}") for d in range(c.result.type.rank)])
    c.pull.bind(c.result, lambda _: var("total", c.result.type.dtype))
    found = [c.pull.at(v, at.reshaped(v.type.shape)) for v in c.group.results]
    c.pull.take_reports()
    return len(
        [e for e in children_first(tuple(found)) if e.op not in ("var", "const") and e.dtype is not I64]
    )


def total(shape: Shape) -> Expr:
    """The number of elements of a shape as an expression."""
    return dim_expr(size_of(shape))
