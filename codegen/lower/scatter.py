"""Writing at computed positions: scatter_add, scatter, put_along_add, put_along.

The updates of an element are applied in ascending order of index position, whatever the threads: every element has one owner.

| form | when | who owns what, and how he finds his updates |
| --- | --- | --- |
| columns | few updates of a small result, long rows, or positions that vary over many lines | some columns of all rows; goes through all updates (scatter_columns.py) |
| rows | few updates of a large result | some rows; looks at all updates |
| segments | else | some rows; his updates were sorted out for him (scatter_rows.py) |
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.scatter_columns import WIDTH, lower_columns
from graphc.codegen.lower.scatter_rows import Segments, lower_rows, lower_segments
from graphc.codegen.lower.scattering import Scattering
from graphc.ir.function import Function
from graphc.ir.types import dim_symbols, substitute

FEW_UPDATES = 1024  # which every owner of rows may look at
WORTH_SORTING = 4096  # updates that pay for the kernels that sort them
CHEAP = 1 << 15  # updates of an element or two that one thread applies as fast as several sort them
SEVERAL = 4  # threads that sort, then apply, in less time than one takes to apply alone
NEAR, SHARED, FAR = 1 << 19, 1 << 23, 1 << 25  # bytes of a result that stay near a core, in a cache of all cores, in no cache
LONG = 512  # columns of a row that is cut among threads in strips
STRIP = 8  # vectors of a long row that one item has
BUCKET = 1 << 17  # bytes of rows that an item of the sorted form works on
PIECE = 256  # columns of a long row that one item applies: a row that most updates name is shared
LEAST_BUCKETS, MOST_BUCKETS = 32, 1024
CHUNK = 2048


def variant(group: Function, hint: Mapping[str, int], changing: frozenset[str] = frozenset()) -> str:
    """How a scattering group is done for extents like `hint`: "columns ..", "rows .." or "segments ..", with their numbers.

    Buckets are made for a number of rows, which kernels by segments hold literal. changing: extents that they must not.
    """
    s = Scattering(group)
    sizes = [substitute(d, hint) for d in (s.total, s.lines, s.rows, s.inner)]
    total, lines, rows, inner = (d if isinstance(d, int) else 0 for d in sizes)
    choice = choose(s, total, lines, rows, inner, os.cpu_count() or 1)
    named = sorted(dim_symbols(s.rows))
    if not choice.startswith("segments") or not named:
        return choice
    return "columns 1" if changing & set(named) else f"{choice} literal={tuple((n, hint[n]) for n in named)}"


def choose(s: Scattering, total: int, lines: int, rows: int, inner: int, threads: int) -> str:
    """The variant for these sizes (0: not known) on so many threads. Bits do not depend on it."""
    held = rows * inner * s.wide.itemsize
    width = 4 if inner <= 4 else 8 if inner <= 8 else 16
    if not (total and lines and rows and inner) or (s.along and lines > 1):
        return "columns 1"
    if total <= FEW_UPDATES:
        return f"rows {width}" if held > NEAR and inner > 1 else "columns 1"
    if lines < max(2, threads) and _pays(total, inner, held, threads):
        return str(_segments(s, rows, inner, width))
    return f"columns {STRIP if inner >= LONG else 1}"


def _pays(total: int, inner: int, held: int, threads: int) -> bool:
    """Whether it pays to sort updates."""
    if held <= SHARED and inner >= 2 * threads * STRIP * WIDTH:
        return False  # long rows are read fastest in the order in which they lie, and have columns for all threads
    if total < (WORTH_SORTING if inner >= 16 else CHEAP):
        return False
    if inner < LONG and held > (FAR if inner == 1 else NEAR):
        return True
    return threads >= (2 if inner >= 16 else SEVERAL)


def _segments(s: Scattering, rows: int, inner: int, width: int) -> Segments:
    size = max(1, min(BUCKET // (inner * s.wide.itemsize), rows // LEAST_BUCKETS))
    size = max(size, -(-rows // MOST_BUCKETS))
    return Segments((size - 1).bit_length(), CHUNK, PIECE if inner >= LONG else 0, width)


def lower_scatter(group: Function, choice: str) -> Lowered:
    """The kernels of a group with one scattering operation, whose result is the group's only one."""
    form, *numbers = choice.partition(" literal=")[0].split()
    if form == "rows":
        return lower_rows(Scattering(group), int(numbers[0]))
    if form == "segments":
        return lower_segments(Scattering(group), Segments(*map(int, numbers)))
    return lower_columns(Scattering(group), int(numbers[0]))
