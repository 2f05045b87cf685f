"""What a call uses up rather than reads: numbers of random generators, items of iterators, bytes of files.

Their states are compared before and after a recorded call only. Where one moved on, a replayed call would not move it.
"""

from __future__ import annotations

import inspect
import io
import itertools
import pickle
import random
import sys
import types
from collections.abc import Iterable
from typing import Any

from graphc.runtime.core import Tensor

_RANDOM = "the function draws random numbers from {}, not from graphc"
_ITEMS = "the function takes what {} gives, which lies outside of it; pass that as an argument"
# Iterators that tell where they stand by `__reduce__`, up to Python 3.13, or by what they show.
_ITERATORS: tuple[Any, ...] = (
    iter([]), iter(()), iter(""), iter(b""), iter(range(0)), iter(range(1 << 70)), iter({}), iter({}.values()),
    iter({}.items()), iter(set()), reversed([]), enumerate([]), zip(), map(int, []), filter(None, []), reversed({}),
    reversed(()),
)  # fmt: skip
_BUILT_IN = tuple(map(type, _ITERATORS))
# How deep iterators over iterators are followed.
_DEEP = 8


def is_used_up(x: Any) -> bool:
    """Whether `x` is something that a call could use up."""
    kind = type(x)
    if hasattr(kind, "__next__") or isinstance(x, (types.CoroutineType, random.Random, io.IOBase)):
        return True
    return kind.__module__.startswith("numpy.random") and any(
        hasattr(x, n) for n in ("bit_generator", "get_state", "random_raw")
    )


def states(found: Iterable[Any]) -> list[tuple[str, Any]]:
    """For the generators that everybody shares and for those found: what it means if its state changes, and the state."""
    told: list[tuple[str, Any]] = []
    python, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if python is not None:
        told.append((_RANDOM.format("Python's module random"), python.getstate()))
    if numpy is not None:
        told.append((_RANDOM.format("numpy.random"), pickle.dumps(numpy.get_state())))
    return told + [_state(x) for x in found]


def _state(x: Any) -> tuple[str, Any]:
    if type(x).__module__.startswith("numpy.random"):
        source = getattr(x, "bit_generator", x)
        state = source.get_state() if hasattr(source, "get_state") else source.state
        return _RANDOM.format("a NumPy generator"), pickle.dumps(state)
    if isinstance(x, random.Random):
        return _RANDOM.format("a generator of Python's module random"), None if type(
            x
        ) is random.SystemRandom else x.getstate()
    name = getattr(x, "__qualname__", "")
    return _ITEMS.format(f"a {type(x).__name__}{f' {name}' * bool(name)}"), _place(x, 0)


def _place(x: Any, depth: int) -> Any:
    """Where an iterator or a file stands: equal values for equal places."""
    if depth > _DEEP or x is None or isinstance(x, Tensor):
        return id(x)
    if isinstance(x, (int, float, complex, str, bytes)):
        return (type(x), x if x == x else "nan")
    if isinstance(x, io.IOBase):
        # What is written only is a side effect.
        if x.closed or not x.readable() or x.writable() or not x.seekable():
            return None
        return x.tell()
    if isinstance(x, (types.GeneratorType, types.CoroutineType)):
        frame = (
            inspect.getgeneratorlocals(x)
            if isinstance(x, types.GeneratorType)
            else inspect.getcoroutinelocals(x)
        )
        code = x.gi_frame if isinstance(x, types.GeneratorType) else x.cr_frame
        return (None if code is None else code.f_lasti, [(k, _place(v, depth + 1)) for k, v in frame.items()])
    if isinstance(x, random.Random):
        return x.getstate()
    if isinstance(x, itertools.count):
        return repr(x)
    kind = type(x)
    if kind in _BUILT_IN or (kind.__module__ == "itertools" and sys.version_info < (3, 14)):
        return _parts(x.__reduce__(), depth)
    if hasattr(kind, "__next__") and hasattr(x, "__dict__"):
        return [(k, _place(v, depth + 1)) for k, v in vars(x).items()]
    return id(x)


def _parts(x: Any, depth: int) -> Any:
    """Where an iterator stands by what its `__reduce__` gave, which makes ranges and lists of what is left anew."""
    if type(x) in (list, range):
        return repr(x) if type(x) is range else len(x)
    return [_parts(v, depth) for v in x] if type(x) is tuple else _place(x, depth + 1)
