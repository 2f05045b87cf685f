"""How the tiles of a product lie over the blocks of a grid."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.cuda.products.product import Body, Product
from graphc.codegen.expr import Expr, equal, index, select, var
from graphc.codegen.lower.affine import ceil_div, least_of

GROUP = 8  # rows of tiles that are taken together, so that what they read stays in the L2 cache


@dataclass(frozen=True)
class TileGrid:
    """blocks: of the whole grid. part: which block of k, if sums are split. batch: coordinates; row, column: first of the tile."""

    blocks: Expr
    part: Expr
    batch_flat: Expr
    batch: list[Expr]
    row: Expr
    column: Expr


def tile_grid(p: Product, body: Body, rows: int, columns: int, parts: Expr) -> TileGrid:
    """Name the tile of this block; tiles of `GROUP` rows of tiles follow each other column by column."""
    down, across = ceil_div(p.rows, rows), ceil_div(p.columns, columns)
    each = down * across
    block = var("block")
    if parts.op == "const" and parts.data == 1:
        part, rest = index(0), block
    else:
        all_tiles = p.let(body, "tiles", each * p.batches)
        part = p.let(body, "part", block // all_tiles)
        rest = p.let(body, "rest", block - part * all_tiles)
    if p.batches.op == "const" and p.batches.data == 1:
        batch_flat, tile = index(0), rest
    else:
        each_name = p.let(body, "each", each)
        batch_flat = p.let(body, "batch", rest // each_name)
        tile = p.let(body, "tile", rest - batch_flat * each_name)
    group = p.let(body, "group", tile // (across * GROUP))
    inside = p.let(body, "inside", tile - group * across * GROUP)
    height = p.let(body, "height", least_of(down - group * GROUP, index(GROUP)))
    column = p.let(body, "across", inside // height)
    row = p.let(body, "down", group * GROUP + (inside - column * height))
    batch = p.coords(body, "b", batch_flat, p.c.batch)
    return TileGrid(parts * p.batches * each, part, batch_flat, batch, row * rows, column * columns)


def stage_after(stage: Expr, stages: int) -> Expr:
    """The next of `stages` stages, which are used in turn."""
    return select(equal(stage, stages - 1), index(0), stage + 1)


def stage_before(stage: Expr, stages: int) -> Expr:
    return select(equal(stage, 0), index(stages - 1), stage - 1)
