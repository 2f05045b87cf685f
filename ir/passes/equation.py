"""Rewrite rules written as equations, such as `mul(x, 1) -> x`.

Left and right are terms of: operations without attributes; names, standing for any value (the same name
for the same value); numbers and `true`, `false`, `inf`, standing for a constant scalar or a tensor that
repeats it. Numbers are told apart by bits: `0.0` is not `-0.0`. Operands of commutative operations match in
either order. A number on the right is a tensor of the type of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from graphc.ir.function import Operation, Value
from graphc.ir.passes.cse import COMMUTATIVE
from graphc.ir.passes.rewrite import Rewriter, scalar


@dataclass(frozen=True, eq=False)
class Rule:
    """A rewrite of one operation. `rewrite` returns the value that replaces its result, or None.

    equation: what equals what, to the bit, for the reader (and, for rules made by `equation`, the rule).
    kinds: the kinds of element types that it is for ("b", "i", "u", "f").
    left: the left side, where the rule was made by `equation`.
    """

    name: str
    equation: str
    operations: tuple[str, ...]
    rewrite: Callable[[Rewriter, Operation], Value | None]
    kinds: str = "biuf"
    left: Apply | None = None

    def may_match(self, kind: str, sources: tuple[str, ...]) -> bool:
        """Whether an operation can match, by the names of the operations that made its operands ("" for a parameter) and
        the kind of the first one's element type. A rule that is a function always can."""
        if self.left is None:
            return True
        terms = self.left.arguments
        alike = self.left.operation != "select" and not any(isinstance(t, Apply) for t in terms)
        if alike and kind not in self.kinds:
            return False
        orders = (sources, sources[::-1]) if self.left.operation in COMMUTATIVE else (sources,)
        return any(all(map(_may_be, terms, order)) for order in orders)


# Operations that spread a constant scalar, and that scalar's own.
_NUMBERS = frozenset({"constant", "full", "broadcast"})


def _may_be(term: Term, source: str) -> bool:
    """Whether a value made by the operation `source` can be `term`."""
    if isinstance(term, str):
        return True
    return source in _NUMBERS if isinstance(term, Number) else source == term.operation


@dataclass(frozen=True)
class Apply:
    operation: str
    arguments: tuple[Term, ...]


@dataclass(frozen=True)
class Number:
    value: float | int | bool


Term = Union[Apply, Number, str]

_WORDS: dict[str, bool] = {"true": True, "false": False}
_TOKEN = re.compile(r"\s*(?:(-?inf\b|-?\d+(?:\.\d+)?)|([A-Za-z_]\w*)|([(),]))")


def equation(name: str, kinds: str, text: str) -> Rule:
    """The rule `text`, for operands whose dtype is of one of `kinds` ("b", "i", "u", "f").

    The dtype meant is that of the value named `x` or, where there is none, of the result.
    """
    left, right = (parse_term(side) for side in text.split("->"))
    assert isinstance(left, Apply), text

    def rewrite(b: Rewriter, op: Operation) -> Value | None:
        bound = _match_operands(b, left, op, {})
        if bound is None or bound.get("x", op.results[0]).type.dtype.kind not in kinds:
            return None
        return _build(b, right, bound, op)

    return Rule(name, text, (left.operation,), rewrite, kinds, left)


def parse_term(text: str) -> Term:
    tokens: list[tuple[str, str, str]] = _TOKEN.findall(text)
    position = 0

    def term() -> Term:
        nonlocal position
        number, name, _ = tokens[position]
        position += 1
        if number:
            return Number(float(number) if "." in number or "inf" in number else int(number))
        if position == len(tokens) or tokens[position][2] != "(":
            return Number(_WORDS[name]) if name in _WORDS else name
        arguments = []
        while tokens[position][2] != ")":
            position += 1  # "(" or ","
            arguments.append(term())
        position += 1
        return Apply(name, tuple(arguments))

    return term()


Bound = dict[str, Value]


def _match(b: Rewriter, term: Term, value: Value, bound: Bound) -> Bound | None:
    """`bound` with the names of `term` that makes it `value`, or None."""
    if isinstance(term, str):
        if term in bound:
            return bound if bound[term] is value else None
        return {**bound, term: value}
    if isinstance(term, Number):
        return bound if _is_number(b, value, term.value) else None
    op = b.definition(value)
    return None if op is None or op.name != term.operation else _match_operands(b, term, op, bound)


def _match_operands(b: Rewriter, term: Apply, op: Operation, bound: Bound) -> Bound | None:
    found = _match_all(b, term.arguments, op.operands, bound)
    if found is None and op.name in COMMUTATIVE:
        found = _match_all(b, term.arguments, op.operands[::-1], bound)
    return found


def _match_all(b: Rewriter, terms: tuple[Term, ...], values: tuple[Value, ...], bound: Bound) -> Bound | None:
    for term, value in zip(terms, values, strict=True):
        found = _match(b, term, value, bound)
        if found is None:
            return None
        bound = found
    return bound


def _is_number(b: Rewriter, value: Value, number: float | int | bool) -> bool:
    kind = value.type.dtype.kind
    # `1` is a number of every dtype but bool, `1.0` of floats, `true` of bool.
    if isinstance(number, bool) != (kind == "b") or (isinstance(number, float) and kind != "f"):
        return False
    held = b.uniform(value)
    return held is not None and held == scalar(number, value.type)


def _build(b: Rewriter, term: Term, bound: Bound, op: Operation) -> Value:
    if isinstance(term, str):
        return bound[term]
    if isinstance(term, Number):
        type = op.results[0].type
        return b.constant(scalar(term.value, type), type)
    built: Value = b.emit(term.operation, *[_build(b, a, bound, op) for a in term.arguments])
    return built
