"""One recorded call of a compiled function: its program, where its inputs come from, what it changes.

Invariants: a recording is made from a call that ended without an exception; `run` changes nothing
before every outcome is known to be the recorded one, unless there are no outcomes to check, and
then tensors that nobody else holds are updated in place.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from graphc.ir.function import Function
from graphc.runtime.backend import Program, compile_function
from graphc.runtime.core import Meta, Tensor, alias, copy_bytes, empty, make, make_contiguous
from graphc.runtime.device import CPU
from graphc.runtime.dispatch import ALIGNED, Entry, align, device_of, number
from graphc.runtime.errors import DeviceIndexError, explain
from graphc.runtime.grad_mode import local
from graphc.runtime.interop import item
from graphc.runtime.node import Backward, Node
from graphc.runtime.spec import Spec
from graphc.runtime.structure import Structure, unflatten
from graphc.runtime.trace import Decision


class Mismatch(Exception):
    """Python would have decided differently; `outcomes` are the values up to the first other one."""

    def __init__(self, outcomes: list[bytes]) -> None:
        super().__init__()
        self.outcomes = outcomes


# Where a tensor comes from in a call: ("arg", leaf), ("number", leaf), ("held", tensor), ("slot", container, key),
# ("scalar", container, key) or ("grad", source of the leaf tensor).
Source = tuple[Any, ...]


class Made(NamedTuple):
    """A tensor that the function makes: its result, and its output among those with gradients (or None)."""

    result: int
    spec: Spec
    differentiable: int | None


class History(NamedTuple):
    """How results are differentiated outside the function.

    back: None if the saved values were freed by a backward inside. edges: parameters with gradients, in the order of
    the gradients. saved: result numbers (>= 0) or ~parameter numbers.
    """

    entry: Entry
    back: Backward | None
    edges: tuple[Source, ...]
    saved: tuple[int, ...]


_spec_of = operator.attrgetter("_spec")
_strides_of = operator.attrgetter("_strides")
_address_of = operator.attrgetter("_address")
_meta_of = operator.attrgetter("_meta")


class Recording:
    """See the head of this file.

    sources: where each parameter comes from; specs, flags: its type, and whether it requires gradients (see `flags_of`).
    made: tensors that are new. writes: (parameter, result) where a tensor from outside gets a new value. slots:
    (container, key, made) where an attribute gets a new tensor. numbers: (container, key, result, kind) where it gets a
    number. grads: (leaf, whether `.grad` was None (None: it does not matter), the type it had, made | None | "kept"). leaves: of what is returned.
    guard: whether the Python state is as it was.
    """

    def __init__(
        self, function: Function, sources: list[Source], specs: list[Spec], flags: list[int], results: list[Spec]
    ) -> None:
        self.function = function
        self.device = device_of(function.name, [*specs, *results])
        self.decisions: list[Decision] = []
        self.first_decision = 0
        self.outcomes: list[bytes] = []
        self.made: list[Made] = []
        self.writes: list[tuple[int, int]] = []
        self.slots: list[tuple[Any, Any, int]] = []
        self.numbers: list[tuple[Any, Any, int, type]] = []
        self.grads: list[tuple[Source, bool | None, Spec | None, Any]] = []
        self.structure: Structure = None
        self.leaves: list[tuple[str, Any]] = []
        self.history: History | None = None
        self.guard: Callable[[], bool] = _always
        self._inputs_wanted, self._flags = specs, flags
        self._results = results
        self._program: Program | None = None
        self._held = [s[1] if s[0] == "held" else None for s in sources]
        self._others = [(i, s) for i, s in enumerate(sources) if s[0] != "held"]

    # checking

    def prepare(self, leaves: Sequence[Any]) -> list[Tensor] | None:
        """The inputs of a call, or None if the Python state or a type is not as recorded."""
        if not self.guard():
            return None
        for source, none, spec, _ in self.grads:
            if none is None:
                continue
            meta = resolve(source, leaves)._meta
            grad = None if meta is None else meta.grad
            if (grad is None) is not none or (grad is not None and grad._spec is not spec):
                return None
        inputs: list[Any] = list(self._held)
        try:
            for i, source in self._others:
                inputs[i] = resolve(source, leaves)
        except (KeyError, IndexError, AttributeError, TypeError):
            return None
        if list(map(_spec_of, inputs)) != self._inputs_wanted:
            return None
        return inputs if flags_of(map(_meta_of, inputs)) == self._flags else None

    def agrees(self, known: list[bytes]) -> bool:
        """Whether the recorded outcomes begin as `known`, the outcomes of this call as far as known."""
        return self.outcomes[: len(known)] == known[: len(self.outcomes)]

    # running

    def run(self, leaves: Sequence[Any], inputs: list[Tensor]) -> Any:
        """Run the program and apply its changes. Raises `Mismatch` if an outcome is another."""
        program = self._program or self._compile()
        if any(map(operator.is_not, map(_strides_of, inputs), repeat(None))):
            for t in inputs:
                if t._strides is not None:
                    make_contiguous(t)
        if self.device is not CPU:
            for t in inputs:
                if t._address & ALIGNED and t._spec.device is not CPU:
                    align(t)
        targets: dict[int, Tensor] = {}
        for i, j in program.donated:
            t = inputs[i]
            if not _exclusive(t):
                _own(t)
            targets[j] = t
        outputs = [targets[j] if j in targets else empty(s) for j, s in enumerate(self._results)]
        addresses = list(map(_address_of, inputs))
        try:
            program.run(addresses, list(map(_address_of, outputs)))
        except Exception as error:
            if self.decisions and isinstance(error, (IndexError, ValueError)) and not _of_another(error, program):
                raise Mismatch([]) from None
            told = explain(error, self.function.name, ())
            raise told from told.__cause__
        if self.decisions:
            self._check(outputs)
        return self._commit(leaves, inputs, outputs)

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        """The results for these inputs, which stay as they are."""
        program = self._program or self._compile()
        for t in inputs:
            if t._strides is not None:
                make_contiguous(t)
            if t._address & ALIGNED and t._spec.device is not CPU:
                align(t)
        targets = {}
        for i, j in program.donated:
            _own(inputs[i])
            targets[j] = inputs[i]
        outputs = [targets[j] if j in targets else empty(s) for j, s in enumerate(self._results)]
        try:
            program.run([t._address for t in inputs], [t._address for t in outputs])
        except Exception as error:
            told = explain(error, self.function.name, ())
            raise told from told.__cause__
        return outputs

    def _compile(self) -> Program:
        kept = {~s for s in self.history.saved if s < 0} if self.history is not None else set()
        donate = () if self.decisions else tuple((i, j) for i, j in self.writes if i not in kept)
        self._program = compile_function(self.function, donate, self.device, self._inputs_wanted, self._results)
        return self._program

    def _check(self, outputs: list[Tensor]) -> None:
        seen = []
        for k, expected in enumerate(self.outcomes):
            t = outputs[self.first_decision + k]
            seen.append(ctypes.string_at(t._address, t._spec.nbytes))
            if seen[-1] != expected:
                raise Mismatch(seen)

    def _commit(self, leaves: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor]) -> Any:
        objects = [_plain(outputs[m.result], m.spec) for m in self.made]
        if self.history is not None and local.grad:
            self._attach(leaves, inputs, outputs, objects)
        for i, j in self.writes:
            t, new = inputs[i], outputs[j]
            if t is not new:
                t._buffer, t._address, t._strides = new._buffer, new._address, None
        for c, k, m in self.slots:
            c[k] = objects[m]
        for c, k, j, kind in self.numbers:
            c[k] = kind(item(outputs[j]))
        for source, _, _, m in self.grads:
            if m != "kept":
                t = resolve(source, leaves)
                if t._meta is None:
                    t._meta = Meta(t._spec)
                    t._meta.requires_grad = False
                t._meta.grad = None if m is None else objects[m]
        returned = [self._leaf(kind, x, leaves, inputs, outputs, objects) for kind, x in self.leaves]
        return unflatten(self.structure, iter(returned))

    def _leaf(
        self, kind: str, x: Any, leaves: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor], objects: list[Tensor]
    ) -> Any:
        if kind == "made":
            return objects[x]
        if kind == "number":
            return item(outputs[x])
        return inputs[x] if kind == "input" else x

    def _attach(self, leaves: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor], objects: list[Tensor]) -> None:
        history = self.history
        assert history is not None
        saved = None
        edges: tuple[Any, ...] = ()
        back = history.back or _FREED
        if history.back is not None:
            saved = tuple(alias(outputs[s]) if s >= 0 else alias(inputs[~s]) for s in history.saved)
            edges = tuple(resolve(s, leaves)._meta for s in history.edges)
        node = Node(history.entry, back, edges, saved)
        for t, m in zip(objects, self.made):
            if m.differentiable is not None:
                t._meta = Meta(t._spec, node, m.differentiable)


def _of_another(error: Exception, program: Program) -> bool:
    """Whether a device tells, now that somebody waits, what an operation before `program` met."""
    return isinstance(error, DeviceIndexError) and error.owner is not getattr(program, "owner", None)


def flags_of(metas: Iterable[Meta | None]) -> list[int]:
    """For each tensor: 1 if it requires gradients, 2 more if hooks are called with its gradient."""
    return [0 if m is None else m.requires_grad + 2 if m.hooks else m.requires_grad for m in metas]


def _always() -> bool:
    return True


_FREED = Backward(Function("freed", (), (), ()), (), (), ())


def resolve(source: Source, leaves: Sequence[Any]) -> Any:
    """The tensor that a source stands for in a call with these leaves."""
    kind = source[0]
    if kind == "held":
        return source[1]
    if kind == "arg":
        return leaves[source[1]]
    if kind == "number":
        return number(leaves[source[1]])
    if kind == "slot":
        return source[1][source[2]]
    if kind == "scalar":
        return number(source[1][source[2]])
    return resolve(source[1], leaves)._meta.grad


def _plain(t: Tensor, spec: Spec) -> Tensor:
    return make(spec, t._buffer, t._address, None)


def _exclusive(t: Tensor) -> bool:
    """Whether nobody but `t` holds its memory: the tensor's slot and the argument below are two references."""
    buffer = t._buffer
    # The slot of the tensor, the local name, and the argument of getrefcount.
    return not buffer.foreign and sys.getrefcount(buffer) == 3


def _own(t: Tensor) -> None:
    """Give `t` memory of its own with the same value."""
    fresh = empty(t._spec)
    copy_bytes(fresh, t)
    t._buffer, t._address, t._strides = fresh._buffer, fresh._address, None
