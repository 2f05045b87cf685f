"""Kernels in which every name is given once: what C would read as one name in two scopes becomes two."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace as changed
from typing import Any

from graphc.codegen.expr import Expr, replace, var
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
    Transpose,
    Vector,
)


def base_name(name: str) -> str:
    """The name that the kernel gave."""
    return name.partition("#")[0]


class _Renamer:
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def fresh(self, v: Expr, scope: dict[Expr, Expr]) -> Expr:
        self.seen[v.data] += 1
        new = v if self.seen[v.data] == 1 else var(f"{v.data}#{self.seen[v.data]}", v.dtype)
        scope[v] = new
        return new

    def block(self, body: tuple[Stmt, ...], outer: dict[Expr, Expr]) -> tuple[Stmt, ...]:
        scope = dict(outer)
        return tuple(self.statement(s, scope) for s in body)

    def statement(self, s: Any, scope: dict[Expr, Expr]) -> Stmt:
        def e(x: Expr) -> Expr:
            mapping = {k: v for k, v in scope.items() if k is not v}
            return replace(x, mapping) if mapping else x

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
            args = tuple(Place(a.buffer, e(a.index)) if isinstance(a, Place) else e(a) for a in s.args)
            return Call(s.name, args, s.writes)
        assert isinstance(s, (Alloc, Barrier)), s
        return s


def unique(kernel: Kernel) -> Kernel:
    """The same kernel; a name given again is `name#2` and so on."""
    renamer = _Renamer()
    for name in (*kernel.extents, "begin", "end", "block", "blocks", "thread"):
        renamer.seen[name] += 1
    return changed(kernel, body=renamer.block(kernel.body, {}))
