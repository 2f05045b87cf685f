"""Which schedule a contraction gets: a table of register tiles and a model of what each costs.

A schedule never changes a bit of the result, only the time. It is a function of the sizes seen when a
kernel is first needed, and part of the kernel's key; the kernel is right for all sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from graphc.codegen.lower.contraction import Access
from graphc.ir.types import DType

# Lanes of a tile; rows are taken from ROWS as far as registers allow.
LANES = (1, 4, 8, 16, 32, 64, 128)
ROWS = (1, 2, 4, 6, 8, 9, 10, 12, 16, 24)
POINTERS = 9  # rows whose places stay in registers
UNROLL = 25  # a literal depth up to this may be unrolled
LOCAL_ELEMENTS = 65536  # of a thread's packed lanes
CACHE_BYTES = 256 * 1024  # what a packed operand may take and still be in the second level cache
# A product of more than SMALL cycles should have ENOUGH tasks for some threads.
SMALL, ENOUGH = 50_000, 8
# With so many tiles a strip, the last one of a strip matters little.
MANY_TILES = 4096
WHOLE_RUNS = ("turned", "streamed")  # take several k at once, whatever runs the rows have
STREAMED_ROWS = 8


class Schedule(NamedTuple):
    """How a contraction is computed.

    swap: lanes run along the left operand's free dimensions.
    rows, lanes: the register tile.
    row_mode: "direct" reads rows where they are, "packed" copies them once into strips [depth][rows],
        "table" reads a convolution's patches from a padded copy by a table of offsets (if swapped).
    lane_mode: "direct" reads where they are, "packed" copies once into panels [depth][lanes],
        "local" copies what a task needs into memory of its own, [chunk][block]; "turned" reads vectors along
        the depth where they are and transposes them in registers, which pays where rows are few; "streamed" reads
        long stretches where they are, for few rows and a matrix beyond the second level cache.
    block: lanes of a task, a multiple of `lanes`.
    chunk: depth that is taken at a time, a multiple of 256, so that it stays in a cache ("local" packs that
        much); 0 for all.
    split: every block of 256 k is a task of its own, summed up by a second kernel.
    run: lanes copied at a time from a run of the innermost dimension when packing locally; 0 where
        runs are short, and where all lanes are one run.
    per_example: conv only: the examples are a batch dimension.
    tail: lanes of the tiles that take what whole tiles leave of a block, less than `lanes`; 0: whole ones do.
    ahead: what a tile's epilogue reads and writes is asked for before the tile is summed up.
    past: results go past the caches (past.py); they are aligned to 64 bytes.
    near: packing takes the first contracted dimension last: a convolution's channels, on which padding
        does not depend; for images so small that those of all channels stay in the cache.
    """

    swap: bool
    rows: int
    lanes: int
    row_mode: str
    lane_mode: str
    block: int
    chunk: int
    split: bool
    run: int
    per_example: bool
    near: bool
    tail: int = 0
    ahead: bool = False
    past: bool = False


@dataclass(frozen=True)
class Sizes:
    """A contraction's sizes: batch, of which `left_batch` and `right_batch` matter to one operand."""

    batch: int
    left: int
    right: int
    depth: int
    left_batch: int
    right_batch: int
    left_run: int  # the innermost free dimension
    right_run: int
    image: int = 1  # elements that all channels of one example have
    copied: int = 0  # elements of a padded copy of the right operand, if that is a convolution's


def registers(vector_bits: int) -> int:
    return 32 if vector_bits in (128, 512) else 16


