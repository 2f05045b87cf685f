"""The gradients of attention on sm_90a, for heads of at most 128 elements: as attention/mma_grad.py, by wgmma.

A warpgroup owns 64 queries (or keys); blocks of 64 pass by. The tile of a block serves as right operand of both kinds: its rows as
columns for scores, its elements as columns for sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.cuda.attention.mma import LOG2_E
from graphc.codegen.cuda.attention.mma_grad import MmaGradient
from graphc.codegen.cuda.attention.parts import KEYS, Body, unrolled
from graphc.codegen.cuda.attention.wgmma import LARGE, Piece, Ring, WgmmaKernel
from graphc.codegen.expr import Expr, index, load, logical_and, select, var
from graphc.codegen.loops import Alloc, Buffer, Call, For, Kernel, Let, Stmt, Store
from graphc.codegen.lower.affine import ceil_div
from graphc.ir.function import Value
from graphc.ir.types import F32, U32

HALF = KEYS // 2  # registers of a thread that hold 64 x 64 scores


def takes(depth: int, width: int) -> bool:
    """Whether the registers of a warpgroup hold the sums of such heads."""
    return max(depth, width) <= LARGE


class WgmmaGradient(WgmmaKernel, MmaGradient):
    """Builds the kernels of attention_grad."""

    def _begin(self, sums: Sequence[tuple[Buffer, int]]) -> tuple[Body, Buffer, Buffer, Buffer, Buffer]:
        """Names and registers of a consuming thread; scores, slopes, and both as left operands."""
        out = self.begin_consumer()
        scores, slopes = Buffer("scores", F32, "local"), Buffer("slopes", F32, "local")
        weights, factors = Buffer("weights", U32, "local"), Buffer("factors", U32, "local")
        for buffer, size in ((scores, HALF), (slopes, HALF), (weights, HALF // 2), (factors, HALF // 2), *sums):
            out.append(Alloc(buffer, size))
        for buffer, size in sums:
            out += self.fill(buffer, size)
        return out, scores, slopes, weights, factors

    def _both(self, stage: Expr, first: tuple[Buffer, Ring, Ring], second: tuple[Buffer, Ring, Ring]) -> Body:
        """Products of two pairs of tiles, of which the first is waited for."""
        out: Body = [*self.fill(first[0], HALF), *self.fill(second[0], HALF), Call("wgmma_fence", ())]
        for sums, left, right in (first, second):
            out += [*self.products_of(sums, left, right, stage), Call("wgmma_commit", ())]
        return [*out, Call("wgmma_wait_1", ()), *self.hold(first[0], HALF)]

    def _finish_sums(self, sums: Sequence[tuple[Buffer, int]]) -> Body:
        out: Body = [Call("wgmma_wait_0", ())]
        for buffer, size in sums:
            out += self.hold(buffer, size)
        return out

    def by_queries(self) -> Kernel:
        """dq."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        b, h, first = self.place(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        blocks = p.let(self.body, "blocks", ceil_div(p.last_key(first, self.rows), KEYS))
        queries = self.ring(p.q, self.rows, self.rows, 1, "queries")
        douts = self.ring(dout, self.rows, self.rows, 1, "douts")
        keys = self.ring(p.k, KEYS, KEYS, self.stages, "keys")
        values = self.ring(p.v, KEYS, KEYS, self.stages, "values")

        def passing(body: Body, block: Expr) -> Sequence[Piece]:
            start = p.let(body, "start", block * KEYS)
            return Piece(keys, (b, kh), start, p.keys), Piece(values, (b, kh), start, p.keys)

        resident = [Piece(queries, (b, h), first, p.queries), Piece(douts, (b, h), first, p.queries)]
        produce = self.produce(resident, blocks, passing)

        sums = Buffer("sums", F32, "local")
        held = [(sums, self.count(p.depth) * 4)]
        out, scores, slopes, _, factors = self._begin(held)
        shift, deltas = Buffer("shift", F32, "local"), Buffer("deltas", F32, "local")
        i, row = p.name("i"), p.name("row")
        out += [Alloc(shift, 2), Alloc(deltas, 2)]
        out.append(unrolled(i, 2, [
            Let(row, first + self.warp_row + i * 8 + self.lane // 4),
            Store(shift, i, self._row(lse, b, h, row, LOG2_E)),
            Store(deltas, i, self._row(delta, b, h, row, 1.0)),
        ]))  # fmt: skip
        block = p.name("block")
        loop: Body = []
        stage, parity = self.stage_of(loop, block)
        start = p.let(loop, "start", block * KEYS)
        whole = start + KEYS <= p.keys
        if p.causal:
            whole = logical_and(whole, start + (KEYS - 1) <= first + self.consumer * 64)
        loop += [
            self.wait(stage, parity),
            *self._both(stage, (scores, queries, keys), (slopes, douts, values)),
            *self.scaled(scores, lambda r, column: (b, h, first + r, start + column), first, start, whole),
            *self._weights(scores, lambda m, half, column: load(shift, index(half))),
            Call("wgmma_wait_0", ()), *self.hold(slopes, HALF),
            *self._slopes(slopes, scores, lambda m, half, column: load(deltas, index(half))),
            *self.packed(factors, slopes),
            Call("wgmma_fence", ()), *self.added(sums, factors, keys, stage), Call("wgmma_commit", ()),
            *self._finish_sums(held),
            self.release(stage),
        ]  # fmt: skip
        out += [self.wait(index(self.stages), index(0)), For(block, index(0), blocks, tuple(loop), index(1))]
        out += self.finish(p.op.results[0], sums, (b, h), first, lambda m, half, s: s * self.scale)
        return self.assemble("attention_grad_q", False, 2 * p.depth + p.width + 16, produce, out)

    def by_keys(self, results: tuple[Value, ...]) -> Kernel:
        """Those of dk and dv that are in `results`."""
        p = self.p
        lse, delta, dout = p.op.operands[4:7]
        _, dk, dv = p.op.results
        b, kh, first = self.place(True)
        begin = p.let(self.body, "begin", p.first_query(first))
        each = p.let(self.body, "each", select(begin < p.queries, ceil_div(p.queries - begin, KEYS), index(0)))
        many = p.let(self.body, "many", p.heads // p.key_heads) if p.grouped else index(1)
        blocks = p.let(self.body, "blocks", each * many)
        keys = self.ring(p.k, self.rows, self.rows, 1, "keys")
        values = self.ring(p.v, self.rows, self.rows, 1, "values")
        queries = self.ring(p.q, KEYS, KEYS, self.stages, "queries")
        douts = self.ring(dout, KEYS, KEYS, self.stages, "douts")
        shifts, deltas = Buffer("shifts", F32, "shared"), Buffer("deltas", F32, "shared")
        self.allocs += [Alloc(x, self.stages * KEYS) for x in (shifts, deltas)]

        def where(body: Body, block: Expr) -> tuple[Expr, Expr]:
            """The query head and the first query of a block."""
            if not p.grouped:
                return kh, p.let(body, "start", begin + block * KEYS)
            head = p.let(body, "head", kh * many + block // each)
            return head, p.let(body, "start", begin + block % each * KEYS)

        def passing(body: Body, block: Expr) -> Sequence[Piece]:
            h, start = where(body, block)
            return Piece(queries, (b, h), start, p.queries), Piece(douts, (b, h), start, p.queries)

        def rows(body: Body, block: Expr, stage: Expr) -> list[Stmt]:
            h, start = where(body, block)
            row = p.let(body, "row", start + var("thread"))
            at = p.let(body, "slot", stage * KEYS + var("thread"))
            return [
                Store(shifts, at, self._row(lse, b, h, row, LOG2_E)),
                Store(deltas, at, self._row(delta, b, h, row, 1.0)),
            ]

        resident = [Piece(keys, (b, kh), first, p.keys), Piece(values, (b, kh), first, p.keys)]
        produce = self.produce(resident, blocks, passing, rows)

        sums_k, sums_v = Buffer("sums_k", F32, "local"), Buffer("sums_v", F32, "local")
        held = [(sums_k, self.count(p.depth) * 4), (sums_v, self.count(p.width) * 4)]
        out, scores, slopes, weights, factors = self._begin(held)
        block = p.name("block")
        loop: Body = []
        stage, parity = self.stage_of(loop, block)
        h, start = where(loop, block)
        slot = p.let(loop, "slot", stage * KEYS)
        whole = start + KEYS <= p.queries
        if p.causal:
            whole = logical_and(whole, start >= first + self.consumer * 64 + 63)
        loop += [
            self.wait(stage, parity),
            *self._both(stage, (scores, keys, queries), (slopes, values, douts)),
            *self.scaled(scores, lambda r, column: (b, h, start + column, first + r), first, start, whole, True),
            *self._weights(scores, lambda m, half, column: load(shifts, slot + column)),
            *self.packed(weights, scores),
            Call("wgmma_wait_0", ()), *self.hold(slopes, HALF),
            Call("wgmma_fence", ()), *self.added(sums_v, weights, douts, stage), Call("wgmma_commit", ()),
            *self._slopes(slopes, scores, lambda m, half, column: load(deltas, slot + column)),
            *self.packed(factors, slopes),
            Call("wgmma_fence", ()), *self.added(sums_k, factors, queries, stage), Call("wgmma_commit", ()),
            *self._finish_sums(held),
            self.release(stage),
        ]  # fmt: skip
        out += [self.wait(index(self.stages), index(0)), For(block, index(0), blocks, tuple(loop), index(1))]
        if dk in results:
            out += self.finish(dk, sums_k, (b, kh), first, lambda m, half, s: s * self.scale)
        if dv in results:
            out += self.finish(dv, sums_v, (b, kh), first, lambda m, half, s: s)
        return self.assemble("attention_grad_kv", True, 2 * p.depth + 2 * p.width + 16, produce, out, shared_rows=True)


__all__ = ["WgmmaGradient", "takes"]
