"""Products on tensor cores by mma.sync: bfloat16, float16, and float32 rounded to tf32 or bfloat16.

The order is fixed, whatever the tile: k ascends in steps of the instruction (16 of 16-bit elements, 8 of tf32), each step
adding to one float32 sum for each element of the result; the depth is padded with zeros to a multiple of 64 bytes of elements. What
the tensor core does inside of a step is its own.

A tile passes through shared memory slab by slab (swizzle.py). Each warp has a part of the tile in registers; finished, it goes
through a small part of shared memory 16 rows at a time, so that the epilogue and its stores work on neighbours.
"""

from __future__ import annotations

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products.channels import pack_channels
from graphc.codegen.cuda.products.product import Body, Product
from graphc.codegen.cuda.products.rounding import operand_type
from graphc.codegen.cuda.products.swizzle import TensorStager
from graphc.codegen.cuda.products.tiles import stage_after, stage_before, tile_grid
from graphc.codegen.expr import Expr, const, index, load, logical_and, var
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
    Stmt,
    Store,
    Vector,
)
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function
from graphc.ir.types import BF16, F16, F32, U32

# element type of the operands -> the instruction: d (16 x 8) += a * b
INSTRUCTIONS = {BF16: "mma_16816_bf16", F16: "mma_16816_f16", F32: "mma_1688_tf32"}
PAD = 4  # floats between rows of a finished part, so that rows lie in different banks


def lower_tensor(group: Function, choice: Choice) -> Lowered:
    """The kernel of a product on tensor cores; numbers: rows, columns, tall, wide (of a warp), stages, packed."""
    product = TensorProduct(group, choice)
    return product.p.lowered([*product.before, product.kernel()])


