"""Transposition in registers, and the statement that reads rows of memory as vectors of columns.

Rows are first exchanged in pieces of 128 bits, then by interleaving within the pieces: these are the shuffles that
take one instruction without a table of lanes on x86 (shuf128, unpack) and AArch64 (zip).
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import index, replace
from graphc.codegen.llvm.convert import convert
from graphc.codegen.llvm.expressions import value
from graphc.codegen.llvm.scope import MEMORY, REGISTER, Writer, result
from graphc.codegen.loops import Columns
from graphc.ir.types import BOOL

PIECE = 128


def turned(w: Writer, depth: int, rows: Sequence[str], element: str, bits: int) -> list[str]:
    """The columns of a square of `len(rows)` vectors whose elements have the given type and bits.

    The number of rows is a power of two.
    """
    n = len(rows)
    t = f"<{n} x {element}>"

    def shuffle(a: str, b: str, lanes: Sequence[int]) -> str:
        order = ", ".join([f"i32 {lane}" for lane in lanes])
        return w.put(depth, f"shufflevector {t} {a}, {t} {b}, <{n} x i32> <{order}>")

    found = list(rows)
    width = min(n, max(1, PIECE // bits))  # elements of a piece
    pieces = n // width
    if pieces in (2, 4):

        def whole(a: str, b: str, order: Sequence[int]) -> str:
            return shuffle(a, b, [p * width + e for p in order for e in range(width)])

        for i in range(width):
            mine = [found[i + width * p] for p in range(pieces)]
            if pieces == 2:
                moved = [whole(mine[0], mine[1], order) for order in ((0, 2), (1, 3))]
            else:
                low = [whole(mine[p], mine[p + 1], (0, 1, 4, 5)) for p in (0, 2)]
                high = [whole(mine[p], mine[p + 1], (2, 3, 6, 7)) for p in (0, 2)]
                moved = [whole(a, b, order) for a, b in (low, high) for order in ((0, 2, 4, 6), (1, 3, 5, 7))]
            found[i::width] = moved
    elif pieces > 1:
        width = n  # many small elements: exchanges of single lanes
    # Within pieces: log2(width) times, the first half of the rows is interleaved with the second.
    starts = range(0, n, width)
    for start in starts:
        square = found[start : start + width]
        for _ in range(width.bit_length() - 1):
            half = width // 2
            lanes = [
                [s * width + (first + e // 2) + (n if e % 2 else 0) for s in range(n // width) for e in range(width)]
                for first in (0, half)
            ]
            square = [shuffle(square[i], square[i + half], order) for i in range(half) for order in lanes]
        found[start : start + width] = square
    return found


def columns(w: Writer, s: Columns) -> None:
    """Raises `TypeError` outside of a vector region of as many lanes as names, and for bool."""
    n = len(s.names)
    if n < 2 or w.width != n or BOOL in (s.source.dtype, s.names[0].dtype):
        raise TypeError(f"columns of {n} {s.source.dtype} elements do not stand in a region of {w.width} lanes")
    depth = len(w.scopes) - 1
    source, target = s.source.dtype, s.names[0].dtype
    element, pointer = MEMORY[source.short], w.pointers[s.source]
    rows = []
    deps = w.bit(s.source) if s.source in w.written else 0
    for lane in range(n):
        place = value(w, replace(s.place, {s.lane: index(lane)}))
        deps |= place.deps
        address = w.put(depth, f"getelementptr {element}, ptr {pointer}, i64 {w.scalar(place)}")
        x = w.put(depth, f"load <{n} x {element}>, ptr {address}, align {source.itemsize}{w.tags[s.source]}")
        rows.append(convert(w, depth, True, x, source, target, n))
    for name, column in zip(s.names, turned(w, depth, rows, REGISTER[target.short], target.bits), strict=True):
        w.changed(name)
        w.name(name, result(w, target, depth, deps, True, column))
