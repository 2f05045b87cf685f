"""Devices. There is one: "cpu"."""

from __future__ import annotations

from typing import Any


class Device:
    """Where a tensor's memory is and its programs run. Equal to its name."""

    __slots__ = ("type",)

    def __init__(self, type: str) -> None:
        self.type = type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Device, str)) and str(other) == self.type

    def __hash__(self) -> int:
        return hash(self.type)

    def __str__(self) -> str:
        return self.type

    def __repr__(self) -> str:
        return f"device({self.type!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (device, (self.type,))


CPU = Device("cpu")


def device(spec: Any = "cpu") -> Device:
    """The device named `spec`. Raises `ValueError` for a name graphc does not know, `RuntimeError` for "cuda"."""
    if isinstance(spec, Device):
        return spec
    name = str(spec).partition(":")[0]
    if name == "cpu":
        return CPU
    if name == "cuda":
        raise RuntimeError(
            'the device "cuda" is not available: this version of graphc has no CUDA runtime; use device "cpu"'
        )
    raise ValueError(f'{spec!r} is not a device; graphc has "cpu"')


def check_device(spec: Any) -> None:
    """Raise unless `spec` is None or a device that exists."""
    if spec is not None:
        device(spec)
