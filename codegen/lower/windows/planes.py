"""Convolutions of one channel each (depthwise): lanes over pixels of a line, and no copy.

A task is a plane: the channel of an example, for each of its output channels. Vectors of a line go down the image.
The rows that the window covers stay in registers, a register for each of its positions, and each step reads only the rows
that it did not have. Padding is what masked loads leave out, and rows that are not read; so is what lies between the elements
of a dilated x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from graphc.codegen.expr import Expr, cast, const, equal, index, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Vector
from graphc.codegen.lower.affine import decided, logical_and, tidy
from graphc.codegen.lower.contraction import Contraction, widened
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import multiply_add
from graphc.codegen.lower.windows.builder import Body, KernelBuilder
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.ir.types import BOOL, DType

MOST_POSITIONS = 25  # of the window, each a register


class PlaneSchedule(NamedTuple):
    """literal: values of the extents that the kernel is made for; it serves no others. width: lanes of a vector."""

    literal: tuple[tuple[str, int], ...]
    width: int


def choose(
    g: Geometry, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...]
) -> PlaneSchedule | None:
    """The schedule, None where a convolution is none of single planes."""
    ranks = len(g.out) <= 2
    plain = len(g.out) < 2 or g.reach[0] == 1 or g.window[0] == 1
    if g.channels > 1 or not ranks or not plain or g.positions > MOST_POSITIONS:
        return None
    width = max(1, vector_bits // dtype.bits)
    while width > 4 and width // 2 >= g.out[-1]:
        width //= 2
    return PlaneSchedule(literal, width)


class PlaneKernels(KernelBuilder):
    """Builds the kernel."""

    def __init__(
        self, c: Contraction, g: Geometry, schedule: PlaneSchedule, results: Sequence[Buffer]
    ) -> None:
        super().__init__(c, results)
        self.g, self.s = g, schedule
        self.flat = len(g.out) == 1
        one = (1,) if self.flat else ()
        self.window, self.out = (*one, *g.window), (*one, *g.out)
        self.strides, self.reach = (*one, *g.strides), (*one, *g.reach)
        self.low, self.image = ((0,) if self.flat else ()) + g.low, (*one, *g.image)
        self.spread = (*one, *g.spread)

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernel; there is no scratch memory."""
        g = self.g
        examples = dim_expr(g.examples)
        task, n, b, o = (self.name(x) for x in ("task", "n", "group", "o"))
        lets: Body = [Let(n, task // g.count), Let(b, task - n * g.count)]
        plane: Body = self._plane(n, b, o, [task, n, b, o])
        body: Body = [*lets, For(o, index(0), index(g.outputs), tuple(plane), index(1))]
        work = examples * (g.count * g.outputs * g.pixels * (g.depth * 2 + 2))
        whole: Body = [For(task, var("begin"), var("end"), tuple(body), index(1))]
        return (self.kernel("planes", examples * g.count, work, whole),), ()

    def _plane(self, n: Expr, b: Expr, o: Expr, loops: list[Expr]) -> Body:
        """One output channel."""
        w, c = self.s.width, self.c
        weights: list[list[Expr]] = []
        body: Body = []
        for k0 in range(self.window[0]):
            weights.append([])
            for k1 in range(self.window[1]):
                at = (index(k1),) if self.flat else (index(k0), index(k1))
                e = widened(c, c.left.at((b, n), (o,), (index(0), *at)))
                body += c.pull.take_reports()
                weights[-1].append(self.name("weight", self.dtype))
                body.append(Let(weights[-1][-1], tidy(e, loops)))
        full = self.out[1] // w
        if full:
            start = self.name("start")
            column = self._column(n, b, o, start, w, weights, [*loops, start])
            body.append(For(start, index(0), index(full * w), (column,), index(w)))
        if rest := self.out[1] - full * w:
            least = max(4, 1 << (rest - 1).bit_length())
            body.append(self._column(n, b, o, index(full * w), min(w, least), weights, loops))
        return body

    def _column(
        self, n: Expr, b: Expr, o: Expr, start: Expr, width: int, weights: list[list[Expr]], loops: list[Expr],
    ) -> Stmt:  # fmt: skip
        """The pixels start .. start + width of every line."""
        lane, line = self.name("lane"), self.name("line")
        height, across = self.window
        region: Body = []
        columns = []
        for k in range(across):
            column = (start + lane) * self.strides[1] + (k * self.reach[1] - self.low[1])
            mask = self.name("inside", BOOL)
            region.append(Let(mask, self._inside(1, column, k)))
            columns.append((column // self.spread[1] if self.spread[1] > 1 else column, mask))
        rows = [[self.name("x", self.dtype) for _ in range(across)] for _ in range(height)]
        region += [Declare(x, const(self.dtype, 0)) for row in rows for x in row]
        kept = max(0, height - self.strides[0])  # rows that the step before had read
        for j in range(kept):
            region += self._read(n, b, index(0), j, rows[j], columns, [*loops, lane])
        step: Body = []
        for j in range(kept, height):
            step += self._read(n, b, line, j, rows[j], columns, [*loops, lane, line])
        total = const(self.dtype, 0)
        for row, scales in zip(rows, weights, strict=True):
            for x, weight in zip(row, scales, strict=True):
                total = multiply_add(weight, x, total)
        at = self.name("total", self.dtype)
        out = (start + lane,) if self.flat else (line, start + lane)
        done = self.finished((b, n), o, out, at, [*loops, lane, line])
        if start.op == "const" and start.data + width > self.out[1]:
            done = [If(start + lane < self.out[1], tuple(done))]
        step += [Let(at, total), *done]
        for j in range(kept):
            step += [Assign(x, y) for x, y in zip(rows[j], rows[j + self.strides[0]], strict=True)]
        region.append(For(line, index(0), index(self.out[0]), tuple(step), index(1)))
        return Vector(lane, width, tuple(region))

    def _read(
        self, n: Expr, b: Expr, line: Expr, j: int, registers: list[Expr], columns: list[tuple[Expr, Expr]],
        loops: list[Expr],
    ) -> Body:  # fmt: skip
        """Row j of the window at a line of the result, into registers."""
        x, pull = self.c.root.operands[0], self.c.pull
        row = line * self.strides[0] + (j - self.low[0])
        example = n
        channel = index(0)
        if self.c.root.attrs["groups"] > 1:
            channel = b
        if self.c.root.attrs["batch_groups"] > 1:
            example = b * dim_expr(self.g.examples) + n
        valid = self._inside(0, row, j)
        if self.spread[0] > 1:
            row = row // self.spread[0]
        read: Body = []
        for register, (column, mask) in zip(registers, columns, strict=True):
            at = (example, channel, column) if self.flat else (example, channel, row, column)
            value = pull.at_if(x, Position(x.type.shape, at), mask)
            if value.op != "load":
                value = select(mask, value, const(value.dtype, 0))
            read += [*pull.take_reports(), Assign(register, tidy(cast(value, self.dtype), loops))]
        if valid.op == "const" and valid.data:
            return read
        zero = tuple(Assign(register, const(self.dtype, 0)) for register in registers)
        return [If(valid, tuple(read), zero)]

    def _inside(self, d: int, at: Expr, k: int) -> Expr:
        """Whether there is an element of x at coordinate `at`, which position k of the window reads."""
        steps = self.out[d] if d == 0 else -(-self.out[1] // self.s.width) * self.s.width
        first = k * self.reach[d] - self.low[d]
        inside: Expr = const(BOOL, True)
        if first < 0:
            inside = logical_and(inside, decided(at >= 0))
        covered = (self.image[d] - 1) * self.spread[d] + 1
        if (steps - 1) * self.strides[d] + first >= covered:
            inside = logical_and(inside, decided(at < covered))
        if self.spread[d] > 1:
            inside = logical_and(inside, equal(at % self.spread[d], 0))
        return inside
