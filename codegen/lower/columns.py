"""Reductions down columns: lanes run along the last kept dimension, which lies further in.

An item is one vector of columns; the items of a thread that lie side by side are computed together, as wide as the
accumulators fit into a cache, so that long stretches of every row are read. The 32 accumulators of each column are
rows of a thread-private array; `depth` elements of one accumulator are combined in a register between reading and writing it.

The last vector of a dimension that vectors do not fill starts earlier and computes some columns once more. So lanes take no part
only where there are fewer columns than lanes, and the mask is the same for the whole kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, children_first, const, equal, index, load, make, not_equal, select, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Let, Report, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.nest import ceil_div, minimum, split_coords
from graphc.codegen.lower.row_group import CHUNK, LANES, RowGroup, accumulator, combine, finish, identity_of
from graphc.codegen.lower.segments import within_segments
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, I64, DType, Shape, size_of

ONE = index(1)
STAGGER = 16
LEVELS = LANES.bit_length()  # of the tree that combines accumulators


@dataclass(frozen=True)
class Blocking:
    """width: lanes of a vector. block: most columns at once, a multiple of it. depth: elements for each visit of an
    accumulator; 0: all of a chunk, in which case accumulators are combined as soon as they are complete.
    """

    width: int
    block: int
    depth: int


class Columns:
    """A block of columns in the making: names, positions and masks that all its sweeps share.

    parts: how many items there are for each vector of columns.
    """

    def __init__(self, row: RowGroup, blocking: Blocking, parts: Expr = ONE) -> None:
        names = row.names
        self.row, self.blocking = row, blocking
        self.dim = max(d for d in row.kept_dims if row.shape[d] != 1)
        self.count = dim_expr(row.shape[self.dim])
        self.vectors_of_line = ceil_div(self.count, blocking.width)
        self.parts, self.part = parts, names.fresh("part")
        self.outer: Shape = tuple(1 if d == self.dim else row.shape[d] for d in row.kept_dims)
        self.line = names.fresh("line")
        self.single = blocking.block == blocking.width
        self.lane, self.v = names.fresh("l"), index(0) if self.single else names.fresh("v")
        self.first, self.base, self.stop = names.fresh("first"), names.fresh("base"), names.fresh("stop")
        self.mask = self.lane < self.count
        self.allocs: list[Stmt] = []
        # Rows of a thread-private array must not all fall into the same sets of a cache.
        self.stride = blocking.block + (STAGGER if blocking.block >= 8 * STAGGER else 0)

    @property
    def items(self) -> Expr:
        """How many items there are: vectors run fastest, then parts, then lines."""
        return dim_expr(size_of(self.outer)) * self.parts * self.vectors_of_line

    @property
    def rows(self) -> int:
        """How many rows of accumulators there are."""
        return LANES if self.blocking.depth else LEVELS

    def enter(self) -> list[Stmt]:
        """Statements at the start of a line; sets the kept coordinates of the row group."""
        row, names = self.row, self.row.names
        rest = names.fresh("rest")
        stmts, coords = split_coords(rest, self.outer, names)
        column = self.first + self.lane
        row.kept = tuple(column if d == self.dim else c for d, c in zip(row.kept_dims, coords, strict=True))
        return [Let(self.part, self.line % self.parts), Let(rest, self.line // self.parts), *stmts]

    def whole(self, head: Sequence[Stmt], body: Sequence[Stmt]) -> list[Stmt]:
        """The kernel: `head` for each line, `body` for each block of its columns.

        All of it is one vector region, so that masks are computed once.
        """
        begin, end, width = var("begin"), var("end"), self.blocking.width
        low, high, at, b = (self.row.names.fresh(s) for s in ("low", "high", "at", "b"))
        most = self.blocking.block // width
        block = (
            Let(self.base, b * width),
            Let(self.stop, minimum(minimum(b + most, high) * width, self.count) - self.base),
            *(self._place() if self.single else ()),
            *body,
        )
        start, line_end = begin - at, minimum(end - at, self.vectors_of_line)
        line = (
            Let(at, self.line * self.vectors_of_line),
            Let(low, select(start < 0, index(0), start)),
            Let(high, line_end),
            *head,
            For(b, low, high, block, index(most)),
        )
        # Without columns there are no items, but the kernel may be called.
        of_line = select(self.vectors_of_line < 1, ONE, self.vectors_of_line)
        lines = For(self.line, begin // of_line, (end + of_line - 1) // of_line, line, index(1))
        return [*self.allocs, Vector(self.lane, width, (lines,))]

    def array(self, stem: str, dtype: DType, rows: int) -> Buffer:
        buffer = Buffer(str(self.row.names.fresh(stem).data), dtype, "local")
        self.allocs.append(Alloc(buffer, rows * self.stride))
        return buffer

    def slot(self, r: Expr | int) -> Expr:
        """Where the current columns are in row `r` of a thread-private array."""
        return (index(r) if isinstance(r, int) else r) * self.stride + self.v + self.lane

    def _place(self) -> tuple[Stmt, ...]:
        last, wanted = self.count - self.blocking.width, self.base + self.v
        first = select(wanted < last, wanted, last)
        return (Let(self.first, select(first < 0, index(0), first)),)

    def vectors(self, body: Sequence[Stmt], of_columns: bool = True) -> Stmt:
        """The loop over the vectors of the block. of_columns: `body` reads or writes at the columns themselves."""
        if self.single:
            return If(const(BOOL, True), tuple(body))
        place = self._place() if of_columns else ()
        return For(self.v, index(0), self.stop, (*place, *body), index(self.blocking.width))

    def guarded(self, e: Expr) -> Expr:
        """`e`, which reads nothing in lanes without a column."""
        varying: set[Expr] = set()
        done: dict[Expr, Expr] = {}
        for node in children_first((e,)):
            args = tuple(done[a] for a in node.args)
            if node is self.lane or any(a in varying for a in node.args):
                varying.add(node)
            if node.op == "load" and node in varying and node.data.kind != "local":
                cond = self.mask if len(args) == 1 else make("and", BOOL, (args[1], self.mask))
                done[node] = load(node.data, args[0], cond)
            else:
                done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
        return done[e]

    def reports(self) -> list[Stmt]:
        return self.checked(self.row.pull.take_reports())

    def checked(self, found: Sequence[Stmt]) -> list[Stmt]:
        """Reports, of lanes that have a column."""
        checks = [
            Report(self.guarded(r.cond), r.site, self.guarded(r.value))
            for r in found
            if isinstance(r, Report)
        ]
        return [If(self.mask, tuple(checks))] if checks else []

    def element(self, op: Operation, i: Expr) -> Expr:
        return self.guarded(self.row.element(op, i))

    def stores(self, full: Sequence[tuple[Value, Buffer]], i: Expr) -> list[Stmt]:
        """Stores of results of the full shape at reduced position `i`."""
        at = Position(self.row.shape, self.row.coords(i))
        return self._stores([(v, b, at) for v, b in full])

    def store_kept(self, targets: Sequence[tuple[Value, Buffer]]) -> list[Stmt]:
        """Stores of results of the kept shape, for all columns of the block."""
        kept = [
            (v, b, Position(self.row.kept_shape, self.row.kept).reshaped(v.type.shape))
            for v, b in targets
            if not self.row.is_full(v)
        ]
        return [self.vectors(self._stores(kept))] if kept else []

    def _stores(self, targets: Sequence[tuple[Value, Buffer, Position]]) -> list[Stmt]:
        # All values come first: a result may lie in the memory of what another is computed from.
        named = [
            (self.row.names.fresh("y", v.type.dtype), b, at, self.guarded(self.row.pull.at(v, at)))
            for v, b, at in targets
        ]
        if not named:
            return []
        stores = tuple(Store(b, at.flat, name) for name, b, at, _ in named)
        return [*self.reports(), *(Let(name, value) for name, _, _, value in named), If(self.mask, stores)]

    def chunk(
        self,
        ops: Sequence[Operation],
        arrays: Sequence[Buffer],
        start: Expr,
        stop: Expr,
        ready: Sequence[tuple[Value, Buffer]] = (),
    ) -> list[Stmt]:
        """Combine the elements of one chunk; the result of each operation is row 0 of its array. Stores what is `ready`."""
        names, depth = self.row.names, self.blocking.depth
        pairs = list(zip(ops, arrays, strict=True))
        r, i = names.fresh("r"), names.fresh("i")
        registers = [names.fresh("acc", a.dtype) for a in arrays]
        step = self._step(ops, registers, i, ready)
        clear = [Declare(acc, identity_of(op)[0]) for acc, op in zip(registers, ops, strict=True)]
        if not depth:
            return self._in_order_of_the_tree(
                list(zip(ops, arrays, registers, strict=True)),
                clear,
                r,
                For(i, start + r, stop, step, index(LANES)),
            )
        k, near, end = names.fresh("k"), names.fresh("near"), names.fresh("end")
        held = tuple(Assign(acc, load(a, self.slot(r))) for acc, a in zip(registers, arrays, strict=True))
        visit: list[Stmt] = [
            *clear,
            *([If(near > start, held)] if held else []),
            *([Let(i, near + r), *step] if depth == 1 else [For(i, near + r, end, step, index(LANES))]),
            *(Store(a, self.slot(r), acc) for acc, a in zip(registers, arrays, strict=True)),
        ]
        rows = For(r, index(0), minimum(end - near, index(LANES)), (self.vectors(visit),), index(1))
        sweep = For(
            near, start, stop, (Let(end, minimum(near + LANES * depth, stop)), rows), index(LANES * depth)
        )
        if not pairs:
            return [sweep]
        # A short chunk does not come to all lanes.
        missing = tuple(Store(a, self.slot(k), identity_of(op)[0]) for op, a in pairs)
        fill = For(k, stop - start, index(LANES), (self.vectors(missing, False),), index(1))
        return [fill, sweep, self.vectors([s for op, a in pairs for s in self._tree(op, a)], False)]

    def _in_order_of_the_tree(
        self, triples: list[tuple[Operation, Buffer, Expr]], clear: Sequence[Stmt], r: Expr, accumulate: Stmt
    ) -> list[Stmt]:
        """Lanes in an order in which each is combined with what waits for it: lane 0, 16, then those two with 8 and 24, ..

        Turn j takes lane j with its bits reversed; what j ends in ones is the number of partners that are complete. Row m of an array
        holds what waits at level m of the tree.
        """
        names = self.row.names
        j, done, m = names.fresh("j"), names.fresh("done"), names.fresh("m")
        bits = LEVELS - 1
        lane, ones = index(0), index(0)
        for b in range(bits):
            lane = lane + (j >> b & 1) * (1 << bits - 1 - b)
            ones = ones + select(equal(j & (2 << b) - 1, (2 << b) - 1), index(1), index(0))
        join = tuple(Assign(acc, combine(op, load(a, self.slot(m)), acc)) for op, a, acc in triples)
        visit = [
            *clear,
            accumulate,
            For(m, index(0), done, join, index(1)),
            *(Store(a, self.slot(done), acc) for _, a, acc in triples),
        ]
        turn = (Let(r, lane), Let(done, ones), self.vectors(visit))
        last = [Store(a, self.slot(0), load(a, self.slot(bits))) for _, a, _ in triples]
        return [
            For(j, index(0), index(LANES), turn, index(1)),
            *([self.vectors(last, False)] if last else []),
        ]

    def _step(
        self,
        ops: Sequence[Operation],
        registers: Sequence[Expr],
        i: Expr,
        ready: Sequence[tuple[Value, Buffer]],
    ) -> tuple[Stmt, ...]:
        """Combine the elements at reduced position `i` into registers, and store what is ready there."""
        elements = [combine(op, acc, self.element(op, i)) for op, acc in zip(ops, registers, strict=True)]
        checks = self.reports()
        body = [
            *checks,
            *(Assign(acc, e) for acc, e in zip(registers, elements, strict=True)),
            *self.stores(ready, i),
        ]
        return within_segments(body, self.lane, self.blocking.width)

    def _tree(self, op: Operation, array: Buffer) -> list[Stmt]:
        """Combine the 32 accumulators of a vector by halving: two steps in a loop, three written out."""
        h = self.row.names.fresh("h")
        quarter = LANES // 4
        at = [load(array, self.slot(h + k * quarter)) for k in range(4)]
        value = combine(op, combine(op, at[0], at[2]), combine(op, at[1], at[3]))
        rest = [load(array, self.slot(k)) for k in range(quarter)]
        while len(rest) > 1:
            half = len(rest) // 2
            rest = [combine(op, rest[k], rest[k + half]) for k in range(half)]
        first = For(h, index(0), index(quarter), (Store(array, self.slot(h), value),), index(1))
        return [first, Store(array, self.slot(0), rest[0])]


def lower_columns(
    row: RowGroup, targets: list[tuple[Value, Buffer]], blocking: Blocking
) -> tuple[list[Stmt], Expr]:
    columns = Columns(row, blocking)
    head = columns.enter()
    body: list[Stmt] = []
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    full = [(v, b) for v, b in targets if row.is_full(v)]
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [(v, b) for v, b in full if row.levels[v] == level - 1]
        full = [t for t in full if t not in ready]
        body += _level(columns, ops, ready)
    if full:
        i = row.names.fresh("i")
        stores = within_segments(columns.stores(full, i), columns.lane, blocking.width)
        body.append(For(i, index(0), row.length, (columns.vectors(stores),), index(1)))
    body += columns.store_kept(targets)
    return columns.whole(head, body), columns.items


def _level(columns: Columns, ops: list[Operation], ready: list[tuple[Value, Buffer]]) -> list[Stmt]:
    """One sweep down the columns. Totals are rows of thread-private arrays."""
    row = columns.row
    plain = [op for op in ops if op.name not in ("argmax", "argmin")]
    out: list[Stmt] = []
    if plain or ready:
        arrays = [columns.array("lanes", identity_of(op)[1], columns.rows) for op in plain]
        totals = [columns.array("total", identity_of(op)[1], 1) for op in plain]
        here = columns.slot(0)
        if plain:
            clear = [Store(t, here, identity_of(op)[0]) for t, op in zip(totals, plain, strict=True)]
            out.append(columns.vectors(clear, False))
        chunk, stop = row.names.fresh("chunk"), row.names.fresh("stop")
        body: list[Stmt] = [
            Let(stop, minimum(chunk + CHUNK, row.length)),
            *columns.chunk(plain, arrays, chunk, stop, ready),
        ]
        if plain:
            triples = zip(totals, arrays, plain, strict=True)
            gathered = [Store(t, here, combine(op, load(t, here), load(a, here))) for t, a, op in triples]
            body.append(columns.vectors(gathered, False))
        out.append(For(chunk, index(0), row.length, tuple(body), index(CHUNK)))
        for t, op in zip(totals, plain, strict=True):
            row.bind(op, finish(op, load(t, here), row.length))
    for op in ops:
        if op.name in ("argmax", "argmin"):
            out += _position(columns, op)
    return out


def _position(columns: Columns, op: Operation) -> list[Stmt]:
    """argmax / argmin: the first position of the extreme value; the first NaN wins."""
    row, here = columns.row, columns.slot(0)
    names, depth = row.names, LANES * (columns.blocking.depth or 1)
    wide = accumulator(op.operands[0].type.dtype)
    best, where = columns.array("best", wide, 1), columns.array("where", I64, 1)
    start = least(op)
    near, end, i = names.fresh("near"), names.fresh("end"), names.fresh("i")
    held, at, better = names.fresh("held", wide), names.fresh("at"), names.fresh("better", BOOL)
    x = columns.element(op, i)
    step = (
        *columns.reports(),
        Let(better, wins(op, x, held)),
        Assign(at, select(better, i, at)),
        Assign(held, select(better, x, held)),
    )
    visit = (
        Declare(held, load(best, here)),
        Declare(at, load(where, here)),
        For(i, near, end, step, index(1)),
        Store(best, here, held),
        Store(where, here, at),
    )
    row.bind(op, load(where, here))
    block = (Let(end, minimum(near + depth, row.length)), columns.vectors(visit))
    return [
        columns.vectors((Store(best, here, start), Store(where, here, index(0))), False),
        For(near, index(0), row.length, block, index(depth)),
    ]


def least(op: Operation) -> Expr:
    """What argmax / argmin compare the first element with: every element is at least that, and position 0 is its own."""
    return reduction("max" if op.name == "argmax" else "min", accumulator(op.operands[0].type.dtype))[0]


def wins(op: Operation, x: Expr, held: Expr) -> Expr:
    """Whether a later element takes the place of the one that is held."""
    better = x > held if op.name == "argmax" else x < held
    if x.dtype.is_float:
        better = make("or", BOOL, (better, make("and", BOOL, (not_equal(x, x), equal(held, held)))))
    return better
