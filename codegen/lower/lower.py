"""From a canonical group to kernels: picks the family, and the variant where there is a choice."""

from __future__ import annotations

from graphc.codegen.fuse import ALONE, CONTRACT, REDUCE
from graphc.codegen.llvm.target import Target
from graphc.codegen.lower import pool, random  # noqa: F401  (register their pull rules)
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import lower_map
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


def variant(group: Function, target: Target, hint: dict[str, int]) -> str:
    """Which of its kernels a group gets for extents like `hint`; part of the kernel's key."""
    kind = family(group)
    if kind == "contract":
        from graphc.codegen.lower.contract import variant as contraction_variant

        return f"contract {contraction_variant(group, hint, target.vector_bits)}"
    if kind == "row":
        return "row partitioned" if partitioned(group, hint) else "row"
    return kind


def lower(group: Function, target: Target, hint: dict[str, int]) -> Lowered:
    """The kernels of a canonical group. `hint` gives likely values of its extents."""
    kind = family(group)
    if kind == "contract":
        from graphc.codegen.lower.contract import lower_contraction

        return lower_contraction(group, target, hint)
    if kind == "row":
        return lower_reduce(group, hint)
    if kind == "map":
        return lower_map(group)
    return lower_scan(group) if any(op.name == "linear_scan" for op in group.ops) else lower_scatter(group)
