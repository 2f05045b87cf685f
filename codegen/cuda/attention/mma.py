"""Attention on tensor cores by mma.sync, for float16, bfloat16, and float32 rounded to bfloat16 (Dao, "FlashAttention-2", 2023).

A warp owns 16 or 32 queries (or 16 keys) with all their sums in registers; the other side passes through shared memory in blocks of
64, the next block on its way. The scores of a warp leave the tensor cores in the layout in which they enter them again as
weights, so they stay in registers.

The order is fixed whatever the tile: blocks of 64 ascending; products in steps of 16, ascending, the head padded with zeros to a
multiple of 16; weights 2^(score * log2 e - maximum) by the device's own function, rounded to the operands' type for the product, added
up unrounded: a thread adds the columns 8 n + 2 (lane mod 4) and the next, ascending, over all blocks; then four threads by halving.
Gradients do the same with the logsumexp in place of the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from graphc.codegen.cuda.attention.parts import KEYS, Body, Parts, unrolled
from graphc.codegen.cuda.products.product import divisor
from graphc.codegen.expr import Expr, cast, const, equal, fma, index, load, logical_and, select, shuffle, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Call,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Place,
    Store,
    Vector,
)
from graphc.codegen.lower.affine import Levels, ceil_div, least_of, linear, normal
from graphc.codegen.lower.index import Position
from graphc.codegen.math.logarithm import log
from graphc.ir.function import Value
from graphc.ir.types import BF16, BOOL, F32, U32

WARPS = 4
THREADS = 32 * WARPS
LOG2_E = math.log2(math.e)
UNIT = 8  # elements of 16 bytes


def padded(size: int) -> int:
    return -(-size // 16) * 16


class Tile:
    """Rows of an operand in shared memory, `stages` times; rows of an odd number of 16-byte units meet different banks."""

    def __init__(self, p: Parts, x: Value, rows: int, stages: int, name: str) -> None:
        size = x.type.shape[3]
        assert isinstance(size, int)
        self.p, self.x, self.rows, self.stages, self.size = p, x, rows, stages, size
        self.stride = padded(size) + UNIT
        self.buffer = Buffer(name, p.narrow, "shared")
        self.alloc = Alloc(self.buffer, stages * rows * self.stride)
        self.copied = self._copied()

    def bytes(self) -> int:
        return self.alloc.size * 2

    def _copied(self) -> bool:
        """Whether units can be copied as they lie in memory."""
        b, h, row, d = (var(n) for n in ("batch", "head", "row", "d"))
        e = self.p.pull.at(self.x, Position(self.x.type.shape, (b, h, row, d)))
        if e.op != "load" or len(e.args) != 1 or self.size % UNIT or e.dtype is not self.p.narrow:
            return False
        levels = Levels([b, h, row, d])
        step = linear(e.args[0], d, levels)
        if step is None or step[0].op != "const" or step[0].data != 1:
            return False
        known = {**dict(self.p.choice.divides), "d": UNIT}
        return divisor(normal(e.args[0], levels), known) % UNIT == 0

    def issue(self, outer: tuple[Expr, Expr], first: Expr, limit: Expr, stage: Expr) -> Body:
        """Begin to bring rows first .. first + rows - 1 into a stage; zeros from `limit` on and behind the head."""
        p, units = self.p, padded(self.size) // UNIT
        total = self.rows * units
        e, lane = p.name("e"), p.name("lane")
        inner: Body = []
        thread = var("thread")
        if THREADS % units == 0:
            # One place in the row for each thread, rows a constant apart: few addresses to keep.
            unit, row, at = thread, thread // units + e * (THREADS // units), thread % units * UNIT
        else:
            unit = p.let(inner, "unit", thread + e * THREADS)
            row, at = p.let(inner, "row", unit // units), p.let(inner, "at", unit % units * UNIT)
        source_row = p.let(inner, "from", first + row)
        target = (stage * self.rows + row) * self.stride + at
        if self.copied:
            last = least_of(at, index(self.size - UNIT))
            value = p.pull.at(self.x, Position(self.x.type.shape, (*outer, least_of(source_row, limit - 1), last)))
            source = Place(value.data, normal(value.args[0], Levels([*outer, first, unit])))
            there = logical_and(source_row < limit, at < self.size) if self.size % 16 else source_row < limit
            copy: Body = [
                Call("copy_async_16", (Place(self.buffer, target), source, select(there, index(16), index(0))), (self.buffer,))
            ]
        else:
            element = p.element(self.x, outer, source_row, limit, at + lane, 0.0, False)
            copy = [Vector(lane, UNIT, (Store(self.buffer, target + lane, cast(element, p.narrow)),))]
        inner += [If(thread + e * THREADS < total, tuple(copy))] if total % THREADS else copy
        steps = -(-total // THREADS)
        return [For(e, index(0), index(steps), tuple(inner), index(1))]

    def prepare(self, body: Body, warp_row: Expr) -> None:
        """Name where this thread's part of a fragment begins; what follows are literal distances."""
        matrix, line = var("thread") % 32 // 8, var("thread") % 8
        near, far = matrix % 2 * 8, matrix // 2 * 8
        self._left = self.p.let(body, "left", (warp_row + near + line) * self.stride + far)
        self._right = self.p.let(body, "right", (far + line) * self.stride + near)
        self._turned = self.p.let(body, "turned", (near + line) * self.stride + far)

    def stage(self, body: Body, stage: Expr) -> Expr:
        """Where a stage begins."""
        return self.p.let(body, "at", stage * (self.rows * self.stride))

    def left(self, into: Place, row: Expr, step: int) -> Call:
        """The fragment of rows row .. row + 15 of the warp at elements 16 * step .. as the left operand: 4 registers."""
        at = Place(self.buffer, self._left + (row * self.stride + step * 16))
        return Call("ldmatrix_x4", (into, at), (into.buffer,))

    def right(self, into: Place, stage: Expr, row: int, step: int) -> Call:
        """Rows row .. row + 15 as columns of the right operand, the depth along elements 16 * step ..: 2 fragments of 8."""
        at = Place(self.buffer, stage + self._right + (row * self.stride + step * 16))
        return Call("ldmatrix_x4", (into, at), (into.buffer,))

    def turned(self, into: Place, stage: Expr, step: int, pair: int) -> Call:
        """Elements 16 * pair .. as columns of the right operand, the depth along rows 16 * step ..: 2 fragments of 8."""
        at = Place(self.buffer, stage + self._turned + (step * 16 * self.stride + pair * 16))
        return Call("ldmatrix_x4_trans", (into, at), (into.buffer,))


