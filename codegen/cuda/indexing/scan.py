"""linear_scan on a device: each line along the axis is sequential; threads run over lines.

| form | when | how |
| --- | --- | --- |
| scan lines | lines lie side by side, or are short | a thread walks its line; the threads of a warp read neighbours |
| scan tiles | the axis is innermost | a block moves pieces of 32 lines, or of 8 where there are few, through shared memory; a thread walks each |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from graphc.codegen.cuda.choice import Choice, is_narrow
from graphc.codegen.cuda.maps.sweep import BLOCK, BLOCKS, COUNT, THREAD
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

# Steps whose operands are read before the first of them is done: from memory, from a tile.
# Few lines hide the memory's delay by reading further ahead.
MEMORY_AHEAD, TILE_AHEAD = 16, 16
MANY_LINES = 512  # for a multiprocessor
TILE = 2048  # elements of a tile
SHORT = 8  # a line that a thread reads as well alone
LINE_THREADS, TILE_THREADS = 64, 128


def scanned(group: Function) -> Operation:
    return next(o for o in group.ops if o.results[0] is group.results[0])


def choose(group: Function, sizes: Mapping[str, int], target: Target) -> Choice:
    """The schedule of a scan: see the head of this file."""
    op = scanned(group)
    shape, axis = op.result.type.shape, op.attrs["axis"]
    narrow = is_narrow(group, sizes)
    length, total = (substitute(d, dict(sizes)) for d in (shape[axis], size_of(shape)))
    assert isinstance(length, int) and isinstance(total, int)
    if any(d != 1 for d in shape[axis + 1 :]) or length < SHORT:
        many = total >= MANY_LINES * target.multiprocessors * length
        ahead = MEMORY_AHEAD if many or length <= MEMORY_AHEAD else 128 // max(4, op.result.type.dtype.itemsize)
        return Choice("scan lines", (("ahead", ahead),), narrow=narrow)
    lines = 32 if total >= 32 * target.multiprocessors * length else 8
    steps = max(TILE_THREADS // lines, min(TILE // lines, 1 << (length - 1).bit_length()))
    return Choice("scan tiles", (("lines", lines), ("steps", steps)), narrow=narrow)


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
        ahead: int,
        operands: Callable[[Expr], tuple[Expr, Expr]],
        done: Callable[[Expr], list[Stmt]],
    ) -> tuple[list[Stmt], Stmt]:
        """Arrays for, and the loop over, steps start .. stop - 1 of which none is the first. operands: of a step;
        done: what follows it. `ahead` steps are read before the first of them is done."""
        i, k, j = (self.names.fresh(n) for n in ("i", "k", "j"))
        held = [Buffer(n, self.wide, "local") for n in ("a", "b")]
        values = operands(i + j)
        used = [not _constant(v) for v in values]
        reads = [Store(h, j, v) for h, v, u in zip(held, values, used, strict=True) if u]
        reports = self.pull.take_reports()
        a, b = (load(h, j) if u else v for h, v, u in zip(held, values, used, strict=True))
        whole = (
            For(j, index(0), index(ahead), (*reports, *reads), index(1), unroll=True),
            For(j, index(0), index(ahead), (self.advance(a, b), *done(i + j)), index(1), unroll=True),
        )
        a, b = operands(k)
        rest = For(k, i, stop, (*self.pull.take_reports(), self.advance(a, b), *done(k)), index(1))
        loop = For(i, start, stop, (If(i + ahead <= stop, whole, (rest,)),), index(ahead))
        return [Alloc(h, ahead) for h, u in zip(held, used, strict=True) if u], loop

    def advance(self, a: Expr, b: Expr) -> Stmt:
        return Assign(self.state, fma(a, self.state, b) if self.wide.is_float else a * self.state + b)


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernel of a group with one linear_scan, whose result is the group's only one."""
    return (_lines if choice.form == "scan lines" else _tiles)(_Scan(group), choice, target)


