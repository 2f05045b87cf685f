"""Attention by fused multiply-add: the definition at the head of ir/ops/attention.py to the bit, on any device.

A block of 256 threads owns `rows` queries (or keys) and takes 64 columns at a time; thread (y, x) of 16 x 16 has rows y*R .. y*R + R - 1 and
columns x, x + 16, x + 32, x + 48, so that the 16 lanes of a block's sum are the 16 threads of a row, combined by shuffles. What
passes by goes through shared memory 64 rows x 64 elements at a time; weights and slopes pass from the layout of scores
to that of a product through shared memory too.

Tiles are padded so that nothing needs a condition: rows behind the last are -0.0, which a factor of +0.0 turns into no change of a
sum; elements behind the head size are +0.0 in q and dout and -0.0 in k and v.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.cuda.attention.parts import EMPTY, KEYS, Body, Parts, unrolled
from graphc.codegen.expr import Expr, cast, equal, fma, index, load, logical_and, select, shuffle, var
from graphc.codegen.loops import Alloc, Assign, Barrier, Buffer, Declare, For, If, Kernel, Let, Store, Vector
from graphc.codegen.lower.index import Position
from graphc.codegen.math.exponential import exp
from graphc.codegen.math.logarithm import log
from graphc.ir.function import Value

THREADS = 256
SIDE = 16  # threads along the rows, and along the columns
CHUNK = 64  # elements of a head that pass by at a time
STRIDE = CHUNK + 4  # of shared rows: reads of 16 bytes by neighbouring rows fall into different banks


def padded(size: int) -> int:
    return -(-size // 4) * 4


class FmaAttention:
    """Builds the kernels; `rows` of a tile is a multiple of 16 that divides 64."""

    def __init__(self, p: Parts, rows: int) -> None:
        self.p, self.rows = p, rows
        self.tall = rows // SIDE
        self.chunk = Buffer("chunk", p.wide, "shared")
        self.weights = Buffer("weights", p.wide, "shared")
        self.row_part, self.column_part = Buffer("row_part", p.wide, "local"), Buffer("column_part", p.wide, "local")
        self.allocs: Body = [
            Alloc(self.chunk, KEYS * STRIDE),
            Alloc(self.weights, rows * STRIDE),
            Alloc(self.row_part, self.tall * 4),
            Alloc(self.column_part, 16),
        ]
        self.body: Body = []

    # Pieces

    def begin(self, by_keys: bool) -> tuple[Expr, Expr, Expr]:
        p = self.p
        self.x, self.y = p.let(self.body, "x", var("thread") % SIDE), p.let(self.body, "y", var("thread") // SIDE)
        self.row0 = p.let(self.body, "row", self.y * self.tall)
        place = p.place(self.body, self.rows, by_keys)
        self.factor = p.let(self.body, "scale", p.pull.at(p.scale, Position(())))
        return place

    def local(self, name: str, size: int) -> Buffer:
        buffer = Buffer(name, self.p.wide, "local")
        self.allocs.append(Alloc(buffer, size))
        return buffer

    def resident(self, name: str, size: int) -> Buffer:
        """Shared memory for all elements of this block's rows."""
        buffer = Buffer(name, self.p.wide, "shared")
        self.allocs.append(Alloc(buffer, self.rows * (padded(size) + 4)))
        return buffer

    def copy(
        self, target: Buffer, stride: int, x: Value, outer: tuple[Expr, Expr], first: Expr, limit: Expr, rows: int,
        start: int, width: int, beyond: float,
    ) -> Body:  # fmt: skip
        """target[r][d] = x[outer, first + r, start + d] for r < rows, d < width, widened."""
        p = self.p
        size = x.type.shape[3]
        assert isinstance(size, int)
        units = width // 4
        total = rows * units
        e, lane = p.name("e"), p.name("lane")
        inner: Body = []
        unit = p.let(inner, "unit", var("thread") + e * THREADS)
        row, at = p.let(inner, "row", unit // units), p.let(inner, "at", unit % units * 4)
        from_row = p.let(inner, "from", first + row)
        value = p.element(x, outer, from_row, limit, at + lane + start, beyond, size % 4 == 0)
        copy = Vector(lane, 4, (Store(target, row * stride + at + lane, cast(value, p.wide)),))
        inner.append(If(unit < total, (copy,)) if total % THREADS else copy)
        return [For(e, index(0), index(-(-total // THREADS)), tuple(inner), index(1), unroll=-(-total // THREADS) * p.wide.itemsize <= 16)]

    def clear(self, buffer: Buffer, size: int) -> Body:
        i = self.p.name("i")
        return [unrolled(i, size, [Store(buffer, i, self.p.zero())])]

    def products(
        self, sums: Buffer, rows: Buffer, stride: int, x: Value, outer: tuple[Expr, Expr], first: Expr, limit: Expr, beyond: float
    ) -> Body:
        """sums[i][j] = the chain of rows[row i] with x[outer, first + column j] over all elements of a head."""
        p = self.p
        size = x.type.shape[3]
        assert isinstance(size, int)
        out: Body = self.clear(sums, self.tall * 4)
        for start in range(0, padded(size), CHUNK):
            width = min(CHUNK, padded(size) - start)
            d, i, j, lane, lane2 = (p.name(s) for s in ("d", "i", "j", "lane", "lane"))
            at = p.name("at")
            n, i2, j2 = p.name("n"), p.name("i"), p.name("j")
            from_rows = load(rows, (self.row0 + i) * stride + (at + start + lane))
            from_columns = load(self.chunk, (self.x + j * SIDE) * STRIDE + (at + lane2))
            term = fma(load(self.row_part, i2 * 4 + n), load(self.column_part, j2 * 4 + n), load(sums, i2 * 4 + j2))
            inner: Body = [
                Let(at, d * 4),
                unrolled(i, self.tall, [Vector(lane, 4, (Store(self.row_part, i * 4 + lane, from_rows),))]),
                unrolled(j, 4, [Vector(lane2, 4, (Store(self.column_part, j * 4 + lane2, from_columns),))]),
                unrolled(n, 4, [unrolled(i2, self.tall, [unrolled(j2, 4, [Store(sums, i2 * 4 + j2, term)])])]),
            ]
            out += [
                Barrier(),
                *self.copy(self.chunk, STRIDE, x, outer, first, limit, KEYS, start, width, beyond),
                Barrier(),
                For(d, index(0), index(width // 4), tuple(inner), index(1)),
            ]
        return out

    def put(self, values: Buffer) -> Body:
        """This thread's values of scores' layout into the shared weights."""
        i, j = self.p.name("i"), self.p.name("j")
        at = (self.row0 + i) * STRIDE + (self.x + j * SIDE)
        return [unrolled(i, self.tall, [unrolled(j, 4, [Store(self.weights, at, load(values, i * 4 + j))])])]

    def add(self, sums: Buffer, x: Value, outer: tuple[Expr, Expr], first: Expr, limit: Expr, beyond: float) -> Body:
        """sums[c][i][4] += the chain of weights[row i] with x[outer, first ..] over 64 columns, elements 64*c + 4*x ..."""
        p = self.p
        size = x.type.shape[3]
        assert isinstance(size, int)
        out: Body = []
        for c, start in enumerate(range(0, padded(size), CHUNK)):
            width = min(CHUNK, padded(size) - start)
            k, i, lane, n, lane2, i2, lane3 = (p.name(s) for s in ("k", "i", "lane", "n", "lane", "i", "lane"))
            from_weights = load(self.weights, (self.row0 + i) * STRIDE + (k * 4 + lane))
            from_chunk = load(self.chunk, (k * 4 + n) * STRIDE + (self.x * 4 + lane2))
            place = (c * self.tall + i2) * 4 + lane3
            term = fma(load(self.row_part, i2 * 4 + n), load(self.column_part, n * 4 + lane3), load(sums, place))
            inner: Body = [
                unrolled(i, self.tall, [Vector(lane, 4, (Store(self.row_part, i * 4 + lane, from_weights),))]),
                unrolled(n, 4, [
                    Vector(lane2, 4, (Store(self.column_part, n * 4 + lane2, from_chunk),)),
                    unrolled(i2, self.tall, [unrolled(lane3, 4, [Store(sums, place, term)])]),
                ]),
            ]  # fmt: skip
            product: Body = [For(k, index(0), index(KEYS // 4), tuple(inner), index(1))]
            out += [
                Barrier(),
                *self.copy(self.chunk, STRIDE, x, outer, first, limit, KEYS, start, width, beyond),
                Barrier(),
                *(product if width == CHUNK else [If(self.x * 4 < width, tuple(product))]),
            ]
        return out

    def sums_of(self, name: str, size: int) -> Buffer:
        return self.local(name, -(-padded(size) // CHUNK) * self.tall * 4)

    def each(self, body: Callable[[Expr, Expr], Body]) -> Body:
        """`body(i, j)` for this thread's rows and columns, written out."""
        i, j = self.p.name("i"), self.p.name("j")
        return [unrolled(i, self.tall, [unrolled(j, 4, body(i, j))])]

    def finish(
        self, result: Value, sums: Buffer, outer: tuple[Expr, Expr], first: Expr, value: Callable[[Expr, Expr], Expr]
    ) -> Body:
        """Stores value(row i, sum) of every sum."""
        p = self.p
        size = result.type.shape[3]
        assert isinstance(size, int)
        out: Body = []
        for c in range(-(-padded(size) // CHUNK)):
            i, lane = p.name("i"), p.name("lane")
            at = self.x * 4 + c * CHUNK
            element = value(i, load(sums, (c * self.tall + i) * 4 + lane))
            row = p.name("row")
            store = p.store(result, outer, row, at, lane, 4, element)
            out.append(unrolled(i, self.tall, [Let(row, first + self.row0 + i), store]))
        return out

    # attention

    def forward(self) -> Kernel:
        p = self.p
        out, logsumexp = p.op.results
        b, h, first = self.begin(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        stride = padded(p.depth) + 4
        queries = self.resident("queries", p.depth)
        scores, sums = self.local("scores", self.tall * 4), self.sums_of("sums", p.width)
        top, total = self.local("top", self.tall), self.local("total", self.tall)
        self.body += self.copy(queries, stride, p.q, (b, h), first, p.queries, self.rows, 0, padded(p.depth), 0.0)
        i = p.name("i")
        self.body.append(unrolled(i, self.tall, [Store(top, i, p.lowest()), Store(total, i, p.zero())]))
        self.body += self.clear(sums, -(-padded(p.width) // CHUNK) * self.tall * 4)

        start = p.name("start")
        inside: Body = [
            *self.products(scores, queries, stride, p.k, (b, kh), start, p.keys, EMPTY),
            *self.each(lambda i, j: self._score(scores, (b, h, first + self.row0 + i, start + (self.x + j * SIDE)), i, j)),
            *self._weigh(scores, top, total, sums),
            *self.put(scores),
            *self.add(sums, p.v, (b, kh), start, p.keys, EMPTY),
        ]
        stop = p.let(self.body, "stop", p.last_key(first, self.rows))
        self.body.append(For(start, index(0), stop, tuple(inside), index(KEYS)))
        if out in p.targets:
            self.body += self.finish(
                out, sums, (b, h), first,
                lambda i, s: select(equal(load(total, i), 0.0), p.zero(), s / load(total, i)),
            )  # fmt: skip
        if logsumexp in p.targets:
            i, row = p.name("i"), p.name("row")
            at = Position(logsumexp.type.shape, (b, h, row)).flat
            store = Store(p.targets[logsumexp], at, load(top, i) + log(load(total, i)))
            here = logical_and(equal(self.x, index(0)), row < p.queries)
            self.body.append(unrolled(i, self.tall, [Let(row, first + self.row0 + i), If(here, (store,))]))
        return self._kernel("attention", False, p.depth + p.width + 40)

    def _kernel(self, name: str, by_keys: bool, sizes: int) -> Kernel:
        # The gradients keep more sums than two blocks of a multiprocessor leave registers for.
        resident = 1 if name != "attention" else 0
        return self.p.kernel(name, [*self.allocs, *self.body], self.p.blocks(self.rows, by_keys), THREADS, sizes, resident)

    def _score(self, scores: Buffer, at: tuple[Expr, Expr, Expr, Expr], i: Expr, j: Expr) -> Body:
        """The sum of a product becomes a score. at: batch, query head, query, key."""
        p = self.p
        out: Body = []
        query, key = p.let(out, "query", at[2]), p.let(out, "key", at[3])
        inside = logical_and(query < p.queries, key < p.keys)
        place = i * 4 + j
        out.append(Store(scores, place, p.score(load(scores, place), self.factor, (at[0], at[1], query, key), inside)))
        return out

    def _weigh(self, scores: Buffer, top: Buffer, total: Buffer, sums: Buffer) -> Body:
        """Scores become weights; the maximum, the total and the sums follow."""
        p = self.p
        i = p.name("i")
        out: Body = []
        running = p.name("running", p.wide)
        body: Body = [Declare(running, load(top, i))]
        for j in range(4):
            x = load(scores, i * 4 + j)
            body.append(Assign(running, select(x > running, x, running)))
        for half in (8, 4, 2, 1):
            other = p.let(body, "other", shuffle(running, "xor", half, SIDE))
            body.append(Assign(running, select(other > running, other, running)))
        z = p.let(body, "z", select(equal(running, float("-inf")), p.zero(), running))
        shrink = p.let(body, "shrink", exp(load(top, i) - z))
        body.append(Store(top, i, running))
        for j in range(4):
            body.append(Store(scores, i * 4 + j, exp(load(scores, i * 4 + j) - z)))
        # Lane x of the sum has the weights of keys x, x + 16, x + 32, x + 48.
        lane = p.let(body, "lane", ((load(scores, i * 4) + load(scores, i * 4 + 1)) + load(scores, i * 4 + 2)) + load(scores, i * 4 + 3))
        for half in (8, 4, 2, 1):
            lane = p.let(body, "lane", lane + shuffle(lane, "xor", half, SIDE))
        body.append(Store(total, i, fma(load(total, i), shrink, lane)))
        c, n = p.name("c"), p.name("n")
        place = (c * self.tall + i) * 4 + n
        chunks = -(-padded(p.width) // CHUNK)
        body.append(unrolled(c, chunks, [unrolled(n, 4, [Store(sums, place, load(sums, place) * shrink)])]))
        out.append(unrolled(i, self.tall, body))
        return out

    # attention_grad

    def by_queries(self) -> Kernel:
        """dq."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        b, h, first = self.begin(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        stride, wide_stride = padded(p.depth) + 4, padded(p.width) + 4
        queries, douts = self.resident("queries", p.depth), self.resident("douts", p.width)
        scores, slopes, sums = (*(self.local(s, self.tall * 4) for s in ("scores", "slopes")), self.sums_of("sums", p.depth))
        shift, row_delta = self.local("shift", self.tall), self.local("delta", self.tall)
        self.body += self.copy(queries, stride, p.q, (b, h), first, p.queries, self.rows, 0, padded(p.depth), 0.0)
        self.body += self.copy(douts, wide_stride, dout, (b, h), first, p.queries, self.rows, 0, padded(p.width), 0.0)
        i, row = p.name("i"), p.name("row")
        self.body.append(unrolled(i, self.tall, [
            Let(row, first + self.row0 + i),
            Store(shift, i, self._row(lse, b, h, row, True)),
            Store(row_delta, i, self._row(delta, b, h, row, False)),
        ]))  # fmt: skip
        self.body += self.clear(sums, -(-padded(p.depth) // CHUNK) * self.tall * 4)
        start = p.name("start")

        def slope(i: Expr, j: Expr) -> Body:
            place = i * 4 + j
            value = load(scores, place) * (load(slopes, place) - load(row_delta, i))
            # Keys that do not exist take no part, whatever delta is.
            return [Store(slopes, place, select(start + (self.x + j * SIDE) < p.keys, value, p.zero()))]

        inside: Body = [
            *self.products(scores, queries, stride, p.k, (b, kh), start, p.keys, EMPTY),
            *self.each(lambda i, j: self._score(scores, (b, h, first + self.row0 + i, start + (self.x + j * SIDE)), i, j)),
            *self.each(lambda i, j: [Store(scores, i * 4 + j, exp(load(scores, i * 4 + j) - load(shift, i)))]),
            *self.products(slopes, douts, wide_stride, p.v, (b, kh), start, p.keys, EMPTY),
            *self.each(slope),
            *self.put(slopes),
            *self.add(sums, p.k, (b, kh), start, p.keys, EMPTY),
        ]
        stop = p.let(self.body, "stop", p.last_key(first, self.rows))
        self.body.append(For(start, index(0), stop, tuple(inside), index(KEYS)))
        self.body += self.finish(p.op.results[0], sums, (b, h), first, lambda i, s: s * self.factor)
        return self._kernel("attention_grad_q", False, 2 * p.depth + p.width + 40)

    def by_keys(self) -> Kernel:
        """dk and dv."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        _, dk, dv = p.op.results
        b, kh, first = self.begin(True)
        stride, wide_stride = padded(p.depth) + 4, padded(p.width) + 4
        keys, values = self.resident("keys", p.depth), self.resident("values", p.width)
        scores, slopes = self.local("scores", self.tall * 4), self.local("slopes", self.tall * 4)
        sums_k, sums_v = self.sums_of("sums_k", p.depth), self.sums_of("sums_v", p.width)
        shift, column_delta = self.local("shift", 4), self.local("delta", 4)
        self.body += self.copy(keys, stride, p.k, (b, kh), first, p.keys, self.rows, 0, padded(p.depth), EMPTY)
        self.body += self.copy(values, wide_stride, p.v, (b, kh), first, p.keys, self.rows, 0, padded(p.width), EMPTY)
        self.body += self.clear(sums_k, -(-padded(p.depth) // CHUNK) * self.tall * 4)
        self.body += self.clear(sums_v, -(-padded(p.width) // CHUNK) * self.tall * 4)
        g, start, j, query = (p.name(s) for s in ("g", "start", "j", "query"))
        one: Body = []
        h = p.let(one, "head", kh * (p.heads // p.key_heads) + g if p.grouped else kh + g)

        def column(j: Expr) -> Expr:
            return start + (self.x + j * SIDE)

        def weight(i: Expr, j: Expr) -> Body:
            place = i * 4 + j
            value = exp(load(scores, place) - load(shift, j))
            return [Store(scores, place, select(column(j) < p.queries, value, p.zero()))]

        def slope(i: Expr, j: Expr) -> Body:
            place = i * 4 + j
            value = load(scores, place) * (load(slopes, place) - load(column_delta, j))
            return [Store(slopes, place, select(column(j) < p.queries, value, p.zero()))]

        inside: Body = [
            unrolled(j, 4, [
                Let(query, column(j)),
                Store(shift, j, self._row(lse, b, h, query, True)),
                Store(column_delta, j, self._row(delta, b, h, query, False)),
            ]),
            *self.products(scores, keys, stride, p.q, (b, h), start, p.queries, 0.0),
            *self.each(lambda i, j: self._score(scores, (b, h, column(j), first + self.row0 + i), i, j)),
            *self.each(weight),
        ]  # fmt: skip
        if dv in p.targets:
            inside += [*self.put(scores), *self.add(sums_v, dout, (b, h), start, p.queries, 0.0)]
        if dk in p.targets:
            inside += [
                *self.products(slopes, values, wide_stride, dout, (b, h), start, p.queries, 0.0),
                *self.each(slope),
                *self.put(slopes),
                *self.add(sums_k, p.q, (b, h), start, p.queries, 0.0),
            ]
        one.append(For(start, p.first_query(first), p.queries, tuple(inside), index(KEYS)))
        self.body.append(For(g, index(0), p.heads // p.key_heads if p.grouped else index(1), tuple(one), index(1)))
        if dk in p.targets:
            self.body += self.finish(dk, sums_k, (b, kh), first, lambda i, s: s * self.factor)
        if dv in p.targets:
            self.body += self.finish(dv, sums_v, (b, kh), first, lambda i, s: s)
        return self._kernel("attention_grad_kv", True, 2 * p.depth + 2 * p.width + 40)

    def _row(self, x: Value, b: Expr, h: Expr, row: Expr, shifted: bool) -> Expr:
        """x[b, h, row], 0 behind the last; shifted: 0 for -inf too."""
        value = self.p.pull.at_if(x, Position(x.type.shape, (b, h, row)), row < self.p.queries)
        return select(equal(value, float("-inf")), self.p.zero(), value) if shifted else value


__all__ = ["THREADS", "FmaAttention"]
