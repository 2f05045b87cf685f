"""Which schedule a convolution over windows gets, and what it costs by a model of the machine."""

from __future__ import annotations

from typing import NamedTuple

from graphc.codegen.lower.windows.geometry import Geometry
from graphc.ir.types import DType

# What a task's padded copy may take: the second level cache holds it and the weights that go by.
CACHE_BYTES, MOST_BYTES = 768 * 1024, 1536 * 1024
STREAMED_BYTES = 8.0  # a cycle, from there on
MOST_ROWS, LEAST_TILE = 16, 12
SMALL, ENOUGH = 50_000, 8  # cycles from which on there should be enough tasks for some threads


class WindowSchedule(NamedTuple):
    """How a convolution is computed over a padded copy of its input.

    literal: values of the extents that the kernel is made for; it serves no others.
    rows, vectors, width: the register tile: output channels times vectors of `width` pixels.
    images: examples of a task, where it takes whole ones.
    block: vectors of a task, of one example.
    parts: so many tasks share the output channels, each with a copy of its own.
    """

    literal: tuple[tuple[str, int], ...]
    rows: int
    vectors: int
    width: int
    images: int
    block: int
    parts: int


def segment(g: Geometry, s: WindowSchedule) -> int:
    """Elements from one segment of the copy to the next: rows are written in whole vectors."""
    elements = g.rows(min(s.block * s.width, g.pixels)) * g.line
    return -(-(elements + s.width) // s.width) * s.width


def copy_elements(g: Geometry, s: WindowSchedule) -> int:
    """Elements of a task's copy; the last tile may read behind the last segment."""
    return s.images * g.segments() * segment(g, s) + (s.vectors + 1) * s.width + g.line


def registers(vector_bits: int) -> int:
    return 32 if vector_bits in (128, 512) else 16


def choose(
    g: Geometry, examples: int, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...],
    only: int = 0, blocks: int = 0,
) -> tuple[float, WindowSchedule] | None:  # fmt: skip
    """The cheapest schedule for about so many examples, with its cycles; None if no copy fits.

    only: rows of a tile, if not 0. blocks: that terms are in, if not in as few as possible.
    """
    width = max(1, vector_bits // dtype.bits)
    itemsize = dtype.bits // 8
    best: tuple[float, WindowSchedule] | None = None
    count = registers(vector_bits)
    whole = -(-g.pixels // width)  # vectors of an image
    for vectors in range(1, 9):
        for rows in range(1, min(g.outputs, MOST_ROWS) + 1):
            small = rows * vectors < LEAST_TILE and rows < min(g.outputs, MOST_ROWS)
            if rows * vectors + vectors + 1 > count or small or (only and rows != only):
                continue
            for images, block in _blocks(g, whole, vectors, examples):
                s = WindowSchedule(literal, rows, vectors, width, images, block, 1)
                size = copy_elements(g, s) * itemsize
                if size > MOST_BYTES:
                    continue
                cut = tasks(g, s, examples)
                for parts in (1, 2, 4, 8):
                    if parts > 1 and (cut * parts > 2 * ENOUGH or parts > -(-g.outputs // rows)):
                        break
                    made = s._replace(parts=parts)
                    cost = _cost(g, made, examples, itemsize, size, whole, blocks)
                    if cost > SMALL:
                        cost *= 1 + 0.5 * max(0.0, 1 - cut * parts / ENOUGH)
                    if best is None or cost < best[0]:
                        best = cost, made
    return best


def _blocks(g: Geometry, whole: int, vectors: int, examples: int) -> list[tuple[int, int]]:
    """Candidates for the images and the vectors of an image that a task takes."""
    tiles = -(-whole // vectors)
    found = [
        (1, min(whole, -(-tiles // cuts) * vectors))
        for cuts in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
        if cuts <= tiles
    ]
    found += [
        (images, whole) for images in (2, 3, 4, 6, 8, 16) if images <= examples and images * whole <= 64
    ]
    return found


def tasks(g: Geometry, s: WindowSchedule, examples: int) -> int:
    whole = -(-g.pixels // s.width)
    return g.count * -(-examples // s.images) * -(-whole // s.block)


def cycles(g: Geometry, s: WindowSchedule, examples: int, dtype: DType, blocks: int) -> float:
    """The model's cycles of one thread for a schedule; `blocks` as for `choose`."""
    itemsize = dtype.bits // 8
    return _cost(g, s, examples, itemsize, copy_elements(g, s) * itemsize, -(-g.pixels // s.width), blocks)


def _cost(
    g: Geometry, s: WindowSchedule, examples: int, itemsize: int, size: int, whole: int, blocks: int
) -> float:
    """Cycles of one thread, by a model of Zen 4."""
    units = tasks(g, s, examples)
    strips = -(-g.outputs // s.rows)
    per_unit = s.images * s.block
    tiles = -(-per_unit // s.vectors)
    fmas = s.rows * s.vectors
    aligned = g.line % s.width == 0
    # Two broadcasts a cycle, one vector, or half of one that reaches over a cache line's end.
    loads = s.vectors * (1.0 if aligned else 1.7) + 0.5 * s.rows + 0.5
    # Latency of a chain: four cycles a term.
    step = max(fmas, loads, 4.0, (fmas + loads + 3) / 5) + 0.15 * s.vectors
    if size > CACHE_BYTES:
        step += 1.0 * s.vectors
    blocks = blocks or -(-g.depth // 256)
    tile = g.depth * step + blocks * (3.0 * fmas + 25) + 4.0 * fmas
    cost = units * strips * tiles * tile
    lines = g.rows(min(s.block * s.width, g.pixels)) if g.line > 1 else 1
    run = g.line if g.line > 1 else g.rows(min(s.block * s.width, g.pixels))
    each = -(-run // s.width) * (4.5 if g.strides[-1] == g.spread[-1] == 1 else 14.0) + 2
    if len(g.out) > 2:
        each *= 3  # lines are looked at one by one
    cost += units * s.parts * s.images * g.segments() * (lines * each + 40)
    weights = g.count * strips * s.rows * g.depth
    if weights * itemsize > CACHE_BYTES:
        # A task reads those of its group from beyond the second level cache.
        cost += units * weights / g.count * itemsize / STREAMED_BYTES
    return cost + weights * 1.2 + 300 * units
