"""Weights that a compiled function holds and reads turned, turned once.

A linear layer stores its weight [outputs, inputs], and a product of few rows (inference of one example, the next token)
reads it the other way round. After a recording has served some calls, such weights are copied in the order in
which they are read, and calls run a program that reads the copies (`Turned`).

Invariants: a copy is of the value that a weight has while its buffer is the same object. Buffers are written only by programs
that update a tensor in place, and those give a tensor whose buffer others hold memory of its own first: a `Copy` holds the
buffer, and is made only while nobody but the tensor does, so that no such program is running. Memory of NumPy arrays may
change behind our back and is never copied. Whatever gives a tensor another buffer changes `state.stamp`: then `look` is
called, finds it, and calls run the recording as it was made, until its weights have stayed for a while again.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np
from graphc.ir.function import Function
from graphc.runtime.backend import backend
from graphc.runtime.core import Tensor, empty, view_of
from graphc.runtime.device import CPU
from graphc.runtime.memory import Buffer
from graphc.runtime.recording import Recording, flags_of
from graphc.runtime.replay import MISS, Replay, replay_of
from graphc.runtime.spec import spec_of

# Calls before weights are turned; twice as many each time that they changed afterwards, up to MOST_CALLS.
CALLS, MOST_CALLS = 4, 1024
# Bytes of a weight that is worth it.
LEAST = 32768


class Copy:
    """A weight's value, turned: `tensor` [inputs, outputs], for as long as the weight has `buffer`."""

    __slots__ = ("__weakref__", "buffer", "tensor")

    def __init__(self, weight: Tensor) -> None:
        self.buffer = weight._buffer
        value = view_of(weight)
        self.tensor = empty(spec_of(weight._spec.dtype, weight._spec.shape[::-1]))
        np.copyto(view_of(self.tensor, writable=True), value.T)


# By the identity of the buffer, which the copy holds, and the address and type of what was copied.
_copies: weakref.WeakValueDictionary[Any, Copy] = weakref.WeakValueDictionary()


def _copy_of(weight: Tensor) -> Copy | None:
    """The turned copy of a weight, the same one for all functions; None where others hold its memory."""
    key = (id(weight._buffer), weight._address, weight._spec)
    copy = _copies.get(key)
    # The slot of the tensor, and the argument of getrefcount.
    if copy is None and weight._strides is None and sys.getrefcount(weight._buffer) == 2:
        copy = _copies[key] = Copy(weight)
    return copy


class Turned(Recording):
    """A recording whose program reads copies instead of some held weights. copies: what it holds of which weight."""

    def __init__(self, r: Recording, function: Function, copies: dict[int, Copy], calls: int) -> None:
        sources, specs, flags = list(r.sources), list(r.specs), list(r.flags)
        for i, copy in copies.items():
            sources[i], specs[i], flags[i] = ("held", copy.tensor), copy.tensor._spec, 0
        super().__init__(function, r.arguments, sources, specs, flags, r.result_specs)
        self.made, self.writes, self.slots, self.numbers = r.made, r.writes, r.slots, r.numbers
        self.leaves, self.structure, self.checks = r.leaves, r.structure, r.checks
        self.origin, self.calls = r, calls
        self.weights = [(r.sources[i][1], copy.buffer) for i, copy in copies.items()]
        self.weight_flags = [r.flags[i] for i in copies]
        self.copies = copies
        self.replay = replay_of(self)

    def look(self) -> bool:
        """As `Recording.look`, and whether the weights are what was copied."""
        if flags_of(t._meta for t, _ in self.weights) != self.weight_flags:
            return False
        if any(t._buffer is not buffer for t, buffer in self.weights):
            if self.origin.replay is self.replay:
                self.origin.replay = counted(self.origin, min(2 * self.calls, MOST_CALLS))
            over(self.replay)
            return False
        return super().look()


def over(replay: Replay) -> None:
    """Mark a function that serves no call any more, so that nobody holds what it holds."""
    replay.__dict__["over"] = True


def is_over(replay: Replay) -> bool:
    """Whether a function serves no call any more."""
    return "over" in getattr(replay, "__dict__", ())


def counted(r: Recording, calls: int = CALLS) -> Replay:
    """The replaying function of a recording; where it has weights to turn, it serves so many calls and then has that done."""
    plain = replay_of(r)
    held = _candidates(r)
    if not held:
        return plain
    left = calls

    def replay(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal left
        if left <= 0:
            return MISS  # the recording is looked for, and has another function
        result = plain(args, kwargs)
        if result is not MISS:
            left -= 1
            if left == 0:
                turned = _turned(r, held, calls)
                r.replay = plain if turned is None else turned.replay
                over(replay)
        return result

    return replay


def _candidates(r: Recording) -> list[int]:
    """The inputs of a recording that could be turned: what it changes and returns does not name them."""
    if r.device is not CPU or r.decisions or r.history is not None or r.grads or backend() != "compiled":
        return []
    named = {i for i, _ in r.writes} | {x for kind, x in r.leaves if kind == "input"}
    return [
        i
        for i, (source, spec) in enumerate(zip(r.sources, r.specs))
        if source[0] == "held" and len(spec.shape) == 2 and spec.nbytes >= LEAST and i not in named
    ]


def _turned(r: Recording, held: list[int], calls: int) -> Turned | None:
    """The recording with turned weights; None if nothing can be turned."""
    # Most processes need none of these.
    from graphc.codegen.constants import in_order_of_reading, turned_by_few_rows
    from graphc.ir.passes import DEFAULT, run_pipeline

    function = run_pipeline(r.function, DEFAULT)
    own = [i for i in turned_by_few_rows(function, held) if r.sources[i][1]._buffer.__class__ is Buffer]
    copies = {i: copy for i in own if (copy := _copy_of(r.sources[i][1])) is not None}
    if not copies:
        return None
    function, _ = in_order_of_reading(function, copies)
    return Turned(r, function, copies, calls)
