"""From a canonical group to device kernels: which schedule for a launch's sizes, and the kernels of a schedule.

Each family's file has `choose(group, sizes, target) -> Choice` and `lower(group, choice, target) -> Lowered`; a choice made for
some sizes is right for all sizes of which its `divides` and `narrow` hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.target import Target
from graphc.codegen.donation import InPlace
from graphc.codegen.lower import pool, random  # noqa: F401  (register their pull rules)
from graphc.codegen.lower.lower import family
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function

Sizes = Mapping[str, int]
Choose = Callable[[Function, Sizes, Target], Choice]

# family -> the file under codegen/cuda/ that schedules it
FILES = {
    "map": "maps.map",
    "row": "rows.reduce",
    "contract": "products.contract",
    "scan": "indexing.scan",
    "scatter": "indexing.scatter",
    "attention": "attention.attention",
}


def kind(group: Function) -> str:
    """The key in `FILES` of a group."""
    names = {op.name for op in group.ops}
    if names & {"attention", "attention_grad"}:
        return "attention"
    found = family(group)
    if found == "alone":
        return "scan" if "linear_scan" in names else "scatter"
    return found


def choose(group: Function, sizes: Sizes, target: Target) -> Choice:
    """The schedule of a canonical group for a launch of these sizes."""
    found: Choice = import_module(f"graphc.codegen.cuda.{FILES[kind(group)]}").choose(group, sizes, target)
    return found


def lower(group: Function, choice: Choice, target: Target, in_place: InPlace = ()) -> Lowered:
    """The kernels of a canonical group under a schedule. in_place: (parameter, result) of a map that are one buffer."""
    module = import_module(f"graphc.codegen.cuda.{FILES[kind(group)]}")
    lowered: Lowered = module.lower(group, choice, target, in_place) if in_place else module.lower(group, choice, target)
    return lowered
