"""The statements of a kernel as C text, in the dialect given.

A table of statements; loops, branches and vector regions are in lanes.py, expressions in expressions.py, the heads of
functions in c99.py and cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphc.codegen.c.alignment import divisor
from graphc.codegen.c.dialect import ATOM, C99, Dialect, Text, convert
from graphc.codegen.c.lanes import LaneWriter
from graphc.codegen.c.positions import DATA, POSITION, Positions, Role, expressions, statements
from graphc.codegen.expr import Expr
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


class Emitter(LaneWriter):
    """One kernel. shared: the names of arrays of the block, which cuda.py declares."""

    def __init__(self, dialect: Dialect, kernel: Kernel, positions: Positions) -> None:
        super().__init__(dialect, kernel, positions)
        self.shared: dict[Buffer, str] = {}

    def statement(self, s: Stmt) -> None:
        STATEMENTS[type(s)](self, s)

    def block(self, body: tuple[Stmt, ...]) -> None:
        """Statements in the innermost scope, outside of runs or inside one."""
        self.count(e for s in statements(body) for e in expressions(s) if not isinstance(s, Vector))
        for s in body:
            self.last = s is body[-1]
            self.statement(s)

    def let(self, s: Let | Declare, value: Expr, mutable: bool) -> None:
        const = "" if mutable else "const "
        array = s.var in self.crossing
        if s.var.dtype is not I64:
            self._give(s.var, value, None, self.value(value, None, True), self.dialect.type(s.var.dtype), const, array)
            return
        role = self.positions.role(s.var)
        text = self.value(value, role, True)
        small = (role == POSITION and self.narrow) or (text.small and not mutable)
        self._give(s.var, value, role, text, "int" if small else self.dialect.index, const, array)

    def _give(self, v: Expr, value: Expr, role: Role, text: Text, kind: str, const: str, array: bool) -> None:
        """Declare a name, in a run as an array if others read it, and remember what it is."""
        small = kind == "int" and v.dtype is I64
        bound = None if v.dtype is not I64 else (text.bound if const else None) or (1 << 31 if small else None)
        home = self.scopes[self.run - 1] if array and self.run is not None else self.scope
        name = self.name(v.data, home)
        if home is not self.scope:
            self.line(f"{kind} {name}[{self.width}];", home)
            name = f"{name}[{self.lane_name}]"
            self.line(f"{name} = {text};")
        else:
            self.line(f"{const}{kind} {name} = {text};")
        named = Text(name, ATOM, False, bound, small)
        for r in (role, DATA) if role == POSITION else (role,):
            home.known[(v, r)] = named
        if const and value.args and home is self.scope:
            self.remember(self.scope, value, role, named)


# Statements


def _for(w: Emitter, s: For) -> None:
    if s.unroll and any(e.op != "const" for e in (s.start, s.stop, s.step)):
        raise TypeError(f"the loop over {s.var.data} is to be unrolled, but its bounds are not literals")
    w.loop(s, lambda: w.block(s.body), w.changes(s.body))


def _vector(w: Emitter, s: Vector) -> None:
    w.vector(s)


def _if(w: Emitter, s: If) -> None:
    cond = w.value(s.cond)
    w.inside += w.run is not None
    w.branch(cond, lambda: w.block(s.then), (lambda: w.block(s.orelse)) if s.orelse else None, w.changes((s,)))
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
    role = w.positions.role(s.var) if s.var.dtype is I64 else None
    target = w.known((s.var, role))
    if target is None:
        raise KeyError(f"{s.var.data} is assigned but not declared in an enclosing block")
    text = w.value(s.value, role, w.scope.uses[s.value] < 2)
    guard = f"if ({w.mask}) " if w.mask is not None and w.run is not None else ""
    w.line(f"{guard}{target} = {text};")
    w.forget([s.var])


def _store(w: Emitter, s: Store) -> None:
    value = w.value(s.value, DATA if s.value.dtype is I64 else None, w.scope.uses[s.value] < 2)
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
    w.line(w.dialect.array.format(f"{w.dialect.element(s.buffer.dtype)} {name}[{s.size}]"))


def _transpose(w: Emitter, s: Transpose) -> None:
    at, step = w.position(s.target_at), w.position(s.target_step)
    start, stride = w.position(s.source_at), w.position(s.source_step)
    i, j = w.name("row"), w.name("column")
    w.scope.names -= {i, j}
    w.line(f"for (int {i} = 0; {i} < {s.size}; ++{i})")
    source = Text(f"{w.pointer(s.source)}[{start:12} + {i} * {stride:14} + {j}]")
    value = convert(w.dialect, source, s.source.dtype, s.target.dtype)
    w.line(f"    for (int {j} = 0; {j} < {s.columns}; ++{j})")
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
    w.forget(w.changes((s,)))


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
