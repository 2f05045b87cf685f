"""Products whose results go to memory past the caches.

A result that no cache will hold until it is read takes room from what the product reads again and again, and each of its
lines is fetched before it is written. Stores past the caches write whole lines and fetch none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphc.codegen.lower.tiles import Schedule
from graphc.ir.function import Function, Value
from graphc.ir.types import size_of, substitute

# Of all results together. A reader that comes next finds the last of them in no cache, so what the caches hold stays.
LEAST_BYTES = 8 << 20
LINE = 16  # elements of 4 bytes


def past_caches(group: Function, schedule: Any, hint: Mapping[str, int]) -> Any:
    """A schedule of a product or convolution, with results past the caches where they are large and whole vectors of them start at multiples of 64 bytes."""
    if not isinstance(schedule, Schedule):
        return schedule
    root = next(op for op in group.ops if op.name in ("dot", "conv"))
    if root.name != "dot" or schedule.swap or schedule.run or schedule.lane_mode == "streamed" or schedule.lanes % LINE:
        return schedule
    if any(r.type.dtype.itemsize < 4 or not _in_order(group, r) for r in group.results):
        return schedule
    left, _ = root.operands
    inner = root.result.type.shape[left.type.rank - len(root.attrs["lhs_contract"]) :]
    lanes = substitute(size_of(inner), hint)
    sizes = [substitute(r.type.nbytes, hint) for r in group.results]
    known = isinstance(lanes, int) and all(isinstance(n, int) for n in sizes)
    if not known or lanes % LINE or sum(n for n in sizes if isinstance(n, int)) < LEAST_BYTES:
        return schedule
    return schedule._replace(past=True)


def _in_order(group: Function, result: Value) -> bool:
    """Whether a result lies in memory as the product's own result does."""
    producer = {v: op for op in group.ops for v in op.results}
    while (op := producer.get(result)) is not None and op.name in ("reshape", "permute"):
        if op.name == "permute":
            return False
        result = op.operands[0]
    return True


__all__ = ["past_caches"]