class TensorProduct:
    def __init__(self, group: Function, choice: Choice) -> None:
        self.p = p = Product(group, choice)
        number = dict(choice.numbers)
        self.rows, self.columns = number["rows"], number["columns"]
        self.tall, self.wide, self.stages = number["tall"], number["wide"], number["stages"]
        self.down, self.across = self.rows // self.tall, self.columns // self.wide
        self.threads = 32 * self.down * self.across
        root = p.c.root
        dtype = operand_type(root.operands[0].type.dtype, root.attrs.get("precision", ""))
        assert dtype is not None
        self.dtype = dtype
        self.before = pack_channels(p, dtype) if number["packed"] else []
        self.left = TensorStager(p, p.c.left, dtype, self.rows, self.threads, self.stages, "left")
        self.right = TensorStager(p, p.c.right, dtype, self.columns, self.threads, self.stages, "right")
        self.slab = self.left.slab
        self.acc = Buffer("acc", F32, "local")
        self.part = Buffer("part", F32, "shared")
        self.stride = self.wide + PAD

    def kernel(self) -> Kernel:
        p = self.p
        size = self.tall * self.wide // 32
        warps = self.down * self.across
        body: Body = [*self.left.allocs, *self.right.allocs, Alloc(self.acc, size), Alloc(self.part, warps * 16 * self.stride)]
        grid = tile_grid(p, body, self.rows, self.columns, index(1))
        thread = var("thread")
        self.warp, self.lane = p.let(body, "warp", thread // 32), p.let(body, "lane", thread % 32)
        self.warp_row = p.let(body, "warp_row", self.warp // self.across * self.tall)
        self.warp_column = p.let(body, "warp_column", self.warp % self.across * self.wide)
        m0, n0 = p.let(body, "m0", grid.row), p.let(body, "n0", grid.column)
        self.left.prepare(body, m0, grid.batch)
        self.right.prepare(body, n0, grid.batch)
        i = p.name("i")
        body.append(For(i, index(0), index(size), (Store(self.acc, i, const(F32, 0)),), index(1), unroll=True))
        body += self._sum()
        body += self._results(m0, n0, grid.batch)
        copied = self.left.asynchronous and self.right.asynchronous
        # 128 registers a thread, or 255 where operands pass through them.
        resident = max(1, (512 if copied and size <= 64 else 256) // self.threads)
        return p.kernel("contract", body, grid.blocks, self.threads, resident)

    def _sum(self) -> Body:
        """The slabs in order, `stages` - 1 of them on their way."""
        p, ahead = self.p, self.stages - 1
        sides = (self.left, self.right)
        copied = [s for s in sides if s.asynchronous]
        loaded = [s for s in sides if not s.asynchronous]
        out: Body = []
        for s in range(ahead if copied else 0):
            at = index(s * self.slab)
            out += [
                If(at < p.depth, tuple(x for side in copied for x in side.issue(at, index(s)))),
                Call("copy_async_commit", ()),
            ]
        if loaded:
            first = [x for s in loaded for x in s.issue(index(0), index(0))]
            out.append(If(index(0) < p.depth, (*first, *(x for s in loaded for x in s.commit(index(0))))))
        k, stage, following = p.name("k"), p.name("stage"), p.name("following")
        body: Body = []
        if copied:
            body.append(Call(f"copy_async_wait_{ahead - 1}", ()))
        body.append(Barrier())
        if copied:
            later = p.let(body, "later", k + ahead * self.slab)
            free = p.let(body, "free_stage", stage_before(stage, self.stages))
            issue = [x for side in copied for x in side.issue(later, free)]
            body += [If(later < p.depth, tuple(issue)), Call("copy_async_commit", ())]
        body.append(Let(following, stage_after(stage, self.stages)))
        coming = p.let(body, "coming", k + self.slab)
        if loaded:
            body.append(If(coming < p.depth, tuple(x for s in loaded for x in s.issue(coming, following))))
        body += self._products(stage)
        if loaded:
            body.append(If(coming < p.depth, tuple(x for s in loaded for x in s.commit(following))))
        body.append(Assign(stage, following))
        out += [Declare(stage, index(0)), For(k, index(0), p.depth, tuple(body), index(self.slab))]
        if copied:
            out.append(Call("copy_async_wait_0", ()))
        return out

    def _products(self, stage: Expr) -> Body:
        """The products of one slab: two steps of k."""
        p = self.p
        down, across = self.tall // 16, self.wide // 8
        out: Body = []
        for step in range(2):
            a, b = Buffer(f"left_{step}", U32, "local"), Buffer(f"right_{step}", U32, "local")
            i, j = p.name("i"), p.name("j")
            out += [Alloc(a, down * 4), Alloc(b, across * 2)]
            left = self.left.fragment(Place(a, i * 4), stage, self.warp_row + i * 16, step, True)
            right = self.right.fragment(Place(b, j * 4), stage, self.warp_column + j * 16, step, False)
            out.append(For(i, index(0), index(down), tuple(left), index(1), unroll=True))
            out.append(For(j, index(0), index(across // 2), tuple(right), index(1), unroll=True))
            m, n = p.name("m"), p.name("n")
            product = Call(
                INSTRUCTIONS[self.dtype],
                (Place(self.acc, (m * across + n) * 4), Place(a, m * 4), Place(b, n * 2)),
                (self.acc,),
            )
            inner = For(n, index(0), index(across), (product,), index(1), unroll=True)
            out.append(For(m, index(0), index(down), (inner,), index(1), unroll=True))
        return out

    def _results(self, m0: Expr, n0: Expr, batch: list[Expr]) -> Body:
        """16 rows of the warp's part at a time: into shared memory, then neighbours through the epilogue."""
        p = self.p
        across = self.wide // 8
        # As many neighbours as fill 16 bytes of the narrowest result.
        width = 8 if any(b.dtype.itemsize <= 2 for b in p.buffers) else 4
        base = self.warp * (16 * self.stride)
        i, n = p.name("i"), p.name("n")
        row, column = self.lane // 4, self.lane % 4 * 2 + n * 8
        stores: list[Stmt] = []
        for half in range(2):
            lane = p.name("l")
            at = base + (row + half * 8) * self.stride + column + lane
            value = load(self.acc, (i * across + n) * 4 + half * 2 + lane)
            stores.append(Vector(lane, 2, (Store(self.part, at, value),)))
        put = For(n, index(0), index(across), tuple(stores), index(1), unroll=True)
        runs = self.wide // width
        q, lane = p.name("q"), p.name("l")
        inner: Body = []
        piece = p.let(inner, "piece", q * 32 + self.lane)
        line, run = p.let(inner, "line", piece // runs), p.let(inner, "run", piece % runs * width)
        m = p.let(inner, "row", m0 + (self.warp_row + i * 16 + line))
        at = p.let(inner, "column", n0 + (self.warp_column + run))
        value = load(self.part, base + line * self.stride + run + lane)
        element = p.store(batch, m, at, lane, width, value)
        if p.divisor(p.c.right.size) % width:
            element = [If(at + lane < p.columns, tuple(element))]
        inside = logical_and(m < p.rows, at < p.columns)
        pieces = 16 * runs
        if pieces % 32:
            inside = logical_and(inside, piece < pieces)
        inner.append(If(inside, (Vector(lane, width, tuple(element)),)))
        take = For(q, index(0), index(-(-pieces // 32)), tuple(inner), index(1))
        body = (put, Barrier("warp"), take, Barrier("warp"))
        return [For(i, index(0), index(self.tall // 16), body, index(1), unroll=True)]
