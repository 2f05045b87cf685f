"""Timing: rounds over all peers in turn, so that what else the machine does meets all of them alike.

A round's time is the shortest of a few batches of calls, which leaves out the moments in which the
operating system ran something else; a row's time is the median of its rounds. The garbage collector stays on.
"""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.case import Case, Clocked, Statement, Work

# Threads of a peer's pool spin for a while after their work; they must be asleep when the next one is timed.
PAUSE = 0.02
# What takes more seconds than this is timed in so many rounds only.
SLOW, SLOW_ROUNDS = 4.0, 2


@dataclass(frozen=True)
class Effort:
    """rounds; seconds of one batch; batches in a round."""

    rounds: int = 9
    batch: float = 0.02
    batches: int = 5


QUICK = Effort(rounds=3, batch=0.01, batches=3)
LEAST = Effort(rounds=1, batch=0.0, batches=1)


class Timed:
    """One peer's work, ready to be timed in rounds."""

    def __init__(self, work: Work, effort: Effort) -> None:
        self._effort = effort
        self._clock = work.run if isinstance(work, Clocked) else None
        if isinstance(work, Clocked):
            return
        setup = "import gc; gc.enable()"
        if isinstance(work, Statement):
            self._timer = timeit.Timer(work.text, setup, globals=dict(work.names))
        else:
            self._timer = timeit.Timer(work, setup)
        self._calls = 1
        self._warm()

    def _warm(self) -> None:
        """Run until the time of a call no longer falls, and choose the calls of a batch."""
        effort = self._effort
        if effort.batch == 0.0:
            return
        start, once = time.perf_counter(), float("inf")
        while time.perf_counter() - start < 10 * effort.batch or once == float("inf"):
            once = min(once, self._timer.timeit(self._calls) / self._calls)
            wanted = max(1, int(effort.batch / max(once, 1e-9)))
            self._calls = min(wanted, self._calls * 10)

    def round(self) -> float:
        """Seconds of one call."""
        if self._clock is not None:
            return self._clock()
        return min(self._timer.timeit(self._calls) / self._calls for _ in range(self._effort.batches))


def measure(peers: Mapping[str, Work], effort: Effort) -> dict[str, list[float]]:
    """Seconds of one call of each peer, for each round."""
    timed = {name: Timed(work, effort) for name, work in peers.items()}
    times: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed)
    for i in range(effort.rounds):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            if len(times[name]) == SLOW_ROUNDS and min(times[name]) > SLOW:
                continue
            time.sleep(PAUSE if effort.batch else 0.0)
            times[name].append(timed[name].round())
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds of one time over another; of medians, where one of them was too slow for all rounds."""
    if len(above) != len(below):
        return statistics.median(above) / statistics.median(below)
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def make_peers(case: Case, only: Callable[[str], bool] = lambda name: True) -> dict[str, Work]:
    """The work of each peer whose library is installed."""
    made: dict[str, Work] = {}
    for name, make in case.peers.items():
        if not only(name):
            continue
        try:
            made[name] = make()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in ("torch", "jax", "jaxlib", "sklearn", "onnx", "onnxruntime"):
                raise
    return made


def arrays(result: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of a result, whichever library made them."""
    if isinstance(result, (tuple, list)):
        return [a for part in result for a in arrays(part)]
    if hasattr(result, "copy_outputs_to_cpu"):  # a session of ONNX Runtime that has run
        return arrays(result.copy_outputs_to_cpu())
    if hasattr(result, "detach"):
        result = result.detach()
        result = result.numpy() if hasattr(result, "numpy") else result
    return [np.asarray(result, dtype=np.float64)]


def check(peers: Mapping[str, Work], tolerance: float) -> None:
    """Raise `ValueError` where a peer computes something else than graphc."""
    results = {
        name: arrays(work() if callable(work) else eval(work.text, dict(work.names)))
        for name, work in peers.items()
        if not isinstance(work, Clocked)
    }
    ours = results.get("graphc")
    if ours is None:
        return
    for name, theirs in results.items():
        if len(theirs) != len(ours):
            raise ValueError(f"{name} gives {len(theirs)} results, graphc {len(ours)}")
        for a, b in zip(ours, theirs, strict=True):
            far = float(np.max(np.abs(a - b), initial=0.0))
            scale = float(np.max(np.abs(a), initial=1e-30))
            if a.shape != b.shape or not far <= tolerance * scale:
                raise ValueError(f"{name} differs from graphc by {far:.3g} where values reach {scale:.3g}, {a.shape} {b.shape}")
