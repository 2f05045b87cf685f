"""Functions in static single assignment form: values, operations, functions, modules, the builder.

Invariants: a `Function` and everything in it is immutable; every operand is a parameter or the
result of an earlier operation of the same function; every attribute value is canonical (see
`freeze`), so that equality and hashing are structural.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from graphc.ir.types import DimExpr, DType, TensorType


@dataclass(frozen=True)
class Loc:
    """The Python line that an operation came from."""

    file: str
    line: int

    def __str__(self) -> str:
        return f'"{self.file}":{self.line}'


class DenseArray:
    """An immutable array held in an attribute; equality is equality of dtype, shape and bits."""

    __slots__ = ("_key", "array")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        held = np.array(array, order="C", copy=True)
        held.setflags(write=False)
        self.array = held
        self._key = (held.dtype.str, held.dtype.name, held.shape, held.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DenseArray) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"DenseArray({self.array!r})"


def freeze(value: Any) -> Any:
    """The canonical form of an attribute value.

    Attribute values are `bool`, `int`, `float`, `str`, `DType`, `DimExpr`, `DenseArray`,
    `Function`, `None`, or tuples of these.
    """
    if value is None or isinstance(value, (bool, str, DType, DimExpr, DenseArray, Function)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray):
        return DenseArray(value)
    if isinstance(value, (tuple, list)):
        return tuple(freeze(v) for v in value)
    raise TypeError(f"{value!r} cannot be an attribute of an operation")


def attr_key(value: Any) -> Any:
    """A hashable key that tells apart what `==` does not: 1 and 1.0 and True, 0.0 and -0.0, NaN."""
    if isinstance(value, float):
        return ("float", value.hex() if value == value else "nan")
    if isinstance(value, tuple):
        return tuple(attr_key(v) for v in value)
    if isinstance(value, Function):
        return value.key()
    return (type(value).__name__, value)


class Value:
    """One SSA value: a parameter or a result. Compared by identity; its name is the printer's."""

    __slots__ = ("type",)

    def __init__(self, type: TensorType) -> None:
        self.type = type

    def __repr__(self) -> str:
        return f"<value {self.type}>"


class Key(tuple[Any, ...]):
    """A deep key that is looked up often: it is hashed once."""

    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            self._hash = super().__hash__()
            return self._hash


Attrs = Mapping[str, Any]


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise TypeError("the attributes of an operation do not change")


class Attributes(dict[str, Any]):
    """What an operation has for attributes: canonical values, by name in ascending order. It never changes, so that copies share it."""

    __slots__ = ("_key",)
    _key: tuple[Any, ...]

    def __init__(self, attrs: Mapping[str, Any]) -> None:
        super().__init__({k: freeze(attrs[k]) for k in sorted(attrs)})

    def key(self) -> tuple[Any, ...]:
        """A hashable key that tells apart what `attr_key` does."""
        try:
            return self._key
        except AttributeError:
            self._key = tuple([(k, attr_key(v)) for k, v in self.items()])
            return self._key

    def __reduce__(self) -> tuple[Any, ...]:
        return (Attributes, (dict(self),))

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse


class Operation:
    """One application of an operation: `results = name operands {attrs} loc`."""

    __slots__ = ("attrs", "loc", "name", "operands", "results")
    attrs: Attributes

    def __init__(
        self,
        name: str,
        operands: Iterable[Value],
        attrs: Mapping[str, Any],
        results: Iterable[Value],
        loc: Loc | None = None,
    ) -> None:
        self.name = name
        self.operands = tuple(operands)
        self.attrs = attrs if isinstance(attrs, Attributes) else Attributes(attrs)
        self.results = tuple(results)
        self.loc = loc

    @property
    def result(self) -> Value:
        """The only result of an operation that has one."""
        (value,) = self.results
        return value

    def __repr__(self) -> str:
        types = ", ".join(str(v.type) for v in self.operands)
        return f"<{self.name}({types})>"


