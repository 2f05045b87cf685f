"""Functions that differ in nothing but sizes: one function with those sizes left open, which is planned once for all of them.

`form` takes a function apart into its structure and its sizes. Where one structure comes with several sizes, `generalise`
writes the function with symbols for what differs: a batch that was 32, then 33, is a symbol wherever it was. `General.sizes_of`
tells what the symbols are for further functions of this structure. Numbers that follow from sizes, such as the divisor of a mean,
become parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.codegen.likely import name_of
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import Dim, DimExpr, TensorType, substitute, symbol

# Attributes that hold sizes.
OPEN = frozenset(("shape", "input_shape", "start", "limit", "size", "padding", "low", "high"))
# What each of the functions has at one place.
Column = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A function without calls, taken apart. structure: all but sizes and the values of numbers; sizes, numbers: those in order.
    empty: a parameter has no element."""

    structure: Any
    sizes: tuple[int, ...]
    numbers: tuple[bytes, ...]
    empty: bool


def form(f: Function) -> Form:
    """The form of a function whose dimensions are known."""
    number: dict[Value, int] = {}
    sizes: list[int] = []
    numbers: list[bytes] = []
    lines: list[Any] = []
    for p in f.params:
        number[p] = len(number)
        sizes += p.type.shape  # type: ignore[arg-type]
        lines.append((p.type.dtype, len(p.type.shape)))
    for op in f.ops:
        attrs = op.attrs
        if op.name == "constant" and attrs["value"].array.ndim == 0:
            value = attrs["value"].array
            numbers.append(value.tobytes())
            what: Any = op.result.type.dtype
        elif attrs.keys().isdisjoint(OPEN):
            what = attrs.key()
        else:
            what = tuple(
                [
                    (k, _split(v, sizes) if k in OPEN else attrs.key()[i][1])
                    for i, (k, v) in enumerate(attrs.items())
                ]
            )
        # An error of an index out of range names the line.
        loc = op.loc if op.name == "check_index" else None
        lines.append((op.name, what, tuple([number[v] for v in op.operands]), loc))
        for r in op.results:
            number[r] = len(number)
    lines.append(tuple([number[r] for r in f.results]))
    empty = any(0 in p.type.shape for p in f.params)
    return Form(tuple(lines), tuple(sizes), tuple(numbers), empty)


def _split(value: Any, sizes: list[int]) -> Any:
    """The structure of an attribute's value, its numbers appended to `sizes`."""
    if isinstance(value, tuple):
        return tuple([_split(v, sizes) for v in value])
    sizes.append(value)
    return None


