"""From text to a syntax tree whose leaves keep their place in the text. The only module that imports lark.

Dimensions and numbers are already evaluated in the tree; names are not yet looked up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from graphc.ir.text.arrays import Splat, read_array
from graphc.ir.text.errors import IRSyntaxError
from graphc.ir.text.words import CONSTANT_WORDS, DTYPE_WORDS, RESERVED_WORDS
from graphc.ir.types import ALL_DTYPES, Dim, TensorType, symbol
from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken


@dataclass(slots=True)
class Place:
    """Where something stands: line and column from 1, and how wide it is."""

    line: int
    column: int
    width: int

    @staticmethod
    def of(token: Token) -> Place:
        return Place(token.line or 1, token.column or 1, len(token))


@dataclass(slots=True)
class Name:
    """A value or function name. `key` is a number for `%0`, else the unquoted name."""

    key: str | int
    place: Place


@dataclass(slots=True)
class Reference:
    """A function named in an attribute."""

    name: Name


@dataclass(slots=True)
class Param:
    name: Name
    original: str
    type: TensorType


@dataclass(slots=True)
class Statement:
    """An operation. `results` are names with the stated type, where one is stated."""

    results: list[tuple[Name, TensorType | None, Place]]
    opcode: str
    place: Place
    operands: list[Name]
    attrs: list[tuple[str, Any, Place]]
    loc: tuple[str, int] | None


@dataclass(slots=True)
class FunctionText:
    private: bool
    name: Name
    original: str
    params: list[Param]
    result_types: list[TensorType]
    body: list[Statement]
    returned: list[Name]
    return_place: Place


class Misplaced(Exception):
    """A mistake found while the tree is built, with its place."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


def _word(token: Token) -> Any:
    """The meaning of a bare word as an attribute value."""
    text = str(token)
    if text in RESERVED_WORDS:
        return CONSTANT_WORDS[text] if text in CONSTANT_WORDS else DTYPE_WORDS[text]
    return symbol(text)


def _name(token: Token) -> Name:
    text = token[1:]
    place = Place.of(token)
    if text.startswith('"'):
        return Name(_string_at(text, place), place)
    return Name(int(text) if text.isdigit() else text, place)


def _string_at(text: str, place: Place) -> str:
    try:
        value: str = json.loads(text)
    except ValueError as error:
        raise Misplaced(f"{text} is not a string: {error}", place) from None
    return value


def _string(token: Token) -> str:
    return _string_at(str(token), Place.of(token))


def _dimension(value: Any) -> Any:
    """A bare word inside arithmetic is a symbol, whatever else it might mean."""
    return symbol(str(value)) if isinstance(value, Token) else value


class _Build(Transformer[Token, Any]):
    """Grammar rules to tree nodes. Each method takes the children of its rule."""

    def start(self, c: list[Any]) -> list[FunctionText]:
        return c

    def function(self, c: list[Any]) -> FunctionText:
        private, name_token, original, params, types, body, (place, returned) = c
        name = _name(name_token)
        text = _string(original) if original is not None else str(name.key)
        return FunctionText(private is not None, name, text, params, types, body, returned, place)

    def params(self, c: list[Any]) -> list[Param]:
        return c

    def param(self, c: list[Any]) -> Param:
        name = _name(c[0])
        return Param(name, _string(c[1]) if c[1] is not None else str(name.key), c[2][0])

    def types(self, c: list[Any]) -> list[TensorType]:
        return [t for t, _ in c]

    def body(self, c: list[Any]) -> list[Statement]:
        return c

    def tensor_type(self, c: list[Any]) -> tuple[TensorType, Place]:
        token, *dims = c
        place = Place.of(token)
        kind = DTYPE_WORDS.get(str(token))
        if kind is None:
            known = ", ".join(d.short for d in ALL_DTYPES)
            raise Misplaced(f"there is no element type {token}; the element types are {known}", place)
        shape: list[Dim] = []
        for d in dims:
            d = _dimension(d)
            if isinstance(d, float):
                raise Misplaced(f"a dimension cannot be the fraction {d!r}", place)
            if isinstance(d, int) and d < 0:
                raise Misplaced(f"a dimension cannot be negative: {d}", place)
            shape.append(d)
        return TensorType(kind, tuple(shape)), place

    def returned(self, c: list[Any]) -> tuple[Place, list[Name]]:
        return Place.of(c[0]), c[1]

    def operation(self, c: list[Any]) -> Statement:
        results, token, operands, attrs, loc = c
        return Statement(results or [], str(token), Place.of(token), operands, attrs or [], loc)

    def results(self, c: list[Any]) -> Any:
        return c

    def result(self, c: list[Any]) -> tuple[Name, TensorType | None, Place]:
        name = _name(c[0])
        return (name, *c[1]) if c[1] is not None else (name, None, name.place)

    def operands(self, c: list[Any]) -> list[Name]:
        return [_name(t) for t in c]

    def attrs(self, c: list[Any]) -> Any:
        return c

    def attr(self, c: list[Any]) -> tuple[str, Any, Place]:
        return (str(c[0]), c[1], Place.of(c[0]))

    def loc(self, c: list[Any]) -> tuple[str, int]:
        return (_string(c[0]), int(c[1]))

    # Attribute values.
    def bare(self, c: list[Any]) -> Any:
        return _word(c[0]) if isinstance(c[0], Token) else c[0]

    def string(self, c: list[Any]) -> str:
        return _string(c[0])

    def reference(self, c: list[Any]) -> Reference:
        return Reference(_name(c[0]))

    def sequence(self, c: list[Any]) -> Any:
        return tuple(c)

    def dim(self, c: list[Any]) -> Any:
        return _dimension(c[1])

    # Arithmetic. A bare word stays a token until it is known whether it is a symbol.
    def integer(self, c: list[Any]) -> int:
        return int(c[0])

    def fraction(self, c: list[Any]) -> Any:
        return float(c[0])

    def word(self, c: list[Any]) -> Any:
        return c[0]

    def negate(self, c: list[Any]) -> Any:
        _sign, value = c
        if isinstance(value, Token):
            value = CONSTANT_WORDS[str(value)] if value in ("inf", "nan") else symbol(str(value))
        return -value

    def binary(self, c: list[Any]) -> Any:
        left, operator, right = c
        left, right = _dimension(left), _dimension(right)
        place = Place.of(operator)
        if isinstance(left, float) or isinstance(right, float):
            raise Misplaced(f"{operator} is for dimensions, not for fractions", place)
        try:
            match operator.type:
                case "PLUS":
                    return left + right
                case "MINUS":
                    return left - right
                case "TIMES":
                    return left * right
                case _:
                    return left // right
        except ZeroDivisionError:
            raise Misplaced("a dimension is divided by zero", place) from None
        except ValueError as error:
            raise Misplaced(str(error), place) from None

    # Arrays.
    def dense(self, c: list[Any]) -> Any:
        _, (kind, place), payload = c
        try:
            return read_array(kind, payload)
        except ValueError as error:
            raise Misplaced(str(error), place) from None

    def elements(self, c: list[Any]) -> Any:
        return c

    def splat(self, c: list[Any]) -> Any:
        return Splat(c[0])

    def base64(self, c: list[Any]) -> str:
        return _string(c[0])

    def element(self, c: list[Any]) -> str:
        return "".join(str(t) for t in c if t is not None)


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", maybe_placeholders=True, transformer=_Build())


