"""Making a recording: one call with a tracer listening, and the Python state compared before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.codegen.report import stage
from graphc.ir.function import Builder, Function, Value
from graphc.runtime.core import ABSTRACT, Meta, Tensor, abstract, alias, make
from graphc.runtime.device import CPU
from graphc.runtime.dispatch import Entry, device_of, number
from graphc.runtime.early import early
from graphc.runtime.graph import Graph, Plan, target_of
from graphc.runtime.guards import Difference, Slot, Snapshot, State
from graphc.runtime.interop import item
from graphc.runtime.node import Backward
from graphc.runtime.recording import History, Made, Recording, Source, flags_of
from graphc.runtime.replay import Arguments
from graphc.runtime.spec import Spec
from graphc.runtime.structure import flatten, unflatten
from graphc.runtime.trace import Tracer

Promoted = dict[tuple[int, Any], Slot]


def record(
    f: Any, call: Callable[[Sequence[Any]], Any], arguments: Arguments, leaves: list[Any], promoted: Promoted, state: State
) -> tuple[Any, Recording | None, str | None]:
    """Run a call while a tracer listens; its operations run as one program in the end, or when Python looks at a value.

    Returns its result, the recording or None, and why there is none; a reason that begins with "!" holds for every call.
    Numbers of the Python state that turn out to change are added to `promoted`. Where an operation fails that waited
    (an index out of range), Python was already past it: all state is put back, as if there had been no call.
    """
    roots = [f, *(x for x in leaves if not isinstance(x, Tensor))]
    before = state.snapshot(roots, frozenset(promoted))
    tracer = Tracer(_name(f), execute=True)
    given: list[Any] = list(leaves)
    recording: Recording | None = None
    reason: str | None = None
    try:
        with stage("trace"), _Substituted(promoted, tracer) as scalars, tracer:
            for i, x in enumerate(leaves):
                if x.__class__ is float or x.__class__ is int:
                    given[i] = _variable(x)
            result = call(given)
            difference = Difference(before)
            for c, k in difference.numbers:
                promoted[(id(c), k)] = (c, k)
            if tracer.impure is not None:
                reason = "!" + tracer.impure
            elif difference.broken is not None or difference.numbers:
                reason = difference.broken or "numbers of the Python state change"
            else:
                maker = _Maker(tracer, arguments, leaves, given, before, scalars)
                recording, reason = maker.make(result, difference)
                if recording is not None:
                    maker.run_first(recording)
            if recording is None:
                tracer.run_waiting()
    except BaseException:
        if tracer.failed:
            before.restore()
        raise
    return _values_out(result, tracer), recording, reason


class _Substituted:
    """Puts tensors in place of numbers of the Python state, and the numbers back."""

    def __init__(self, promoted: Promoted, tracer: Tracer) -> None:
        self.slots = list(promoted.values())
        self.tracer = tracer
        self.tensors: list[Tensor] = []
        self.values: list[int | float] = []
        self.kinds: list[type] = []

    def __enter__(self) -> _Substituted:
        for c, k in self.slots:
            value = c[k]
            self.values.append(value)
            self.kinds.append(type(value))
            self.tensors.append(_variable(value))
            c[k] = self.tensors[-1]
        return self

    def changed(self) -> list[tuple[Any, Any, Tensor, type]]:
        """(container, key, new tensor, kind) of the numbers that the call changed."""
        slots = zip(self.slots, self.tensors, self.kinds)
        return [(c, k, c[k], kind) for (c, k), t, kind in slots if isinstance(c[k], Tensor) and c[k] is not t]

    def __exit__(self, *exc: object) -> None:
        for (c, k), value, kind in zip(self.slots, self.values, self.kinds):
            if self.tracer.failed:
                c[k] = value
            elif isinstance(c[k], Tensor):
                c[k] = kind(item(alias(c[k])))


def _variable(value: int | float) -> Tensor:
    """A number as an input: a weak tensor that is not a constant."""
    t = alias(number(value))
    t._traced = None
    return t


def _values_out(result: Any, tracer: Tracer) -> Any:
    """`result` with values, and with weak tensors, which stand for Python numbers, as numbers."""
    leaves: list[Any] = []
    structure = flatten(result, leaves)
    for x in leaves:
        if isinstance(x, Tensor) and x._strides is ABSTRACT:
            tracer.give_value(x)
    if not any(isinstance(x, Tensor) and x._spec.weak for x in leaves):
        return result
    return unflatten(structure, iter([item(x) if isinstance(x, Tensor) and x._spec.weak else x for x in leaves]))


def _name(f: Any) -> str:
    name = getattr(f, "__name__", type(f).__name__)
    clean = "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_")
    return clean if clean[:1].isalpha() else f"f_{clean}"


class _Maker:
    """Turns what a tracer saw into a recording; works while the tracer still listens."""

    def __init__(
        self,
        tracer: Tracer,
        arguments: Arguments,
        leaves: list[Any],
        given: list[Any],
        before: Snapshot,
        scalars: _Substituted,
    ) -> None:
        self.arguments = arguments
        self.tracer = tracer
        self.before = before
        self.scalars = scalars
        self.results: list[Value] = []
        self.specs: list[Spec] = []
        self.made: list[Made] = []
        self._numbers: dict[int, int] = {}
        self._tensors: list[Tensor] = []
        self._places: dict[int, Source] = {}
        for i, (x, g) in enumerate(zip(leaves, given)):
            if isinstance(g, Tensor):
                self._places.setdefault(id(g), ("arg", i) if g is x else ("number", i))
        for (c, k), t in zip(scalars.slots, scalars.tensors):
            self._places[id(t)] = ("scalar", c, k)
        self._owners: dict[Meta, Tensor] = dict(tracer.owners)
        for external in tracer.externals:
            if external.meta is not None:
                self._owners.setdefault(external.meta, external.tensor)
        # A gradient from before is reached through its leaf.
        for meta, grad in tracer.grads.items():
            if grad is not None and meta in self._owners:
                self._places.setdefault(id(grad), ("grad", self._source(self._owners[meta])))

    def _source(self, t: Tensor) -> Source:
        return self._places.get(id(t), ("held", t))

    def _result(self, value: Value, spec: Spec) -> int:
        self.results.append(value)
        self.specs.append(spec.on(spec.device) if spec.weak else spec)
        return len(self.results) - 1

    def _make(self, t: Tensor) -> int:
        """The number of a tensor that the call made."""
        known = self._numbers.get(id(t))
        if known is None:
            known = self._numbers[id(t)] = len(self.made)
            self._tensors.append(t)
            self.made.append(Made(self._result(self.tracer.value_of(t), t._spec), t._spec, None))
        return known

    def _is_made(self, t: Tensor) -> bool:
        """Whether the call made `t`, rather than finding it outside."""
        traced = t._traced
        return traced is not None and traced[0] is self.tracer and not self.tracer.is_external(t)

    def make(self, result: Any, difference: Difference) -> tuple[Recording | None, str | None]:
        """The recording, or None and why there is none."""
        tracer = self.tracer
        slots = []
        for c, k, old, new in difference.tensors:
            if not self._is_made(new):
                return None, f"an attribute {k!r} gets a tensor that the function did not make"
            slots.append((c, k, self._make(new)))
            self._places.setdefault(id(old), ("slot", c, k))
        returned: list[Any] = []
        structure = flatten(result, returned)
        leaves = [self._leaf(x) for x in returned]
        grads = self._grads()
        numbers = [
            (c, k, self._result(tracer.value_of(t), t._spec.on(CPU)), kind) for c, k, t, kind in self.scalars.changed()
        ]
        history = self._history()
        writes = [
            (i, self._result(tracer.value_of(x.tensor), x.tensor._spec))
            for i, x in enumerate(tracer.externals)
            if x.tensor._traced is not None and x.tensor._traced[1] is not x.value
        ]
        b = tracer.builder
        sources = [self._source(x.tensor) for x in tracer.externals]
        specs = [x.before[0] for x in tracer.externals]
        known = early(
            b.name,
            [x.value for x in tracer.externals],
            specs,
            b._ops,
            [d.value for d in tracer.decisions],
            [d.spec for d in tracer.decisions],
        )
        first_decision = len(self.results)
        for d in tracer.decisions[len(known.places) :]:
            self._result(d.value, d.spec)
        function = Function(b.name, b._params, b._ops, self.results, b._names)
        flags = flags_of(x.meta for x in tracer.externals)
        r = Recording(function, self.arguments, sources, specs, flags, self.specs)
        r.decisions, r.outcomes = tracer.decisions, [d.outcome for d in tracer.decisions]
        r.early, r.first_decision = known, first_decision
        r.made, r.writes, r.slots, r.numbers, r.grads = self.made, writes, slots, numbers, grads
        r.leaves, r.structure, r.history = leaves, structure, history
        r.checks = self.before.checks({(id(c), k) for c, k, _ in slots})
        return r, None

    def run_first(self, r: Recording) -> None:
        """Compute what waits: by the recording's program, from the inputs as they were before the call."""
        tracer = self.tracer
        if tracer.waiting:
            inputs = [make(*x.before) for x in tracer.externals]
            try:
                tracer.computed.update(zip(r.function.results, r.compute(inputs)))
            except BaseException:
                tracer.failed = True
                raise
        for t in self._tensors:
            if t._strides is ABSTRACT:
                tracer.give_value(t)
            t._traced = None

    def _leaf(self, x: Any) -> tuple[str, Any]:
        tracer = self.tracer
        if not isinstance(x, Tensor):
            return ("constant", x)
        if x._spec.weak:
            return ("number", self._result(tracer.value_of(x), x._spec.on(CPU)))
        if self._is_made(x):
            return ("made", self._make(x))
        external = tracer.external(x)
        return ("input", next(i for i, e in enumerate(tracer.externals) if e is external))

    def _grads(self) -> list[tuple[Source, bool | None, Any, Any]]:
        found = []
        for meta, old in self.tracer.grads.items():
            owner = self._owners.get(meta)
            # A leaf that the call itself made is gone with it.
            if owner is not None and not self._is_made(owner):
                new = meta.grad
                unread = meta in self.tracer.unread
                # What was set to None before anybody read it is None whatever it was.
                now: Any = None if new is None and unread else "kept" if new is old else None if new is None else self._make(new)
                was_none = None if unread and now != "kept" else old is None
                found.append((self._source(owner), was_none, None if old is None else old._spec, now))
        return found

    def _history(self) -> History | None:
        """How the made tensors that have a history are differentiated; what that saves becomes results."""
        tracer = self.tracer
        outs: list[Tensor] = []
        for i, t in enumerate(self._tensors):
            meta = t._meta
            if meta is not None and meta.node is not None and meta.node.number >= tracer.first_node:
                self.made[i] = self.made[i]._replace(differentiable=len(outs))
                outs.append(t)
        if not outs:
            return None
        b = Builder(tracer.builder.name)
        specs = [t._spec for t in outs]
        function = b.build([b.param(s.type) for s in specs])
        entry = Entry(b.name, function, operands=specs, device=device_of(b.name, specs), specs=specs)
        graph = Graph(outs, None, tracer.first_node)
        if any(node.saved is None for node in graph.nodes):
            return History(entry, None, (), ())
        plan = Plan(graph, [abstract(t._spec) for t in outs])
        params = {x.value: ~i for i, x in enumerate(tracer.externals)}
        saved = []
        for t in plan.inputs:
            v = tracer.value_of(t)
            saved.append(params[v] if v in params else self._result(v, t._spec))
        sources = {target_of(meta): self._source(owner) for meta, owner in self._owners.items()}
        edges = tuple(sources[t] for t in graph.targets if t in sources)
        if len(edges) < len(graph.targets):
            return History(entry, None, (), ())
        back = Backward(plan.entry().function, (), (), tuple(range(len(edges))), opaque=True)
        return History(entry, back, edges, tuple(saved))
