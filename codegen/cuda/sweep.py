"""Grid-stride loops of device maps: which elements a thread takes, and when its vectors are whole.

A block takes tiles of THREADS * width * vectors elements, `blocks` tiles apart. A thread's vectors lie THREADS * width
elements apart, so that each access of a warp is one run of memory.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, index, var
from graphc.codegen.loops import For, If, Stmt, Vector
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
    base = names.fresh("p")
    offsets = [u * THREADS * width for u in range(vectors)]

    def at(offset: int, masked: bool) -> list[Stmt]:
        before, lanes = prepare(base + offset)
        if width == 1:
            return [*before, *lanes(index(0))]
        lane = names.fresh("l")
        inside = tuple(lanes(lane))
        if masked:
            inside = (If(base + offset + lane < total, inside),)
        return [*before, Vector(lane, width, inside)]

    fast = [s for offset in offsets for s in at(offset, False)]
    body: list[Stmt] = fast
    if vectors > 1 or not whole:
        slow: list[Stmt] = []
        for offset in offsets:
            inside = tuple(at(offset, not whole))
            slow += [If(base + offset < total, inside)] if offset else inside
        body = [If(base + (offsets[-1] + width) <= total, tuple(fast), tuple(slow))]
    tile = tile_of(width, vectors)
    return [For(base, block * tile + THREAD * width, total, tuple(body), count * tile)]


def tiles_of(total: Expr, width: int, vectors: int) -> Expr:
    return ceil_div(total, tile_of(width, vectors))
