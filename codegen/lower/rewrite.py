"""Statements of a vector's body with their expressions found or rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from graphc.codegen.expr import Expr
from graphc.codegen.loops import Assign, If, Let, Report, Stmt, Store


def expressions(body: Sequence[Stmt]) -> Iterator[Expr]:
    """The expressions of a body without loops."""
    for s in body:
        if isinstance(s, (Let, Assign)):
            yield s.value
        elif isinstance(s, Store):
            yield s.index
            yield s.value
        elif isinstance(s, Report):
            yield s.cond
            yield s.value
        elif isinstance(s, If):
            yield s.cond
            yield from expressions((*s.then, *s.orelse))
        else:
            raise TypeError(f"a body of {type(s).__name__} is not rewritten")


def rewritten(body: Sequence[Stmt], f: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """`body` with `f` of every expression in its place."""
    return tuple(_rewritten(s, f) for s in body)


def _rewritten(s: Stmt, f: Callable[[Expr], Expr]) -> Stmt:
    if isinstance(s, Let):
        return Let(s.var, f(s.value))
    if isinstance(s, Assign):
        return Assign(s.var, f(s.value))
    if isinstance(s, Store):
        return Store(s.buffer, f(s.index), f(s.value), s.stream)
    if isinstance(s, Report):
        return Report(f(s.cond), s.site, f(s.value))
    if isinstance(s, If):
        return If(f(s.cond), rewritten(s.then, f), rewritten(s.orelse, f))
    raise TypeError(f"a body of {type(s).__name__} is not rewritten")
