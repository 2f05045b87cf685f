"""The updates of all parameters as one program, for steps that are not part of a compiled function.

The program is traced once for the parameters that have gradients and their types. It reads the gradients of a step, and writes
parameters and state in place where nobody else holds their memory. It consists of the calls that would be made one by
one, and so gives the same bits.
"""

from __future__ import annotations

import copy
import operator
import weakref
from typing import TYPE_CHECKING, Any

from graphc.ir.function import Function
from graphc.runtime.core import Tensor, abstract
from graphc.runtime.device import CPU
from graphc.runtime.grad_mode import local, state
from graphc.runtime.recording import Recording, flags_of
from graphc.runtime.replay import Arguments
from graphc.runtime.trace import Tracer

if TYPE_CHECKING:
    from graphc.runtime.optim.optimizer import Optimizer, ParamGroup

# So many sets of parameters with gradients have programs at a time.
MOST_PROGRAMS = 8
Work = list[tuple["ParamGroup", Tensor, Tensor]]  # group, parameter, gradient
_programs: weakref.WeakKeyDictionary[Optimizer, _Programs] = weakref.WeakKeyDictionary()


def step_together(optimizer: Optimizer, work: Work) -> bool:
    """Make the updates by one program; False, with nothing changed, if they have to be made one by one.

    The first set of parameters gets a program at once, another one when it comes again.
    """
    if local.tracer is not None or len(work) < 2 or not _declared(optimizer):
        return False
    if any(p._spec.device is not CPU or g._spec.device is not CPU or g is p for _, p, g in work):
        return False
    programs = _programs.get(optimizer)
    if programs is None:
        programs = _programs[optimizer] = _Programs()
    program = programs.of(optimizer, work)
    if program is None:
        return False
    gradients = [g for _, _, g in work]
    program.run(gradients, gradients)
    return True


def _declared(optimizer: Optimizer) -> bool:
    """Whether the class that defines `update` says that it is a function of its tensors and options."""
    owner = next(c for c in type(optimizer).__mro__ if "update" in vars(c))
    return bool(vars(owner).get("together", False)) and "update" not in vars(optimizer)


class _Programs:
    """The programs of one optimizer, by the set of parameters: a recording, or None where there cannot be one."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Recording | None, list[Any]]] = {}
        self._met: dict[Any, None] = {}  # once, and has no program yet

    def of(self, optimizer: Optimizer, work: Work) -> Recording | None:
        key = tuple([(id(p), g._spec) for _, p, g in work])
        held = _held(optimizer, work)
        known = self._known.get(key)
        if known is not None:
            recording, expected = known
            # Somebody may have put other tensors into the state, given these other types, or changed the groups.
            same = len(held) == len(expected) and all(map(operator.is_, held, expected))
            if same and (recording is None or recording.stamp is state.stamp or recording.look()):
                return recording
            del self._known[key]
        elif self._known and key not in self._met:
            _make_room(self._met)
            self._met[key] = None
            return None
        self._met.pop(key, None)
        _make_room(self._known)
        recording = _recorded(optimizer, work)
        if recording is not None and not recording.look():
            recording = None
        self._known[key] = recording, held
        return recording


def _make_room(known: dict[Any, Any]) -> None:
    while len(known) >= MOST_PROGRAMS:
        known.pop(next(iter(known)))


def _held(optimizer: Optimizer, work: Work) -> list[Any]:
    """What a step reads besides gradients: tensors, the options of groups, and which group each parameter is in."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        found += group.tensors.values()
        found += group.options.values()
    states = optimizer.state
    for group, p, _ in work:
        found += (group, p)
        found += states[p].values()
    return found


def _recorded(optimizer: Optimizer, work: Work) -> Recording | None:
    """The updates as one program; None if they cannot be traced, or read anything else."""
    inputs: list[Tensor] = [g for _, _, g in work]
    tracer = Tracer(f"{type(optimizer).__name__.lower()}_step", grad=False, locate=False)

    def stand_in(t: Tensor) -> Tensor:
        made = abstract(t._spec)
        made._traced = (tracer, tracer.builder.param(t._spec.type))
        return made

    def given(t: Tensor) -> Tensor:
        inputs.append(t)
        return stand_in(t)

    results: list[Tensor] = []
    writes: list[tuple[int, int]] = []
    groups: dict[int, ParamGroup] = {}
    try:
        with tracer:
            gradients = [stand_in(g) for g in inputs]
            for (group, param, _), gradient in zip(work, gradients, strict=True):
                seen = groups.get(id(group))
                if seen is None:
                    seen = groups[id(group)] = copy.copy(group)
                    seen.tensors = {name: given(t) for name, t in group.tensors.items()}
                own = optimizer.state[param]
                first = len(inputs)
                targets = {"": param, **own}
                value = given(param)
                new, changed = optimizer.update(value, gradient, {name: given(t) for name, t in own.items()}, seen)
                for name, t in {"": new, **changed}.items():
                    if t._spec is not targets[name]._spec:
                        return None
                    writes.append((first + list(targets).index(name), len(results)))
                    results.append(t)
            values = [tracer.value_of(t) for t in results]
    except Exception:
        return None  # one by one they meet it again, and tell
    if tracer.externals:
        return None
    b = tracer.builder
    sources: list[Any] = [("arg", i) if i < len(work) else ("held", t) for i, t in enumerate(inputs)]
    recording = Recording(
        Function(b.name, b._params, b._ops, values, b._names),
        Arguments((None, None, None, None), ()),
        sources,
        [t._spec for t in inputs],
        flags_of(t._meta for t in inputs),
        [t._spec for t in results],
    )
    recording.writes = writes
    recording.structure = (tuple, None, ())
    return recording
