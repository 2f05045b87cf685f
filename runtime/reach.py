"""How far a compiled function's Python state reaches: what of classes, objects and code is looked into (guards.py)."""

from __future__ import annotations

import dis
import functools
import gc
import importlib.util
import re
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

# Of graphc's own modules: layers, optimizers and losses hold state of the program.
_LIBRARY = ("graphc.runtime.nn.", "graphc.runtime.optim", "graphc.runtime.losses")
# What stands for the values of a class's instances rather than for a value of the class.
DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)


# What is called where an object is made.
MAKING = frozenset(
    ("__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__")
)
# Views of dicts, methods of built-in objects, and functions that remember their results.
_PROXIES: tuple[type, ...] = (types.MappingProxyType, type({}.keys()), type({}.values()), type({}.items()))
_BOUND = (types.BuiltinMethodType, types.MethodWrapperType)
_CACHED: Any = functools._lru_cache_wrapper


def functions_of(x: Any) -> list[Any]:
    """The functions of a class's attribute."""
    if isinstance(x, property):
        return [f for f in (x.fget, x.fset, x.fdel) if f is not None]
    if isinstance(x, (classmethod, staticmethod)):
        return [x.__func__]
    return (
        [x.func]
        if isinstance(x, functools.cached_property)
        else [x]
        if isinstance(x, types.FunctionType)
        else []
    )


def body_of(kind: type) -> list[str]:
    """The names of what a class says: all but what Python writes there, and the fields of a named tuple."""
    fields = (
        ("_make", "_replace", "_asdict", "_fields", "_field_defaults", *getattr(kind, "_fields", ()))
        if issubclass(kind, tuple)
        else ()
    )
    return [
        n
        for n, v in vars(kind).items()
        if not isinstance(v, DESCRIPTORS)
        and n not in fields
        and not (n.startswith("__") and n.endswith("__") and not functions_of(v))
    ]


def slots_of(kind: type) -> list[str]:
    """The names in the `__slots__` of a class that a program defines, and of its bases."""
    if kind.__module__.startswith(("graphc.", "builtins")) or is_library(sys.modules.get(kind.__module__)):
        return []
    names: list[str] = []
    for base in kind.__mro__:
        slots: Iterable[str] = vars(base).get("__slots__", ())
        for n in [slots] if isinstance(slots, str) else slots:
            private = n.startswith("__") and not n.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{n}" if private else n)
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def behind(x: Any) -> list[Any] | None:
    """What stands behind an object that only refers to others; None where that is no such object."""
    if isinstance(x, types.MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, _BOUND):
        return [x.__self__]
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords]
    if isinstance(x, _CACHED):
        return [x.__wrapped__]
    if isinstance(x, weakref.ref):
        return [x()]
    return gc.get_referents(x) if isinstance(x, _PROXIES) else None


def is_state(x: Any) -> bool:
    if not hasattr(x, "__dict__") or hasattr(type(x), "__next__"):
        return False
    home = type(x).__module__
    if home.startswith("graphc."):
        return home.startswith(_LIBRARY)
    return home not in ("builtins", "threading", "logging", "functools", "io", "weakref") and (
        home == "__main__" or not home.startswith("_")
    )


def is_library(module: types.ModuleType | None) -> bool:
    if module is None or module.__name__ == "__main__":
        return module is None
    file = getattr(module, "__file__", None)
    return (
        file is None
        or "site-packages" in file
        or "/lib/python" in file
        or module.__name__.startswith("graphc")
    )


# Where code names these, its strings may name globals and attributes.
_BY_NAME = frozenset(("globals", "eval", "exec", "getattr", "vars"))


@functools.lru_cache(4096)
def globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The global names that code uses; not those of attributes."""
    names = dict.fromkeys(
        str(i.argval) for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "LOAD_NAME"))
    )
    if not _BY_NAME.isdisjoint(names):
        names.update(dict.fromkeys(_quoted(code)))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(globals_of(constant)))
    return tuple(names)


@functools.lru_cache(4096)
def names_of(code: types.CodeType) -> tuple[str, ...]:
    """All names that code uses, also those of attributes."""
    names = dict.fromkeys(code.co_names)
    if not _BY_NAME.isdisjoint(names):
        names.update(dict.fromkeys(_quoted(code)))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(names_of(constant)))
    return tuple(names)


def _quoted(code: types.CodeType) -> list[str]:
    """The names in the strings of code, without its docstring."""
    strings = [c for i, c in enumerate(code.co_consts) if c.__class__ is str and (i or " " not in c)]
    return [n for c in strings for n in re.findall(r"[^\W\d]\w*", c[:1000])]


@functools.lru_cache(4096)
def _imports_of(code: types.CodeType) -> tuple[tuple[str, int], ...]:
    """(name, how many packages up) of the modules that code imports."""
    found: dict[tuple[str, int], None] = {}
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            # Before it the level and the names to import from there are loaded.
            level = steps[i - 2].argval if i > 1 else 0
            found[str(step.argval), level if isinstance(level, int) else 0] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(dict.fromkeys(_imports_of(constant)))
    return tuple(found)


def imported(code: types.CodeType, namespace: dict[str, Any]) -> list[types.ModuleType]:
    """The modules that code imports when it runs, and the packages they are in, where they are loaded."""
    found: dict[str, types.ModuleType] = {}
    for name, level in _imports_of(code):
        try:
            whole = (
                importlib.util.resolve_name("." * level + name, namespace.get("__package__"))
                if level
                else name
            )
        except ImportError:
            continue
        parts = whole.split(".")
        for i in range(len(parts)):
            module = sys.modules.get(".".join(parts[: i + 1]))
            if module is not None:
                found[module.__name__] = module
    return list(found.values())
