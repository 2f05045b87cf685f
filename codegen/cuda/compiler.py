"""CUDA C to a cubin for one exact architecture: NVRTC in this process where its library is found, else an nvcc process."""

from __future__ import annotations

import re


class CompilerMissing(RuntimeError):
    """No compiler; the message says what was looked for and how to get it."""


class CompileError(RuntimeError):
    """A compiler rejected a text that graphc wrote: always a bug of graphc. The message shows the lines."""

    def __init__(self, what: str, shown: str) -> None:
        super().__init__(f"{what}; this is a bug in graphc, please report it with this text:\n{shown}")


def excerpt(text: str, log: str, source: str, most: int = 8) -> str:
    """The errors of a compiler's log, each with the line of the text that it is about."""
    lines = text.splitlines()
    out: list[str] = []
    for entry in log.splitlines():
        if "error" not in entry:
            continue
        out.append(entry.strip())
        place = re.search(rf"{re.escape(source)}[:(](\d+)", entry)
        if place and 0 < int(place[1]) <= len(lines):
            out.append(f"    {place[1]} | {lines[int(place[1]) - 1]}")
        if len(out) >= 2 * most:
            break
    return "\n".join(out) or log.strip()[-2000:]
