"""What a compiled function depends on besides its arguments: a snapshot of the Python state it reaches.

Reached are closure cells, the globals and builtins that the code names, defaults, and from there modules, optimizers,
plain objects and their classes, dicts and lists, and what the code names or imports of other Python modules. A `Snapshot`
holds every number, string and object found, and tells whether all are still the same. Functions and classes of graphc
itself and of installed packages are not looked into, except layers and optimizers.
"""

from __future__ import annotations

import contextvars
import enum
import operator
import os
import sys
import threading
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from graphc.runtime import uses
from graphc.runtime.checks import SCALARS as SCALARS
from graphc.runtime.checks import Check, guard_of, plain
from graphc.runtime.core import Tensor
from graphc.runtime.reach import (
    MAKING,
    behind,
    body_of,
    functions_of,
    globals_of,
    imported,
    is_library,
    is_state,
    names_of,
    slots_of,
)
from graphc.runtime.views import MEMORY, UNSET, Attributes, Body, Cell, Content, Context, same

_EXACT = frozenset(
    (int, float, bool, str, type(None), bytes, complex, range, slice, types.CodeType, np.dtype)
)
# Longer lists, more memory and more objects than these are data rather than the state of a program.
LONG, MANY = 512, 20000
# Code that names none of these does not walk over the attributes of an object.
_LISTING = frozenset(("vars", "dir", "__dict__", "getmembers", "asdict"))

Slot = tuple[Any, Any]  # (container, key)


