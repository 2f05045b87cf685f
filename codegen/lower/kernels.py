"""The kernels of a contraction under a schedule. See contract.py for the whole, tiles.py for schedules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.codegen.expr import Expr, cast, const, equal, index, load, logical_and, select, var
from graphc.codegen.loops import Alloc, Buffer, For, If, Kernel, Let, Report, Stmt, Store
from graphc.codegen.lower.affine import ceil_div, decided, greatest_of, least_of, tidy
from graphc.codegen.lower.contraction import Access, Contraction, Operand, access, element, widened
from graphc.codegen.lower.index import Position, delinearise, dim_expr, linearise
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import (
    BLOCK,
    Tile,
    all_blocks,
    block_sum,
    clear,
    equal_zero,
    region,
)
from graphc.codegen.lower.nest import group_extents
from graphc.codegen.lower.pull import guard_loads
from graphc.codegen.lower.tiles import UNROLL, Schedule, power_of_two
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, Dim, size_of

Body = list[Stmt]


@dataclass(frozen=True)
class DepthNest:
    """coords: of the contracted dimensions; loops: their variables, outermost first; flat: their index."""

    coords: list[Expr]
    loops: list[Expr]
    flat: Expr
    wrap: Callable[[Body], Body]


class ContractionKernels:
    """Builds the kernels of one contraction.

    Names: R and L are the sides whose free dimensions are a tile's rows and lanes.
    """

    def __init__(self, c: Contraction, schedule: Schedule, results: Sequence[Buffer], vector_bits: int) -> None:
        self.c, self.s = c, schedule
        # With AVX-512 masks cost little, outside the innermost loop: half the code, less time to compile it.
        self.free_masks = vector_bits >= 512
        self.rows, self.lanes = (c.right, c.left) if schedule.swap else (c.left, c.right)
        self.row_access, self.lane_access = access(c, self.rows), access(c, self.lanes)
        self.results = [(*self._layout(v), buffer) for v, buffer in zip(c.group.results, results, strict=True)]
        self.dtype = c.accumulator
        self.count_rows, self.count_lanes = dim_expr(self.rows.size), dim_expr(self.lanes.size)
        self.depth = dim_expr(size_of(c.depth))
        self.scratch: list[Scratch] = []
        self._names = itertools.count()

    def _layout(self, v: Value) -> tuple[Value, list[Operation]]:
        """A result as a value and the reshapes and permutations of it that follow, in order."""
        ops: list[Operation] = []
        while v is not self.c.result and v in self.c.pull.producer:
            op, _ = self.c.pull.producer[v]
            if op.name not in ("reshape", "permute"):
                break
            ops.insert(0, op)
            v = op.operands[0]
        if v.type.size != self.c.result.type.size:
            raise ValueError(
                f"@{self.c.group.name}: a result of a contraction's group has as many elements as the "
                f"{self.c.root.name}, but {v.type} does not follow {self.c.result.type} element by element"
            )
        return v, ops

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        s = self.s
        kernels: list[Kernel] = []
        sections: list[tuple[Expr, Callable[[Expr], Body]]] = []
        self.packed_rows = self.packed_lanes = None
        if s.pack_rows:
            self.packed_rows = self._packed("rows", self.row_access, self.rows, s.rows)
            sections.append(self._pack_section(self.packed_rows, self.row_access, self.rows, s.rows, False))
        if s.lane_mode == "packed":
            self.packed_lanes = self._packed("lanes", self.lane_access, self.lanes, s.lanes)
            sections.append(self._pack_section(self.packed_lanes, self.lane_access, self.lanes, s.lanes, True))
        if sections:
            kernels.append(self._pack_kernel(sections))
        kernels += self._local_kernels() if s.lane_mode == "local" else [self._main_kernel()]
        return tuple(kernels), tuple(self.scratch)

    # Names, scratch memory, kernels

    def name(self, stem: str) -> Expr:
        return var(f"{stem}_{next(self._names)}")

    def _new_scratch(self, name: str, size: Dim) -> Buffer:
        buffer = Buffer(name, self.dtype, "scratch")
        self.scratch.append(Scratch(buffer, self.dtype, size))
        return buffer

    def _batch_dim(self, used: Sequence[int]) -> Dim:
        return size_of(self.c.batch[i] for i in used)

    def _packed(self, name: str, a: Access, side: Operand, tile: int) -> Buffer:
        panels = (side.size + (tile - 1)) // tile
        return self._new_scratch(name, self._batch_dim(a.batch) * panels * tile * size_of(self.c.depth))

    def _kernel(self, name: str, parallel: Expr, work: Expr, body: Body) -> Kernel:
        buffers = [*self.c.pull.buffers.values(), *(b for _, _, b in self.results), *(s.buffer for s in self.scratch)]
        used = buffers_used(body)
        return Kernel(name, tuple(b for b in buffers if b in used), group_extents(self.c.group), parallel, work, tuple(body))

    def choose(self, whole: Expr, body: Callable[[bool], Body], hot: bool = False) -> Body:
        """`body(masked)`, without a mask where `whole` holds and that is worth code of its own."""
        whole = decided(whole)
        if whole.op == "const":
            return body(not whole.data)
        if self.free_masks and not hot:
            return body(True)
        return [If(whole, tuple(body(False)), tuple(body(True)))]

    def _checks(self) -> Body:
        """The run-time checks that the expressions just pulled need."""
        return self.c.pull.take_reports()

    # Packing for all tasks

    def _pack_kernel(self, sections: list[tuple[Expr, Callable[[Expr], Body]]]) -> Kernel:
        begin, end = var("begin"), var("end")
        body: Body = []
        offset = index(0)
        for count, make_body in sections:
            t = self.name("task")
            start, stop = greatest_of(begin - offset, index(0)), least_of(end - offset, count)
            body.append(For(t, start, stop, tuple(make_body(t)), index(1)))
            offset = offset + count
        # A panel is depth x tile elements.
        work = offset * self.depth * (4 * max(self.s.rows, self.s.lanes))
        return self._kernel("pack", offset, work, body)

    def _pack_section(
        self, buffer: Buffer, a: Access, side: Operand, tile: int, vector: bool
    ) -> tuple[Expr, Callable[[Expr], Body]]:
        used_shape = tuple(self.c.batch[i] for i in a.batch)
        panels = ceil_div(dim_expr(side.size), tile)
        size = dim_expr(side.size)

        def body(t: Expr) -> Body:
            panel, b, base = self.name("panel"), self.name("batch"), self.name("base")
            out: Body = [Let(b, t // panels), Let(panel, t - b * panels), Let(base, t * self.depth * tile)]
            batch, lets = self._batch_coords(b, used_shape, a.batch)
            out += lets
            nest = self._depth_nest(vector and self.s.near)
            if vector:
                lane = self.name("lane") if tile > 1 else index(0)
                free = panel * tile + lane
                loops = [t, b, *batch, panel, base, lane, *nest.loops]
                e = self._element_at(side, batch, free, nest.coords)
                checks, small = self._checks(), self._small(side, free)

                def copies(masked: bool) -> Body:
                    cond = free < size if masked else None
                    copy = self._copy(buffer, base, nest.flat, tile, lane, e, cond, loops, checks, small)
                    return region(lane, tile, nest.wrap(copy))

                out += self.choose((panel + 1) * tile <= size, copies)
            else:
                loops = [t, b, *batch, panel, base]
                rows: Body = []
                for i in range(tile):
                    row = least_of(panel * tile + i, size - 1)
                    r = self.name("row")
                    out.append(Let(r, row))
                    e = self._element_at(side, batch, r, nest.coords)
                    order = [*loops, r, *nest.loops]
                    rows += self._copy(buffer, base, nest.flat, tile, index(i), e, None, order, self._checks())
                out += nest.wrap(rows)
            return out

        return dim_expr(self._batch_dim(a.batch)) * panels, body

    def _copy(
        self, buffer: Buffer, base: Expr, k: Expr, tile: int, lane: Expr, e: Expr, cond: Expr | None,
        loops: list[Expr], checks: Body, small: Expr | None = None,
    ) -> Body:  # fmt: skip
        if cond is not None:
            e, checks = guard_loads(e, cond), guard_checks(checks, cond)
        return [*checks, Store(buffer, base + k * tile + lane, tidy(e, loops, small))]

    def _small(self, side: Operand, free: Expr) -> Expr | None:
        """`free`, a flat index of a side, if its divisions may be done in 32 bits."""
        return free if isinstance(side.size, int) and side.size < 1 << 31 else None

    def _element_at(self, side: Operand, batch: Sequence[Expr], free: Expr, k: Sequence[Expr]) -> Expr:
        return widened(self.c, side.at(batch, delinearise(free, side.free), k))

    def _depth_nest(self, near: bool, start: Expr | None = None, stop: Expr | None = None) -> DepthNest:
        """Loops over the contracted dimensions with flat index from `start` (0) to `stop` (the end).

        near: the first dimension is innermost (see Schedule.near), else they are in order.
        """
        first, *others = self.c.depth or (1,)
        v, names = self.name("k"), [self.name("k") if d != 1 else index(0) for d in others]
        inner, position = dim_expr(size_of(others)), linearise(names, tuple(others))
        flat = v * inner + position
        bounds = {n: (index(0), dim_expr(d)) for n, d in zip(names, others, strict=True) if d != 1}
        channel = (index(0), dim_expr(first))
        if start is not None and stop is not None:
            safe = greatest_of(inner, index(1))
            if not bounds:
                channel = (start, stop)
            elif near:
                channel = ((start - position + (inner - 1)) // safe, (stop - position + (inner - 1)) // safe)
            else:
                # Only the innermost loop is cut, so that everything else is hoisted.
                channel = (start // safe, (stop + (inner - 1)) // safe)
                last, (low, high) = list(bounds.items())[-1]
                before = v * inner + linearise([index(0) if n is last else n for n in names], tuple(others))
                bounds[last] = (greatest_of(low, start - before), least_of(high, stop - before))
        loops = [(v, channel), *bounds.items()] if not near else [*bounds.items(), (v, channel)]

        def wrap(body: Body) -> Body:
            for name, (low, high) in reversed(loops):
                body = [For(name, low, high, tuple(body), index(1))]
            return body

        return DepthNest([v, *names][: len(self.c.depth)], [n for n, _ in loops], flat, wrap)

    def _batch_coords(self, flat: Expr, shape: Sequence[Dim], used: Sequence[int]) -> tuple[list[Expr], Body]:
        """Coordinates of all batch dimensions (zero for those not in `used`), named."""
        coords = [index(0)] * len(self.c.batch)
        lets: Body = []
        for i, e in zip(used, delinearise(flat, tuple(shape)), strict=True):
            if e.op == "const":
                coords[i] = e
                continue
            coords[i] = self.name("b")
            lets.append(Let(coords[i], e))
        return coords, lets

    # Reading rows and lanes in the micro kernel

    def _row_reader(
        self, batch: list[Expr], strip: Expr, m0: Expr, loops: list[Expr]
    ) -> tuple[Callable[[int, Expr], Expr], Body]:
        s = self.s
        if self.packed_rows is not None:
            buffer = self.packed_rows
            base = self.name("rows")
            strips = ceil_div(self.count_rows, s.rows)
            b = linearise([batch[i] for i in self.row_access.batch], tuple(self.c.batch[i] for i in self.row_access.batch))
            lets: Body = [Let(base, (b * strips + strip) * self.depth * s.rows)]
            return (lambda i, k: load(buffer, base + (k * s.rows + i))), lets
        names, lets = [], []
        for i in range(s.rows):
            r = self.name("row")
            lets.append(Let(r, least_of(m0 + i, self.count_rows - 1) if s.rows > 1 else m0 + i))
            names.append(r)
        levels = [*loops, *names]

        def read(i: int, k: Expr) -> Expr:
            return tidy(element(self.c, self.rows, batch, names[i], k), [*levels, k])

        return read, lets

    def _direct_lanes(self, batch: list[Expr], n0: Expr, loops: list[Expr], cond: bool) -> Callable[[Expr, Expr], Expr]:
        def read(lane: Expr, k: Expr) -> Expr:
            e = element(self.c, self.lanes, batch, n0 + lane, k)
            if cond:
                e = guard_loads(e, n0 + lane < self.count_lanes)
            return tidy(e, [*loops, lane, k], self._small(self.lanes, n0 + lane))

        return read

    # Direct and packed lanes: a task is one strip of rows against one block of lanes

    def _main_kernel(self) -> Kernel:
        s = self.s
        begin, end = var("begin"), var("end")
        strips, blocks = ceil_div(self.count_rows, s.rows), ceil_div(self.count_lanes, s.block)
        safe = greatest_of(strips, index(1))
        u, strip, m0, n0 = self.name("unit"), self.name("strip"), self.name("m"), self.name("n")
        block, batch_flat = self.name("block"), self.name("batch")
        batch, batch_lets = self._batch_coords(batch_flat, self.c.batch, range(len(self.c.batch)))
        loops = [u, batch_flat, *batch, block, strip, m0, n0]
        buffer = Buffer("tile", self.dtype, "local")
        tile = Tile(buffer, index(0), s.rows, s.lanes)
        row, row_lets = self._row_reader(batch, strip, m0, loops)

        panel: Body = []
        if s.lane_mode == "packed":
            assert self.packed_lanes is not None
            base, held = self.name("lanes"), self.packed_lanes
            panels = ceil_div(self.count_lanes, s.lanes)
            bl = linearise([batch[i] for i in self.lane_access.batch], tuple(self.c.batch[i] for i in self.lane_access.batch))
            panel.append(Let(base, (bl * panels + n0 // s.lanes) * self.depth * s.lanes))
            panel += self._sum(tile, row, lambda lane, k: load(held, base + (k * s.lanes + lane)))
        else:
            inside = n0 + s.lanes <= self.count_lanes if s.lanes > 1 else const(BOOL, True)


            def summed(masked: bool) -> Body:
                return self._sum(tile, row, self._direct_lanes(batch, n0, loops, masked))

            panel += self.choose(inside, summed, hot=True)
        panel += self._epilogue(tile, batch, m0, n0, self.count_lanes, loops)

        first_n, last_n = block * s.block, least_of((block + 1) * s.block, self.count_lanes)
        in_strip: Body = [Let(m0, strip * s.rows), *row_lets, For(n0, first_n, last_n, tuple(panel), index(s.lanes))]
        start, stop = greatest_of(begin - u * strips, index(0)), least_of(end - u * strips, strips)
        in_unit: Body = [
            Let(batch_flat, u // greatest_of(blocks, index(1))),
            Let(block, u - batch_flat * blocks),
            *batch_lets,
            For(strip, start, stop, tuple(in_strip), index(1)),
        ]
        body: Body = [
            Alloc(buffer, s.rows * s.lanes),
            For(u, begin // safe, (end + (safe - 1)) // safe, tuple(in_unit), index(1)),
        ]
        parallel = dim_expr(size_of(self.c.batch)) * blocks * strips
        return self._kernel("contract", parallel, self._work(), body)

    def _sum(self, tile: Tile, row: Callable[[int, Expr], Expr], lane: Callable[[Expr, Expr], Expr]) -> Body:
        # Short sums are unrolled; those of conditional reads must be, so that divisions of k fold.
        short = self.depth.op == "const" and self.depth.data * tile.rows <= 2 * UNROLL
        body = all_blocks(tile, self.dtype, row, lane, index(0), self.depth, short)
        if self.depth.op == "const":
            return body if self.depth.data else clear(tile, self.dtype)
        return [*body, If(equal(self.depth, 0), tuple(clear(tile, self.dtype)))]

    def _work(self) -> Expr:
        return dim_expr(size_of(self.c.batch)) * self.count_rows * self.count_lanes * (self.depth * 2 + 2)

    # The epilogue of one tile

    def _epilogue(self, tile: Tile, batch: list[Expr], m0: Expr, n0: Expr, stop: Expr, loops: list[Expr]) -> Body:
        """Finish the tile's elements at rows from m0, lanes from n0 (below `stop`), and store the results."""
        s = self.s
        rows = least_of(index(tile.rows), self.count_rows - m0) if tile.rows > 1 else index(1)
        if s.swap and tile.rows > 1:
            # The results' neighbours in memory are the rows.
            width = power_of_two(tile.rows)
            lane, j = self.name("lane"), self.name("j")
            inner = self._finished(tile, batch, m0, lane, n0, j, [*loops, j, lane])
            lanes = least_of(index(tile.lanes), stop - n0) if tile.lanes > 1 else index(1)
            turn = self.choose(rows >= width, lambda masked: region(lane, width, where(lane < rows, inner, masked)))
            return [For(j, index(0), lanes, tuple(turn), index(1))]
        lane, i = (self.name("lane") if tile.lanes > 1 else index(0)), self.name("i")
        inner = self._finished(tile, batch, m0, i, n0, lane, [*loops, i, lane])
        body: Body
        if tile.lanes == 1:
            body = inner
        else:
            body = self.choose(
                n0 + tile.lanes <= stop,
                lambda masked: region(lane, tile.lanes, where(n0 + lane < stop, inner, masked)),
            )
        return [For(i, index(0), rows, tuple(body), index(1))]

    def _finished(
        self, tile: Tile, batch: list[Expr], m0: Expr, i: Expr, n0: Expr, j: Expr, loops: list[Expr]
    ) -> Body:
        c = self.c
        row, lane = delinearise(m0 + i, self.rows.free), delinearise(n0 + j, self.lanes.free)
        left, right = (lane, row) if self.s.swap else (row, lane)
        at = Position(c.result.type.shape, c.place(batch, left, right))
        total = cast(tile.read(i, j), c.result.type.dtype)
        vector = m0 + i if self.s.swap and tile.rows > 1 else n0 + j
        small = self._small(self.rows if self.s.swap and tile.rows > 1 else self.lanes, vector)
        c.pull.bind(c.result, lambda _: total)
        out: Body = []
        stores: Body = []
        for v, layout, buffer in self.results:
            here = at.reshaped(v.type.shape)
            e = tidy(c.pull.at(v, here), loops, small)
            out += self._checks()
            place = tidy_index(_moved(here, layout).flat, loops)
            stores.append(Store(buffer, tidy(place, loops, small), e))
        return [*out, *stores]

    # Local lanes: a task packs a block of lanes for itself and meets all rows

    def _local_kernels(self) -> list[Kernel]:
        return LocalKernels(self).build()


