"""Simplification: the rules of rules.py, applied until none applies.

One walk reaches that point: a rule looks only at what an operation reads, all of that is simplified
before it, and what a rule emits is simplified as it is emitted. Every rule removes an operation, moves
one nearer to the scalars or the parameters, or replaces it by a cheaper one, so the walk ends.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from graphc.ir.function import Function, Operation, Value
from graphc.ir.passes.equation import Rule
from graphc.ir.passes.rewrite import Rewriter


def simplify(function: Function, fired: Counter[str] | None = None) -> Function:
    """`function` with every rule applied; operations that this leaves unused stay (see dce).

    `fired` counts the applications of each rule by name. Linear in the number of operations.
    """
    b = _Simplifier(function, Counter() if fired is None else fired)
    for original in function.ops:
        op = b.current(original)
        results = b.settle(op)
        if results is not op.results:
            b.replace(op.results, results)
    return b.finish()


@lru_cache(maxsize=1)
def _rules() -> dict[str, tuple[Rule, ...]]:
    """The rules to try for each operation name, in the order of the table."""
    from graphc.ir.passes.rules import RULES

    table: dict[str, list[Rule]] = {}
    for rule in RULES:
        for name in rule.operations:
            table.setdefault(name, []).append(rule)
    return {name: tuple(rules) for name, rules in table.items()}


@lru_cache(maxsize=4096)
def _candidates(rules: tuple[Rule, ...], kind: str, sources: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules that can match operands made by operations of these names ("" for parameters), the first one of this kind
    of element type. Most operations have none."""
    return tuple(rule for rule in rules if rule.may_match(kind, sources))


class _Simplifier(Rewriter):
    def __init__(self, function: Function, fired: Counter[str]) -> None:
        super().__init__(function)
        self.fired = fired
        self._rules = _rules()

    def settle(self, op: Operation) -> tuple[Value, ...]:
        """Append `op`, or what a rule replaces it by; returns the values in the place of its results."""
        rules = self._rules.get(op.name)
        if rules is not None:
            definitions = self.definitions
            sources = tuple(["" if (d := definitions.get(v)) is None else d.name for v in op.operands])
            kind = op.operands[0].type.dtype.kind if sources else ""
            for rule in _candidates(rules, kind, sources):
                outer, self.loc = self.loc, op.loc
                value = rule.rewrite(self, op)
                self.loc = outer
                if value is not None:
                    if value.type != op.results[0].type:
                        raise AssertionError(f"the rule {rule.name} made {value.type} of {op.results[0].type}")
                    self.fired[rule.name] += 1
                    return (value,)
        self.append(op)
        return op.results

    def emit(self, name: str, *operands: Value, **attrs: Any) -> Any:
        results = self.settle(self.make_op(name, *operands, **attrs))
        return results[0] if len(results) == 1 else results
