"""How long launches take, roughly, and when a second thread is worth its while. Bits never depend on it.

A launch is estimated from the elementary operations that its kernel states (`Kernel.work`), the bytes that it touches and the
kind of kernel: an operation of a map is one lane of a vector instruction, of a contraction a multiplication or an addition, of a
scatter a dependent load and store.

The constants fit a present x86 core.
"""

from __future__ import annotations

import functools
import json
import os
import platform
from dataclasses import asdict, dataclass, fields
from typing import Any

# Operations in a nanosecond, of one thread, by the kind of kernel (the first word of its name).
RATES = {
    "map": 40.0, "tiles": 20.0, "rows": 60.0, "columns": 100.0, "partials": 60.0, "contract": 100.0, "attention": 50.0,
    "scatter": 4.0, "scan": 2.0, "finish": 7.0,
}  # fmt: skip
RATE = 50.0  # of any other kind
# These move what the contraction reads; the operations they state are those of the contraction.
MOVING = ("pack", "layout", "convert")
LATENCY = 0.1  # microseconds of a launch that does nothing


@dataclass(frozen=True)
class Costs:
    """What the estimates rest on.

    speed: vector operations of this machine over those of the machine of `RATES`. bandwidth: bytes a nanosecond that one
    thread moves in the shared cache. part: microseconds that a part should take at least: some twenty times what it
    costs to hand it to another thread. wake: microseconds that a program should still take for a sleeping
    thread to be woken.
    """

    speed: float = 1.0
    bandwidth: float = 20.0
    part: float = 3.0
    wake: float = 25.0

    def microseconds(self, kernel: str, work: int, moved: int) -> float:
        """Of one launch on one thread. kernel: its symbol; moved: bytes of the memory that it touches."""
        kind = kernel.partition("_")[0]
        moving = moved / (self.bandwidth * 1000)
        if kind in MOVING:
            return LATENCY + 2 * moving
        return LATENCY + max(work / (RATES.get(kind, RATE) * self.speed * 1000), moving)


DEFAULT = Costs()


def turned_off() -> bool:
    """Whether the environment asks for the costs that every machine has. Raises `ValueError` if it asks for something else."""
    asked = os.environ.get("GRAPHC_COSTS", "")
    if asked not in ("", "default"):
        raise ValueError(
            f"GRAPHC_COSTS={asked}: it may be 'default' (the same costs on every machine); unset it to use measured ones"
        )
    return asked == "default"


@functools.cache
def costs() -> Costs:
    """The costs of this process: those measured on this machine if there are any, else `DEFAULT`."""
    if turned_off():
        return DEFAULT
    return _stored() or DEFAULT


def _name() -> str:
    from graphc.codegen import cache
    from graphc.codegen.llvm.target import host_target

    return cache.key(f"costs of {platform.node()} {os.cpu_count()}", host_target().key())


def _stored() -> Costs | None:
    from graphc.codegen import cache

    data = cache.get(_name())
    if data is None:
        return None
    try:
        found = json.loads(data)
        return Costs(**{f.name: float(found[f.name]) for f in fields(Costs)})
    except (ValueError, KeyError, TypeError):
        return None


def describe(c: Costs) -> dict[str, Any]:
    """The constants by name, for the command line."""
    return asdict(c)