def _moved(at: Position, layout: Sequence[Operation]) -> Position:
    """Where the element at a position is after reshapes and permutations."""
    for op in layout:
        if op.name == "reshape":
            at = at.reshaped(op.result.type.shape)
        else:
            at = Position(op.result.type.shape, [at.coords[axis] for axis in op.attrs["axes"]])
    return at


def where(cond: Expr, body: Body, masked: bool) -> Body:
    return [If(cond, tuple(body))] if masked else body


def guard_checks(checks: Body, cond: Expr) -> Body:
    """Run-time checks that only count where `cond` holds."""
    return [Report(logical_and(cond, r.cond), r.site, r.value) for r in checks if isinstance(r, Report)]


def tidy_index(e: Expr, loops: list[Expr]) -> Expr:
    from graphc.codegen.lower.affine import Levels, normal

    return normal(e, Levels(loops))


def buffers_used(body: Sequence[Stmt]) -> set[Buffer]:
    """Every buffer that statements read or write."""
    from graphc.codegen.expr import children_first
    from graphc.codegen.loops import Assign, Declare, Vector

    found: set[Buffer] = set()
    roots: list[Expr] = []
    stack = list(body)
    while stack:
        s = stack.pop()
        if isinstance(s, For):
            roots += [s.start, s.stop, s.step]
            stack += s.body
        elif isinstance(s, Vector):
            stack += s.body
        elif isinstance(s, If):
            roots.append(s.cond)
            stack += [*s.then, *s.orelse]
        elif isinstance(s, (Let, Assign)):
            roots.append(s.value)
        elif isinstance(s, Declare):
            roots.append(s.init)
        elif isinstance(s, Store):
            found.add(s.buffer)
            roots += [s.index, s.value]
        elif isinstance(s, Report):
            roots += [s.cond, s.value]
    found |= {e.data for e in children_first(tuple(roots)) if e.op == "load"}
    return found


