"""From a canonical group to kernels: picks the family, and the variant where there is a choice."""

from __future__ import annotations

import functools
from typing import Any

from graphc.codegen.donation import InPlace
from graphc.codegen.fuse import ALONE, CONTRACT, REDUCE
from graphc.codegen.llvm.target import Target
from graphc.codegen.lower import attention, pool, random, scatter  # noqa: F401  (pool and random register their pull rules)
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import lower_map, map_variant
from graphc.codegen.lower.reduce import lower_reduce, schedule_of
from graphc.codegen.lower.scan import lower_scan
from graphc.codegen.report import stage
from graphc.ir.function import Function


def family(group: Function) -> str:
    """ "contract", "row", "alone" or "map"."""
    names = {op.name for op in group.ops}
    if names & CONTRACT:
        return "contract"
    if names & REDUCE:
        return "row"
    return "alone" if names & ALONE else "map"


def variant(
    group: Function, target: Target, hint: dict[str, int], stream: bool = True, changing: frozenset[str] = frozenset()
) -> str:
    """Which of its kernels a group gets for extents like `hint`; part of the kernel's key.

    stream: results may go past the caches, which asks for memory aligned to 64 bytes. changing: extents that the kernels must
    not hold literal.
    """
    kind = family(group)
    if kind == "contract":
        at = tuple(sorted(hint.items()))
        schedule = _schedule(group, target, at)
        if any(name in changing for name, _ in getattr(schedule, "literal", ())):
            schedule = _schedule(group, target, at, windows=False)
        if stream:
            from graphc.codegen.lower.past import past_caches

            schedule = past_caches(group, schedule, hint)
        return f"contract {schedule}"
    if kind == "row":
        return str(schedule_of(group, hint, target.vector_bits))
    if kind == "alone" and (op := attention.attention_of(group)) is not None:
        return attention.variant(op, hint)
    if kind == "alone" and not _scans(group):
        return scatter.variant(group, hint, changing)
    return map_variant(group, hint, stream) if kind == "map" else kind


@functools.lru_cache(maxsize=256)
def _schedule(group: Function, target: Target, hint: tuple[tuple[str, int], ...], windows: bool = True) -> Any:
    """The schedule of a contraction: asked for once for the key, and again if it must be lowered. windows: `literal` of `contract.variant`."""
    from graphc.codegen.lower.contract import variant as contraction_variant

    return contraction_variant(group, dict(hint), target.vector_bits, windows)


def lower(
    group: Function, target: Target, hint: dict[str, int], choice: str = "", in_place: InPlace = ()
) -> Lowered:
    """The kernels of a canonical group. `hint` gives likely values of its extents; `choice` is a variant."""
    with stage("lower"):
        return _lowered(group, target, hint, choice, in_place)


def _lowered(group: Function, target: Target, hint: dict[str, int], choice: str, in_place: InPlace) -> Lowered:
    kind = family(group)
    if kind == "contract":
        from graphc.codegen.lower.contract import lower_contraction

        at = tuple(sorted(hint.items()))
        schedule = _schedule(group, target, at)
        if choice.startswith("contract Schedule(") and not str(schedule).startswith("Schedule("):
            # A product, of a convolution that has windows as well, or of one size as well.
            schedule = _schedule(group, target, at, windows=False)
        if "past=True" in choice:
            schedule = schedule._replace(past=True)
        return lower_contraction(group, target, hint, schedule)
    if kind == "row":
        return lower_reduce(group, schedule_of(group, hint, target.vector_bits))
    if kind == "map":
        return lower_map(group, choice or map_variant(group, hint, False), in_place)
    if (op := attention.attention_of(group)) is not None:
        return attention.lower_attention(group, op, target.vector_bits, choice or attention.variant(op, hint))
    return lower_scan(group) if _scans(group) else scatter.lower_scatter(group, choice or scatter.variant(group, hint))


def _scans(group: Function) -> bool:
    return any(op.name == "linear_scan" for op in group.ops)
