"""Python state that is no container, seen as one: `view[key]` reads a slot, `view[key] = value` puts it back.

A snapshot (guards.py) holds slots, pairs of a container and a key. Cells, attributes, the dicts of classes, sets and memory
become containers here; dicts, lists and deques are containers already.
"""

from __future__ import annotations

import array
import contextlib
import contextvars
import ctypes
from typing import Any

import numpy as np

# What an attribute or a context variable that is not set is taken to be.
UNSET: Any = type("Unset", (), {"__slots__": (), "__repr__": lambda self: "nothing"})()
# Plain memory, other than arrays of NumPy.
MEMORY = (
    bytearray,
    memoryview,
    array.array,
    ctypes.Array,
    ctypes.Structure,
    ctypes.Union,
    ctypes.c_int.__mro__[1],
)


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
    """Attributes of an object that lie in no dict: those in `__slots__`, the class, the code and the defaults of a function."""

    __slots__ = ("owner",)

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self.owner, name, UNSET)

    def __setitem__(self, name: str, value: Any) -> None:
        if value is UNSET:
            delattr(self.owner, name)
        else:
            setattr(self.owner, name, value)


class Body:
    """What stands in a class itself."""

    __slots__ = ("owner", "space")

    def __init__(self, owner: type) -> None:
        self.owner = owner
        self.space = vars(owner)

    def __getitem__(self, name: str) -> Any:
        return self.space[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.owner, name, value)

    def __len__(self) -> int:
        return len(self.space)


class Context:
    """A context variable: its value for whoever asks."""

    __slots__ = ("owner",)

    def __init__(self, owner: contextvars.ContextVar[Any]) -> None:
        self.owner = owner

    def __getitem__(self, key: Any) -> Any:
        return self.owner.get(UNSET)

    def __setitem__(self, key: Any, value: Any) -> None:
        if value is not UNSET:
            self.owner.set(value)


class Content:
    """What a set, a small array or other memory holds, as a container of one item: the same object for as long as it is the same.

    The order in which a set gives its items counts, and whether an item is 1, 1.0 or True.
    """

    __slots__ = ("kept", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.kept = content_of(owner)

    def __getitem__(self, key: Any) -> Any:
        now, kept = content_of(self.owner), self.kept
        return kept if now == kept and (now.__class__ is bytes or same(now, kept)) else now

    def __setitem__(self, key: Any, value: Any) -> None:
        owner = self.owner
        if isinstance(owner, set):
            owner.clear()
            owner.update(value)
        elif isinstance(owner, np.ndarray):
            shape, items = value
            owner[...] = (
                np.array([*items, None], object)[:-1].reshape(shape)
                if owner.dtype.hasobject
                else np.frombuffer(items, owner.dtype).reshape(shape)
            )
        else:
            with contextlib.suppress(TypeError, ValueError), memoryview(owner) as memory:
                memory.cast("B")[:] = value


def content_of(x: Any) -> Any:
    """The items of a set, or the bytes of memory."""
    if isinstance(x, set):
        return tuple(x)
    if isinstance(x, np.ndarray):
        return (x.shape, tuple(x.flat) if x.dtype.hasobject else x.tobytes())
    with memoryview(x) as memory:
        return memory.tobytes()


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same to a program: 1, 1.0 and True are not, nor are 0.0 and -0.0.

    Numbers, strings, and tuples and frozensets of them are compared; other objects by identity.
    """
    if a is b:
        return True
    kind = a.__class__
    if kind is not b.__class__:
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, frozenset):
        return a == b and all(map(same, sorted(a, key=hash), sorted(b, key=hash)))
    if isinstance(a, (int, str, bytes)):
        return a == b
    if isinstance(a, float):
        return (a == b and (a != 0 or str(a) == str(b))) or (a != a and b != b)
    if isinstance(a, (slice, range)):
        return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    return isinstance(a, complex) and same(a.real, b.real) and same(a.imag, b.imag)


def told_apart(x: Any) -> Any:
    """What a number, tuple or other value is compared by where `==` is not enough: equal for values that are the same."""
    if isinstance(x, (tuple, frozenset)):
        return (type(x), *map(told_apart, sorted(x, key=hash) if isinstance(x, frozenset) else x))
    if isinstance(x, (slice, range)):
        return (type(x), *map(told_apart, (x.start, x.stop, x.step)))
    return (type(x), repr(x) if isinstance(x, (float, complex)) else x)
