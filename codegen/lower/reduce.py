"""Row groups: reductions over the same dimensions of one domain, with their surroundings.

Reductions are ordered into levels (a level may read the results of lower ones); each level is one
sweep over the reduced dimensions, a last sweep stores what has the full shape. The forms:

- rows: the reduced dimensions are the innermost; lanes run along them;
- short rows: lanes run across rows, which are turned in registers;
- columns: kept dimensions lie further in; lanes run along the last of them;
- both at once (lanes.py): rows, while accumulators of the columns lie in a cache.

All combine elements in the order that the bit contract fixes: lane i mod 32 within chunks of
4096, the lanes by halving, the chunks in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.literal import short_length
from graphc.codegen.loops import Kernel
from graphc.codegen.lower.columns import LEVELS, Blocking, lower_columns
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lanes import is_joined, lower_lanes, row_axes
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import (
    Names,
    group_buffers,
    group_extents,
)
from graphc.codegen.lower.partials import lower_partitioned
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import (
    CHUNK,
    LANES,
    REDUCE,
    RowGroup,
    axes_of,
    identity_of,
    is_columns,
    single_pass,
)
from graphc.codegen.lower.rows import lower_rows
from graphc.codegen.lower.short import lower_short
from graphc.ir.function import Function, Operation
from graphc.ir.types import Shape, size_of, substitute


@dataclass(frozen=True)
class Schedule:
    """How a row group is computed. partitioned: chunks over threads. blocking: of the columns, if it goes down columns.
    across: lanes that run across rows, of short ones; else 0. joined: rows, and columns by lanes of chunks."""

    partitioned: bool
    blocking: Blocking | None
    across: int = 0
    joined: bool = False

    def __str__(self) -> str:
        b = self.blocking
        columns = f" columns {b.width} {b.block} {b.depth}" if b is not None else ""
        across = f" across {self.across}" if self.across else ""
        if self.joined:
            return "row joined"
        return f"row{' partitioned' if self.partitioned else ''}{columns}{across}"


def schedule_of(group: Function, hint: dict[str, int], vector_bits: int) -> Schedule:
    """The schedule for extents like `hint`; all are right for all extents, and give the same bits."""
    if is_joined(group):
        return Schedule(False, None, joined=True)
    first = next(op for op in group.ops if op.name in REDUCE)
    columns = is_columns(first.operands[0].type.shape, axes_of(first))
    return Schedule(
        partitioned(group, hint),
        blocking(group, hint, vector_bits) if columns else None,
        0 if columns else across(group, hint, vector_bits),
    )


def lower_reduce(group: Function, schedule: Schedule) -> Lowered:
    """The kernels of a row group."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    first = next(op for op in group.ops if op.name in REDUCE)
    axes = row_axes(group) if schedule.joined else axes_of(first)
    row = RowGroup(group, pull, Names(), first.operands[0].type.shape, axes)
    targets = list(zip(group.results, results, strict=True))
    if schedule.joined:
        return lower_lanes(row, params, results, targets)
    columns = schedule.blocking
    if schedule.partitioned:
        return lower_partitioned(row, params, results, targets, columns)
    if columns is not None:
        name, (body, parallel) = "columns", lower_columns(row, targets, columns)
    elif schedule.across:
        name, (body, parallel) = "short", lower_short(row, targets, schedule.across)
    else:
        name, (body, parallel) = "rows", lower_rows(row, targets)
    kernel = Kernel(
        name=name,
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=parallel,
        work=dim_expr(size_of(row.shape)) * work_of(group),
        body=tuple(body),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def partitioned(group: Function, hint: dict[str, int]) -> bool:
    """Whether the chunks of a row are worth distributing over threads: few rows, long ones."""
    ops = [op for op in group.ops if op.name in REDUCE]
    first = ops[0]
    axes = axes_of(first)
    shape = first.operands[0].type.shape
    level_one = all(
        not any(u.name in REDUCE for u in _ancestors(group, op)) and op.name not in ("argmax", "argmin")
        for op in ops
    )
    if not level_one or any(r.type.shape == shape for r in group.results):
        return False

    length = _value(tuple(shape[a] for a in axes), hint)
    rows = _value(tuple(d for i, d in enumerate(shape) if i not in axes), hint)
    lanes = _value((shape[-1],), hint) if is_columns(shape, axes) else 1
    return length >= 4 * CHUNK and rows // max(1, min(lanes, LANES)) < 16


def across(group: Function, hint: dict[str, int], vector_bits: int) -> int:
    """How many rows are computed at once, a lane each; 0 if their elements are."""
    reductions = [op for op in group.ops if op.name in REDUCE]
    first = reductions[0]
    shape, axes = first.operands[0].type.shape, axes_of(first)
    if not short_length(shape, axes):
        return 0
    # Rows of whole vectors that are only added up take as long by themselves.
    added = all(op.name not in ("max", "min", "argmax", "argmin") for op in reductions)
    if single_pass(group) and added and short_length(shape, axes) % LANES == 0:
        return 0
    held = [v for v in (*group.params, *group.results) if v.type.shape == shape] + [op.operands[0] for op in reductions]
    lanes = vector_bits // 8 // max(4, max(v.type.dtype.itemsize for v in held))
    inner = next(d for i, d in reversed(list(enumerate(shape))) if i not in axes and d != 1)
    return lanes if _value((inner,), hint) >= lanes else 0


# Bytes of accumulators of all reductions together: half of a level 2 cache.
ACCUMULATORS = 512 << 10
# Rows of fewer bytes than this are taken one by one, others so many at a time.
NARROW, DEPTH = 512, 4
# A group of more operations needs registers for other things.
SMALL = 12
# Of columns this short the accumulators are combined while they are made.
SHORT = 512


def blocking(group: Function, hint: dict[str, int], vector_bits: int) -> Blocking:
    """How columns are blocked: a few registers of lanes, and as many columns as accumulators fit into the cache.

    Memory is fastest where it is read in order: rows of a few cache lines one by one, long ones a few at a time.
    """
    ops = [op for op in group.ops if op.name in REDUCE]
    shape, axes = ops[0].operands[0].type.shape, axes_of(ops[0])
    inner = next(d for i, d in reversed(list(enumerate(shape))) if i not in axes and d != 1)
    columns, length = _value((inner,), hint), _value(tuple(shape[a] for a in axes), hint)
    sizes = [identity_of(op)[1].itemsize for op in ops if op.name not in ("argmax", "argmin")] or [8]
    lanes = max(4, vector_bits // 8 // max(sizes))
    narrow = columns * max(sizes) < NARROW
    registers = 1 if narrow else 4 if len(group.ops) <= SMALL else 2
    width = min(64, lanes * registers)
    for segment in _segments(group):
        # Lanes that lie in one segment read side by side (segments.py).
        if segment % 8 == 0:
            width = min(width, segment & -segment)
    while width > 4 and width >= 2 * columns:
        width //= 2
    depth = 1 if narrow else 0 if length <= SHORT else DEPTH
    rows = LANES if depth else LEVELS
    most = ACCUMULATORS // (rows * sum(sizes))
    return Blocking(width, max(width, _power_of_two(min(most, 2 * columns - 1))), depth)


def _segments(group: Function) -> list[int]:
    """The lengths of the literal innermost dimensions that are split or joined in a group."""
    found = []
    for op in group.ops:
        if op.name == "reshape":
            last = [shape[-1] for shape in (op.operands[0].type.shape, op.result.type.shape) if shape]
            if len(set(last)) == 2:
                found += [d for d in last if isinstance(d, int) and d == min(x for x in last if isinstance(x, int))]
    return found


def _power_of_two(n: int) -> int:
    """The largest that is not larger than `n`."""
    return 1 << max(0, n.bit_length() - 1)


def _value(dims: Shape, hint: dict[str, int]) -> int:
    """The product of dimensions where `hint` tells it, else a guess."""
    d = substitute(size_of(dims), hint)
    return d if isinstance(d, int) else 64


def _ancestors(group: Function, op: Operation) -> list[Operation]:
    producer = {r: o for o in group.ops for r in o.results}
    seen: set[Operation] = set()
    stack = [producer[v] for v in op.operands if v in producer]
    while stack:
        o = stack.pop()
        if o not in seen:
            seen.add(o)
            stack.extend(producer[v] for v in o.operands if v in producer)
    return list(seen)
