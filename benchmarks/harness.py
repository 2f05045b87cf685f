"""Runs rows in worker processes and gathers results: a row's times, ratios, share of the limit, figure reached."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import ALL, Figure, Row
from benchmarks.measure import Effort, ratio
from benchmarks.worker import environment

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """A row that was measured.

    times: peer -> seconds of each round; "limit" is the time that the machine's limit allows for the work.
    """

    name: str
    family: str
    threads: int
    times: dict[str, list[float]] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    limit: str = ""
    figure: str = ""
    met: bool | None = None
    error: str = ""

    def seconds(self, peer: str) -> float | None:
        """The median of a peer's rounds."""
        return statistics.median(self.times[peer]) if peer in self.times else None

    def over(self, peer: str) -> float | None:
        """How many times graphc's time a peer takes."""
        if "graphc" not in self.times or peer not in self.times:
            return None
        return ratio(self.times[peer], self.times["graphc"])

    def of_limit(self) -> float | None:
        """graphc's time over the time that the limit allows."""
        return ratio(self.times["graphc"], self.times["limit"]) if {"graphc", "limit"} <= self.times.keys() else None


def judge(figure: Figure, result: Result) -> bool | None:
    """Whether the figure is reached; None where the peers it speaks of are missing."""
    ours = result.seconds("graphc")
    if ours is None:
        return None
    if figure.of_limit:
        share = result.of_limit()
        return None if share is None else share <= figure.of_limit
    if figure.faster_than:
        over = [result.over(p) for p in figure.faster_than]
        return None if None in over else all(o is not None and o > figure.share for o in over)
    base = result.seconds(figure.above) if figure.above else 0.0
    return None if base is None else ours - base <= figure.seconds


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("graphc", "numpy", "llvmlite", "torch", "jax", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), model)
    return {
        "cpu": model,
        "cpus": cpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def run(
    rows: Iterable[Row], effort: Effort, toy: bool = False, peers: Iterable[str] = (), timeout: float = 3600
) -> Iterator[Result]:
    """Measure rows, one worker process for each family and number of threads; gives results as they come."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        threads = cpus() if row.threads == ALL else min(row.threads, cpus())
        groups.setdefault((row.family, threads), []).append(row)
    for (_, threads), members in groups.items():
        yield from _run_group(members, threads, effort, toy, tuple(peers), timeout)


def _run_group(
    rows: list[Row], threads: int, effort: Effort, toy: bool, peers: tuple[str, ...], timeout: float
) -> Iterator[Result]:
    command = [sys.executable, "-m", "benchmarks.worker", "--threads", str(threads)]
    command += ["--rows", "|".join(r.name for r in rows)]
    command += ["--effort", f"{effort.rounds},{effort.batch},{effort.batches}"]
    command += ["--peers", ",".join(peers)] if peers else []
    command += ["--toy"] if toy else []
    missing = {r.name: r for r in rows}
    with subprocess.Popen(command, env=environment(threads), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            yield _result(missing.pop(told["row"]), threads, told)
        process.wait(timeout)
    for row in missing.values():
        yield Result(row.name, row.family, threads, error=f"the process that measures it ended with {process.returncode}")


def _result(row: Row, threads: int, told: dict[str, Any]) -> Result:
    result = Result(row.name, row.family, threads, figure=row.figure.text if row.figure else "")
    if "error" in told:
        result.error = told["error"]
        return result
    result.times, result.limit = told["times"], told["limit"]
    result.flops, result.bytes = told["flops"], told["bytes"]
    if row.figure is not None:
        result.met = judge(row.figure, result)
    return result


def as_json(results: Iterable[Result], before: dict[str, Any]) -> str:
    """All rounds of all rows, with the machine and its load before and after."""
    return json.dumps(
        {"machine": before, "load_after": [round(x, 2) for x in os.getloadavg()], "rows": [asdict(r) for r in results]},
        indent=1,
    )


Choose = Callable[[Row], bool]
