"""After fusion, for CPUs: reductions down the columns of a domain join a row group over the same domain.

The gradient of a normalisation reduces its rows, and then its columns for the gradients of gain and bias; a softmax's gradient is
summed into that of a bias. One kernel does both while a row lies in the cache (lower/lanes.py). Nothing changes a bit.
"""

from __future__ import annotations

from graphc.codegen.fuse import ALONE, CONTRACT, MOST_OPERATIONS, REDUCE
from graphc.codegen.likely import likely
from graphc.codegen.lower.row_group import LANES, domain_of, identity_of, is_columns, single_pass
from graphc.codegen.merge import MOST_RESULTS, with_calls
from graphc.codegen.positions import Tokens, squeezed, step, tokens_of, units_out
from graphc.ir.function import Builder, Module, Operation, Value
from graphc.ir.passes.cse import cse
from graphc.ir.types import Shape, size_of

# Accumulators of one lane, for all columns, lie in a cache: at most so many bytes.
ACCUMULATORS = 128 << 10
# Shorter rows are computed across rows (lower/short.py); of fewer rows, most lanes would be empty.
LEAST_COLUMNS, LEAST_ROWS = 65, 4 * LANES


def join(module: Module) -> Module:
    """`module` with such groups joined."""
    joiner = _Joiner(module)
    for column in joiner.columns:
        joiner.place(column)
    return with_calls(module, joiner.calls, joiner.now) if joiner.results else module


class _Joiner:
    """The calls while reductions down columns join others."""

    def __init__(self, module: Module) -> None:
        self.calls = list(module.entry.ops)
        self.wanted = module.entry.results
        self.results: dict[Value, Value] = {}  # of calls that were joined
        self.order: dict[Operation, int] = {}
        self.maker: dict[Value, Operation] = {}
        self._number()
        self.columns: list[Operation] = []
        self.rows: dict[Shape, list[Operation]] = {}
        columns = [op for op in self.calls if _is_column(op)]
        if columns:
            shapes = {domain_of(op.attrs["function"])[0] for op in columns}
            for op in self.calls:
                if _is_row(op) and (shape := domain_of(op.attrs["function"])[0]) in shapes:
                    self.rows.setdefault(shape, []).append(op)
            self.columns = [op for op in columns if domain_of(op.attrs["function"])[0] in self.rows]

    def _number(self) -> None:
        self.order = {op: k for k, op in enumerate(self.calls)}
        self.maker = {r: op for op in self.calls for r in op.results}

    def now(self, v: Value) -> Value:
        """What stands for a result of a call that was joined."""
        while v in self.results:
            v = self.results[v]
        return v

    def place(self, column: Operation) -> None:
        """Join `column` and the rows with which it shares most, if there are any."""
        shape = domain_of(column.attrs["function"])[0]
        reads = {self.now(v) for v in column.operands if v.type.shape == shape}
        found: tuple[int, Operation, int] | None = None
        for row in self.rows[shape]:
            known = {*map(self.now, row.operands), *row.results}
            shared = len(reads & known)
            if not shared or (found and found[0] >= shared) or not _complete(row, column):
                continue
            if (at := self._where(row, column)) is not None and self._in_place(row, column, shape):
                found = shared, row, at
        if found is not None:
            _, row, at = found
            self._join(row, column, shape, at)

    def _where(self, row: Operation, column: Operation) -> int | None:
        """Where both could be one call: at the place of the first if the second is ready there, at that of the second if nobody in
        between waits for the first."""
        place, maker = self.order, self.maker
        i, j = sorted((place[row], place[column]))
        first, second = self.calls[i], self.calls[j]
        if second is row and any(self.now(v) in column.results for v in row.operands):
            return None
        needed = {maker[v] for v in map(self.now, second.operands) if v in maker} - {first}
        if all(place[op] < i for op in needed):
            return i
        made = set(first.results)
        return None if any(self.now(v) in made for op in self.calls[i + 1 : j] for v in op.operands) else j

    def _in_place(self, row: Operation, column: Operation, shape: Shape) -> bool:
        """Whether `column` reads results of `row` at the current element or row, and before it reduces only."""
        group = column.attrs["function"]
        inner = {p: self.now(v) for p, v in zip(group.params, column.operands, strict=True)}
        own = {p for p, v in inner.items() if v in row.results}
        if not own:
            return True
        axes = domain_of(row.attrs["function"])[1]
        here = tokens_of(shape)
        rows = tuple(t for d, t in enumerate(here) if d not in axes)
        kept = tuple(d for i, d in enumerate(shape) if i not in axes)
        producer = {r: op for op in group.ops for r in op.results}
        seen: set[tuple[Value, Tokens]] = set()
        below = ("column",) * len(shape)
        stack = [(r, here if r.type.shape == shape else below[: r.type.rank]) for r in group.results]
        while stack:
            v, at = stack.pop()
            if (v, at) in seen:
                continue
            seen.add((v, at))
            if v in own:
                whole = v.type.shape == shape and at == here
                if not whole and not (squeezed(v.type.shape) == squeezed(kept) and units_out(at, v.type.shape) == units_out(rows, kept)):
                    return False
            op = producer.get(v)
            if op is not None:
                stack += [(op.operands[0], here)] if op.name in REDUCE else step(op, at)
        return True

    def _join(self, row: Operation, column: Operation, shape: Shape, at: int) -> None:
        users = [op for op in self.calls if op is not row and op is not column]
        used = set(self.wanted).union(*[op.operands for op in users])
        used.update([self.now(v) for v in self.results if v in used])
        joined = self._joined(row, column, used)
        self.calls = [joined if k == at else op for k, op in enumerate(self.calls) if k == at or op not in (row, column)]
        self._number()
        self.rows[shape] = [joined if op is row else op for op in self.rows[shape]]

    def _joined(self, row: Operation, column: Operation, used: set[Value]) -> Operation:
        """One call of two; results that only `column` read are none any more."""
        b = Builder(row.attrs["function"].name)
        operands: list[Value] = []
        inside: dict[Value, Value] = {}
        results: list[tuple[Value, Value]] = []
        for call in (row, column):
            group = call.attrs["function"]
            env: dict[Value, Value] = {}
            for v, p in zip(map(self.now, call.operands), group.params, strict=True):
                if v not in inside:
                    inside[v] = b.param(p.type)
                    operands.append(v)
                env[p] = inside[v]
            for op in group.ops:
                b.loc = op.loc
                copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
                b.append(copy)
                env.update(zip(op.results, copy.results, strict=True))
            for outer, inner in zip(call.results, group.results, strict=True):
                inside[outer] = env[inner]
                if outer in used:
                    results.append((outer, env[inner]))
        function = cse(b.build([inner for _, inner in results]))
        made = Operation("call", operands, {"function": function, "noinline": False}, [Value(v.type) for v, _ in results], row.loc)
        self.results.update(zip((v for v, _ in results), made.results, strict=True))
        return made


