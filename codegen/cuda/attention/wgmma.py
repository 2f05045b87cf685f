"""Attention on the tensor cores of sm_90a (Shah et al., "FlashAttention-3", 2024): copies by the bulk engine, wgmma, two things at a time.

One warpgroup produces: it brings the queries of the tile, then blocks of keys and values, into a ring of stages. One or two
warpgroups consume, 64 queries each: while the tensor cores add the values of one block, the warps weigh the scores of the next.
`full[stage]` counts the bytes of a stage, `empty[stage]` the warps that have done with it.

Operands that are views of a buffer (operand_view.py says which) are copied as they lie; others are written by the producing threads, element
by element, to the same places.

The order: as in attention/mma.py, but blocks of 128 keys, of 64 for heads of more than 128 elements, heads padded to a multiple of 64, and
a thread's part of a total goes over all columns of such a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from graphc.codegen.cuda.attention.mma import KEYS, LOG2_E, MmaAttention
from graphc.codegen.cuda.attention.parts import Body, Parts, unrolled
from graphc.codegen.cuda.products.operand_view import ROW, is_stride, split
from graphc.codegen.expr import Expr, cast, equal, index, load, logical_and, var
from graphc.codegen.loops import (
    Alloc,
    Barrier,
    Buffer,
    Call,
    For,
    If,
    Kernel,
    Place,
    Store,
    TensorMap,
    Vector,
)
from graphc.codegen.lower.affine import Levels, ceil_div, linear, normal
from graphc.codegen.lower.index import Position, dim_expr
from graphc.ir.function import Value
from graphc.ir.types import F32, U32, U64

GROUP = 128  # threads of a warpgroup
LINE = 64  # elements of 128 bytes, along which memory is swizzled
LARGE = 128  # a head of more elements leaves registers for blocks of 64 keys only


def block_of(depth: int, width: int) -> int:
    """Keys of a block."""
    return 2 * KEYS if max(depth, width) <= LARGE else KEYS


def lines(size: int) -> int:
    return -(-size // LINE)


@dataclass(frozen=True)
class View:
    """An operand as the copy engine sees it: element, row, head, batch; `start` is where index 0 of each lies."""

    buffer: Buffer
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    start: tuple[Expr, ...]


def view_of(p: Parts, x: Value) -> View | None:
    """An operand as a view, or None."""
    names = b, h, row, d = (var("batch"), var("head"), var("row"), var("d"))
    e = p.pull.at(x, Position(x.type.shape, names))
    if p.pull.take_reports() or e.op != "load" or len(e.args) != 1 or e.dtype is not p.narrow:
        return None
    levels = Levels(names)
    rest, steps = e.args[0], []
    for v in (d, row, h, b):
        found = linear(rest, v, levels)
        if found is None:
            return None
        steps.append(found[0])
        rest = found[1]
    if steps[0].op != "const" or steps[0].data != 1:
        return None
    extents = (x.type.shape[3], x.type.shape[2], x.type.shape[1], x.type.shape[0])
    strides = []
    for step, extent in zip(steps[1:], extents[1:], strict=True):
        if step.op == "const" and step.data == 0 and extent == 1:
            step = index(ROW)  # never taken
        if not is_stride(step, dict(p.choice.divides), x.type.dtype):
            return None
        strides.append(step)
    start = split(rest, strides)
    if start is None:
        return None
    sizes = tuple(dim_expr(n) + s for n, s in zip(extents, start, strict=True))
    return View(e.data, sizes, tuple(strides), tuple(start))


@dataclass(frozen=True)
class Piece:
    """Rows first .. of an operand that a ring holds, up to `limit`. outer: batch and head."""

    ring: Ring
    outer: tuple[Expr, Expr]
    first: Expr
    limit: Expr


class Ring:
    """Tiles of an operand in shared memory, `stages` times, in lines of 128 bytes, swizzled.

    high: rows that lie together for each 64 elements: all of a tile, or 64, as the product wants them.
    """

    def __init__(self, p: Parts, x: Value, rows: int, high: int, stages: int, name: str, viewed: bool) -> None:
        size = x.type.shape[3]
        assert isinstance(size, int)
        self.p, self.x, self.rows, self.high, self.lines = p, x, rows, high, lines(size)
        self.buffer = Buffer(name, p.narrow, "shared")
        self.size = rows * self.lines * LINE
        self.alloc = Alloc(self.buffer, stages * self.size)
        self.view = view_of(p, x) if viewed else None
        self.map = None
        if self.view is not None:
            v = self.view
            self.map = TensorMap(f"{name}_map", v.buffer, v.sizes, v.strides, (LINE, high, 1, 1), False)

    def place(self, stage: Expr, row: int, line: int) -> Place:
        """Where the 64 elements `line` of the rows from `row` begin."""
        group = row // self.high * self.lines + line
        return Place(self.buffer, stage * self.size + (group * self.high + row % self.high) * LINE)

    def copies(self, barrier: Place, outer: tuple[Expr, Expr], first: Expr, stage: Expr) -> Body:
        """One thread: ask for rows first .. first + rows - 1, counted on `barrier`."""
        assert self.view is not None and self.map is not None
        out: Body = []
        for row in range(0, self.rows, self.high):
            for line in range(self.lines):
                at = (index(line * LINE), first + row, outer[1], outer[0])
                coordinates = [normal(c + s, Levels([])) for c, s in zip(at, self.view.start, strict=True)]
                target = self.place(stage, row, line)
                out.append(Call("bulk_load_4d", (target, self.map, barrier, *coordinates), (self.buffer,)))
        return out

    def stores(self, outer: tuple[Expr, Expr], first: Expr, limit: Expr, stage: Expr) -> Body:
        """All producing threads: write the same elements."""
        p = self.p
        units = self.lines * 8
        e, lane = p.name("e"), p.name("lane")
        inner: Body = []
        unit = p.let(inner, "unit", var("thread") + e * GROUP)
        row, at = p.let(inner, "row", unit // units), p.let(inner, "at", unit % units)
        source = p.let(inner, "from", first + row)
        value = p.element(self.x, outer, source, limit, at * 8 + lane, 0.0, False)
        group = row // self.high * self.lines + at // 8
        target = stage * self.size + (group * self.high + row % self.high) * LINE + ((at % 8) ^ (row % 8)) * 8
        inner.append(Vector(lane, 8, (Store(self.buffer, target + lane, cast(value, p.narrow)),)))
        return [For(e, index(0), index(self.rows * units // GROUP), tuple(inner), index(1))]


class WgmmaKernel(MmaAttention):
    """What kernels of this form share: `consumers` warpgroups of 64 rows, and the warpgroup that produces."""

    unit = LINE

    def __init__(self, p: Parts, consumers: int, stages: int, viewed: bool, block: int = KEYS) -> None:
        self.block = block
        super().__init__(p, 16, stages)
        self.consumers, self.viewed = consumers, viewed
        # Three warpgroups share the registers evenly; a producer that only asks for copies gives up most of its own.
        self.uneven = viewed and consumers > 1
        self.rows = 64 * consumers
        self.threads = GROUP * (1 + consumers)
        self.full, self.empty = Buffer("full", U64, "shared"), Buffer("empty", U64, "shared")
        self.rings: list[Ring] = []

    def ring(self, x: Value, rows: int, high: int, stages: int, name: str) -> Ring:
        ring = Ring(self.p, x, rows, high, stages, name, self.viewed)
        self.rings.append(ring)
        self.allocs.append(ring.alloc)
        return ring

    def place(self, by_keys: bool) -> tuple[Expr, Expr, Expr]:
        """(batch, head, first row), and the names that all threads share."""
        p = self.p
        self.lane = p.let(self.body, "lane", var("thread") % 32)
        self.scale = p.let(self.body, "scale", p.pull.at(p.scale, Position(())))
        self.factor = p.let(self.body, "factor", self.scale * LOG2_E)
        return p.place(self.body, self.rows, by_keys)

    def stage_of(self, body: Body, block: Expr) -> tuple[Expr, Expr]:
        """The stage of a block, and the parity of its use."""
        p = self.p
        return p.let(body, "stage", block % self.stages), p.let(body, "parity", block // self.stages % 2)

    def produce(
        self, resident: Sequence[Piece], blocks: Expr, passing: Callable[[Body, Expr], Sequence[Piece]],
        rows: Callable[[Body, Expr, Expr], Body] | None = None,
    ) -> Body:  # fmt: skip
        """Brings the resident pieces, then those of each block; rows(body, block, stage): what 64 threads store besides."""
        p, thread = self.p, var("thread")
        block = p.name("block")
        loop: Body = []
        stage, parity = self.stage_of(loop, block)
        pieces = passing(loop, block)
        loop.append(Call("mbarrier_wait", (Place(self.empty, stage), parity ^ 1), (self.empty,)))
        more = rows(loop, block, stage) if rows is not None else []
        brought, barrier = Place(self.full, index(self.stages)), Place(self.full, stage)
        if not self.viewed:
            if more:
                loop.append(If(thread < KEYS, tuple(more)))
            out: Body = []
            for body, at, found, to in ((out, index(0), resident, brought), (loop, stage, pieces, barrier)):
                for piece in found:
                    body += piece.ring.stores(piece.outer, piece.first, piece.limit, at)
                # Ordinary stores become visible to wgmma, then the barrier hears of them.
                body += [Call("async_proxy_fence", ()), Call("mbarrier_arrive", (to,), (self.full,))]
            return [*out, For(block, index(0), blocks, tuple(loop), index(1))]

        def ask(found: Sequence[Piece], to: Place, at: Expr) -> Body:
            size = sum(piece.ring.size for piece in found) * 2
            body: Body = [Call("mbarrier_arrive_expect", (to, index(size)), (self.full,))]
            for piece in found:
                body += piece.ring.copies(to, piece.outer, piece.first, at)
            return body

        first = [Call("bulk_prefetch_map", (r.map,)) for r in self.rings if r.map is not None]
        first_alone = If(equal(thread, 0), (*first, *ask(resident, brought, index(0))))
        copy = ask(pieces, barrier, stage)
        if rows is None:
            work: Body = [If(equal(thread, 0), (first_alone, For(block, index(0), blocks, (*loop, *copy), index(1))))]
        else:
            arrive = Call("mbarrier_arrive", (barrier,), (self.full,))
            turn = (*loop, *more, If(equal(thread, 0), tuple(copy), (arrive,)))
            work = [If(thread < KEYS, (first_alone, For(block, index(0), blocks, turn, index(1))))]
        return [Call("registers_decrease_40", ()), *work] if self.uneven else work

    def begin_consumer(self) -> Body:
        """Names of a consuming thread."""
        p = self.p
        out: Body = [Call("registers_increase_232", ())] if self.uneven else []
        self.consumer = p.let(out, "consumer", var("thread") // GROUP - 1)
        self.warp_row = p.let(out, "warp_row", (var("thread") - GROUP) // 32 * 16)
        return out

    def assemble(self, name: str, by_keys: bool, sizes: int, produce: Body, consume: Body, shared_rows: bool = False) -> Kernel:
        """The kernel of both; shared_rows: 64 threads produce a stage."""
        p, stages = self.p, self.stages
        allocs = [*self.allocs, Alloc(self.full, stages + 1), Alloc(self.empty, stages)]
        once, each = (1, KEYS if shared_rows else 1) if self.viewed else (GROUP, GROUP)
        first: Body = []
        for s in range(stages):
            first.append(Call("mbarrier_init", (Place(self.full, index(s)), index(each)), (self.full,)))
            first.append(Call("mbarrier_init", (Place(self.empty, index(s)), index(4 * self.consumers)), (self.empty,)))
        first.append(Call("mbarrier_init", (Place(self.full, index(stages)), index(once)), (self.full,)))
        first.append(Call("mbarrier_init_done", ()))
        thread = var("thread")
        body = [
            *allocs, *self.body, If(equal(thread, 0), tuple(first)), Barrier(),
            If(thread < GROUP, tuple(produce), tuple(consume)),
        ]  # fmt: skip
        kernel = p.kernel(name, body, p.blocks(self.rows, by_keys), self.threads, sizes, 1)
        assert kernel.grid is not None
        maps = tuple(r.map for r in self.rings if r.map is not None)
        return replace(kernel, grid=replace(kernel.grid, maps=maps))

    def wait(self, stage: Expr, parity: Expr) -> Call:
        return Call("mbarrier_wait", (Place(self.full, stage), parity), (self.full,))

    def release(self, stage: Expr) -> If:
        """This warp has done with a stage."""
        return If(equal(self.lane, 0), (Call("mbarrier_arrive", (Place(self.empty, stage),), (self.empty,)),))

    def products_of(self, sums: Buffer, left: Ring, right: Ring, stage: Expr) -> Body:
        """sums += the products of this warpgroup's rows of `left` with the rows of `right`."""
        out: Body = []
        for line in range(left.lines):
            mine = left.place(index(0), 0, line)
            rows = Place(left.buffer, mine.index + self.consumer * (64 * LINE))
            name = f"wgmma_{self.name_of}_n{self.block}_kk"
            out.append(Call(name, (Place(sums, index(0)), rows, right.place(stage, 0, line)), (sums,)))
        return out

    def added(self, sums: Buffer, weights: Buffer, right: Ring, stage: Expr) -> Body:
        """sums += weights * the rows of `right`."""
        out: Body = []
        for part in range(self.block // LINE):
            for line, n in _columns(right.lines):
                name = f"wgmma_{self.name_of}_n{n * LINE}_rm"
                place = right.place(stage, part * LINE, line)
                out.append(Call(name, (Place(sums, index(line * 32)), Place(weights, index(part * 16)), place), (sums,)))
        return out

    def packed(self, weights: Buffer, scores: Buffer) -> Body:
        """Scores' layout as left operands: two fragments of 8 columns are one of 16."""
        p = self.p
        s = p.name("s")
        packs: Body = []
        for r in range(4):
            at = (s * 2 + r // 2) * 4 + r % 2 * 2
            call = Call(f"pack_{self.name_of}", (Place(weights, s * 4 + r), load(scores, at), load(scores, at + 1)), (weights,))
            packs.append(call)
        return [unrolled(s, self.block // 16, packs)]

    @staticmethod
    def hold(buffer: Buffer, size: int) -> Body:
        out: Body = []
        at = 0
        while at < size:
            n = next(n for n in (128, 64, 32) if n <= size - at)
            out.append(Call(f"wgmma_hold_{n}", (Place(buffer, index(at)),), (buffer,)))
            at += n
        return out


class WgmmaAttention(WgmmaKernel):
    """Builds the kernel of attention."""

    def __init__(self, p: Parts, consumers: int, stages: int, viewed: bool) -> None:
        super().__init__(p, consumers, stages, viewed, block_of(p.depth, p.width))

    def forward(self) -> Kernel:
        p = self.p
        b, h, row = self.place(False)
        kh = p.let(self.body, "key_head", p.key_head(h))
        blocks = p.let(self.body, "blocks", ceil_div(p.last_key(row, self.rows), self.block))
        queries = self.ring(p.q, self.rows, self.rows, 1, "queries")
        keys = self.ring(p.k, self.block, self.block, self.stages, "keys")
        values = self.ring(p.v, self.block, LINE, self.stages, "values")

        def passing(body: Body, block: Expr) -> Sequence[Piece]:
            start = p.let(body, "start", block * self.block)
            return Piece(keys, (b, kh), start, p.keys), Piece(values, (b, kh), start, p.keys)

        produce = self.produce([Piece(queries, (b, h), row, p.queries)], blocks, passing)
        return self.assemble("attention", False, p.depth + p.width + 16, produce, self._consume(b, h, row, blocks))

    def _consume(self, b: Expr, h: Expr, row: Expr, blocks: Expr) -> Body:
        p = self.p
        queries, keys, values = self.rings
        out = self.begin_consumer()
        count = self.count(p.width)
        scores, sums = Buffer("scores", F32, "local"), Buffer("sums", F32, "local")
        top, total, shrink = (Buffer(name, F32, "local") for name in ("top", "total", "shrink"))
        weights = Buffer("weights", U32, "local")
        sizes = ((scores, self.block // 2), (sums, count * 4), (top, 2), (total, 2), (shrink, 2), (weights, self.block // 4))
        out += [Alloc(buffer, size) for buffer, size in sizes]
        out += [*self.fill(top, 2, float("-inf")), *self.fill(total, 2), *self.fill(sums, count * 4)]

        def weigh(block: Expr) -> Body:
            inner: Body = []
            start = p.let(inner, "start", block * self.block)
            whole = start + self.block <= p.keys
            if p.causal:
                whole = logical_and(whole, start + (self.block - 1) <= row + self.consumer * 64)
            return [
                *inner,
                *self.scaled(scores, lambda r, column: (b, h, row + r, start + column), row, start, whole),
                *self.weigh(scores, top, total, shrink),
            ]

        block = p.name("block")
        loop: Body = []
        stage, parity = self.stage_of(loop, block)
        before, _ = self.stage_of(loop, block - 1)
        loop += [
            self.wait(stage, parity),
            *self.fill(scores, self.block // 2),
            Call("wgmma_fence", ()), *self.products_of(scores, queries, keys, stage), Call("wgmma_commit", ()),
            *self.added(sums, weights, values, before), Call("wgmma_commit", ()),
            Call("wgmma_wait_1", ()), *self.hold(scores, self.block // 2),
            *weigh(block),
            Call("wgmma_wait_0", ()), *self.hold(sums, count * 4),
            self.release(before),
            *self.shrunk(sums, shrink, count),
            *self.packed(weights, scores),
        ]  # fmt: skip
        brought = self.wait(index(self.stages), index(0))
        some: Body = [
            brought,
            self.wait(index(0), index(0)),
            *self.fill(scores, self.block // 2),
            Call("wgmma_fence", ()), *self.products_of(scores, queries, keys, index(0)), Call("wgmma_commit", ()),
            Call("wgmma_wait_0", ()), *self.hold(scores, self.block // 2),
            *weigh(index(0)),
            *self.packed(weights, scores),
            For(block, index(1), blocks, tuple(loop), index(1)),
        ]  # fmt: skip
        last = p.let(some, "last", (blocks - 1) % self.stages)
        some += [
            Call("wgmma_fence", ()), *self.added(sums, weights, values, last), Call("wgmma_commit", ()),
            Call("wgmma_wait_0", ()), *self.hold(sums, count * 4),
        ]  # fmt: skip
        # Without keys, what the producer brought is waited for all the same.
        out.append(If(index(0) < blocks, tuple(some), (brought,)))
        return [*out, *self.results(sums, top, total, (b, h), row)]


def _columns(count: int) -> Sequence[tuple[int, int]]:
    """Lines of values as columns of products: (first, how many), the widest first."""
    out, at = [], 0
    while at < count:
        n = next(n for n in (4, 2, 1) if n <= count - at)
        out.append((at, n))
        at += n
    return out


__all__ = ["GROUP", "Piece", "Ring", "WgmmaAttention", "WgmmaKernel", "block_of", "lines", "view_of"]