class MmaAttention:
    """Builds the kernels; `tall` rows a warp, `stages` of what passes by."""

    block = KEYS  # columns that pass by at a time
    unit = 16  # heads are padded to a multiple of it

    def __init__(self, p: Parts, tall: int, stages: int) -> None:
        self.p, self.tall, self.stages = p, tall, stages
        self.across = self.block // 8  # fragments of 8 columns
        self.rows = WARPS * tall
        self.down = tall // 16
        self.name_of = "bf16" if p.narrow is BF16 else "f16"
        self.body: Body = []
        self.allocs: Body = []

    # Pieces

    def begin(self, by_keys: bool) -> tuple[Expr, Expr, Expr]:
        p = self.p
        self.lane = p.let(self.body, "lane", var("thread") % 32)
        self.warp_row = p.let(self.body, "warp_row", var("thread") // 32 * self.tall)
        place = p.place(self.body, self.rows, by_keys)
        self.scale = p.let(self.body, "scale", p.pull.at(p.scale, Position(())))
        self.factor = p.let(self.body, "factor", self.scale * LOG2_E)
        return place

    def tile(self, x: Value, rows: int, stages: int, name: str) -> Tile:
        tile = Tile(self.p, x, rows, stages, name)
        self.allocs.append(tile.alloc)
        tile.prepare(self.body, self.warp_row)
        return tile

    def local(self, name: str, size: int) -> Buffer:
        buffer = Buffer(name, F32, "local")
        self.allocs.append(Alloc(buffer, size))
        return buffer

    def count(self, size: int) -> int:
        """Fragments of 8 elements that the sums of a head of this size have."""
        return -(-size // self.unit) * self.unit // 8

    def fill(self, buffer: Buffer, size: int, value: float = 0.0) -> Body:
        i = self.p.name("i")
        return [unrolled(i, size, [Store(buffer, i, const(F32, value))])]

    def fragments(self) -> Buffer:
        return Buffer(self.p.name("fragment").data, U32, "local")

    def _mma(self, d: Place, a: Place, b: Place) -> Call:
        return Call(f"mma_16816_{self.name_of}", (d, a, b), (d.buffer,))

    def scores(self, sums: Buffer, rows: Tile, columns: Tile, stage: Expr) -> Body:
        """sums[m][n][4] = the products of this warp's rows with the 64 rows of `columns`."""
        p = self.p
        out = self.fill(sums, self.down * 32)
        at = columns.stage(out, stage)
        steps = padded(rows.size) // 16
        for s in range(steps):
            a, m = self.fragments(), p.name("m")
            out.append(Alloc(a, self.down * 4))
            out.append(unrolled(m, self.down, [rows.left(Place(a, m * 4), m * 16, s)]))
            for n in range(KEYS // 16):
                b, m = self.fragments(), p.name("m")
                out += [Alloc(b, 4), columns.right(Place(b, index(0)), at, n * 16, s)]
                out.append(unrolled(m, self.down, [
                    self._mma(Place(sums, (m * 8 + 2 * n + half) * 4), Place(a, m * 4), Place(b, index(half * 2)))
                    for half in range(2)
                ]))  # fmt: skip
        return out

    def add(self, sums: Buffer, weights: Buffer, columns: Tile, stage: Expr) -> Body:
        """sums[m][e][4] += weights[m][n][4], rounded, times the 64 rows of `columns`."""
        p = self.p
        count = padded(columns.size) // 8
        out: Body = []
        start = columns.stage(out, stage)
        for s in range(KEYS // 16):
            a, m = self.fragments(), p.name("m")
            out.append(Alloc(a, self.down * 4))
            packs: Body = []
            for r in range(4):
                at = (m * 8 + (2 * s + r // 2)) * 4 + r % 2 * 2
                packs.append(Call(f"pack_{self.name_of}", (Place(a, m * 4 + r), load(weights, at), load(weights, at + 1)), (a,)))
            out.append(unrolled(m, self.down, packs))
            for e in range(count // 2):
                b, m = self.fragments(), p.name("m")
                out += [Alloc(b, 4), columns.turned(Place(b, index(0)), start, s, e)]
                out.append(unrolled(m, self.down, [
                    self._mma(Place(sums, (m * count + 2 * e + half) * 4), Place(a, m * 4), Place(b, index(half * 2)))
                    for half in range(2)
                ]))  # fmt: skip
        return out

    def scaled(
        self, sums: Buffer, at: Callable[[Expr, Expr], tuple[Expr, Expr, Expr, Expr]], first: Expr, start: Expr, whole: Expr,
        by_keys: bool = False,
    ) -> Body:  # fmt: skip
        """Products become scores times log2 e; those that must not be seen -inf, of which there are none where `whole`.

        at(row, column): batch, query head, query, key; rows from `first`, columns from `start`.
        """
        p = self.p
        m, n, i = p.name("m"), p.name("n"), p.name("i")
        slow: Body = []
        rows: Body = []
        for half in range(2):
            row = self.warp_row + (m * 16 + half * 8) + self.lane // 4
            # The columns of this thread that the row sees: those from low to high, counted from the thread's first.
            mine = start + self.lane % 4 * 2
            high = (p.queries if by_keys else p.keys) - mine
            low = None
            if p.causal and by_keys:
                low = p.let(rows, "low", first + row - mine)
            elif p.causal:
                high = least_of(p.keys, first + row + 1) - mine
            high = p.let(rows, "high", high)
            place, column = (m * self.across + n) * 4 + half * 2 + i, n * 8 + i
            value = load(sums, place) * self.factor
            seen = column < high
            if p.masks:
                (mask,) = p.masks
                where = at(row, self.lane % 4 * 2 + column)
                inside = logical_and(where[2] < p.queries, where[3] < p.keys)
                coords = [index(0) if d == 1 else c for d, c in zip(mask.type.shape, where, strict=True)]
                given = p.pull.at_if(mask, Position(mask.type.shape, coords), inside)
                if mask.type.dtype is BOOL:
                    seen = logical_and(seen, given)
                else:
                    value = fma(cast(given, F32), LOG2_E, value)
            if low is not None:
                seen = logical_and(seen, column >= low)
            slow.append(Store(sums, place, select(seen, value, p.lowest())))
        written: Body = [unrolled(m, self.down, [*rows, unrolled(n, self.across, [unrolled(i, 2, slow)])])]
        if p.masks:
            return written
        every = p.name("i")
        fast = unrolled(every, self.down * self.across * 4, [Store(sums, every, load(sums, every) * self.factor)])
        return [If(whole, (fast,), tuple(written))]

    def passing(self, count: Expr, issue: Callable[[Expr, Expr], Body], use: Callable[[Expr, Expr], Body]) -> Body:
        """Blocks 0 .. count - 1: issue(block, stage) brings them, ahead of use(block, stage)."""
        p = self.p
        it = p.name("block")
        if self.stages == 1:
            return [For(it, index(0), count, (
                Barrier(), *issue(it, index(0)), Call("copy_async_commit", ()), Call("copy_async_wait_0", ()), Barrier(),
                *use(it, index(0)),
            ), index(1))]  # fmt: skip
        inner: Body = [Call("copy_async_wait_0", ()), Barrier()]
        stage, coming = p.let(inner, "stage", it % 2), p.let(inner, "coming", it + 1)
        inner += [
            If(coming < count, tuple(issue(coming, coming % 2))),
            Call("copy_async_commit", ()),
            *use(it, stage),
        ]
        first = If(index(0) < count, tuple(issue(index(0), index(0))))
        return [first, Call("copy_async_commit", ()), For(it, index(0), count, tuple(inner), index(1))]

    def finish(
        self, result: Value, sums: Buffer, outer: tuple[Expr, Expr], first: Expr, value: Callable[[Expr, int, Expr], Expr]
    ) -> Body:
        """Stores value(m, half, sum) of every sum."""
        p = self.p
        size = result.type.shape[3]
        assert isinstance(size, int)
        m, e = p.name("m"), p.name("e")
        inner: Body = []
        rows: Body = []
        for half in range(2):
            lane = p.name("l")
            row = p.let(rows, "row", first + self.warp_row + (m * 16 + half * 8) + self.lane // 4)
            element = value(m, half, load(sums, (m * self.count(size) + e) * 4 + half * 2 + lane))
            inner.append(p.store(result, outer, row, e * 8 + self.lane % 4 * 2, lane, 2, element))
        return [unrolled(m, self.down, [*rows, unrolled(e, padded(size) // 8, inner)])]

    def kernel(self, name: str, by_keys: bool, sizes: int, resident: int = 2) -> Kernel:
        p = self.p
        return p.kernel(name, [*self.allocs, *self.body], p.blocks(self.rows, by_keys), THREADS, sizes, resident)

    # attention

    def forward(self) -> Kernel:
        p = self.p
        b, h, first = self.begin(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        queries = self.tile(p.q, self.rows, 1, "queries")
        keys, values = self.tile(p.k, KEYS, self.stages, "keys"), self.tile(p.v, KEYS, self.stages, "values")
        count = self.count(p.width)
        scores, sums = self.local("scores", self.down * 32), self.local("sums", self.down * count * 4)
        top, total, shrink = (self.local(name, self.down * 2) for name in ("top", "total", "shrink"))
        self.body += [*self.fill(top, self.down * 2, -math.inf), *self.fill(total, self.down * 2)]
        self.body += self.fill(sums, self.down * count * 4)
        self.body += queries.issue((b, h), first, p.queries, index(0))
        blocks = p.let(self.body, "blocks", ceil_div(p.last_key(first, self.rows), KEYS))

        def issue(block: Expr, stage: Expr) -> Body:
            start = block * KEYS
            return [*keys.issue((b, kh), start, p.keys, stage), *values.issue((b, kh), start, p.keys, stage)]

        def use(block: Expr, stage: Expr) -> Body:
            inner: Body = []
            start = p.let(inner, "start", block * KEYS)
            whole = start + KEYS <= p.keys
            if p.causal:
                whole = logical_and(whole, start + (KEYS - 1) <= first)
            return [
                *inner,
                *self.scores(scores, queries, keys, stage),
                *self.scaled(scores, lambda row, column: (b, h, first + row, start + column), first, start, whole),
                *self.weigh(scores, top, total, shrink),
                *self.shrunk(sums, shrink, count),
                *self.add(sums, scores, values, stage),
            ]

        self.body += self.passing(blocks, issue, use)
        self.body += self.results(sums, top, total, (b, h), first)
        resident = 2 if self.down * (count * 4 + 32) <= 192 else 0
        return self.kernel("attention", False, p.depth + p.width + 16, resident)

    def results(self, sums: Buffer, top: Buffer, total: Buffer, outer: tuple[Expr, Expr], first: Expr) -> Body:
        """Stores the results of this warp's rows."""
        p = self.p
        out, logsumexp = p.op.results
        body = self._totals(total)
        if out in p.targets:
            inverse, i = Buffer("inverse", F32, "local"), p.name("i")
            reciprocal = select(equal(load(total, i), 0.0), const(F32, 0.0), const(F32, 1.0) / load(total, i))
            body += [Alloc(inverse, self.down * 2), unrolled(i, self.down * 2, [Store(inverse, i, reciprocal)])]
            body += self.finish(out, sums, outer, first, lambda m, half, s: s * load(inverse, m * 2 + half))
        if logsumexp in p.targets:
            i, row = p.name("i"), p.name("row")
            at = Position(logsumexp.type.shape, (*outer, row)).flat
            value = load(top, i) * math.log(2) + log(load(total, i))
            here = logical_and(equal(self.lane % 4, index(0)), row < p.queries)
            body.append(unrolled(i, self.down * 2, [
                Let(row, first + self.warp_row + i * 8 + self.lane // 4),
                If(here, (Store(p.targets[logsumexp], at, value),)),
            ]))  # fmt: skip
        return body

    def weigh(self, scores: Buffer, top: Buffer, total: Buffer, shrink: Buffer) -> Body:
        """Scores become weights; the maximum and this thread's part of the total follow; shrink[row] is for the sums."""
        p = self.p
        m = p.name("m")
        body: Body = []
        for half in range(2):
            row = m * 2 + half
            elements = [(m * self.across + n) * 4 + half * 2 + i for n in range(self.across) for i in range(2)]
            running = p.name("running", F32)
            body.append(Declare(running, load(top, row)))
            for at in elements:
                body.append(Assign(running, select(load(scores, at) > running, load(scores, at), running)))
            for apart in (1, 2):
                other = p.let(body, "other", shuffle(running, "xor", apart, 4))
                body.append(Assign(running, select(other > running, other, running)))
            z = p.let(body, "z", select(equal(running, float("-inf")), const(F32, 0.0), running))
            body += [Store(shrink, row, load(top, row) - z), Store(top, row, running)]
            body.append(Call("exp2_approximate", (Place(shrink, row),), (shrink,)))
            for at in elements:
                body.append(Store(scores, at, load(scores, at) - z))
                body.append(Call("exp2_approximate", (Place(scores, at),), (scores,)))
            added = p.name("added", F32)
            body.append(Declare(added, load(total, row) * load(shrink, row)))
            body += [Assign(added, added + load(scores, at)) for at in elements]
            body.append(Store(total, row, added))
        return [unrolled(m, self.down, body)]

    def shrunk(self, sums: Buffer, shrink: Buffer, count: int) -> Body:
        """The sums follow a new maximum."""
        p = self.p
        m, e, half, i = (p.name(s) for s in ("m", "e", "half", "i"))
        place = (m * count + e) * 4 + half * 2 + i
        one = unrolled(i, 2, [Store(sums, place, load(sums, place) * load(shrink, m * 2 + half))])
        return [unrolled(m, self.down, [unrolled(e, count, [unrolled(half, 2, [one])])])]

    def _totals(self, total: Buffer) -> Body:
        """The four threads of a row add their parts."""
        p = self.p
        i = p.name("i")
        body: Body = []
        value = load(total, i)
        for apart in (1, 2):
            value = p.let(body, "sum", value + p.let(body, "other", shuffle(value, "xor", apart, 4)))
        return [unrolled(i, self.down * 2, [*body, Store(total, i, value)])]


__all__ = ["KEYS", "THREADS", "WARPS", "MmaAttention", "Tile", "padded"]
