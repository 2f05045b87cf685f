"""Arithmetic notation for gradient rules: a `Term` is a value with the builder that it is emitted to.

`g / (x * LN2)` emits a mul and a div; a Python number becomes a tensor of the other operand's type.
`x.cos()` emits any operation by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from graphc.ir.function import Builder, Value
from graphc.ir.ops.create import filled

Factor = Union["Term", float]


class Term:
    """One value under construction. Two terms in one expression share a builder and a type."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Builder, value: Value) -> None:
        self.builder = builder
        self.value = value

    def of(self, other: Factor) -> Term:
        """`other` as a term; a number becomes a tensor of this term's type."""
        if isinstance(other, Term):
            return other
        return Term(self.builder, filled(self.builder, other, self.value.type))

    def emit(self, name: str, *others: Factor) -> Term:
        values = [self.of(o).value for o in others]
        return Term(self.builder, self.builder.emit(name, self.value, *values))

    def where(self, a: Factor, b: Factor) -> Term:
        """`a` where this (bool) term is true, else `b`; at least one of them is a term."""
        like = a if isinstance(a, Term) else b
        assert isinstance(like, Term)
        return self.emit("select", like.of(a), like.of(b))

    def __add__(self, other: Factor) -> Term:
        return self.emit("add", other)

    def __radd__(self, other: float) -> Term:
        return self.of(other) + self

    def __sub__(self, other: Factor) -> Term:
        return self.emit("sub", other)

    def __rsub__(self, other: float) -> Term:
        return self.of(other) - self

    def __mul__(self, other: Factor) -> Term:
        return self.emit("mul", other)

    def __rmul__(self, other: float) -> Term:
        return self.of(other) * self

    def __truediv__(self, other: Factor) -> Term:
        return self.emit("div", other)

    def __neg__(self) -> Term:
        return self.emit("neg")

    def __getattr__(self, name: str) -> Callable[..., Term]:
        if name.startswith("__"):
            raise AttributeError(name)
        # Operations named like Python keywords are spelled with a final underscore, as in Builder.
        opcode = name.rstrip("_")

        def emit(*others: Any) -> Term:
            return self.emit(opcode, *others)

        return emit
