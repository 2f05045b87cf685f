"""The gradients of attention on tensor cores: by queries (dq) and by keys (dk, dv), each sum in the registers of one warp.

As in attention/mma.py. By keys, the scores are computed with keys as rows, so that weights and slopes are left operands as they
stand; what a thread has of dk and dv for heads of more than 128 elements would not fit its registers, so dv and dk then
are two kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.cuda.attention.mma import KEYS, LOG2_E, MmaAttention, padded
from graphc.codegen.cuda.attention.parts import Body, unrolled
from graphc.codegen.expr import Expr, const, equal, index, load, logical_and, select, var
from graphc.codegen.loops import Alloc, Buffer, Call, If, Kernel, Let, Place, Store
from graphc.codegen.lower.affine import ceil_div
from graphc.codegen.lower.index import Position
from graphc.ir.function import Value
from graphc.ir.types import F32

TOGETHER = 128  # the largest head whose dk and dv one kernel holds


class MmaGradient(MmaAttention):
    """Builds the kernels of attention_grad."""

    def _row(self, x: Value, b: Expr, h: Expr, row: Expr, by: float) -> Expr:
        """by * x[b, h, row]; 0 behind the last row, and for -inf."""
        value = self.p.pull.at_if(x, Position(x.type.shape, (b, h, row)), row < self.p.queries)
        zero = const(F32, 0.0)
        return select(equal(value, float("-inf")), zero, value * by) if by != 1.0 else value

    def _weights(self, scores: Buffer, shift: Callable[[Expr, int, Expr], Expr]) -> Body:
        """Scores (times log2 e) become weights; shift(m, half, column)."""

        def weight(place: Expr, half: int, m: Expr, column: Expr) -> Body:
            return [
                Store(scores, place, load(scores, place) - shift(m, half, column)),
                Call("exp2_approximate", (Place(scores, place),), (scores,)),
            ]

        return self._each(weight)

    def _slopes(self, slopes: Buffer, scores: Buffer, delta: Callable[[Expr, int, Expr], Expr]) -> Body:
        def slope(place: Expr, half: int, m: Expr, column: Expr) -> Body:
            return [Store(slopes, place, load(scores, place) * (load(slopes, place) - delta(m, half, column)))]

        return self._each(slope)

    def _each(self, body: Callable[[Expr, int, Expr, Expr], Body]) -> Body:
        """`body(place in sums, half, m, column in the block)` for this thread's scores, written out."""
        p = self.p
        m, n, i = p.name("m"), p.name("n"), p.name("i")
        inner: Body = []
        for half in range(2):
            inner += body((m * 8 + n) * 4 + half * 2 + i, half, m, n * 8 + self.lane % 4 * 2 + i)
        return [unrolled(m, self.down, [unrolled(n, 8, [unrolled(i, 2, inner)])])]

    def by_queries(self) -> Kernel:
        """dq."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        b, h, first = self.begin(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        queries, douts = self.tile(p.q, self.rows, 1, "queries"), self.tile(dout, self.rows, 1, "douts")
        keys, values = self.tile(p.k, KEYS, self.stages, "keys"), self.tile(p.v, KEYS, self.stages, "values")
        count = padded(p.depth) // 8
        scores, slopes = self.local("scores", self.down * 32), self.local("slopes", self.down * 32)
        sums = self.local("sums", self.down * count * 4)
        shift, deltas = self.local("shift", self.down * 2), self.local("deltas", self.down * 2)
        i, row = p.name("i"), p.name("row")
        self.body.append(unrolled(i, self.down * 2, [
            Let(row, first + self.warp_row + i * 8 + self.lane // 4),
            Store(shift, i, self._row(lse, b, h, row, LOG2_E)),
            Store(deltas, i, self._row(delta, b, h, row, 1.0)),
        ]))  # fmt: skip
        self.body += self.fill(sums, self.down * count * 4)
        self.body += [*queries.issue((b, h), first, p.queries, index(0)), *douts.issue((b, h), first, p.queries, index(0))]
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
                *self._weights(scores, lambda m, half, column: load(shift, m * 2 + half)),
                *self.scores(slopes, douts, values, stage),
                *self._slopes(slopes, scores, lambda m, half, column: load(deltas, m * 2 + half)),
                *self.add(sums, slopes, keys, stage),
            ]

        self.body += self.passing(blocks, issue, use)
        self.body += self.finish(p.op.results[0], sums, (b, h), first, lambda m, half, s: s * self.scale)
        return self.kernel("attention_grad_q", False, 2 * p.depth + p.width + 16)

    def by_keys(self, results: tuple[Value, ...]) -> Kernel:
        """Those of dk and dv that are in `results`."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        _, dk, dv = p.op.results
        b, kh, first = self.begin(True)
        keys = self.tile(p.k, self.rows, 1, "keys")
        values = self.tile(p.v, self.rows, 1, "values") if dk in results else None
        queries, douts = self.tile(p.q, KEYS, self.stages, "queries"), self.tile(dout, KEYS, self.stages, "douts")
        shifts, deltas = (Buffer(n, F32, "shared") for n in ("shifts", "deltas"))
        self.allocs += [Alloc(x, self.stages * KEYS) for x in (shifts, deltas)]
        scores, slopes = self.local("scores", self.down * 32), self.local("slopes", self.down * 32)
        sums = {r: self.local(f"sums_{'kv'[r is dv]}", self.down * padded(r.type.shape[3]) // 2) for r in results}  # type: ignore[arg-type]
        for buffer, size in ((sums[r], self.down * padded(r.type.shape[3]) // 2) for r in results):  # type: ignore[arg-type]
            self.body += self.fill(buffer, size)
        self.body += keys.issue((b, kh), first, p.keys, index(0))
        if values is not None:
            self.body += values.issue((b, kh), first, p.keys, index(0))
        # The queries of all heads of a group pass by one after another.
        begin = p.let(self.body, "begin", p.first_query(first))
        each = p.let(self.body, "each", select(begin < p.queries, ceil_div(p.queries - begin, KEYS), index(0)))
        many = p.let(self.body, "many", p.heads // p.key_heads) if p.grouped else index(1)
        blocks = p.let(self.body, "blocks", each * many)

        def place(body: Body, block: Expr) -> tuple[Expr, Expr]:
            """The query head and the first query of a block."""
            if not p.grouped:
                return kh, p.let(body, "start", begin + block * KEYS)
            return (
                p.let(body, "head", kh * many + block // each),
                p.let(body, "start", begin + block % each * KEYS),
            )

        def issue(block: Expr, stage: Expr) -> Body:
            out: Body = []
            h, start = place(out, block)
            thread = var("thread")
            row, at = p.let(out, "row", start + thread), p.let(out, "slot", stage * KEYS + thread)
            out.append(If(thread < KEYS, (
                Store(shifts, at, self._row(lse, b, h, row, LOG2_E)),
                Store(deltas, at, self._row(delta, b, h, row, 1.0)),
            )))  # fmt: skip
            return [*out, *queries.issue((b, h), start, p.queries, stage), *douts.issue((b, h), start, p.queries, stage)]

        def use(block: Expr, stage: Expr) -> Body:
            out: Body = []
            h, start = place(out, block)
            slot = p.let(out, "slot", stage * KEYS)
            whole = start + KEYS <= p.queries
            if p.causal:
                whole = logical_and(whole, start >= first + (self.rows - 1))
            out += [
                *self.scores(scores, keys, queries, stage),
                *self.scaled(scores, lambda row, column: (b, h, start + column, first + row), first, start, whole, True),
                *self._weights(scores, lambda m, half, column: load(shifts, slot + column)),
            ]
            if dv in results:
                out += self.add(sums[dv], scores, douts, stage)
            if values is not None:
                out += [
                    *self.scores(slopes, values, douts, stage),
                    *self._slopes(slopes, scores, lambda m, half, column: load(deltas, slot + column)),
                    *self.add(sums[dk], slopes, queries, stage),
                ]
            return out

        self.body += self.passing(blocks, issue, use)
        for r in results:
            by = (lambda m, half, s: s * self.scale) if r is dk else (lambda m, half, s: s)
            self.body += self.finish(r, sums[r], (b, kh), first, by)
        name = "attention_grad_kv" if len(results) > 1 else "attention_grad_k" if dk in results else "attention_grad_v"
        return self.kernel(name, True, 2 * p.depth + 2 * p.width + 16)


def together(depth: int, width: int) -> bool:
    """Whether one kernel has registers for dk and dv."""
    return max(padded(depth), padded(width)) <= TOGETHER


__all__ = ["MmaGradient", "together"]
