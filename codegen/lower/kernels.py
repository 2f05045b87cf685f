"""The kernels of a contraction under a schedule. See contract.py for the whole, tiles.py for schedules."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

from graphc.codegen.expr import Expr, cast, children_first, const, equal, index, load, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Call,
    Columns,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Place,
    Prefetch,
    Report,
    Stmt,
    Store,
    TensorMap,
    Transpose,
    Vector,
)
from graphc.codegen.lower.affine import (
    Levels,
    ceil_div,
    decided,
    greatest_of,
    least_of,
    logical_and,
    normal,
    tidy,
)
from graphc.codegen.lower.ahead import fetch_ahead
from graphc.codegen.lower.blocks import Blocks
from graphc.codegen.lower.contraction import (
    BLOCK,
    Access,
    Contraction,
    Operand,
    access,
    element,
    in_run,
    transposable,
    widened,
)
from graphc.codegen.lower.index import Position, delinearise, dim_expr, linearise
from graphc.codegen.lower.local import LocalKernels
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.microkernel import (
    LaneLoad,
    RowLoad,
    Tile,
    Turn,
    all_blocks,
    block_sum,
    clear,
    region,
)
from graphc.codegen.lower.nest import group_extents
from graphc.codegen.lower.packing import lane_coords, pack_kernel, small_index
from graphc.codegen.lower.past import LINE
from graphc.codegen.lower.pull import guard_loads
from graphc.codegen.lower.stream import StreamKernels
from graphc.codegen.lower.tiles import UNROLL, Schedule, power_of_two
from graphc.codegen.positions import Tokens, squeezed, step, tokens_of, with_units
from graphc.ir.function import Operation, Value
from graphc.ir.types import BOOL, I64, Dim, DType, size_of

Body = list[Stmt]


class ContractionKernels:
    """Builds the kernels of one contraction.

    Names: R and L are the sides whose free dimensions are a tile's rows and lanes.
    """

    def __init__(self, c: Contraction, schedule: Schedule, results: Sequence[Buffer], vector_bits: int) -> None:
        self.c, self.s = c, schedule
        self.vector_bits = vector_bits
        # With AVX-512 masks cost little, outside the innermost loop: half the code, less time to compile it.
        self.free_masks = vector_bits >= 512
        self.rows, self.lanes = (c.right, c.left) if schedule.swap else (c.left, c.right)
        self.row_access, self.lane_access = access(c, self.rows), access(c, self.lanes)
        self.results = [(*layout_of(c, v), buffer) for v, buffer in zip(c.group.results, results, strict=True)]
        self.dtype = c.accumulator
        self.run = self.row_access.run if schedule.row_mode == "direct" else None
        self.count_rows, self.count_lanes = dim_expr(self.rows.size), dim_expr(self.lanes.size)
        self.depth = dim_expr(size_of(c.depth))
        self.scratch: list[Scratch] = []
        self._locals: list[Stmt] = []
        self._names = itertools.count()

    def build(self) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
        """The kernels in launch order, and their scratch memory."""
        s, c = self.s, self.c
        kernels: list[Kernel] = []
        self.packed_rows = self._packed("rows", self.row_access, self.rows, s.rows) if s.row_mode == "packed" else None
        self.copied, self.offsets = None, None
        if s.row_mode == "table":
            assert c.patches is not None and s.swap
            self.copied = self.new_scratch("copied", size_of(c.patches.shape))
            self.offsets = self.new_scratch("offsets", size_of(c.depth), I64)
        self.packed_lanes = None
        if s.lane_mode == "packed":
            self.packed_lanes = self._packed("lanes", self.lane_access, self.lanes, s.lanes)
        packing = pack_kernel(self)
        if packing is not None:
            kernels.append(packing)
        if s.lane_mode == "local":
            kernels += LocalKernels(self).build()
        else:
            kernels += StreamKernels(self).build() if s.lane_mode == "streamed" else self._main_kernels()
        return tuple(kernels), tuple(self.scratch)

    # Names, scratch memory, kernels

    def name(self, stem: str) -> Expr:
        return var(f"{stem}_{next(self._names)}")

    def new_scratch(self, name: str, size: Dim, dtype: DType | None = None) -> Buffer:
        buffer = Buffer(name, dtype or self.dtype, "scratch")
        self.scratch.append(Scratch(buffer, buffer.dtype, size))
        return buffer

    def batch_dim(self, used: Sequence[int]) -> Dim:
        return size_of(self.c.batch[i] for i in used)

    def _packed(self, name: str, a: Access, side: Operand, tile: int) -> Buffer:
        panels = (side.size + (tile - 1)) // tile
        return self.new_scratch(name, self.batch_dim(a.batch) * panels * tile * size_of(self.c.depth))

    def kernel(self, name: str, parallel: Expr, work: Expr, body: Body) -> Kernel:
        buffers = [*self.c.pull.buffers.values(), *(b for _, _, b in self.results), *(s.buffer for s in self.scratch)]
        used, body, self._locals = buffers_used(body), [*self._locals, *body], []
        return Kernel(name, tuple(b for b in buffers if b in used), group_extents(self.c.group), parallel, work, tuple(body))

    def new_local(self, name: str, size: int) -> Buffer:
        """Memory of a thread's own in the next kernel."""
        buffer = Buffer(name, self.dtype, "local")
        self._locals.append(Alloc(buffer, size))
        return buffer

    def choose(self, whole: Expr, body: Callable[[bool], Body], hot: bool = False) -> Body:
        """`body(masked)`, without a mask where `whole` holds and that is worth code of its own."""
        whole = decided(whole)
        if whole.op == "const":
            return body(not whole.data)
        if self.free_masks and not hot:
            return body(True)
        return [If(whole, tuple(body(False)), tuple(body(True)))]

    def checks(self) -> Body:
        """The run-time checks that the expressions just pulled need."""
        return self.c.pull.take_reports()

    def batch_coords(self, flat: Expr, shape: Sequence[Dim], used: Sequence[int]) -> tuple[list[Expr], Body]:
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

    def row_reader(
        self, batch: list[Expr], strip: Expr, m0: Expr, loops: list[Expr]
    ) -> tuple[RowLoad, Body]:
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
        if self.copied is not None:
            return self._patch_reader(batch, names, lets, loops)
        levels = [*loops, *names]

        def read(i: int, k: Expr) -> Expr:
            return tidy(element(self.c, self.rows, batch, names[i], k), [*levels, k])

        def read_in_run(i: int, k: Expr) -> Expr:
            product, inner = k.args
            outer, depth = product.args[0], var("depth")
            assert self.run is not None
            e = in_run(element(self.c, self.rows, batch, names[i], depth), depth, self.run, outer, inner)
            return tidy(e, [*levels, outer, inner])

        return read if self.run is None else read_in_run, lets

    def _patch_reader(
        self, batch: list[Expr], rows: list[Expr], lets: Body, loops: list[Expr]
    ) -> tuple[RowLoad, Body]:
        """Rows in the padded copy: their corners, plus the offset of k from a table."""
        patches, copied, offsets = self.c.patches, self.copied, self.offsets
        assert patches is not None and copied is not None and offsets is not None
        corners = []
        for r in rows:
            corner = self.name("corner")
            at = patches.corner(batch, delinearise(r, self.rows.free))
            lets.append(Let(corner, tidy_index(at, [*loops, r])))
            corners.append(corner)
        return (lambda i, k: load(copied, corners[i] + load(offsets, k))), lets

    def direct_lanes(self, batch: list[Expr], n0: Expr, loops: list[Expr], width: int, cond: bool) -> LaneLoad:
        def read(lane: Expr, k: Expr) -> Expr:
            coords = lane_coords(self.lanes, n0, lane, width)
            e = widened(self.c, self.lanes.at(batch, coords, delinearise(k, self.c.depth)))
            if cond:
                e = guard_loads(e, n0 + lane < self.count_lanes)
            return tidy(e, [*loops, lane, k], small_index(self.lanes, n0 + lane))

        return read

    def _turned_lanes(self, batch: list[Expr], n0: Expr, loops: list[Expr]) -> tuple[LaneLoad, Turn]:
        """Lanes whose neighbours in memory run along the depth. Past the last lane it is repeated."""
        source = transposable(self.c, self.lanes)
        assert source is not None and not source.outer

        def place(lane: Expr, k: Expr) -> Expr:
            free = least_of(n0 + lane, self.count_lanes - 1)
            return normal(source.position(batch, free, delinearise(k, self.c.depth)), Levels([*loops, lane, k]))

        def turn(lane: Expr, names: tuple[Expr, ...], k: Expr) -> Columns:
            return Columns(lane, names, source.buffer, place(lane, k))

        return (lambda lane, k: cast(load(source.buffer, place(lane, k)), self.dtype)), turn

    # Direct and packed lanes: a task is one strip of rows against one block of lanes

    def _main_kernels(self) -> list[Kernel]:
        s, blocks = self.s, Blocks(self)
        begin, end = var("begin"), var("end")
        strips = blocks.strips
        safe = greatest_of(strips, index(1))
        u, strip, m0 = (self.name(n) for n in ("unit", "strip", "m"))
        kb, batch_flat, batch, number, lets, names = blocks.unit(u)
        first, start, stop = number * s.block, index(0), self.depth
        if not blocks.one_chunk:
            start, stop = self.name("start"), self.name("stop")
        loops = [*(v for v in (start, stop) if v.op == "var"), u, *names, strip, m0]
        row, row_lets = self.row_reader(batch, strip, m0, loops)
        sums: list[Tile] = []

        def panel(n0: Expr, width: int, inside: bool | None) -> Body:
            """The tile from lane n0 on; inside: whether all of its lanes surely exist (None: it depends)."""
            place = n0 - first
            at = blocks.number(batch_flat, number, strip, place // s.lanes)
            tile, body = blocks.tile(kb, at, width, place % s.lanes)
            sums.append(tile)
            inner = [*loops, n0]

            def summed(lane: LaneLoad, turn: Turn | None = None) -> Body:
                if s.split:
                    low, yes = kb * BLOCK, const(BOOL, True)
                    return block_sum(tile, self.dtype, row, lane, low, least_of(low + BLOCK, self.depth), yes, False, turn, self.run)
                return self.whole_sum(tile, row, lane, start, stop, turn)

            if s.lane_mode == "packed":
                lane, panel_lets = self._packed_lanes_reader(batch, n0)
                body += [*panel_lets, *summed(lane)]
            elif s.lane_mode == "turned":
                body += summed(*self._turned_lanes(batch, n0, inner))
            else:
                known = n0 + width <= self.count_lanes if inside is None else const(BOOL, inside)
                direct = functools.partial(self.direct_lanes, batch, n0, inner, width)
                body += self.choose(known, lambda masked: summed(direct(masked)), hot=True)
            if s.split:
                return body
            end_of_lanes = n0 + width if inside else self.count_lanes
            return self.finished(body, tile, batch, m0, n0, end_of_lanes, inner, functools.partial(blocks.at_the_end, stop))

        last = least_of(first + s.block, self.count_lanes)
        in_strip: Body = [Let(m0, strip * s.rows), *row_lets, *self.panels(first, last, panel)]
        mine = greatest_of(begin - u * strips, index(0)), least_of(end - u * strips, strips)
        in_unit: Body = [*lets, For(strip, *mine, tuple(in_strip), index(1))]
        body: Body = [For(u, begin // safe, (end + (safe - 1)) // safe, tuple(in_unit), index(1))]
        if not blocks.one_chunk:
            body = [blocks.chunks(start, [Let(stop, least_of(start + s.chunk, self.depth)), *body])]
        kernel = self.kernel("contract", blocks.units * strips, self.work(), body)
        return [kernel, blocks.finish(sums[0].buffer)] if s.split else [kernel]

    def panels(self, first: Expr, last: Expr, panel: Callable[[Expr, int, bool | None], Body]) -> Body:
        """Loops over the tiles of a block's lanes [first, last): whole ones, then what is left in narrow ones."""
        s, n0 = self.s, self.name("n")
        if not s.tail:
            inside = True if s.lanes == 1 else None
            return [For(n0, first, last, tuple(panel(n0, s.lanes, inside)), index(s.lanes))]
        whole, n1 = self.name("whole"), self.name("n")
        return [
            Let(whole, first + (last - first) // s.lanes * s.lanes),
            For(n0, first, whole, tuple(panel(n0, s.lanes, True)), index(s.lanes)),
            For(n1, whole, last, tuple(panel(n1, s.tail, False)), index(s.tail)),
        ]

    def _packed_lanes_reader(self, batch: list[Expr], n0: Expr) -> tuple[LaneLoad, Body]:
        held, used, tile = self.packed_lanes, self.lane_access.batch, self.s.lanes
        assert held is not None
        base = self.name("lanes")
        b = linearise([batch[i] for i in used], tuple(self.c.batch[i] for i in used))
        panel = b * ceil_div(self.count_lanes, tile) + n0 // tile
        at = panel * self.depth * tile + (n0 % tile if self.s.tail else 0)
        return (lambda lane, k: load(held, base + (k * tile + lane))), [Let(base, at)]

    def whole_sum(
        self, tile: Tile, row: RowLoad, lane: LaneLoad, start: Expr, stop: Expr, turn: Turn | None = None
    ) -> Body:
        """The blocks of k in [start, stop) added to the tile; zeros for an empty sum."""
        # Short sums are unrolled; those of conditional reads must be, so that divisions of k fold.
        short = self.depth.op == "const" and self.depth.data * tile.rows <= 2 * UNROLL
        body = all_blocks(tile, self.dtype, row, lane, start, stop, short, turn, self.run)
        if self.depth.op == "const":
            return body if self.depth.data else clear(tile, self.dtype)
        return [*body, If(equal(self.depth, 0), tuple(clear(tile, self.dtype)))]

    def work(self) -> Expr:
        return dim_expr(size_of(self.c.batch)) * self.count_rows * self.count_lanes * (self.depth * 2 + 2)

    # The epilogue of one tile

    def finished(
        self, summed: Body, tile: Tile, batch: list[Expr], m0: Expr, n0: Expr, stop: Expr, loops: list[Expr],
        at_the_end: Callable[[Body], Body],
    ) -> Body:  # fmt: skip
        """The statements that sum up a tile, then its epilogue."""
        epilogue = self.epilogue(tile, batch, m0, n0, stop, loops)
        before = at_the_end(fetch_ahead(epilogue, self.name("i"))) if self.s.ahead else []
        return [*before, *summed, *at_the_end(epilogue)]

    def epilogue(self, tile: Tile, batch: list[Expr], m0: Expr, n0: Expr, stop: Expr, loops: list[Expr]) -> Body:
        """Finish the tile's elements at rows from m0, lanes from n0 (below `stop`), and store the results."""
        s = self.s
        rows = least_of(index(tile.rows), self.count_rows - m0) if tile.rows > 1 else index(1)
        if s.swap and tile.rows > 1:
            # The results' neighbours in memory are the rows.
            width = power_of_two(tile.rows)
            lane, j = self.name("lane"), self.name("j")
            turn, read = self._turned_tile(tile, width)
            inner = self._finished(read(lane, j), batch, m0, lane, n0, j, tile, [*loops, j, lane])
            lanes = least_of(index(tile.lanes), stop - n0) if tile.lanes > 1 else index(1)
            whole = self.choose(rows >= width, lambda masked: region(lane, width, where(lane < rows, inner, masked)))
            return [*turn, For(j, index(0), lanes, tuple(whole), index(1))]
        lane, i = (self.name("lane") if tile.lanes > 1 else index(0)), self.name("i")
        inner = self._finished(tile.read(i, lane), batch, m0, i, n0, lane, tile, [*loops, i, lane])
        body: Body
        if tile.lanes == 1:
            body = inner
        else:
            inside = n0 + tile.lanes <= stop
            if s.past:
                # Stores past the caches take whole vectors that begin at multiples of 64 bytes.
                inside = logical_and(decided(inside), equal(self.count_lanes % LINE, 0))
            body = self.choose(
                inside,
                lambda masked: region(lane, tile.lanes, where(n0 + lane < stop, inner if masked else past(inner, s.past), masked)),
                # Masked stores of several results get in each other's way: 6 to 9 % of a product of 128 k with three.
                hot=s.past or len(self.results) > 1,
            )
        return [For(i, index(0), rows, tuple(body), index(1))]

    def _turned_tile(self, tile: Tile, width: int) -> tuple[Body, Callable[[Expr, Expr], Expr]]:
        """What turns a tile, so that neighbours are rows, and the sum at a row and a lane after it."""
        n = min(width, tile.lanes, max(4, self.vector_bits // self.dtype.bits))
        if n < 2 or not self._holds(tile, width):
            return [], tile.read
        turned, i, j = self.new_local("turned", width * tile.lanes), self.name("i"), self.name("j")
        square = Transpose(
            turned, j * width + i, index(width), tile.buffer, tile.base + i * tile.lanes + j, index(tile.lanes), n
        )
        across = For(j, index(0), index(tile.lanes), (square,), index(n))
        return [For(i, index(0), index(width), (across,), index(n))], lambda row, lane: load(turned, lane * width + row)

    def _holds(self, tile: Tile, rows: int) -> bool:
        """Whether so many rows of a tile lie in its buffer: memory of a task's own has room for a power of two."""
        return tile.rows == rows or tile.buffer.kind == "local"

    def _finished(
        self, read: Expr, batch: list[Expr], m0: Expr, i: Expr, n0: Expr, j: Expr, tile: Tile, loops: list[Expr]
    ) -> Body:
        """The results of the tile's element whose sum is `read`: row m0 + i, lane n0 + j."""
        c = self.c
        row = delinearise(m0 + i, self.rows.free)
        # Where blocks are runs, a tile's first lane is no multiple of anything.
        aligned = j if tile.lanes > 1 and not self.s.run and not self.s.swap else None
        lane = lane_coords(self.lanes, n0, j, tile.lanes) if aligned is not None else delinearise(n0 + j, self.lanes.free)
        left, right = (lane, row) if self.s.swap else (row, lane)
        at = Position(c.result.type.shape, c.place(batch, left, right))
        total = cast(read, c.result.type.dtype)
        vector = m0 + i if self.s.swap and tile.rows > 1 else n0 + j
        small = small_index(self.rows if self.s.swap and tile.rows > 1 else self.lanes, vector)
        c.pull.bind(c.result, lambda _: total)
        out: Body = []
        stores: Body = []
        for v, layout, buffer in self.results:
            here = at.reshaped(v.type.shape)
            e = tidy(c.pull.at(v, here), loops, small)
            out += self.checks()
            place = tidy_index(moved(here, layout).flat, loops)
            # All values come first: a result may be written where an operand was read.
            value = var(f"value_{next(self._names)}", e.dtype)
            out.append(Let(value, e))
            stores.append(Store(buffer, tidy(place, loops, small), value))
        return [*out, *stores]


def layout_of(c: Contraction, v: Value) -> tuple[Value, list[Operation]]:
    """A result as a value that is read where the sum is, and the reshapes and permutations of it that follow, in order."""
    whole, ops = v, list[Operation]()
    while v is not c.result and v in c.pull.producer and not _reads_in_place(c, v):
        op, _ = c.pull.producer[v]
        if op.name not in ("reshape", "permute"):
            break
        ops.insert(0, op)
        v = op.operands[0]
    if v.type.size != c.result.type.size:
        raise ValueError(
            f"@{c.group.name}: a result of a contraction's group has as many elements as the "
            f"{c.root.name}, but {whole.type} does not follow {c.result.type} element by element"
        )
    return v, ops


def _reads_in_place(c: Contraction, v: Value) -> bool:
    """Whether each element of `v` reads the sum at its own position: permutations on the way undo each other."""
    shape = c.result.type.shape
    if squeezed(v.type.shape) != squeezed(shape):
        return False
    here = tokens_of(shape)
    stack, seen = [(v, with_units(here, shape, v.type.shape))], set[tuple[Value, Tokens]]()
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at[0] is c.result and at[1] != here:
            return False
        if at[0] is not c.result and at[0] in c.pull.producer:
            stack += step(c.pull.producer[at[0]][0], at[1])
    return True


def moved(at: Position, layout: Sequence[Operation]) -> Position:
    """Where the element at a position is after reshapes and permutations."""
    for op in layout:
        if op.name == "reshape":
            at = at.reshaped(op.result.type.shape)
        else:
            at = Position(op.result.type.shape, [at.coords[axis] for axis in op.attrs["axes"]])
    return at


def past(body: Body, wanted: bool) -> Body:
    """Statements of an epilogue, their stores past the caches if that is wanted."""
    return [dataclasses.replace(x, stream=True) if wanted and isinstance(x, Store) else x for x in body]


def where(cond: Expr, body: Body, masked: bool) -> Body:
    return [If(cond, tuple(body))] if masked else body


def tidy_index(e: Expr, loops: list[Expr]) -> Expr:
    return normal(e, Levels(loops))


def buffers_used(body: Sequence[Stmt]) -> set[Buffer]:
    """Every buffer that statements read or write."""
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
        elif isinstance(s, Call):
            found |= set(s.writes)
            for a in s.args:
                if isinstance(a, Place):
                    found.add(a.buffer)
                    roots.append(a.index)
                elif isinstance(a, TensorMap):
                    found.add(a.buffer)
                else:
                    roots.append(a)
        elif isinstance(s, Prefetch):
            found.add(s.buffer)
            roots.append(s.index)
        elif isinstance(s, Columns):
            found.add(s.source)
            roots.append(s.place)
        elif isinstance(s, Transpose):
            found |= {s.target, s.source}
            roots += [s.target_at, s.target_step, s.source_at, s.source_step]
    found |= {e.data for e in children_first(tuple(roots)) if e.op == "load"}
    return found
