"""Map groups on a device: every element of the domain on its own.

| form | when | a thread takes |
| --- | --- | --- |
| map single | one element | it |
| map | the innermost dimension is a multiple of the width, or there is one dimension | vectors of consecutive elements |
| map wrapped | other innermost dimensions, of operands that are read in order | vectors that may reach into the next line |
| map rows | long innermost dimensions of other operands | elements of one line; its block divides once |
| map transpose | operands whose innermost dimension is another one than the result's | a square's share (transpose.py) |
| map join | a concat | as map, over one operand after the other (pieces.py) |
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.choice import Choice, is_narrow
from graphc.codegen.cuda.maps.pieces import join_pieces, piece_width
from graphc.codegen.cuda.maps.random import draw_vectors
from graphc.codegen.cuda.maps.sweep import (
    BLOCK,
    COUNT,
    SLACK,
    THREAD,
    THREADS,
    Lanes,
    blocks_for,
    sweep_grid,
    tiles_of,
)
from graphc.codegen.cuda.maps.transpose import across_dim, elements_for, squares
from graphc.codegen.cuda.target import Target
from graphc.codegen.donation import InPlace
from graphc.codegen.expr import Expr, equal, index, select
from graphc.codegen.loops import Buffer, For, Grid, If, Kernel, Let, Stmt
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    split_coords,
    store_results,
)
from graphc.codegen.lower.pieces import joining
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math import FUNCTIONS
from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import F64, Shape, dim_symbols, size_of, substitute

ACCESS = 16  # bytes of the widest access
# Vectors in flight hide the memory's delay; a body with more operations or operands has enough to do, or to load.
MOST_OPERATIONS, MOST_STREAMS = 20, 2
LONG_COST, INDEX_COST = 12, 8  # of exp, sin, .., and of a checked index, in operations
MOST_WRITTEN = 512  # operations of all lanes of a vector, beyond which they are 4: they take registers
LONG_LINE = 192  # elements of a line that keep a block busy


def big_dims(shape: Shape) -> list[int]:
    return [i for i, d in enumerate(shape) if d != 1]


def streams(group: Function) -> list[Value]:
    """The operands and results that have an element for each of the domain, or nearly."""
    shape = group.results[0].type.shape
    return [*(p for p in group.params if len(big_dims(p.type.shape)) >= len(big_dims(shape))), *group.results]


def width_for(group: Function) -> int:
    """Elements a thread that make 16 bytes of the widest operand; 1 where an element is much work."""
    if any(lookup(op.name).family == "pool" for op in group.ops):
        return 1
    width = ACCESS // max(v.type.dtype.itemsize for v in streams(group))
    while width > 4 and sum(map(cost, group.ops)) * width > MOST_WRITTEN:
        width //= 2
    return width


def cost(op: Operation) -> int:
    """Roughly how many simple operations one element of `op` is."""
    if lookup(op.name).family in ("random", "pool"):
        return MOST_OPERATIONS + 1
    if op.name in FUNCTIONS:
        return LONG_COST * (2 if op.results[0].type.dtype is F64 else 1)
    return INDEX_COST if lookup(op.name).family == "indexing" else 1


def vectors_for(group: Function, width: int) -> int:
    """Vectors that a thread takes at once: more where a body is cheap, and more still of single elements."""
    total = sum(map(cost, group.ops)) * max(1, width // 4)
    if total > MOST_OPERATIONS or len(streams(group)) - len(group.results) > MOST_STREAMS:
        return 1
    return 4 if width == 1 and total < INDEX_COST else 2


def inner_divides(group: Function, sizes: Mapping[str, int], width: int) -> tuple[tuple[str, int], ...]:
    """The extents that innermost dimensions have, and what divides them: proof that lines start aligned.

    Not those of indices, of which all lanes but those of an innermost dimension read one.
    """
    indices = {op.operands[1] for op in group.ops if op.name == "gather"}
    names: set[str] = set()
    for v in [*group.results, *(p for p in group.params if p not in indices)]:
        big = big_dims(v.type.shape)
        if big:
            names |= dim_symbols(v.type.shape[big[-1]])
    found = []
    for name in group_extents(group):
        if name in names:
            d = width
            while d > 1 and sizes[name] % d:
                d //= 2
            found += [(name, d)] if d > 1 else []
    return tuple(found)


def extent(shape: Shape, d: int, sizes: Mapping[str, int]) -> int:
    size = substitute(shape[d], dict(sizes))
    assert isinstance(size, int)
    return size


def choose(group: Function, sizes: Mapping[str, int], target: Target) -> Choice:
    """The schedule of a map group: see the head of this file."""
    shape = group.results[0].type.shape
    narrow = is_narrow(group, sizes, SLACK)
    big = big_dims(shape)
    if not big:
        return Choice("map single", narrow=narrow)
    width = width_for(group)
    op = joining(group)
    if op is not None:
        width = piece_width(op, sizes, width)
        numbers = (("width", width), ("vectors", vectors_for(group, width)))
        return Choice("map join", numbers, inner_divides(group, sizes, width), narrow)
    if len(big) == 1:
        return Choice("map", (("width", width), ("vectors", vectors_for(group, width))), narrow=narrow)
    inner = extent(shape, big[-1], sizes)
    params, _ = group_buffers(group)
    across = across_dim(group, Pull(group, dict(zip(group.params, params, strict=True))), sizes)
    if across is not None:
        elements = elements_for(group, across, sizes)
        whole = elements == 1 or (inner % elements == 0 and extent(shape, across, sizes) % elements == 0)
        square = (("across", across), ("elements", elements), ("whole", int(whole)))
        return Choice("map transpose", square, inner_divides(group, sizes, elements) if whole else (), narrow)
    full = width
    while inner % width:
        width //= 2
    # Half an access is better than one that looks where its line ends.
    if 2 * width < full <= inner and all(p.type.shape == shape for p in streams(group)[: -len(group.results)]):
        return Choice("map wrapped", (("width", full), ("vectors", vectors_for(group, full) if full <= 4 else 1)), narrow=narrow)
    if width == 1 and inner >= LONG_LINE:
        return Choice("map rows", (("vectors", min(4, -(-inner // THREADS))),), narrow=narrow)
    numbers = (("width", width), ("vectors", vectors_for(group, width)))
    return Choice("map", numbers, inner_divides(group, sizes, width) if width > 1 else (), narrow)


def lower(group: Function, choice: Choice, target: Target, in_place: InPlace = ()) -> Lowered:
    """The kernel of a map group. in_place: (parameter, result) that are one buffer."""
    params, results = group_buffers(group, in_place)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    body, grid = _FORMS[choice.form](group, choice, target, pull, list(zip(group.results, results, strict=True)))
    threads = 32 if choice.form == "map single" else THREADS
    kernel = map_kernel(group, choice, params, results, body, grid, threads)
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def map_kernel(
    group: Function,
    choice: Choice,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    body: list[Stmt],
    blocks: Expr,
    threads: int = THREADS,
) -> Kernel:
    return Kernel(
        name=choice.form.replace(" ", "_"),
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=blocks,
        work=dim_expr(size_of(group.results[0].type.shape)) * work_of(group),
        body=tuple(body),
        grid=Grid(blocks, threads, choice.divides, choice.narrow),
    )


Targets = list[tuple[Value, Buffer]]


def _single(group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets) -> tuple[list[Stmt], Expr]:
    shape = group.results[0].type.shape
    stores = store_results(pull, targets, tuple(index(0) for _ in shape), shape, names=Names())
    return [If(equal(THREAD + BLOCK, 0), tuple(stores))], index(1)


def _flat(group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets) -> tuple[list[Stmt], Expr]:
    shape = group.results[0].type.shape
    names = Names()
    inner = big_dims(shape)[-1]
    width, vectors = choice.number("width"), choice.number("vectors")

    def prepare(p: Expr) -> tuple[list[Stmt], Lanes]:
        stmts, coords = split_coords(p, shape, names)

        def lanes(lane: Expr) -> list[Stmt]:
            at = tuple(c + lane if d == inner else c for d, c in enumerate(coords))
            return store_results(pull, targets, at, shape, names=names, flat=p + lane)

        return [*stmts, *(draw_vectors(group, pull, p, width, names) if width > 1 else ())], lanes

    total = dim_expr(size_of(shape))
    whole = width == 1 or len(big_dims(shape)) > 1
    body = sweep_grid(total, width, vectors, whole, prepare, names)
    return body, blocks_for(tiles_of(total, width, vectors), target)


def _wrapped(group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets) -> tuple[list[Stmt], Expr]:
    """As `_flat`, where a vector may reach into the next line: both lines' coordinates are divided out, once a vector."""
    shape = group.results[0].type.shape
    names = Names()
    inner = big_dims(shape)[-1]
    outer = tuple(1 if d == inner else n for d, n in enumerate(shape))
    n, total = dim_expr(shape[inner]), dim_expr(size_of(shape))
    width, vectors = choice.number("width"), choice.number("vectors")

    def prepare(p: Expr) -> tuple[list[Stmt], Lanes]:
        column, row, next_row = names.fresh("column"), names.fresh("row"), names.fresh("next")
        here, coords = split_coords(row, outer, names)
        there, following = split_coords(next_row, outer, names)
        stmts: list[Stmt] = [Let(column, p % n), Let(row, p // n), Let(next_row, row + 1), *here, *there]

        def lanes(lane: Expr) -> list[Stmt]:
            c = column + lane
            at = [select(c < n, a, b) for a, b in zip(coords, following, strict=True)]
            at[inner] = select(c < n, c, c - n)
            return store_results(pull, targets, tuple(at), shape, names=names, flat=p + lane)

        return [*stmts, *draw_vectors(group, pull, p, width, names)], lanes

    body = sweep_grid(total, width, vectors, False, prepare, names)
    return body, blocks_for(tiles_of(total, width, vectors), target)


def _rows(group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets) -> tuple[list[Stmt], Expr]:
    """A block takes parts of lines: what it divides is the same for all its threads."""
    shape = group.results[0].type.shape
    names = Names()
    inner = big_dims(shape)[-1]
    outer = tuple(1 if d == inner else n for d, n in enumerate(shape))
    n, vectors = dim_expr(shape[inner]), choice.number("vectors")
    parts = ceil_div(n, THREADS * vectors)
    item, row, start = names.fresh("item"), names.fresh("row"), names.fresh("s")
    stmts, coords = split_coords(row, outer, names)
    body: list[Stmt] = [
        Let(row, item // parts),
        Let(start, item % parts * (THREADS * vectors) + THREAD),
        *stmts,
    ]
    for u in range(vectors):
        column = start + u * THREADS
        at = tuple(column if d == inner else c for d, c in enumerate(coords))
        stores = store_results(pull, targets, at, shape, names=names, flat=row * n + column)
        body.append(If(column < n, tuple(stores)))
    items = dim_expr(size_of(outer)) * parts
    return [For(item, BLOCK, items, tuple(body), COUNT)], blocks_for(items, target)


def _transpose(
    group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets
) -> tuple[list[Stmt], Expr]:
    n = choice.number
    return squares(group, pull, targets, n("across"), n("elements"), bool(n("whole")), target)


def _join(group: Function, choice: Choice, target: Target, pull: Pull, targets: Targets) -> tuple[list[Stmt], Expr]:
    op = joining(group)
    assert op is not None
    return join_pieces(group, op, pull, targets, choice.number("width"), choice.number("vectors"), target)


_FORMS = {
    "map single": _single,
    "map": _flat,
    "map wrapped": _wrapped,
    "map rows": _rows,
    "map transpose": _transpose,
    "map join": _join,
}
