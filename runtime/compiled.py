"""`compile`: a Python function recorded once and then run as one native program.

The first call of a signature is recorded with the tensors that it reads and rebinds (a `Recording`, see
recording.py); its operations wait until Python looks at a value or the call ends, so that a call that
looks at none runs as one program from the first time on. Later calls check that the Python state is as it was (guards.py)
and run the program. Where Python looked at a value, the recording holds for that outcome only:
the program returns the value, and its results count if the outcome is the same; for another
outcome another recording is made. A function whose outcome is new every time runs eagerly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.codegen.report import Report, collect
from graphc.runtime.core import Tensor
from graphc.runtime.device import CPU
from graphc.runtime.errors import here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.guards import SCALARS, Slot, State
from graphc.runtime.interop import asarray
from graphc.runtime.precision import setting
from graphc.runtime.recorder import record
from graphc.runtime.recording import Mismatch, Recording
from graphc.runtime.replay import MISS, Arguments, Replay
from graphc.runtime.structure import flatten, unflatten
from graphc.runtime.turned import is_over
from graphc.runtime.views import told_apart

# After this many calls in a row that no recording served, a signature runs eagerly.
PATIENCE = 8
# The most recordings of one signature, and new objects in a row that are recorded.
PATHS = 64
# The most signatures; the one that was not looked for the longest goes.
SIGNATURES = 256
# So many functions of recordings are tried before a signature is looked for.
RECENT = 4
# Arguments that belong to the signature by value.
_VALUES = (*SCALARS, bytes, complex, range, frozenset)
_TOLD_APART = (complex, range, frozenset)


class Family:
    """The recordings of one signature. objects: those that belong to it by their identity."""

    __slots__ = ("eager", "misses", "objects", "promoted", "recordings")

    def __init__(self, objects: list[Any]) -> None:
        self.objects = objects
        self.recordings: list[Recording] = []
        # Numbers of the Python state that change from call to call, and so are inputs.
        self.promoted: dict[tuple[int, Any], Slot] = {}
        self.misses = 0
        self.eager = False


def _nobody(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return MISS


class Compiled:
    """A compiled function or module; other attributes are those of what was compiled."""

    def __init__(self, f: Callable[..., Any]) -> None:
        self._f = f
        self._families: dict[Any, Family] = {}
        self._state = State()
        # What served the last call, and those before; none of the latter looks at values.
        self._last: Replay = _nobody
        self._recent: list[Replay] = []
        # How many calls in a row passed new objects that belong to a signature by their identity.
        self._new_objects = 0
        self._reports: list[Report] = []
        functools.update_wrapper(self, f, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if state.active and local.tracer is not None:
            return self._f(*args, **kwargs)
        try:
            result = self._last(args, kwargs)
        except Mismatch as miss:
            return self._find(args, kwargs, miss)
        return self._find(args, kwargs) if result is MISS else result

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any], miss: Mismatch | None = None) -> Any:
        """A call that the recording of the last one does not serve."""
        for replay in self._recent:
            if replay is not self._last:
                result = replay(args, kwargs)
                if result is not MISS:
                    self._last = replay
                    return result
        leaves: list[Any] = []
        structure = flatten((args, kwargs), leaves)
        key, objects = self._signature(structure, leaves)
        family = self._families.get(key)
        if family is None:
            if objects and self._always_new(objects):
                return self._f(*args, **kwargs)
            family = self._families[key] = Family(objects)
            if len(self._families) > SIGNATURES:
                self._families.pop(next(iter(self._families)), None)
        else:
            if objects:
                self._new_objects = 0
            if len(self._families) > SIGNATURES // 2:
                self._families[key] = self._families.pop(key, family)
        if family.eager:
            return self._f(*args, **kwargs)
        # NumPy arrays have become tensors.
        args, kwargs = unflatten(structure, iter(leaves))
        known: list[bytes] = [] if miss is None else miss.outcomes
        for recording in list(family.recordings):
            # Recordings that looked at the same values first agree on what those are now.
            if not recording.agrees(known) or (miss is not None and recording is miss.recording):
                continue
            replay = recording.replay
            try:
                result = replay(args, kwargs)
                if result is MISS and recording.replay is not replay:
                    # What it ran with is out of date, and it has another function now.
                    result = recording.replay(args, kwargs)
            except Mismatch as other:
                known = max(known, other.outcomes, key=len)
                continue
            if result is not MISS:
                if family.recordings[0] is not recording:
                    family.recordings.remove(recording)
                    family.recordings.insert(0, recording)
                family.misses = 0
                self._last = recording.replay
                if not recording.decisions:
                    kept = (r for r in self._recent if r is not self._last and not is_over(r))
                    self._recent = [self._last, *kept][:RECENT]
                return result
        return self._record(family, Arguments(key, objects), leaves)

    def _signature(self, structure: Any, leaves: list[Any]) -> tuple[Any, list[Any]]:
        """What must be equal for a recording to serve, and the objects in it that are told by identity."""
        parts: list[Any] = [structure, local.grad, local.inference, setting.level]
        objects: list[Any] = []
        first: dict[int, int] = {}
        for i, x in enumerate(leaves):
            kind = x.__class__
            if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind not in "OSUMm":
                leaves[i] = x = asarray(x) if x.ndim else asarray(x, device=CPU)
            if isinstance(x, Tensor):
                meta = x._meta
                record = None if meta is None else (meta.requires_grad, meta.node is None)
                # `x` may be an array that became a tensor.
                parts.append((x.__class__, x._spec, first.setdefault(id(x), i), record))
            elif kind is float or kind is int:
                parts.append(kind)
            elif kind is slice:
                parts.append((kind, x.start, x.stop, x.step, told_apart(x)))
            elif isinstance(x, _VALUES):
                parts.append((kind, x, told_apart(x) if isinstance(x, _TOLD_APART) else None))
            else:
                parts.append((object, id(x)))
                objects.append(x)
        return tuple(parts), objects

    def _always_new(self, objects: list[Any]) -> bool:
        """Whether every call passes other objects, so that no recording would ever serve; says so once."""
        self._new_objects += 1
        if self._new_objects == PATHS + 1:
            kinds = ", ".join(dict.fromkeys(type(x).__name__ for x in objects))
            self._warn(
                f"for new objects: each of {PATHS} calls in a row passed another {kinds}; pass what it holds as tensors, "
                "tuples, dicts or named tuples"
            )
        return self._new_objects > PATHS

    def _record(self, family: Family, arguments: Arguments, leaves: list[Any]) -> Any:
        family.misses += 1
        # Whoever serves the next call is looked for, which counts misses in a row.
        self._last, self._recent = _nobody, []
        served = bool(family.recordings)

        def call(given: Sequence[Any]) -> Any:
            args, kwargs = unflatten(arguments.structure, iter(given))
            return self._f(*args, **kwargs)

        with collect(_title(self._f)) as report:
            result, recording, reason = record(self._f, call, arguments, leaves, family.promoted, self._state)
        self._reports = [*self._reports[1 - PATHS :], report]
        if recording is not None:
            family.recordings.insert(0, recording)
            if served and family.recordings[0].decisions:
                reason = f"Python decides by a value at {recording.decisions[-1].line}"
        elif reason is not None and reason.startswith("!"):
            self._give_up(family, reason[1:])
        if family.misses > PATIENCE or len(family.recordings) > PATHS:
            self._give_up(family, reason or "the state of the program is new in every call")
        return result

    def _give_up(self, family: Family, reason: str) -> None:
        family.eager = True
        family.recordings.clear()
        self._warn(f"from now on: {reason}")

    def _warn(self, when: str) -> None:
        name = getattr(self._f, "__name__", type(self._f).__name__)
        warnings.warn(f"{name} runs eagerly {when} (called at {here()})", stacklevel=6)

    def compile_reports(self) -> tuple[Report, ...]:
        """Where the time of each call went that recorded or compiled something, the latest last (64 at most).

        >>> import graphc as gc
        >>> f = gc.compile(lambda x: gc.exp(x) + 1)
        >>> _ = f(gc.zeros(3))
        >>> [report] = f.compile_reports()
        >>> report.groups, report.kernels
        (1, 1)
        """
        return tuple(self._reports)

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else functools.partial(self, owner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._f, name)

    def __repr__(self) -> str:
        return f"compiled({self._f!r})"


def _title(f: Any) -> str:
    """What is compiled and where it stands."""
    name = getattr(f, "__name__", type(f).__name__)
    code = getattr(f, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def compile(f: Callable[..., Any] | None = None) -> Any:
    """Run a function, a module or a whole training step as one native program.

    Tensors that the function reads from outside (parameters, optimizer state, random state) are inputs, those
    that it rebinds are updated. int and float arguments and NumPy arrays are inputs; str, bool and None and other objects
    belong to the signature. Where Python decides by a value (`if`, `int()`, `.item()`), each outcome is recorded once. Results
    are equal to the bit to those of the function itself.

    A call in which an operation fails, for example by an index out of range, changes nothing. An int or float argument
    is a tensor inside: it acts as the number, but `isinstance(n, int)` is false.

    Changes of the Python state that the function reaches (variables, attributes, dicts, classes, code) are noticed, and
    recorded anew; what a call uses up, such as Python's random numbers or an iterator, makes it run eagerly. Taken as constant are
    the code of graphc and of installed packages, lists of more than 512 items and arrays of more than 4 KiB that change in place,
    what functions with a cache remember, files, and the clock.

    Side effects on things other than tensors and numbers, such as `print`, happen in recorded calls only.

    >>> import graphc as gc
    >>> @gc.compile
    ... def f(x):
    ...     return gc.exp(x) - 1
    >>> [f(gc.zeros(2)).tolist() for _ in range(2)]
    [[0.0, 0.0], [0.0, 0.0]]
    """
    if f is None:
        return compile
    if not callable(f):
        raise TypeError(f"compile takes a function or a module, not {type(f).__name__}")
    return Compiled(f)
