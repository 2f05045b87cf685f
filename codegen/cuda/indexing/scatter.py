"""Writing at computed positions on a device: scatter_add, scatter, put_along_add, put_along.

Each element of the result belongs to one thread, which applies the element's updates in ascending order: no two threads
write one element, and no sum depends on who came first.

| form | when | how a thread finds its updates |
| --- | --- | --- |
| scatter look | few updates, or a small result | it looks at all of them |
| scatter sort | else | the updates are sorted by their row, keeping their order (sort.py) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.codegen.cuda.choice import Choice, is_narrow
from graphc.codegen.cuda.indexing.sort import Keys, sort_kernels, touched
from graphc.codegen.cuda.maps.map import ACCESS, big_dims, extent, inner_divides
from graphc.codegen.cuda.maps.sweep import SLACK, THREADS, Lanes, blocks_for, sweep_grid, tiles_of
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, cast, equal, index, load, logical_and, not_equal
from graphc.codegen.loops import Assign, Buffer, Declare, For, Grid, If, Kernel, Let, Report, Stmt, Store
from graphc.codegen.lower.index import Position, delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import Names, group_buffers, group_extents, split_coords
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import accumulator
from graphc.ir.function import Function, Operation
from graphc.ir.types import I32, I64, Dim, Shape, dim_symbols, size_of, substitute

FEW = 64  # updates that every element may as well look at
MOST_EACH = 2048  # that it looks at one after another in about 10 microseconds
MOST_LOOKS = 1 << 26  # of a launch: about 20 microseconds
AHEAD = 8  # updates read before the first of them is added
DIGIT_BITS = 8


class _Scatter:
    """A scattering group while it is lowered.

    count: updates that may concern one element; total: all updates; rows: what the sorted form sorts by: positions along the
    axis, or elements of x where each line has indices of its own.
    """

    def __init__(self, group: Function) -> None:
        self.group = group
        self.op: Operation = next(o for o in group.ops if o.results[0] is group.results[0])
        self.x, self.indices, self.updates = self.op.operands
        self.shape: Shape = self.x.type.shape
        self.axis: int = self.op.attrs["axis"]
        self.along = self.op.name.startswith("put_along")
        self.adds = self.op.name.endswith("_add")
        self.dtype = self.x.type.dtype
        self.wide = accumulator(self.dtype) if self.adds else self.dtype
        self.total: Dim = size_of(self.indices.type.shape)
        self.count: Dim = self.indices.type.shape[self.axis] if self.along else self.total
        self.rows: Dim = size_of(self.shape) if self.along else self.shape[self.axis]
        self.params, self.results = group_buffers(group)
        self.pull = Pull(group, dict(zip(group.params, self.params, strict=True)))
        self.names = Names()

    def checked(self, at: Position) -> Expr:
        """The position along the axis that the index at `at` means."""
        return self.pull.check(self.op, self.pull.at(self.indices, at), dim_expr(self.shape[self.axis]))

    def update_at(self, coords: tuple[Expr, ...], u: Expr) -> Position:
        """Where update u of the element at `coords` is, of all updates (of its line, where lines have their own)."""
        shape = self.updates.type.shape
        if self.along:
            return Position(shape, [u if d == self.axis else c for d, c in enumerate(coords)])
        before, after = coords[: self.axis], coords[self.axis + 1 :]
        merged = (*self.shape[: self.axis], self.total, *self.shape[self.axis + 1 :])
        flat = linearise((*before, u, *after), merged)
        return Position(shape, (*before, *delinearise(u, self.indices.type.shape), *after), flat)

    def apply(self, state: Expr, update: Expr) -> Expr:
        update = cast(update, self.wide)
        return state + update if self.adds else update

    def elements(
        self, width: int, find: Callable[[tuple[Expr, ...], Expr, Expr], list[Stmt]], choice: Choice, target: Target
    ) -> tuple[tuple[Stmt, ...], Expr]:
        """A sweep over the result: x, then what `find(coordinates, flat position, state)` does to it."""
        inner = max(big_dims(self.shape), default=-1)

        def prepare(p: Expr) -> tuple[list[Stmt], Lanes]:
            stmts, coords = split_coords(p, self.shape, self.names)

            def lanes(lane: Expr) -> list[Stmt]:
                at = tuple(c + lane if d == inner else c for d, c in enumerate(coords))
                state = self.names.fresh("h", self.wide)
                value = cast(self.pull.at(self.x, Position(self.shape, at, p + lane)), self.wide)
                reports = self.pull.take_reports()
                out = Store(self.results[0], p + lane, cast(state, self.dtype))
                return [*reports, Declare(state, value), *find(at, p + lane, state), out]

            return stmts, lanes

        size = dim_expr(size_of(self.shape))
        whole = width == 1 or len(big_dims(self.shape)) > 1
        body = sweep_grid(size, width, 1, whole, prepare, self.names)
        return tuple(body), blocks_for(tiles_of(size, width, 1), target)

    def kernel(self, name: str, buffers: tuple[Buffer, ...], body: tuple[Stmt, ...], blocks: Expr, choice: Choice) -> Kernel:
        return Kernel(
            name=name,
            buffers=tuple(b for b in buffers if b in touched(body)),
            extents=group_extents(self.group),
            parallel=blocks,
            work=dim_expr(size_of(self.shape)),
            body=body,
            grid=Grid(blocks, THREADS, choice.divides, choice.narrow),
        )


def choose(group: Function, sizes: Mapping[str, int], target: Target) -> Choice:
    """The schedule of a scattering group: see the head of this file."""
    s = _Scatter(group)
    count, rows, elements = (int(substitute(d, dict(sizes))) for d in (s.count, s.rows, size_of(s.shape)))
    narrow = is_narrow(group, sizes, SLACK)
    if count <= FEW or (count <= MOST_EACH and count * elements <= MOST_LOOKS):
        return Choice("scatter look", narrow=narrow)
    passes = max(1, -(-(rows - 1).bit_length() // DIGIT_BITS))
    big = big_dims(s.shape)
    width = 1
    if not s.along and big[-1] > s.axis:
        width = ACCESS // max(v.type.dtype.itemsize for v in (s.x, s.updates))
        while extent(s.shape, big[-1], sizes) % width:
            width //= 2
    lines = dim_symbols(s.shape[big[-1]]) if width > 1 else ()
    divides = tuple((n, d) for n, d in inner_divides(group, sizes, width) if n in lines)
    return Choice("scatter sort", (("passes", passes), ("width", width)), divides, narrow)


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a group with one scattering operation, whose result is the group's only one."""
    return (_look if choice.form == "scatter look" else _sort)(_Scatter(group), choice, target)