def tile_fits(rows: int, lanes: int, per_vector: int, vector_bits: int) -> bool:
    vectors = -(-lanes // per_vector)
    lane_registers = vectors if rows > 1 else 0
    return rows * vectors + lane_registers + 1 <= registers(vector_bits)


def choose(
    sizes: Sizes,
    left: Access,
    right: Access,
    dtype: DType,
    vector_bits: int,
    per_example: bool = False,
    literal_depth: bool = False,
) -> Schedule:
    """The cheapest schedule by the model. literal_depth: the depth is known, not just an example."""
    per_vector = max(1, vector_bits // dtype.bits)
    best: tuple[float, Schedule] | None = None
    for swap in (False, True):
        rows_of, lanes_of = (right, left) if swap else (left, right)
        r, n = (sizes.right, sizes.left) if swap else (sizes.left, sizes.right)
        rb, lb = (sizes.right_batch, sizes.left_batch) if swap else (sizes.left_batch, sizes.right_batch)
        run = sizes.left_run if swap else sizes.right_run
        for lanes in LANES:
            for rows in ROWS:
                if not tile_fits(rows, lanes, per_vector, vector_bits):
                    continue
                for lane_mode in ("direct", "packed", "local", "turned", "streamed"):
                    if lane_mode == "direct" and not _direct(lanes_of, lanes, rows * sizes.depth if literal_depth else 0):
                        continue
                    if lane_mode == "turned" and not _turned(lanes_of, rows, lanes, per_vector, vector_bits):
                        continue
                    if lane_mode == "streamed" and not _streamed(sizes, lanes_of, rows, r, lanes, n, per_vector, dtype.bits // 8):
                        continue
                    tiles = _tiles_cost(sizes, r, n, rows, lanes, lane_mode, lanes_of, per_vector, dtype.bits // 8)
                    if best is not None and tiles >= best[0]:
                        continue  # whatever else it costs
                    for row_mode in ("direct", "packed", "table"):
                        if row_mode == "direct" and not rows_of.direct and (rows_of.run is None or lane_mode in WHOLE_RUNS):
                            continue
                        if row_mode == "table" and not (swap and sizes.copied):
                            continue
                        cost = _cost(
                            sizes, r, n, rb, lb, run, rows, lanes, lane_mode, row_mode, rows_of, lanes_of,
                            per_vector, swap, dtype.bits // 8, tiles,
                        )  # fmt: skip
                        if best is not None and cost >= best[0]:
                            continue
                        schedule = _finish(sizes, swap, r, n, run, rows, lanes, row_mode, lane_mode, per_example, dtype, per_vector, cost, rows_of)
                        cost *= _idle(schedule, sizes, r, n, cost)
                        if best is None or cost < best[0] * 0.999:
                            best = (cost, schedule)
    assert best is not None
    return best[1]


def _idle(schedule: Schedule, s: Sizes, r: int, n: int, cost: float) -> float:
    """How much dearer a schedule is for having few tasks, or for adding up split sums."""
    tasks = s.batch * -(-n // schedule.block)
    if schedule.lane_mode != "local":
        tasks *= -(-r // schedule.rows)
    blocks = -(-s.depth // 256)
    factor = 1.0
    if schedule.split:
        tasks *= blocks
        factor += 0.5 * s.batch * r * n * blocks / cost
    wanted = min(128.0, max(ENOUGH, cost / 100_000))
    if cost > SMALL and tasks < wanted and schedule.lane_mode != "streamed":
        factor += 0.5 * (1 - tasks / wanted)
    return factor


def _direct(lanes_of: Access, lanes: int, terms: int) -> bool:
    """Whether lanes can be read where they are; conditions take a short, unrolled sum."""
    return (lanes_of.unit_free or lanes == 1) and (lanes_of.direct or 0 < terms <= 2 * UNROLL)


def _turned(lanes_of: Access, rows: int, lanes: int, per_vector: int, vector_bits: int) -> bool:
    """Whether lanes can be transposed in registers, of which the square takes as many as it has lanes, and a few."""
    if lanes_of.transposed is None or lanes_of.transposed.outer:
        return False
    return lanes == per_vector >= 4 and rows <= registers(vector_bits) - lanes - 4


def _streamed(s: Sizes, lanes_of: Access, rows: int, r: int, lanes: int, n: int, per_vector: int, itemsize: int) -> bool:
    """Whether a matrix may pass once, in long stretches: few rows, and too large to be read otherwise as fast."""
    if not (lanes_of.unit_free and lanes_of.direct) or s.batch > 1 or rows > STREAMED_ROWS or r > 4 * STREAMED_ROWS:
        return False
    return lanes == per_vector >= 4 and n * itemsize >= 2048 and s.depth * n * itemsize >= 4 * CACHE_BYTES


def _copy_cost(a: Access, run: int, per_vector: int, local: bool) -> float:
    """Cycles an element to pack lanes."""
    if a.unit_free:
        return 0.1 + (1.2 if a.direct else 2.5) / max(1, min(run, per_vector))
    if a.transposed is not None and not (local and a.transposed.outer):
        return 0.45
    return 1.6 if a.direct else 2.5


def _cost(
    s: Sizes, r: int, n: int, rb: int, lb: int, run: int, rows: int, lanes: int, lane_mode: str, row_mode: str,
    rows_of: Access, lanes_of: Access, per_vector: int, swap: bool, itemsize: int, cost: float,
) -> float:  # fmt: skip
    """Cycles of one thread, by a model fitted to measurements on Zen 4. cost: of the tiles, to which everything else is added."""
    vectors, row_run = -(-lanes // per_vector), s.right_run if swap else s.left_run
    chunk = _chunk(s, -(-r // rows), lane_mode, row_mode, rows_of)
    strips, panels = -(-r // rows), -(-n // lanes)
    tiles = s.batch * strips * panels
    if lane_mode == "packed":
        copied = lb * s.depth * panels * lanes
        cost += copied * _copy_cost(lanes_of, run, per_vector, False) + 1500
        # Written to the second level cache, or beyond it, and read again.
        written = copied * itemsize
        cost += copied * (0.1 if written <= CACHE_BYTES else 0.3 if written <= 4 * CACHE_BYTES else 1.0)
    elif lane_mode == "local":
        copied = s.batch * s.depth * n
        cost += copied * _copy_cost(lanes_of, run, per_vector, True) + 50 * s.batch
        cost += copied * (0.25 if min(s.depth, 256) * lanes * itemsize > 32768 else 0.0)
        if lanes_of.unit_free:
            # Lanes are copied two vectors at a time.
            cost += copied / (2 * per_vector) * _cold_step(s.depth * n * itemsize, n * itemsize, 1, 2)
    if row_mode == "table":
        cost += s.copied * 0.7 + s.depth * 4 + tiles * s.depth * (0.5 + 0.1 * rows + 0.5 * max(0, rows - 10)) + 600
    elif row_mode == "packed":
        cost += rb * s.depth * strips * rows * (1.2 if rows_of.direct else 3.0) + 1500
    elif rows_of.unit_depth or rows_of.run_unit:
        if lane_mode != "turned" and per_vector // 2 < lanes <= per_vector:
            # A load for every multiply-add, and one for its place.
            cost += tiles * s.depth * 0.4 * max(0, rows - POINTERS)
        else:
            # Many rows are as many streams, and as many pages.
            cost += tiles * s.depth * 0.1 * max(0, rows - 8)
        # Lanes turned in registers take whole lines of each row at a time.
        few = rows == 1 or lane_mode == "turned"
        cost += tiles * s.depth * rows * (0.01 if few else _clash(s.depth * itemsize, rows))
    else:
        # Every k is on a cache line of its own.
        width = rows * itemsize
        lines = 1 if 64 % width == 0 else 1 + width / 64
        cost += tiles * s.depth * (0.2 + 0.8 * (lines - 1) if rows_of.unit_inner else 1.0 * rows)
        if rows_of.unit_inner and strips > 1:
            stride = (r if rows_of.unit_free else row_run) * itemsize
            cold = s.batch * strips * s.depth * _cold_step(r * s.depth * itemsize, stride, rows, vectors)
            cost += 0.25 * cold / _strips_of_a_line(stride, min(s.depth, chunk or s.depth), width)
    # Tiles are turned before they are written where lanes are not neighbours in memory.
    scattered = swap and lanes > 1
    return cost + s.batch * r * n * (0.4 if scattered else 0.1)


def _tiles_cost(
    s: Sizes, r: int, n: int, rows: int, lanes: int, lane_mode: str, lanes_of: Access, per_vector: int, itemsize: int
) -> float:
    """Cycles of all tiles, rows read for nothing."""
    strips, panels = -(-r // rows), -(-n // lanes)
    tail = tail_of(n, lanes, per_vector, lane_mode) if strips * panels < MANY_TILES else 0
    tiles = s.batch * strips * (n // lanes if tail else panels)
    cost = tiles * _tile_cost(s, r, n, rows, lanes, lane_mode, lanes_of, per_vector, itemsize)
    if tail:
        narrow = _tile_cost(s, r, n, rows, tail, lane_mode, lanes_of, per_vector, itemsize)
        # A second loop is more code to make, and to fetch.
        cost += s.batch * strips * -(-(n % lanes) // tail) * narrow + 100
    return cost


def _tile_cost(
    s: Sizes, r: int, n: int, rows: int, lanes: int, lane_mode: str, lanes_of: Access, per_vector: int, itemsize: int
) -> float:
    """Cycles of one tile, rows read for nothing."""
    vectors, strips = -(-lanes // per_vector), max(1, -(-r // rows))
    finish = rows * vectors * 3.0 + 40
    if lane_mode == "turned":
        # Shuffles and multiply-adds share ports, one row is a single chain; lines of a power of two share sets of the cache.
        line = s.depth * itemsize
        step = max(4.2, 0.85 * math.log2(lanes) + 0.95 * rows) + (1.0 if line % 2048 == 0 and line >= 4096 else 0.0)
        return s.depth * step + (s.depth % lanes) * 25 + finish
    # A vector of lanes comes from the first level cache at one a cycle, from the next ones at half that each.
    panel, reach = min(s.depth, 1024) * lanes * itemsize, s.depth * n * itemsize
    first = 2.0 if reach <= 2 * CACHE_BYTES else 4.0
    again = 1.0 if panel <= 16384 else 2.0 if panel <= 2 * CACHE_BYTES else 4.0
    lane_loads = vectors * (first + again * (strips - 1)) / strips
    multiply_adds = rows * vectors * (0.5 if lanes * 2 <= per_vector else 1.0)
    if lane_mode == "streamed":
        step = max(multiply_adds, 2.2 * vectors) + 0.3 * multiply_adds + 0.4
        return s.depth * step + finish * (1 + s.depth / 256)
    step = max(multiply_adds, lane_loads, 0.55 * (rows + vectors), 4.0) + 0.06 * (lane_loads + rows)
    if lane_mode == "direct":
        # Rows of the operand lie far apart: pages and cache sets are used badly, worst at powers of two.
        far = n * itemsize if s.depth >= 64 and strips > 1 else 0
        apart = 0.03 if far < 2048 else 0.3 if far % 4096 == 0 else 0.08 if s.depth <= 512 else 0.25
        step += vectors * (apart if lanes_of.direct else 4.0)
        step += max(0.0, _cold_step(reach, n * itemsize, rows, vectors) - step) / strips
    return s.depth * step + finish


def _cold_step(reach: float, stride: float, rows: int, vectors: int) -> float:
    """Cycles of a step of k that meets memory for the first time, on a page of its own: nothing is fetched ahead,
    and as much latency is hidden as instructions are in flight."""
    if stride < 2048:
        return 0.0
    latency = 60 if reach <= 4 * CACHE_BYTES else 190 if reach <= 32 * CACHE_BYTES else 700
    return latency / 300 * (rows * vectors + rows + vectors + 4)


def _strips_of_a_line(stride: int, depth: int, width: int) -> int:
    """How many strips of rows find what they need in the lines that the first one has fetched: lines at a stride of a
    power of two share sets of the second level cache (of 8 ways), so that few of them stay."""
    sets = 2048 // math.gcd(max(1, stride // 64), 2048)
    return max(1, 64 // width) if depth <= 4 * sets else 1


def _chunk(s: Sizes, strips: int, lane_mode: str, row_mode: str, rows_of: Access) -> int:
    """How much of the depth is taken at a time (see Schedule), but for lanes packed by the task itself."""
    if strips == 1 or lane_mode in ("local", "streamed"):
        return 0
    if row_mode == lane_mode == "direct" and not (rows_of.unit_depth or rows_of.run_unit):
        # Every k is on a line of its own, which several strips of rows share.
        return 256 if s.depth > 256 else 0
    return 1024 if s.depth >= 2048 else 0


def tail_of(n: int, lanes: int, per_vector: int, lane_mode: str) -> int:
    """The lanes of narrow tiles for what tiles of `lanes` leave of n, the fewest for little; 0: none."""
    rest = n % lanes
    if rest == 0 or n < lanes or lane_mode == "turned" or per_vector < 4:
        return 0
    narrow = min(per_vector, max(4, power_of_two(rest)))
    # Not where whole tiles waste little.
    return narrow if (lanes - rest) * 8 >= lanes and narrow < lanes else 0


def _clash(stride: int, rows: int) -> float:
    """Cycles an element of rows read at a stride of bytes: powers of two share sets of the first level cache."""
    places = 4096 // math.gcd(stride, 4096) if stride else 1
    if rows <= 6 * places:
        return 0.03
    return 0.7 if rows <= 12 else 3.5


def _finish(
    s: Sizes, swap: bool, r: int, n: int, run: int, rows: int, lanes: int, row_mode: str, lane_mode: str,
    per_example: bool, dtype: DType, per_vector: int, cost: float, rows_of: Access,
) -> Schedule:  # fmt: skip
    itemsize = dtype.bits // 8
    block, chunk, split = lanes, 0, False
    near = s.image * itemsize <= 65536
    # Results that are not in the second level cache when they are written.
    ahead = s.batch * r * n * itemsize >= 4 * CACHE_BYTES
    strips = -(-r // rows)
    if lane_mode == "streamed":
        # Units for threads to share: two of equal width at least, and wide ones, as short stretches are read slowly.
        units = max(2, -(-n // 512) if n < 4096 else n // 1024)
        block = -(-n // (units * lanes)) * lanes
        return Schedule(swap, rows, lanes, row_mode, lane_mode, block, 0, False, 0, per_example, near, lanes)
    if lane_mode == "local":
        # With one strip of rows a block is read once: small enough for the first level cache is best.
        while strips > 1 and block < 256 and block < n and (block < run or s.batch * (n // (block * 2)) >= ENOUGH):
            block *= 2
        chunk = 1024 if s.depth > 256 and block <= LOCAL_ELEMENTS // 1024 else 256
        tasks = s.batch * -(-n // block)
    else:
        # The lanes of a block stay in the second level cache while the strips of rows go by.
        wide = 256 if s.depth <= 1024 else 128
        if block < wide and s.batch * strips * (n // wide) >= 4 * ENOUGH:
            block = wide
        tasks = s.batch * strips * -(-n // block)
        chunk = _chunk(s, strips, lane_mode, row_mode, rows_of)
    if cost > SMALL and s.depth >= 1024 and tasks < ENOUGH:
        split, chunk = True, 256 if lane_mode == "local" else 0
    width = 0
    if lane_mode == "local" and 16 <= run < n:
        width = 32 if run >= 32 else 16
    many = strips * -(-n // lanes) >= MANY_TILES
    tail = 0 if split or many else tail_of(n, lanes, per_vector, lane_mode)
    return Schedule(swap, rows, lanes, row_mode, lane_mode, block, chunk, split, width, per_example, near, tail, ahead)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, math.ceil(math.log2(max(1, n))))
