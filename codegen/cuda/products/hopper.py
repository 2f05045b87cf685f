"""Schedules of products on the tensor cores of sm_90a (wgmma.py): the tiles there are, and which fits a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products.channels import pack_channels, packs
from graphc.codegen.cuda.products.operand_view import ROW, view_of
from graphc.codegen.cuda.products.pack import packed_size
from graphc.codegen.cuda.products.product import Product, dim_value
from graphc.codegen.cuda.products.wgmma import GATHER, PACK, VIEW, Tile, WgmmaProduct, element_type
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import children_first
from graphc.codegen.loops import Let, Store
from graphc.codegen.lower.contraction import Contraction, Operand
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import F32, DType, Shape, size_of

Sizes = Mapping[str, int]
FORM = "contract wgmma"

TILES = (
    Tile(128, 256, 2, 4, 1, 1.0),
    Tile(256, 128, 2, 4, 1, 0.98),
    Tile(128, 128, 2, 6, 1, 0.85, paired=True),
    Tile(128, 128, 2, 6, 1, 0.85),
    Tile(128, 64, 2, 3, 2, 0.65),
    Tile(64, 128, 1, 3, 2, 0.65),
    Tile(64, 64, 1, 5, 2, 0.5),
)


# For `graphc tune` to measure, after all others: the estimate does not know what sharing saves.
CLUSTERS = tuple(replace(t, cluster=2) for t in TILES if t.resident == 1)


def choose(
    group: Function, c: Contraction, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool,
    example: int,
) -> Choice:
    """The schedule of a product of tensor cores for a launch of these sizes.

    c, divides, narrow, example: as contract.py found them, which also decides that this is one.
    """
    return candidates(group, c, sizes, target, divides, narrow, example)[0]


def candidates(
    group: Function, c: Contraction, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool,
    example: int,
) -> list[Choice]:
    """All schedules, by estimated time; they give the same bits."""
    element = element_type(c)
    assert element is not None
    p = Product(group, Choice(FORM, (("example", example),), divides, narrow))
    packed = packs(c, dict(divides))
    if packed:
        pack_channels(p, element)
    ways = tuple(_way(p, side, element) for side in (p.c.left, p.c.right))
    for side, way in zip((c.left, c.right), ways, strict=True):
        narrow = narrow and (way != PACK or dim_value(packed_size(p, side, element), sizes) < 1 << 30)
    rows, columns = dim_value(c.left.size, sizes), dim_value(c.right.size, sizes)
    batches = dim_value(size_of(c.batch), sizes)
    steps = -(-dim_value(size_of(c.depth), sizes) * element.itemsize // ROW)
    after = _instructions(p) / 128  # clocks for each element of the result

    def cost(tile: Tile) -> float:
        tiles = batches * -(-rows // tile.rows) * -(-columns // tile.columns)
        waves = -(-tiles // (target.multiprocessors * tile.resident))
        products = steps * (ROW // element.itemsize) / (2048 if element.itemsize == 2 else 1024) / tile.speed
        # Consumers that take turns, and blocks that run together, hide each other's epilogues.
        hidden = waves > 1 if tile.paired else tile.resident > 1 and tiles > target.multiprocessors
        each = max(products, after) + 0.1 * min(products, after) if hidden else products + after
        return waves * tile.resident * tile.rows * tile.columns * each

    # Gathering threads need registers that the largest tiles have not left.
    fitting = [t for t in TILES if GATHER not in ways or t.sums <= 64]
    sharing = [t for t in CLUSTERS if GATHER not in ways]
    order = [*sorted(fitting, key=cost), *sorted(sharing, key=cost)]
    return [tile_choice(t, ways, example, divides, narrow, packed) for t in order]


def _instructions(p: Product) -> int:
    """About how many instructions the epilogue takes for each element."""
    batch, rows, columns = ([p.name(s) for _ in shape] for s, shape in _domains(p.c))
    body = p.finish(p.name("sum", F32), batch, rows, columns, [*batch, *rows, *columns])
    values = tuple(s.value for s in body if isinstance(s, (Let, Store)))
    return 10 + sum(1 for _ in children_first(values))


def _domains(c: Contraction) -> tuple[tuple[str, Shape], ...]:
    return ("b", c.batch), ("m", c.left.free), ("n", c.right.free)


def tile_choice(
    tile: Tile, ways: tuple[int, ...], example: int, divides: tuple[tuple[str, int], ...], narrow: bool,
    packed: bool = False,
) -> Choice:
    """packed: a conv's operands are copied first, with channels last."""
    numbers = {
        "rows": tile.rows, "columns": tile.columns, "consumers": tile.consumers, "stages": tile.stages,
        "resident": tile.resident, "paired": int(tile.paired), "cluster": tile.cluster, "left": ways[0], "right": ways[1],
        "packed": int(packed), "example": example,
    }  # fmt: skip
    return Choice(FORM, tuple(numbers.items()), divides, narrow)


def _way(p: Product, side: Operand, element: DType) -> int:
    if view_of(p, side, element) is not None:
        return VIEW
    return GATHER if p.c.root.name == "conv" and side is p.c.right else PACK


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a product under a choice: what is packed first, then the product."""
    product = WgmmaProduct(group, choice, target)
    return product.p.lowered(product.kernels())


__all__ = [
    "CLUSTERS", "FORM", "GATHER", "PACK", "TILES", "VIEW", "Tile", "candidates", "choose", "element_type", "lower", "tile_choice",
]  # fmt: skip