class LocalKernels:
    """Kernels in which a task packs its lanes into memory of its own.

    The lanes' innermost free dimension is a run; a task takes a block of whole runs, or a part of one.
    """

    def __init__(self, k: ContractionKernels) -> None:
        self.k, self.c, self.s = k, k.c, k.s

    def build(self) -> list[Kernel]:
        k, s = self.k, self.s
        free = self.k.lanes.free or (1,)
        run, outer = dim_expr(free[-1]), dim_expr(size_of(free[:-1]))
        width = least_of(index(s.block), run)
        per_block = index(1) if len(free) == 1 else index(s.block) // greatest_of(width, index(1))
        outer_blocks = (outer + (per_block - 1)) // greatest_of(per_block, index(1))
        run_blocks = ceil_div(run, s.block)
        blocks = outer_blocks * run_blocks
        batches = dim_expr(size_of(self.c.batch))
        depth_blocks = ceil_div(k.depth, BLOCK)
        strips = ceil_div(k.count_rows, s.rows)
        task = k.name("task")
        kb, rest, batch_flat, block = k.name("kb"), k.name("rest"), k.name("batch"), k.name("block")
        batch, batch_lets = k._batch_coords(batch_flat, self.c.batch, range(len(self.c.batch)))
        i_outer, first_outer, first_run, run_width, count = (k.name(n) for n in ("o", "outer", "x", "w", "count"))
        start = k.name("start")
        n_first = k.name("n")
        lets: Body = [
            Let(kb, task // greatest_of(batches * blocks, index(1)) if s.split else index(0)),
            Let(rest, task - kb * (batches * blocks)),
            Let(batch_flat, rest // greatest_of(blocks, index(1))),
            Let(block, rest - batch_flat * blocks),
            *batch_lets,
            Let(i_outer, block // greatest_of(run_blocks, index(1))),
            Let(first_outer, i_outer * per_block),
            Let(first_run, (block - i_outer * run_blocks) * s.block),
            Let(run_width, least_of(width, run - first_run)),
            Let(count, least_of(per_block, outer - first_outer) * run_width),
            Let(n_first, first_outer * run + first_run),
        ]
        loops = [task, kb, batch_flat, *batch, block, i_outer, first_outer, first_run, run_width, count, n_first]
        local = Buffer("block", k.dtype, "local")
        stop = k.name("stop")
        chunk_end = least_of(start + s.chunk, k.depth)
        pack = self._pack(local, batch, n_first, first_outer, first_run, run_width, count, start, stop, loops)

        strip, m0, n0 = k.name("strip"), k.name("m"), k.name("j")
        inner_loops = [*loops, start, strip, m0, n0]
        row, row_lets = k._row_reader(batch, strip, m0, inner_loops)
        tile_size = s.rows * s.lanes
        tile_number = ((batch_flat * blocks + block) * strips + strip) * (s.block // s.lanes) + n0 // s.lanes
        one_chunk = k.depth.op == "const" and k.depth.data <= s.chunk
        tiles_dim = self._tiles()
        body_tile: Body = []
        base = k.name("total")
        if s.split:
            buffer = k._new_scratch("sums", tiles_dim * tile_size * ((size_of(self.c.depth) + (BLOCK - 1)) // BLOCK))
            per_sum = batches * blocks * strips * (s.block // s.lanes)
            body_tile.append(Let(base, (kb * per_sum + tile_number) * tile_size))
        elif one_chunk:
            buffer = Buffer("tile", k.dtype, "local")
            body_tile.append(Let(base, index(0)))
        else:
            # Totals wait in memory between chunks. Where there is one chunk, a place in the cache will do.
            buffer = k._new_scratch("totals", tiles_dim * tile_size)
            body_tile.append(Let(base, select(k.depth <= s.chunk, var("begin"), tile_number) * tile_size))
        tile = Tile(buffer, base, s.rows, s.lanes)

        def lane(v: Expr, at: Expr) -> Expr:
            return load(local, n0 + ((at - start) * s.block + v))

        if s.split:
            body_tile += block_sum(tile, k.dtype, row, lane, start, stop, const(BOOL, True))
        else:
            body_tile += all_blocks(tile, k.dtype, row, lane, start, stop)
            finish = k._epilogue(tile, batch, m0, n_first + n0, n_first + count, inner_loops)
            if k.depth.op == "const" and k.depth.data == 0:
                body_tile += clear(tile, k.dtype)
            elif k.depth.op != "const":
                body_tile.append(If(equal(k.depth, 0), tuple(clear(tile, k.dtype))))
            done = const(BOOL, True) if one_chunk else stop >= k.depth
            body_tile.append(If(done, tuple(finish)))
        per_strip: Body = [
            Let(m0, strip * s.rows),
            *row_lets,
            For(n0, index(0), count, tuple(body_tile), index(s.lanes)),
        ]
        in_chunk: Body = [
            Let(stop, chunk_end),
            *pack,
            For(strip, index(0), strips, tuple(per_strip), index(1)),
        ]
        if s.split:
            in_task: Body = [*lets, Let(start, kb * BLOCK), *in_chunk]
        else:
            # An empty sum is one empty chunk.
            last = greatest_of(k.depth, index(1))
            in_task = [*lets, For(start, index(0), last, tuple(in_chunk), index(s.chunk))]
        body: Body = [Alloc(local, s.chunk * s.block)]
        if one_chunk and not s.split:
            body.append(Alloc(tile.buffer, tile_size))
        body.append(For(task, var("begin"), var("end"), tuple(in_task), index(1)))
        parallel = batches * blocks * (depth_blocks if s.split else index(1))
        kernels = [k._kernel("contract", parallel, k._work(), body)]
        if s.split:
            kernels.append(self._finish(tile.buffer, batches, blocks, strips, per_block, outer, run, width, run_blocks))
        return kernels

    def _tiles(self) -> Dim:
        """At least the number of tiles: blocks that are not full are at least half full, but for the last."""
        s, k = self.s, self.k
        strips = (k.rows.size + (s.rows - 1)) // s.rows
        free = k.lanes.free or (1,)
        per = s.block // s.lanes
        if isinstance(free[-1], int) and free[-1] > 0:
            run = free[-1]
            per_block = 1 if len(free) == 1 else max(1, s.block // min(run, s.block))
            blocks: Dim = ((size_of(free[:-1]) + (per_block - 1)) // per_block) * -(-run // s.block)
        else:
            blocks = (k.lanes.size * 2) // s.block + size_of(free[:-1]) + 1
        return size_of(self.c.batch) * strips * blocks * per

    def _pack(
        self, local: Buffer, batch: list[Expr], n_first: Expr, first_outer: Expr, first_run: Expr, run_width: Expr,
        count: Expr, start: Expr, stop: Expr, loops: list[Expr],
    ) -> Body:  # fmt: skip
        k, s = self.k, self.s
        free = k.lanes.free or (1,)
        o, x = k.name("o"), k.name("x")
        nest = k._depth_nest(s.near, start, stop)
        if not s.run:
            return self._pack_gathered(local, batch, n_first, count, start, nest, loops)
        lane = k.name("lane") if s.run > 1 else index(0)
        outer = delinearise(first_outer + o, free[:-1])
        coords = (*outer, first_run + x + lane)[: len(k.lanes.free)]
        e = widened(self.c, k.lanes.at(batch, coords, nest.coords))
        checks = k._checks()
        order = [*loops, start, *nest.loops, o, x, lane]
        place = (nest.flat - start) * s.block + o * run_width + x + lane

        def copies(masked: bool) -> Body:
            cond = x + lane < run_width
            if not masked:
                return region(lane, s.run, [*checks, Store(local, place, tidy(e, order))])
            return region(lane, s.run, [If(cond, (*checks, Store(local, place, tidy(e, order))))])

        turn = k.choose(x + s.run <= run_width if s.run > 1 else const(BOOL, True), copies)
        runs: Body = [For(x, index(0), run_width, tuple(turn), index(s.run))]
        if len(free) > 1:
            rows = count // greatest_of(run_width, index(1))
            runs = [For(o, index(0), rows, tuple(runs), index(1))]
        else:
            runs = [Let(o, index(0)), *runs]
        return [*self._clear_tails(local, count, start, stop), *nest.wrap(runs)]

    def _clear_tails(self, local: Buffer, count: Expr, start: Expr, stop: Expr) -> Body:
        """The lanes past the last element are read by the micro kernel: give them a value."""
        k, s = self.k, self.s
        at, z = k.name("k"), k.name("lane") if s.lanes > 1 else index(0)
        last = (count // s.lanes) * s.lanes
        zero = region(z, s.lanes, [Store(local, (at - start) * s.block + last + z, const(k.dtype, 0))])
        return [If(decided(last < count), (For(at, start, stop, tuple(zero), index(1)),))]

    def _pack_gathered(
        self, local: Buffer, batch: list[Expr], n_first: Expr, count: Expr, start: Expr, nest: DepthNest,
        loops: list[Expr],
    ) -> Body:
        """Where runs are short: the lanes of a tile at a time, each finding its own place once for all k."""
        k, s = self.k, self.s
        j, lane = k.name("j"), k.name("lane")
        free = n_first + j + lane
        e, small = k._element_at(k.lanes, batch, free, nest.coords), k._small(k.lanes, free)
        cond = j + lane < count
        checks = guard_checks(k._checks(), cond)
        order = [*loops, start, j, lane, *nest.loops]
        put = Store(local, (nest.flat - start) * s.block + j + lane, tidy(guard_loads(e, cond), order, small))
        copies = region(lane, s.lanes, nest.wrap([*checks, put]))
        return [For(j, index(0), count, tuple(copies), index(s.lanes))]

    def _finish(
        self, sums: Buffer, batches: Expr, blocks: Expr, strips: Expr, per_block: Expr, outer: Expr, run: Expr,
        width: Expr, run_blocks: Expr,
    ) -> Kernel:  # fmt: skip
        """Add up the sums of the blocks of k in order, then the epilogue."""
        k, s = self.k, self.s
        per = s.block // s.lanes
        t = k.name("tile")
        j, strip, unit, block, b = (k.name(n) for n in ("j", "strip", "unit", "block", "batch"))
        batch, batch_lets = k._batch_coords(b, self.c.batch, range(len(self.c.batch)))
        i_outer, first_outer, first_run, count, n_first = (k.name(n) for n in ("o", "outer", "x", "count", "n"))
        m0 = k.name("m")
        q = k.name("q")
        size = s.rows * s.lanes
        local = Buffer("tile", k.dtype, "local")
        tile = Tile(local, index(0), s.rows, s.lanes)
        kb, i = k.name("kb"), k.name("i")
        lane = k.name("lane") if s.lanes > 1 else index(0)
        tiles = batches * blocks * strips * per
        first = Store(local, tile.at(i, lane), load(sums, t * size + i * s.lanes + lane))
        more = Store(
            local, tile.at(i, lane), tile.read(i, lane) + load(sums, (kb * tiles + t) * size + i * s.lanes + lane)
        )
        add_up: Body = [
            For(i, index(0), index(s.rows), tuple(region(lane, s.lanes, [first])), index(1)),
            For(
                kb, index(1), ceil_div(k.depth, BLOCK),
                (For(i, index(0), index(s.rows), tuple(region(lane, s.lanes, [more])), index(1)),), index(1),
            ),
        ]  # fmt: skip
        add_up = [If(equal_zero(k.depth), tuple(clear(tile, k.dtype)), tuple(add_up))]
        loops = [t, q, j, unit, strip, b, *batch, block, i_outer, first_outer, first_run, n_first, m0]
        lets: Body = [
            Let(q, t // per),
            Let(j, (t - q * per) * s.lanes),
            Let(unit, q // strips),
            Let(strip, q - unit * strips),
            Let(b, unit // blocks),
            Let(block, unit - b * blocks),
            *batch_lets,
            Let(i_outer, block // run_blocks),
            Let(first_outer, i_outer * per_block),
            Let(first_run, (block - i_outer * run_blocks) * s.block),
            Let(count, least_of(per_block, outer - first_outer) * least_of(width, run - first_run)),
            Let(n_first, first_outer * run + first_run),
            Let(m0, strip * s.rows),
        ]
        finish = k._epilogue(tile, batch, m0, n_first + j, n_first + count, loops)
        body: Body = [
            Alloc(local, size),
            For(t, var("begin"), var("end"), (*lets, If(j < count, (*add_up, *finish))), index(1)),
        ]
        return k._kernel("finish", tiles, tiles * size * ceil_div(k.depth, BLOCK), body)


__all__ = ["ContractionKernels", "LocalKernels", "logical_and"]