class Function:
    """A named straight line of operations. `params` and `results` are values."""

    __slots__ = ("_key", "_structure", "name", "ops", "param_names", "params", "results")

    def __init__(
        self,
        name: str,
        params: Iterable[Value],
        ops: Iterable[Operation],
        results: Iterable[Value],
        param_names: Iterable[str] | None = None,
    ) -> None:
        self.name = name
        self.params = tuple(params)
        self.ops = tuple(ops)
        self.results = tuple(results)
        names = tuple(param_names) if param_names is not None else ()
        self.param_names = names or tuple(f"p{i}" for i in range(len(self.params)))
        self._key: Any = None
        self._structure: Any = None

    @property
    def param_types(self) -> tuple[TensorType, ...]:
        return tuple(p.type for p in self.params)

    @property
    def result_types(self) -> tuple[TensorType, ...]:
        return tuple(r.type for r in self.results)

    def key(self) -> Any:
        """A hashable structural key: equal keys mean the same text but for source lines."""
        if self._key is None:
            number: dict[Value, int] = {}
            for p in self.params:
                number[p] = len(number)
            ops = []
            for op in self.ops:
                operands = tuple([number[v] for v in op.operands])
                for r in op.results:
                    number[r] = len(number)
                ops.append((op.name, operands, op.attrs.key(), tuple([r.type for r in op.results])))
            results = tuple([number[r] for r in self.results])
            self._structure = Key((self.param_types, tuple(ops), results))
            self._key = Key((self.name, self.param_names, self._structure))
        return self._key

    def structure(self) -> Any:
        """As `key`, without the names of the function and of its parameters."""
        self.key()
        return self._structure

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Function) and self.key() == other.key())

    def __hash__(self) -> int:
        return hash(self.key())

    def __str__(self) -> str:
        from graphc.ir.text import print_function

        return print_function(self)

    def __repr__(self) -> str:
        return f"<function @{self.name}, {len(self.ops)} operations>"

    def uses(self) -> dict[Value, int]:
        """How often each value is read, results of the function included."""
        count: dict[Value, int] = {}
        for op in self.ops:
            for v in op.operands:
                count[v] = count.get(v, 0) + 1
        for v in self.results:
            count[v] = count.get(v, 0) + 1
        return count


class Module:
    """Named functions in order; the first is the entry."""

    __slots__ = ("functions",)

    def __init__(self, functions: Iterable[Function]) -> None:
        table: dict[str, Function] = {}
        for f in functions:
            if f.name in table:
                raise ValueError(f"the module has two functions named @{f.name}")
            table[f.name] = f
        self.functions: Mapping[str, Function] = MappingProxyType(table)

    @property
    def entry(self) -> Function:
        return next(iter(self.functions.values()))

    def __iter__(self) -> Iterator[Function]:
        return iter(self.functions.values())

    def __getitem__(self, name: str) -> Function:
        return self.functions[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Module) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __str__(self) -> str:
        from graphc.ir.text import print_module

        return print_module(self)


class Builder:
    """Builds a function one operation at a time, inferring and checking every type.

    `b.emit("add", x, y)` and `b.add(x, y)` are the same. Both return the result, or a tuple of
    results for an operation with several. `b.loc` is attached to what is emitted next.

    >>> from graphc.ir.function import Builder
    >>> from graphc.ir.types import TensorType
    >>> b = Builder("twice")
    >>> x = b.param(TensorType.parse("f32[4]"), "x")
    >>> f = b.build([b.add(x, x)])
    >>> len(f.ops)
    1
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loc: Loc | None = None
        self._params: list[Value] = []
        self._names: list[str] = []
        self._ops: list[Operation] = []

    def param(self, type: TensorType, name: str | None = None) -> Value:
        value = Value(type)
        self._params.append(value)
        self._names.append(name or f"p{len(self._names)}")
        return value

    def emit_op(self, name: str, *operands: Value, **attrs: Any) -> Operation:
        """Append an operation and return it. Raises the type rule's error if it does not fit."""
        from graphc.ir.registry import lookup

        definition = lookup(name)
        frozen = Attributes(definition.complete(attrs))
        types = definition.infer(tuple([v.type for v in operands]), frozen)
        op = Operation(name, operands, frozen, [Value(t) for t in types], self.loc)
        self._ops.append(op)
        return op

    def emit(self, name: str, *operands: Value, **attrs: Any) -> Any:
        op = self.emit_op(name, *operands, **attrs)
        return op.results[0] if len(op.results) == 1 else op.results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        # Operations named like Python keywords are spelled with a final underscore (`b.and_`).
        opcode = name.rstrip("_")
        return lambda *operands, **attrs: self.emit(opcode, *operands, **attrs)

    def append(self, op: Operation) -> Operation:
        """Append an existing operation object as it is (its operands must be in scope)."""
        self._ops.append(op)
        return op

    def copy(self, op: Operation, env: dict[Value, Value], function: Function | None = None) -> None:
        """Append `op` with the values of `env` for operands and results of its own, which join `env`; `b.loc` is its line.

        function: what a call calls instead, of the same type.
        """
        attrs = op.attrs if function is None else Attributes({**op.attrs, "function": function})
        made = Operation(op.name, [env[v] for v in op.operands], attrs, [Value(r.type) for r in op.results], self.loc)
        self._ops.append(made)
        env.update(zip(op.results, made.results, strict=True))

    def inline(self, function: Function, *args: Value) -> tuple[Value, ...]:
        """Copy the body of `function` applied to `args`; returns its results."""
        env: dict[Value, Value] = dict(zip(function.params, args, strict=True))
        for op in function.ops:
            copy = Operation(
                op.name,
                [env[v] for v in op.operands],
                op.attrs,
                [Value(r.type) for r in op.results],
                op.loc or self.loc,
            )
            self._ops.append(copy)
            env.update(zip(op.results, copy.results, strict=True))
        return tuple(env[r] for r in function.results)

    def build(self, results: Iterable[Value]) -> Function:
        return Function(self.name, self._params, self._ops, results, self._names)
