"""Vector regions: the statements of all lanes at once, as loops over lanes.

A *run* is a stretch of statements that one lane after another may execute from start to end with the same outcome as all
lanes statement by statement; it becomes one loop over the lanes. A run ends where lanes would see each other's
stores, where `lanes` combines them, and at loops and uniform branches, which stay outside. Names that are
read in several runs are arrays with an element for each lane.

`plan` cuts a region into items; `Region` writes them. Where the dialect has wide accesses, what a run reads and writes at
contiguous aligned places moves in accesses of up to 16 bytes before and after its loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any

from graphc.codegen.c.alignment import divisor
from graphc.codegen.c.dialect import ATOM, Text, combine
from graphc.codegen.c.positions import expressions, statements
from graphc.codegen.expr import Expr, children_first, const, index, make, replace, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Call,
    Declare,
    For,
    If,
    Let,
    Report,
    Stmt,
    Store,
)
from graphc.ir.types import I64


@dataclass
class Run:
    body: list[Stmt] = field(default_factory=list)


@dataclass(frozen=True)
class Combined:
    """A `lanes` expression is computed."""

    node: Expr


@dataclass(frozen=True)
class Loop:
    head: For
    body: list[Item]


@dataclass(frozen=True)
class Branch:
    """An `If` on a uniform condition, or on one that is kept for each lane (`masked`)."""

    head: If
    then: list[Item]
    orelse: list[Item]
    masked: bool


Item = Run | Combined | Loop | Branch | Stmt


class Lanes:
    """Who varies over the lanes of a region."""

    def __init__(self, lane: Expr, body: tuple[Stmt, ...]) -> None:
        self.lane = lane
        self.names = {lane}
        self.values: dict[Expr, Expr] = {}  # what the names that vary stand for
        self._varying: dict[Expr, bool] = {}
        for s in statements(body):
            if isinstance(s, Declare):
                self.names.add(s.var)
            elif isinstance(s, Let) and self.varying(s.value):
                self.names.add(s.var)
                self.values[s.var] = s.value

    def varying(self, e: Expr) -> bool:
        # Only what is not known yet is walked: an expression grows by a node at a time.
        stack = [e]
        while stack:
            node = stack[-1]
            missing = [] if node in self._varying else [a for a in node.args if a not in self._varying]
            if missing:
                stack += missing
                continue
            stack.pop()
            if node.op == "var":
                self._varying.setdefault(node, node in self.names)
            elif node not in self._varying:
                self._varying[node] = node.op != "lanes" and any(self._varying[a] for a in node.args)
        return self._varying[e]

    def expand(self, e: Expr) -> Expr:
        """`e` with names that stand for expressions replaced by those."""
        for _ in range(64):
            used = {n: self.values[n] for n in children_first((e,)) if n.op == "var" and n in self.values}
            if not used:
                break
            e = replace(e, used)
        return e

    def step(self, e: Expr) -> int | None:
        """How far a position moves from lane to lane; None if that differs or is not known."""
        e = self.expand(e)
        steps: dict[Expr, int | None] = {}
        for n in children_first((e,)):
            a, b = ([steps[x] for x in n.args] + [None, None])[:2]
            found = None
            if not self.varying(n):
                found = 0
            elif n is self.lane:
                found = 1
            elif n.op in ("add", "sub") and a is not None and b is not None:
                found = a + b if n.op == "add" else a - b
            elif n.op == "mul" and a is not None and n.args[1].op == "const":
                found = a * int(n.args[1].data)
            elif n.op == "mul" and b is not None and n.args[0].op == "const":
                found = b * int(n.args[0].data)
            steps[n] = found
        return steps[e]


# Cutting a region into runs


def _lanes_of(e: Expr) -> list[Expr]:
    return [n for n in children_first((e,)) if n.op == "lanes"]


Places = list[tuple[Buffer, Expr]]


def _accesses(s: Stmt) -> tuple[Places, Places, bool]:
    """What a statement reads and writes, with all that is in it, and whether it reports."""
    loads: Places = []
    stores: Places = []
    reports = False
    for inner in statements((s,)):
        loads += [(n.data, n.args[0]) for n in children_first(tuple(expressions(inner))) if n.op == "load"]
        if isinstance(inner, Store):
            stores.append((inner.buffer, inner.index))
        reports = reports or isinstance(inner, Report)
    return loads, stores, reports


class _Planner:
    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.values = 0
        self._known: dict[int, tuple[Stmt, tuple[Places, Places, bool]]] = {}

    def accesses(self, s: Stmt) -> tuple[Places, Places, bool]:
        if id(s) not in self._known:
            self._known[id(s)] = s, _accesses(s)  # kept with the statement, so that no other gets its id
        return self._known[id(s)][1]

    def own(self, a: Expr, b: Expr) -> bool:
        """Whether both are one place, and no two lanes have the same."""
        return a is b and bool(self.lanes.step(a))

    def fits(self, run: list[Stmt], s: Stmt) -> bool:
        """Whether a statement may stand at the end of a run."""
        loads, stores, reports = self.accesses(s)
        before = [self.accesses(r) for r in run]
        stored = [x for _, found, _ in before for x in found]
        if reports and any(r for _, _, r in before):
            return False
        if any(b is c for b, _ in loads for c, _ in stored):
            return False
        read = [x for found, _, _ in before for x in found] if stores else []
        return not any(b is c and not self.own(at, other) for b, at in stores for c, other in (*stored, *read))

    def alone(self, s: Stmt) -> bool:
        """Whether lanes may execute all of a branch one after another."""
        inner = list(statements((s,)))
        if any(_lanes_of(e) for x in inner for e in expressions(x)) or sum(isinstance(x, Report) for x in inner) > 1:
            return False
        for x in inner:
            if not isinstance(x, (If, Let, Declare, Assign, Store, Report, For)):
                return False
            if isinstance(x, For) and any(isinstance(y, (Store, Report)) for y in statements(x.body)):
                return False
            if isinstance(x, Assign) and x.var not in self.lanes.names:
                return False
        seen: list[Stmt] = []
        for x in inner:
            if isinstance(x, (If, For)):
                continue
            if isinstance(x, Store) and not self._store_alone(x):
                return False
            if not self.fits(seen, x):
                return False
            seen.append(x)
        heads = [n for x in inner if isinstance(x, (If, For)) for e in expressions(x) for n in children_first((e,)) if n.op == "load"]
        written = {b for b, _ in self.accesses(s)[1]}
        return not any(n.data in written for n in heads)

    def _store_alone(self, s: Store) -> bool:
        reads = children_first((s.index, s.value))
        return all(n.op != "load" or n.data is not s.buffer or self.own(s.index, n.args[0]) for n in reads)

    def plan(self, body: tuple[Stmt, ...], masked: bool) -> list[Item]:
        items: list[Item] = []
        run = Run()

        def flush() -> None:
            nonlocal run
            if run.body:
                items.append(run)
                run = Run()

        def add(s: Stmt) -> None:
            if not self.fits(run.body, s):
                flush()
            run.body.append(s)

        def combined(s: Stmt) -> bool:
            found = [n for e in expressions(s) for n in _lanes_of(e)]
            if found:
                flush()
                items.extend(map(Combined, dict.fromkeys(found)))
            return bool(found)

        for s in body:
            if isinstance(s, (Let, Declare, Assign, Store, Report)):
                combined(s)
            if isinstance(s, For):
                combined(s)
                flush()
                items.append(Loop(s, self.plan(s.body, masked)))
            elif isinstance(s, If):
                if self.lanes.varying(s.cond):
                    if not masked and self.alone(s):
                        add(s)
                        continue
                    combined(s)
                    flush()
                    items.append(Branch(s, self.plan(s.then, True), self.plan(s.orelse, True), True))
                else:
                    combined(s)
                    flush()
                    items.append(Branch(s, self.plan(s.then, masked), self.plan(s.orelse, masked), False))
            elif isinstance(s, Let) and s.var not in self.lanes.names:
                stored = {b for r in run.body for b, _ in self.accesses(r)[1]}
                if any(b in stored for b, _ in self.accesses(s)[0]):
                    flush()
                items.append(s)
            elif isinstance(s, Assign) and s.var not in self.lanes.names:
                if self.lanes.varying(s.value):
                    raise TypeError(
                        f"{s.var.data} is declared outside the vector region and holds one value; "
                        "assign it a uniform one, such as lanes.add(..)"
                    )
                if masked:
                    raise TypeError(f"{s.var.data} holds one value and is assigned under a condition that varies over the lanes")
                flush()
                items.append(s)
            elif isinstance(s, Store) and not self._store_alone(s):
                # All lanes read before any writes.
                self.values += 1
                value, at = var(f"value#r{self.values}", s.value.dtype), s.index
                add(Let(value, s.value))
                self.lanes.names.add(value)
                if any(n.op == "load" and n.data is s.buffer for n in children_first((at,))):
                    place = var(f"place#r{self.values}", I64)
                    add(Let(place, at))
                    self.lanes.names.add(place)
                    at = place
                flush()
                run.body.append(Store(s.buffer, at, value, s.stream))
                flush()
            elif isinstance(s, (Let, Declare, Assign, Store, Report)):
                uniform = isinstance(s, (Store, Report)) and not any(map(self.lanes.varying, expressions(s)))
                if uniform and not masked:
                    flush()
                    items.append(s)
                else:
                    add(s)
            elif isinstance(s, (Alloc, Barrier, Call)):
                if any(map(self.lanes.varying, expressions(s))):
                    raise TypeError(f"the operands of {s.name if isinstance(s, Call) else 'a statement'} differ from lane to lane")
                flush()
                items.append(s)
            else:
                raise TypeError(f"{type(s).__name__} does not stand in a vector region")
        flush()
        return items


def plan(lanes: Lanes, body: tuple[Stmt, ...]) -> list[Item]:
    return _Planner(lanes).plan(body, False)


def crossing(items: list[Item]) -> set[Expr]:
    """The names that are given in one run and read in another item."""
    given: dict[Expr, int] = {}
    readers: dict[Expr, set[int]] = {}
    count = 0

    def read(e: Expr, by: int) -> None:
        for n in children_first((e,)):
            if n.op == "var":
                readers.setdefault(n, set()).add(by)

    def visit(items: list[Item]) -> None:
        nonlocal count
        for item in items:
            count += 1
            here = count
            if isinstance(item, Run):
                for s in statements(tuple(item.body)):
                    if isinstance(s, (Let, Declare)):
                        given[s.var] = here
                    if isinstance(s, Assign):
                        readers.setdefault(s.var, set()).add(here)
                    for e in expressions(s):
                        read(e, here)
            elif isinstance(item, Combined):
                read(item.node, here)
            elif isinstance(item, (Loop, Branch)):
                for e in expressions(item.head):
                    read(e, here)
                if isinstance(item, Loop):
                    visit(item.body)
                else:
                    visit(item.then)
                    visit(item.orelse)
            else:
                for e in expressions(item):
                    read(e, here)

    visit(items)
    return {v for v, here in given.items() if readers.get(v, set()) - {here}}


# Wide accesses


@dataclass(frozen=True)
class Wide:
    """Contiguous lanes of a buffer: `parts` accesses of `lanes` elements each."""

    buffer: Buffer
    start: Expr
    parts: int
    lanes: int


def wide(lanes: Lanes, width: int, buffer: Buffer, at: Expr, facts: dict[Expr, int]) -> Wide | None:
    """How the elements at `at` of all lanes are accessed several at a time; None if they cannot be."""
    if width < 2 or buffer.kind == "local":
        return None
    at = lanes.expand(at)
    if lanes.step(at) != 1:
        return None
    start = fold(replace(at, {lanes.lane: index(0)}))
    size = buffer.dtype.itemsize
    count = gcd(divisor(start, facts), width, max(1, 16 // size))
    return Wide(buffer, start, width // count, count) if count > 1 else None


def fold(e: Expr) -> Expr:
    """Sums with 0 and products with 0 and 1 left out, after a name was replaced by a literal."""
    from graphc.codegen.expr import binary

    done: dict[Expr, Expr] = {}
    for n in children_first((e,)):
        args = tuple(done[a] for a in n.args)
        if n.op in ("add", "sub", "mul", "idiv", "irem") and n.dtype is I64:
            done[n] = binary(n.op, args[0], args[1])
        else:
            done[n] = n if args == n.args else make(n.op, n.dtype, args, n.data)
    return done[e]


__all__ = ["ATOM", "Any", "Branch", "Combined", "Lanes", "Loop", "Run", "Text", "combine", "const", "crossing", "plan", "wide"]
