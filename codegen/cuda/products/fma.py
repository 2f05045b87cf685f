"""Tiled products by fused multiply-add: the bit contract of dot and conv on a device.

A block of threads makes a tile of rows x columns; a thread makes a part of it in registers. Slabs of both operands pass through
shared memory (stage.py), some slabs ahead of the products. Every 256 k the registers' sums join the totals: a chain
starts from +0.0, so how far a thread's part, a slab or a stage reaches changes no bit.

Where the result has few tiles, blocks of 256 k go to blocks of threads of their own; a second kernel adds their sums in order.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products.patches import copy_patches
from graphc.codegen.cuda.products.product import Body, Product, multiply_add
from graphc.codegen.cuda.products.stage import Stager
from graphc.codegen.cuda.products.sums import BLOCK, finish_kernel, new_sums
from graphc.codegen.cuda.products.tiles import stage_after, stage_before, tile_grid
from graphc.codegen.expr import Expr, const, equal, index, load, logical_and, var
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
    Stmt,
    Store,
    Vector,
)
from graphc.codegen.lower.affine import ceil_div, least_of
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import size_of

FEW = 2  # k that are written out where registers are short: the compiler then loads no further ahead
IN_REGISTERS = 16  # totals that a thread keeps in registers; more wait in shared memory


def lower_fma(group: Function, choice: Choice) -> Lowered:
    """The kernels of a tiled product; numbers: rows, columns, slab, tall, wide, stages, split, padded."""
    product = FmaProduct(group, choice)
    return product.p.lowered([*product.before, *product.kernels()])


class FmaProduct:
    def __init__(self, group: Function, choice: Choice) -> None:
        self.p = p = Product(group, choice)
        number = dict(choice.numbers)
        self.rows, self.columns, self.slab = number["rows"], number["columns"], number["slab"]
        self.tall, self.wide, self.stages = number["tall"], number["wide"], number["stages"]
        self.split = bool(number["split"])
        # Totals are kept unless one block of k is surely all.
        self.deep = not self.split and not (p.depth.op == "const" and p.depth.data <= BLOCK)
        self.down, self.across = self.rows // self.tall, self.columns // self.wide
        self.threads = self.down * self.across
        self.run = min(self.wide, 4)  # neighbouring columns that a thread has
        self.climb = min(self.tall, 4)
        pad, table = copy_patches(p) if number["padded"] else (None, None)
        self.before = [pad] if pad is not None else []
        self.left = Stager(p, p.c.left, self.rows, self.climb, self.slab, self.threads, self.stages, "left")
        self.right = Stager(p, p.c.right, self.columns, self.run, self.slab, self.threads, self.stages, "right", table)
        self.size = self.tall * self.wide
        # Of the largest tiles two share a multiprocessor's registers, which batches, bounds of k and tables need too.
        plain = not (self.split or number["padded"] or p.c.batch) and p.divisor(size_of(p.c.depth)) % self.slab == 0
        self.roomy = self.size < 64 or (plain and p.c.root.name == "dot" and "wide" in (self.left.way, self.right.way))
        self.acc = Buffer("acc", p.dtype, "local")
        in_registers = self.size <= IN_REGISTERS
        self.total = Buffer("total", p.dtype, "local" if in_registers else "shared")

    # Which elements a thread has: `tall` rows in runs of `climb`, `wide` columns in runs of `run`

    def _threads(self, body: Body) -> None:
        """Name this thread's place in the tile: warps of 8 x 4 threads where they fit."""
        thread = var("thread")
        if self.across >= 8 and self.down >= 4:
            warp, lane = self.p.let(body, "warp", thread // 32), self.p.let(body, "lane", thread % 32)
            warps = self.across // 8
            self.x = self.p.let(body, "x", warp % warps * 8 + lane % 8)
            self.y = self.p.let(body, "y", warp // warps * 4 + lane // 8)
        else:
            self.x = self.p.let(body, "x", thread % self.across)
            self.y = self.p.let(body, "y", thread // self.across)

    def _row(self, i: Expr) -> Expr:
        return i // self.climb * (self.down * self.climb) + self.y * self.climb + i % self.climb

    def _column(self, j: int | Expr) -> Expr:
        """The first column of run `j`."""
        return self.x * self.run + (index(j) if isinstance(j, int) else j) * (self.across * self.run)

    def _totals(self, i: Expr | int, lane: Expr) -> Expr:
        """Where element `lane` of run `i` of this thread is among the totals."""
        run = index(i) if isinstance(i, int) else i
        if self.total.kind == "local":
            return run * self.run + lane
        return (run * self.threads + var("thread")) * self.run + lane

    # The kernels

    def kernels(self) -> list[Kernel]:
        p = self.p
        body: Body = [*self.left.allocs, *self.right.allocs, Alloc(self.acc, self.size)]
        if self.deep or self.total.kind == "shared":
            body.append(Alloc(self.total, self.size * (self.threads if self.total.kind == "shared" else 1)))
        parts = ceil_div(p.depth, BLOCK) if self.split else index(1)
        grid = tile_grid(p, body, self.rows, self.columns, parts)
        self._threads(body)
        m0, n0 = p.let(body, "m0", grid.row), p.let(body, "n0", grid.column)
        start: Expr = index(0)
        stop = p.depth
        if self.split:
            start = p.let(body, "start", grid.part * BLOCK)
            stop = p.let(body, "stop", least_of(start + BLOCK, p.depth))
        self.left.prepare(body, m0, grid.batch)
        self.right.prepare(body, n0, grid.batch)
        body += self._fill(lambda i: Store(self.acc, i, const(p.dtype, 0)))
        body += self._sum(start, stop)
        if self.split:
            sums = new_sums(p)
            base = p.let(body, "base", grid.part * p.batches + grid.batch_flat)
            body += self._each(
                m0, n0, lambda row, column, lane, value: [
                    Store(sums, (base * p.rows + row) * p.columns + (column + lane), value)
                ]
            )  # fmt: skip
            first = p.kernel("contract", body, grid.blocks, self.threads, self._resident())
            return [first, finish_kernel(p, sums)]
        body += self._each(m0, n0, lambda row, column, lane, value: p.store(grid.batch, row, column, lane, self.run, value))
        return [p.kernel("contract", body, grid.blocks, self.threads, self._resident())]

    def _resident(self) -> int:
        """128 registers a thread, or 255 for wide elements and where the largest tiles pass through registers."""
        copied = self.left.asynchronous and self.right.asynchronous
        wide = self.p.dtype.bits > 32 or (self.size >= 64 and not copied)
        return max(1, (256 if wide else 512) // self.threads)

    def _fill(self, statement: Callable[[Expr], Stmt]) -> Body:
        i = self.p.name("i")
        return [For(i, index(0), index(self.size), (statement(i),), index(1), unroll=True)]

    # The sum over the depth

    def _sum(self, start: Expr, stop: Expr) -> Body:
        p, stages = self.p, self.stages
        sides = (self.left, self.right)
        copied = [s for s in sides if s.asynchronous]
        loaded = [s for s in sides if not s.asynchronous]
        whole = p.divisor(size_of(p.c.depth)) % self.slab == 0
        ahead = stages - 1
        out: Body = []
        for s in range(ahead if copied else 0):
            at = start + s * self.slab
            issue = [x for side in copied for x in side.issue(at, index(s), whole)]
            out += [If(at < stop, tuple(issue)), Call("copy_async_commit", ())]
        if loaded:
            first = [x for s in loaded for x in s.issue(start, index(0), whole)]
            first += [x for s in loaded for x in s.commit(index(0))]
            out.append(If(start < stop, tuple(first)))
        k, stage, following = p.name("k"), p.name("stage"), p.name("following")
        body: Body = []
        if copied:
            body.append(Call(f"copy_async_wait_{ahead - 1}", ()))
        body.append(Barrier())
        if copied:
            later = p.let(body, "later", k + ahead * self.slab)
            free = p.let(body, "free_stage", stage_before(stage, stages))
            issue = [x for side in copied for x in side.issue(later, free, whole)]
            body += [If(later < stop, tuple(issue)), Call("copy_async_commit", ())]
        body.append(Let(following, stage_after(stage, stages)))
        after = k + self.slab
        if loaded:
            coming = p.let(body, "coming", after)
            body.append(If(coming < stop, tuple(x for s in loaded for x in s.issue(coming, following, whole))))
        body += self._products(stage, k, stop, whole)
        if loaded:
            body.append(If(after < stop, tuple(x for s in loaded for x in s.commit(following))))
        if self.deep:
            joined = self._join(k < BLOCK)
            body.append(If(logical_and(equal(after % BLOCK, 0), after < stop), tuple(joined)))
        body.append(Assign(stage, following))
        out += [Declare(stage, index(0)), For(k, start, stop, tuple(body), index(self.slab))]
        return out

    def _products(self, stage: Expr, k: Expr, stop: Expr, whole: bool) -> Body:
        """The products of one slab."""
        p = self.p
        a, b = Buffer("row_part", p.dtype, "local"), Buffer("column_part", p.dtype, "local")

        def one(kk: Expr) -> Body:
            out: Body = [Alloc(a, self.tall), Alloc(b, self.wide)]
            for g in range(self.tall // self.climb):
                lane = p.name("l")
                row = self.y * self.climb + g * (self.down * self.climb)
                at = stage * self.left.stage_size + kk * self.left.stride + row + lane
                out.append(Vector(lane, self.climb, (Store(a, lane + g * self.climb, load(self.left.buffer, at)),)))
            for g in range(self.wide // self.run):
                lane = p.name("l")
                at = stage * self.right.stage_size + kk * self.right.stride + self._column(g) + lane
                out.append(Vector(lane, self.run, (Store(b, lane + g * self.run, load(self.right.buffer, at)),)))
            i, j = p.name("i"), p.name("j")
            place = i * self.wide + j
            step = Store(self.acc, place, multiply_add(load(a, i), load(b, j), load(self.acc, place)))
            inner = For(j, index(0), index(self.wide), (step,), index(1), unroll=True)
            out.append(For(i, index(0), index(self.tall), (inner,), index(1), unroll=True))
            return out

        kk, several = p.name("kk"), p.name("several")
        written = self.slab if self.roomy else FEW
        at = kk if written == self.slab else several + kk
        full = For(kk, index(0), index(written), tuple(one(at)), index(1), unroll=True)
        if written < self.slab:
            full = For(several, index(0), index(self.slab), (full,), index(written))
        if whole:
            return [full]
        rest = p.name("kk")
        part = For(rest, index(0), stop - k, tuple(one(rest)), index(1))
        return [If(k + self.slab <= stop, (full,), (part,))]

    def _join(self, first: Expr) -> Body:
        """The sums of a block of k join the totals, and start again from zero."""
        p = self.p
        i, lane = p.name("i"), p.name("l")
        at = self._totals(i, lane)
        acc = load(self.acc, i * self.run + lane)

        def each(value: Expr) -> Stmt:
            store = Store(self.total, at, value)
            vector = Vector(lane, self.run, (store,))
            return For(i, index(0), index(self.size // self.run), (vector,), index(1), unroll=True)

        clear = self._fill(lambda i: Store(self.acc, i, const(p.dtype, 0)))
        return [If(first, (each(acc),), (each(load(self.total, at) + acc),)), *clear]

    # The results

    def _each(self, m0: Expr, n0: Expr, body: Callable[[Expr, Expr, Expr, Expr], Body]) -> Body:
        """`body(row, first column, lane, value)` for every element of this thread inside the result."""
        p = self.p
        out: Body = []
        through_memory = self.total.kind == "shared"
        if self.deep:
            i, lane = p.name("i"), p.name("l")
            acc = load(self.acc, i * self.run + lane)
            at = self._totals(i, lane)

            def settle(value: Expr) -> Stmt:
                vector = Vector(lane, self.run, (Store(self.total, at, value),))
                return For(i, index(0), index(self.size // self.run), (vector,), index(1), unroll=True)

            out.append(If(p.depth <= BLOCK, (settle(acc),), (settle(load(self.total, at) + acc),)))
            source = self.total
        elif through_memory:
            i, lane = p.name("i"), p.name("l")
            store = Store(self.total, self._totals(i, lane), load(self.acc, i * self.run + lane))
            vector = Vector(lane, self.run, (store,))
            out.append(For(i, index(0), index(self.size // self.run), (vector,), index(1), unroll=True))
            source = self.total
        else:
            source = self.acc
        i, lane = p.name("i"), p.name("l") if self.run > 1 else index(0)
        runs = self.wide // self.run
        inner: Body = []
        row = p.let(inner, "row", m0 + self._row(i // runs))
        column = p.let(inner, "column", n0 + self._column(i % runs))
        value = load(source, self._totals(i, lane) if source is self.total else i * self.run + lane)
        even = p.divisor(p.c.right.size) % self.run == 0
        element: Body = body(row, column, lane, value)
        if self.run > 1:
            if not even:
                element = [If(column + lane < p.columns, tuple(element))]
            element = [Vector(lane, self.run, tuple(element))]
        inner.append(If(logical_and(row < p.rows, column < p.columns), tuple(element)))
        # Totals in shared memory are found at any index: one copy of the epilogue is enough.
        unroll = source.kind == "local"
        out.append(For(i, index(0), index(self.tall * runs), tuple(inner), index(1), unroll=unroll))
        return out
