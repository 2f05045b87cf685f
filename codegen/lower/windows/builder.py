"""What the kernels of all schedules for windows share: names, scratch memory, and the epilogue of results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from graphc.codegen.expr import Expr, cast, var
from graphc.codegen.loops import Buffer, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import Levels, normal, tidy
from graphc.codegen.lower.contraction import Contraction
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.kernels import buffers_used, layout_of, moved
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.nest import group_extents
from graphc.ir.types import I64, Dim, DType

Body = list[Stmt]


class KernelBuilder:
    """The kernels of a contraction whose root is a `conv`, by example."""

    def __init__(self, c: Contraction, results: Sequence[Buffer]) -> None:
        self.c = c
        self.dtype = c.accumulator
        self.results = [
            (*layout_of(c, v), buffer) for v, buffer in zip(c.group.results, results, strict=True)
        ]
        self.scratch: list[Scratch] = []
        self._names = itertools.count()

    def name(self, stem: str, dtype: DType = I64) -> Expr:
        return var(f"{stem}_{next(self._names)}", dtype)

    def new_scratch(self, name: str, size: Dim, dtype: DType) -> Buffer:
        buffer = Buffer(name, dtype, "scratch")
        self.scratch.append(Scratch(buffer, dtype, size))
        return buffer

    def kernel(self, name: str, parallel: Expr, work: Expr, body: Body) -> Kernel:
        outputs = (b for _, _, b in self.results)
        buffers = [*self.c.pull.buffers.values(), *outputs, *(s.buffer for s in self.scratch)]
        used = buffers_used(body)
        mine = tuple(b for b in buffers if b in used)
        return Kernel(name, mine, group_extents(self.c.group), parallel, work, tuple(body))

    def finished(
        self, batch: tuple[Expr, Expr], o: Expr, out: Sequence[Expr], total: Expr, loops: list[Expr]
    ) -> Body:
        """The epilogue of the result of output channel o of a group at position `out`, and its stores."""
        c = self.c
        value = cast(total, c.result.type.dtype)
        at = Position(c.result.type.shape, c.place(batch, (o,), out))
        c.pull.bind(c.result, lambda _: value)
        body: Body = []
        stores: Body = []
        for v, layout, buffer in self.results:
            here = at.reshaped(v.type.shape)
            e = tidy(c.pull.at(v, here), loops)
            body += c.pull.take_reports()
            place = normal(moved(here, layout).flat, Levels(loops))
            # All values come first: a result may be written where an operand was read.
            held = self.name("value", e.dtype)
            body.append(Let(held, e))
            stores.append(Store(buffer, tidy(place, loops), held))
        return [*body, *stores]
