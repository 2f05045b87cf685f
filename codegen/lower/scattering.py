"""A scattering operation as its kernels see it: lines of rows, updates that name a row, and what adding one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, index, load, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Stmt, Store
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import Names, group_buffers, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function, Operation
from graphc.ir.types import Dim, size_of


class Scattering:
    """A group with one scattering operation, whose result is the group's only one.

    The result is `outer` lines of `rows` rows of `inner` neighbouring elements. `total` updates of a row each concern every line;
    where positions vary over the lines (put_along), the result is one line, and its elements are the rows; `lines` counts
    those that have positions of their own, or share them.
    """

    def __init__(self, group: Function) -> None:
        self.group = group
        self.op: Operation = next(o for o in group.ops if o.results[0] is group.results[0])
        self.x, self.indices, self.updates = self.op.operands
        self.shape, self.axis = self.x.type.shape, int(self.op.attrs["axis"])
        self.along = self.op.name.startswith("put_along")
        self.adds = self.op.name.endswith("_add")
        self.dtype = self.x.type.dtype
        self.wide = accumulator(self.dtype) if self.adds else self.dtype
        self.total: Dim = size_of(self.indices.type.shape)
        self.lines: Dim = size_of(d for k, d in enumerate(self.shape) if k != self.axis and (self.along or k < self.axis))
        self.outer: Dim = 1 if self.along else size_of(self.shape[: self.axis])
        self.rows: Dim = size_of(self.shape) if self.along else self.shape[self.axis]
        self.inner: Dim = 1 if self.along else size_of(self.shape[self.axis + 1 :])
        self.params, self.results = group_buffers(group)
        self.pull = Pull(group, dict(zip(group.params, self.params, strict=True)))
        self.names = Names()
        self.out = self.target = self.results[0]
        self.scratch: tuple[Scratch, ...] = ()
        if self.wide is not self.dtype:
            self.target = Buffer("wide", self.wide, "scratch")
            self.scratch = (Scratch(self.target, self.wide, size_of(self.shape)),)

    def row(self, u: Expr) -> Expr:
        """The row that update u names. Leaves a check among the reports."""
        at = Position(self.indices.type.shape, flat=u)
        row = self.pull.check(self.op, self.pull.at(self.indices, at), dim_expr(self.shape[self.axis]))
        if not self.along:
            return row
        return Position(self.shape, [row if d == self.axis else c for d, c in enumerate(at.coords)]).flat

    def update(self, line: Expr, u: Expr, column: Expr) -> Expr:
        """An element of update u for a line, in the dtype of the operand."""
        flat = (line * dim_expr(self.total) + u) * dim_expr(self.inner) + column
        return self.pull.at(self.updates, Position(self.updates.type.shape, flat=flat))

    def applied(self, place: Expr, update: Expr) -> Store:
        """The store that applies an element of an update to the element of the result at `place`."""
        update = cast(update, self.wide)
        return Store(self.target, place, load(self.target, place) + update if self.adds else update)

    def begun(self, place: Expr) -> list[Stmt]:
        """What an element of the result is before any update."""
        value = cast(self.pull.at(self.x, Position(self.shape, flat=place)), self.wide)
        return [*self.pull.take_reports(), Store(self.target, place, value)]

    def finished(self, place: Expr) -> list[Stmt]:
        """An element rounded to its dtype once all updates are in."""
        return [Store(self.out, place, cast(load(self.target, place), self.dtype))]

    def kernel(self, name: str, buffers: Sequence[Buffer], parallel: Expr, work: Expr, *body: Stmt) -> Kernel:
        """A kernel over the items `parallel`. Where there are none (or nothing to divide by) it does nothing."""
        guarded = If(var("begin") < var("end"), body)
        return Kernel(name, tuple(buffers), group_extents(self.group), parallel, work, (guarded,))

    def lowered(self, kernels: Sequence[Kernel], scratch: Sequence[Scratch] = ()) -> Lowered:
        used = (*self.scratch, *scratch)
        return Lowered(tuple(kernels), self.params, self.results, used, tuple(self.pull.sites))


def lanes(names: Names, start: Expr, stop: Expr, lane: Expr, width: int, make: Callable[[Expr], Sequence[Stmt]]) -> For:
    """In a vector region over `lane`: `make(position)` for start .. stop - 1, masked at the end."""
    at = names.fresh("at")
    body = tuple(make(at + lane))
    return For(at, start, stop, (If(at + width <= stop, body, (If(at + lane < stop, body),)),), index(width))