def _lines(s: _Scan, choice: Choice, target: Target) -> Lowered:
    line = s.names.fresh("line")
    stmts, coords = split_coords(line, s.outer, s.names)

    def operands(i: Expr) -> tuple[Expr, Expr]:
        return s.operands(s.at(coords, i))

    def done(i: Expr) -> list[Stmt]:
        return [Store(s.results[0], s.at(coords, i).flat, cast(s.state, s.dtype))]

    head, walk = s.walk(index(1), s.length, choice.number("ahead"), operands, done)
    _, b = operands(index(0))
    first = (*s.pull.take_reports(), Assign(s.state, b), *done(index(0)))
    body = (*stmts, Declare(s.state, const(s.wide, 0)), If(s.length > 0, first), walk)
    loop = For(line, BLOCK * LINE_THREADS + THREAD, s.lines, body, COUNT * LINE_THREADS)
    return s.lowered([*head, loop], ceil_div(s.lines, LINE_THREADS), LINE_THREADS, choice, target)


def _tiles(s: _Scan, choice: Choice, target: Target) -> Lowered:
    """While one warp walks a tile, all threads wait for their elements of the next one, in registers.

    Lines of a tile are one element longer than it, so that what a warp walks lies in different banks.
    """
    lines, steps = choice.number("lines"), choice.number("steps")
    pitch, parts = steps + 1, lines * steps // TILE_THREADS
    item, first, start, part = (s.names.fresh(n) for n in ("item", "first", "t", "part"))
    element, row, line = s.names.fresh("c"), s.names.fresh("r"), s.names.fresh("line")
    tile, factors = Buffer("addends", s.wide, "shared"), Buffer("factors", s.wide, "shared")
    next_b, next_a = Buffer("next_addends", s.wide, "local"), Buffer("next_factors", s.wide, "local")
    stmts, coords = split_coords(line, s.outer, s.names)
    staged = not _constant(s.operands(s.at(coords, start))[0])
    place = row * pitch + element

    def each(begin: Expr, inside: Sequence[Stmt]) -> Stmt:
        """Over this thread's elements of the tile that begins at a step."""
        position = part * TILE_THREADS + THREAD
        body = (
            Let(row, position // steps),
            Let(element, position % steps),
            Let(line, first + row),
            If(logical_and(line < s.lines, begin + element < s.length), tuple(inside)),
        )
        return For(part, index(0), index(parts), body, index(1), unroll=True)

    def flat(begin: Expr) -> tuple[Expr, tuple[Expr, ...]]:
        along = s.at(coords, begin + element).coords
        return line * s.length + along[s.axis], along

    def fetch(begin: Expr) -> Stmt:
        at, along = flat(begin)
        a, b = s.operands(Position(s.shape, along, at))
        held = [Store(next_b, part, b), *([Store(next_a, part, a)] if staged else [])]
        return each(begin, [*stmts, *s.pull.take_reports(), *held])

    move = [Store(tile, place, load(next_b, part)), *([Store(factors, place, load(next_a, part))] if staged else [])]
    mine = THREAD * pitch - start

    def operands(i: Expr) -> tuple[Expr, Expr]:
        return load(factors, mine + i) if staged else s.operands(Position(s.shape))[0], load(tile, mine + i)

    head, walk = s.walk(
        select(equal(start, 0), index(1), start),
        minimum(start + steps, s.length),
        TILE_AHEAD,
        operands,
        lambda i: [Store(tile, mine + i, s.state)],
    )
    begin = If(equal(start, 0), (Assign(s.state, load(tile, THREAD * pitch)),))
    out = Store(s.results[0], flat(start)[0], cast(load(tile, place), s.dtype))
    piece = (
        each(start, move),
        Barrier(),
        fetch(start + steps),
        If(logical_and(lines > THREAD, first + THREAD < s.lines), (begin, walk)),
        Barrier(),
        # No barrier after: what a thread writes to the tile next, it reads here itself.
        each(start, [out]),
    )
    whole = (
        Let(first, item * lines),
        Declare(s.state, const(s.wide, 0)),
        fetch(index(0)),
        For(start, index(0), s.length, piece, index(steps)),
    )
    arrays = [Alloc(tile, lines * pitch), Alloc(next_b, parts)]
    if staged:
        arrays += [Alloc(factors, lines * pitch), Alloc(next_a, parts)]
    groups = ceil_div(s.lines, lines)
    body: list[Stmt] = [*arrays, *head, For(item, BLOCK, groups, whole, COUNT)]
    return s.lowered(body, groups, TILE_THREADS, choice, target)


def _constant(e: Expr) -> bool:
    return all(node.op != "load" and node.op != "var" for node in children_first((e,)))
