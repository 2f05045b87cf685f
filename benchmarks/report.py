"""Results as a table for the terminal or as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.case import PEERS
from benchmarks.harness import Result

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def show_time(seconds: float | None) -> str:
    """Three digits and a unit; nothing for no time."""
    if seconds is None:
        return ""
    scale, unit = next(((s, u) for s, u in _UNITS if abs(seconds) >= s), (1e-9, "ns"))
    value = seconds / scale
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def rate(result: Result) -> str:
    """graphc's arithmetic or memory rate, where the row says what it does."""
    seconds = result.seconds("graphc")
    if not seconds:
        return ""
    if result.limit == "fma" or (not result.limit and result.flops):
        return f"{result.flops / seconds / 1e9:.0f} GFLOP/s"
    return f"{result.bytes / seconds / 1e9:.0f} GB/s" if result.bytes else ""


def best_over(result: Result) -> str:
    """The fastest peer's time over graphc's, and its name."""
    found = [(over, p) for p in PEERS[1:] if (over := result.over(p)) is not None]
    return f"{min(found)[0]:.2f} {min(found)[1]}" if found else ""


def reached(result: Result) -> str:
    """The figure to reach, and whether it is."""
    if result.error:
        return f"failed: {result.error}"
    word = {True: "reached", False: "NOT reached", None: "not judged"}[result.met]
    return f"{result.figure}: {word}" if result.figure else ""


HEADINGS = ("row", "threads", *PEERS, "best peer / graphc", "rate", "of limit", "figure")


def cells(result: Result) -> list[str]:
    """One line of the table."""
    share = result.of_limit()
    times = [show_time(result.seconds(p)) for p in PEERS]
    limit = "" if share is None else f"{100 / share:.0f} %"
    return [result.name, str(result.threads), *times, best_over(result), rate(result), limit, reached(result)]


def markdown(results: Sequence[Result]) -> str:
    """One table for each family."""
    lines: list[str] = []
    for family in dict.fromkeys(r.family for r in results):
        members = [cells(r) for r in results if r.family == family]
        used = [i for i in range(len(HEADINGS)) if any(c[i] for c in members)]
        lines += ["", f"### {family}", "", "| " + " | ".join(HEADINGS[i] for i in used) + " |"]
        lines.append("| " + " | ".join("---" if i in (0, len(HEADINGS) - 1) else "---:" for i in used) + " |")
        lines += ["| " + " | ".join(c[i] for i in used) + " |" for c in members]
    return "\n".join(lines[1:])


def print_table(results: Sequence[Result]) -> None:
    """The table on the terminal, in colour where there is some."""
    from rich.console import Console
    from rich.table import Table

    # Piped to a file, a table is as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for family in dict.fromkeys(r.family for r in results):
        members = [r for r in results if r.family == family]
        lines = [cells(r) for r in members]
        used = [i for i in range(len(HEADINGS)) if any(c[i] for c in lines)]
        table = Table(title=family, title_justify="left", show_edge=False)
        for i in used:
            table.add_column(HEADINGS[i], justify="left" if i in (0, len(HEADINGS) - 1) else "right", no_wrap=i == 0)
        for result, line in zip(members, lines, strict=True):
            bad = result.error or result.met is False
            table.add_row(*(line[i] for i in used), style="red" if bad else None)
        console.print(table)
        console.print()
