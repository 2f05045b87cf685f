"""Which schedule a convolution with a large window and few results gets (gradient.py), by a model of the machine."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

from graphc.codegen.lower.contraction import BLOCK
from graphc.codegen.lower.windows.geometry import Geometry
from graphc.codegen.lower.windows.schedule import registers
from graphc.ir.types import DType

COPY_BYTES = 640 * 1024  # of x, and of the other operand, in a task
CACHE_BYTES = 640 * 1024  # of both, beside which others have room in the second level cache
STATE_BYTES = 128 * 1024  # chains and totals of a task


class GradientSchedule(NamedTuple):
    """How the results are computed.

    literal: values of the extents that the kernel is made for; it serves no others.
    width, vectors: lanes of a vector, vectors of a tile: output channels.
    channels, whole: rows of a tile are the places of so many channels: all of them, or (not whole) those of
        one step of the first dimension.
    images, pixels: a chunk of k is so many whole examples, or so many pixels of one.
    block: channels of a task.
    blocks: not 0: a task is so many blocks of k, and a second kernel adds up the sums of blocks.
    """

    literal: tuple[tuple[str, int], ...]
    width: int
    vectors: int
    channels: int
    whole: bool
    images: int
    pixels: int
    block: int
    blocks: int


@functools.lru_cache(maxsize=64)
def padded(g: Geometry) -> Geometry:
    """The copy of x as a convolution with a window of one element: its result is the padded image."""
    dims = zip(g.out, g.strides, g.window, g.reach, strict=True)
    out = tuple((n - 1) * stride + (k - 1) * reach + 1 for n, stride, k, reach in dims)
    ones = (1,) * len(out)
    return replace(g, window=ones, out=out, strides=ones, reach=ones)


def padded_rows(g: Geometry, pixels: int) -> int:
    """Rows of the copy that `pixels` pixels need, from anywhere."""
    rows = g.out[0]
    if pixels < g.pixels:
        rows = min(rows, pixels if g.line == 1 else (pixels - 2) // g.line + 2)
    return (rows - 1) * g.strides[0] + (g.window[0] - 1) * g.reach[0] + 1


def copied_segment(g: Geometry, s: GradientSchedule) -> int:
    """Elements from one channel of the copy of x to the next: rows are written in whole vectors."""
    return -(-(padded_rows(g, s.pixels) * padded(g).line + s.width) // s.width) * s.width


def padded_outputs(g: Geometry, s: GradientSchedule) -> int:
    """Output channels in whole tiles."""
    tile = s.vectors * s.width
    return -(-g.outputs // tile) * tile


def choose(
    g: Geometry, examples: int, dtype: DType, vector_bits: int, literal: tuple[tuple[str, int], ...]
) -> tuple[float, GradientSchedule] | None:
    """The cheapest schedule for about so many examples, with its cycles; None if there is none."""
    full = max(1, vector_bits // dtype.bits)
    width = full
    while width > 4 and width // 2 >= g.outputs:
        width //= 2
    itemsize = dtype.bits // 8
    count = registers(vector_bits)
    best: tuple[float, GradientSchedule] | None = None
    chunks = [_Chunk(g, literal, width, itemsize, *sizes) for sizes in _chunks(g, examples)]
    for block in [d for d in range(1, g.channels + 1) if g.channels % d == 0]:
        for chunk in chunks:
            if block * chunk.copied > COPY_BYTES:
                continue
            for vectors in range(1, min(8, -(-g.outputs // width)) + 1):
                tiled = chunk.schedule._replace(vectors=vectors, block=block)
                lanes = padded_outputs(g, tiled)
                if chunk.size * lanes * itemsize > COPY_BYTES:
                    break
                if not tiled.blocks and 2 * block * g.positions * lanes * itemsize > STATE_BYTES:
                    break
                for channels in [d for d in range(1, min(block, 24) + 1) if block % d == 0]:
                    for whole in (True, False):
                        rows = channels * (g.positions if whole else g.inner)
                        if rows * vectors + vectors + 1 > count:
                            continue
                        made = tiled._replace(channels=channels, whole=whole)
                        cost = _cost(g, made, chunk, examples, full, itemsize)
                        if best is None or cost < best[0]:
                            best = cost, made
    return best


class _Chunk:
    """A schedule's chunk of k, and what follows from it alone.

    size: k in it. copied: bytes of its copy of one channel of x. cycles: of making that.
    """

    def __init__(
        self, g: Geometry, literal: tuple[tuple[str, int], ...], width: int, itemsize: int, images: int, pixels: int, blocks: int
    ) -> None:  # fmt: skip
        self.schedule = GradientSchedule(literal, width, 1, 1, True, images, pixels, 1, blocks)
        self.size = blocks * BLOCK or images * pixels
        self.copied = images * copied_segment(g, self.schedule) * itemsize
        covered = padded_rows(g, pixels)
        line, run = 1, covered
        if len(g.out) > 1:
            run = padded(g).out[-1]
            line = padded(g).line // run
        each = -(-run // width) * (4.0 if g.spread[-1] == 1 else 14.0) + 1
        self.cycles = images * ((covered * line if len(g.out) > 1 else 1) * each + 15)


def _chunks(g: Geometry, examples: int) -> list[tuple[int, int, int]]:
    """Candidates for (images, pixels, blocks)."""
    found = [
        (1, -(-g.pixels // cuts), 0) for cuts in (2, 3, 4, 6, 8, 12, 16, 24, 32) if g.pixels // cuts >= 128
    ]
    found += [(m, g.pixels, 0) for m in (1, 2, 4, 8, 16) if m <= examples]
    for blocks in (1, 2, 4, 8, 16):
        images = (blocks * BLOCK - 2) // g.pixels + 2
        if images * g.pixels <= 4 * blocks * BLOCK + 4096:
            found.append((images, min(g.pixels, blocks * BLOCK), blocks))
    return found


def _cost(g: Geometry, s: GradientSchedule, made: _Chunk, examples: int, full: int, itemsize: int) -> float:
    """Cycles of one thread, by a model of Zen 4; dearer where there are too few tasks for some threads."""
    depth, chunk = examples * g.pixels, made.size
    rows = s.channels * (g.positions if s.whole else g.inner)
    fmas = rows * s.vectors * (0.5 if s.width * 2 <= full else 1.0)
    step = max(fmas, s.vectors + 0.5 * rows, 4.0, (rows * s.vectors + rows + s.vectors + 3) / 5)
    lanes = padded_outputs(g, s)
    parts = g.count * (g.channels // s.block)
    tiles = (s.block // s.channels) * (1 if s.whole else g.window[0]) * lanes // (s.vectors * s.width)
    chunks = -(-depth // chunk)
    pieces = chunks * (-(-chunk // BLOCK) + (0 if s.blocks else 1))
    cost = parts * tiles * (depth * step + pieces * (4.0 * rows * s.vectors + 30))
    if s.images > 1:
        cost += parts * tiles * chunks * (chunk / g.pixels) * 12
    if len(g.out) > 1:
        cost += parts * tiles * depth / g.out[-1] * 4
    # The copies: lines of x, and the other operand turned.
    cost += parts * chunks * s.block * made.cycles
    cost += parts * depth * g.outputs * (0.45 if g.outputs % 4 == 0 else 0.8)
    if s.block * made.copied + chunk * lanes * itemsize > CACHE_BYTES:
        cost *= 1.3
    if s.blocks:
        vectors = (depth / BLOCK) * g.count * g.channels * g.positions * lanes / s.width
        cost += vectors * (6.0 if vectors * s.width * itemsize <= CACHE_BYTES else 24.0)
    tasks = parts * (chunks if s.blocks else 1)
    wanted = min(8.0, max(1.0, cost / 50_000))
    return cost * (1 + 0.5 * max(0.0, 1 - tasks / wanted))
