"""Control flow and vector regions as C: loops, branches, runs over lanes, masks, reductions, wide accesses.

How a region is cut into runs is decided by regions.py; what a single statement becomes is in emit.py.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from math import gcd
from typing import Any

from graphc.codegen.c.alignment import divisor
from graphc.codegen.c.dialect import ATOM, Dialect, Text, combine
from graphc.codegen.c.expressions import Scope, Writer
from graphc.codegen.c.positions import DATA, POSITION, Positions, expressions, statements
from graphc.codegen.c.regions import Branch, Combined, Item, Lanes, Loop, Run, Wide, crossing, plan, wide
from graphc.codegen.expr import Expr, children_first, var
from graphc.codegen.loops import (
    Assign,
    Barrier,
    Buffer,
    Call,
    For,
    If,
    Kernel,
    Stmt,
    Store,
    Transpose,
    Vector,
)
from graphc.ir.types import I64

_SMALL_LOOP = 1 << 20  # bounds of loops whose variable is an int


def written(body: Iterable[Stmt]) -> frozenset[Any]:
    """The registers and buffers that statements write."""
    found: set[Any] = set()
    for s in statements(tuple(body)):
        if isinstance(s, Store):
            found.add(s.buffer)
        elif isinstance(s, Transpose):
            found.add(s.target)
        elif isinstance(s, Assign):
            found.add(s.var)
        elif isinstance(s, Call):
            found |= set(s.writes)
    return frozenset(found)


class LaneWriter(Writer):
    """The blocks of one kernel. lanes, width: of the region that is being written; run: see `Writer`."""

    def __init__(self, dialect: Dialect, kernel: Kernel, positions: Positions) -> None:
        super().__init__(dialect, positions)
        self.kernel = kernel
        self.facts: dict[Expr, int] = {var(n): d for n, d in (kernel.grid.divides if kernel.grid else ())}
        self.lanes: Lanes | None = None
        self.width = 0
        self.last = False  # whether the statement that is written is the last of its block
        self.crossing: set[Expr] = set()
        self.arrays: dict[tuple[Expr, Any], str] = {}
        self.deferred: list[str] = []
        self.direct: dict[int, Text] = {}  # statements of a run that store into a wide value

    @abstractmethod
    def statement(self, s: Stmt) -> None:
        """Write one statement."""

    def changes(self, body: Iterable[Stmt]) -> frozenset[Any]:
        """What is other after statements, or in their next turn: past a barrier, also what other threads write."""
        body = tuple(body)
        found = written(body)
        if any(isinstance(s, Barrier) for s in statements(body)):
            found |= {b for b in self.buffers if b.kind not in ("in", "local")}
        return found

    def define(self, v: Expr, role: Any, text: Text) -> None:
        self.scope.known[(v, role)] = text

    def counter(self, s: For) -> tuple[str, Text, str]:
        """The type, name and known bound of a loop variable."""
        bounds = [e.data for e in (s.start, s.stop) if e.op == "const"]
        literal = len(bounds) == 2 and s.step.op == "const" and max(map(abs, bounds)) < _SMALL_LOOP
        name = self.name(s.var.data)
        small = self.narrow or literal
        bound = max(map(abs, bounds)) if literal else (1 << 31 if small else None)
        return "int" if small else self.dialect.index, Text(name, ATOM, False, bound, small), name

    def loop(self, s: For, inside: Callable[[], None], changes: frozenset[Any]) -> None:
        start, stop, step = self.position(s.start), self.position(s.stop), self.position(s.step)
        if stop.loads or self.depends(s.stop) & changes:
            stop = self.give_name(s.stop, POSITION, stop)
        if step.loads or self.depends(s.step) & changes:
            step = self.give_name(s.step, POSITION, step)
        self.forget(changes)
        self.facts[s.var] = gcd(divisor(s.start, self.facts), divisor(s.step, self.facts))
        if s.unroll and self.dialect.unroll:
            self.line(self.dialect.unroll)
        self.scopes.append(Scope(self.scope.lines, self.scope.pad + 1))
        kind, text, name = self.counter(s)
        scope = self.scopes.pop()
        advance = f"++{name}" if step.text == "1" else f"{name} += {step}"
        self.line(f"for ({kind} {name} = {start}; {name} < {stop:11}; {advance}) {{")
        self.scopes.append(scope)
        for role in (POSITION, DATA):
            self.define(s.var, role, text)
        inside()
        self.close()
        self.forget(changes)

    def branch(self, cond: Text, then: Callable[[], None], orelse: Callable[[], None] | None, changes: frozenset[Any]) -> None:
        self.open(f"if ({cond})")
        then()
        if orelse is not None:
            self.scopes.pop()
            self.forget(changes)
            self.open("} else")
            orelse()
        self.close()
        self.forget(changes)

    # Regions

    def varying(self, e: Expr) -> bool:
        return self.lanes is not None and self.lanes.varying(e)

    def vector(self, s: Vector) -> None:
        if self.lanes is not None:
            raise TypeError("vector regions do not nest")
        if s.width < 1 or s.width & (s.width - 1):
            raise TypeError(f"a vector region has a power of two of lanes, not {s.width}")
        self.lanes, self.width = Lanes(s.var, s.body), s.width
        items = plan(self.lanes, s.body)
        self.crossing = crossing(items)
        self.lane, last = s.var, self.last
        self.open("")
        self.lane_name = self.name(s.var.data)
        self.items(items)
        self._close_plain(last)
        self.lanes, self.width, self.crossing = None, 0, set()

    def _close_plain(self, last: bool) -> None:
        """The braces of a region are only kept where it declares something and others follow it in the block."""
        scope = self.scopes.pop()
        lines, pad = self.scope.lines, "    " * self.scope.pad
        inner = lines[scope.start :]
        del lines[scope.start - 1 :]
        if not last and any(len(x) - len(x.lstrip()) == 4 * scope.pad and _is_declaration(x) for x in inner):
            lines += [pad + "{", *inner, pad + "}"]
        else:
            lines += [x[4:] for x in inner]

    def items(self, items: list[Item]) -> None:
        self.count(e for item in items if not isinstance(item, (Run, Combined, Loop, Branch)) for e in expressions(item))
        for item in items:
            if isinstance(item, Run):
                self.lane_run(item.body)
            elif isinstance(item, Combined):
                self.combined(item.node)
            elif isinstance(item, Loop):
                inner = item
                self.loop(inner.head, lambda inner=inner: self.items(inner.body), self.changes(inner.head.body))  # type: ignore[misc]
            elif isinstance(item, Branch) and item.masked:
                self.masked(item)
            elif isinstance(item, Branch):
                inner_branch = item
                orelse = (lambda b=inner_branch: self.items(b.orelse)) if item.orelse else None
                changes = self.changes((item.head,))
                self.branch(
                    self.value(item.head.cond),
                    lambda b=inner_branch: self.items(b.then),  # type: ignore[misc]
                    orelse,
                    changes,
                )
            else:
                self.statement(item)

    def lane_scope(self) -> Scope:
        """Begins a loop over the lanes: what is written goes to lines of its own until `end_lanes`."""
        scope = Scope([], self.scope.pad + 1)
        self.scopes.append(scope)
        self.run = len(self.scopes) - 1
        text = Text(self.lane_name, ATOM, False, self.width - 1, True)
        for role in (POSITION, DATA):
            scope.known[(self.lane, role)] = text
        self.deferred = []
        return scope

    def end_lanes(self) -> None:
        scope = self.scopes.pop()
        self.run = None
        if scope.lines:
            if self.dialect.unroll:
                self.line(self.dialect.unroll)
            name = self.lane_name
            self.line(f"for (int {name} = 0; {name} < {self.width}; ++{name}) {{")
            self.scope.lines.extend(scope.lines)
            self.line("}")
        for text in self.deferred:
            self.line(text)
        self.deferred = []

    def lane_run(self, body: list[Stmt]) -> None:
        self.lane_scope()
        self.count(e for s in statements(tuple(body)) for e in expressions(s))
        if self.dialect.wide and self.mask is None:
            self.wide_accesses(body)
        for s in body:
            self.statement(s)
        self.end_lanes()
        self.direct = {}
        self.forget(written(body))

    def wide_accesses(self, body: list[Stmt]) -> None:
        """Loads of the run's own statements before its loop, stores after it."""
        assert self.lanes is not None and self.run is not None
        outer = self.scopes[self.run - 1]
        stored = {s.buffer for s in statements(tuple(body)) if isinstance(s, Store)}
        for s in body:
            for n in children_first(tuple(expressions(s))) if not isinstance(s, If) else children_first((s.cond,)):
                if n.op != "load" or self.known((n, DATA if n.dtype is I64 else None)) is not None:
                    continue
                if len(n.args) == 2 and self.lanes.varying(n.args[1]):
                    continue
                found = wide(self.lanes, self.width, n.data, n.args[0], self.facts)
                if found is not None and self.available(found.start):
                    self.load_wide(n, found, outer)
            if isinstance(s, Store) and sum(isinstance(x, Store) and x.buffer is s.buffer for x in statements(tuple(body))) == 1:
                found = wide(self.lanes, self.width, s.buffer, s.index, self.facts)
                if found is not None and s.buffer in stored and self.available(found.start):
                    self.store_wide(s, found, outer)

    def available(self, e: Expr) -> bool:
        """Whether the names of a uniform expression are known before the run."""
        assert self.run is not None
        return all(
            n.op != "var" or any((n, r) in s.known for s in self.scopes[: self.run] for r in (POSITION, DATA))
            for n in children_first((e,))
        )

    def outside(self, e: Expr, role: Any) -> Text:
        """A uniform value, in the scope before the run."""
        run, inner = self.run, self.scopes.pop()
        self.run = None
        try:
            text = self.value(e, role)
        finally:
            self.scopes.append(inner)
            self.run = run
        return text

    def _place(self, found: Wide, part: int) -> str:
        start = self.outside(found.start, POSITION)
        at = f"{self.pointer(found.buffer)} + {start:12}" if start.text != "0" else self.pointer(found.buffer)
        return f"{at} + {part * found.lanes}" if part else at

    def _element(self, found: Wide, name: str) -> str:
        lane = self.lane_name
        if found.parts == 1:
            return f"{name}.lane[{lane}]"
        return f"{name}[{lane} / {found.lanes}].lane[{lane} % {found.lanes}]"

    def load_wide(self, n: Expr, found: Wide, outer: Scope) -> None:
        kind = f"wide<{self.dialect.element(n.dtype)}, {found.lanes}>"
        start = self.outside(found.start, POSITION)
        if not (start.text.isidentifier() or start.text.isdigit()) and found.parts > 1:
            inner = self.scopes.pop()
            run, self.run = self.run, None
            self.give_name(found.start, POSITION, start)
            self.run = run
            self.scopes.append(inner)
        name = self.name(f"{found.buffer.name}_{found.lanes}", outer)
        parts = [f"load_wide<{found.lanes}>({self._place(found, k)})" for k in range(found.parts)]
        if len(n.args) == 2:
            cond = self.outside(n.args[1], None)
            parts = [f"{cond:4} ? {p} : {kind}{{}}" for p in parts]
        size = f"[{found.parts}]" if found.parts > 1 else ""
        value = parts[0] if found.parts == 1 else "{" + ", ".join(parts) + "}"
        self.line(f"const {kind} {name}{size} = {value};", outer)
        text = self._element(found, name)
        element = Text(text) if n.dtype.short != "bool" else Text(f"{text} != 0", 9)
        role = DATA if n.dtype is I64 else None
        self.remember(self.scope, n, role, element)
        if role == DATA and not self.narrow:
            self.remember(self.scope, n, POSITION, element)
        elif role == DATA:
            self.remember(self.scope, n, POSITION, Text(f"(int){element:15}", 15, False, 1 << 31, True))

    def store_wide(self, s: Store, found: Wide, outer: Scope) -> None:
        kind = f"wide<{self.dialect.element(s.buffer.dtype)}, {found.lanes}>"
        start = self.outside(found.start, POSITION)
        if not (start.text.isidentifier() or start.text.isdigit()):
            inner = self.scopes.pop()
            run, self.run = self.run, None
            self.give_name(found.start, POSITION, start)
            self.run = run
            self.scopes.append(inner)
        name = self.name(f"{found.buffer.name}_{found.lanes}", outer)
        size = f"[{found.parts}]" if found.parts > 1 else ""
        self.line(f"{kind} {name}{size};", outer)
        self.direct[id(s)] = Text(self._element(found, name))
        for k in range(found.parts):
            piece = f"{name}[{k}]" if found.parts > 1 else name
            self.deferred.append(f"store_wide({self._place(found, k)}, {piece});")

    def combined(self, node: Expr) -> None:
        """The tree over the lanes: lane i with lane i + half, until one is left."""
        role = DATA if node.dtype is I64 else None
        if self.known((node, role)) is not None:
            return
        kind = self.dialect.type(node.dtype)
        outer = self.scope
        self.lane_scope()
        self.count(node.args)
        array = self.temporary(outer)
        if self.dialect.wide and self.mask is None:
            self.wide_accesses([Store(Buffer(array, node.dtype, "local"), self.lane, node.args[0])])
        text = self.value(node.args[0], role)
        self.line(f"{array}[{self.lane_name}] = {text};")
        self.line(f"{kind} {array}[{self.width}];", outer)
        self.end_lanes()
        self.halve(node, array)
        result = Text(f"{array}[0]")
        self.remember(self.scope, node, role, result)
        if node.dtype is I64:
            self.remember(self.scope, node, POSITION, self._narrowed(node, POSITION, result))

    def halve(self, node: Expr, array: str) -> None:
        lane = self.lane_name

        def step(half: str) -> None:
            if self.dialect.unroll:
                self.line(self.dialect.unroll)
            self.open(f"for (int {lane} = 0; {lane} < {half}; ++{lane})")
            pair = Text(f"{array}[{lane}]"), Text(f"{array}[{lane} + {half}]")
            self.line(f"{array}[{lane}] = {combine(self.dialect, node.data, node.dtype, *pair)};")
            self.close()

        if self.dialect.unroll:
            # One by one, so that every index is literal and the array stays in registers.
            for k in reversed(range(self.width.bit_length() - 1)):
                step(str(1 << k))
        elif self.width > 1:
            self.open(f"for (int half = {self.width // 2}; half > 0; half /= 2)")
            step("half")
            self.close()

    def masked(self, item: Branch) -> None:
        """A branch on a condition of each lane: kept in an array, it guards loads, stores and assignments."""
        outer_mask, outer_any = self.mask, self.any_mask
        masks = []
        scope = self.scope
        self.lane_scope()
        self.count((item.head.cond,))
        cond = self.value(item.head.cond)
        for body, template in ((item.then, "{0:5}"), (item.orelse, "!{0:15}")):
            if not body:
                continue
            name = self.name("mask", scope)
            text = template.format(cond)
            if outer_mask is not None:
                text = f"{outer_mask} && {text}"
            self.line(f"{self.dialect.types['bool']} {name}[{self.width}];", scope)
            self.line(f"{name}[{self.lane_name}] = {text};")
            masks.append((body, name))
        self.end_lanes()
        for body, name in masks:
            self.open("")
            self.mask = f"{name}[{self.lane_name}]"
            self.any_mask = any_name = self.name("any")
            start = len(self.scope.lines)
            self.items(body)
            if any(re.search(rf"\b{any_name}\b", x) for x in self.scope.lines[start:]):
                self.scope.lines[start:start] = self.any_lane(any_name, name)
            self.scopes.pop()
            self.line("}")
            self.mask, self.any_mask = outer_mask, outer_any
            self.forget(written((item.head,)))

    def any_lane(self, name: str, mask: str) -> list[str]:
        """Lines that compute whether any lane takes part."""
        lane, pad = self.lane_name, "    " * self.scope.pad
        return [
            f"{pad}{self.dialect.types['bool']} {name} = 0;",
            f"{pad}for (int {lane} = 0; {lane} < {self.width}; ++{lane}) {name} = {name} || {mask}[{lane}];",
        ]


def _is_declaration(line: str) -> bool:
    text = line.strip()
    return not text.startswith(("for (", "if (", "}", "{", "#", "//")) and (" = " in text or text.endswith("];"))
