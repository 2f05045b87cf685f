"""Devices: "cpu" and, where there is a driver, "cuda:0", "cuda:1", ...

Invariants: there is one `Device` object for each device, so identity is equality. A device knows the memory
that its tensors live in; nothing here loads a driver before "cuda" is asked for.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from graphc.runtime import memory
from graphc.runtime.memory import Block


class Free(Protocol):
    """The blocks of one size class that wait to be used again. `pop` raises `IndexError` where there is none."""

    def pop(self) -> Block: ...


class Memory(Protocol):
    """Where blocks of memory come from."""

    def free_list(self, nbytes: int) -> Any: ...

    def obtain(self, nbytes: int) -> Block: ...


class Device:
    """Where a tensor's memory is and its programs run. Equal to its name.

    type: "cpu" or "cuda". index: which of the devices of that type, None for "cpu". context: what the CUDA runtime
    keeps for the device.
    """

    __slots__ = ("_hash", "context", "index", "memory", "name", "type")

    def __init__(self, type: str, index: int | None, memory: Memory, context: Any = None) -> None:
        self.type = type
        self.index = index
        self.name = type if index is None else f"{type}:{index}"
        self.memory = memory
        self.context = context
        self._hash = hash(self.name)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, str) and other == self.name)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"device({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (device, (self.name,))

    def __enter__(self) -> Device:
        """Within, tensors are made here unless told otherwise."""
        _default.before.append(_default.device)
        _default.device = self
        return self

    def __exit__(self, *exc: object) -> None:
        _default.device = _default.before.pop()


CPU = Device("cpu", None, memory)


class _Default(threading.local):
    """Where a thread makes tensors unless told otherwise."""

    device: Device = CPU

    def __init__(self) -> None:
        self.before: list[Device] = []


_default = _Default()


def set_default_device(device: Any) -> None:
    """Make tensors on this device unless told otherwise, in this thread. `with graphc.device("cuda"):` does so for a while.

    It concerns `tensor`, `zeros`, `arange`, `rand` and all that makes tensors from no tensor; numbers beside tensors are of no device.
    """
    _default.device = CPU if device is None else _named(device)


def get_default_device() -> Device:
    """Where this thread makes tensors unless told otherwise."""
    return _default.device


def device(spec: Any = "cpu", index: int | None = None) -> Device:
    """The device named `spec`: "cpu", "cuda" (the current one), "cuda:1", or a number of a CUDA device.

    Raises `ValueError` for a name that graphc does not know, `RuntimeError`, saying what is missing and how to get
    it, for a CUDA device that is not there.

    >>> import graphc as gc
    >>> gc.device("cpu") == gc.zeros(2).device
    True
    """
    if isinstance(spec, Device):
        return spec
    if isinstance(spec, int) and not isinstance(spec, bool):
        return _cuda(spec)
    name, _, number = str(spec).partition(":")
    if number and not number.isdecimal():
        raise ValueError(f'{spec!r} is not a device: after ":" stands its number, as in "cuda:0"')
    if name == "cpu":
        return CPU
    if name == "cuda":
        return _cuda(int(number) if number else index)
    raise ValueError(f'{spec!r} is not a device; graphc has "cpu" and "cuda"')


def _cuda(index: int | None) -> Device:
    from graphc.runtime.cuda import context

    return context.device(index)


def resolve(spec: Any) -> Device:
    """The device that an argument `device` asks for; None is the default one."""
    return _default.device if spec is None else spec if spec is CPU else device(spec)


_named = device
