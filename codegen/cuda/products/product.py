"""What all device forms of a contraction share: names, divisors, kernels, and the epilogue of one element.

A product is seen as batch x rows x columns, rows being the free dimensions of the left operand and columns those of the
right one: in the results of `dot` and `conv` columns are the neighbours in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from graphc.codegen.c import alignment
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.expr import Expr, cast, fma, index, var
from graphc.codegen.loops import Buffer, Grid, Kernel, Let, Report, Stmt, Store
from graphc.codegen.lower.affine import Levels, logical_and, normal, tidy
from graphc.codegen.lower.contraction import Contraction
from graphc.codegen.lower.conv import conv_contraction
from graphc.codegen.lower.dot import dot_contraction
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.kernels import buffers_used, layout_of, moved
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import group_extents
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Value
from graphc.ir.types import Dim, DimExpr, DType, Shape, size_of

Body = list[Stmt]
ROOTS = ("dot", "conv")
TENSOR_FORMS = ("contract tensor", "contract wgmma")


def contraction_of(group: Function, per_example: bool, channels_last: bool = False) -> Contraction:
    """The one dot or conv of a group. per_example: examples of a conv are a batch dimension, else columns.

    channels_last: k of a conv runs over (window, channel), as tensor cores take it.
    """
    roots = [op for op in group.ops if op.name in ROOTS]
    if len(roots) != 1:
        raise ValueError(f"a contraction group has one dot or conv, @{group.name} has {len(roots)}")
    buffers: dict[Value, Buffer] = {p: Buffer(f"p{i}", p.type.dtype, "in") for i, p in enumerate(group.params)}
    pull = Pull(group, buffers)
    if roots[0].name == "dot":
        return dot_contraction(group, roots[0], pull)
    return conv_contraction(group, roots[0], pull, per_example, channels_last)


def multiply_add(a: Expr, b: Expr, total: Expr) -> Expr:
    """One step of a sum of products: fused for floats, wrapping for integers."""
    return fma(a, b, total) if total.dtype.is_float else a * b + total


class Product:
    """One contraction under a choice, and what its kernels have in common."""

    def __init__(self, group: Function, choice: Choice) -> None:
        self.choice = choice
        tensor = choice.form in TENSOR_FORMS
        self.c = c = contraction_of(group, bool(dict(choice.numbers).get("example", 1)), tensor)
        self.dtype = c.accumulator
        self.divides = dict(choice.divides)
        self.buffers = tuple(Buffer(f"r{i}", v.type.dtype, "out") for i, v in enumerate(group.results))
        self.results = [(*layout_of(c, v), b) for v, b in zip(group.results, self.buffers, strict=True)]
        self.rows, self.columns = dim_expr(c.left.size), dim_expr(c.right.size)
        self.depth = dim_expr(size_of(c.depth))
        self.batches = dim_expr(size_of(c.batch))
        self.scratch: list[Scratch] = []
        # Operands of the root that are read from copies (channels.py); what follows the root reads the originals.
        self.packed: list[Value] = []
        self._names = itertools.count()

    def name(self, stem: str, dtype: DType | None = None) -> Expr:
        name = f"{stem}_{next(self._names)}"
        return var(name) if dtype is None else var(name, dtype)

    def let(self, body: Body, stem: str, value: Expr) -> Expr:
        """`value` under a name; literals and names stay themselves."""
        if value.op in ("const", "var"):
            return value
        name = self.name(stem, value.dtype)
        body.append(Let(name, value))
        return name

    def coords(self, body: Body, stem: str, flat: Expr, shape: Shape) -> list[Expr]:
        """The coordinates of a flat position, each under a name."""
        return [self.let(body, stem, e) for e in delinearise(flat, shape)]

    def divisor(self, d: Dim) -> int:
        """A number that surely divides a dimension, by what the choice relies on."""
        return divisor(dim_expr(d), self.divides)

    def new_scratch(self, name: str, dtype: DType, size: Dim) -> Buffer:
        buffer = Buffer(name, dtype, "scratch")
        self.scratch.append(Scratch(buffer, dtype, size))
        return buffer

    def checks(self, cond: Expr | None = None) -> Body:
        """The run-time checks that the expressions just pulled need, where `cond` holds."""
        reports = self.c.pull.take_reports()
        if cond is None:
            return reports
        return [Report(logical_and(cond, r.cond), r.site, r.value) for r in reports if isinstance(r, Report)]

    def kernel(self, name: str, body: Body, blocks: Expr, threads: int, resident: int = 0) -> Kernel:
        arguments = [*self.c.pull.buffers.values(), *self.buffers, *(s.buffer for s in self.scratch)]
        used = buffers_used(body)
        grid = Grid(blocks, threads, self.choice.divides, self.choice.narrow, resident)
        work = self.batches * self.rows * self.columns * (self.depth * 2 + 2)
        kept = tuple(b for b in arguments if b in used)
        return Kernel(name, kept, group_extents(self.c.group), blocks, work, tuple(body), grid=grid)

    def lowered(self, kernels: Sequence[Kernel]) -> Lowered:
        c = self.c
        params = tuple(c.pull.buffers[p] for p in c.group.params)
        return Lowered(tuple(kernels), params, self.buffers, tuple(self.scratch), tuple(c.pull.sites))

    def column_coords(self, body: Body | None, base: Expr, lane: Expr, width: int) -> tuple[Expr, ...]:
        """Coordinates of column base + lane, for lanes 0 .. width - 1 and a base that is a multiple of `width`."""
        return self.lane_coords(self.c.right.free, body, base, lane, width)

    def lane_coords(
        self, shape: Shape, body: Body | None, base: Expr, lane: Expr, width: int
    ) -> tuple[Expr, ...]:
        """Coordinates in `shape` of base + lane, for lanes 0 .. width - 1 and a base that is a multiple of `width`.

        Where some innermost dimensions together are a multiple of `width`, the outer coordinates do not depend on the lane.
        body: where statements that name parts go, if anywhere.
        """
        for first in reversed(range(len(shape))):
            inner = shape[first:]
            if width > 1 and self.divisor(size_of(inner)) % width == 0:
                size = dim_expr(size_of(inner))
                if all(d == 1 for d in shape[:first]):
                    outer, rest = tuple(index(0) for _ in shape[:first]), base
                else:
                    quotient, rest = base // size, base % size
                    if body is not None:
                        quotient, rest = self.let(body, "outer", quotient), self.let(body, "inner", rest)
                    outer = delinearise(quotient, shape[:first])
                return (*outer, *delinearise(rest + lane, inner))
        return delinearise(base + lane, shape)

    def finish(
        self, total: Expr, batch: Sequence[Expr], row: Sequence[Expr], column: Sequence[Expr], loops: Sequence[Expr]
    ) -> Body:
        """The results of one element, whose sum is `total`, at these coordinates: values first, then stores."""
        c = self.c
        at = Position(c.result.type.shape, c.place(batch, row, column))
        value = cast(total, c.result.type.dtype)
        for v in self.packed:
            c.pull.bound.pop(v, None)
        c.pull.bind(c.result, lambda _: value)
        out: Body = []
        stores: Body = []
        levels = Levels(loops)
        for v, layout, buffer in self.results:
            here = at.reshaped(v.type.shape)
            e = tidy(c.pull.at(v, here), list(loops))
            out += self.checks()
            name = self.name("value", e.dtype)
            out.append(Let(name, e))
            stores.append(Store(buffer, normal(moved(here, layout).flat, levels), name))
        return [*out, *stores]


    def store(self, batch: Sequence[Expr], row: Expr, column: Expr, lane: Expr, width: int, value: Expr) -> Body:
        """The results of the element at `row` and `column` + `lane`, one of `width` neighbours, whose sum is `value`."""
        out: Body = []
        rows = self.coords(out, "m", row, self.c.left.free)
        columns = self.column_coords(out, column, lane, width)
        loops = [*batch, *rows, column, *([lane] if lane.op == "var" else [])]
        return [*out, *self.finish(value, batch, rows, columns, loops)]


def divisor(e: Expr, known: Mapping[str, int]) -> int:
    """A number that surely divides an I64 expression whose variables are multiples of the known divisors.

    >>> divisor(var("e0") * 6 + 4, {"e0": 8})
    4
    """
    facts = {var(name): d for name, d in known.items()}
    return alignment.divisor(e, facts) or 1 << 30


def dim_value(d: Dim, sizes: Mapping[str, int]) -> int:
    """A dimension for these extents."""
    from graphc.ir.types import substitute

    found = substitute(d, dict(sizes)) if isinstance(d, DimExpr) else d
    assert isinstance(found, int)
    return found
