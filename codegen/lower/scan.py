"""linear_scan: lines along the axis, each sequential; lanes run across lines where they lie side by side.

Then an item is a vector of lines, and a thread takes many of its items at once, so that memory is read in long stretches; what
each line carries is kept in a thread-private array.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, cast, const, equal, fma, index, load, select, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    minimum,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function
from graphc.ir.types import Shape, size_of

WIDTH = 16
# Lines that take turns. More of them, a page apart, would not find room in one set of a cache.
LINES = 4
TOGETHER = 128  # vectors whose state stays in the first level cache


def lower_scan(group: Function) -> Lowered:
    """The kernel of a group with one linear_scan, whose result is the group's only one."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    op = next(o for o in group.ops if o.results[0] is group.results[0])
    factor, addend = op.operands
    shape, axis = op.result.type.shape, op.attrs["axis"]
    dtype = op.result.type.dtype
    wide = accumulator(dtype)
    names = Names()
    inner = [d for d in range(axis + 1, len(shape)) if shape[d] != 1]
    lane_dim = inner[-1] if inner else None
    outer: Shape = tuple(1 if d in (axis, lane_dim) else n for d, n in enumerate(shape))
    count = dim_expr(shape[lane_dim]) if lane_dim is not None else index(1)
    blocks = ceil_div(count, WIDTH)
    rest, block, lane, i = (names.fresh(s) for s in ("rest", "block", "l", "i"))
    column = block * WIDTH + lane
    length = dim_expr(shape[axis])
    along = length - 1 - i if op.attrs["reverse"] else i

    def step(coords: tuple[Expr, ...]) -> tuple[Expr, tuple[Stmt, ...]]:
        """What a line carries, and the statements of its next element."""
        place: list[Expr] = list(coords)
        place[axis] = along
        if lane_dim is not None:
            place[lane_dim] = column
        here = Position(shape, place)
        state, value = names.fresh("h", wide), names.fresh("v", wide)
        a, b = cast(pull.at(factor, here), wide), cast(pull.at(addend, here), wide)
        carried = fma(a, state, b) if wide.is_float else a * state + b
        return state, (
            *take_reports(pull),
            Let(value, select(equal(i, 0), b, carried)),
            Assign(state, value),
            Store(results[0], here.flat, cast(value, dtype)),
        )

    begin, end = var("begin"), var("end")
    items = dim_expr(size_of(outer)) * blocks
    if lane_dim is None:
        # Each line waits for its last element, so several take turns; a group that is not full does its last line again.
        # All of them read before one writes: a processor takes an address a page further on for the same one at first.
        lines_of_item = 1 if all(d == 1 for d in outer) else LINES
        last = dim_expr(size_of(outer)) - 1
        items = (last + lines_of_item) // lines_of_item
        head: list[Stmt] = []
        computed: list[Stmt] = []
        stored: list[Stmt] = []
        for k in range(lines_of_item):
            this = names.fresh("line")
            stmts, coords = split_coords(this, outer, names)
            state, statements = step(coords)
            head += [Let(this, minimum(rest * lines_of_item + k, last)), *stmts, Declare(state, const(wide, 0))]
            computed += statements[:-1]
            stored.append(statements[-1])
        line: tuple[Stmt, ...] = (*head, For(i, index(0), length, (*computed, *stored), index(1)))
        body: tuple[Stmt, ...] = (For(rest, begin, end, line, index(1)),)
    else:
        stmts, coords = split_coords(rest, outer, names)
        state, statements = step(coords)
        low, high, first, near, far = (names.fresh(s) for s in ("low", "high", "first", "near", "far"))
        held = Buffer("held", wide, "local")
        slot = (block - near) * WIDTH + lane
        # What is held of a line that is not there is never read.
        vector = (
            Declare(state, const(wide, 0)),
            If(i > 0, (Assign(state, load(held, slot)),)),
            If((block + 1) * WIDTH <= count, statements, (If(column < count, statements),)),
            Store(held, slot, state),
        )
        vectors = For(block, near, far, vector, index(1))
        sweep = (Let(far, minimum(near + TOGETHER, high)), For(i, index(0), length, (vectors,), index(1)))
        start = begin - first
        line = (
            Let(first, rest * blocks),
            Let(low, select(start < 0, index(0), start)),
            Let(high, minimum(end - first, blocks)),
            *stmts,
            For(near, low, high, sweep, index(TOGETHER)),
        )
        lines = For(rest, begin // blocks, (end + blocks - 1) // blocks, line, index(1))
        # Without elements there are no items, but the kernel may be called.
        body = (Alloc(held, TOGETHER * WIDTH), If(blocks > 0, (Vector(lane, WIDTH, (lines,)),)))
    kernel = Kernel(
        name="scan",
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=items,
        work=dim_expr(size_of(shape)) * 4,
        body=body,
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
