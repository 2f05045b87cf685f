"""linear_scan on a device: each line along the axis is sequential; threads run over lines.

| form | when | how |
| --- | --- | --- |
| scan lines | lines lie side by side, or are short | a thread walks its line; the threads of a warp read neighbours |
| scan tiles | the axis is innermost | a block moves pieces of 32 lines through shared memory; one warp walks them |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graphc.codegen.cuda.choice import Choice, is_narrow
from graphc.codegen.cuda.sweep import BLOCK, BLOCKS, COUNT, THREAD
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import (
    Expr,
    cast,
    children_first,
    const,
    equal,
    fma,
    index,
    load,
    logical_and,
    select,
)
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Declare,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
)
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import Names, ceil_div, group_buffers, group_extents, minimum, split_coords
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function, Operation
from graphc.ir.types import DType, Shape, size_of, substitute

LANES = 32
# Steps whose operands are read before the first of them is done: from memory, from a tile.
MEMORY_AHEAD, TILE_AHEAD = 16, 8
READS = 8  # elements of a tile that a thread reads before it stores the first
SHORT = 8  # a line that a thread reads as well alone
LINE_THREADS, TILE_THREADS = 64, 128


def scanned(group: Function) -> Operation:
    return next(o for o in group.ops if o.results[0] is group.results[0])


def choose(group: Function, sizes: Mapping[str, int], target: Target) -> Choice:
    """The schedule of a scan: see the head of this file."""
    op = scanned(group)
    shape, axis = op.result.type.shape, op.attrs["axis"]
    narrow = is_narrow(group, sizes)
    length = substitute(shape[axis], dict(sizes))
    assert isinstance(length, int)
    if any(d != 1 for d in shape[axis + 1 :]) or length < SHORT:
        return Choice("scan lines", narrow=narrow)
    steps = 16 if length <= 16 else 32 if length <= 32 else 64
    return Choice("scan tiles", (("steps", steps),), narrow=narrow)


class _Scan:
    """A scan while it is lowered."""

    def __init__(self, group: Function) -> None:
        self.group = group
        self.params, self.results = group_buffers(group)
        self.pull = Pull(group, dict(zip(group.params, self.params, strict=True)))
        self.op = scanned(group)
        self.shape: Shape = self.op.result.type.shape
        self.axis: int = self.op.attrs["axis"]
        self.outer: Shape = tuple(1 if d == self.axis else n for d, n in enumerate(self.shape))
        self.dtype: DType = self.op.result.type.dtype
        self.wide = accumulator(self.dtype)
        self.length, self.lines = dim_expr(self.shape[self.axis]), dim_expr(size_of(self.outer))
        self.names = Names()
        self.state = self.names.fresh("h", self.wide)

    def at(self, coords: Sequence[Expr], step: Expr) -> Position:
        along = self.length - 1 - step if self.op.attrs["reverse"] else step
        return Position(self.shape, tuple(along if d == self.axis else c for d, c in enumerate(coords)))

    def operands(self, at: Position) -> tuple[Expr, Expr]:
        a, b = (cast(self.pull.at(v, at), self.wide) for v in self.op.operands)
        return a, b

    def advance(self, a: Expr, b: Expr, first: Expr | None) -> list[Stmt]:
        """One step. first: whether it is the first one; None: it is not."""
        carried = fma(a, self.state, b) if self.wide.is_float else a * self.state + b
        return [Assign(self.state, carried if first is None else select(first, b, carried))]

    def lowered(self, body: list[Stmt], blocks: Expr, threads: int, choice: Choice, target: Target) -> Lowered:
        most = BLOCKS * target.multiprocessors
        kernel = Kernel(
            name=choice.form.replace(" ", "_"),
            buffers=(*self.params, *self.results),
            extents=group_extents(self.group),
            parallel=blocks,
            work=dim_expr(size_of(self.shape)) * 4,
            body=tuple(body),
            grid=Grid(minimum(blocks, index(most)), threads, choice.divides, choice.narrow),
        )
        return Lowered((kernel,), self.params, self.results, sites=tuple(self.pull.sites))

    def walk(
        self,
        start: Expr,
        stop: Expr,
        ahead_by: int,
        step: Callable[[Expr], tuple[Expr, Expr]],
        done: Callable[[Expr], list[Stmt]],
    ) -> list[Stmt]:
        """Steps start .. stop - 1, some at a time: `step` gives the operands of one, `done` what follows it."""
        first, i = self.names.fresh("i"), self.names.fresh("i")
        ahead: list[Stmt] = []
        advance: list[Stmt] = []
        for j in range(ahead_by):
            a, b = step(first + j)
            named = []
            for stem, e in (("a", a), ("b", b)):
                if e.op == "const":
                    named.append(e)
                else:
                    named.append(self.names.fresh(stem, e.dtype))
                    ahead += [*self.pull.take_reports(), Let(named[-1], e)]
            advance += self.advance(named[0], named[1], equal(first, 0) if j == 0 else None)
            advance += done(first + j)
        a, b = step(i)
        reports = self.pull.take_reports()
        single: tuple[Stmt, ...] = (*reports, *self.advance(a, b, equal(i, 0)), *done(i))
        rest = For(i, first, stop, single, index(1))
        whole = If(first + ahead_by <= stop, (*ahead, *advance), (rest,))
        return [For(first, start, stop, (whole,), index(ahead_by))]


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernel of a group with one linear_scan, whose result is the group's only one."""
    return (_lines if choice.form == "scan lines" else _tiles)(_Scan(group), choice, target)


