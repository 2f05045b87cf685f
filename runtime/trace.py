"""Tracing: a `Tracer` listens to the operations of its thread and writes them into an IR function.

It listens with types only (for composites and `trace_function`), or with values to come (`execute`, for
`gc.compile`): operations then wait until Python looks at a value, so that a call that never does runs as
one program from the first time on. Tensors that come from outside become parameters; their new values, if
they are rebound, become results. Invariant: after a tracer has ended, every outside tensor is as before it
(types only, or an operation that waited failed) or has its new value (`execute`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from graphc.ir.function import Builder, DenseArray, Function, Value
from graphc.ir.types import TensorType
from graphc.runtime.core import ABSTRACT, Meta, Tensor, abstract, alias, make, values_of
from graphc.runtime.device import CPU, resolve
from graphc.runtime.dispatch import Entry, execute
from graphc.runtime.errors import AbstractValueError, describe, here, loc_of, user_frame
from graphc.runtime.grad_mode import local, state
from graphc.runtime.node import next_number
from graphc.runtime.spec import Spec, of_type
from graphc.runtime.structure import Structure, flatten

# A tensor of more bytes than this that Python looks at is not worth comparing on every call.
OBSERVABLE = 1024


class External:
    """A tensor from outside: its parameter, and how it was before."""

    __slots__ = ("before", "meta", "tensor", "traced", "value", "written")

    def __init__(self, tensor: Tensor, value: Value) -> None:
        self.tensor = tensor
        self.value = value
        self.before = (tensor._spec, tensor._buffer, tensor._address, tensor._strides)
        self.meta = tensor._meta
        self.traced = tensor._traced
        self.written = False


class Decision(NamedTuple):
    """A value that Python looked at: where it is in the function, what it was, and the user's line."""

    value: Value
    outcome: bytes
    line: str
    spec: Spec