@dataclass(frozen=True)
class General:
    """A function for several sizes.

    function: with symbols; its last parameters are numbers, those at `numbers` in a form. expected: what a form has for sizes.
    symbols: sizes that are a multiple of one symbol, with its name and how many times it. fixed: for each number of a form what it is, or the place of
    that which it is the same as.
    """

    function: Function
    expected: tuple[Dim, ...]
    numbers: tuple[int, ...]
    fixed: tuple[bytes | int, ...]
    symbols: Mapping[DimExpr, tuple[str, int]]

    def sizes_of(self, form: Form) -> dict[str, int] | None:
        """The values of the symbols for a function of the same structure; None where it is none of this kind."""
        if form.empty:
            return None
        found: dict[str, int] = {}
        known: dict[Dim, int] = {}
        for d, n in zip(self.expected, form.sizes, strict=True):
            if isinstance(d, DimExpr):
                value = known.get(d)
                if value is None:
                    name, step = self.symbols.get(d, ("", 1))
                    if name and n % step == 0:
                        found.setdefault(name, n // step)
                    computed = substitute(d, found)
                    if isinstance(computed, DimExpr):
                        return None
                    value = known[d] = computed
                if value != n:
                    return None
            elif d != n:
                return None
        for i, number in enumerate(self.fixed):
            if form.numbers[i] != (number if isinstance(number, bytes) else form.numbers[number]):
                return None
        return found


def generalise(f: Function, forms: Sequence[Form]) -> General | None:
    """A function for the sizes of all these forms, which have one structure, the last one being that of `f`; None if there is none.

    There is none where a size follows from others in a way that is not known here, or where a type depends on it.
    """
    if any(each.empty for each in forms):
        return None
    for related, whole in ((False, False), (True, False), (False, True), (True, True)):
        try:
            return _Writer(f, forms, related, whole).general()
        except (ValueError, TypeError):
            continue
    return None


class _Writer:
    """related: the sizes of parameters may follow from those of parameters before. whole: what all the sizes at a place are
    multiples of is known, as that a side is even, which halves it without a remainder."""

    def __init__(self, f: Function, forms: Sequence[Form], related: bool, whole: bool) -> None:
        self.f, self.related, self.whole = f, related, whole
        self.symbols: dict[DimExpr, tuple[str, int]] = {}
        self.columns: Iterable[Column] = iter(zip(*(each.sizes for each in forms), strict=True))
        self.numbers = list(zip(*(each.numbers for each in forms), strict=True))
        self.expected: list[Dim] = []
        # The values of each symbol, and a dimension for what was met.
        self.values: list[dict[str, int]] = [{} for _ in forms]
        self.known: dict[Column, Dim] = {}

    def general(self) -> General:
        f, b = self.f, Builder(self.f.name)
        env: dict[Value, Value] = {}
        for p, name in zip(f.params, f.param_names, strict=True):
            env[p] = b.param(p.type.with_shape([self._next(new=True) for _ in p.type.shape]), name)
        opened: list[int] = []
        parameters: dict[Any, tuple[Value, int]] = {}
        fixed: list[bytes | int] = []
        for op in f.ops:
            b.loc = op.loc
            if op.name == "constant" and op.attrs["value"].array.ndim == 0:
                values = self.numbers[len(fixed)]
                if len(set(values)) == 1:
                    fixed.append(values[0])
                else:
                    # One parameter for what is one number in each of the functions.
                    number = (values, op.result.type.dtype)
                    if number not in parameters:
                        parameters[number] = b.param(op.result.type, f"number{len(opened)}"), len(fixed)
                        opened.append(len(fixed))
                    env[op.result], first = parameters[number]
                    fixed.append(first)
                    continue
            attrs = {k: self._opened(v) if k in OPEN else v for k, v in op.attrs.items()}
            made = b.emit_op(op.name, *[env[v] for v in op.operands], **attrs)
            for old, new in zip(op.results, made.results, strict=True):
                self._meet(old.type, new.type)
                env[old] = new
        function = b.build([env[r] for r in f.results])
        return General(function, tuple(self.expected), tuple(opened), tuple(fixed), self.symbols)

    def _meet(self, old: TensorType, new: TensorType) -> None:
        """What the type of a result is for all the forms."""
        if old.rank != new.rank or old.dtype is not new.dtype:
            raise TypeError("another type")
        for n, d in zip(old.shape, new.shape, strict=True):
            column = tuple([substitute(d, v) for v in self.values])
            if column[-1] != n:
                raise ValueError("another size")
            if not isinstance(d, int):
                self.known.setdefault(column, d)  # type: ignore[arg-type]

    def _opened(self, value: Any) -> Any:
        return tuple([self._opened(v) for v in value]) if isinstance(value, tuple) else self._next()

    def _next(self, new: bool = False) -> Dim:
        """The dimension at the next place; a symbol of its own if need be and `new`."""
        column = next(self.columns)  # type: ignore[call-overload]
        d = column[0] if len(set(column)) == 1 else self.known.get(column)
        if d is None and (self.related or not new):
            d = self._derived(column)
        if d is None and new:
            step = math.gcd(*column) if self.whole else 1
            name = name_of(len(self.values[0]), column[0] // step)
            d = symbol(name) * step
            assert isinstance(d, DimExpr)
            self.symbols[d] = name, step
            for values, n in zip(self.values, column, strict=True):
                values[name] = n // step
        if d is None:
            raise ValueError("a size of unknown origin")
        if not isinstance(d, int):
            self.known[column] = d
        self.expected.append(d)
        return d

    def _derived(self, column: Column) -> Dim | None:
        """A dimension of those values, by what was met. A wrong guess serves fewer functions."""
        for other, d in self.known.items():
            steps = {n - m for n, m in zip(column, other, strict=True)}
            if len(steps) == 1:
                return d + steps.pop()
            if (times := _times(column, other)) is not None:
                return d * times
            if (times := _times(other, column)) is not None:
                return d // times
            # What is left of something.
            wholes = {n + m for n, m in zip(column, other, strict=True)}
            if len(wholes) == 1:
                return wholes.pop() - d
        pairs = itertools.combinations_with_replacement(self.known.items(), 2)
        for (a, d), (b, e) in pairs:
            if (times := _times(column, tuple([n * m for n, m in zip(a, b, strict=True)]))) is not None:
                return d * e * times
        return None


def _times(column: Column, other: Column) -> int | None:
    """How many times the one is the other."""
    if 0 in other or column[0] % other[0]:
        return None
    times = column[0] // other[0]
    return times if all(n == times * m for n, m in zip(column, other, strict=True)) else None
