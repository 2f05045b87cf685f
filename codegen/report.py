"""Where the time of a compilation goes: stages timed on the way, kernels counted, a table for `GRAPHC_LOG=compile`.

A `collect` is open while something is compiled; `stage` gives the time from its begin to its end to a name, except
for what an inner stage takes, so that the stages of a report add up. Where no report is open, both do next to nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

# The stages in the order in which a program passes through them, and what they are.
STAGES = {
    "trace": "Python runs, operations are written down",
    "autodiff": "gradients",
    "inline": "pass",
    "fold": "pass",
    "simplify": "pass",
    "cse": "pass",
    "dce": "pass",
    "prepare": "reductions split, constants held",
    "fuse": "operations into groups",
    "canonical": "groups into kernels that serve every shape",
    "choose": "schedules",
    "lower": "loops",
    "emit": "LLVM text",
    "parse": "LLVM reads it",
    "code": "LLVM makes machine code",
    "wait": "for processes that make machine code",
    "cache": "reads and writes on disk",
    "link": "machine code into this process",
    "plan": "memory of each launch",
    "table": "launches",
    "run": "the first run",
}
# What GRAPHC_LOG may name.
TOPICS = ("compile",)


@dataclass
class Report:
    """One compilation. `seconds` has what each stage took in this thread; a stage of `STAGES` that did not happen is not there.

    operations: as traced, calls counted as one; groups: kernel launches of the program or, for a recording that ran in
    pieces, of all of them; kernels: distinct ones among these, of which `from_memory`, `from_disk` and `compiled` were
    found or made where; object_bytes: machine code, of those found on disk and those compiled; processes: that helped;
    away: seconds of `parse` and `code` in them, beside the seconds here.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    operations: int = 0
    optimised: int = 0
    groups: int = 0
    kernels: int = 0
    from_memory: int = 0
    from_disk: int = 0
    compiled: int = 0
    object_bytes: int = 0
    processes: int = 0
    away: float = 0.0

    @property
    def planning(self) -> float:
        """Seconds between the trace and machine code: passes, fusion, keys, the plan and its table."""
        names = ("autodiff", "inline", "fold", "simplify", "cse", "dce", "prepare", "fuse", "canonical", "choose", "plan", "table")
        return sum(self.seconds.get(n, 0.0) for n in names)

    def summary(self) -> str:
        """What was compiled, in one line."""
        found = [
            f"{count} {what}"
            for count, what in (
                (self.from_memory, "from memory"),
                (self.from_disk, "from disk"),
                (self.compiled, "compiled"),
            )
            if count
        ]
        kernels = f"{self.kernels} kernel{'s' * (self.kernels != 1)}"
        line = f"{_count(self.operations, 'operation')}, {_count(self.groups, 'group')}, {kernels}"
        line += f" ({', '.join(found)})" if found else ""
        line += f", {self.object_bytes:,} bytes of machine code" if self.object_bytes else ""
        if self.processes:
            line += f"; {_count(self.processes, 'other process')} worked {self.away * 1e3:.0f} ms"
        return line

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.total * 1e3:.1f} ms", *self._lines(), f"  {self.summary()}"])

    def rows(self) -> list[tuple[str, float, float, str]]:
        """(stage, seconds, share of the total, what it is), in the order of `STAGES`, then what no stage has."""
        known = [(n, self.seconds[n], about) for n, about in STAGES.items() if n in self.seconds]
        rest = self.total - sum(self.seconds.values())
        whole = self.total or 1.0
        return [(n, s, s / whole, about) for n, s, about in [*known, ("other", rest, "")]]

    def _lines(self) -> list[str]:
        return [f"  {n:10} {s * 1e3:9.1f} ms {share:6.1%}  {about}".rstrip() for n, s, share, about in self.rows()]

    def print(self) -> None:
        """The table on standard error; a line where little was compiled."""
        from rich.console import Console
        from rich.table import Table

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        if self.groups == 1:
            console.print(f"compile {self.name}: {self.total * 1e3:.1f} ms, {self.summary()}", markup=False)
            return
        table = Table(title=f"compile {self.name}: {self.total * 1e3:.1f} ms", title_justify="left")
        table.add_column("stage")
        table.add_column("ms", justify="right")
        table.add_column("share", justify="right")
        table.add_column("", style="dim")
        for name, seconds, share, about in self.rows():
            table.add_row(name, f"{seconds * 1e3:.1f}", f"{share:.0%}", about)
        console.print(table)
        console.print(self.summary(), markup=False)


def _count(n: int, what: str) -> str:
    plural = what + ("es" if what.endswith("ss") else "s")
    return f"{n} {what if n == 1 else plural}"


class _State(threading.local):
    report: Report | None = None
    stage: str = ""
    since: float = 0.0


_state = _State()


class stage:
    """`with stage("fuse"): ...` gives the time to that stage of the open report."""

    __slots__ = ("name", "outer")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if _state.report is not None:
            self.outer = _switch(self.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if _state.report is not None:
            _switch(self.outer)


def _switch(name: str) -> str:
    now, report, old = time.perf_counter(), _state.report, _state.stage
    if old and report is not None:
        report.seconds[old] = report.seconds.get(old, 0.0) + now - _state.since
    _state.stage, _state.since = name, now
    return old


def current() -> Report | None:
    """The report of what this thread is compiling."""
    return _state.report


@contextlib.contextmanager
def collect(name: str) -> Iterator[Report]:
    """The report of all that is compiled inside; that of an outer `collect`, if there is one.

    It is printed at the end if the environment's GRAPHC_LOG has "compile" and anything but tracing happened.
    """
    if _state.report is not None:
        yield _state.report
        return
    report = _state.report = Report(name)
    _state.stage = ""
    begin = time.perf_counter()
    try:
        yield report
    finally:
        _state.report = None
        report.total = time.perf_counter() - begin
        if "compile" in topics() and not report.seconds.keys() <= {"trace"}:
            report.print()


def topics() -> frozenset[str]:
    """What GRAPHC_LOG asks for; a name that is not known is said once, as a warning."""
    return _topics(os.environ.get("GRAPHC_LOG", ""))


@functools.lru_cache(maxsize=8)
def _topics(text: str) -> frozenset[str]:
    named = [t.strip() for t in text.split(",") if t.strip()]
    unknown = [t for t in named if t not in TOPICS]
    if unknown:
        warnings.warn(
            f"GRAPHC_LOG={text}: there is no log of {', '.join(map(repr, unknown))}; known: {', '.join(TOPICS)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return frozenset(t for t in named if t in TOPICS)


__all__ = ["STAGES", "Report", "collect", "current", "stage", "topics"]
