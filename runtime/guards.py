"""What a compiled function depends on besides its arguments: a snapshot of the Python state it reaches.

Reached are closure cells, the globals that the code names, defaults, and from there modules, optimizers,
plain objects and their classes, dicts and lists, and what the code names in other Python modules. A `Snapshot` holds
every number, string and object found, and tells whether all are still the same. Functions and classes of graphc
itself and of installed packages are not looked into, except layers and optimizers.
"""

from __future__ import annotations

import enum
import functools
import operator
import pickle
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from graphc.runtime.core import Tensor
from graphc.runtime.reach import (
    DESCRIPTORS,
    functions_of,
    globals_of,
    is_library,
    is_state,
    names_of,
    slots_of,
)

SCALARS = (int, float, bool, str, type(None))
_OPAQUE = (types.ModuleType, types.BuiltinFunctionType, str, bytes, np.ndarray, np.generic)
# Longer lists and more objects than these are data rather than the state of a program.
LONG, MANY = 512, 20000


class Cell:
    """A closure cell as a container with one item."""

    __slots__ = ("cell",)

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __getitem__(self, key: Any) -> Any:
        return self.cell.cell_contents

    def __setitem__(self, key: Any, value: Any) -> None:
        self.cell.cell_contents = value

    def __len__(self) -> int:
        return 1


class Attributes:
    """The attributes of a class, or those in the `__slots__` of an object, as a container."""

    __slots__ = ("owner",)

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        return vars(self.owner)[name] if isinstance(self.owner, type) else getattr(self.owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.owner, name, value)


