"""The functions that emitted C may call, copied from numbers.h and prelude.cuh: only those that are used.

A header is a list of sections, each starting with a line `// function NAME`. What a section calls is found in its text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
# dialect -> headers, later ones win; and what stands for INLINE in them
HEADERS = {"c99": ("numbers.h",), "cuda": ("numbers.h", "prelude.cuh", "hopper.h")}
INLINE = {"c99": "static inline", "cuda": "static __device__ __forceinline__"}
_MARK = re.compile(r"^// function (\w+)\n", re.MULTILINE)
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")


@functools.cache
def header_functions(header: str) -> dict[str, str]:
    """name -> text of every function of one header."""
    parts = _MARK.split((FOLDER / header).read_text())
    return {name: text.strip() + "\n" for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@functools.cache
def sections(dialect: str) -> dict[str, str]:
    """name -> text of every function of a dialect ("c99" or "cuda"), in the order of the headers."""
    if dialect not in HEADERS:
        raise ValueError(f"there is no prelude for the dialect {dialect!r}; there is one for {', '.join(HEADERS)}")
    found: dict[str, str] = {}
    for header in HEADERS[dialect]:
        found.update(header_functions(header))
    return found


def needed(names: Iterable[str], dialect: str) -> list[str]:
    """`names` with what they call, in an order in which each is defined before it is used."""
    known = sections(dialect)
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if name not in known:
            raise KeyError(f"the {dialect} prelude has no function {name!r}")
        for word in _WORD.findall(known[name]):
            if word != name and word in known:
                visit(word)
        order.append(name)

    for name in sorted(names):
        visit(name)
    return order


def functions(names: Iterable[str], dialect: str) -> str:
    """The text of the prelude functions `names` and of all that they call; "" if there are none.

    For CUDA the text stands in `#ifndef SIMULATED`, since simulate.h has its own.

    >>> print(functions(["bfloat_to_float"], "c99").splitlines()[0])
    static inline float bits_float(unsigned x) {
    """
    text = "\n".join(sections(dialect)[name] for name in needed(names, dialect))
    if not text:
        return ""
    text = re.sub(r"\bINLINE\b", INLINE[dialect], text)
    return f"#ifndef SIMULATED\n{text}#endif\n" if dialect == "cuda" else text


def used(text: str, dialect: str) -> list[str]:
    """The prelude functions that a text names."""
    return sorted(set(_WORD.findall(text)) & sections(dialect).keys())
