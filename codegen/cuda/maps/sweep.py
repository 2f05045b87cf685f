"""Grid-stride loops of device maps: which elements a thread takes, and when its vectors are whole.

A block takes tiles of THREADS * width * vectors elements, `blocks` tiles apart. A thread's vectors lie THREADS * width
elements apart, so that each access of a warp is one run of memory.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, index, var
from graphc.codegen.loops import For, If, Let, Stmt, Vector
from graphc.codegen.lower.nest import Names, ceil_div, minimum

THREADS = 256
# Blocks a multiprocessor over a whole launch: it holds 8 of them at once, and some waves even out their times.
BLOCKS = 32
# Elements by which the last tile may overhang: what `is_narrow` must leave room for.
SLACK = 1 << 26

BLOCK, COUNT, THREAD = var("block"), var("blocks"), var("thread")
Lanes = Callable[[Expr], list[Stmt]]
# For the position of a vector: statements before its lanes, and what each lane does.
Prepare = Callable[[Expr], tuple[list[Stmt], Lanes]]


def blocks_for(tiles: Expr, target: Target) -> Expr:
    """Blocks of a launch that has `tiles` tiles to do."""
    return minimum(tiles, index(BLOCKS * target.multiprocessors))


def tile_of(width: int, vectors: int) -> int:
    return THREADS * width * vectors


def sweep_grid(
    total: Expr,
    width: int,
    vectors: int,
    whole: bool,
    prepare: Prepare,
    names: Names,
    block: Expr = BLOCK,
    count: Expr = COUNT,
) -> list[Stmt]:
    """Run `prepare` over positions 0 .. total - 1. whole: `total` is a multiple of `width`. block, count: which of how
    many blocks that share these positions."""
    base, u = names.fresh("p"), names.fresh("u")
    apart = THREADS * width

    def vector(position: Expr, masked: bool) -> tuple[Stmt, ...]:
        before, lanes = prepare(position)
        if width == 1:
            return (*before, *lanes(index(0)))
        lane = names.fresh("l")
        inside = tuple(lanes(lane))
        if masked:
            # At most one vector of a thread: not worth writing out for each lane.
            return (*before, For(lane, index(0), index(width), (If(position + lane < total, inside),), index(1)))
        return (*before, Vector(lane, width, inside))

    def tile(inside: bool) -> tuple[Stmt, ...]:
        """A thread's share of a tile. inside: all of it exists."""
        masked = not inside and not whole
        if vectors == 1:
            return vector(base, masked)
        position = names.fresh("q")
        some = vector(position, masked)
        if not inside:
            some = (If(position < total, some),)
        body = (Let(position, base + u * apart), *some)
        return (For(u, index(0), index(vectors), body, index(1), unroll=inside),)

    body = tile(True)
    if vectors > 1 or not whole:
        body = (If(base + (apart * (vectors - 1) + width) <= total, body, tile(False)),)
    size = tile_of(width, vectors)
    return [For(base, block * size + THREAD * width, total, body, count * size)]


def tiles_of(total: Expr, width: int, vectors: int) -> Expr:
    return ceil_div(total, tile_of(width, vectors))
