"""The steps of attention on one block of queries and one block of keys, in memory of the thread's own.

Arrays are rows, [rows][size] with sizes padded to a multiple of 8, or tiles of 16 lanes, one after the other, each [rows][16].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from graphc.codegen.elementwise import convert
from graphc.codegen.expr import (
    Expr,
    bitcast,
    bits_const,
    cast,
    const,
    equal,
    float_bits,
    fma,
    index,
    load,
    make,
    select,
    to_bits,
    var,
)
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Stmt, Store, Transpose, Vector
from graphc.codegen.lower.affine import Levels, greatest_of, least_of, linear, tidy
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Operation, Value
from graphc.ir.ops.attention import KEYS, accumulator
from graphc.ir.types import BOOL, F64, I64, Dim, DType, Shape, size_of

Lane = Callable[[Expr], list[Stmt]]
TILE = 16  # lanes of a tile


class Where(NamedTuple):
    """The pairs in hand: batch, query head, first query and how many, first key of the block and how many."""

    b: Expr
    h: Expr
    first: Expr
    queries: Expr
    start: Expr
    keys: Expr


class Blocks:
    """Builds the statements. queries: lanes of a block of queries."""

    def __init__(self, pull: Pull, op: Operation, vector_bits: int, queries: int) -> None:
        self.pull, self.op, self.queries = pull, op, queries
        self.wide = accumulator(op.operands[0].type.dtype)
        self.vector = max(4, vector_bits // self.wide.bits)  # lanes of a vector
        self.turned = 8  # side of the squares that are transposed
        self.large_squares = op.name == "attention"  # faster, and more code
        # Sums in registers of a tile of `TILE` lanes.
        self.most_rows = max(2, (16 if vector_bits >= 512 else 8) * min(self.vector, TILE) // TILE)
        self.allocations: list[Stmt] = []
        self._count = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """Head sizes: of queries and keys, and of values."""
        depth, width = (v.type.shape[3] for v in self.op.operands[1:3])
        assert isinstance(depth, int) and isinstance(width, int)
        return depth, width

    def key_head(self, h: Expr) -> Expr:
        """The head of keys and values that query head `h` reads."""
        heads, key_heads = (v.type.shape[1] for v in self.op.operands[:2])
        return h if heads == key_heads else h // (dim_expr(heads) // dim_expr(key_heads))

    def name(self, stem: str, dtype: DType = I64) -> Expr:
        self._count += 1
        return var(f"{stem}_{self._count}", dtype)

    def array(self, name: str, size: int) -> Buffer:
        buffer = Buffer(name, self.wide, "local")
        self.allocations.append(Alloc(buffer, size))
        return buffer

    @staticmethod
    def least(a: Expr, b: Expr) -> Expr:
        return least_of(a, b)

    @staticmethod
    def greatest(a: Expr, b: Expr) -> Expr:
        return greatest_of(a, b)

    @staticmethod
    def padded(size: int) -> int:
        """A head size as arrays have it: a multiple of every tile."""
        return -(-size // 8) * 8

    def lanes(self, count: int, body: Lane, width: int = 64) -> list[Stmt]:
        """`body` for lanes 0 .. count - 1, `width` at a time."""
        width = min(width, count)
        lane = self.name("lane")
        if width == count:
            return [Vector(lane, width, tuple(body(lane)))]
        at = self.name("at")
        return [For(at, index(0), index(count), (Vector(lane, width, tuple(body(at + lane))),), index(width))]

    # Memory

    def copy(self, target: Buffer, x: Value, outer: tuple[Expr, Expr], first: Expr, count: Expr, rows: int) -> list[Stmt]:
        """target[r][d] = x[.., first + r, d] for all rows below `count`, in the accumulator's dtype; -0.0 elsewhere."""
        size = x.type.shape[3]
        assert isinstance(size, int)
        step = self.padded(size)
        r, r2, d, d2 = (self.name(s) for s in ("r", "r", "d", "d"))
        width = min(64, size & -size) if size % 16 == 0 else min(16, step)
        lane, lane2 = self.name("lane"), self.name("lane")
        empty = const(self.wide, -0.0)

        def element(at: Expr, lane: Expr, row: Expr, loops: Sequence[Expr]) -> Expr:
            value = self.pull.at(x, Position(x.type.shape, (*outer, first + row, at + lane)))
            return cast(tidy(value, [*outer, first, row, *loops, lane]), self.wide)

        whole = size // width * width
        line: list[Stmt] = []
        if whole:
            put = Store(target, r * step + d + lane, element(d, lane, r, [d]))
            line.append(For(d, index(0), index(whole), (Vector(lane, width, (put,)),), index(width)))
        if whole < step:
            tail = self.name("lane")
            narrow = 8 if step - whole <= 8 else 16
            at = index(whole)
            line.append(Vector(tail, narrow, (If(tail < size - whole, (
                Store(target, r * step + at + tail, element(at, tail, r, [])),
            ), (If(tail < step - whole, (Store(target, r * step + at + tail, empty),)),)),)))  # fmt: skip
        clear = For(d2, index(0), index(step), (Vector(lane2, 8, (Store(target, r2 * step + d2 + lane2, empty),)),), index(8))
        return [
            For(r, index(0), count, tuple(line), index(1)),
            For(r2, count, index(rows), (clear,), index(1)),
        ]

    def direct(self, x: Value, outer: tuple[Expr, Expr], first: Expr) -> Callable[[Expr, Expr], Expr] | None:
        """x[.., first + r, d] by (r, d), where it is as it lies in memory, d without gaps, and no rows need filling; or None."""
        size = x.type.shape[3]
        assert isinstance(size, int)
        if size % 8 or x.type.dtype is not self.wide:
            return None
        r, d = self.name("r"), self.name("d")
        found = self.pull.at(x, Position(x.type.shape, (*outer, first + r, d)))
        if found.op != "load" or len(found.args) != 1:
            return None
        levels = Levels((*outer, first, r, d))
        by_row = linear(found.args[0], r, levels)
        by_element = None if by_row is None else linear(by_row[1], d, levels)
        if by_row is None or by_element is None or by_element[0] is not index(1):
            return None
        base, step, buffer = by_element[1], by_row[0], found.data
        return lambda row, element: load(buffer, base + row * step + element)

    def put(
        self, target: Buffer, shape: Shape, rows: Buffer, outer: tuple[Expr, Expr], first: Expr, count: Expr
    ) -> list[Stmt]:
        """target[.., first + r, d] = rows[r][d], rounded, for the rows below `count`."""
        size = shape[3]
        assert isinstance(size, int)
        step = self.padded(size)
        r, d, lane, tail = (self.name(s) for s in ("r", "d", "lane", "lane"))

        def store(at: Expr, lane: Expr) -> Stmt:
            place = Position(shape, (*outer, first + r, at + lane)).flat
            return Store(target, place, convert(load(rows, r * step + at + lane), target.dtype))

        width = min(16, step)
        whole = size // width * width
        line: list[Stmt] = []
        if whole:
            line.append(For(d, index(0), index(whole), (Vector(lane, width, (store(d, lane),)),), index(width)))
        if whole < size:
            line.append(Vector(tail, 16, (If(tail < size - whole, (store(index(whole), tail),)),)))
        return [For(r, index(0), count, tuple(line), index(1))]

    # Tiles: strips of 16 lanes, each [rows][16]

    def whole_tiles(self, count: Expr) -> Expr:
        """`count` up to a multiple of a tile."""
        return (count + (TILE - 1)) // TILE * TILE

    def side_of(self, columns: int) -> int:
        """The side of the squares that rows of so many elements are turned by: a vector, where that is a divisor."""
        return TILE if self.large_squares and self.vector >= TILE and columns % TILE == 0 else self.turned

    def turn_in(self, target: Buffer, source: Buffer, count: Expr, columns: int) -> list[Stmt]:
        """Rows source[count][columns] to tiles of target, each [columns][16]."""
        n0, i, j, n = self.name("n"), self.name("i"), self.name("j"), self.side_of(columns)
        square = Transpose(target, n0 * columns + j * TILE + i, index(TILE), source, (n0 + i) * columns + j, index(columns), n)
        inner = For(j, index(0), index(columns), (square,), index(n))
        return [For(n0, index(0), count, (For(i, index(0), index(TILE), (inner,), index(n)),), index(TILE))]

    def turn_out(self, target: Buffer, source: Buffer, count: Expr, columns: int) -> list[Stmt]:
        """Tiles of source, each [columns][16], to rows target[count][columns]."""
        n0, i, j, n = self.name("n"), self.name("i"), self.name("j"), self.side_of(columns)
        square = Transpose(target, (n0 + i) * columns + j, index(columns), source, n0 * columns + j * TILE + i, index(TILE), n)
        inner = For(j, index(0), index(columns), (square,), index(n))
        return [For(n0, index(0), count, (For(i, index(0), index(TILE), (inner,), index(n)),), index(TILE))]

    def tile_rows_of(self, rows: int) -> int:
        """Rows of a register tile where there is a multiple of `rows` of them."""
        return min(self.most_rows, rows & -rows)

    def strip(
        self,
        height: int,
        first: Expr,
        stop: Expr,
        depth: Expr | Callable[[Expr], tuple[Expr, Expr]],
        row: Callable[[Expr, Expr], Expr],
        lane_of: Callable[[Expr, Expr], Expr],
        start: Callable[[Expr, Expr], Expr],
        finish: Callable[[Expr, Expr, list[Expr]], list[Stmt]],
        width: int = TILE,
    ) -> Stmt:
        """For `width` lanes and every row from `first` below `stop`, `height` at a time, the chain of fma(row(r, k),
        lane_of(lane, k), .) over ascending k from start(r, lane); finish gets the first row and the sums. depth: how many
        k, or for the first row of a tile the first and where to stop."""
        r0, k, lane = (self.name(s) for s in ("r", "k", "lane"))
        sums = [self.name("sum", self.wide) for _ in range(height)]
        body: list[Stmt] = [Declare(s, start(r0 + i, lane)) for i, s in enumerate(sums)]
        step = [Assign(s, fma(row(r0 + i, k), lane_of(lane, k), s)) for i, s in enumerate(sums)]
        low, high = depth(r0) if callable(depth) else (index(0), depth)
        body.append(For(k, low, high, tuple(step), index(1)))
        body += finish(r0, lane, sums)
        return For(r0, first, stop, (Vector(lane, width, tuple(body)),), index(height))

    def shadows(self, target: Buffer, block: Callable[[Expr, Expr], Expr], size: int, keys: Expr) -> list[Stmt]:
        """target[g][e], g = 1, 2, 3: what a chain of products of 0 with block(16 g .. keys - 1, e) does to a sum, as one
        factor w of 0: fma(0, w, .). NaN if one is not finite, else of the sign + if one has it (then -0.0 becomes +0.0)."""
        step, width = self.padded(size), 8
        e, lane = self.name("e"), self.name("lane")
        unsigned = to_bits(const(self.wide, 0.0)).dtype
        ones = (1 << self.wide.bits) - 1
        signs, bad = self.name("signs", unsigned), self.name("bad", self.wide)
        body: list[Stmt] = [Declare(signs, const(unsigned, ones)), Declare(bad, const(self.wide, -0.0))]
        for g in (3, 2, 1):
            r = self.name("r")
            value = block(r, e + lane)
            taken = (Assign(signs, signs & to_bits(value)), Assign(bad, bad - (value - value)))
            body.append(For(r, index(TILE * g), self.least(keys, index(TILE * (g + 1))), taken, index(1)))
            sign = signs & const(unsigned, 1 << (self.wide.bits - 1))
            factor = bitcast(sign | const(unsigned, float_bits(self.wide, 1.0)), self.wide) + bad
            body.append(Store(target, index(g * step) + e + lane, factor))
        return [For(e, index(0), index(step), (Vector(lane, width, tuple(body)),), index(width))]

    # What may be skipped: products of 0 with finite elements change no sum but -0.0

    def moderate(self, answer: Expr, blocks: Sequence[Buffer], sums: Sequence[Buffer] = ()) -> list[Stmt]:
        """answer = 1 if sums of products of elements of the blocks are finite, and none of the sums is -0.0; else 0.

        Squares are added: below 2**100 (2**900 in float64) no element is above 2**50 (2**450).
        """
        lane, worst, total = self.name("lane"), self.name("worst", self.wide), self.name("total", self.wide)
        zero, one = const(self.wide, 0.0), const(self.wide, 1.0)
        sizes = {s.buffer: s.size for s in self.allocations if isinstance(s, Alloc)}
        body: list[Stmt] = [Declare(total, zero)]
        for block in blocks:
            at = self.name("at")
            value = load(block, at + lane)
            body.append(For(at, index(0), index(sizes[block]), (Assign(total, fma(value, value, total)),), index(KEYS)))
        body.append(Declare(worst, select(total < (2.0**900 if self.wide is F64 else 2.0**100), zero, one)))
        for block in sums:
            at = self.name("at")
            body.append(For(at, index(0), index(sizes[block]), (
                Assign(worst, select(self.is_negative_zero(load(block, at + lane)), one, worst)),
            ), index(KEYS)))  # fmt: skip
        body.append(Assign(answer, select(self.any_lane(worst) > 0, index(0), index(1))))
        return [Vector(lane, KEYS, tuple(body))]

    def is_negative_zero(self, x: Expr) -> Expr:
        return equal(to_bits(x), bits_const(to_bits(x).dtype, float_bits(self.wide, -0.0)))

    def note_zeros(self, found: Buffer, lane: Expr, sums: Sequence[Expr]) -> list[Stmt]:
        """found[lane] = 1 where one of the sums is -0.0, else as it was."""
        value = load(found, lane)
        for s in sums:
            value = select(self.is_negative_zero(s), const(self.wide, 1.0), value)
        return [Store(found, lane, value)]

    def any_lane(self, x: Expr) -> Expr:
        """The largest of all lanes."""
        return make("lanes", self.wide, (x,), "max")

    def fill_row(
        self, target: Buffer, row: Value, outer: tuple[Expr, Expr], first: Expr, count: Expr, size: int, shifted: bool = False
    ) -> list[Stmt]:
        """target[r] = row[.., first + r] below `count`, else 0; shifted: 0 for -inf."""

        def one(lane: Expr) -> list[Stmt]:
            return [Store(target, lane, self.pull.at_if(row, Position(row.type.shape, (*outer, first + lane)), lane < count))]

        def shift(lane: Expr) -> list[Stmt]:
            value = load(target, lane)
            return [Store(target, lane, select(equal(value, float("-inf")), const(self.wide, 0.0), value))]

        return [*self.lanes(size, one, TILE), *(self.lanes(size, shift, TILE) if shifted else ())]

    # Arithmetic

    @staticmethod
    def halved(parts: Sequence[Expr]) -> Expr:
        """The sum by halving: r with r + half."""
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [a + b for a, b in zip(parts[:half], parts[half:], strict=True)]
        return parts[0]

    def paired(self, block: Expr, blocks: Expr) -> Expr:
        """Under causality blocks grow longer: first, last, second, last but one, .. so that every run of them is as long."""
        if not self.op.attrs["causal"]:
            return block
        return select(equal(block % 2, 0), block // 2, blocks - 1 - block // 2)

    def mask_tile(self, masks: Sequence[Value], at: Where, n0: Expr) -> Callable[[Expr, Expr], Expr] | None:
        """The mask's element by key and lane of the tile at `n0`: of an array that `fill_mask` fills, or in its place."""
        if not masks:
            return None
        (mask,) = masks
        if mask.type.shape[2] != 1 and mask.type.shape[3] != 1:
            lines, self.mask_rows = self.array("mask", KEYS * TILE), self.array("mask_rows", TILE * KEYS)
            self.mask_lines = lines
            return lambda j, lane: load(lines, j * TILE + lane)

        def element(j: Expr, lane: Expr) -> Expr:
            inside = (n0 + lane < at.queries) & (j < at.keys)
            return self.mask_element(mask, (at.b, at.h, at.first + n0 + lane, at.start + j), inside)

        return element

    def mask_element(self, mask: Value, at: tuple[Expr, Expr, Expr, Expr], inside: Expr) -> Expr:
        """An element of the mask, of a bool one 1 or 0; read only where `inside`."""
        place = Position(mask.type.shape, [index(0) if d == 1 else c for d, c in zip(mask.type.shape, at, strict=True)])
        return cast(self.pull.at_if(mask, place, inside), self.wide)

    def fill_mask(
        self, tile: Callable[[Expr, Expr], Expr] | None, masks: Sequence[Value], at: Where, n0: Expr, rows: Expr
    ) -> list[Stmt]:
        """A mask is read along the keys, its lines, and then turned."""
        if tile is None or masks[0].type.shape[2] == 1 or masks[0].type.shape[3] == 1:
            return []
        r, j, i, j2, lane = (self.name(s) for s in ("r", "j", "i", "j", "lane"))
        inside = (n0 + r < at.queries) & (j + lane < at.keys)
        value = self.mask_element(masks[0], (at.b, at.h, at.first + n0 + r, at.start + j + lane), inside)
        line = For(j, index(0), rows, (Vector(lane, TILE, (Store(self.mask_rows, r * KEYS + j + lane, value),)),), index(TILE))
        side = self.turned
        square = Transpose(self.mask_lines, j2 * TILE + i, index(TILE), self.mask_rows, i * KEYS + j2, index(KEYS), side)
        return [
            For(r, index(0), index(TILE), (line,), index(1)),
            For(i, index(0), index(TILE), (For(j2, index(0), rows, (square,), index(side)),), index(side)),
        ]

    def score(self, total: Expr, scale: Expr, mask: Callable[[Expr, Expr], Expr] | None, j: Expr, lane: Expr) -> Expr:
        """A score from its product."""
        if mask is None:
            return total * scale
        if self.op.operands[-1].type.dtype is BOOL:
            return select(equal(mask(j, lane), 0.0), const(self.wide, float("-inf")), total * scale)
        return fma(total, scale, mask(j, lane))

    def scored(
        self, total: Expr, scale: Expr, masks: Sequence[Value], at: tuple[Expr, Expr, Expr, Expr], inside: Expr
    ) -> Expr:
        """A score from its product; the mask is read only where `inside`. at: batch, head, query, key."""
        if not masks:
            return total * scale
        (mask,) = masks
        place = Position(mask.type.shape, [index(0) if d == 1 else c for d, c in zip(mask.type.shape, at, strict=True)])
        value = self.pull.at_if(mask, place, inside)
        if mask.type.dtype is BOOL:
            return select(value, total * scale, const(self.wide, float("-inf")))
        return fma(total, scale, cast(value, self.wide))

    def clear(self, target: Buffer, first: Expr, stop: Expr, lanes: int, value: Expr | None = None) -> list[Stmt]:
        """Rows first .. stop - 1 of target[..][lanes] become `value`, or zero."""
        r, filler = self.name("r"), const(self.wide, 0.0) if value is None else value
        return [For(r, first, stop, tuple(self.lanes(lanes, lambda lane: [Store(target, r * lanes + lane, filler)])), index(1))]


def work_of(op: Operation, sizes: int) -> Dim:
    """Elementary operations where a pair of query and key takes `sizes` multiplications."""
    total = size_of(op.operands[0].type.shape[:3]) * op.operands[1].type.shape[2] * sizes
    return total if op.attrs["causal"] else total * 2


__all__ = ["KEYS", "TILE", "Blocks", "Where", "work_of"]
