"""How long launches take, roughly, and when a second thread is worth its while. Bits never depend on it.

A launch is estimated from the elementary operations that its kernel states (`Kernel.work`), the bytes that it touches and the
kind of kernel: an operation of a map is one lane of a vector instruction, of a contraction a multiplication or an addition, of a
scatter a dependent load and store.

The constants fit a present x86 core. `measured` scales them to this machine: once, in a few milliseconds, and stored beside the
compiled kernels, under the CPU's name and the number of cores. `GRAPHC_COSTS=default` leaves them as they are.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, fields

# Operations in a nanosecond, of one thread, by the kind of kernel (the first word of its name).
RATES = {
    "map": 70.0, "squares": 70.0, "tiles": 20.0, "pool": 70.0, "rows": 40.0, "columns": 60.0, "partials": 90.0,
    "contract": 90.0, "attention": 65.0, "finish": 13.0, "scatter": 20.0, "scan": 2.0,
}  # fmt: skip
RATE = 70.0  # of any other kind
SHARED = 8 << 20  # bytes that a cache of all cores holds, which is twice as fast as memory
# These move what the contraction reads; the operations they state are those of the contraction.
MOVING = ("pack", "layout", "convert")
PATIENCE = 5.0  # seconds of a process before it measures
LATENCY = 0.1  # microseconds of a launch that does nothing


@dataclass(frozen=True)
class Costs:
    """What the estimates rest on.

    speed: vector operations of this machine over those of the machine of `RATES`. bandwidth: bytes a nanosecond that one
    thread moves from and to memory. part: microseconds that a part should take at least: some ten times what it
    costs to hand it to another thread. wake: microseconds that a program should still take for a sleeping
    thread to be woken.
    """

    speed: float = 1.0
    bandwidth: float = 25.0
    part: float = 2.0
    wake: float = 25.0

    def microseconds(self, kernel: str, work: int, moved: int) -> float:
        """Of one launch on one thread. kernel: its symbol; moved: bytes of the memory that it touches."""
        kind = kernel.partition("_")[0]
        moving = moved / (self.bandwidth * 1000 * (2 if moved < SHARED else 1))
        if kind in MOVING:
            return LATENCY + moving
        return LATENCY + max(work / (rate_of(kind) * self.speed * 1000), moving)


DEFAULT = Costs()


def rate_of(kernel: str) -> float:
    """Operations in a nanosecond, by a kernel's symbol or the first word of it."""
    return RATES.get(kernel.partition("_")[0], RATE)


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


def measured() -> Costs:
    """Measure the costs of this machine (some 20 ms), store them, and use them from now on in this process."""
    from graphc.codegen import cache
    from graphc.codegen.measure import measure

    if turned_off():
        return DEFAULT
    found = measure()
    cache.put(_name(), json.dumps(asdict(found)).encode())
    costs.cache_clear()
    return found


# When the first program of this process was compiled, and whether its costs need no measurement any more.
_first: list[float] = []
_settled: list[bool] = []


def measure_in_time() -> None:
    """Called after every compilation: measures once on a machine, in a process that has run for a while.

    Short processes and the first programs of long ones use what there is, so that nobody waits for it.
    """
    if _settled:
        return
    now = time.monotonic()
    if not _first:
        _first.append(now)
    if now - _first[0] < PATIENCE:
        return
    from graphc.codegen import cache

    _settled.append(True)
    if not turned_off() and cache.disk() is not None and _stored() is None:
        with contextlib.suppress(MemoryError):  # nobody asked for it
            measured()


def state() -> str:
    """The costs in use and where they come from, for people. Raises `ValueError` as `turned_off` does."""
    if turned_off():
        source = "the same on every machine, by GRAPHC_COSTS"
    elif _stored() is None:
        source = "those of a usual machine; measured once a process has compiled for some seconds"
    else:
        source = "measured on this machine"
    c = costs()
    return f"{source}: speed {c.speed:g}, {c.bandwidth:g} GB/s a thread, parts of {c.part:g} us"
