"""Reductions along short rows: lanes run across rows.

A row of ten elements fills no vector, and combining its lanes takes longer than computing them. So an item is as many rows as a
vector has lanes: what is read at rows and positions of the domain is turned in registers into a thread-private array, in which
position j of all rows is one vector; everything is computed by such vectors, and results of the full shape are turned back.

Elements are combined as everywhere: position j is lane j mod 32, lanes by halving. Lanes that a short row has no elements for hold
the identity, which changes nothing, and always come second: they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, children_first, const, index, load, replace, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Let, Report, Stmt, Store, Transpose, Vector
from graphc.codegen.lower.affine import depends
from graphc.codegen.lower.columns import Blocking, Columns, least, wins
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.row_group import EXPENSIVE, LANES, RowGroup, accumulator, combine, sweeps_of
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, I32, I64, Shape

# Operations that are not worth a loop and an array of their own.
CHEAP = 3
# Rows of at most so many elements are read and written as whole vectors of them, whose elements are then put in order.
TINY = 3


class _Short(Columns):
    """A vector of rows in the making."""

    def __init__(self, row: RowGroup, width: int) -> None:
        super().__init__(row, Blocking(width, width, 0))
        self.width = width
        self.axis = next(a for a in row.axes if row.shape[a] != 1)
        n = row.shape[self.axis]
        assert isinstance(n, int)
        self.n = n
        self.staged: dict[Value, Buffer] = {}
        self.held: dict[Value, Buffer] = {}
        for p in row.group.params:
            if _squeezed(p.type.shape) == _squeezed(row.shape):
                self._bind(p, None)

    def start(self, item: Expr) -> list[Stmt]:
        """Statements at the start of an item; sets the kept coordinates of the row group."""
        single = all(d == 1 for d in self.outer)
        line, vector = (
            (index(0), item) if single else (item // self.vectors_of_line, item % self.vectors_of_line)
        )
        wanted, last = self.row.names.fresh("wanted"), self.count - self.width
        at = select(wanted < last, wanted, last)
        return [
            Let(self.line, line),
            *self.enter(),
            Let(wanted, vector * self.width),
            Let(self.first, select(at < 0, index(0), at)),
        ]

    def at(self, j: Expr) -> Position:
        return Position(self.row.shape, self.row.coords(j))

    def _column(self, at: Position) -> Expr | None:
        """j, where `at` is position j of each lane's own row."""
        coords = at.reshaped(self.row.shape).coords
        kept = [coords[d] for d in self.row.kept_dims]
        if any(a is not b for a, b in zip(kept, self.row.kept, strict=True)) or depends(
            coords[self.axis], self.lane
        ):
            return None
        return coords[self.axis]

    def _bind(self, value: Value, array: Buffer | None) -> None:
        """Read `value` from a thread-private array wherever it is read at a lane's own row. None: a parameter, which is turned into one."""
        pull = self.row.pull

        def rule(at: Position) -> Expr:
            j = self._column(at)
            if j is not None:
                return load(array or self._stage(value), j * self.width + self.lane)
            known = pull.bound.pop(value)
            try:
                return pull.at(value, at)
            finally:
                pull.bound[value] = known

        pull.bind(value, rule)

    def _stage(self, param: Value) -> Buffer:
        if param not in self.staged:
            self.staged[param] = self.array("t", param.type.dtype, self.n)
        return self.staged[param]

    def hold(self, values: Sequence[Value]) -> list[Stmt]:
        """Compute values of the full shape and keep them in arrays."""
        missing = [v for v in dict.fromkeys(values) if v not in self.held and v not in self.row.pull.buffers]
        if not missing:
            return []
        j = self.row.names.fresh("j")
        named = [
            (self.row.names.fresh("v", v.type.dtype), self.guarded(self.row.pull.at(v, self.at(j))))
            for v in missing
        ]
        arrays = [self.array("a", v.type.dtype, self.n) for v in missing]
        # What is checked of a row is checked once, not at each of its positions.
        checks = self.row.pull.take_reports()
        of_row = [
            r for r in checks if isinstance(r, Report) and not depends(r.cond, j) and not depends(r.value, j)
        ]
        body = [
            *self.checked([r for r in checks if r not in of_row]),
            *(Let(name, x) for name, x in named),
            *(Store(a, j * self.width + self.lane, name) for a, (name, _) in zip(arrays, named, strict=True)),
        ]
        for v, a in zip(missing, arrays, strict=True):
            self.held[v] = a
            self._bind(v, a)
        return [*self.checked(of_row), For(j, index(0), index(self.n), tuple(body), index(1))]

    def is_cheap(self, value: Value) -> bool:
        """Whether a value is computed as fast as it would be read."""
        j = self.row.names.fresh("j")
        x = self.row.pull.at(value, self.at(j))
        if self.row.pull.take_reports():
            return False
        along = {j}
        for e in children_first((x,)):
            if any(a in along for a in e.args):
                along.add(e)
        found = [e for e in along if e.op not in ("load", "var") and e.dtype is not I64]
        return len(found) <= CHEAP and not any(e.op in ("div", "sqrt") for e in found)

    def combined(self, op: Operation) -> list[Stmt]:
        """Combine the elements of every row, as a tree over vectors."""
        names = self.row.names
        if op.name in ("argmax", "argmin"):
            return self._extreme(op)
        out: list[Stmt] = []

        def named(x: Expr) -> Expr:
            name = names.fresh("s", x.dtype)
            out.append(Let(name, x))
            return name

        lanes = [self.element(op, index(j)) for j in range(min(self.n, LANES))]
        for j in range(LANES, self.n):
            lanes[j - LANES] = named(combine(op, lanes[j - LANES], self.element(op, index(j))))
        half = LANES // 2
        while half:
            for k in range(len(lanes) - half):
                lanes[k] = named(combine(op, lanes[k], lanes[k + half]))
            lanes, half = lanes[:half], half // 2
        self.row.bind(op, lanes[0])
        return out

    def _extreme(self, op: Operation) -> list[Stmt]:
        """argmax / argmin: the first position of the extreme value; the first NaN wins."""
        names, wide = self.row.names, accumulator(op.operands[0].type.dtype)
        held, at = names.fresh("held", wide), names.fresh("at", I32)
        j, x, better = names.fresh("j"), names.fresh("x", wide), names.fresh("better", BOOL)
        element = self.element(op, j)
        body = (
            *self.reports(),
            Let(x, element),
            Let(better, wins(op, x, held)),
            Assign(at, select(better, cast(j, I32), at)),
            Assign(held, select(better, x, held)),
        )
        self.row.bind(op, at)
        start = least(op)
        return [
            Declare(held, start),
            Declare(at, const(I32, 0)),
            For(j, index(0), index(self.n), body, index(1)),
        ]

    def turned_in(self) -> list[Stmt]:
        """What is read of parameters, turned into arrays."""

        def square(p: Value, j: Expr, count: int) -> Stmt:
            source, array = self.row.pull.buffers[p], self.staged[p]
            return Transpose(
                array,
                j * self.width,
                index(self.width),
                source,
                self.origin + j,
                index(self.n),
                self.width,
                count,
            )

        def single(p: Value, j: Expr) -> Stmt:
            element = load(self.row.pull.buffers[p], self.at(j).flat, self.mask)
            return Store(self.staged[p], j * self.width + self.lane, element)

        def ordered(p: Value, j: int) -> Stmt:
            element = load(self.row.pull.buffers[p], self.origin + self.lane * self.n + j)
            return Store(self.staged[p], self.lane + j * self.width, element)

        return self._turned(list(self.staged), square, single, ordered, self.width)

    def turned_out(self, targets: Sequence[tuple[Value, Buffer]]) -> list[Stmt]:
        """Results of the full shape, turned back from their arrays."""
        buffers = dict(targets)
        # A parameter can be a result as it is.
        arrays = {v: self.held.get(v) or self._stage(v) for v in buffers}

        def square(v: Value, j: Expr, count: int) -> Stmt:
            target, array = buffers[v], arrays[v]
            return Transpose(
                target,
                self.origin + j,
                index(self.n),
                array,
                j * self.width,
                index(self.width),
                count,
                self.width,
            )

        def single(v: Value, j: Expr) -> Stmt:
            return If(
                self.mask, (Store(buffers[v], self.at(j).flat, load(arrays[v], j * self.width + self.lane)),)
            )

        def ordered(v: Value, k: int) -> Stmt:
            at = self.lane + k * self.width
            element = load(arrays[v], at % self.n * self.width + at // self.n)
            return Store(buffers[v], self.origin + at, element)

        return self._turned(list(buffers), square, single, ordered, max(1, self.width // 2))

    @property
    def origin(self) -> Expr:
        """Where the first of the rows starts."""
        return replace(self.at(index(0)).flat, {self.lane: index(0)})

    def _turned(
        self,
        values: list[Value],
        square: Callable[[Value, Expr, int], Stmt],
        single: Callable[[Value, Expr], Stmt],
        ordered: Callable[[Value, int], Stmt],
        side: int,
    ) -> list[Stmt]:
        """Blocks of positions, as squares as far as they go; tiny rows vector by vector; where there are fewer rows than lanes, element
        by element."""
        if not values:
            return []
        j, k = self.row.names.fresh("j"), self.row.names.fresh("j")
        one = For(k, index(0), index(self.n), tuple(single(v, k) for v in values), index(1))
        few = Vector(self.lane, self.width, (one,))
        if self.n <= TINY:
            each = tuple(ordered(v, i) for v in values for i in range(self.n))
            return [If(self.count >= self.width, (Vector(self.lane, self.width, each),), (few,))]
        whole = self.n // side * side
        rest = self.n - whole
        blocks: list[Stmt] = []
        if whole:
            blocks.append(
                For(
                    j,
                    index(0),
                    index(whole),
                    tuple(square(v, j, side) for v in values),
                    index(side),
                )
            )
        if rest:
            # The last block reaches back, if it can, to be one of the sides that squares have.
            count = min(self.n, 1 << (rest - 1).bit_length())
            blocks += [square(v, index(self.n - count), count) for v in values]
        return [If(self.count >= self.width, tuple(blocks), (few,))]


def lower_short(row: RowGroup, targets: list[tuple[Value, Buffer]], width: int) -> tuple[list[Stmt], Expr]:
    """The statements of a row group whose rows are short, and how many items there are."""
    short = _Short(row, width)
    item = row.names.fresh("item")
    head = short.start(item)
    full = [(v, b) for v, b in targets if row.is_full(v)]
    sweeps = sweeps_of(row, targets)
    producer = {op.results[0]: op.name for op in row.group.ops}
    repeated = [
        v for v, found in sweeps.items() if row.is_full(v) and producer.get(v) in EXPENSIVE and len(found) > 1
    ]
    body: list[Stmt] = []
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [v for v, _ in full if row.levels[v] == level - 1]
        again = [v for v in repeated if min(sweeps[v]) == level]
        body += short.hold(
            [*again, *(op.operands[0] for op in ops if not short.is_cheap(op.operands[0])), *ready]
        )
        for op in ops:
            body += short.combined(op)
    body += short.hold([v for v, _ in full])
    body += short.store_kept(targets)
    out = short.turned_out(full)
    inside = [*head, *short.turned_in(), Vector(short.lane, width, tuple(body)), *out]
    return [*short.allocs, For(item, var("begin"), var("end"), tuple(inside), index(1))], short.items


def _squeezed(shape: Shape) -> Shape:
    return tuple(d for d in shape if d != 1)
