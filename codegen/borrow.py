"""Kernels that are loaded, for groups of other sizes: every variant of a group is right for all extents, but for what it holds literal.

What a canonical text leaves open a kernel may still hold: a convolution over windows is made for one geometry, which its schedule
names (`literal`). Such a kernel serves what agrees with it there. Of those that serve the one for the nearest sizes is taken.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphc.codegen.donation import InPlace
from graphc.ir.function import Function

Hint = Mapping[str, int]
MOST_REMEMBERED, MOST_SIZES = 8192, 64
# Sizes are near where no extent is more than so many times another.
NEAR = 4
# A launch of so many elementary operations is short, however badly its kernel suits the sizes: shorter than making another.
SHORT = 2_000_000_000
_LITERAL = re.compile(r"\bliteral=(\((?:\('\w+', \d+\),? ?)*\))")


@dataclass(frozen=True)
class Loaded:
    """Kernels for a canonical group: the extents that chose them, and those that they serve only. compiled: a `CompiledGroup`.

    own: they were chosen freely, not so as to serve other sizes too.
    """

    hint: Hint
    literal: Hint
    compiled: Any
    own: bool


_loaded: dict[Any, list[Loaded]] = {}


def literal_of(choice: str) -> dict[str, int]:
    """The extents that a variant holds literal, with their values."""
    return {name: n for text in _LITERAL.findall(choice) for name, n in ast.literal_eval(text)}


def remember(
    canonical: Function, in_place: InPlace, target: Any, hint: Hint, choice: str, compiled: Any, own: bool
) -> None:
    """Kernels are there from now on, or are known to be those of further extents."""
    if len(_loaded) >= MOST_REMEMBERED:
        _loaded.clear()
    known = _loaded.setdefault((canonical.key(), in_place, target), [])
    if not any(k.hint == hint and k.compiled is compiled for k in known):
        known.append(Loaded(dict(hint), literal_of(choice), compiled, own))
        del known[: -MOST_SIZES]


def nearest(
    canonical: Function, in_place: InPlace, target: Any, hint: Hint, stream: bool, any_short: bool
) -> tuple[Any, bool] | None:
    """The kernels to take for extents like `hint`, and whether they were chosen for just these; None if there are none.

    stream: as for `Wanted`. any_short: sizes far away will do for short launches.
    """
    best: Loaded | None = None
    least = 0.0
    for found in _loaded.get((canonical.key(), in_place, target), ()):
        if (found.compiled.streams and not stream) or found.hint.keys() != hint.keys():
            continue
        if any(hint[e] != n for e, n in found.literal.items()):
            continue
        distance = max((max(n, found.hint[e]) / max(1, min(n, found.hint[e])) for e, n in hint.items()), default=1.0)
        if distance > NEAR and not (any_short and _short(found.compiled, hint)):
            continue
        if best is None or (distance, not found.own) < (least, not best.own):
            best, least = found, distance
    return (best.compiled, best.own and best.hint == hint) if best is not None else None


def _short(compiled: Any, hint: Hint) -> bool:
    from graphc.codegen.kernels import evaluate_size

    return sum(evaluate_size(launch.work, hint) for launch in compiled.launches) <= SHORT


def forget() -> None:
    """Nothing is there."""
    _loaded.clear()
