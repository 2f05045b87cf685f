"""How far a compiled function's Python state reaches: what of classes, objects and code is looked into (guards.py)."""

from __future__ import annotations

import dis
import functools
import sys
import types
from typing import Any

# Of graphc's own modules: layers, optimizers and losses hold state of the program.
_LIBRARY = ("graphc.runtime.nn.", "graphc.runtime.optim", "graphc.runtime.losses")
# What stands for the values of a class's instances rather than for a value of the class.
DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def functions_of(x: Any) -> list[Any]:
    """The functions of a class's attribute."""
    if isinstance(x, property):
        return [f for f in (x.fget, x.fset, x.fdel) if f is not None]
    if isinstance(x, (classmethod, staticmethod)):
        return [x.__func__]
    return [x.func] if isinstance(x, functools.cached_property) else [x] if isinstance(x, types.FunctionType) else []


def slots_of(kind: type) -> list[str]:
    """The names in the `__slots__` of a class that a program defines, and of its bases."""
    if kind.__module__.startswith(("graphc.", "builtins")) or is_library(sys.modules.get(kind.__module__)):
        return []
    names: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def is_state(x: Any) -> bool:
    if not hasattr(x, "__dict__") or hasattr(type(x), "__next__"):
        return False
    home = type(x).__module__
    if home.startswith("graphc."):
        return home.startswith(_LIBRARY)
    return home not in ("builtins", "threading", "logging", "functools", "io", "weakref") and (home == "__main__" or not home.startswith("_"))


def is_library(module: types.ModuleType | None) -> bool:
    if module is None or module.__name__ == "__main__":
        return module is None
    file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or "/lib/python" in file or module.__name__.startswith("graphc")


@functools.lru_cache(4096)
def globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The global names that code uses; not those of attributes."""
    names = dict.fromkeys(str(i.argval) for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME")))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(globals_of(constant)))
    return tuple(names)


def names_of(code: types.CodeType) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(names_of(constant)))
    return list(names)
