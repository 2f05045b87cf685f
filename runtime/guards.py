"""What a compiled function depends on besides its arguments: a snapshot of the Python state it reaches.

Reached are closure cells, the globals that the code names, defaults, and from there modules, optimizers,
plain objects, dicts and lists. A `Snapshot` holds every number, string and object found, and
tells whether all are still the same. Functions and classes of graphc itself are not looked into,
except layers and optimizers.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from graphc.runtime.core import Tensor

SCALARS = (int, float, bool, str, type(None))
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, str, bytes, np.ndarray, np.generic)
_LIBRARY = ("graphc.runtime.nn.", "graphc.runtime.optim", "graphc.runtime.losses")
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


Slot = tuple[Any, Any]  # (container, key)


class Snapshot:
    """The state that is reached from `roots`, container by container.

    scalars: for each container that holds some, (container, keys, values). objects: (container, key, object) of
    everything else. sizes: (container, number of items).
    """

    def __init__(
        self, roots: Iterable[Any], free: frozenset[tuple[int, Any]] = frozenset(), before: Snapshot | None = None
    ) -> None:
        self.free = free
        self.scalars: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self.objects: list[tuple[Any, Any, Any]] = []
        self.sizes: list[tuple[Any, int]] = []
        self._seen: dict[int, Any] = {}
        # One view for each cell, also in the snapshot that this one is compared with.
        self._cells: dict[int, Cell] = {} if before is None else before._cells
        pending = list(roots)
        while pending and len(self._seen) < MANY:
            pending += self._visit(pending.pop())
        self._checks = [
            (c, operator.itemgetter(*keys), values if len(keys) > 1 else values[0])
            for c, keys, values in self.scalars
        ]

    def _visit(self, x: Any) -> list[Any]:
        if id(x) in self._seen or isinstance(x, (_OPAQUE, SCALARS)):
            return []
        self._seen[id(x)] = x
        if isinstance(x, Tensor):
            return []
        if isinstance(x, types.MethodType):
            return [x.__self__, x.__func__]
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, dict):
            return self._container(x, list(x), True)
        if isinstance(x, list):
            return self._container(x, range(len(x)) if len(x) <= LONG else (), True)
        if isinstance(x, (tuple, set, frozenset)):
            return list(x) if len(x) <= LONG else []
        if _is_state(x):
            inside: list[Any] = [vars(x)]
            for base in type(x).__mro__:
                if not base.__module__.startswith(("graphc.", "builtins")):
                    inside += [f for f in vars(base).values() if isinstance(f, types.FunctionType)]
            return inside
        return []

    def _function(self, f: types.FunctionType) -> list[Any]:
        if f.__module__ is not None and f.__module__.startswith("graphc."):
            return []
        reached: list[Any] = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        for cell in f.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                continue
            view = self._cells.setdefault(id(cell), Cell(cell))
            reached += self._container(view, (0,), False) or [content]
        names = _names(f.__code__)
        known = [n for n in names if n in f.__globals__]
        reached += self._container(f.__globals__, known, False)
        for n in known:
            module = f.__globals__[n]
            if isinstance(module, types.ModuleType) and not _is_library(module):
                held = [k for k in names if k in vars(module) and isinstance(vars(module)[k], SCALARS)]
                reached += self._container(vars(module), held, False)
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

    def freeze(self, rebound: set[tuple[int, Any]]) -> Callable[[], bool]:
        """A fast check that everything is as it was, but for the slots in `rebound`."""
        kept = [o for o in self.objects if (id(o[0]), o[1]) not in rebound]
        containers, keys, objects = ([o[i] for o in kept] for i in range(3))
        sized, sizes = [c for c, _ in self.sizes], [n for _, n in self.sizes]
        checks = self._checks

        def holds() -> bool:
            try:
                if list(map(len, sized)) != sizes:
                    return False
                for c, get, values in checks:
                    if get(c) != values:
                        return False
                return all(map(operator.is_, map(operator.getitem, containers, keys), objects))
            except (KeyError, IndexError, ValueError):
                return False

        return holds

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
            elif len(known) == n != len(c):
                c[:] = [known[k] for k in range(n)]
            else:
                del c[n:]
        for c, k in [(c, k) for c, keys, _ in self.scalars for k in keys] + [(c, k) for c, k, _ in self.objects]:
            value = found[id(c)][k]
            try:
                same = c[k] is value
            except (KeyError, ValueError):
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


class Difference:
    """How the state after a call differs from before.

    numbers: slots whose number changed. tensors: slots that hold another tensor. broken: why the call
    cannot be replayed, or None.
    """

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.numbers: list[Slot] = []
        self.tensors: list[tuple[Any, Any, Any, Any]] = []
        self.broken: str | None = None
        then = {(id(c), k): (c, v) for c, keys, values in before.scalars for k, v in zip(keys, values)}
        now = {(id(c), k): v for c, keys, values in after.scalars for k, v in zip(keys, values)}
        for slot, (c, v) in then.items():
            if slot not in now:
                self.broken = _describe(c, slot[1], "changes its kind")
            elif now[slot] is not v and (now[slot] != v or type(now[slot]) is not type(v)):
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


def _describe(c: Any, key: Any, what: str) -> str:
    name = f"{key!r}" if key is not None else f"a {type(c).__name__}"
    return f"Python state that the function reaches changes in a call: {name} {what}"


def _is_state(x: Any) -> bool:
    if not hasattr(x, "__dict__") or callable(getattr(x, "__next__", None)):
        return False
    home = type(x).__module__
    if home.startswith("graphc."):
        return home.startswith(_LIBRARY)
    return home not in ("builtins", "threading", "logging", "functools", "io", "weakref") and (home == "__main__" or not home.startswith("_"))


def _is_library(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or "/lib/python" in file or module.__name__.startswith("graphc")


def _names(code: types.CodeType) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names(constant)))
    return list(names)
