"""One recorded call of a compiled function: its program, where its inputs come from, what it changes.

Invariants: a recording is made from a call that ended without an exception; `run` changes nothing
before every outcome is known to be the recorded one, unless there are no outcomes to check, and
then tensors that nobody else holds are updated in place.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from graphc.codegen.report import stage
from graphc.ir.function import Function
from graphc.runtime import replay
from graphc.runtime.backend import Program, compile_function
from graphc.runtime.checks import Check
from graphc.runtime.core import Meta, Tensor, _new, alias, copy_bytes, empty, make, make_contiguous
from graphc.runtime.device import CPU
from graphc.runtime.dispatch import ALIGNED, Entry, align, device_of, number
from graphc.runtime.early import Early
from graphc.runtime.errors import DeviceIndexError, explain
from graphc.runtime.grad_mode import local, state
from graphc.runtime.interop import item
from graphc.runtime.memory import Block, Buffer
from graphc.runtime.node import Backward, Node
from graphc.runtime.replay import Arguments, Replay, without_gradient
from graphc.runtime.spec import Spec
from graphc.runtime.structure import Structure, unflatten
from graphc.runtime.trace import Decision


class Mismatch(Exception):
    """Python would have decided differently; `outcomes` are the values up to the first other one."""

    def __init__(self, recording: Recording, outcomes: list[bytes]) -> None:
        super().__init__()
        self.recording = recording
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
_meta_of = operator.attrgetter("_meta")
_buffer_of = operator.attrgetter("_buffer")


class Recording:
    """See the head of this file.

    arguments: the signature of the call. sources: where each parameter comes from; specs, flags: its type, and whether it
    requires gradients (see `flags_of`). made: tensors that are new. writes: (parameter, result) where a tensor from outside
    gets a new value. early: the decisions that are known first; results from `first_decision` on are the others. slots: (container, key, made) where an attribute gets a new tensor. numbers: (container, key, result,
    kind) where it gets a number. grads: (leaf, whether `.grad` was None (None: it does not matter), the type it had,
    made | None | "kept"). leaves: of what is returned. checks: how the Python state was. stamp: `state.stamp` as it was when
    all held tensors were as recorded.
    """

    def __init__(
        self,
        function: Function,
        arguments: Arguments,
        sources: list[Source],
        specs: list[Spec],
        flags: list[int],
        results: list[Spec],
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.device = device_of(function.name, [*specs, *results])
        self.decisions: list[Decision] = []
        self.early = Early((), Function("decisions", (), (), ()), (), ())
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
        self.checks: list[Check] = []
        self.sources, self.specs, self.flags = sources, specs, flags
        self.result_specs = results
        self.stamp: Any = None
        self.replay: Replay = self._first_replay
        self._program: Program | None = None
        # Whether no other Python thread runs together with the program.
        self.short = False
        held = [(i, s[1]) for i, s in enumerate(sources) if s[0] == "held"]
        self._held = [t for _, t in held]
        self._held_specs, self._held_flags = [specs[i] for i, _ in held], [flags[i] for i, _ in held]
        self._others = [i for i, s in enumerate(sources) if s[0] != "held"]
        self._inputs: list[Any] = [s[1] if s[0] == "held" else None for s in sources]
        # The addresses of held tensors, None for the others, while `stamp` holds.
        self._addresses: list[Any] = [None] * len(sources)
        # Once it is compiled: results that get memory of their own, and writes that are not made in place.
        self._fresh: list[tuple[int, Spec]] = []
        self._rebound: list[tuple[int, int]] = []

    # checking

    def _first_replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from graphc.runtime.turned import counted

        self.replay = counted(self)
        return self.replay(args, kwargs)

    def looped(self) -> bool:
        """Whether calls are served by `run` rather than by lines of their own."""
        return self.device is not CPU or len(self.sources) + len(self.result_specs) > replay.MOST_TENSORS

    @property
    def late(self) -> bool:
        """Whether an outcome is known only after the program has run."""
        return len(self.decisions) > len(self.early.places)

    def agrees(self, known: list[bytes]) -> bool:
        """Whether the recorded outcomes begin as `known`, the outcomes of this call as far as known."""
        return self.outcomes[: len(known)] == known[: len(self.outcomes)]

    def look(self) -> bool:
        """Whether the held tensors have the recorded types and records; gives those that the program reads plain memory."""
        stamp = state.stamp
        held = self._held
        if list(map(_spec_of, held)) != self._held_specs or flags_of(map(_meta_of, held)) != self._held_flags:
            return False
        for t in held:
            if t._strides is not None:
                make_contiguous(t)
            if t._address & ALIGNED and t._spec.device is not CPU:
                align(t)
        for i, _ in self.program().donated:
            t = self._inputs[i]
            if t is not None and t._buffer.foreign:
                self.own(t)
        self._addresses = [None if t is None else t._address for t in self._inputs]
        if state.stamp is stamp:
            self.stamp = stamp
        return True

    def own(self, t: Tensor) -> None:
        """Give `t`, which is about to be written in place, memory of its own."""
        _own(t)
        state.stamp = object()

    def obtain(self, spec: Spec) -> Block:
        """Memory for a result where none waits. What is told of the end of memory finds this call."""
        return spec.obtain(spec.nbytes)

    def wrote(self) -> None:
        """Held tensors got other memory by this recording: others have to look at them."""
        stamp = object()
        if state.stamp is self.stamp:
            self.stamp = stamp
        state.stamp = stamp

    # running

    def program(self) -> Program:
        """The compiled function."""
        if self._program is None:
            kept = {~s for s in self.history.saved if s < 0} if self.history is not None else set()
            donate = () if self.late else tuple((i, j) for i, j in self.writes if i not in kept)
            self._program = compile_function(self.function, donate, self.device, self.specs, self.result_specs)
            self.short = getattr(self._program, "short", True)
            in_place = {j for _, j in self._program.donated}
            self._fresh = [(j, spec) for j, spec in enumerate(self.result_specs) if j not in in_place]
            self._rebound = [(i, j) for i, j in self.writes if j not in in_place]
        return self._program

    def run(self, leaves: Sequence[Any], others: Sequence[Tensor]) -> Any:
        """Run the program on held tensors and these others, and apply its changes. Raises `Mismatch` for another outcome."""
        program = self.program()
        inputs = self._inputs.copy()
        addresses = self._addresses.copy()
        for i, t in zip(self._others, others):
            if t._strides is not None:
                make_contiguous(t)
            if t._address & ALIGNED and t._spec.device is not CPU:
                align(t)
            inputs[i], addresses[i] = t, t._address
        results: list[Any] = [None] * len(self.result_specs)
        targets: list[Any] = results.copy()
        for i, j in program.donated:
            t = inputs[i]
            if not _exclusive(t):
                self.own(t)
                addresses[i] = t._address
            results[j], targets[j] = t, t._address
        for j, spec in self._fresh:
            try:
                block = spec.free.pop()
            except IndexError:
                block = self.obtain(spec)
            results[j] = buffer = _new(Buffer)
            buffer.block = block
            targets[j] = block[0]
        # Another thread may give a tensor other memory meanwhile.
        held = None if self.short else list(map(_buffer_of, inputs))
        try:
            program.run(addresses, targets)
        except Exception as error:
            told = self.failed(error)
            raise told from told.__cause__
        del held
        if self.late:
            self._check(results)
        return self._commit(leaves, inputs, results, targets)

    def failed(self, error: Exception) -> Exception:
        """What to raise where the program raised `error`."""
        if self.late and isinstance(error, (IndexError, ValueError)) and not _of_another(error, self._program):
            return self.mismatch([])
        return explain(error, self.function.name, ())

    def mismatch(self, outcomes: list[bytes]) -> Mismatch:
        """That Python would have decided differently."""
        return Mismatch(self, outcomes)

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        """The results for these inputs, which stay as they are."""
        program = self.program()
        for t in inputs:
            if t._strides is not None:
                make_contiguous(t)
            if t._address & ALIGNED and t._spec.device is not CPU:
                align(t)
        targets = {}
        for i, j in program.donated:
            _own(inputs[i])
            targets[j] = inputs[i]
        outputs = [targets[j] if j in targets else empty(s) for j, s in enumerate(self.result_specs)]
        try:
            with stage("run"):
                program.run([t._address for t in inputs], [t._address for t in outputs])
        except Exception as error:
            told = explain(error, self.function.name, ())
            raise told from told.__cause__
        return outputs

    def _check(self, results: list[Any]) -> None:
        at = len(self.early.places)
        seen = self.outcomes[:at]
        for k, expected in enumerate(self.outcomes[at:]):
            j = self.first_decision + k
            seen.append(ctypes.string_at(results[j].block[0], self.result_specs[j].nbytes))
            if seen[-1] != expected:
                raise self.mismatch(seen)

    def _commit(self, leaves: Sequence[Any], inputs: list[Tensor], results: list[Any], targets: list[int]) -> Any:
        """Apply the changes. results: buffers, or the tensors that were written in place; targets: their addresses."""
        objects = [make(spec, results[j], targets[j]) for j, spec, _ in self.made]
        if self.history is not None and local.grad:
            self._attach(leaves, inputs, results, objects)
        if self._rebound:
            held, addresses = self._inputs, self._addresses.copy()
            # What goes does so once the tensors have their addresses.
            old = []
            for i, j in self._rebound:
                t = inputs[i]
                old.append(t._buffer)
                t._buffer = results[j]
                t._address = address = targets[j]
                t._strides = None
                if held[i] is not None:
                    addresses[i] = address
            # Whoever comes in between finds another stamp and looks at the tensors.
            self._addresses = addresses
            self.wrote()
        for source, _, _, m in self.grads:
            if m != "kept":
                t = resolve(source, leaves)
                meta = t._meta
                if meta is None:
                    meta = without_gradient(t)
                meta.grad = None if m is None else objects[m]
        for c, k, m in self.slots:
            c[k] = objects[m]
        for c, k, j, kind in self.numbers:
            c[k] = kind(self._number(results, j))
        returned = [self._leaf(kind, x, inputs, results, objects) for kind, x in self.leaves]
        return unflatten(self.structure, iter(returned))

    def _number(self, results: list[Any], j: int) -> Any:
        return item(make(self.result_specs[j], results[j], results[j].block[0]))

    def _leaf(self, kind: str, x: Any, inputs: list[Tensor], results: list[Any], objects: list[Tensor]) -> Any:
        if kind == "made":
            return objects[x]
        if kind == "number":
            return self._number(results, x)
        return inputs[x] if kind == "input" else x

    def _attach(self, leaves: Sequence[Any], inputs: list[Tensor], results: list[Any], objects: list[Tensor]) -> None:
        history = self.history
        assert history is not None
        saved = None
        edges: tuple[Any, ...] = ()
        back = history.back or self.freed
        if history.back is not None:
            saved = tuple(
                make(self.result_specs[s], results[s], results[s].block[0]) if s >= 0 else alias(inputs[~s])
                for s in history.saved
            )
            edges = tuple(resolve(s, leaves)._meta for s in history.edges)
        node = Node(history.entry, back, edges, saved)
        for t, m in zip(objects, self.made):
            if m.differentiable is not None:
                t._meta = Meta(t._spec, node, m.differentiable)

    # Where the saved values were freed by a backward inside.
    freed = Backward(Function("freed", (), (), ()), (), (), ())


def _of_another(error: Exception, program: Program | None) -> bool:
    """Whether a device tells, now that somebody waits, what an operation before `program` met."""
    return isinstance(error, DeviceIndexError) and error.owner is not getattr(program, "owner", None)


def flags_of(metas: Iterable[Meta | None]) -> list[int]:
    """For each tensor: 1 if it requires gradients, 2 more if hooks are called with its gradient."""
    return [0 if m is None else m.requires_grad + 2 if m.hooks else m.requires_grad for m in metas]


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


def _exclusive(t: Tensor) -> bool:
    """Whether nobody but `t` holds its memory: the tensor's slot and the argument below are two references."""
    buffer = t._buffer
    # The slot of the tensor, the local name, and the argument of getrefcount.
    return not buffer.foreign and sys.getrefcount(buffer) == 3


def _own(t: Tensor) -> None:
    """Give `t` memory of its own with the same value."""
    fresh = empty(t._spec)
    copy_bytes(fresh, t)
    old = t._buffer  # goes once the tensor has its address
    t._buffer, t._address, t._strides = fresh._buffer, fresh._address, None
    del old
