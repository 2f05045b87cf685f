"""How wide the 64-bit integers of a kernel need to be: positions, and data.

The loop language has one type, I64, for positions and for 64-bit data. A position (what stands in an index, a bound, the
address of a `Place`) never leaves its buffer: its arithmetic does not overflow, and where the grid is narrow it fits
`int`. Data (an iota, an index read from memory, a counter that is stored) wraps at 64 bits. One expression can be both,
so it is looked at under a role; names get the roles of all their uses.

A name that is a position is one whatever else reads it. Comparisons have positions as operands if both are plainly so:
names, whatever also stands in an index, multiples by tiles and extents, sums and quotients of these; otherwise they compare
data, which is always right. An iota of dtype i64 makes data of positions without a trace, so `cuda/choice.py` takes no
group with one for narrow.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphc.codegen.c.dialect import COMPARISONS
from graphc.codegen.expr import Expr, children_first
from graphc.codegen.loops import (
    Assign,
    Buffer,
    Call,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Place,
    Report,
    Stmt,
    Store,
    TensorMap,
    Transpose,
    Vector,
)
from graphc.ir.types import I64

POSITION, DATA = "position", "data"
Role = str | None  # None: not a 64-bit integer

_SAME = frozenset(("add", "sub", "mul", "neg", "select"))
_BITS = frozenset(("and", "or", "xor", "not", "shl"))
_TILE = 4096
_EXACT = frozenset(("idiv", "irem", "shr"))  # what they give depends on all bits of their operands


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements of a block, outer ones first."""
    for s in body:
        yield s
        if isinstance(s, (For, Vector)):
            yield from statements(s.body)
        elif isinstance(s, If):
            yield from statements(s.then)
            yield from statements(s.orelse)


def roots(s: Stmt) -> list[tuple[Expr, Role]]:
    """What a statement itself needs, whoever reads the names it gives."""
    if isinstance(s, For):
        return [(s.start, POSITION), (s.stop, POSITION), (s.step, POSITION)]
    if isinstance(s, If):
        return [(s.cond, None)]
    if isinstance(s, Store):
        return [(s.index, POSITION), (s.value, DATA)]
    if isinstance(s, Report):
        return [(s.cond, None), (s.value, DATA)]
    if isinstance(s, Transpose):
        return [(e, POSITION) for e in (s.target_at, s.target_step, s.source_at, s.source_step)]
    if isinstance(s, Call):
        given = [a for a in s.args if not isinstance(a, TensorMap)]
        return [(a.index if isinstance(a, Place) else a, POSITION) for a in given]
    return []


def expressions(s: Stmt) -> list[Expr]:
    """All expressions of a statement itself, without those of its blocks."""
    if isinstance(s, (Let, Assign)):
        return [s.value]
    return [s.init] if isinstance(s, Declare) else [e for e, _ in roots(s)]


