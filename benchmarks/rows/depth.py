"""Depth: what a compiled GPT step costs to plan as layers are added, and how many kernels it needs.

`python -m benchmarks.rows.depth` prints all of it: kernels compiled (which stay as they are), seconds of planning (which grow
with the layers), peak memory. Every size is measured in a process of its own, with an empty cache of compiled code.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.case import Case, Clocked, Size, row

FAMILY = "compiled functions"
LAYERS = (2, 8, 32, 64)


@dataclass(frozen=True)
class Depth:
    """One first call. operations: after the passes; planning: seconds between the trace and machine code (`Report.planning`);
    memory: bytes by which the process grew at most, from before the call on."""

    layers: int
    operations: int
    launches: int
    kernels: int
    compiled: int
    planning: float
    total: float
    memory: int


def measure(layers: int) -> Depth:
    """One first call in a fresh process."""
    from benchmarks.rows.start import ROOT

    command = [sys.executable, "-m", "benchmarks.rows.depth", str(layers)]
    with tempfile.TemporaryDirectory(prefix="graphc-benchmark-") as cache:
        told = {**os.environ, "GRAPHC_CACHE_DIR": cache, "GRAPHC_COSTS": "default"}  # measuring costs compiles kernels too
        done = subprocess.run(command, cwd=ROOT, env=told, check=True, capture_output=True, text=True)
    return Depth(**json.loads(done.stdout))


def here(layers: int) -> Depth:
    """One first call in this process. Layers are narrow, so that the call is about its compilation."""
    import resource

    import graphc as gc

    from benchmarks import gpt

    size = dataclasses.replace(gpt.SMALL, layers=layers, batch=2, length=32)
    model = gpt.model_of(gc.nn, gc.nn.functional, size)
    optimizer = gc.optim.AdamW(model.parameters(), lr=gpt.RATE)

    @gc.compile
    def step(x: Any, t: Any) -> Any:
        loss = model(x, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    data = [gc.asarray(a) for a in gpt.data(size)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(*data).item()
    # Kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    [report] = step.compile_reports()
    return Depth(
        layers,
        report.optimised,
        report.groups,
        report.kernels,
        report.compiled,
        report.planning,
        report.total,
        memory,
    )


def _planning(layers: int) -> Callable[[Size], Case]:
    def make(size: Size) -> Case:
        depth = size(layers, 1)
        return Case({"graphc": lambda: Clocked(lambda: measure(depth).planning)}, tolerance=None)

    return make


for _layers in (8, 64):
    row(f"planning of a GPT step, {_layers} layers", FAMILY, rounds=3)(_planning(_layers))


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(dataclasses.asdict(here(int(sys.argv[1])))))
        return
    print("| layers | operations | launches | kernels | compiled | planning, s | a layer, ms | first call, s | memory, MiB |")
    print("| --- " * 9 + "|")
    for layers in LAYERS:
        d = measure(layers)
        print(
            f"| {d.layers} | {d.operations} | {d.launches} | {d.kernels} | {d.compiled} | {d.planning:.2f} "
            f"| {d.planning / d.layers * 1e3:.0f} | {d.total:.2f} | {d.memory / (1 << 20):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
