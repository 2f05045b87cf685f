"""The tables of docs/ir.md that are made from the code: operations and passes."""

from __future__ import annotations

from graphc.ir.passes import PASSES
from graphc.ir.passes.rules import RULES
from graphc.ir.registry import REQUIRED, OpDef, operations
from graphc.ir.text.printer import attribute_text


def operation_tables() -> str:
    """One Markdown table for each family of operations, in the order of registration."""
    families: dict[str, list[OpDef]] = {}
    for definition in operations().values():
        families.setdefault(definition.family, []).append(definition)
    parts = []
    for family in sorted(families):
        rows = [_row(d) for d in sorted(families[family], key=lambda d: d.name)]
        head = ["| operation | attributes | meaning | gradient |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"### {family}", "", *head, *rows]))
    return "\n\n".join(parts)


def pass_table() -> str:
    """The passes by name, as a Markdown table."""
    rows = [f"| `{p.name}` | {p.doc} |" for p in PASSES.values()]
    return "\n".join(["| pass | what it does |", "| --- | --- |", *rows])


_KINDS = {"b": "bool", "iu": "integers", "i": "signed", "u": "unsigned", "f": "floats"}


def rule_table() -> str:
    """The simplification rules, as a Markdown table."""
    rows = []
    for rule in RULES:
        text = rule.equation.replace(" -> ", " = ")
        rows.append(f"| {rule.name} | `{text}` | {kinds_in_words(rule.kinds)} |")
    return "\n".join(["| rule | equation | element types |", "| --- | --- | --- |", *rows])


def kinds_in_words(kinds: str) -> str:
    """ "biu" as "bool, integers"; all kinds as "all"."""
    if kinds == "biuf":
        return "all"
    words = []
    for key, word in _KINDS.items():
        if set(key) <= set(kinds):
            words.append(word)
            kinds = "".join(k for k in kinds if k not in key)
    return ", ".join(words)


def _row(d: OpDef) -> str:
    attrs = ", ".join(k if v is REQUIRED else f"{k}={attribute_text(v)}" for k, v in d.attrs.items())
    gradient = "yes" if d.vjp is not None else d.no_gradient
    # A bar inside a cell would end it.
    cells = [f"`{d.name}`", attrs, d.doc, gradient]
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