class Tracer:
    """Writes what its thread does into `builder`; a context manager."""

    def __init__(self, name: str, execute: bool = False, grad: bool | None = None, locate: bool = True) -> None:
        self.builder = Builder(name)
        self.execute = execute
        self.locate = locate
        self.grad = grad
        self.externals: list[External] = []
        self.decisions: list[Decision] = []
        self.impure: str | None = None
        self.first_node = next_number()
        self._by_id: dict[int, External] = {}
        self.grads: dict[Meta, Tensor | None] = {}
        self.owners: dict[Meta, Tensor] = {}
        self.unread: set[Meta] = set()
        # Operations that wait: (entry, operands as tensors or values, results), and what has been computed.
        self.waiting: list[tuple[Entry, list[Tensor | Value], Sequence[Value]]] = []
        self.computed: dict[Value, Tensor] = {}
        # Whether an operation that waited failed when Python was past it: then the call counts as not made.
        self.failed = False
        self.over = False

    # the context

    def __enter__(self) -> Tracer:
        self._outer = (local.tracer, local.grad)
        local.tracer = self
        if self.grad is not None:
            local.grad = self.grad
        state.active += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        state.active -= 1
        local.tracer, local.grad = self._outer
        self.over = True
        try:
            if self.execute and not self.failed:
                self._settle_outside(error)
        finally:
            for x in self.externals:
                x.tensor._traced = x.traced
            if self.failed or not self.execute:
                self._restore()

    # values

    def value_of(self, t: Tensor) -> Value:
        """The IR value of a tensor; a parameter or a constant if it comes from outside."""
        traced = t._traced
        if traced is not None:
            if traced[0] is self:
                value: Value = traced[1]
                return value
            if traced[0] is None:
                data = np.asarray(traced[1]).astype(t._spec.dtype.numpy)
                constant: Value = self.builder.emit("constant", value=DenseArray(data))
                return constant
        return self.external(t).value

    def external(self, t: Tensor) -> External:
        """The record of a tensor from outside, made when it is first met."""
        known = self._by_id.get(id(t))
        if known is None:
            if t._strides is ABSTRACT and t._traced is not None and t._traced[0] is not None and t._traced[0].over:
                t._traced[0].give_value(t)  # a call that raised left it behind
            known = External(t, self.builder.param(t._spec.type))
            t._traced = (self, known.value)
            self._by_id[id(t)] = known
            self.externals.append(known)
        return known

    def is_external(self, t: Tensor) -> bool:
        """Whether `t` is known to come from outside."""
        return id(t) in self._by_id

    def input(self, type: Any, name: str | None = None) -> Tensor:
        """A parameter of this type, as a tensor without a value."""
        spec = of_type(type, False, resolve(None)) if isinstance(type, TensorType) else type
        t = abstract(spec)
        t._traced = (self, self.builder.param(spec.type, name))
        return t

    # what dispatch and tensors tell

    def apply(self, entry: Entry, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Write the operation down, to be run later if this tracer computes values."""
        values = [self.value_of(t) for t in inputs]
        outputs = [abstract(s) for s in entry.specs]
        if self.locate:
            self.builder.loc = loc_of(user_frame(2))
        results = self.builder.inline(entry.function, *values)
        if self.execute:
            held: list[Tensor | Value] = [
                v if t._strides is ABSTRACT else make(t._spec, t._buffer, t._address, t._strides)
                for t, v in zip(inputs, values)
            ]
            self.waiting.append((entry, held, results))
        for t, v in zip(outputs, results):
            t._traced = (self, v)
        return outputs

    def run_waiting(self) -> None:
        """Run the operations that wait, one by one."""
        waiting, self.waiting = self.waiting, []
        outer, local.tracer = local.tracer, None
        try:
            for entry, held, results in waiting:
                operands = [self.computed[x] if isinstance(x, Value) else x for x in held]
                self.computed.update(zip(results, execute(entry, operands)))
        except BaseException:
            self.failed = True
            raise
        finally:
            local.tracer = outer

    def give_value(self, t: Tensor) -> bool:
        """Give a tensor of this tracer the value it stands for, computing it if need be; False if there is none."""
        traced = t._traced
        if not self.execute or traced is None or traced[0] is not self:
            return False
        if traced[1] not in self.computed:
            self.run_waiting()
        value = self.computed.get(traced[1])
        if value is None:
            return False
        t._buffer, t._address, t._strides = value._buffer, value._address, value._strides
        state.stamp = object()
        return True

    def _settle_outside(self, error: BaseException | None) -> None:
        """Give tensors from outside their new values."""
        try:
            if error is not None:
                # What the call left behind is computed of what it read, not of what that is later.
                self.run_waiting()
            for x in self.externals:
                if x.tensor._strides is ABSTRACT:
                    self.give_value(x.tensor)
        except Exception:
            if error is None:
                raise

    def _restore(self) -> None:
        """Tensors from outside and gradients as they were before."""
        for x in self.externals:
            x.tensor._spec, x.tensor._buffer, x.tensor._address, x.tensor._strides = x.before
            x.tensor._meta = x.meta
        state.stamp = object()
        for meta, grad in self.grads.items():
            meta.grad = grad

    def note_write(self, t: Tensor) -> None:
        """A tensor is about to be rebound."""
        traced = t._traced
        if traced is None or traced[0] is not self or id(t) in self._by_id:
            self.external(t).written = True

    def see(self, t: Tensor) -> None:
        """Another tensor is about to get the value of `t`: if that comes from outside, it is a parameter from here on."""
        if t._traced is None or (t._traced[0] is not None and t._traced[0] is not self):
            self.external(t)

    def settled(self, t: Tensor) -> Tensor:
        """`t`, a Python number as the constant that it is here."""
        self.see(t)
        if t._traced is not None and t._traced[0] is None:
            value = self.value_of(t)
            t = alias(t)
            t._traced = (self, value)
        return t

    def note_constant(self, t: Tensor, data: Any) -> None:
        """A tensor was made from Python numbers."""
        value: Value = self.builder.emit("constant", value=DenseArray(np.asarray(data, dtype=t._spec.dtype.numpy)))
        t._traced = (self, value)

    def note_foreign(self, t: Tensor) -> None:
        """Memory of another library came in."""
        if self.execute:
            self.impure = f"a NumPy array becomes a tensor at {here()}; pass it as an argument"

    def observe(self, t: Tensor) -> None:
        """Python looks at the value of a tensor."""
        if not self.execute:
            self.need_value(t)
            return
        traced = t._traced
        if traced is not None and traced[0] is None:
            return
        if t._spec.nbytes > OBSERVABLE:
            self.impure = f"Python reads a tensor {t._spec} at {here()}; read it outside the compiled function"
            return
        outcome = np.ascontiguousarray(values_of(t)).tobytes()
        self.decisions.append(Decision(self.value_of(t), outcome, describe(user_frame(2)), t._spec.on(CPU)))

    def need_value(self, t: Tensor) -> None:
        """Raise, if the tensor has no value."""
        if t._strides is ABSTRACT or (t._traced is not None and t._traced[0] is self):
            raise AbstractValueError(
                f"the value of a tensor {t._spec} is needed while the function is traced with types only\n  at {here()}\n"
                "use tensor operations (where, select by index) instead of Python's if, int(), item() or tolist()"
            )

    def grad_of(self, t: Tensor) -> Tensor | None:
        """`t.grad`, remembering what it was at first."""
        if t._meta is None:
            return None
        if t._meta.node is None:
            self.owners.setdefault(t._meta, t)
            self.touch_grad(t._meta)
        return t._meta.grad

    def set_grad(self, t: Tensor) -> None:
        """`t.grad` is about to be set; if nobody read it before, what it was does not matter."""
        if t._meta is not None and t._meta.node is None:
            if t._meta not in self.grads:
                self.unread.add(t._meta)
            self.grad_of(t)

    def touch_grad(self, meta: Meta) -> None:
        """The gradient of a leaf is about to be read or set."""
        if meta not in self.grads:
            self.grads[meta] = meta.grad


class Traced(NamedTuple):
    """A function traced from Python.

    function: parameters are the inputs, then `captured`; results are the leaves of the returned
    structure, then the new values of captured tensors. captured: the tensors read from outside.
    structure: for `structure.unflatten`; leaves: what stands at each leaf, a result number or ("constant", object).
    writes: (index in captured, index in results). names: the names of all parameters.
    """

    function: Function
    captured: list[Tensor]
    structure: Structure
    leaves: list[Any]
    writes: list[tuple[int, int]]


def trace_function(
    f: Callable[..., Any],
    inputs: Iterable[Any],
    *,
    name: str | None = None,
    grad: bool = True,
    names: dict[int, str] | None = None,
) -> Traced:
    """Trace `f` with types only.

    inputs: a type (`TensorType` or its text) for each argument, or nested structures of them; dimensions may
    be symbols. Parameters and other tensors that `f` reads are captured. names: id of a tensor -> name of
    its parameter. Raises `AbstractValueError` where `f` needs a value.
    """
    arguments = list(inputs)
    label = str(name or getattr(f, "__name__", type(f).__name__))
    known = _names_of(f) if names is None else names
    with Tracer(_identifier(label), grad=grad) as tracer:
        args = [_input(tracer, t, n) for t, n in zip(arguments, _argument_names(f, len(arguments)))]
        leaves: list[Any] = []
        structure = flatten(f(*args), leaves)
        places: list[Any] = []
        results: list[Value] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                places.append(len(results))
                results.append(tracer.value_of(leaf))
            else:
                places.append(("constant", leaf))
        writes = []
        for i, x in enumerate(tracer.externals):
            current = x.tensor._traced
            if current is not None and current[1] is not x.value:
                writes.append((i, len(results)))
                results.append(tracer.value_of(x.tensor))
    b = tracer.builder
    labels = list(b._names)
    params = {id(v): i for i, v in enumerate(b._params)}
    for x in tracer.externals:
        if id(x.tensor) in known:
            labels[params[id(x.value)]] = _identifier(known[id(x.tensor)])
    order = [*(i for i, v in enumerate(b._params) if not any(v is x.value for x in tracer.externals))]
    order += [params[id(x.value)] for x in tracer.externals]
    function = Function(b.name, [b._params[i] for i in order], b._ops, results, _unique([labels[i] for i in order]))
    return Traced(function, [x.tensor for x in tracer.externals], structure, places, writes)


def _input(tracer: Tracer, spec: Any, name: str) -> Any:
    if isinstance(spec, str):
        spec = TensorType.parse(spec)
    if isinstance(spec, TensorType):
        return tracer.input(spec, name)
    if isinstance(spec, (list, tuple)):
        return type(spec)(_input(tracer, s, f"{name}_{i}") for i, s in enumerate(spec))
    if isinstance(spec, dict):
        return {k: _input(tracer, s, f"{name}_{k}") for k, s in spec.items()}
    raise TypeError(f'an input is a type such as "f32[B, 8]", not {spec!r}')


def _argument_names(f: Any, count: int) -> list[str]:
    target = getattr(f, "forward", f)
    try:
        found = [p.name for p in inspect.signature(target).parameters.values() if p.kind in (0, 1)]
    except (TypeError, ValueError):
        found = []
    return [*found, *(f"input{i}" for i in range(len(found), count))][:count]


def _names_of(f: Any) -> dict[int, str]:
    out: dict[int, str] = {}
    owner = f if hasattr(f, "named_parameters") else getattr(f, "__self__", None)
    for kind in ("named_parameters", "named_buffers"):
        if owner is not None and hasattr(owner, kind):
            for name, t in getattr(owner, kind)():
                out.setdefault(id(t), name)
    return out


def _identifier(name: str) -> str:
    clean = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return clean if clean[:1].isalpha() or clean[:1] == "_" else f"_{clean}"


def _unique(names: list[str]) -> list[str]:
    seen: set[str] = set()
    out = []
    for name in names:
        candidate, i = name, 1
        while candidate in seen:
            candidate, i = f"{name}_{i}", i + 1
        seen.add(candidate)
        out.append(candidate)
    return out


