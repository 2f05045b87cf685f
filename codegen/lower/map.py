"""Map groups: every element of the domain on its own.

Rank 1 (after collapsing, most of them): lanes along the only dimension, threads along blocks.
Higher ranks: one item is a block of the innermost dimension; the outer coordinates are divided
out once an item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphc.codegen.expr import index, var
from graphc.codegen.loops import For, Kernel, Let, Stmt
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    minimum,
    split_coords,
    store_results,
    sweep,
)
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function
from graphc.ir.registry import lookup
from graphc.ir.types import Dim, size_of, substitute

STREAM_BYTES = 32 << 20  # results beyond what the caches hold
BLOCK = 2048  # elements of the innermost dimension in one item
WIDTH = 16


def width_for(group: Function) -> int:
    """Lanes of a vector region: wider where elements are small and bodies are cheap."""
    if len(group.ops) > 12:
        return WIDTH
    widest = max((v.type.dtype.itemsize for v in (*group.params, *group.results)), default=4)
    return {1: 64, 2: 32}.get(widest, WIDTH)


def work_of(group: Function) -> int:
    """Rough elementary operations for each element of the domain."""
    heavy = sum(8 for op in group.ops if lookup(op.name).family in ("random", "pool", "indexing"))
    return 1 + len(group.params) + len(group.ops) + heavy


def streams(group: Function, hint: Mapping[str, int]) -> bool:
    """Whether results are so large that they should go past the caches; part of the choice of kernel.

    Only for one dimension, where every full vector starts at a multiple of 64 bytes.
    """
    shape = group.results[0].type.shape
    if sum(d != 1 for d in shape) > 1 or any(r.type.dtype.itemsize < 4 for r in group.results):
        return False
    if width_for(group) != WIDTH:
        return False
    size = substitute(sum_of(r.type.nbytes for r in group.results), hint)
    return isinstance(size, int) and size >= STREAM_BYTES


def sum_of(dims: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for d in dims:
        total = total + d
    return total


def lower_map(group: Function, stream: bool = False) -> Lowered:
    """The kernel of a map group. stream: results go past the caches, and are aligned to 64 bytes."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    shape = group.results[0].type.shape
    targets = list(zip(group.results, results, strict=True))
    names = Names()
    begin, end = var("begin"), var("end")
    width = width_for(group)
    big = [i for i, d in enumerate(shape) if d != 1]
    inner = big[-1] if big else None
    n = dim_expr(shape[inner]) if inner is not None else index(1)
    outer = tuple(1 if i == inner else d for i, d in enumerate(shape))
    blocks = ceil_div(n, BLOCK)
    item, block, row = names.fresh("item"), names.fresh("block"), names.fresh("row")
    if len(big) <= 1:
        body: list[Stmt] = [Let(block, item)]
        coords = tuple(index(0) for _ in shape)
    else:
        body = [Let(row, item // blocks), Let(block, item % blocks)]
        stmts, coords = split_coords(row, outer, names)
        body += stmts
    start, stop = names.fresh("s"), names.fresh("t")
    body += [Let(start, block * BLOCK), Let(stop, minimum(start + BLOCK, n))]
    body += sweep(
        start,
        stop,
        width,
        names,
        lambda i, lane: store_results(
            pull, targets, tuple(i if d == inner else c for d, c in enumerate(coords)), shape, stream
        ),
    )
    rows = dim_expr(size_of(outer))
    kernel = Kernel(
        name="map",
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=rows * blocks,
        work=rows * n * work_of(group),
        body=(For(item, begin, end, tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