def read(text: str, source: str) -> list[FunctionText]:
    """The functions of a text. Raises `IRSyntaxError`."""
    try:
        tree: Any = _lark().parse(text)
    except Misplaced as error:
        p = error.place
        raise IRSyntaxError(error.message, text, p.line, p.column, p.width, source) from None
    except UnexpectedInput as error:
        raise _explain(error, text, source) from None
    functions: list[FunctionText] = tree
    return functions


# What the grammar's terminals are called in messages: the first row whose terminals are all acceptable
# stands for them.
_EXPECTATIONS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"STRING", "LSQB", "FUNCTION", "INT"}), "an attribute value"),
    (frozenset({"NAN_BITS", "INT", "NAME", "MINUS"}), "array elements"),
    (frozenset({"INT", "NAME", "MINUS", "LPAR"}), "a dimension"),
    (frozenset({"PLUS", "MINUS", "TIMES", "DIVIDE"}), "an operator (+ - * //)"),
    (frozenset({"FUNC", "PRIVATE"}), "a function (func @name(...) -> (...) { ... })"),
    (frozenset({"RETURN", "NAME", "VALUE"}), "an operation or return"),
    (frozenset({"VALUE"}), "a value such as %x"),
    (frozenset({"FUNCTION"}), "a function name such as @main"),
    (frozenset({"NAME"}), "a name"),
    (frozenset({"INT"}), "an integer"),
    (frozenset({"STRING"}), "a string"),
)


def _explain(error: UnexpectedInput, text: str, source: str) -> IRSyntaxError:
    if isinstance(error, UnexpectedToken):
        found, allowed = error.token, set(error.accepts or error.expected)
        at_end = found.type == "$END"
        what = "the end of the text" if at_end else f"{str(found)!r}"
        width = len(found)
    elif isinstance(error, UnexpectedCharacters):
        at_end, what, width = False, repr(error.char), 1
        allowed = set(error.allowed or ())
    else:
        at_end, what, width, allowed = True, "the end of the text", 1, set[str]()
    line, column = error.line, error.column
    if at_end or line < 1:
        lines = text.splitlines() or [""]
        line, column = len(lines), len(lines[-1]) + 1
    message = f"{what} is not expected here"
    if allowed:
        message += f"; expected {_in_words(allowed)}"
    return IRSyntaxError(message, text, line, column, width, source)


def _in_words(allowed: set[str]) -> str:
    words = []
    for terminals, phrase in _EXPECTATIONS:
        if terminals <= allowed:
            words.append(phrase)
            # An attribute value may also be everything that a dimension may.
            allowed = allowed - terminals
            if "STRING" in terminals and "LSQB" in terminals:
                allowed -= {"NAME", "MINUS", "LPAR", "FLOAT", "DENSE", "DIM"}
            elif "INT" in terminals:
                allowed -= {"FLOAT"}
    literals = {t.name: t.pattern.value for t in _lark().terminals}
    words += sorted(repr(literals.get(t, t)) for t in allowed - {"$END"})
    if "$END" in allowed:
        words.append("the end")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