def _complete(row: Operation, column: Operation) -> bool:
    """Whether a row group reduces what a column group keeps, and both together are not too much."""
    a, b = row.attrs["function"], column.attrs["function"]
    shape, down = domain_of(b)
    along = domain_of(a)[1]
    if len(a.ops) + len(b.ops) > MOST_OPERATIONS or len(a.results) + len(b.results) > MOST_RESULTS:
        return False
    return tuple(sorted((*down, *along))) == tuple(range(len(shape)))


def _reduced(op: Operation) -> Shape | None:
    """The domain of a group that only reduces, of dimensions that are about known."""
    group = op.attrs["function"]
    names = {o.name for o in group.ops}
    if not names & REDUCE or names & (CONTRACT | ALONE):
        return None
    shape = domain_of(group)[0]
    return shape if all(likely(d) is not None for d in shape) else None


def _is_row(op: Operation) -> bool:
    """Whether a group reduces the inner dimensions of a domain."""
    shape = _reduced(op)
    return shape is not None and not is_columns(shape, domain_of(op.attrs["function"])[1])


def _is_column(op: Operation) -> bool:
    """Whether a group reduces the outer dimensions of a domain in one pass, and joining another one pays."""
    shape = _reduced(op)
    if shape is None:
        return False
    group = op.attrs["function"]
    axes = domain_of(group)[1]
    if axes != tuple(range(len(axes))) or not is_columns(shape, axes) or not single_pass(group):
        return False
    reductions = [o for o in group.ops if o.name in REDUCE]
    if any(o.name in ("argmax", "argmin") for o in reductions):
        return False
    rows, columns = likely(size_of(shape[: len(axes)])), likely(size_of(shape[len(axes) :]))
    assert rows is not None and columns is not None
    held = columns * sum(identity_of(o)[1].itemsize for o in reductions)
    return rows >= LEAST_ROWS and columns >= LEAST_COLUMNS and held <= ACCUMULATORS
