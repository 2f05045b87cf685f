"""What a size that is left open probably is: decisions on what pays need a number, what is right never does.

The symbols of general functions (general.py) have the number in their name: n0_32 was 32 once.
"""

from __future__ import annotations

import functools
import re

from graphc.ir.types import Dim, DimExpr, substitute

_NAME = re.compile(r"n\d+_(\d+)")


def name_of(place: int, size: int) -> str:
    """The name of a symbol that probably is `size`."""
    return f"n{place}_{size}"


@functools.lru_cache(maxsize=4096)
def _likely(d: DimExpr) -> int | None:
    values: dict[str, Dim] = {s: int(m[1]) for s in d.symbols() if (m := _NAME.fullmatch(s))}
    found = substitute(d, values)
    return found if isinstance(found, int) else None


def likely(d: Dim) -> int | None:
    """The number, or what it probably is; None where that is not known."""
    return _likely(d) if isinstance(d, DimExpr) else d
