"""`@composite`: tensor code that is dispatched as one operation.

The function is traced with types only, once for each combination of fixed arguments and operand
types, and then runs as one fused program and is recorded as one `call`. Tensors and Python floats
among the arguments are operands; everything else is fixed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from graphc.ir.function import Builder, Function
from graphc.runtime.core import ABSTRACT, Tensor, abstract, rebind
from graphc.runtime.dispatch import Entry, apply_entry, device_of, number, remember, run_one
from graphc.runtime.errors import AbstractValueError, here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.precision import setting
from graphc.runtime.spec import Spec
from graphc.runtime.structure import Structure, flatten, unflatten
from graphc.runtime.trace import Tracer

F = TypeVar("F", bound=Callable[..., Any])
_FIXED = {int, bool, str, type(None)}


class _Arrays(Exception):
    """NumPy arrays or numbers are among the arguments."""


class _Traced:
    """One signature of a composite: its entry, the tensors it reads from outside, and how results are returned."""

    __slots__ = ("captured", "entry", "leaves", "single", "structure", "writes")

    def __init__(
        self,
        entry: Entry,
        captured: list[Tensor],
        structure: Structure,
        leaves: list[Any],
        writes: list[tuple[Tensor, int]],
    ) -> None:
        self.entry = entry
        self.captured = captured
        self.structure = structure
        self.leaves = leaves
        self.writes = writes
        self.single = structure is None and leaves == [0] and not writes


class Composite:
    """The callable that `@composite` makes."""

    def __init__(self, f: Callable[..., Any], name: str | None = None, noinline: bool = False) -> None:
        functools.update_wrapper(self, f)
        self._f = f
        self._noinline = noinline
        self._name = name or f.__name__
        self._locate = not f.__module__.startswith("graphc.")
        self._cache: dict[Any, _Traced] = {}
        # Whether Python floats are operands; a function that decides by their value gets them fixed.
        self._floats = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if state.active and local.tracer is not None and local.tracer.execute:
            # An integer of Python that is being recorded is fixed, as it is without a recording.
            if any(map(_may_hold_integer, args)):
                args = _mapped(args, _integer)
            if kwargs and any(map(_may_hold_integer, kwargs.values())):
                kwargs = _mapped(kwargs, _integer)
        try:
            return self._apply(args, kwargs)
        except _Arrays:
            return self._apply(_mapped(args, _from_array), _mapped(kwargs, _from_array))

    def _apply(self, args: Any, kwargs: dict[str, Any]) -> Any:
        key: list[Any] = [setting.level]
        tensors: list[Tensor] = []
        for a in args:
            if isinstance(a, Tensor):
                key.append(a._spec)
                tensors.append(a)
            else:
                self._key(a, key, tensors)
        for k, a in kwargs.items():
            key.append(k)
            self._key(a, key, tensors)
        signature = tuple(key)
        try:
            traced = self._cache.get(signature)
        except TypeError:
            raise TypeError(
                f"{self._name}: arguments that are not tensors or numbers must be hashable, and one of type "
                f"{', '.join(type(a).__name__ for a in (*args, *kwargs.values()) if _unhashable(a))} is not\n  at {here()}"
            ) from None
        if traced is None:
            traced = self._trace(args, kwargs, tensors)
            if traced is None:
                return self(*args, **kwargs)
            remember(self._cache, signature, traced)
        if traced.captured:
            tensors += traced.captured
        if traced.single:
            return run_one(traced.entry, tensors)
        outputs = apply_entry(traced.entry, tensors)
        for t, i in traced.writes:
            rebind(t, outputs[i], self._name)
        leaves = [outputs[x] if isinstance(x, int) else x[1] for x in traced.leaves]
        return unflatten(traced.structure, iter(leaves))

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else functools.partial(self, owner)

    def __repr__(self) -> str:
        return f"<composite {self._name}>"

    def _key(self, a: Any, key: list[Any], tensors: list[Tensor]) -> None:
        kind = a.__class__
        if isinstance(a, Tensor):
            key.append(a._spec)
            tensors.append(a)
        elif kind is float:
            if self._floats:
                t = number(a)
                key.append(t._spec)
                tensors.append(t)
            else:
                key.append(("float", a.hex()))
        elif kind in _FIXED:
            key.append(kind)
            key.append(a)
        elif kind is tuple or kind is list:
            key.append(kind)
            key.append(len(a))
            for v in a:
                self._key(v, key, tensors)
        elif kind is dict:
            key.append(dict)
            key.append(tuple(a))
            for v in a.values():
                self._key(v, key, tensors)
        elif isinstance(a, (np.ndarray, np.generic)):
            raise _Arrays
        else:
            key.append(kind)
            key.append(a)

    def _replace(self, a: Any, operands: Any) -> Any:
        """The argument with its operands, in the order of `_key`, replaced."""
        kind = a.__class__
        if isinstance(a, Tensor) or (kind is float and self._floats):
            return next(operands)
        if kind is tuple or kind is list:
            return kind(self._replace(v, operands) for v in a)
        if kind is dict:
            return {k: self._replace(v, operands) for k, v in a.items()}
        return a

    def _trace(self, args: Sequence[Any], kwargs: dict[str, Any], tensors: list[Tensor]) -> _Traced | None:
        tracer = Tracer(self._name, grad=False, locate=self._locate)
        try:
            with tracer:
                operands = []
                for t in tensors:
                    operand = abstract(t._spec)
                    operand._traced = (tracer, tracer.builder.param(t._spec.type))
                    operands.append(operand)
                source = iter(operands)
                given = [self._replace(a, source) for a in args]
                named = {k: self._replace(a, source) for k, a in kwargs.items()}
                result = self._f(*given, **named)
                return self._finish(tracer, result, [t._spec for t in tensors])
        except AbstractValueError:
            if self._floats and any(t._spec.weak for t in tensors):
                self._floats = False
                return None
            raise
        except AttributeError as error:
            if self._locate or not isinstance(error.obj, (int, bool, str, type(None), float, list, tuple, dict)):
                raise
            raise TypeError(
                f"{self._name}: {type(error.obj).__name__} is not a tensor; use graphc.asarray to make it one\n  at {here()}"
            ) from None

    def _finish(self, tracer: Tracer, result: Any, given: Sequence[Spec]) -> _Traced:
        leaves: list[Any] = []
        structure = flatten(result, leaves)
        values: list[Any] = []
        specs: list[Any] = []
        places: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                places.append(len(values))
                values.append(tracer.value_of(leaf))
                specs.append(leaf._spec)
            else:
                places.append(("constant", leaf))
        writes = []
        for x in tracer.externals:
            traced = x.traced
            if x.before[3] is ABSTRACT and traced is not None and not traced[0].is_external(x.tensor):
                raise TypeError(
                    f"{self._name} reads a tensor {x.tensor._spec} of the function around it; pass it as an argument"
                )
            current = x.tensor._traced
            if current is not None and current[1] is not x.value:
                writes.append((x.tensor, len(values)))
                values.append(tracer.value_of(x.tensor))
                specs.append(x.tensor._spec)
        b = tracer.builder
        outside = [x.value for x in tracer.externals]
        params = [v for v in b._params if not any(v is o for o in outside)] + outside
        body = Function(self._name, params, b._ops, values)
        operands = [*given, *(x.before[0] for x in tracer.externals)]
        device = device_of(self._name, [*operands, *specs])
        entry = Entry(self._name, _calling(body, self._noinline), operands=operands, device=device, specs=specs)
        return _Traced(entry, [x.tensor for x in tracer.externals], structure, places, writes)


def _mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with `change` applied to what they hold."""
    if x.__class__ is tuple or x.__class__ is list:
        return x.__class__(_mapped(v, change) for v in x)
    if x.__class__ is dict:
        return {k: _mapped(v, change) for k, v in x.items()}
    return change(x)


