"""The sweeps of a row group over its reduced dimensions, and the values that they hold in between.

Sweep k (from 1) accumulates the reductions of level k and stores the full-shape results that are ready;
what is left is stored in a last sweep. A value that several sweeps need and that comes from memory or costs
much is held: computed in the first of them, at the same element by the same thread read back in the later
ones. Where it is held (registers, shared memory) is the schedule's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from graphc.codegen.cuda.rows.quotients import Quotients, safe_divisor, unless_fine
from graphc.codegen.expr import Expr, const, index, load, logical_and
from graphc.codegen.fuse import FREE
from graphc.codegen.loops import Alloc, Buffer, If, Let, Stmt, Store
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.row_group import REDUCE, RowGroup, domain_of, levels_of
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import BOOL, DType, size_of

# Worth keeping rather than computing twice. Division and square root are sequences of ten instructions.
HEAVY = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow", "atan2", "hypot", "logaddexp", "nextafter", "remainder", "floor_divide", "random_bits", "div", "sqrt", "reciprocal", "gather", "take_along", "pad", "concat"]
)  # fmt: skip


Rewrite = Callable[[Sequence[Stmt], Expr], list[Stmt]]


@dataclass(eq=False)
class Held:
    """A full-shape value that is computed in sweep `first` and read until sweep `last`."""

    value: Value
    first: int
    last: int

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype


@dataclass
class Sweep:
    number: int
    ops: list[Operation] = field(default_factory=list)
    stores: list[tuple[Value, Buffer]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)  # new in this sweep, operands before users


def held_values(group: Function, heavy: bool = True) -> list[Held]:
    """What is worth holding, operands before users. heavy: also what costs much, not only what comes from memory."""
    shape, _ = domain_of(group)
    level = levels_of(group)
    producer = {r: op for op in group.ops for r in op.results}
    roots = [(op.operands[0], level[op.results[0]]) for op in group.ops if op.name in REDUCE]
    roots += [(v, level[v] + 1) for v in group.results if v.type.shape == shape]

    def visits(held: dict[Value, int]) -> dict[Value, set[int]]:
        """The sweeps that compute or read each value; held ones are computed in their first only."""
        found: dict[Value, set[int]] = {}
        stack = list(roots)
        while stack:
            v, sweep = stack.pop()
            if sweep in found.setdefault(v, set()):
                continue
            found[v].add(sweep)
            op = producer.get(v)
            if op is None or op.name in REDUCE or (v in held and sweep != held[v]):
                continue
            stack += [(o, sweep) for o in op.operands]
        return found

    def candidates(wanted: Callable[[Value], bool], held: dict[Value, int]) -> list[Value]:
        found = visits(held)
        order = [*group.params, *(r for op in group.ops for r in op.results)]
        return [v for v in order if v.type.shape == shape and len(found.get(v, ())) > 1 and v not in held and wanted(v)]

    def from_memory(v: Value) -> bool:
        """Whether `v` is elements of a parameter of the full size, moved at most."""
        while v in producer:
            op = producer[v]
            if op.name not in FREE or not op.operands or size_of(op.operands[0].type.shape) != size_of(v.type.shape):
                return False
            v = op.operands[0]
        return True

    held: dict[Value, int] = {}
    # Values that cost much first, from the last ones back: what only they read is not needed again.
    for v in reversed(candidates(lambda v: heavy and v in producer and producer[v].name in HEAVY, {})):
        found = visits(held)[v]
        if len(found) > 1:
            held[v] = min(found)
    moved = candidates(from_memory, held)
    for v in reversed(moved):
        found = visits(held)[v]
        if len(found) > 1:
            held[v] = min(found)
    read = visits(held)
    return [Held(v, s, max(read[v])) for v, s in sorted(held.items(), key=lambda t: _order(group, t[0]))]


def _order(group: Function, value: Value) -> int:
    return next(i for i, v in enumerate([*group.params, *(r for op in group.ops for r in op.results)]) if v is value)


def most_live(held: Sequence[Held]) -> int:
    """The largest number of 4-byte registers an element holds at once (what dies in a sweep makes room in it)."""
    last = max((h.last for h in held), default=0)
    return max(
        (sum(max(1, h.dtype.itemsize // 4) for h in held if h.first <= s < h.last) for s in range(1, last + 1)), default=0
    )


class Sweeps:
    """The sweeps of `row`, and the statements of each at one element.

    guard: where it does not hold, a thread computes but must not store.
    """

    def __init__(self, row: RowGroup, targets: Sequence[tuple[Value, Buffer]], heavy: bool = True) -> None:
        self.row = row
        self.held = held_values(row.group, heavy)
        self.guard: Expr = const(BOOL, True)
        self.memory: dict[Held, Buffer] = {}
        self.early: frozenset[Held] = frozenset()  # in memory before the first sweep
        self.uniform: set[Expr] = set()  # names of what is the same for a whole row
        self._at: tuple[Expr, ...] = ()
        depth = max(row.levels[op.results[0]] for op in row.reductions)
        full = [(v, b) for v, b in targets if row.is_full(v) and row.axes]
        self.all: list[Sweep] = []
        for number in range(1, depth + 2):
            ops = [op for op in row.reductions if row.levels[op.results[0]] == number]
            stores = [(v, b) for v, b in full if row.levels[v] == number - 1]
            if ops or stores:
                self.all.append(Sweep(number, ops, stores, [h for h in self.held if h.first == number]))

    def hold(self, place: Callable[[Held], Buffer | None]) -> None:
        """Decide where values are held; those without a place are computed again by every sweep."""
        for h in self.held:
            buffer = place(h)
            if buffer is not None:
                self.memory[h] = buffer

    def at(
        self, sweep: Sweep, i: Expr, slot: Expr, overwritten: Collection[Buffer] = ()
    ) -> tuple[list[Stmt], list[Stmt]]:
        """(what is computed and held at reduced position `i`, what is stored there).

        slot: where in the memory of held values this element lies. Reductions pull their operands in between.
        overwritten: memory of held values that the caller writes at this element.
        """
        row, pull = self.row, self.row.pull
        place = Position(row.shape, row.coords(i))
        self._at = place.key()
        body: list[Stmt] = []
        fresh = [h for h in sweep.held if h in self.memory and h not in self.early]
        overwritten = {*overwritten, *(self.memory[h] for h in fresh)}
        for h, buffer in self.memory.items():
            pull.bound.pop(h.value, None)
            there = h.last >= sweep.number and (h.first < sweep.number or h in self.early)
            value = load(buffer, slot) if there else None
            if value is not None and buffer in overwritten:
                name = row.names.fresh("h", h.dtype)
                body.append(Let(name, value))
                value = name
            pull.bind(h.value, self._rule(h, value))
        for h in fresh:
            name = row.names.fresh("h", h.dtype)
            value = self._unbound(h, place)
            body += [*pull.take_reports(), Let(name, value), Store(self.memory[h], slot, name)]
            pull.bind(h.value, self._rule(h, name))
        return body, self._stores(sweep, place)

    def look(self, sweep: Sweep, i: Expr, held: bool = True) -> None:
        """From now on, held values at reduced position `i` are read from where they lie, those of this sweep too; or
        computed, if not `held`."""
        self._at = Position(self.row.shape, self.row.coords(i)).key()
        for h, buffer in self.memory.items():
            there = held and h.first <= sweep.number <= h.last
            self.row.pull.bind(h.value, self._rule(h, load(buffer, i) if there else None))

    def by_reciprocals(
        self,
        loops: Callable[[Rewrite | None], list[Stmt]],
        wide: int,
        again: Callable[[], list[Stmt]] | None = None,
    ) -> tuple[list[Stmt], list[Stmt]]:
        """(arrays, statements): the loops of a sweep with divisions by what is the same for a whole row done by its
        reciprocal, and again as they stand by threads where that does not give the same bits.

        loops(rewrite) makes them, passing the statements of every element through `rewrite`; again() makes them for the
        rare threads, if there is a shorter form.
        """
        row = self.row
        fine = Buffer(row.names.fresh("fine").data, BOOL, "local")
        known: dict[Expr, Expr] = {}

        def reciprocal(b: Expr) -> Expr:
            return known.setdefault(b, row.names.fresh("inverse", b.dtype))

        quotients = Quotients(self.uniform, reciprocal, fine)
        fast = loops(quotients.rewrite)
        if not quotients.used:
            return [], loops(None)
        before: list[Stmt] = [Let(y, const(b.dtype, 1.0) / b) for b, y in quotients.used.items()]
        safe = const(BOOL, True)
        for b in quotients.used:
            safe = logical_and(safe, safe_divisor(b))
        slots = [index(v) for v in range(wide)]
        before += [Store(fine, v, safe) for v in slots]
        return [Alloc(fine, wide)], [*before, *fast, unless_fine(fine, slots, again() if again else loops(None))]

    def _unbound(self, h: Held, at: Position) -> Expr:
        pull = self.row.pull
        rule = pull.bound.pop(h.value)
        value = pull.at(h.value, at)
        pull.bound[h.value] = rule
        return value

    def _rule(self, h: Held, value: Expr | None) -> Callable[[Position], Expr]:
        """The element that the sweep is at comes from `value`; any other is computed."""
        here = self._at

        def rule(at: Position) -> Expr:
            return value if value is not None and at.key() == here else self._unbound(h, at)

        return rule

    def _stores(self, sweep: Sweep, place: Position) -> list[Stmt]:
        row = self.row
        named = [(row.names.fresh("v", v.type.dtype), b, row.pull.at(v, place)) for v, b in sweep.stores]
        reports = row.pull.take_reports()
        lets: list[Stmt] = [Let(name, value) for name, _, value in named]
        stores: list[Stmt] = [Store(b, place.flat, name) for name, b, _ in named]
        if stores and self.guard.op != "const":
            stores = [If(self.guard, tuple(stores))]
        return [*reports, *lets, *stores]

    def name_kept(self, level: int, name: Callable[[Expr], tuple[list[Stmt], Expr]] | None = None) -> list[Stmt]:
        """Names for what every element of a row reads and is the same for all, once reductions of `level` are known.

        name: makes one (statements, the expression that reads it); a `Let`, if None. Checks are done here, once a row.
        """
        row, pull = self.row, self.row.pull
        out: list[Stmt] = []

        def let(value: Expr) -> tuple[list[Stmt], Expr]:
            k = row.names.fresh("k", value.dtype)
            self.uniform.add(k)
            return [Let(k, value)], k

        values = [(v, "") for v in row.group.params] + [(op.results[0], op.name) for op in row.group.ops]
        for v, made in values:
            if row.levels[v] != level or made in FREE or made in REDUCE or row.is_full(v):
                continue
            if size_of(v.type.shape) != size_of(row.kept_shape) or not self._spread(v):
                continue
            at = Position(row.kept_shape, row.kept).reshaped(v.type.shape)
            stmts, known = (name or let)(pull.at(v, at))
            out += [*pull.take_reports(), *stmts]
            pull.bind(v, self._kept_rule(v, known, at.key()))
        return out

    def _spread(self, value: Value) -> bool:
        """Whether the elements of a row read `value`, repeated along the row."""
        row = self.row
        seen, stack = {value}, [value]
        while stack:
            v = stack.pop()
            for op in row.group.ops:
                if v in op.operands and op.name in FREE:
                    if row.is_full(op.results[0]):
                        return True
                    stack += [r for r in op.results if r not in seen]
                    seen |= set(op.results)
        return False

    def _kept_rule(self, v: Value, name: Expr, here: tuple[Expr, ...]) -> Callable[[Position], Expr]:
        pull = self.row.pull

        def rule(at: Position) -> Expr:
            if at.key() == here:
                return name
            saved = pull.bound.pop(v)
            value = pull.at(v, at)
            pull.bound[v] = saved
            return value

        return rule