def _lines(s: _Scan, choice: Choice, target: Target) -> Lowered:
    line = s.names.fresh("line")
    stmts, coords = split_coords(line, s.outer, s.names)

    def done(i: Expr) -> list[Stmt]:
        return [Store(s.results[0], s.at(coords, i).flat, cast(s.state, s.dtype))]

    walk = s.walk(index(0), s.length, MEMORY_AHEAD, lambda i: s.operands(s.at(coords, i)), done)
    body = (*stmts, Declare(s.state, const(s.wide, 0)), *walk)
    loop = For(line, BLOCK * LINE_THREADS + THREAD, s.lines, body, COUNT * LINE_THREADS)
    return s.lowered([loop], ceil_div(s.lines, LINE_THREADS), LINE_THREADS, choice, target)


def _tiles(s: _Scan, choice: Choice, target: Target) -> Lowered:
    """Lines of a tile are one element longer than it, so that what a warp walks lies in different banks."""
    steps = choice.number("steps")
    pitch = steps + 1
    item, first, start = s.names.fresh("item"), s.names.fresh("first"), s.names.fresh("t")
    element, row = s.names.fresh("c"), s.names.fresh("r")
    tile = Buffer("addends", s.wide, "shared")
    factors = Buffer("factors", s.wide, "shared")
    part, some, line = s.names.fresh("part"), s.names.fresh("some"), s.names.fresh("line")
    stmts, coords = split_coords(line, s.outer, s.names)
    along = s.at(coords, start + element).coords
    flat = line * s.length + along[s.axis]
    a, b = s.operands(Position(s.shape, along, flat))
    staged = _reads(a)
    among = row + some + part
    place = among * pitch + element
    here = logical_and(line < s.lines, start + element < s.length)
    inside: list[Stmt] = [*stmts, *s.pull.take_reports(), Store(tile, place, b)]
    if staged:
        inside.append(Store(factors, place, a))

    def parts(inside: list[Stmt]) -> Stmt:
        body = (Let(line, first + among), If(here, tuple(inside)))
        apart = TILE_THREADS // steps
        ahead = min(LANES, READS * apart)
        loop = For(part, index(0), index(ahead), body, index(apart), unroll=True)
        return For(some, index(0), index(LANES), (loop,), index(ahead))

    fetch = parts(inside)
    put = parts([Store(s.results[0], flat, cast(load(tile, place), s.dtype))])
    mine = THREAD * pitch
    last = s.names.fresh("stop")

    def step(i: Expr) -> tuple[Expr, Expr]:
        if staged:
            return load(factors, mine + i - start), load(tile, mine + i - start)
        return s.operands(Position(s.shape))[0], load(tile, mine + i - start)

    def done(i: Expr) -> list[Stmt]:
        return [Store(tile, mine + i - start, s.state)]

    walk = s.walk(start, last, TILE_AHEAD, step, done)
    piece = For(
        start,
        index(0),
        s.length,
        (
            fetch,
            Barrier(),
            Let(last, minimum(start + steps, s.length)),
            If(logical_and(THREAD < LANES, first + THREAD < s.lines), tuple(walk)),
            Barrier(),
            # No barrier after: what a thread writes to the tile next, it reads here itself.
            put,
        ),
        index(steps),
    )
    body: list[Stmt] = [Alloc(tile, LANES * pitch)]
    if staged:
        body.append(Alloc(factors, LANES * pitch))
    groups = ceil_div(s.lines, LANES)
    body += [
        Let(element, THREAD % steps),
        Let(row, THREAD // steps),
        For(
            item,
            BLOCK,
            groups,
            (Let(first, item * LANES), Declare(s.state, const(s.wide, 0)), piece),
            COUNT,
        ),
    ]
    return s.lowered(body, groups, TILE_THREADS, choice, target)


def _reads(e: Expr) -> bool:
    return any(node.op in ("load", "var") for node in children_first((e,)))