def _look(s: _Scatter, choice: Choice, target: Target) -> Lowered:
    def find(coords: tuple[Expr, ...], flat: Expr, state: Expr) -> list[Stmt]:
        u = s.names.fresh("u")
        where = Position(s.indices.type.shape, s.update_at(coords, u).coords if s.along else None, None if s.along else u)
        row, checked = s.names.fresh("row"), s.checked(where)
        # Many elements look at one index; the first of them speaks.
        first = equal(coords[s.axis], 0) if s.along else equal(flat, 0)
        reports = [Report(logical_and(r.cond, first), r.site, r.value) for r in s.pull.take_reports() if isinstance(r, Report)]
        value = s.pull.at(s.updates, s.update_at(coords, u))
        hit = (*s.pull.take_reports(), Assign(state, s.apply(state, value)))
        return [For(u, index(0), dim_expr(s.count), (*reports, Let(row, checked), If(equal(row, coords[s.axis]), hit)), index(1))]

    body, blocks = s.elements(1, find, choice, target)
    kernel = s.kernel("scatter_look", (*s.params, *s.results), body, blocks, choice)
    return Lowered((kernel,), s.params, s.results, sites=tuple(s.pull.sites))


def _sort(s: _Scatter, choice: Choice, target: Target) -> Lowered:
    word = I32 if choice.narrow else I64

    def key(u: Expr) -> Expr:
        at = Position(s.indices.type.shape, flat=u)
        row = s.checked(at)
        if not s.along:
            return row
        return Position(s.shape, [row if d == s.axis else c for d, c in enumerate(at.coords)]).flat

    keys = Keys(s.total, s.rows, key, s.pull.take_reports, s.params, group_extents(s.group))
    kernels, scratch, order = sort_kernels(keys, choice.number("passes"), word, choice)
    first, stop = (Buffer(name, word, "scratch") for name in ("first", "stop"))
    scratch = (*scratch, Scratch(first, word, s.rows), Scratch(stop, word, s.rows))

    def find(coords: tuple[Expr, ...], flat: Expr, state: Expr) -> list[Stmt]:
        row = s.names.fresh("row")
        begin, end, i = (s.names.fresh(n) for n in ("begin", "end", "i"))
        lets: list[Stmt] = [
            Let(row, flat if s.along else coords[s.axis]),
            Let(begin, cast(load(first, row), I64)),
            Let(end, cast(load(stop, row), I64)),
        ]

        def update(u: Expr) -> Expr:
            at = Position(s.updates.type.shape, flat=u) if s.along else s.update_at(coords, u)
            return s.pull.at(s.updates, at)

        def nth(i: Expr) -> Expr:
            return cast(load(order.buffer, i), I64)

        if not s.adds:
            u = s.names.fresh("u")
            only = (Let(u, nth(end - 1)), Assign(state, s.apply(state, update(u))))
            return [*lets, If(begin < end, only)]
        ahead: list[Stmt] = []
        adds: list[Stmt] = []
        places = [s.names.fresh("u") for _ in range(AHEAD)]
        ahead += [Let(u, nth(i + j)) for j, u in enumerate(places)]
        for u in places:
            v = s.names.fresh("v", s.updates.type.dtype)
            ahead.append(Let(v, update(u)))
            adds.append(Assign(state, s.apply(state, v)))
        j, last = s.names.fresh("j"), s.names.fresh("u")
        single = For(j, i, end, (Let(last, nth(j)), Assign(state, s.apply(state, update(last)))), index(1))
        return [*lets, For(i, begin, end, (If(i + AHEAD <= end, (*ahead, *adds), (single,)),), index(AHEAD))]

    bounds = _bounds(s, keys, order.keys, first, stop, choice, target)
    body, blocks = s.elements(choice.number("width"), find, choice, target)
    buffers = (*s.params, order.buffer, first, stop, *s.results)
    kernels = (*kernels, *bounds, s.kernel("scatter_apply", buffers, body, blocks, choice))
    return Lowered(kernels, s.params, s.results, scratch, tuple(s.pull.sites))


