"""Kernels made ready to be written: every name is given once, and nothing stands there that nothing depends on.

What C would read as one name in two scopes becomes two. Comparisons whose outcome is plain from their form are
decided, since compilers warn of them; statements that then have no use are left out.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

from graphc.codegen.c.positions import Positions, statements
from graphc.codegen.expr import Expr, const, make, select, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
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
from graphc.ir.types import BOOL


def base_name(name: str) -> str:
    """The name that the kernel gave."""
    return name.partition("#")[0]


class _Renamer:
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.decided: dict[Expr, Expr] = {}  # where no name is changed

    def fresh(self, v: Expr, scope: dict[Expr, Expr]) -> Expr:
        self.seen[v.data] += 1
        new = v if self.seen[v.data] == 1 else var(f"{v.data}#{self.seen[v.data]}", v.dtype)
        scope[v] = new
        return new

    def block(self, body: tuple[Stmt, ...], outer: dict[Expr, Expr]) -> tuple[Stmt, ...]:
        scope = dict(outer)
        return tuple(self.statement(s, scope) for s in body)

    def statement(self, s: Any, scope: dict[Expr, Expr]) -> Stmt:
        renamed = {k: v for k, v in scope.items() if k is not v}

        def e(x: Expr) -> Expr:
            return decide(x, dict(renamed) if renamed else self.decided)

        if isinstance(s, For):
            bounds = e(s.start), e(s.stop), e(s.step)
            inner = dict(scope)
            return For(self.fresh(s.var, inner), bounds[0], bounds[1], self.block(s.body, inner), bounds[2], s.unroll)
        if isinstance(s, Vector):
            inner = dict(scope)
            return Vector(self.fresh(s.var, inner), s.width, self.block(s.body, inner))
        if isinstance(s, If):
            return If(e(s.cond), self.block(s.then, scope), self.block(s.orelse, scope))
        if isinstance(s, Let):
            value = e(s.value)
            return Let(self.fresh(s.var, scope), value)
        if isinstance(s, Declare):
            value = e(s.init)
            return Declare(self.fresh(s.var, scope), value)
        if isinstance(s, Assign):
            return Assign(scope.get(s.var, s.var), e(s.value))
        if isinstance(s, Store):
            return changed(s, index=e(s.index), value=e(s.value))
        if isinstance(s, Report):
            return Report(e(s.cond), s.site, e(s.value))
        if isinstance(s, Transpose):
            return changed(
                s, target_at=e(s.target_at), target_step=e(s.target_step), source_at=e(s.source_at), source_step=e(s.source_step)
            )
        if isinstance(s, Call):
            args = tuple(
                a if isinstance(a, TensorMap) else Place(a.buffer, e(a.index)) if isinstance(a, Place) else e(a)
                for a in s.args
            )
            return Call(s.name, args, s.writes)
        assert isinstance(s, (Alloc, Barrier)), s
        return s


_SAME = {"eq": True, "ne": False, "lt": False, "le": True, "gt": False, "ge": True}
_LITERAL: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}


def _decided(n: Expr) -> Expr:
    """A node over operands that are decided already."""
    a = n.args
    if n.op in _SAME and a[0].dtype.kind != "f":
        if a[0] is a[1]:
            return const(BOOL, _SAME[n.op])
        if a[0].op == "const" and a[1].op == "const":
            return const(BOOL, _LITERAL[n.op](a[0].data, a[1].data))
        for x, y in (a, a[::-1]):
            masks = [m.data for m in x.args if m.op == "const"] if x.op == "and" else []
            if n.op in ("eq", "ne") and y.op == "const" and masks and masks[0] >= 0 and y.data & ~masks[0]:
                return const(BOOL, n.op == "ne")
    if n.op == "select":
        return select(*a)
    if n.op in ("idiv", "irem") and a[1].op == "const" and a[1].data == 0:
        return const(n.dtype, 0)  # stands in loops that do not run
    if n.dtype is BOOL and n.op in ("and", "or"):
        for x, y in (a, a[::-1]):
            if x.op == "const":
                return y if x.data == (n.op == "and") else x
    if n.op == "not" and a[0].op == "const" and n.dtype is BOOL:
        return const(BOOL, not a[0].data)
    if n.op == "load" and len(a) == 2 and a[1].op == "const":
        return make("load", n.dtype, a[:1], n.data) if a[1].data else const(n.dtype, 0)
    return n


def decide(e: Expr, done: dict[Expr, Expr]) -> Expr:
    """`e` without comparisons of a value with itself, and the like, and without what they decide.

    done: what expressions become; it is added to.
    """
    stack = [e]
    while stack:
        n = stack[-1]
        if n in done:
            stack.pop()
            continue
        missing = [a for a in n.args if a not in done]
        if missing:
            stack += missing
            continue
        stack.pop()
        args = tuple([done[x] for x in n.args])
        done[n] = _decided(n if args == n.args else make(n.op, n.dtype, args, n.data))
    return done[e]


def prune(body: tuple[Stmt, ...], positions: Positions) -> tuple[Stmt, ...]:
    """The statements that anything depends on."""
    kept: list[Stmt] = []
    for s in body:
        if isinstance(s, (Let, Declare, Assign)) and s.var not in positions.needs:
            continue
        if isinstance(s, Assign) and s.value is s.var:
            continue
        if isinstance(s, (Store, Alloc)) and s.buffer.kind == "local" and s.buffer not in positions.read:
            continue
        if isinstance(s, (For, Vector)):
            s = changed(s, body=prune(s.body, positions))
            if not s.body:
                continue
        if isinstance(s, If):
            s = If(s.cond, prune(s.then, positions), prune(s.orelse, positions))
            if s.cond.op == "const":
                # The names that the branch gives do not reach further.
                s = If(s.cond, s.then if s.cond.data else (), () if s.cond.data else s.orelse)
            if not s.then and not s.orelse:
                continue
        kept.append(s)
    return tuple(kept)


def prepared(kernel: Kernel) -> tuple[Kernel, Positions]:
    """The kernel that is written, and the roles in it."""
    kernel = unique(kernel)
    while True:
        positions = Positions(kernel)
        body = prune(kernel.body, positions)
        if sum(1 for _ in statements(body)) == sum(1 for _ in statements(kernel.body)):
            return changed(kernel, body=body), positions
        kernel = changed(kernel, body=body)


def unique(kernel: Kernel) -> Kernel:
    """The same kernel; a name given again is `name#2` and so on."""
    renamer = _Renamer()
    for name in (*kernel.extents, "begin", "end", "block", "blocks", "thread"):
        renamer.seen[name] += 1
    return changed(kernel, body=renamer.block(kernel.body, {}))
