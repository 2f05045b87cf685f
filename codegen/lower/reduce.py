"""Row groups: reductions over the same dimensions of one domain, with their surroundings.

Reductions are ordered into levels (a level may read the results of lower ones); each level is one
sweep over the reduced dimensions, a last sweep stores what has the full shape. Two forms:

- rows: the reduced dimensions are the innermost; lanes run along them;
- columns: kept dimensions lie further in; lanes run along the last of them.

Both combine elements in the order that the bit contract fixes: lane i mod 32 within chunks of
4096, the lanes by halving, the chunks in ascending order.
"""

from __future__ import annotations

from graphc.codegen.loops import Kernel
from graphc.codegen.lower.columns import lower_columns
from graphc.codegen.lower.index import dim_expr
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
    is_columns,
)
from graphc.codegen.lower.rows import lower_rows
from graphc.ir.function import Function, Operation
from graphc.ir.types import Shape, size_of


def lower_reduce(group: Function, hint: dict[str, int]) -> Lowered:
    """The kernels of a row group. `hint` gives likely values of the extents."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    first = next(op for op in group.ops if op.name in REDUCE)
    axes = first.attrs["axes"] if "axes" in first.attrs else (first.attrs["axis"],)
    row = RowGroup(group, pull, Names(), first.operands[0].type.shape, tuple(axes))
    targets = list(zip(group.results, results, strict=True))
    if partitioned(group, hint):
        return lower_partitioned(row, params, results, targets)
    columns = is_columns(row.shape, row.axes)
    body, parallel = (lower_columns if columns else lower_rows)(row, targets)
    kernel = Kernel(
        name="columns" if columns else "rows",
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=parallel,
        work=dim_expr(size_of(row.shape)) * work_of(group),
        body=tuple(body),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def partitioned(group: Function, hint: dict[str, int]) -> bool:
    """Whether the chunks of a row are worth distributing over threads: few rows, long ones.

    Part of the choice of kernel, hence of its key.
    """
    ops = [op for op in group.ops if op.name in REDUCE]
    first = ops[0]
    axes = first.attrs["axes"] if "axes" in first.attrs else (first.attrs["axis"],)
    shape = first.operands[0].type.shape
    level_one = all(
        not any(u.name in REDUCE for u in _ancestors(group, op)) and op.name not in ("argmax", "argmin")
        for op in ops
    )
    if not level_one or any(r.type.shape == shape for r in group.results):
        return False

    def value(dims: Shape) -> int:
        from graphc.ir.types import substitute

        d = substitute(size_of(dims), hint)
        return d if isinstance(d, int) else 64

    length = value(tuple(shape[a] for a in axes))
    rows = value(tuple(d for i, d in enumerate(shape) if i not in axes))
    lanes = value((shape[-1],)) if is_columns(shape, tuple(axes)) else 1
    return length >= 4 * CHUNK and rows // max(1, min(lanes, LANES)) < 16


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
