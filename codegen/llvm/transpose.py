"""Blocks transposed in registers: rows loaded whole, exchanged by shuffles, stored whole.

A block is squares of its shorter side in a row along its longer side. Where the shorter side is no power of two, rows are read
as two halves that overlap, and columns made of squares that overlap, so nothing beside the block is touched. Log2(size) shuffles a row
instead of one load, insertion and store an element.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr
from graphc.codegen.llvm.columns import turned
from graphc.codegen.llvm.convert import convert
from graphc.codegen.llvm.expressions import value
from graphc.codegen.llvm.scope import MEMORY, Writer
from graphc.codegen.loops import Buffer, Transpose
from graphc.ir.types import BOOL


def transpose(w: Writer, s: Transpose) -> None:
    """Raises `TypeError` inside a vector region, for a conversion of bool, or where the longer side is no power of two."""
    rows, columns = s.size, s.columns
    source, target = s.source.dtype, s.target.dtype
    most, least = max(rows, columns), min(rows, columns)
    if w.width or most < 2 or least < 1 or most & (most - 1) or (BOOL in (source, target) and source is not target):
        raise TypeError(f"a transpose of {rows} x {columns} {source} elements to {target} does not stand here")
    depth = len(w.scopes) - 1
    side = 1 << (least - 1).bit_length()
    # A bool is moved as the byte that it is in memory.
    element, bits = MEMORY[target.short], max(8, target.bits)
    wide = columns if columns > rows else side
    found = [
        convert(w, depth, True, _row(w, s.source, address, columns, wide), source, target, wide)
        for address in _rows(w, s.source, s.source_at, s.source_step, rows, depth)
    ]
    places = _rows(w, s.target, s.target_at, s.target_step, columns, depth)
    if rows >= columns:
        squares = [turned(w, depth, found[g : g + side], element, bits) for g in range(0, rows, side)]
        for place, pieces in zip(places, zip(*squares, strict=True)):
            _store(w, s.target, place, 0, _joined(w, depth, list(pieces), side, element), rows)
    else:
        # Squares that overlap, where rows are no power of two.
        side = side if side == rows else side // 2
        for first in dict.fromkeys((0, rows - side)):
            for g in range(0, columns, side):
                lanes = range(g, g + side)
                square = [_shuffled(w, depth, x, x, lanes, columns, element) for x in found[first : first + side]]
                for place, x in zip(places[g : g + side], turned(w, depth, square, element, bits), strict=True):
                    _store(w, s.target, place, first, x, side)
    w.changed(s.target)


def _rows(w: Writer, buffer: Buffer, at: Expr, step: Expr, n: int, depth: int) -> list[str]:
    """The address of each row."""
    element = MEMORY[buffer.dtype.short]
    start, stride = w.scalar(value(w, at)), w.scalar(value(w, step))
    address = w.put(depth, f"getelementptr {element}, ptr {w.pointers[buffer]}, i64 {start}")
    found = [address]
    for _ in range(n - 1):
        address = w.put(depth, f"getelementptr {element}, ptr {address}, i64 {stride}")
        found.append(address)
    return found


def _row(w: Writer, buffer: Buffer, address: str, count: int, wide: int) -> str:
    """`count` elements, more than half of `wide`, as a vector of `wide` lanes."""
    element, depth, half = MEMORY[buffer.dtype.short], len(w.scopes) - 1, wide // 2

    def load(lanes: int, at: str) -> str:
        return w.put(depth, f"load <{lanes} x {element}>, ptr {at}, align {buffer.dtype.itemsize}{w.tags[buffer]}")

    if count == wide:
        return load(wide, address)
    second = w.put(depth, f"getelementptr {element}, ptr {address}, i64 {count - half}")
    lanes = [k if k < half else 2 * half - count + k for k in range(count)] + [-1] * (wide - count)
    return _shuffled(w, depth, load(half, address), load(half, second), lanes, half, element)


def _store(w: Writer, buffer: Buffer, address: str, first: int, x: str, lanes: int) -> None:
    element, depth = MEMORY[buffer.dtype.short], len(w.scopes) - 1
    if first:
        address = w.put(depth, f"getelementptr {element}, ptr {address}, i64 {first}")
    w.line(f"store <{lanes} x {element}> {x}, ptr {address}, align {buffer.dtype.itemsize}{w.tags[buffer]}")


def _joined(w: Writer, depth: int, pieces: list[str], lanes: int, element: str) -> str:
    """Vectors of `lanes` lanes, one after the other, as one."""
    while len(pieces) > 1:
        both = range(2 * lanes)
        pieces = [_shuffled(w, depth, a, b, both, lanes, element) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
        lanes *= 2
    return pieces[0]


def _shuffled(w: Writer, depth: int, a: str, b: str, lanes: Sequence[int], width: int, element: str) -> str:
    """Lanes of a and, from `width` on, of b, two vectors of `width` lanes; -1: any."""
    order = ", ".join([f"i32 {k}" if k >= 0 else "i32 poison" for k in lanes])
    t = f"<{width} x {element}>"
    return w.put(depth, f"shufflevector {t} {a}, {t} {b}, <{len(lanes)} x i32> <{order}>")
