"""The parser: text to functions, every type inferred again and compared with the one in the text.

The grammar is in grammar.lark, the tree in syntax.py; this file gives names their meaning. All mistakes
are `IRSyntaxError`, drawn under the line they are in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from graphc.ir.function import Function, Loc, Module, Operation, Value, freeze
from graphc.ir.registry import IRTypeError, OpDef, lookup
from graphc.ir.text.errors import IRSyntaxError

if TYPE_CHECKING:
    from graphc.ir.text.syntax import FunctionText, Name, Place, Statement


def parse_function(text: str, source: str = "<ir>") -> Function:
    """The first function of a text; the others must be called from it.

    `source` is the name of the text in messages. Raises `IRSyntaxError`.

    >>> f = parse_function("func @twice(%x: f32[4]) -> (f32[4]) { %0 = add %x, %x return %0 }")
    >>> f.result_types
    (f32[4],)
    """
    reader = _Reader(text, source)
    entry = reader.function(reader.texts[0])
    for other in reader.texts:
        if id(other) not in reader.finished:
            raise reader.error(
                f"@{other.name.key} is not called from @{entry.name}; read several functions with parse_module",
                other.name.place,
            )
    return entry


def parse_module(text: str, source: str = "<ir>") -> Module:
    """The module of a text: all functions that are not `private`. Raises `IRSyntaxError`."""
    reader = _Reader(text, source)
    functions = [reader.function(t) for t in reader.texts]
    members: dict[str, Function] = {}
    for t, f in zip(reader.texts, functions):
        if t.private:
            continue
        if f.name in members:
            raise reader.error(f"the module has two functions named @{f.name}", t.name.place)
        members[f.name] = f
    if not members:
        raise reader.error("the module has only private functions", reader.texts[0].name.place)
    return Module(members.values())


class _Reader:
    """Builds the functions of one text, each when it is first needed."""

    def __init__(self, text: str, source: str) -> None:
        from graphc.ir.text.syntax import read

        self.text = text
        self.source = source
        self.texts = read(text, source)
        self.finished: dict[int, Function] = {}
        self._building: list[FunctionText] = []
        self._named: dict[str | int, FunctionText] = {}
        for t in self.texts:
            if t.name.key in self._named:
                raise self.error(f"@{t.name.key} is defined twice", t.name.place)
            self._named[t.name.key] = t

    def error(self, message: str, place: Place) -> IRSyntaxError:
        return IRSyntaxError(message, self.text, place.line, place.column, place.width, self.source)

    def function(self, text: FunctionText) -> Function:
        if id(text) in self.finished:
            return self.finished[id(text)]
        self._building.append(text)
        scope: dict[str | int, Value] = {}
        params = []
        for p in text.params:
            value = Value(p.type)
            self._define(scope, p.name, value)
            params.append(value)
        ops = [self._operation(statement, scope) for statement in text.body]
        results = [self._use(scope, name) for name in text.returned]
        self._check_results(text, results)
        names = [p.original for p in text.params]
        function = Function(text.original, params, ops, results, names)
        self._building.pop()
        self.finished[id(text)] = function
        return function

    def _check_results(self, text: FunctionText, results: list[Value]) -> None:
        if len(results) != len(text.result_types):
            raise self.error(
                f"the head of @{text.name.key} states {len(text.result_types)} results, "
                f"{len(results)} are returned",
                text.return_place,
            )
        for name, value, stated in zip(text.returned, results, text.result_types):
            if value.type != stated:
                raise self.error(
                    f"%{name.key} is {value.type}, the head of @{text.name.key} states {stated}", name.place
                )

    def _operation(self, statement: Statement, scope: dict[str | int, Value]) -> Operation:
        try:
            definition = lookup(statement.opcode)
        except KeyError as error:
            raise self.error(error.args[0], statement.place) from None
        operands = [self._use(scope, name) for name in statement.operands]
        attrs = self._attributes(statement, definition)
        operand_types = tuple(v.type for v in operands)
        try:
            types = definition.infer(operand_types, attrs)
        except Exception as error:  # a type rule may trip over operands it does not expect
            message = str(error)
            if not isinstance(error, IRTypeError):
                shown = ", ".join(map(str, operand_types))
                message = f"{statement.opcode}({shown}) breaks its type rule: {error}"
            raise self.error(message, statement.place) from error
        if len(types) != len(statement.results):
            count = f"{len(types)} result" + ("" if len(types) == 1 else "s")
            raise self.error(
                f"{statement.opcode} has {count}, the text names {len(statement.results)}", statement.place
            )
        values = []
        for (name, stated, place), inferred in zip(statement.results, types):
            if stated is not None and stated != inferred:
                raise self.error(f"{statement.opcode} gives {inferred}, the text states {stated}", place)
            value = Value(inferred)
            self._define(scope, name, value)
            values.append(value)
        loc = Loc(*statement.loc) if statement.loc is not None else None
        return Operation(statement.opcode, operands, attrs, values, loc)

    def _attributes(self, statement: Statement, definition: OpDef) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for key, value, place in statement.attrs:
            if key in attrs:
                raise self.error(f"the attribute {key} is given twice", place)
            if key not in definition.attrs:
                known = ", ".join(definition.attrs) or "none"
                hint = _did_you_mean(key, definition.attrs)
                raise self.error(f"{definition.name} has no attribute {key!r}; it has: {known}{hint}", place)
            attrs[key] = freeze(self._resolve(value))
        try:
            return definition.complete(attrs)
        except TypeError as error:
            raise self.error(str(error), statement.place) from None

    def _resolve(self, value: Any) -> Any:
        from graphc.ir.text.syntax import Reference

        if isinstance(value, Reference):
            return self._callee(value.name)
        if isinstance(value, tuple):
            return tuple(self._resolve(v) for v in value)
        return value

    def _callee(self, name: Name) -> Function:
        target = self._named.get(name.key)
        if target is None:
            hint = _did_you_mean(str(name.key), map(str, self._named))
            raise self.error(f"there is no function @{name.key} in the text{hint}", name.place)
        if any(t is target for t in self._building):
            raise self.error(f"@{name.key} calls itself; functions cannot be recursive", name.place)
        return self.function(target)

    def _use(self, scope: dict[str | int, Value], name: Name) -> Value:
        value = scope.get(name.key)
        if value is None:
            hint = _did_you_mean(str(name.key), map(str, scope), "%")
            raise self.error(f"%{name.key} is not defined before this line{hint}", name.place)
        return value

    def _define(self, scope: dict[str | int, Value], name: Name, value: Value) -> None:
        if name.key in scope:
            raise self.error(f"%{name.key} is already defined; every value has one definition", name.place)
        scope[name.key] = value


def _did_you_mean(name: str, known: Iterable[str], sigil: str = "") -> str:
    close = difflib.get_close_matches(name, list(known))
    return f"; did you mean {' or '.join(sigil + c for c in close)}?" if close else ""
