"""Square blocks transposed in registers: rows loaded whole, exchanged by shuffles, stored whole.

Stage d exchanges, for every row i with bit d clear, the lanes with bit d set of row i with the lanes
with bit d clear of row i + d; after all stages element (i, j) has become (j, i). Log2(size) shuffles
a row instead of one load, insertion and store an element.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr
from graphc.codegen.llvm.columns import turned
from graphc.codegen.llvm.convert import convert
from graphc.codegen.llvm.expressions import value
from graphc.codegen.llvm.scope import MEMORY, Writer
from graphc.codegen.loops import Buffer, Transpose
from graphc.ir.types import BOOL


def transpose(w: Writer, s: Transpose) -> None:
    """Raises `TypeError` inside a vector region, for a conversion of bool, or for a size that is no power of two."""
    n = s.size
    source, target = s.source.dtype, s.target.dtype
    if w.width or n < 2 or n & (n - 1) or (BOOL in (source, target) and source is not target):
        raise TypeError(f"a transpose of {n} x {n} {source} elements to {target} does not stand here")
    depth = len(w.scopes) - 1
    rows = []
    for address in _rows(w, s.source, s.source_at, s.source_step, n, depth):
        t = f"<{n} x {MEMORY[source.short]}>"
        x = w.put(depth, f"load {t}, ptr {address}, align {source.itemsize}{w.tags[s.source]}")
        rows.append(convert(w, depth, True, x, source, target, n))
    # A bool is moved as the byte that it is in memory.
    t = f"<{n} x {MEMORY[target.short]}>"
    rows = turned(w, depth, rows, MEMORY[target.short], max(8, target.bits))
    for row, address in zip(rows, _rows(w, s.target, s.target_at, s.target_step, n, depth), strict=True):
        w.line(f"store {t} {row}, ptr {address}, align {target.itemsize}{w.tags[s.target]}")
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
