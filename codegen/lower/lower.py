"""From a canonical group to kernels: picks the family, and the variant where there is a choice."""

from __future__ import annotations

from graphc.codegen.fuse import ALONE, CONTRACT, REDUCE
from graphc.codegen.llvm.target import Target
from graphc.codegen.lower import pool, random  # noqa: F401  (register their pull rules)
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import lower_map, streams
from graphc.codegen.lower.reduce import lower_reduce, partitioned
from graphc.codegen.lower.scan import lower_scan
from graphc.codegen.lower.scatter import lower_scatter
from graphc.ir.function import Function


def family(group: Function) -> str:
    """ "contract", "row", "alone" or "map"."""
    names = {op.name for op in group.ops}
    if names & CONTRACT:
        return "contract"
    if names & REDUCE:
        return "row"
    return "alone" if names & ALONE else "map"


def variant(group: Function, target: Target, hint: dict[str, int], stream: bool = True) -> str:
    """Which of its kernels a group gets for extents like `hint`; part of the kernel's key.

    stream: results may go past the caches, which asks for memory aligned to 64 bytes.
    """
    kind = family(group)
    if kind == "contract":
        from graphc.codegen.lower.contract import variant as contraction_variant

        return f"contract {contraction_variant(group, hint, target.vector_bits)}"
    if kind == "row":
        return "row partitioned" if partitioned(group, hint) else "row"
    return "map stream" if kind == "map" and stream and streams(group, hint) else kind


def lower(group: Function, target: Target, hint: dict[str, int], choice: str = "") -> Lowered:
    """The kernels of a canonical group. `hint` gives likely values of its extents; `choice` is a variant."""
    kind = family(group)
    if kind == "contract":
        from graphc.codegen.lower.contract import lower_contraction

        return lower_contraction(group, target, hint)
    if kind == "row":
        return lower_reduce(group, hint)
    if kind == "map":
        return lower_map(group, choice == "map stream")
    return lower_scan(group) if any(op.name == "linear_scan" for op in group.ops) else lower_scatter(group)
