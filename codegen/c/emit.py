"""The statements of a kernel as C text, in the dialect given.

`body` writes a kernel's statements; heads of functions are in c99.py and cuda.py. Expressions are in expressions.py, the
cutting of vector regions in regions.py; here both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from graphc.codegen.c.alignment import divisor
from graphc.codegen.c.dialect import ATOM, C99, Dialect, Text, combine, convert
from graphc.codegen.c.expressions import Scope, Writer
from graphc.codegen.c.positions import DATA, POSITION, Positions, expressions, statements
from graphc.codegen.c.regions import Branch, Combined, Item, Lanes, Loop, Run, Wide, crossing, plan, wide
from graphc.codegen.expr import Expr, children_first, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
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

_SMALL_LOOP = 1 << 20  # bounds of loops whose variable is an int


def written(body: Iterable[Stmt]) -> frozenset[Any]:
    """The registers and buffers that statements write; at a barrier others write shared memory and results."""
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


class Emitter(Writer):
    """One kernel. shared: how buffers of the block are declared, by cuda.py."""

    def __init__(self, dialect: Dialect, kernel: Kernel, positions: Positions) -> None:
        super().__init__(dialect, positions)
        self.kernel = kernel
        self.facts: dict[Expr, int] = {var(n): d for n, d in (kernel.grid.divides if kernel.grid else ())}
        self.lanes: Lanes | None = None
        self.width = 0
        self.crossing: set[Expr] = set()
        self.arrays: dict[tuple[Expr, Any], str] = {}
        self.deferred: list[str] = []
        self.direct: dict[int, Text] = {}  # statements of a run that store into a wide value
        self.shared: dict[Buffer, str] = {}

    # Blocks

    def block(self, body: tuple[Stmt, ...]) -> None:
        """Statements in the innermost scope, outside of runs or inside one."""
        self.count(e for s in statements(body) for e in expressions(s) if not isinstance(s, Vector))
        for s in body:
            STATEMENTS[type(s)](self, s)

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
        self.facts[s.var] = divisor_of(s, self.facts)
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

    # Names

    def let(self, s: Let | Declare, value: Expr, mutable: bool) -> None:
        needs = self.positions.needs[s.var]
        const = "" if mutable else "const "
        array = s.var in self.crossing
        if s.var.dtype is not I64:
            self._give(s.var, value, None, self.value(value, None, True), self.dialect.type(s.var.dtype), const, array)
            return
        foreign = s.var in self.positions.foreign
        roles: list[Any] = [DATA] if DATA in needs or (self.narrow and foreign) else [POSITION]
        if self.narrow and not foreign and not mutable and needs == {DATA, POSITION}:
            roles = [POSITION, DATA]
        if mutable:
            roles = [POSITION if self.positions.small(s.var) or (not self.narrow and DATA not in needs) else DATA]
        for role in roles:
            text = self.value(value, role, True)
            small = role == POSITION and self.narrow
            if not mutable and text.small:
                small = True
            kind = "int" if small else self.dialect.index
            wide_twin = len(roles) == 2 and role == DATA
            if wide_twin and small:
                self.define(s.var, DATA, self.known((s.var, POSITION)) or text)
                continue
            self._give(s.var, value, role, text, kind, const, array, "_wide" if wide_twin else "")
        if len(roles) == 1 and not (self.narrow and roles[0] == DATA and not self.known_text(s.var, DATA).small):
            other = DATA if roles[0] == POSITION else POSITION
            self.define(s.var, other, self.known_text(s.var, roles[0]))

    def known_text(self, v: Expr, role: Any) -> Text:
        found = self.known((v, role))
        assert found is not None
        return found

    def _give(self, v: Expr, value: Expr, role: Any, text: Text, kind: str, const: str, array: bool, suffix: str = "") -> None:
        small = kind == "int" and v.dtype is I64
        bound = None if v.dtype is not I64 else (text.bound if const else None) or (1 << 31 if small else None)
        if not array or self.run is None:
            name = self.name(f"{v.data.partition('#')[0]}{suffix}")
            self.define(v, role, Text(name, ATOM, False, bound, small))
            self.line(f"{const}{kind} {name} = {text};")
            if const and value.args:
                self.scope.known.setdefault((value, role), self.scope.known[(v, role)])
            return
        outer = self.scopes[self.run - 1]
        name = self.name(f"{v.data.partition('#')[0]}{suffix}", outer)
        self.line(f"{kind} {name}[{self.width}];", outer)
        element = Text(f"{name}[{self.lane_name}]", ATOM, False, bound, small)
        self.line(f"{element} = {text};")
        outer.known[(v, role)] = element
        if role is not None:
            other = POSITION if role == DATA else DATA
            if not self.narrow or small:
                outer.known[(v, other)] = element

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
        self.lane = s.var
        self.open("")
        self.items(items)
        self._close_plain()
        self.lanes, self.width, self.crossing = None, 0, set()

    def _close_plain(self) -> None:
        """The braces of a region are only kept where it declares something."""
        scope = self.scopes.pop()
        lines, pad = self.scope.lines, "    " * self.scope.pad
        inner = lines[scope.start :]
        del lines[scope.start - 1 :]
        if any(len(x) - len(x.lstrip()) == 4 * scope.pad and _is_declaration(x) for x in inner):
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
                self.loop(inner.head, lambda inner=inner: self.items(inner.body), written(inner.head.body))  # type: ignore[misc]
            elif isinstance(item, Branch) and item.masked:
                self.masked(item)
            elif isinstance(item, Branch):
                inner_branch = item
                orelse = (lambda b=inner_branch: self.items(b.orelse)) if item.orelse else None
                changes = written((item.head,))
                self.branch(
                    self.value(item.head.cond),
                    lambda b=inner_branch: self.items(b.then),  # type: ignore[misc]
                    orelse,
                    changes,
                )
            else:
                STATEMENTS[type(item)](self, item)

    def lane_scope(self) -> Scope:
        """Begins a loop over the lanes: what is written goes to lines of its own until `end_lanes`."""
        scope = Scope([], self.scope.pad + 1)
        self.scopes.append(scope)
        self.run = len(self.scopes) - 1
        self.lane_name = self.name(self.lane.data)
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
            STATEMENTS[type(s)](self, s)
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
        self.scope.known[(n, role)] = element
        if role == DATA and not self.narrow:
            self.scope.known[(n, POSITION)] = element
        elif role == DATA:
            self.scope.known[(n, POSITION)] = Text(f"(int){element:15}", 15, False, 1 << 31, True)

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
        lane = self.lane_name
        if self.width > 1:
            if self.dialect.unroll:
                self.line(self.dialect.unroll)
            self.line(f"for (int half = {self.width // 2}; half > 0; half /= 2)")
            if self.dialect.unroll:
                self.line(self.dialect.unroll)
            a, b = Text(f"{array}[{lane}]"), Text(f"{array}[{lane} + half]")
            step = combine(self.dialect, node.data, node.dtype, a, b)
            self.line(f"    for (int {lane} = 0; {lane} < half; ++{lane}) {array}[{lane}] = {step};")
        result = Text(f"{array}[0]")
        self.scope.known[(node, role)] = result
        if node.dtype is I64:
            self.scope.known[(node, POSITION)] = self._narrowed(node, POSITION, result)

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
            lane = self.name(self.lane.data)
            self.scope.names.discard(lane)
            self.mask = f"{name}[{lane}]"
            any_name = self.any_lane(name, body)
            self.any_mask = any_name
            self.items(body)
            self.scopes.pop()
            self.line("}")
            self.mask, self.any_mask = outer_mask, outer_any
            self.forget(written((item.head,)))

    def any_lane(self, mask: str, body: list[Item]) -> str:
        bool_type = self.dialect.types["bool"]
        name = self.name("any")
        lane = self.lane_name
        self.line(f"{bool_type} {name} = 0;")
        self.line(f"for (int {lane} = 0; {lane} < {self.width}; ++{lane}) {name} = {name} || {mask}[{lane}];")
        self.line(f"(void){name};")
        return name


def divisor_of(s: For, facts: dict[Expr, int]) -> int:
    from math import gcd

    return gcd(divisor(s.start, facts), divisor(s.step, facts))


def _is_declaration(line: str) -> bool:
    text = line.strip()
    return not text.startswith(("for (", "if (", "}", "{", "#", "//")) and (" = " in text or text.endswith("];"))


# Statements


def _for(w: Emitter, s: For) -> None:
    if s.unroll and any(e.op != "const" for e in (s.start, s.stop, s.step)):
        raise TypeError(f"the loop over {s.var.data} is to be unrolled, but its bounds are not literals")
    w.loop(s, lambda: w.block(s.body), written(s.body))


def _vector(w: Emitter, s: Vector) -> None:
    w.vector(s)


def _if(w: Emitter, s: If) -> None:
    cond = w.value(s.cond)
    w.inside += w.run is not None
    w.branch(cond, lambda: w.block(s.then), (lambda: w.block(s.orelse)) if s.orelse else None, written((s,)))
    w.inside -= w.run is not None


def _let(w: Emitter, s: Let) -> None:
    if s.var not in w.positions.needs:  # a value kept between runs
        w.positions.needs[s.var] = {POSITION if s.var.data.startswith("place#") else DATA if s.var.dtype is I64 else None}
        w.crossing.add(s.var)
    w.facts[s.var] = divisor(s.value, w.facts) if s.var.dtype is I64 else 1
    w.let(s, s.value, False)


def _declare(w: Emitter, s: Declare) -> None:
    w.let(s, s.init, True)


def _assign(w: Emitter, s: Assign) -> None:
    role: Any = None
    if s.var.dtype is I64:
        role = POSITION if w.known_or_raise(s.var, POSITION).small and w.narrow else DATA
        if not w.narrow and DATA not in w.positions.needs[s.var]:
            role = POSITION
    target = w.known_or_raise(s.var, role)
    text = w.value(s.value, role)
    guard = f"if ({w.mask}) " if w.mask is not None and w.run is not None else ""
    w.line(f"{guard}{target} = {text};")
    w.forget([s.var])


def _known_or_raise(self: Emitter, v: Expr, role: Any) -> Text:
    found = self.known((v, role)) or self.known((v, DATA))
    if found is None:
        raise KeyError(f"{v.data} is assigned but not declared in an enclosing block")
    return found


Emitter.known_or_raise = _known_or_raise  # type: ignore[attr-defined]


def _store(w: Emitter, s: Store) -> None:
    value = w.value(s.value, DATA if s.value.dtype is I64 else None)
    direct = w.direct.get(id(s))
    target = direct.text if direct is not None else f"{w.pointer(s.buffer)}[{w.position(s.index)}]"
    guard = f"if ({w.mask}) " if w.mask is not None and w.run is not None else ""
    w.line(f"{guard}{target} = {value};")
    w.forget([s.buffer])


def _alloc(w: Emitter, s: Alloc) -> None:
    if s.buffer in w.shared:
        w.buffers[s.buffer] = w.shared[s.buffer]
        return
    name = w.name(s.buffer.name)
    w.buffers[s.buffer] = name
    aligned = "__align__(16) " if w.dialect.wide else ""
    w.line(f"{aligned}{w.dialect.element(s.buffer.dtype)} {name}[{s.size}];")


def _transpose(w: Emitter, s: Transpose) -> None:
    at, step = w.position(s.target_at), w.position(s.target_step)
    start, stride = w.position(s.source_at), w.position(s.source_step)
    i, j = w.name("row"), w.name("column")
    w.scope.names -= {i, j}
    w.line(f"for (int {i} = 0; {i} < {s.size}; ++{i})")
    source = Text(f"{w.pointer(s.source)}[{start:12} + {i} * {stride:14} + {j}]")
    value = convert(w.dialect, source, s.source.dtype, s.target.dtype)
    w.line(f"    for (int {j} = 0; {j} < {s.size}; ++{j})")
    w.line(f"        {w.pointer(s.target)}[{at:12} + {j} * {step:14} + {i}] = {value};")
    w.forget([s.target])


def _report(w: Emitter, s: Report) -> None:
    if s.value.dtype.kind == "f":
        raise TypeError(f"Report at site {s.site} gives a {s.value.dtype}; cast it to an integer, which is what an error holds")
    cond, value = w.value(s.cond), w.value(s.value, DATA if s.value.dtype is I64 else None)
    guards = [w.mask] if w.mask is not None and w.run is not None else []
    if w.dialect is C99:
        w.open(f"if ({' && '.join(['error[0] == 0', *guards, f'{cond:5}'])})")
        w.line(f"error[0] = {s.site};")
        w.line(f"error[1] = {convert(w.dialect, value, s.value.dtype, I64)};")
        w.close()
    else:
        question = " && ".join([*guards, f"{cond:5}"]) if guards else cond.text
        w.line(f"if ({question}) report_error(error, launch, {s.site}, {value});")


def _barrier(w: Emitter, s: Barrier) -> None:
    w.line({"block": "__syncthreads();", "warp": "__syncwarp();"}[s.scope])
    w.forget([b for b in w.buffers if b.kind not in ("in", "local")])


def _call(w: Emitter, s: Call) -> None:
    args = []
    for a in s.args:
        if isinstance(a, Place):
            at = w.position(a.index)
            args.append(w.pointer(a.buffer) if at.text == "0" else f"{w.pointer(a.buffer)} + {at:13}")
        elif isinstance(a, TensorMap):
            args.append(f"&{w.maps[a]}")
        else:
            args.append(w.position(a).text if a.dtype is I64 else w.value(a).text)
    w.line(f"{s.name}({', '.join(args)});")
    w.forget(s.writes)


STATEMENTS: dict[type, Callable[[Emitter, Any], None]] = {
    For: _for,
    Vector: _vector,
    If: _if,
    Let: _let,
    Declare: _declare,
    Assign: _assign,
    Store: _store,
    Alloc: _alloc,
    Transpose: _transpose,
    Report: _report,
    Barrier: _barrier,
    Call: _call,
}

__all__ = ["Emitter"]