def _bounds(
    s: _Scatter, keys: Keys, ordered: Buffer, first: Buffer, stop: Buffer, choice: Choice, target: Target
) -> tuple[Kernel, ...]:
    """Kernels that find where each row's updates begin and end in sorted order; equal for a row without any."""
    zero = cast(index(0), first.dtype)
    rows, total = dim_expr(s.rows), dim_expr(s.total)

    def clear(p: Expr) -> tuple[list[Stmt], Lanes]:
        return [], lambda lane: [Store(first, p, zero), Store(stop, p, zero)]

    def mark(p: Expr) -> tuple[list[Stmt], Lanes]:
        key, before, after = (s.names.fresh("key", ordered.dtype) for _ in range(3))
        stmts: list[Stmt] = [
            Let(key, load(ordered, p)),
            Let(before, load(ordered, p - 1, p > 0)),
            Let(after, load(ordered, p + 1, p + 1 < total)),
            If(equal(p, 0) | not_equal(key, before), (Store(first, cast(key, I64), cast(p, first.dtype)),)),
            If(
                equal(p + 1, total) | not_equal(key, after),
                (Store(stop, cast(key, I64), cast(p + 1, first.dtype)),),
            ),
        ]
        return stmts, lambda lane: []

    clearing = tuple(sweep_grid(rows, 1, 1, True, clear, s.names))
    marking = tuple(sweep_grid(total, 1, 1, True, mark, s.names))
    return (
        s.kernel("scatter_clear", (first, stop), clearing, blocks_for(tiles_of(rows, 1, 1), target), choice),
        s.kernel("scatter_bounds", (ordered, first, stop), marking, blocks_for(tiles_of(total, 1, 1), target), choice),
    )