class Positions:
    """The roles in a kernel whose names are unique.

    needs: name -> the roles under which it is read; a name that is missing is not read at all. read: the buffers that are read.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.narrow = kernel.grid is not None and kernel.grid.narrow
        self.extents = frozenset(kernel.extents)
        self.definitions: dict[Expr, list[Expr]] = {}
        self.registers: set[Expr] = set()
        everything = list(statements(kernel.body))
        for s in everything:
            if isinstance(s, (Let, Assign)):
                self.definitions.setdefault(s.var, []).append(s.value)
            elif isinstance(s, Declare):
                self.definitions.setdefault(s.var, []).append(s.init)
                self.registers.add(s.var)
        self.foreign = self._foreign()
        self._data_leaf: dict[Expr, bool] = {}
        # What is stored in a private array counts once the array is read.
        self.read: set[Buffer] = set()
        self.kept: dict[Buffer, list[tuple[Expr, Role]]] = {}
        start = []
        for s in everything:
            if isinstance(s, Store) and s.buffer.kind == "local":
                self.kept.setdefault(s.buffer, []).extend(roots(s))
            else:
                start += roots(s)
            if isinstance(s, Call):
                self.read |= {a.buffer for a in s.args if isinstance(a, Place)}
            elif isinstance(s, Transpose):
                self.read |= {s.source, s.target}
        start += [r for b in self.read for r in self.kept.pop(b, ())]
        self.indices: set[Expr] = set()
        self._position: dict[Expr, bool] = {}
        self._operands: dict[tuple[Expr, Role], tuple[Role, ...]] = {}
        self.needs: dict[Expr, set[Role]] = {}
        self._visit(start, compare=False)
        self.indices = {e for e, role in self._seen if role == POSITION}
        self.needs = {}
        self._position, self._operands = {}, {}
        self._visit(start, compare=True)

    def _foreign(self) -> set[Expr]:
        """The 64-bit names that may hold more than positions: what reaches them from memory or another type."""
        found: set[Expr] = set()
        while True:
            self._data_leaf = {}
            self.foreign = found
            more = {
                v for v, values in self.definitions.items() if v.dtype is I64 and v not in found and any(map(self.is_data, values))
            }
            if not more:
                return found
            found = found | more

    def is_data(self, e: Expr) -> bool:
        """Whether a 64-bit expression depends on more than positions."""
        known = self._data_leaf
        for n in children_first((e,)) if e not in known else ():
            if n not in known:
                if n.op == "var":
                    known[n] = n in self.foreign
                elif n.op == "const":
                    known[n] = n.dtype is I64 and abs(n.data) >= 1 << 31
                elif n.op in _SAME or n.op in _BITS or n.op in _EXACT:
                    known[n] = any(known[a] for a in n.args if a.dtype is I64)
                else:
                    known[n] = True
        return known[e]

    def _plain(self, e: Expr) -> bool:
        """Whether a comparison may take this operand for a position."""
        plain: dict[Expr, bool] = {}
        for n in children_first((e,)):
            if n.op in ("var", "const") or n in self.indices:
                plain[n] = True
            elif n.op == "mul":
                x, y = n.args
                plain[n] = any(self._factor(q) and plain[p] and not self._counts(p) for p, q in ((x, y), (y, x)))
            elif n.op == "select":
                plain[n] = all(plain[a] for a in n.args[1:])
            else:
                plain[n] = (n.op in ("add", "sub") or n.op in _EXACT or n.op in _BITS) and all(plain[a] for a in n.args)
        return plain[e]

    def _factor(self, e: Expr) -> bool:
        """Sizes: of tiles, which are literals, and extents with what is computed from them."""
        if e.op == "const":
            return bool(abs(e.data) <= _TILE)
        return all(n.op == "const" or n.data in self.extents for n in children_first((e,)) if not n.args)

    def _counts(self, e: Expr) -> bool:
        """Whether a register is in it: the index of a maximum, say, which is data that looks like a position."""
        return any(n in self.registers for n in children_first((e,)))

    def is_position(self, e: Expr) -> bool:
        """Whether a 64-bit operand of a comparison is computed as a position."""
        found = self._position.get(e)
        if found is None:
            found = self._position[e] = not self.is_data(e) and self._plain(e)
        return found

    def operands(self, e: Expr, role: Role) -> tuple[Role, ...]:
        """The role of each operand of `e`, which is needed under `role`."""
        found = self._operands.get((e, role))
        if found is None:
            found = self._operands[(e, role)] = self._roles(e, role)
        return found

    def _roles(self, e: Expr, role: Role) -> tuple[Role, ...]:
        op, args = e.op, e.args
        if op == "load":
            return (POSITION, None)[: len(args)]
        plain = tuple([DATA if a.dtype is I64 else None for a in args])
        if op == "shuffle":
            return plain[0], POSITION
        if DATA not in plain:
            return plain
        if op in COMPARISONS:
            return (POSITION, POSITION) if all(map(self.is_position, args)) else plain
        if e.dtype is I64 and role == POSITION:
            same = op in _SAME or (self.narrow and op in _BITS)
            if same or (op in _EXACT and not any(map(self.is_data, args))):
                return tuple([POSITION if a.dtype is I64 else None for a in args])
        return plain

    def _visit(self, start: list[tuple[Expr, Role]], compare: bool) -> None:
        self._seen: set[tuple[Expr, Role]] = set()
        stack, kept = list(start), dict(self.kept)
        later: list[Expr] = []
        while stack or later:
            if not stack:
                # Data of a name that is a position too is what the position is.
                v = later.pop()
                if not (self.narrow and self.is_twin(v)):
                    stack += [(value, DATA) for value in self.definitions.get(v, ())]
                continue
            e, role = stack.pop()
            if e.dtype is not I64:
                role = None
            if (e, role) in self._seen:
                continue
            self._seen.add((e, role))
            if e.op == "var":
                self.needs.setdefault(e, set()).add(role)
                if role == DATA:
                    later.insert(0, e)
                else:
                    stack += [(value, role) for value in self.definitions.get(e, ())]
                continue
            if e.op == "load":
                self.read.add(e.data)
                stack += kept.pop(e.data, ())
            if not compare and e.op in COMPARISONS and e.args[0].dtype is I64:
                continue
            stack += zip(e.args, self.operands(e, role), strict=True)

    def is_twin(self, v: Expr) -> bool:
        """Whether a name that is read as data is a position, which fits its type whatever reads it."""
        return v not in self.foreign and v not in self.registers and POSITION in self.needs[v]

    def role(self, v: Expr) -> Role:
        """The role under which a 64-bit name is given; in a narrow grid a position is an `int`."""
        needs = self.needs[v]
        if self.narrow and v not in self.registers and v not in self.foreign:
            return POSITION if POSITION in needs else DATA
        return DATA if DATA in needs or (self.narrow and v in self.registers and v in self.foreign) else POSITION
