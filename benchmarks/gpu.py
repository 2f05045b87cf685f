"""`python -m benchmarks.gpu`: graphc on a CUDA device beside PyTorch and beside the device's own copies.

Every peer is timed by the wall clock over many calls that end with one synchronisation, in turn, in one process. "torch"
is cuBLAS for products and the fastest of PyTorch's attention kernels for attention. Without a device the rows of compile time are
measured and the others are named as not measured.
"""

from __future__ import annotations

import argparse
import gc as collector
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Clocked, Figure, Row, full, toy
from benchmarks.gpu_rows import rows, synchronise
from benchmarks.harness import Result, judge
from benchmarks.measure import PAUSE, Effort, ratio
from benchmarks.report import markdown, print_table

SECONDS = 0.05  # of one batch of calls


def device_name() -> str | None:
    """The name of the device that is measured, None where there is none."""
    import graphc as gc

    return gc.cuda.get_device_name(0) if gc.cuda.is_available() else None


def timer(work: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of one call, over as many as take `SECONDS`, all in flight together."""

    def batch(calls: int) -> float:
        synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise()
        return (time.perf_counter() - start) / calls

    for _ in range(3):  # compiles, and captures
        once = batch(1)
    calls = max(1, min(10_000, int(SECONDS / max(once, 1e-6))))
    return lambda: batch(calls)


def copies(nbytes: float) -> Callable[[], Any]:
    """A copy by the driver that moves so many bytes in all, half of them read."""
    from graphc.runtime.device import device

    context, count = device("cuda").context, max(1, int(nbytes / 2))
    source, target = (context.allocator.take(count)[0] for _ in range(2))
    return lambda: context.copy(target, source, count)


def arrays(result: Any) -> list[np.ndarray]:
    """The arrays of a result as float64 on the host."""
    if isinstance(result, (tuple, list)):
        return [a for part in result for a in arrays(part)]
    if result is None:
        return []
    host = result.detach().cpu()
    host = host.float() if "float16" in str(host.dtype) else host
    return [np.asarray(host.numpy(), np.float64)]


def check(works: Mapping[str, Any], tolerance: float) -> None:
    """Raise `ValueError` where PyTorch computes something else."""
    ours = arrays(works["graphc"]())
    for name, work in works.items():
        if name == "graphc" or isinstance(work, Clocked):
            continue
        for a, b in zip(ours, arrays(work()), strict=True):
            far, scale = float(np.max(np.abs(a - b), initial=0.0)), float(np.max(np.abs(a), initial=1e-30))
            if a.shape != b.shape or not far <= tolerance * scale:
                raise ValueError(f"{name} differs from graphc by {far:.3g} where values reach {scale:.3g}")


def measure(row: Row, case: Case, effort: Effort) -> Result:
    """All peers of a row, in turn."""
    result = Result(row.name, row.family, 1, figure=row.figure.text if row.figure else "")
    works: dict[str, Any] = {}
    for name, make in case.peers.items():
        try:
            works[name] = make()
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
    if case.tolerance is not None:
        check(works, case.tolerance)
    clocks = {name: w.run if isinstance(w, Clocked) else timer(w) for name, w in works.items()}
    if case.limit == "memory":
        clocks["limit"] = timer(copies(case.bytes))
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(effort.rounds):
        for name, clock in clocks.items():
            time.sleep(PAUSE if effort.batch else 0.0)
            times[name].append(clock())
    result.times, result.flops, result.bytes, result.limit = times, case.flops, case.bytes, case.limit
    if row.figure is not None:
        result.met = judge(row.figure, result)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows and families with this in their name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="toy sizes, one call each: checks the benchmarks only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    name = device_name()
    print(f"device: {name or 'none'}", file=sys.stderr)
    effort = Effort(1, 0.0, 1) if options.toy else Effort(options.rounds)
    results = []
    for row in rows:
        if options.only.lower() not in f"{row.family} {row.name}".lower():
            continue
        if name is None and row.family != "compile time":
            results.append(Result(row.name, row.family, 1, figure=row.figure.text if row.figure else "", error="not measured: no device"))
            continue
        try:
            results.append(measure(row, row.make(toy if options.toy else full), effort))
        except Exception as error:
            results.append(Result(row.name, row.family, 1, error=f"{type(error).__name__}: {error}"))
        collector.collect()
        shown = {k: f"{min(v) * 1e6:.1f} us" for k, v in results[-1].times.items()}
        print(row.name, shown, results[-1].error, file=sys.stderr)
        if options.json:
            told = [{"row": r.name, "times": r.times, "flops": r.flops, "bytes": r.bytes, "error": r.error} for r in results]
            options.json.write_text(json.dumps({"device": name, "rows": told}, indent=1))
    print_table(results)
    if options.markdown:
        options.markdown.write_text(f"Device: {name}\n\n{markdown(results)}\n")
    return 1 if any(r.error and not r.error.startswith("not measured") for r in results) else 0


__all__ = ["Figure", "main", "ratio"]

if __name__ == "__main__":
    sys.exit(main())
