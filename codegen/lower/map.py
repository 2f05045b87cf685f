"""Map groups: every element of the domain on its own.

Rank 1 (after collapsing, most of them): lanes along the only dimension, threads along blocks.
Higher ranks: one item is a block of the innermost dimension of a few lines; the outer coordinates are divided
out once an item. Where the innermost dimensions are small literals (images of a few pixels), one item
is a whole image or several, and lanes run over all of it: which element a lane reads is then known
when the kernel is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphc.codegen.donation import InPlace
from graphc.codegen.expr import index, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt, Vector
from graphc.codegen.lower.index import delinearise, dim_expr
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
from graphc.codegen.lower.pieces import joining, lower_pieces
from graphc.codegen.lower.pooling import MOST_WIDE, lower_pooling, pooled, windows_of
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.squares import across_dim, lower_squares
from graphc.codegen.lower.work import work_of as work_of
from graphc.ir.function import Function
from graphc.ir.types import Dim, DimExpr, Shape, size_of, substitute

STREAM_BYTES = 32 << 20  # results beyond what the caches hold
BLOCK = 2048  # elements of the innermost dimension in one item
LINES = 8  # of an item, where there are several dimensions
WIDTH = 16
# Windows of more elements than this that pooling.py does not go through are read through masks, which code without
# AVX-512 does lane by lane: fewer lanes are that much less code.
NARROW = 4


def width_for(group: Function) -> int:
    """Lanes of a vector region: wider where elements are small and bodies are cheap."""
    if len(group.ops) > 12:
        return WIDTH
    widest = max((v.type.dtype.itemsize for v in (*group.params, *group.results)), default=4)
    return {1: 64, 2: 32}.get(widest, WIDTH)


# Bodies of so many instructions wait for their own results: two vectors at once fill the gaps. Shorter ones wait for
# memory, longer ones have no registers for it.
LEAST_WAITING, MOST_WAITING, MOST_STREAMS = 16, 100, 4


def interleaved(group: Function, width: int) -> int:
    """Lanes of the main loop, for a natural width: twice as many where two vectors at once are faster."""
    many = len(group.params) + len(group.results) > MOST_STREAMS
    if width != WIDTH or many or not LEAST_WAITING <= work_of(group) <= MOST_WAITING:
        return width
    small = all(v.type.dtype.itemsize <= 4 for op in group.ops for v in op.results)
    return 2 * width if small else width


def streams(group: Function, hint: Mapping[str, int]) -> bool:
    """Whether results are so large that they should go past the caches; part of the choice of kernel.

    Only for one dimension, where every full vector starts at a multiple of 64 bytes.
    """
    shape = group.results[0].type.shape
    if sum(d != 1 for d in shape) > 1 or any(r.type.dtype.itemsize < 4 for r in group.results):
        return False
    if width_for(group) != WIDTH or any(op.name == "concat" for op in group.ops):
        return False
    size = substitute(sum_of(r.type.nbytes for r in group.results), hint)
    return isinstance(size, int) and size >= STREAM_BYTES


def sum_of(dims: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for d in dims:
        total = total + d
    return total


def map_variant(group: Function, hint: Mapping[str, int], stream: bool = True) -> str:
    """The form of a map's kernel: "map", "map stream" (results go past the caches, and are aligned to 64 bytes), or
    "map squares K" (squares.py, over dimension K and the innermost one).

    stream: results are aligned to 64 bytes.
    """
    if stream and streams(group, hint):
        return "map stream"
    k = None if joining(group) is not None else across_dim(group, hint)
    return "map" if k is None else f"map squares {k}"


def lower_map(group: Function, variant: str = "map", in_place: InPlace = ()) -> Lowered:
    """The kernel of a map group in one of the forms of `map_variant`."""
    if variant.startswith("map squares"):
        return lower_squares(group, int(variant.split()[2]), width_for(group), work_of(group), in_place)
    stream = variant == "map stream"
    params, results = group_buffers(group, in_place)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    shape = group.results[0].type.shape
    targets = list(zip(group.results, results, strict=True))
    names = Names()
    begin, end = var("begin"), var("end")
    width = width_for(group)
    big = [i for i, d in enumerate(shape) if d != 1]
    if not big:
        return _lower_single(group, params, results, pull)
    pool = pooled(group)
    windows = sum(windows_of(op) for op in group.ops)
    whole = tiled(shape) and _written_out(shape, windows) <= MOST_WINDOWS
    if pool is not None and not (whole and tile_dims(shape) > 1):
        return lower_pooling(group, pool, params, results, pull, work_of(group))
    if whole:
        return _lower_tiles(group, params, results, pull, width)
    joined = joining(group)
    if joined is not None:
        # Without what comes before the pieces, of which each element sees only one.
        work = work_of(group) - len(joined.operands)
        return lower_pieces(group, joined, params, results, pull, width, BLOCK, max(2, work))
    inner = big[-1]
    if windows > MOST_WIDE:
        width = NARROW
    n = dim_expr(shape[inner])
    # The dimension whose lines an item goes over, so that the others are divided out once for all of them.
    lines = big[-2] if len(big) > 1 else None
    outer = tuple(1 if i in (inner, lines) else d for i, d in enumerate(shape))
    blocks = ceil_div(n, BLOCK)
    item, block, row = names.fresh("item"), names.fresh("block"), names.fresh("row")
    line, first = names.fresh("line"), names.fresh("first")
    height = index(1) if lines is None else dim_expr(shape[lines])
    groups = ceil_div(height, LINES)
    if lines is None:
        body: list[Stmt] = [Let(block, item)]
        coords = tuple(index(0) for _ in shape)
    else:
        rest = names.fresh("rest")
        body = [Let(rest, item // blocks), Let(block, item % blocks), Let(first, rest % groups * LINES), Let(row, rest // groups)]
        stmts, coords = split_coords(row, outer, names)
        coords = tuple(line if i == lines else c for i, c in enumerate(coords))
        body += stmts
    start, stop = names.fresh("s"), names.fresh("t")
    body += [Let(start, block * BLOCK), Let(stop, minimum(start + BLOCK, n))]
    inside = sweep(
        start,
        stop,
        interleaved(group, width),
        names,
        lambda i, lane: store_results(
            pull, targets, tuple(i if d == inner else c for d, c in enumerate(coords)), shape, stream, names
        ),
        rest=width,
    )
    if lines is None:
        body += inside
    else:
        body.append(For(line, first, minimum(first + LINES, height), tuple(inside), index(1)))
    images = dim_expr(size_of(outer))
    kernel = Kernel(
        name="map",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=images * blocks if lines is None else images * groups * blocks,
        work=images * height * n * work_of(group),
        body=(For(item, begin, end, tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def _lower_single(
    group: Function, params: tuple[Buffer, ...], results: tuple[Buffer, ...], pull: Pull
) -> Lowered:
    """The kernel of a group of one element: no lanes and no blocks, which would take longer to compile than all it does."""
    shape = group.results[0].type.shape
    targets = list(zip(group.results, results, strict=True))
    names = Names()
    body = store_results(pull, targets, tuple(index(0) for _ in shape), shape, names=names)
    item = names.fresh("item")
    kernel = Kernel(
        name="map",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=index(1),
        work=index(work_of(group)),
        body=(For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


# Images larger than this are swept line by line; smaller ones are written out vector by vector.
MOST_TILE = 256


# Elements of windows that the vectors of an image may read, all written out; more go line by line.
MOST_WINDOWS = 96


def _written_out(shape: Shape, each: int) -> int:
    """How often an image written out vector by vector repeats what is done `each` times for an element."""
    size = size_of(shape[len(shape) - tile_dims(shape) :])
    assert isinstance(size, int)
    # Images that share vectors are written out twice: all of them, and those that are left.
    vectors = -(-size // WIDTH) if size >= WIDTH else 4
    return vectors * each


def tile_dims(shape: Shape) -> int:
    """How many innermost dimensions make up an image: literal ones, up to `MOST_TILE` elements."""
    count, size = 0, 1
    for d in reversed(shape[1:]):
        if isinstance(d, DimExpr) or size * d > MOST_TILE:
            break
        size *= d
        count += 1
    return count


def tiled(shape: Shape) -> bool:
    """Whether a map over `shape` goes image by image: literal inner dimensions that fill vectors badly."""
    inner = shape[len(shape) - tile_dims(shape) :]
    size = size_of(inner)
    if isinstance(size, DimExpr) or size <= 1:
        return False
    last = next(d for d in reversed(inner) if d != 1)
    return isinstance(last, int) and last % WIDTH != 0


def _lower_tiles(
    group: Function, params: tuple[Buffer, ...], results: tuple[Buffer, ...], pull: Pull, width: int
) -> Lowered:
    shape = group.results[0].type.shape
    count = tile_dims(shape)
    outer, inner = shape[: len(shape) - count], shape[len(shape) - count :]
    size = size_of(inner)
    assert isinstance(size, int)
    # Several images share vectors where one alone would not fill any.
    together = -(-width // size) if sum(d != 1 for d in outer) <= 1 and size < width else 1
    names = Names()
    targets = list(zip(group.results, results, strict=True))
    item, row = names.fresh("item"), names.fresh("row")
    images = dim_expr(size_of(outer))
    body: list[Stmt] = [Let(row, item * together)]
    stmts, lead = split_coords(row, outer, names)
    body += stmts
    alone = next((i for i, d in enumerate(outer) if d != 1), 0)

    def vector(start: int, masked: bool) -> Stmt:
        lane = names.fresh("l")
        position = lane + start
        coords = list(lead)
        if together > 1:
            coords[alone] = row + position // size
        at = [*coords, *delinearise(position % size if together > 1 else position, inner)]
        inside = tuple(store_results(pull, targets, tuple(at), shape, names=names))
        if masked:
            inside = (If(coords[alone] < images, inside),)
        if start + width > size * together:
            inside = (If(position < size * together, inside),)
        return Vector(lane, width, inside)

    starts = range(0, size * together, width)
    whole = tuple(vector(s, False) for s in starts)
    if together > 1:
        rest = tuple(vector(s, True) for s in starts)
        body.append(If(row + together <= images, whole, rest))
    else:
        body += whole
    kernel = Kernel(
        name="tiles",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=ceil_div(images, together),
        work=images * size * work_of(group),
        body=(For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