class Content:
    """What a set or a small array holds, as a container of one item: the same object for as long as it is equal."""

    __slots__ = ("kept", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.kept = self._now()

    def _now(self) -> Any:
        return frozenset(self.owner) if isinstance(self.owner, set) else self.owner.tobytes()

    def __getitem__(self, key: Any) -> Any:
        now = self._now()
        return self.kept if now == self.kept else now

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(self.owner, set):
            self.owner.clear()
            self.owner.update(value)
        else:
            self.owner[...] = np.frombuffer(value, self.owner.dtype).reshape(self.owner.shape)


Slot = tuple[Any, Any]  # (container, key)


class Check(NamedTuple):
    """A container whose items under `keys` must be `values`, and which must have `size` items unless that is None.

    Numbers and strings are compared by `same`, everything else by identity.
    """

    container: Any
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    size: int | None

    @property
    def by_order(self) -> bool:
        """Whether this is a whole dict of objects whose keys are costly to look up, as tensors are."""
        return (
            self.size == len(self.keys)
            and self.container.__class__ is dict
            and any(isinstance(k, Tensor) for k in self.keys)
            and not any(isinstance(v, SCALARS) for v in self.values)
        )


def in_order(found: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether a dict has these keys and values in this order, all by identity."""
    return len(found) == len(keys) and all(map(operator.is_, found, keys)) and all(map(operator.is_, found.values(), values))


def guard_of(checks: Sequence[Check]) -> Callable[[], bool]:
    """All checks as one function, for many of them; see replay.py for the few."""
    ordered = [c for c in checks if c.by_order]
    plain = [c for c in checks if not c.by_order]
    sized, sizes = [c.container for c in plain if c.size is not None], [c.size for c in plain if c.size is not None]
    items = [(c.container, k, v) for c in plain for k, v in zip(c.keys, c.values)]
    scalars = [i for i in items if isinstance(i[2], SCALARS)]
    objects = [i for i in items if not isinstance(i[2], SCALARS)]
    (some, names, values), (containers, keys, kept) = ([[i[n] for i in found] for n in range(3)] for found in (scalars, objects))

    def holds() -> bool:
        try:
            if list(map(len, sized)) != sizes:
                return False
            if not all(map(operator.is_, map(operator.getitem, some, names), values)) and not all(
                map(same, map(operator.getitem, some, names), values)
            ):
                return False
            if not all(map(operator.is_, map(operator.getitem, containers, keys), kept)):
                return False
            return all(in_order(c.container, c.keys, c.values) for c in ordered)
        except (KeyError, IndexError, ValueError, AttributeError, RuntimeError):
            return False

    return holds


class Snapshot:
    """The state that is reached from `roots`, container by container.

    scalars: for each container that holds some, (container, keys, values). objects: (container, key, object) of
    everything else. sizes: (container, number of items). random: the states of Python's and NumPy's generators.
    """

    # Whether `unchanged` sees all that another snapshot would.
    complete = True

    def __init__(
        self, roots: Iterable[Any], free: frozenset[tuple[int, Any]] = frozenset(), before: Snapshot | None = None
    ) -> None:
        self.free = free
        self.scalars: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self.objects: list[tuple[Any, Any, Any]] = []
        self.sizes: list[tuple[Any, int]] = []
        self._seen: dict[int, Any] = {}
        # One view for each cell, class or object, also in the snapshot that this one is compared with.
        self._views: dict[int, Any] = {} if before is None else before._views
        self._generators: list[Any] = []
        # Where more could be found later: functions, classes and sets as they are, names that a namespace lacks, tensors without hooks.
        self._functions: list[tuple[types.FunctionType, Any, Any]] = []
        self._classes: list[tuple[type, int]] = []
        self._sets: list[tuple[set[Any], frozenset[Any]]] = []
        self._absent: list[tuple[dict[str, Any], list[str]]] = []
        self._tensors: list[Tensor] = []
        self._roots = list(roots)
        self._checks: list[Check] | None = None
        self._holds: Callable[[], bool] | None = None
        pending = self._roots.copy()
        while pending and len(self._seen) < MANY:
            pending += self._visit(pending.pop())
        self.complete = self.complete and not pending
        self.random = self._states()

    def _states(self) -> list[tuple[str, Any]]:
        """The states of all generators."""
        return _shared_generators() + [("a NumPy generator", pickle.dumps(g.bit_generator.state)) for g in self._generators]

    def unchanged(self) -> bool:
        """Whether a snapshot now would be this one, generators apart."""
        if not self.complete:
            return False
        if self._holds is None:
            self._holds = guard_of(self.checks(set()))
        return (
            self._holds()
            and all(f.__code__ is code and f.__defaults__ is defaults for f, code, defaults in self._functions)
            and all(len(vars(c)) == n for c, n in self._classes)
            and all(x == kept for x, kept in self._sets)
            and all(space.keys().isdisjoint(names) for space, names in self._absent)
            and not any(t._meta is not None and t._meta.hooks for t in self._tensors)
        )

    def same_generators(self) -> bool:
        """Whether no random number was drawn since."""
        return self._states() == self.random

    def _visit(self, x: Any) -> list[Any]:
        if id(x) in self._seen or isinstance(x, SCALARS):
            return []
        self._seen[id(x)] = x
        if isinstance(x, _OPAQUE):
            if isinstance(x, np.ndarray) and x.nbytes <= 8 * LONG and not x.dtype.hasobject:
                # Python may have looked at its elements.
                self._container(self._views.setdefault(id(x), Content(x)), (0,), False)
            return []
        if isinstance(x, Tensor):
            hooks = None if x._meta is None else x._meta.hooks
            if hooks:
                return self._container(hooks, list(hooks), True)
            self._tensors.append(x)
            return []
        if isinstance(x, types.MethodType):
            return [x.__self__, x.__func__]
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, dict):
            return self._container(x, list(x), True)
        if isinstance(x, (list, deque)):
            return self._container(x, range(len(x)) if len(x) <= LONG else (), True)
        if isinstance(x, (tuple, set, frozenset)):
            if isinstance(x, set):
                self._sets.append((x, frozenset(x)))
                if len(x) <= LONG:
                    self._container(self._views.setdefault(id(x), Content(x)), (0,), False)
            return list(x) if len(x) <= LONG else []
        if isinstance(x, type):
            return self._class(x)
        if isinstance(x, functools.partial):
            return [x.func, x.args, x.keywords]
        if type(x) is getattr(sys.modules.get("graphc.runtime.compiled"), "Compiled", None):
            return [x._f]
        if type(x).__module__.startswith("numpy.random") and hasattr(x, "bit_generator"):
            self._generators.append(x)
            return []
        inside: list[Any] = []
        if is_state(x):
            inside += [vars(x)]
        names = slots_of(type(x))
        if names:
            view = self._views.setdefault(id(x), Attributes(x))
            given = [n for n in names if hasattr(x, n)]
            self.complete = self.complete and len(given) == len(names)
            inside += self._container(view, given, False)
        return [*inside, *type(x).__mro__] if inside else []

    def _class(self, x: type) -> list[Any]:
        if is_library(sys.modules.get(x.__module__)) or issubclass(x, enum.Enum):
            return []
        self._classes.append((x, len(vars(x))))
        names = [n for n, v in vars(x).items() if not n.startswith("__") and not isinstance(v, DESCRIPTORS)]
        inner = [f for v in vars(x).values() for f in functions_of(v)]
        return [*self._container(self._views.setdefault(id(x), Attributes(x)), names, False), *inner]

    def _function(self, f: types.FunctionType) -> list[Any]:
        if f.__module__ is not None and f.__module__.startswith("graphc."):
            return []
        self._functions.append((f, f.__code__, f.__defaults__))
        reached: list[Any] = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        for cell in f.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                self.complete = False
                continue
            view = self._views.setdefault(id(cell), Cell(cell))
            reached += self._container(view, (0,), False) or [content]
        return [*reached, *self._named(f.__globals__, globals_of(f.__code__), names_of(f.__code__), set())]

    def _named(self, namespace: dict[str, Any], names: Sequence[str], inner: Sequence[str], seen: set[int]) -> list[Any]:
        """What code that uses `names` finds in the namespace of a Python module, and `inner` in the modules named there."""
        seen.add(id(namespace))
        known = [n for n in names if n in namespace]
        self._absent.append((namespace, [n for n in names if n not in namespace]))
        reached = self._container(namespace, known, False)
        for n in known:
            module = namespace[n]
            if isinstance(module, types.ModuleType) and not is_library(module) and id(vars(module)) not in seen:
                reached += self._named(vars(module), inner, inner, seen)
        return reached

    def _container(self, c: Any, keys: Iterable[Any], whole: bool) -> list[Any]:
        """Note the items of a container; returns those that lead further."""
        names, values, further = [], [], []
        for k in keys:
            if (id(c), k) in self.free:
                continue
            v = c[k]
            if isinstance(v, SCALARS):
                names.append(k)
                values.append(v)
            else:
                self.objects.append((c, k, v))
                further.append(v)
        if names:
            self.scalars.append((c, tuple(names), tuple(values)))
        if whole:
            self.sizes.append((c, len(c)))
        return further

    def checks(self, rebound: set[tuple[int, Any]]) -> list[Check]:
        """What must be as it was, container by container, but for the slots in `rebound`."""
        if not rebound and self._checks is not None:
            return self._checks
        found: dict[int, tuple[Any, list[Any], list[Any]]] = {}
        sizes = {id(c): n for c, n in self.sizes}
        for c, _ in self.sizes:
            found.setdefault(id(c), (c, [], []))
        for c, keys, values in self.scalars:
            _, ks, vs = found.setdefault(id(c), (c, [], []))
            ks += keys
            vs += values
        for c, k, v in self.objects:
            _, ks, vs = found.setdefault(id(c), (c, [], []))
            if (id(c), k) not in rebound:
                ks.append(k)
                vs.append(v)
        found_now = [Check(c, tuple(ks), tuple(vs), sizes.get(id(c))) for c, ks, vs in found.values()]
        if not rebound:
            self._checks = found_now
        return found_now

    def restore(self) -> None:
        """Put back every number and object that was found, and remove what was added to dicts and lists since."""
        found: dict[int, dict[Any, Any]] = {}
        for c, keys, values in self.scalars:
            found.setdefault(id(c), {}).update(zip(keys, values))
        for c, k, v in self.objects:
            found.setdefault(id(c), {})[k] = v
        for c, n in self.sizes:
            known = found.get(id(c), {})
            if isinstance(c, dict):
                for k in [k for k in c if k not in known and (id(c), k) not in self.free]:
                    del c[k]
            elif len(known) == n:
                c.clear()
                c.extend(known[k] for k in range(n))
            else:
                while len(c) > n:
                    c.pop()
        for c, k in [(c, k) for c, keys, _ in self.scalars for k in keys] + [(c, k) for c, k, _ in self.objects]:
            value = found[id(c)][k]
            try:
                same = c[k] is value
            except (KeyError, ValueError, AttributeError):
                same = False
            if not same:
                c[k] = value

    def tensors(self) -> dict[int, Slot]:
        """Where each tensor is found: id of the tensor -> slot."""
        found: dict[int, Slot] = {}
        for c, k, v in self.objects:
            if isinstance(v, Tensor):
                found.setdefault(id(v), (c, k))
        return found


class State:
    """The Python state that one function reaches, snapshot after snapshot; one that still holds is taken again."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def snapshot(self, roots: Sequence[Any], free: frozenset[tuple[int, Any]]) -> Snapshot:
        """The state that is reached from `roots` now, but for the slots in `free`."""
        last = self._last
        reaching = [x for x in roots if not isinstance(x, SCALARS)]
        if (
            last is not None
            and last.free == free
            and len(reaching) == len(last._roots)
            and all(map(operator.is_, reaching, last._roots))
            and last.unchanged()
        ):
            last.random = last._states()
            return last
        self._last = Snapshot(reaching, free)
        return self._last


class Difference:
    """How the state differs from what it was before a call.

    numbers: slots whose number changed. tensors: slots that hold another tensor. broken: why the call
    cannot be replayed, or None.
    """

    def __init__(self, before: Snapshot) -> None:
        self.numbers: list[Slot] = []
        self.tensors: list[tuple[Any, Any, Any, Any]] = []
        self.broken: str | None = None
        if before.unchanged() and before.same_generators():
            return
        after = Snapshot(before._roots, before.free, before)
        then = {(id(c), k): (c, v) for c, keys, values in before.scalars for k, v in zip(keys, values)}
        now = {(id(c), k): v for c, keys, values in after.scalars for k, v in zip(keys, values)}
        for slot, (c, v) in then.items():
            if slot not in now:
                self.broken = _describe(c, slot[1], "changes its kind")
            elif now[slot] is not v and not same(now[slot], v):
                if isinstance(v, (int, float)) and not isinstance(v, bool) and type(now[slot]) is type(v):
                    self.numbers.append((c, slot[1]))
                else:
                    self.broken = _describe(c, slot[1], f"changes from {v!r} to {now[slot]!r}")
        held = {(id(c), k): v for c, k, v in after.objects}
        first = {(id(c), k): v for c, k, v in before.objects}
        for c, k, v in before.objects:
            new = held.get((id(c), k))
            if new is not v:
                if isinstance(v, Tensor) and isinstance(new, Tensor):
                    self.tensors.append((c, k, v, new))
                else:
                    self.broken = _describe(c, k, "is replaced")
        for c, k, _ in after.objects:
            if (id(c), k) not in first and id(c) in before._seen:
                self.broken = _describe(c, k, "appears")
        sizes = {id(c): n for c, n in after.sizes}
        for c, n in before.sizes:
            if sizes.get(id(c), n) != n:
                self.broken = _describe(c, None, f"grows or shrinks from {n} to {sizes[id(c)]} items")
        for (name, state), (_, later) in zip(before.random, after.random):
            if state != later:
                self.broken = f"the function draws random numbers from {name}, not from graphc"


def _describe(c: Any, key: Any, what: str) -> str:
    name = f"{key!r}" if key is not None else f"a {type(c).__name__}"
    return f"Python state that the function reaches changes in a call: {name} {what}"


def same(a: Any, b: Any) -> bool:
    """Whether two numbers or strings are the same to a program: 1, 1.0 and True are not, nor are 0.0 and -0.0."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    return (a == b and (a != 0 or str(a) == str(b))) or (a != a and b != b)


def _shared_generators() -> list[tuple[str, Any]]:
    """The states of the generators that everybody shares."""
    found: list[tuple[str, Any]] = []
    python, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if python is not None:
        found.append(("Python's module random", python.getstate()))
    if numpy is not None:
        found.append(("numpy.random", pickle.dumps(numpy.get_state())))
    return found
