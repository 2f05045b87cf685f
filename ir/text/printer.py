"""The printer: functions and modules as text that the parser reads back to equal ones.

Invariants: the text is a function of the structure alone (and of the source lines, if asked for), so it
serves as a cache key; every name that had to be changed to be unique is followed by the original in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphc.ir.function import DenseArray, Function, Module, Operation, Value
from graphc.ir.text.arrays import array_text
from graphc.ir.text.words import RESERVED_WORDS
from graphc.ir.types import DimExpr, DType

IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")

# Attributes that are written only where they differ from this, their default.
UNSAID = {"precision": "", "noinline": False}

FunctionName = Callable[[Function], str]


def print_function(function: Function, locs: bool = True) -> str:
    """The text of a function, followed by every function that its attributes hold.

    `locs=False` leaves out the source lines.
    """
    return _print([function], locs)


def print_module(module: Module, locs: bool = True) -> str:
    """The text of a module: its functions, then those that only attributes hold, marked `private`."""
    return _print(list(module), locs)


def function_lines(function: Function, name_of: FunctionName | None = None, locs: bool = True) -> list[str]:
    """One function as lines: the head, one line an operation, the return, the closing brace.

    Works for functions that break the rules of SSA form, so that the verifier can draw them: a value
    without definition prints as `%undefined`. `name_of` names the functions held by attributes.
    """
    name_of = name_of or (lambda f: quoted_name("@", f.name))
    names = _ValueNames()
    types = _TypeTexts()
    taken: set[str] = set()
    params = []
    for value, name in zip(function.params, _padded(function.param_names, len(function.params))):
        text = _unique("%", name, taken)
        names[value] = text
        original = "" if text == quoted_name("%", name) else f" {json.dumps(name)}"
        params.append(f"{text}{original}: {types[value]}")
    results = ", ".join([types[r] for r in function.results])
    name = name_of(function)
    original = "" if name == quoted_name("@", function.name) else f" {json.dumps(function.name)}"
    lines = [f"func {name}{original}({', '.join(params)}) -> ({results}) {{"]

    number = 0
    for op in function.ops:
        operands = ", ".join([names[v] for v in op.operands])
        stated = []
        for r in op.results:
            names[r] = f"%{number}"
            stated.append(f"%{number}: {types[r]}")
            number += 1
        line = f"  {', '.join(stated)} = {op.name}" if stated else f"  {op.name}"
        if operands:
            line = f"{line} {operands}"
        said = [f"{k}={attribute_text(v, name_of)}" for k, v in op.attrs.items() if k not in UNSAID or UNSAID[k] != v]
        if said:
            line = f"{line} {{{', '.join(said)}}}"
        if locs and op.loc is not None:
            line = f"{line} loc({json.dumps(op.loc.file)}:{op.loc.line})"
        lines.append(line)
    returned = ", ".join([names[r] for r in function.results])
    lines.append(f"  return {returned}" if returned else "  return")
    lines.append("}")
    return lines


def attribute_text(value: Any, name_of: FunctionName | None = None) -> str:
    """The text of an attribute value."""
    kind = type(value)
    if kind is tuple:
        return f"[{', '.join([attribute_text(v, name_of) for v in value])}]"
    write = _WRITERS.get(kind)
    if write is not None:
        return write(value)
    if isinstance(value, Function):
        return (name_of or (lambda f: quoted_name("@", f.name)))(value)
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            return write(value)
    raise TypeError(f"{value!r} cannot be an attribute of an operation")


def quoted_name(sigil: str, name: str) -> str:
    """`%x`, or `%"odd name"` for a name that is not an identifier (dots allowed)."""
    return sigil + (name if IDENTIFIER.fullmatch(name) else json.dumps(name))


class _ValueNames(dict[Value, str]):
    def __missing__(self, value: Value) -> str:
        return "%undefined"


class _TypeTexts:
    """Texts of types by identity: many values share one type object."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def __getitem__(self, value: Value) -> str:
        key = id(value.type)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = str(value.type)
        return text


def _padded(names: Sequence[str], count: int) -> list[str]:
    return [str(names[i]) if i < len(names) else f"p{i}" for i in range(count)]


def _unique(sigil: str, name: str, taken: set[str]) -> str:
    """The text of `name`, with a number after it if the text is taken; the answer is added to `taken`."""
    text = quoted_name(sigil, name)
    count = 0
    while text in taken:
        count += 1
        text = quoted_name(sigil, f"{name}.{count}")
    taken.add(text)
    return text


def _print(members: list[Function], locs: bool) -> str:
    names = _FunctionNames(members, locs)
    parts = []
    for index, function in enumerate(names.order):  # grows as functions are met
        text = "\n".join(function_lines(function, names, locs))
        parts.append(text if index < len(members) else "private " + text)
    return "\n\n".join(parts)


class _FunctionNames:
    """Names for the functions of one text, given in the order in which they are met.

    Equal functions share a name (and a definition), but not where source lines print and differ.
    """

    def __init__(self, members: Iterable[Function], locs: bool) -> None:
        self.order: list[Function] = []
        self._locs = locs
        self._taken: set[str] = set()
        self._by_id: dict[int, str] = {}
        self._by_key: dict[Any, str] = {}
        for f in members:
            self(f)

    def __call__(self, function: Function) -> str:
        name = self._by_id.get(id(function))
        if name is None:
            key = (function.key(), _all_locs(function) if self._locs else None)
            name = self._by_key.get(key)
            if name is None:
                name = self._by_key[key] = _unique("@", function.name, self._taken)
                self.order.append(function)
            self._by_id[id(function)] = name
        return name


def _all_locs(function: Function) -> tuple[Any, ...]:
    """The source lines of a function and of those inside it."""
    return tuple((op.loc, *[_all_locs(f) for f in functions_of(op)]) for op in function.ops)


def functions_of(op: Operation) -> list[Function]:
    """The functions that the attributes of an operation hold."""
    found: list[Function] = []

    def visit(value: Any) -> None:
        if type(value) is Function:
            found.append(value)
        elif type(value) is tuple:
            for v in value:
                visit(v)

    for value in op.attrs.values():
        visit(value)
    return found


def _float_text(value: float) -> str:
    return repr(float(value))


def _dim_text(value: DimExpr) -> str:
    text = str(value)
    return f"dim<{text}>" if not RESERVED_WORDS.isdisjoint(value.symbols()) else text


_WRITERS: dict[type, Callable[[Any], str]] = {
    bool: lambda v: "true" if v else "false",
    int: str,
    float: _float_text,
    str: json.dumps,
    type(None): lambda v: "none",
    DType: lambda v: v.short,
    DimExpr: _dim_text,
    DenseArray: array_text,
}