class Snapshot:
    """The state that is reached from `roots`, container by container.

    scalars: for each container that holds some, (container, keys, values). objects: (container, key, object) of
    everything else. sizes: (container, number of items, the keys of a dict). absent: (namespace, names that it lacks).
    used: the states of what a call uses up, such as Python's and NumPy's generators.
    """

    # Whether `unchanged` sees all that another snapshot would.
    complete = True

    def __init__(
        self,
        roots: Iterable[Any],
        free: frozenset[tuple[int, Any]] = frozenset(),
        before: Snapshot | None = None,
    ) -> None:
        self.free = free
        self.scalars: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self.objects: list[tuple[Any, Any, Any]] = []
        self.sizes: list[tuple[Any, int, list[Any] | None]] = []
        self.absent: list[tuple[dict[str, Any], tuple[str, ...]]] = []
        self._seen: dict[int, Any] = {}
        # One view for each cell, class or object, also in the snapshot that this one is compared with.
        self._views: dict[tuple[type, int], Any] = {} if before is None else before._views
        self._used: list[Any] = []
        self._tensors: list[Tensor] = []
        # Dicts that are the attributes of an object, and those that layers keep the names of their parameters in.
        self._attributes: set[int] = set()
        self._registries: set[int] = set()
        # Classes that were looked at: what they say of their objects, and how they make one.
        self._said: set[tuple[int, bool]] = set()
        # Modules and functions that were reached as values, with those of their names that were looked at, and all names in code.
        self._spaces: list[tuple[dict[str, Any], set[str]]] = []
        self._names: set[str] = set()
        self._roots = list(roots)
        self._checks: list[Check] | None = None
        self._holds: Callable[[], bool] | None = None
        pending = self._roots.copy()
        while pending and len(self._seen) < MANY:
            pending += self._visit(pending.pop())
            if not pending:
                pending += self._of_spaces()
        self.complete = self.complete and not pending
        self.used = uses.states(self._used)

    def unchanged(self) -> bool:
        """Whether a snapshot now would be this one, what a call uses up apart."""
        if not self.complete:
            return False
        if self._holds is None:
            self._holds = guard_of(self.checks(set()))
        # Hooks are looked into once there are some.
        return self._holds() and not any(t._meta is not None and t._meta.hooks for t in self._tensors)

    def states(self) -> list[tuple[str, Any]]:
        """What of the state a call uses up, as it is now."""
        return uses.states(self._used)

    def _view(self, kind: type, x: Any) -> Any:
        found = self._views.get((kind, id(x)))
        if found is None:
            found = self._views[kind, id(x)] = kind(x)
        return found

    def _visit(self, x: Any) -> list[Any]:
        kind = type(x)
        if kind in _EXACT or id(x) in self._seen:
            return []
        self._seen[id(x)] = x
        if kind is dict:
            return self._container(x, list(x), True)
        if kind is list or kind is tuple:
            return self._items(x)
        if isinstance(x, Tensor):
            hooks = None if x._meta is None else x._meta.hooks
            if hooks:
                return self._container(hooks, list(hooks), True)
            self._tensors.append(x)
            return []
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.ModuleType):
            if not is_library(x):
                self._spaces.append((vars(x), set()))
            return []
        if isinstance(x, type):
            return [v for k in x.__mro__ for v in self._class(k, True)]
        if kind is getattr(sys.modules.get("graphc.runtime.compiled"), "Compiled", None):
            return [x._f]
        if uses.is_used_up(x):
            self._used.append(x)
            return []
        inner = behind(x)
        if inner is not None:
            return inner
        found = self._items(x)
        # What a program's own class adds to a list, a string, ..
        return found if kind.__module__ == "builtins" else found + self._object(x)

    def _items(self, x: Any) -> list[Any]:
        """What a container holds that is no object of a program."""
        if isinstance(x, dict):
            found = self._container(x, list(x), True)
            return (
                found + self._container(self._view(Attributes, x), ("default_factory",), False)
                if isinstance(x, defaultdict)
                else found
            )
        if isinstance(x, (list, deque)):
            return self._container(x, range(len(x)) if len(x) <= LONG else (), True)
        if isinstance(x, (tuple, frozenset)):
            return list(x) if len(x) <= LONG else []
        if isinstance(x, set):
            if len(x) > LONG:
                return []
            self._container(self._view(Content, x), (0,), False)
            return list(x)
        if isinstance(x, (np.ndarray, *MEMORY)):
            # Python may have looked at its elements.
            if (x.nbytes if isinstance(x, np.ndarray) else memoryview(cast(Any, x)).nbytes) <= 8 * LONG:
                self._container(self._view(Content, x), (0,), False)
                return list(x.flat) if isinstance(x, np.ndarray) and x.dtype.hasobject else []
            return []
        if isinstance(x, contextvars.ContextVar):
            return self._container(self._view(Context, x), (0,), False)
        if isinstance(x, threading.local):
            # Every thread has a dict of its own.
            return self._container(self._view(Attributes, x), list(vars(x)), False)
        return []

    def _object(self, x: Any) -> list[Any]:
        """The attributes of an object, and its class."""
        kind = type(x)
        inside: list[Any] = [vars(x)] if is_state(x) and not isinstance(x, threading.local) else []
        if inside:
            self._attributes.add(id(vars(x)))
            if hasattr(kind, "named_parameters"):
                self._registries.update(id(vars(x).get(n)) for n in ("_parameters", "_buffers", "_modules"))
        slots = slots_of(kind)
        # They exist already: how their classes make them is of no matter.
        kinds = [v for k in kind.__mro__ for v in self._class(k, False)]
        if not inside and not slots:
            return kinds
        view = self._view(Attributes, x)
        self.objects.append((view, "__class__", kind))
        return inside + self._container(view, slots, False) + kinds

    def _class(self, x: type, makes: bool) -> list[Any]:
        """What a class says. makes: whether the function may make objects of it."""
        if (id(x), makes) in self._said:
            return []
        if x.__module__ == "builtins" or is_library(sys.modules.get(x.__module__)):
            self._said.add((id(x), makes))
            return []
        body, reached = self._view(Body, x), []
        for making in (False, True)[: 1 + makes]:
            if (id(x), making) in self._said:
                continue
            self._said.add((id(x), making))
            reached += [f for n, v in vars(x).items() if (n in MAKING) is making for f in functions_of(v)]
            if issubclass(x, enum.Enum):
                continue
            reached += self._container(body, [n for n in body_of(x) if (n in MAKING) is making], False)
            if not making:
                self.sizes.append((body, len(body), None))
                self.objects.append((self._view(Attributes, x), "__mro__", x.__mro__))
                reached += [type(x)] * (type(x) is not type)
        return reached

    def _function(self, f: types.FunctionType) -> list[Any]:
        if f.__module__ is not None and f.__module__.startswith("graphc."):
            return []
        code = f.__code__
        # Where there are no defaults, each call gave all arguments, and so does the next one.
        names = ["__code__", "__defaults__", "__kwdefaults__"]
        names = [n for n in names if getattr(f, n)]
        reached = self._container(self._view(Attributes, f), names, False)
        if vars(f):
            self._spaces.append((vars(f), set()))
        named, inner = globals_of(code), names_of(code)
        self._names.update(inner)
        for cell in f.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                self.complete = False
                continue
            reached += self._container(self._view(Cell, cell), (0,), False)
            if isinstance(content, types.ModuleType):
                reached += self._module(content, inner, set())
        builtins: dict[str, Any] = cast(Any, f).__builtins__
        absent = [n for n in named if n not in f.__globals__]
        reached += self._container(builtins, [n for n in absent if n in builtins], False)
        if absent:
            self.absent.append((f.__globals__, tuple(absent)))
        reached += self._named(f.__globals__, [n for n in named if n in f.__globals__], inner, set())
        for module in imported(code, f.__globals__):
            reached += self._module(module, inner, set())
        return reached

    def _named(
        self, namespace: dict[str, Any], names: Sequence[str], inner: Sequence[str], seen: set[int]
    ) -> list[Any]:
        """What code that uses `names` finds in the namespace of a Python module, and `inner` in the modules named there."""
        seen.add(id(namespace))
        known = [n for n in names if n in namespace]
        reached = [x for x in self._container(namespace, known, False) if not isinstance(x, types.ModuleType)]
        for n in known:
            if isinstance(namespace[n], types.ModuleType):
                reached += self._module(namespace[n], inner, seen)
        return reached

    def _module(self, module: types.ModuleType, names: Sequence[str], seen: set[int]) -> list[Any]:
        """What code that uses `names` finds in a module: of installed ones, numbers and strings."""
        space = vars(module)
        if id(space) in seen or module.__name__.split(".", 1)[0] == "graphc":
            return []
        if is_library(module):
            self._container(space, [n for n in names if n in space and space[n].__class__ in SCALARS], False)
            return [os.environ] if module is os and not {"environ", "getenv"}.isdisjoint(names) else []
        return self._named(space, [*names, "__getattr__"], names, seen)

    def _of_spaces(self) -> list[Any]:
        """What code may find in modules and functions that were reached as values."""
        reached = []
        for space, looked in self._spaces:
            names = sorted((self._names & space.keys()) - looked)
            looked.update(names)
            reached += self._container(space, names, False)
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
                if type(v) not in _EXACT:
                    further.append(v)
            else:
                self.objects.append((c, k, v))
                if v is not UNSET:
                    further.append(v)
        if names:
            self.scalars.append((c, tuple(names), tuple(values)))
        if whole:
            self.sizes.append((c, len(c), list(c) if isinstance(c, dict) else None))
        return further

    def checks(self, rebound: set[tuple[int, Any]]) -> list[Check]:
        """What must be as it was, container by container, but for the slots in `rebound`."""
        if not rebound and self._checks is not None:
            return self._checks
        found: dict[int, tuple[Any, dict[Any, Any], set[str]]] = {}
        sizes = {id(c): (n, order) for c, n, order in self.sizes}
        for c, _, _ in self.sizes:
            found.setdefault(id(c), (c, {}, set()))
        for c, keys, values in self.scalars:
            found.setdefault(id(c), (c, {}, set()))[1].update(zip(keys, values))
        for c, k, v in self.objects:
            items = found.setdefault(id(c), (c, {}, set()))[1]
            if (id(c), k) not in rebound:
                items[k] = v
        for space, names in self.absent:
            found.setdefault(id(space), (space, {}, set()))[2].update(names)
        checks = []
        # Attributes are read one by one elsewhere.
        listed = not self._names.isdisjoint(_LISTING)
        for c, items, absent in found.values():
            n, order = sizes.get(id(c), (None, None))
            # One string can change neither its place nor its kind.
            ordered = order if order and (len(order) > 1 or not plain(order)) else None
            if id(c) in self._attributes and not listed:
                ordered = None
            elif ordered and id(c) in self._registries:
                items = {}  # names only
            if id(c) in self._attributes:
                # An empty one that is another says nothing either.
                items = {
                    k: v
                    for k, v in items.items()
                    if v.__class__ is not dict or v or id(v) not in self._registries
                }
            checks.append(Check(c, tuple(items), tuple(items.values()), n, ordered, tuple(sorted(absent))))
        if not rebound:
            self._checks = checks
        return checks

    def restore(self) -> None:
        """Put back every number and object that was found, and remove what was added to dicts and lists since."""
        found: dict[int, dict[Any, Any]] = {}
        for c, keys, values in self.scalars:
            found.setdefault(id(c), {}).update(zip(keys, values))
        for c, k, v in self.objects:
            found.setdefault(id(c), {})[k] = v
        for c, n, order in self.sizes:
            known = found.get(id(c), {})
            if isinstance(c, Body):
                continue
            if order is not None:
                for k in [k for k in c if k not in known and (id(c), k) not in self.free]:
                    del c[k]
                if list(c) != order and len(known) == n:
                    c.clear()
                    c.update((k, known[k]) for k in order)
            elif len(known) == n:
                c.clear()
                c.extend(known[k] for k in range(n))
            else:
                while len(c) > n:
                    c.pop()
        for c, k in [(c, k) for c, keys, _ in self.scalars for k in keys] + [
            (c, k) for c, k, _ in self.objects
        ]:
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
            last.used = last.states()
            return last
        self._last = Snapshot(reaching, free, last)
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
        if before.unchanged() and before.states() == before.used:
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
        sizes = {id(c): (n, order) for c, n, order in after.sizes}
        for c, n, order in before.sizes:
            size, later = sizes.get(id(c), (n, order))
            if size != n:
                self.broken = _describe(c, None, f"grows or shrinks from {n} to {size} items")
            elif order is not None and not all(map(same, order, later or order)):
                self.broken = _describe(c, None, "gets another order")
        # What is reached only now is not compared.
        for (told, state), (_, later_state) in zip(before.used, before.states()):
            if state != later_state:
                self.broken = told


def _describe(c: Any, key: Any, what: str) -> str:
    owner = getattr(c, "owner", c)
    name = f"{key!r}" if key is not None and not isinstance(c, Content) else f"a {type(owner).__name__}"
    return f"Python state that the function reaches changes in a call: {name} {what}"
