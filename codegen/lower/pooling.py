"""Pooling by lines: windows along a line lie side by side in lanes, the other window positions are loops around them.

A maximum or a sum goes over the window's lines that exist, so only the ends of a line need conditions. A gradient takes
the elements of an input line apart by their phase, the remainder by the stride: elements of one phase lie in neighbouring
windows, so cotangents are read where they lie; a thread's own array puts the phases together again. Small images, and
whatever this file does not know, go through pool.py alone, which writes a window out as one expression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.codegen.elementwise import least
from graphc.codegen.expr import Expr, cast, const, equal, index, load, logical_and, select, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.across import innermost
from graphc.codegen.lower.affine import greatest_of, least_of
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_extents,
    minimum,
    split_coords,
    store_results,
    sweep,
)
from graphc.codegen.lower.pieces import following
from graphc.codegen.lower.pool import TRUE, Window, total_dtype
from graphc.codegen.lower.pull import Bound, Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import I32, DType, size_of

BYTES = 128  # of a vector: two registers, which do not wait for each other
ROWS = 16  # lines of an item
BLOCK = 2048  # windows of a line in one item
MOST_GROUPS = 4  # vectors that make up a literal line
MOST_STRIDE, MOST_WIDE = 8, 16  # phases whose elements are put together by shuffles; window positions written out
FORWARD, GRADIENT = ("max_pool", "sum_pool"), ("max_pool_grad", "sum_pool_grad")


def pooled(group: Function) -> Operation | None:
    """The pooling operation of a map group whose results are computed from its current element."""
    ops = [op for op in group.ops if op.name in FORWARD + GRADIENT or op.name == "max_pool_take"]
    shape = group.results[0].type.shape
    if len(ops) != 1 or ops[0].name == "max_pool_take" or any(r.type.shape != shape for r in group.results):
        return None
    (op,) = ops
    a = op.attrs
    if op.results[0].type.shape != shape or innermost(shape) != len(shape) - 1 or a["window"][-1] > MOST_WIDE:
        return None
    if op.name in GRADIENT and (a["strides"][-1] > MOST_STRIDE or any(d != 1 for d in a["dilation"])):
        return None
    return op if following(group, op) is not None else None


def windows_of(op: Operation) -> int:
    """How many elements of windows, or windows of an element, a pooling operation goes through; 0 for any other."""
    if op.name not in FORWARD + GRADIENT:
        return 0
    a = op.attrs
    steps = a["strides"] if op.name in GRADIENT and all(d == 1 for d in a["dilation"]) else (1,) * len(a["window"])
    return math.prod(-(-n // s) for n, s in zip(a["window"], steps, strict=True))


class _Lines:
    """One kernel in the making."""

    def __init__(self, group: Function, op: Operation, pull: Pull, targets: Sequence[tuple[Value, Buffer]]) -> None:
        self.group, self.op, self.pull, self.targets = group, op, pull, targets
        self.shape = group.results[0].type.shape
        self.names = Names()
        source, result = op.operands[0].type, op.results[0].type
        forward = op.name in FORWARD
        self.w = Window(op, source.shape if forward else result.shape, result.shape if forward else source.shape)
        self.lead = len(self.shape) - self.w.rank
        self.dtype: DType = total_dtype(result.dtype) if op.name != "max_pool" else result.dtype
        self.lanes = BYTES // max(4, self.dtype.itemsize)
        self.local = Buffer("phases", self.dtype, "local")

    def pulled(self, body: list[Stmt], value: Value, coords: Sequence[Expr]) -> Expr:
        """The element of an operand, by a name; its checks and the name go to `body`."""
        e = self.pull.at(value, Position(value.type.shape, coords))
        name = self.names.fresh("e", e.dtype)
        body += [*self.pull.take_reports(), Let(name, e)]
        return name

    def results(self, values: Sequence[Expr], coords: Sequence[Expr]) -> list[Stmt]:
        """Stores of the group's results, the operation's own being `values`."""
        for r, e in zip(self.op.results, values):
            self.pull.bind(r, always(e))
        return store_results(self.pull, self.targets, tuple(coords), self.shape, names=self.names)

    def loops(self, coords: Sequence[Expr], gradient: bool) -> list[tuple[Expr, Expr, Expr]]:
        """(variable, first, end) for each window dimension but the last: window positions whose input exists, or for
        a gradient the windows that hold the element at `coords`."""
        found = []
        for d in range(self.w.rank - 1):
            low, s, size = dim_expr(self.w.padding[d][0]), self.w.strides[d], self.w.sizes[d]
            here = coords[self.lead + d]
            v = self.names.fresh("o" if gradient else "p")
            if gradient:
                at = here + low
                first = greatest_of(at - (size - s), index(0)) // s
                found.append((v, first, least_of(at // s + 1, dim_expr(self.w.output[d]))))
                continue
            reach, start = self.w.dilation[d], here * s - low
            first, end = index(0), index(size)
            if self.w.padding[d][0] != 0:
                first = ceil_div(greatest_of(index(0) - start, index(0)), reach)
            if self.w.padding[d][1] != 0:
                left = ceil_div(greatest_of(dim_expr(self.w.input[d]) - start, index(0)), reach)
                end = least_of(end, left)
            found.append((v, first, end))
        return found

    def around(self, loops: Sequence[tuple[Expr, Expr, Expr]], body: list[Stmt]) -> list[Stmt]:
        for v, first, end in reversed(loops):
            short = first.op == end.op == "const" and end.data - first.data <= 2
            body = [For(v, first, end, tuple(body), index(1), unroll=short)]
        return body

    def certain(self) -> bool:
        """Whether every window has an element: see ir/ops/pool.py for where windows may lie."""
        pairs = zip(self.w.padding, self.w.sizes, self.w.dilation, self.w.input, strict=True)
        return all(
            d == 1 and isinstance(n, int) and n > 0 and isinstance(low, int) and isinstance(high, int) and max(low, high) < k
            for (low, high), k, d, n in pairs
        ) or all(p == (0, 0) for p in self.w.padding)

    def windows(self, coords: Sequence[Expr]) -> list[Stmt]:
        """Statements of a vector region: the windows at `coords`, of which the last one varies, and what is computed from them."""
        op, w, names = self.op, self.w, self.names
        loops = self.loops(coords, False)
        last = w.rank - 1
        outer = [self.padded(d, coords[self.lead + d], v) for d, (v, _, _) in enumerate(loops)]
        columns = [w.element(last, coords[-1], p) for p in range(w.sizes[last])]
        maximum = op.name == "max_pool"
        dtype = self.dtype
        total = names.fresh("total", dtype)
        start = const(dtype, -0.0) if dtype.is_float else const(dtype, 0)
        if maximum:
            start = const(dtype, float("-inf")) if dtype.is_float else const(dtype, least(dtype))
        indexed = maximum and self.reads(op.results[1])
        exists = TRUE
        if not self.certain():
            some = columns[0][1]
            for _, there in columns[1:]:
                some = some if some.op == "const" and some.data else (there if there.op == "const" and there.data else some | there)
            for _, first, end in loops:
                exists = logical_and(exists, first < end)
            exists = logical_and(exists, some)
        body: list[Stmt] = [Declare(total, start)]
        where, column = names.fresh("where", I32), const(I32, w.sizes[last] - 1)
        if indexed:
            # The first position that exists, should all elements be the lowest value.
            for p in reversed(range(w.sizes[last] - 1)):
                column = select(columns[p][1], const(I32, p), column)
            begin = cast(w.flat([*(first for _, first, _ in loops), index(0)]), I32) + column
            body.append(Declare(where, select(exists, begin, const(I32, -1))))
        # Within a line of the window a maximum of its own: lines then wait for each other once each.
        inside: list[Stmt] = []
        best, place = total, where
        if maximum and loops and w.sizes[last] > 1:
            best, place = names.fresh("best", dtype), names.fresh("place", I32)
            inside.append(Declare(best, start))
            if indexed:
                inside.append(Declare(place, cast(w.flat([*(v for v, _, _ in loops), index(0)]), I32) + column))
        for p, (c, there) in enumerate(columns):
            each: list[Stmt] = []
            e = self.pulled(each, op.operands[0], [*coords[: self.lead], *outer, c])
            if maximum:
                k = cast(w.flat([*(v for v, _, _ in loops), index(p)]), I32)
                each += self.larger(best, place if indexed else None, e, k)
            else:
                each.append(Assign(total, total + cast(e, dtype)))
            inside += each if there.op == "const" and there.data else [If(there, tuple(each))]
        if best is not total:
            inside += self.larger(total, where if indexed else None, best, place)
        body += self.around(loops, inside)
        value = total if maximum else cast(select(exists, total, const(dtype, 0)), op.results[0].type.dtype)
        return [*body, *self.results([value, where] if maximum else [value], coords)]

    def larger(self, best: Expr, place: Expr | None, e: Expr, k: Expr) -> list[Stmt]:
        """The register `best` becomes e, and `place` k, where e is larger or the first NaN."""
        better = logical_and(~(e <= best), equal(best, best)) if e.dtype.is_float else e > best
        won = self.names.fresh("won", better.dtype)
        named: list[Stmt] = [Let(won, better), Assign(best, select(won, e, best))]
        return named if place is None else [*named, Assign(place, select(won, k, place))]

    def literal(self, coords: Sequence[Expr], first: Expr, end: Expr) -> tuple[Stmt, ...]:
        """`windows` for a vector whose place in the line is known."""
        lane = self.names.fresh("l")
        o = first + lane
        return (Vector(lane, self.lanes, (If(o < end, tuple(self.windows([*coords[:-1], o]))),)),)

    def padded(self, d: int, o: Expr, p: Expr) -> Expr:
        return o * self.w.strides[d] + p * self.w.dilation[d] - dim_expr(self.w.padding[d][0])

    def reads(self, value: Value) -> bool:
        return value in self.group.results or any(value in op.operands for op in self.group.ops)

    def gradient(self, coords: Sequence[Expr], first: Expr) -> list[Stmt]:
        """Statements: the elements of the line at `coords` whose windows' coordinates start at the multiple of lanes `first`."""
        op, w, names = self.op, self.w, self.names
        d, lane = w.rank - 1, names.fresh("l")
        low, stride, size = w.padding[d][0], w.strides[d], w.sizes[d]
        loops = self.loops(coords, True)
        windows = [v for v, _, _ in loops]
        outer = [coords[self.lead + k] + dim_expr(w.padding[k][0]) - v * w.strides[k] for k, v in enumerate(windows)]
        zero = const(self.dtype, 0)
        totals = [names.fresh("total", self.dtype) for _ in range(stride)]
        inside: list[Stmt] = []
        for back in reversed(range(-(-size // stride))):
            o = first + lane - back
            there = o < dim_expr(w.output[d])
            if back and (not isinstance(low, int) or low < back * stride):
                there = logical_and(o >= 0, there)
            at = [*coords[: self.lead], *windows, o]
            each: list[Stmt] = []
            e = cast(self.pulled(each, op.operands[0], at), self.dtype)
            held = self.pulled(each, op.operands[1], at) if len(op.operands) == 2 else None
            for phase, total in enumerate(totals[: size - back * stride]):
                value = total + e
                if held is not None:
                    here = equal(held, cast(w.flat([*outer, index(phase + back * stride)]), I32))
                    value = select(here, value, total)
                each.append(Assign(total, value))
            inside.append(If(there, tuple(each)))
        body = [Declare(t, zero) for t in totals] + self.around(loops, inside)
        body += [Store(self.local, index(phase * self.lanes) + lane, t) for phase, t in enumerate(totals)]
        begin, n = names.fresh("j"), dim_expr(self.shape[-1])

        def turn(masked: bool) -> tuple[Stmt, ...]:
            made: list[Stmt] = []
            for part in range(stride):
                own = names.fresh("l")
                place = own + part * self.lanes
                j = begin + place
                value = names.fresh("v", self.dtype)
                # Read for all lanes: it lies in the thread's own array.
                read = Let(value, load(self.local, place % stride * self.lanes + place // stride))
                stores = tuple(self.results([cast(value, op.results[0].type.dtype)], [*coords[:-1], j]))
                if masked:
                    stores = (If(logical_and(after(j), j < n), stores),)
                made.append(Vector(own, self.lanes, (read, *stores)))
            return tuple(made)

        def after(j: Expr) -> Expr:
            """Whether j is not before the line: it is where no padding, or a multiple of the stride, was taken off."""
            return TRUE if isinstance(low, int) and low % stride == 0 else j >= 0

        whole = logical_and(after(begin), begin + stride * self.lanes <= n)
        return [Vector(lane, self.lanes, tuple(body)), Let(begin, first * stride - dim_expr(low)), If(whole, turn(False), turn(True))]


def always(e: Expr) -> Bound:
    """The rule of a value that is read at the current element only."""
    return lambda at: e


def lower_pooling(
    group: Function, op: Operation, params: tuple[Buffer, ...], results: tuple[Buffer, ...], pull: Pull, work: int
) -> Lowered:
    """The kernel of a map group with the operation that `pooled` names. An item is a block of lines."""
    k = _Lines(group, op, pull, list(zip(group.results, results, strict=True)))
    shape, names = k.shape, k.names
    inner = len(shape) - 1
    rows = max((i for i, d in enumerate(shape[:-1]) if d != 1), default=None)
    forward = op.name in FORWARD
    n = dim_expr(shape[inner])
    low, stride = dim_expr(k.w.padding[-1][0]), k.w.strides[-1]
    # A gradient counts windows: those that would start at an element of the line.
    first = index(0) if forward else low // stride
    end = n if forward else (low + n - 1) // stride + 1
    blocks = ceil_div(end - first, BLOCK)
    item, block, rest, line = (names.fresh(s) for s in ("item", "block", "rest", "line"))
    lines = index(1) if rows is None else dim_expr(shape[rows])
    groups = ceil_div(lines, ROWS)
    outer = tuple(1 if i in (rows, inner) else d for i, d in enumerate(shape))
    part, image = names.fresh("part"), names.fresh("image")
    stmts, coords = split_coords(image, outer, names)
    start, stop = names.fresh("s"), names.fresh("t")
    here: list[Expr] = [line if i == rows else c for i, c in enumerate(coords)]
    m = names.fresh("m")
    inside: list[Stmt]
    if first.op == end.op == "const" and end.data - first.data <= MOST_GROUPS * k.lanes:
        # Literal windows: which lanes have which elements is known here.
        blocks, start, stop = index(1), first, end
        turns = tuple(k.gradient(here, m)) if not forward else k.literal(here, m, end)
        inside = [For(m, first, end, turns, index(k.lanes), unroll=True)]
    elif forward:
        inside = sweep(start, stop, k.lanes, names, lambda i, lane: k.windows([*here[:-1], i]))
    else:
        inside = [For(m, start, stop, tuple(k.gradient(here, m)), index(k.lanes))]
    body: list[Stmt] = [
        Let(block, item % blocks),
        Let(rest, item // blocks),
        Let(part, rest % groups * ROWS),
        Let(image, rest // groups),
        *stmts,
        *(Let(v, e) for v, e in ((start, block * BLOCK + first), (stop, minimum(start + BLOCK, end))) if v.op == "var"),
        For(line, part, minimum(part + ROWS, lines), tuple(inside), index(1)),
    ]
    images = dim_expr(size_of(outer))
    head: tuple[Stmt, ...] = () if forward else (Alloc(k.local, stride * k.lanes),)
    kernel = Kernel(
        name="pool",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=images * groups * blocks,
        work=images * lines * n * work,
        body=(*head, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))
