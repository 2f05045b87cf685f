"""Products on the tensor cores of sm_90a: wgmma on tiles that the bulk copy engine brings into shared memory.

A block stays on its multiprocessor and takes one tile of the result after another. Its first warpgroup produces: it fills a
ring of stages, each a tile of both operands 128 bytes deep, ahead of the others; the other warpgroups consume: they multiply,
then pass their sums through the epilogue. They share each tile, by rows; or, where the epilogue is long, take turns ("paired"), so
that the tensor cores work on one tile during the epilogue of the other. Two blocks may form a cluster: they take tiles that lie
one below the other, and each brings half of the right operand for both. `full[stage]` counts the bytes of a stage,
`empty[stage]` the warps that have done with it; a stage's n-th use waits for the phase of parity n mod 2. Consumers that take turns
begin a tile when the other one has seen all stages of the tile before (`turns`): else it could meet a stage two uses early, and take
the phase before for the one that it waits for.

An operand is copied as it lies in memory (operand_view.py), or packed into such a form first (pack.py), or computed element
by element by the producing threads ("gather": patches of a convolution, which would be large in memory).

The definition, the same for all tiles and ways: products of elements rounded to the element type, added to a float32 sum
from +0.0 by wgmma over blocks of 64 k (32 of tf32) in ascending order, the last block filled with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.products.channels import pack_channels
from graphc.codegen.cuda.products.gather import Gather
from graphc.codegen.cuda.products.operand_view import ROW, Copies, view_of
from graphc.codegen.cuda.products.pack import pack
from graphc.codegen.cuda.products.product import Body, Product
from graphc.codegen.cuda.products.rounding import operand_type
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, children_first, const, equal, index, load, select, var
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
from graphc.codegen.lower.affine import ceil_div, least_of, logical_and
from graphc.codegen.lower.contraction import Contraction
from graphc.ir.function import Function
from graphc.ir.types import BF16, F16, F32, U64, DType

GROUP = 128  # threads of a warpgroup
CHUNK = 32  # columns that pass through shared memory at a time, in rows of
PITCH = 40  # floats: the 8-byte stores of half a warp meet no bank twice
SUPER = 2048  # rows of the result that blocks running together share, so that what they read stays in the L2 cache
SHORT = 40  # nodes of expressions
VIEW, PACK, GATHER = 0, 1, 2
TYPES = {BF16: "bf16", F16: "f16", F32: "tf32"}


@dataclass(frozen=True)
class Tile:
    """resident: blocks on a multiprocessor. speed: of products, relative to the best. paired: consumers take turns.
    cluster: blocks that share the right operand of their tiles.
    """

    rows: int
    columns: int
    consumers: int
    stages: int
    resident: int
    speed: float
    paired: bool = False
    cluster: int = 1

    @property
    def sharing(self) -> int:
        """Warpgroups that multiply one tile."""
        return 1 if self.paired else self.consumers

    @property
    def tall(self) -> int:
        """Times 64 rows of a consumer."""
        return self.rows // (64 * self.sharing)

    @property
    def sums(self) -> int:
        """Accumulators of a thread."""
        return self.tall * self.columns // 2


def element_type(c: Contraction) -> DType | None:
    """What the tensor cores are given; float32 means tf32. None: this product is not theirs."""
    return operand_type(c.root.operands[0].type.dtype, c.root.attrs.get("precision", ""))


class WgmmaProduct:
    def __init__(self, group: Function, choice: Choice, target: Target) -> None:
        self.p = Product(group, choice)
        n = choice.number
        self.tile = Tile(
            n("rows"), n("columns"), n("consumers"), n("stages"), n("resident"), 1.0, bool(n("paired")), n("cluster")
        )
        element = element_type(self.p.c)
        assert element is not None
        self.element, self.target = element, target
        self.unit = ROW // element.itemsize  # k of a stage
        self.threads = GROUP * (1 + self.tile.consumers)
        self.rings = (Buffer("left", element, "shared"), Buffer("right", element, "shared"))
        self.staged = Buffer("staged", F32, "shared")
        self.full, self.empty = Buffer("full", U64, "shared"), Buffer("empty", U64, "shared")
        self.turns = Buffer("turns", U64, "shared")
        self.sums = Buffer("sums", F32, "local")
        self.packing: list[Kernel] = pack_channels(self.p, element) if n("packed") else []
        self.sides = tuple(self._side(i, choice.number(name)) for i, name in enumerate(("left", "right")))
        self.gathers = [s for s in self.sides if isinstance(s, Gather)]
        # Stages that wait for asynchronous copies, or stages that are stored: not some of each.
        alike = all(g.copied for g in self.gathers)
        for g in self.gathers:
            g.copied = alike
        self.copies = [s for s in self.sides if isinstance(s, Copies)]

    def _side(self, i: int, way: int) -> Copies | Gather:
        p, tile = self.p, self.tile
        name, side, rows = (("left", p.c.left, tile.rows), ("right", p.c.right, tile.columns))[i]
        if way == GATHER:
            return Gather(p, side, rows, self.rings[i])
        view = view_of(p, side, self.element) if way == VIEW else None
        if way == PACK:
            kernel, view = pack(p, side, self.element, f"packed_{name}")
            self.packing.append(kernel)
        assert view is not None
        return Copies(view, name, rows, self.rings[i], self.element is F32, p.c.batch, tile.cluster if i else 1)

    def kernels(self) -> list[Kernel]:
        p, tile = self.p, self.tile
        body: Body = [
            Alloc(self.rings[0], tile.stages * tile.rows * self.unit),
            Alloc(self.rings[1], tile.stages * tile.columns * self.unit),
            Alloc(self.staged, tile.consumers * 64 * PITCH),
            Alloc(self.full, tile.stages),
            Alloc(self.empty, tile.stages),
        ]
        if tile.paired:
            body.append(Alloc(self.turns, tile.consumers))
        # So many rows of tiles as a cluster has blocks count as one.
        down, across = ceil_div(p.rows, tile.rows * tile.cluster), ceil_div(p.columns, tile.columns)
        most = self.target.multiprocessors * tile.resident // tile.cluster
        blocks = least_of(down * across * p.batches, index(most)) * tile.cluster
        self.down, self.across = p.let(body, "down", down), p.let(body, "across", across)
        self.each = p.let(body, "each", self.down * self.across)
        self.tiles = p.let(body, "tiles", self.each * p.batches)
        self.steps = p.let(body, "steps", ceil_div(p.depth, self.unit))
        self.home, self.homes, self.rank = var("block"), var("blocks"), index(0)
        if tile.cluster > 1:
            self.home = p.let(body, "home", var("block") // tile.cluster)
            self.homes = p.let(body, "homes", var("blocks") // tile.cluster)
            self.rank = p.let(body, "rank", var("block") % tile.cluster)
        thread = var("thread")
        first: Body = []
        for s in range(tile.stages):
            arrivals = (GROUP if self.gathers else 0) + (1 if self.copies else 0)
            first.append(Call("mbarrier_init", (Place(self.full, index(s)), index(arrivals)), (self.full,)))
            warps = 4 * tile.sharing * tile.cluster
            first.append(Call("mbarrier_init", (Place(self.empty, index(s)), index(warps)), (self.empty,)))
        for i in range(tile.consumers if tile.paired else 0):
            first.append(Call("mbarrier_init", (Place(self.turns, index(i)), index(4)), (self.turns,)))
        first.append(Call("mbarrier_init_done", ()))
        first += [Call("bulk_prefetch_map", (c.map,)) for c in self.copies]
        together: Body = [Call("cluster_barrier", ())] if tile.cluster > 1 else []
        body += [If(equal(thread, 0), tuple(first)), *(together or [Barrier()])]
        body.append(If(thread < GROUP, tuple(self._produce()), tuple(self._consume())))
        body += [Barrier("warp"), *together] if together else []
        kernel = p.kernel("contract", body, blocks, self.threads, tile.resident)
        maps = tuple(c.map for c in self.copies)
        assert kernel.grid is not None
        return [*self.packing, replace(kernel, grid=replace(kernel.grid, maps=maps, cluster=tile.cluster))]

    def _tile(self, body: Body, tile: Expr) -> tuple[list[Expr], Expr, Expr]:
        """The batch coordinates, first row and first column of a tile; `SUPER` rows follow each other column by column."""
        p = self.p
        if p.batches.op == "const" and p.batches.data == 1:
            inside, batch_flat = tile, index(0)
        else:
            batch_flat = p.let(body, "batch", tile // self.each)
            inside = p.let(body, "inside", tile - batch_flat * self.each)
        tall = self.tile.rows * self.tile.cluster
        high = SUPER // tall
        band = p.let(body, "band", inside // (self.across * high))
        rest = p.let(body, "rest", inside - band * self.across * high)
        height = p.let(body, "height", least_of(self.down - band * high, index(high)))
        column = p.let(body, "column", rest // height)
        row = p.let(body, "row", band * high + (rest - column * height))
        batch = p.coords(body, "b", batch_flat, p.c.batch)
        m0 = row * tall + self.rank * self.tile.rows
        return batch, p.let(body, "m0", m0), p.let(body, "n0", column * self.tile.columns)

    def _ring(self) -> tuple[Body, Expr, Expr, Body]:
        """Declarations of a place in the ring (stage, and parity of its use), and the step to the next one."""
        stage, parity = self.p.name("stage"), self.p.name("parity")
        last = equal(stage, self.tile.stages - 1)
        step: Body = [
            Assign(parity, select(last, parity ^ 1, parity)),
            Assign(stage, select(last, index(0), stage + 1)),
        ]
        return [Declare(stage, index(0)), Declare(parity, index(0))], stage, parity, step

    @property
    def _many_registers(self) -> bool:
        """Whether consumers need more registers than an even share; the producer then gives up some of its own."""
        return self.tile.sums > 64 and not self.gathers

    @property
    def _lag(self) -> int:
        """By how many stages producing threads are ahead of what they copied themselves; 0 where they compute elements."""
        return max(1, self.tile.stages // 2) if any(g.copied for g in self.gathers) else 0

    def _filled(self, barrier: Place) -> Body:
        """What a thread wrote becomes visible to wgmma, then the barrier hears of it."""
        return [Call("async_proxy_fence", ()), Call("mbarrier_arrive", (barrier,), (self.full,))]

    def _produce(self) -> Body:
        p = self.p
        declare, stage, parity, step = self._ring()
        tile, block = p.name("tile"), p.name("step")
        here: Body = []
        batch, m0, n0 = self._tile(here, tile)
        starts = (m0, n0)
        prepared = [s.prepare(here, batch, starts[self.sides.index(s)]) for s in self.gathers]
        k = p.name("k")
        fill: Body = [
            Let(k, block * self.unit),
            Call("mbarrier_wait", (Place(self.empty, stage), parity ^ 1), (self.empty,)),
        ]
        barrier = Place(self.full, stage)
        expected = sum(c.rows * ROW for c in self.copies)
        copy: Body = [Call("mbarrier_arrive_expect", (barrier, index(expected)), (self.full,))] if self.copies else []
        for c in self.copies:
            copy += c.issue(stage, barrier, k, starts[self.sides.index(c)], batch, self.rank)
        if self.gathers:
            fill += [If(equal(var("thread"), 0), tuple(copy))] if copy else []
            for g, places in zip(self.gathers, prepared, strict=True):
                fill += g.issue(stage, k, batch, places)
            if not self._lag:
                fill += self._filled(barrier)
        else:
            fill += copy
        late: Body = []
        if self._lag:
            # Stages whose asynchronous copies are under way; the oldest one is at `behind`.
            pending, behind, i = p.name("pending"), p.name("behind"), p.name("i")
            declare = [*declare, Declare(pending, index(0)), Declare(behind, index(0))]
            oldest: Body = [
                *self._filled(Place(self.full, behind)),
                Assign(behind, select(equal(behind, self.tile.stages - 1), index(0), behind + 1)),
            ]
            wait: Body = [Call(f"copy_async_wait_{self._lag}", ()), *oldest]
            fill += [
                Call("copy_async_commit", ()),
                If(pending < self._lag, (Assign(pending, pending + 1),), tuple(wait)),
            ]
            late = [Call("copy_async_wait_0", ()), For(i, index(0), pending, tuple(oldest), index(1))]
        loop = For(block, index(0), self.steps, (*fill, *step), index(1))
        tiles = For(tile, self.home, self.tiles, (*here, loop), self.homes)
        out: Body = [Call("registers_decrease_40", ())] if self._many_registers else []
        work = (*declare, tiles, *late)
        return [*out, *(work if self.gathers else (If(equal(var("thread"), 0), work),))]

    def _consume(self) -> Body:
        p, t = self.p, self.tile
        declare, stage, parity, step = self._ring()
        out: Body = [Call("registers_increase_232", ())] if self._many_registers else []
        consumer = p.let(out, "consumer", var("thread") // GROUP - 1)
        out += [Alloc(self.sums, t.sums), *declare]
        tile, block, i, last = p.name("tile"), p.name("step"), p.name("i"), p.name("last")
        here: Body = []
        first, apart = self.home, self.homes
        if t.paired:
            # The stages of the other consumer's tiles lie in between.
            turn = p.name("turn")
            out.append(Declare(turn, consumer))
            position = p.let(here, "position", turn * self.steps)
            here += [
                Assign(stage, position % t.stages),
                Assign(parity, position // t.stages % 2),
            ]
            first, apart = first + consumer * apart, apart * t.consumers
        batch, m0, n0 = self._tile(here, tile)
        here.append(For(i, index(0), index(t.sums), (Store(self.sums, i, const(F32, 0.0)),), index(1), unroll=True))
        here.append(Declare(last, index(0)))
        major = "".join("m" if isinstance(s, Copies) and not s.view.along_k else "k" for s in self.sides)
        name = f"wgmma_{TYPES[self.element]}_n{t.columns}_{major}"
        multiply: Body = [
            Call("mbarrier_wait", (Place(self.full, stage), parity), (self.full,)),
            Call("wgmma_fence", ()),
        ]
        for m in range(t.tall):
            rows = stage * t.rows + (self._share(consumer) + m) * 64
            left = Place(self.rings[0], rows * self.unit)
            right = Place(self.rings[1], stage * (t.columns * self.unit))
            multiply.append(Call(name, (Place(self.sums, index(m * t.columns // 2)), left, right), (self.sums,)))
        one = equal(var("thread") % 32, 0)
        done = Call("mbarrier_arrive", (Place(self.empty, last),), (self.empty,))
        if t.cluster > 1:
            done = Call("mbarrier_arrive_cluster", (Place(self.empty, last), index(t.cluster)), (self.empty,))
        multiply += [
            Call("wgmma_commit", ()),
            # The stage before this one has been read.
            Call("wgmma_wait_1", ()),
            If(logical_and(one, block > 0), (done,)),
            Assign(last, stage),
            *step,
        ]
        products: Body = [For(block, index(0), self.steps, tuple(multiply), index(1))]
        if t.paired:
            # The first tile waits for no other: for the phase before the first.
            mine, other = Place(self.turns, consumer), Place(self.turns, 1 - consumer)
            parity_of_turn = (turn // t.consumers + consumer + 1) % 2
            products.insert(0, Call("mbarrier_wait", (mine, parity_of_turn), (self.turns,)))
            products += [If(one, (Call("mbarrier_arrive", (other,), (self.turns,)),)), Assign(turn, turn + t.consumers)]
        here += products
        here += [Call("wgmma_wait_0", ()), If(logical_and(one, self.steps > 0), (done,))]
        here += self._epilogue(consumer, batch, m0, n0)
        return [*out, For(tile, first, self.tiles, tuple(here), apart)]

    def _share(self, consumer: Expr) -> Expr:
        """The first 64 rows of a tile that are this consumer's."""
        return index(0) if self.tile.paired else consumer * self.tile.tall

    def _epilogue(self, consumer: Expr, batch: list[Expr], m0: Expr, n0: Expr) -> Body:
        """The sums of a warp, 16 rows, through shared memory `CHUNK` columns at a time, so that threads have neighbours."""
        p, t = self.p, self.tile
        thread, lane = var("thread"), p.name("lane")
        out: Body = []
        warp = p.let(out, "warp", thread // 32 - GROUP // 32)
        mine = p.let(out, "mine", warp * (16 * PITCH))
        at = p.let(out, "at", mine + thread % 32 // 4 * PITCH + thread % 4 * 2)
        for m in range(t.tall):
            first_row = p.let(out, "first", m0 + (self._share(consumer) + m) * 64 + warp % 4 * 16)
            chunk = p.name("chunk")
            write: Body = [Barrier("warp")]
            for j in range(CHUNK // 8):
                for h in range(2):
                    sums = chunk * (CHUNK // 2) + (m * t.columns // 2 + 4 * j + 2 * h)
                    place = at + (h * 8 * PITCH + 8 * j)
                    value = load(self.sums, sums + lane)
                    write.append(Vector(lane, 2, (Store(self.staged, place + lane, value),)))
            write += [Barrier("warp"), *self._rows(mine, batch, first_row, p.let(write, "n", n0 + chunk * CHUNK))]
            here = (If(n0 + chunk * CHUNK < p.columns, tuple(write)),)
            out.append(For(chunk, index(0), index(t.columns // CHUNK), here, index(1), unroll=True))
        return out

    def _rows(self, mine: Expr, batch: list[Expr], first_row: Expr, first_column: Expr) -> Body:
        """Results of 16 rows of a chunk: a thread takes 4 neighbours, or 1 where the columns are no multiple of 4."""
        p = self.p
        width = 4 if p.divisor(p.c.right.size) % 4 == 0 else 1
        across = CHUNK // width
        turn, lane, thread = p.name("turn"), p.name("lane"), var("thread") % 32
        body: Body = []
        row = p.let(body, "r", turn * (32 // across) + thread // across)
        column = p.let(body, "c", thread % across * width)
        m, n = p.let(body, "m", first_row + row), p.let(body, "n", first_column + column)
        inner: Body = []
        rows = p.coords(inner, "m", m, p.c.left.free)
        columns = p.column_coords(inner, n, lane, width)
        value = p.name("sum", F32)
        loops = [*batch, *rows, n, lane]
        each: Body = [Let(value, load(self.staged, mine + row * PITCH + column + lane))]
        each += p.finish(value, batch, rows, columns, [e for e in loops if e.op == "var"])
        inner.append(Vector(lane, width, tuple(each)))
        body.append(If(logical_and(m < p.rows, n < p.columns), tuple(inner)))
        # Written out, the loads of all rows are under way together; long epilogues would fill the instruction cache.
        short = width > 1 and sum(1 for _ in children_first(tuple(s.value for s in each if isinstance(s, Let)))) <= SHORT
        return [For(turn, index(0), index(16 * across // 32), tuple(body), index(1), unroll=short)]