def _may_hold_integer(x: Any) -> bool:
    return x._spec.weak if isinstance(x, Tensor) else x.__class__ in _NESTED


_NESTED = {tuple, list, dict}


def _integer(x: Any) -> Any:
    weak = isinstance(x, Tensor) and x._spec.weak and x._spec.dtype.is_integer
    return operator.index(x) if weak else x


def _from_array(x: Any) -> Any:
    from graphc.runtime.interop import asarray

    return asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def _unhashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return not isinstance(x, (list, dict))
    return False


def _calling(body: Function, noinline: bool) -> Function:
    """A function that only calls `body`."""
    b = Builder(body.name)
    op = b.emit_op("call", *(b.param(t) for t in body.param_types), function=body, noinline=noinline)
    return b.build(op.results)


@overload
def composite(f: F) -> F: ...
@overload
def composite(f: None = None, *, name: str | None = None, noinline: bool = False) -> Callable[[F], F]: ...
def composite(f: Any = None, *, name: str | None = None, noinline: bool = False) -> Any:
    """Make a function of tensors one operation: one dispatch, one fused program, one `call` in dumps.

    The function must be pure tensor code: it may not look at values, and its Python side effects happen
    once for each signature. noinline: it is compiled by itself, once for all its calls, and shares no kernel with what is around
    them: for what is called very often and is worth a kernel each time, as the update of a parameter.

    >>> import graphc as gc
    >>> @gc.composite
    ... def swish(x, beta=1.0):
    ...     return x / (1 + gc.exp(-beta * x))
    >>> swish(gc.zeros(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    if f is None:
        return lambda g: Composite(g, name, noinline)
    return Composite(f, name, noinline)
