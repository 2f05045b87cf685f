"""Row groups: reductions over the same dimensions of one domain, with their surroundings.

Reductions are ordered into levels (a level may read the results of lower ones); each level is one
sweep over the reduced dimensions, a last sweep stores what has the full shape. Two forms:

- rows: the reduced dimensions are the innermost; lanes run along them;
- columns: kept dimensions lie further in; lanes run along the last of them.

Both combine elements in the order that the bit contract fixes: lane i mod 32 within chunks of
4096, the lanes by halving, the chunks in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, cast, const, equal, index, load, make, not_equal, select, var
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, delinearise, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import (
    Names,
    ceil_div,
    group_buffers,
    group_extents,
    minimum,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import BF16, BOOL, F16, F32, I64, Dim, DType, Shape, size_of

LANES = 32
CHUNK = 4096
REDUCE = frozenset(("sum", "prod", "max", "min", "any", "all", "argmax", "argmin"))
_EXPENSIVE = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow", "atan2", "hypot", "logaddexp", "random_bits"]
)
_STAYS = frozenset(("broadcast", "full", "constant", "stop_gradient"))
_LANE_OP = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


def accumulator(dtype: DType) -> DType:
    """The dtype in which a reduction of `dtype` accumulates."""
    return F32 if dtype in (F16, BF16) else dtype


@dataclass
class _Row:
    """One row group while it is being lowered."""

    group: Function
    pull: Pull
    names: Names
    shape: Shape  # the reduced operand's shape
    axes: tuple[int, ...]
    kept: tuple[Expr, ...] = ()  # coordinates of the current item, one a kept dimension

    def __post_init__(self) -> None:
        self.kept_dims = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        self.kept_shape: Shape = tuple(self.shape[i] for i in self.kept_dims)
        self.length = dim_expr(size_of(self.shape[a] for a in self.axes))
        self.reductions = [op for op in self.group.ops if op.name in REDUCE]
        self.levels = self._levels()

    def _levels(self) -> dict[Value, int]:
        """For every value, how many reductions lie in a row below it."""
        level: dict[Value, int] = dict.fromkeys(self.group.params, 0)
        for op in self.group.ops:
            base = max((level[v] for v in op.operands), default=0)
            for r in op.results:
                level[r] = base + (op.name in REDUCE)
        return level

    def is_full(self, value: Value) -> bool:
        """Whether a result has the full shape (else the kept shape)."""
        return value.type.shape == self.shape

    def coords(self, i: Expr) -> tuple[Expr, ...]:
        """Domain coordinates of reduced position `i` at the current item."""
        reduced = delinearise(i, tuple(self.shape[a] for a in self.axes))
        out: list[Expr] = [index(0)] * len(self.shape)
        for a, c in zip(self.axes, reduced, strict=True):
            out[a] = c
        for d, c in zip(self.kept_dims, self.kept, strict=True):
            out[d] = c
        return tuple(out)

    def element(self, op: Operation, i: Expr) -> Expr:
        """The operand of reduction `op` at reduced position `i`, in the accumulator's dtype."""
        x = self.pull.at(op.operands[0], Position(self.shape, self.coords(i)))
        return cast(x, accumulator(x.dtype))

    def flat_kept(self) -> Expr:
        return Position(self.kept_shape, self.kept).flat

    def bind(self, op: Operation, value: Expr) -> None:
        """`value` is the result of `op` at the current item from now on."""
        dtype = op.results[0].type.dtype
        self.pull.bind(op.results[0], lambda at: cast(value, dtype))

    def store_kept(self, targets: list[tuple[Value, Buffer]]) -> list[Stmt]:
        out: list[Stmt] = []
        for value, buffer in targets:
            if not self.is_full(value) or not self.axes:
                at = Position(self.kept_shape, self.kept).reshaped(value.type.shape)
                out.append(Store(buffer, at.flat, self.pull.at(value, at)))
        return [*take_reports(self.pull), *out]


def lower_reduce(group: Function, hint: dict[str, int]) -> Lowered:
    """The kernels of a row group. `hint` gives likely values of the extents."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    first = next(op for op in group.ops if op.name in REDUCE)
    axes = first.attrs["axes"] if "axes" in first.attrs else (first.attrs["axis"],)
    row = _Row(group, pull, Names(), first.operands[0].type.shape, tuple(axes))
    targets = list(zip(group.results, results, strict=True))
    if partitioned(group, hint):
        return _lower_partitioned(row, params, results, targets)
    columns = is_columns(row.shape, row.axes)
    body, parallel = (_columns if columns else _rows)(row, targets)
    kernel = Kernel(
        name="columns" if columns else "rows",
        buffers=(*params, *results),
        extents=group_extents(group),
        parallel=parallel,
        work=dim_expr(size_of(row.shape)) * work_of(group),
        body=tuple(body),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def is_columns(shape: Shape, axes: tuple[int, ...]) -> bool:
    return any(d != 1 for d in shape[max(axes) + 1 :]) if axes else False


def partitioned(group: Function, hint: dict[str, int]) -> bool:
    """Whether the chunks of a row are worth distributing over threads: few rows, long ones.

    Part of the choice of kernel, hence of its key.
    """
    ops = [op for op in group.ops if op.name in REDUCE]
    first = ops[0]
    axes = first.attrs["axes"] if "axes" in first.attrs else (first.attrs["axis"],)
    shape = first.operands[0].type.shape
    level_one = all(
        not any(u.name in REDUCE for u in _ancestors(group, op)) and op.name not in ("argmax", "argmin")
        for op in ops
    )
    if not level_one or any(r.type.shape == shape for r in group.results):
        return False

    def value(dims: Shape) -> int:
        from graphc.ir.types import substitute

        d = substitute(size_of(dims), hint)
        return d if isinstance(d, int) else 64

    length = value(tuple(shape[a] for a in axes))
    rows = value(tuple(d for i, d in enumerate(shape) if i not in axes))
    lanes = value((shape[-1],)) if is_columns(shape, tuple(axes)) else 1
    return length >= 4 * CHUNK and rows // max(1, min(lanes, LANES)) < 16


def _ancestors(group: Function, op: Operation) -> list[Operation]:
    producer = {r: o for o in group.ops for r in o.results}
    seen: set[Operation] = set()
    stack = [producer[v] for v in op.operands if v in producer]
    while stack:
        o = stack.pop()
        if o not in seen:
            seen.add(o)
            stack.extend(producer[v] for v in o.operands if v in producer)
    return list(seen)


def _identity(op: Operation) -> tuple[Expr, DType]:
    dtype = accumulator(op.operands[0].type.dtype)
    return reduction(op.name, dtype)[0], dtype


def _combine(op: Operation, acc: Expr, x: Expr) -> Expr:
    return reduction(op.name, accumulator(op.operands[0].type.dtype))[1](acc, x)


def _finish(op: Operation, total: Expr, length: Expr) -> Expr:
    """The value of a reduction from its combined chunks: an empty sum is +0.0."""
    if op.name == "sum" and total.dtype.is_float:
        return select(equal(length, 0), const(total.dtype, 0.0), total)
    return total


# ------------------------------------------------------------------ rows


def _rows(row: _Row, targets: list[tuple[Value, Buffer]]) -> tuple[list[Stmt], Expr]:
    item = row.names.fresh("row")
    body, row.kept = split_coords(item, row.kept_shape, row.names)
    cache = _cached_values(row, targets)
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    full = [(v, b) for v, b in targets if row.is_full(v)]
    cached: set[Value] = set()
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [(v, b) for v, b in full if row.levels[v] == level - 1]
        full = [t for t in full if t not in ready]
        keep = [(v, b) for v, b in cache if v not in cached and row.levels[v] == level - 1]
        body += _row_level(row, ops, ready, keep)
        for v, b in keep:
            cached.add(v)
            row.pull.bind(v, lambda at, b=b: load(b, at.flat))  # type: ignore[misc]
    if full:
        lane_body = _full_stores(row, full)
        body += lane_body
    body += row.store_kept([t for t in targets if not row.is_full(t[0])])
    loop = For(item, var("begin"), var("end"), tuple(body), index(1))
    return [loop], dim_expr(size_of(row.kept_shape))


def _full_stores(row: _Row, full: list[tuple[Value, Buffer]]) -> list[Stmt]:
    from graphc.codegen.lower.nest import sweep

    return sweep(index(0), row.length, 16, row.names, lambda i, lane: _stores_at(row, full, i))


def _stores_at(row: _Row, full: list[tuple[Value, Buffer]], i: Expr) -> list[Stmt]:
    """Stores at reduced position `i`. All values come first: one may be read from the memory of another."""
    at = Position(row.shape, row.coords(i))
    named = [(row.names.fresh("v", v.type.dtype), b, row.pull.at(v, at)) for v, b in full]
    lets = [Let(name, value) for name, _, value in named]
    return [*take_reports(row.pull), *lets, *(Store(b, at.flat, name) for name, b, _ in named)]


def _row_level(
    row: _Row,
    ops: list[Operation],
    ready: list[tuple[Value, Buffer]],
    keep: list[tuple[Value, Buffer]],
) -> list[Stmt]:
    """One sweep: accumulate `ops`, store the full-shape results and cached values that are ready."""
    names = row.names
    plain = [op for op in ops if op.name not in ("argmax", "argmin")]
    positional = [op for op in ops if op.name in ("argmax", "argmin")]
    totals = []
    out: list[Stmt] = []
    for op in plain:
        identity, dtype = _identity(op)
        total = names.fresh("total", dtype)
        totals.append(total)
        out.append(Declare(total, identity))
    chunk, stop, lane = names.fresh("chunk"), names.fresh("stop"), names.fresh("l")
    registers = [names.fresh("acc", t.dtype) for t in totals]
    region: list[Stmt] = [Declare(r, _identity(op)[0]) for r, op in zip(registers, plain, strict=True)]

    def step(i: Expr) -> tuple[Stmt, ...]:
        stmts: list[Stmt] = []
        for r, op in zip(registers, plain, strict=True):
            stmts.append(Assign(r, _combine(op, r, row.element(op, i))))
        stores = _stores_at(row, [*ready, *keep], i)
        return (*take_reports(row.pull), *stmts, *stores)

    if plain or ready or keep:
        i, main = names.fresh("i"), names.fresh("m")
        region += [
            Let(main, (stop - chunk) // LANES * LANES + chunk),
            For(i, chunk, main, step(i + lane), index(LANES)),
            If(main < stop, (If(main + lane < stop, step(main + lane)),)),
        ]
        for r, t, op in zip(registers, totals, plain, strict=True):
            combined = make("lanes", r.dtype, (r,), _LANE_OP[op.name])
            region.append(Assign(t, _combine(op, t, combined)))
        body = (Let(stop, minimum(chunk + CHUNK, row.length)), Vector(lane, LANES, tuple(region)))
        out.append(For(chunk, index(0), row.length, body, index(CHUNK)))
    for t, op in zip(totals, plain, strict=True):
        row.bind(op, _finish(op, t, row.length))
    for op in positional:
        out += _row_position(row, op)
    return out


def _row_position(row: _Row, op: Operation) -> list[Stmt]:
    """argmax / argmin: the first position of the extreme value; the first NaN wins."""
    names = row.names
    dtype = op.operands[0].type.dtype
    wide = accumulator(dtype)
    lane, i = names.fresh("l"), names.fresh("i")
    best, where = names.fresh("best", wide), names.fresh("where")
    total = names.fresh("total")
    far = index(2**62)

    def step(position: Expr) -> tuple[Stmt, ...]:
        x = row.element(op, position)
        better = names.fresh("better", BOOL)
        return (
            *take_reports(row.pull),
            Let(better, _better(op.name, x, best, equal(where, far))),
            Assign(where, select(better, position, where)),
            Assign(best, select(better, x, best)),
        )

    main = names.fresh("m")
    start = reduction("max" if op.name == "argmax" else "min", wide)[0]
    winner = names.fresh("winner", wide)
    region = (
        Declare(best, start),
        Declare(where, far),
        Let(main, row.length // LANES * LANES),
        For(i, index(0), main, step(i + lane), index(LANES)),
        If(main < row.length, (If(main + lane < row.length, step(main + lane)),)),
        Let(winner, make("lanes", wide, (_ordered(op.name, best),), "max" if op.name == "argmax" else "min")),
        Assign(total, make("lanes", I64, (select(_same(best, winner), where, far),), "min")),
    )
    row.bind(op, total)
    return [Declare(total, index(0)), Vector(lane, LANES, region)]


def _ordered(name: str, x: Expr) -> Expr:
    if x.dtype is BOOL:
        raise TypeError(f"{name} of bool is computed on integers: cast first")
    return x


def _better(name: str, x: Expr, best: Expr, unset: Expr) -> Expr:
    greater = x > best if name == "argmax" else x < best
    better = greater | unset
    if x.dtype.is_float:
        better = better | (not_equal(x, x) & equal(best, best))
    return better


def _same(best: Expr, winner: Expr) -> Expr:
    same = equal(best, winner)
    if best.dtype.is_float:
        same = same | (not_equal(best, best) & not_equal(winner, winner))
    return same


def _cached_values(row: _Row, targets: list[tuple[Value, Buffer]]) -> list[tuple[Value, Buffer]]:
    """Expensive full-shape values that several sweeps need, each with an output to keep it in.

    A result of the full shape and the same dtype that is stored in the last sweep serves as memory
    for one such value until then.
    """
    if not all(op.name in _STAYS or lookup(op.name).family in ("elementwise", "compare", "reduce") for op in row.group.ops):
        return []  # something is read at another position, which may be overwritten by then
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    free = [(v, b) for v, b in targets if row.is_full(v) and row.levels[v] == depth]
    candidates: list[tuple[Value, Buffer]] = []
    sweeps: dict[Value, set[int]] = {}
    producer = {r: op for op in row.group.ops for r in op.results}

    def visit(root: Value, sweep: int) -> None:
        stack = [root]
        while stack:
            v = stack.pop()
            if sweep in sweeps.setdefault(v, set()):
                continue
            sweeps[v].add(sweep)
            op = producer.get(v)
            if op is not None and op.name not in REDUCE:
                stack += op.operands

    for op in row.reductions:
        visit(op.operands[0], row.levels[op.results[0]])
    for v, _ in targets:
        if row.is_full(v):
            visit(v, row.levels[v] + 1)
    for op in reversed(row.group.ops):
        if op.name not in _EXPENSIVE:
            continue
        v = op.results[0]
        needed = sweeps.get(v, set())
        if len(needed) < 2 or not row.is_full(v) or min(needed) != row.levels[v] + 1:
            continue
        for i, (target, buffer) in enumerate(free):
            if target.type.dtype is v.type.dtype and target is not v:
                candidates.append((v, buffer))
                del free[i]
                break
    return candidates


# ------------------------------------------------------------------ columns

COLUMN_WIDTH = 16


def _columns(row: _Row, targets: list[tuple[Value, Buffer]]) -> tuple[list[Stmt], Expr]:
    names = row.names
    lane_dim = max(d for d in row.kept_dims if row.shape[d] != 1)
    n = dim_expr(row.shape[lane_dim])
    outer = tuple(1 if d == lane_dim else row.shape[d] for d in row.kept_dims)
    blocks = ceil_div(n, COLUMN_WIDTH)
    item, lane = names.fresh("item"), names.fresh("l")
    rest, block = names.fresh("rest"), names.fresh("block")
    body: list[Stmt] = [Let(rest, item // blocks), Let(block, item % blocks)]
    stmts, coords = split_coords(rest, outer, names)
    body += stmts
    column = block * COLUMN_WIDTH + lane
    row.kept = tuple(
        column if d == lane_dim else c for d, c in zip(row.kept_dims, coords, strict=True)
    )
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    inside: list[Stmt] = []
    allocs: list[Stmt] = []
    full = [(v, b) for v, b in targets if row.is_full(v)]
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [(v, b) for v, b in full if row.levels[v] == level - 1]
        full = [t for t in full if t not in ready]
        more, code = _column_level(row, ops, ready, lane)
        allocs += more
        inside += code
    if full:
        i = names.fresh("i")
        inside.append(For(i, index(0), row.length, tuple(_stores_at(row, full, i)), index(1)))
    inside += row.store_kept([t for t in targets if not row.is_full(t[0])])
    body += [Vector(lane, COLUMN_WIDTH, (If(column < n, tuple(inside)),))]
    loop = For(item, var("begin"), var("end"), tuple(body), index(1))
    return [*allocs, loop], dim_expr(size_of(outer)) * blocks


def _column_level(
    row: _Row, ops: list[Operation], ready: list[tuple[Value, Buffer]], lane: Expr
) -> tuple[list[Stmt], list[Stmt]]:
    """One sweep down the columns; lane accumulators of the reduction live in a local array."""
    names = row.names
    plain = [op for op in ops if op.name not in ("argmax", "argmin")]
    allocs: list[Stmt] = []
    out: list[Stmt] = []
    totals: list[Expr] = []
    arrays: list[Buffer] = []
    for op in plain:
        identity, dtype = _identity(op)
        total = names.fresh("total", dtype)
        array = Buffer(f"lanes_{total.data}", dtype, "local")
        totals.append(total)
        arrays.append(array)
        allocs.append(Alloc(array, LANES * COLUMN_WIDTH))
        out.append(Declare(total, identity))
    chunk, stop, i, j = names.fresh("chunk"), names.fresh("stop"), names.fresh("i"), names.fresh("j")

    def slot(k: Expr) -> Expr:
        return k * COLUMN_WIDTH + lane

    if plain or ready:
        k = names.fresh("k")
        clear = [Store(a, slot(k), _identity(op)[0]) for a, op in zip(arrays, plain, strict=True)]
        accumulate: list[Stmt] = []
        for a, op in zip(arrays, plain, strict=True):
            accumulate.append(Store(a, slot(j), _combine(op, load(a, slot(j)), row.element(op, i))))
        checks = take_reports(row.pull)
        stores = _stores_at(row, ready, i)
        sweep_body: list[Stmt] = [Let(j, (i - chunk) % LANES), *checks, *accumulate, *stores]
        halve: list[Stmt] = []
        half = LANES // 2
        while half:
            h = names.fresh("h")
            halve.append(
                For(
                    h,
                    index(0),
                    index(half),
                    tuple(
                        Store(a, slot(h), _combine(op, load(a, slot(h)), load(a, slot(h + half))))
                        for a, op in zip(arrays, plain, strict=True)
                    ),
                    index(1),
                )
            )
            half //= 2
        finish = [
            Assign(t, _combine(op, t, load(a, lane)))
            for a, t, op in zip(arrays, totals, plain, strict=True)
        ]
        body = [
            Let(stop, minimum(chunk + CHUNK, row.length)),
            *([For(k, index(0), index(LANES), tuple(clear), index(1))] if plain else []),
            For(i, chunk, stop, tuple(sweep_body), index(1)),
            *(halve if plain else []),
            *finish,
        ]
        out.append(For(chunk, index(0), row.length, tuple(body), index(CHUNK)))
    for t, op in zip(totals, plain, strict=True):
        row.bind(op, _finish(op, t, row.length))
    for op in ops:
        if op.name in ("argmax", "argmin"):
            out += _column_position(row, op)
    return allocs, out


def _column_position(row: _Row, op: Operation) -> list[Stmt]:
    names = row.names
    wide = accumulator(op.operands[0].type.dtype)
    best, where, i = names.fresh("best", wide), names.fresh("where"), names.fresh("i")
    x = row.element(op, i)
    better = names.fresh("better", BOOL)
    body = (
        *take_reports(row.pull),
        Let(better, _better(op.name, x, best, equal(where, index(-1)))),
        Assign(where, select(better, i, where)),
        Assign(best, select(better, x, best)),
    )
    row.bind(op, where)
    start = reduction("max" if op.name == "argmax" else "min", wide)[0]
    return [Declare(best, start), Declare(where, index(-1)), For(i, index(0), row.length, body, index(1))]


# ------------------------------------------------------------------ chunks over threads


def _lower_partitioned(
    row: _Row,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    targets: list[tuple[Value, Buffer]],
) -> Lowered:
    """Two kernels: partial results for each (item, chunk), then their combination in order."""
    chunks = ceil_div(row.length, CHUNK)
    partials: list[tuple[Operation, Buffer]] = []
    scratch: list[Scratch] = []
    total_rows: Dim = size_of(row.kept_shape)
    length: Dim = size_of(row.shape[a] for a in row.axes)
    for op in row.reductions:
        dtype = _identity(op)[1]
        buffer = Buffer(f"partial{len(partials)}", dtype, "scratch")
        partials.append((op, buffer))
        scratch.append(Scratch(buffer, dtype, total_rows * ((length + (CHUNK - 1)) // CHUNK)))
    extents = group_extents(row.group)
    columns = is_columns(row.shape, row.axes)
    first, parallel = (_column_partials if columns else _row_partials)(row, partials, chunks)
    gather = Kernel(
        "partials",
        (*params, *(b for _, b in partials)),
        extents,
        parallel,
        dim_expr(size_of(row.shape)) * work_of(row.group),
        tuple(first),
    )
    # The second kernel: one item a row.
    item = row.names.fresh("row")
    body, row.kept = split_coords(item, row.kept_shape, row.names)
    c = row.names.fresh("chunk")
    flat = row.flat_kept()
    for op, buffer in partials:
        identity, dtype = _identity(op)
        total = row.names.fresh("total", dtype)
        part = load(buffer, flat * chunks + c)
        body += [
            Declare(total, identity),
            For(c, index(0), chunks, (Assign(total, _combine(op, total, part)),), index(1)),
        ]
        row.bind(op, _finish(op, total, row.length))
    body += row.store_kept(targets)
    combine = Kernel(
        "combine",
        (*params, *(b for _, b in partials), *results),
        extents,
        dim_expr(total_rows),
        dim_expr(total_rows) * chunks,
        (For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((gather, combine), params, results, tuple(scratch), tuple(row.pull.sites))


def _row_partials(
    row: _Row, partials: list[tuple[Operation, Buffer]], chunks: Expr
) -> tuple[list[Stmt], Expr]:
    names = row.names
    item, r, c = names.fresh("item"), names.fresh("row"), names.fresh("chunk")
    start, stop, lane, i, main = (names.fresh(s) for s in ("start", "stop", "l", "i", "m"))
    body: list[Stmt] = [Let(r, item // chunks), Let(c, item % chunks)]
    stmts, row.kept = split_coords(r, row.kept_shape, names)
    body += [*stmts, Let(start, c * CHUNK), Let(stop, minimum(start + CHUNK, row.length))]
    registers = [names.fresh("acc", _identity(op)[1]) for op, _ in partials]

    def step(position: Expr) -> tuple[Stmt, ...]:
        stmts = [
            Assign(a, _combine(op, a, row.element(op, position)))
            for a, (op, _) in zip(registers, partials, strict=True)
        ]
        return (*take_reports(row.pull), *stmts)

    region: list[Stmt] = [Declare(a, _identity(op)[0]) for a, (op, _) in zip(registers, partials, strict=True)]
    region += [
        Let(main, (stop - start) // LANES * LANES + start),
        For(i, start, main, step(i + lane), index(LANES)),
        If(main < stop, (If(main + lane < stop, step(main + lane)),)),
    ]
    flat = row.flat_kept()
    for a, (op, buffer) in zip(registers, partials, strict=True):
        region.append(Store(buffer, flat * chunks + c, make("lanes", a.dtype, (a,), _LANE_OP[op.name])))
    body.append(Vector(lane, LANES, tuple(region)))
    return [For(item, var("begin"), var("end"), tuple(body), index(1))], dim_expr(
        size_of(row.kept_shape)
    ) * chunks


def _column_partials(
    row: _Row, partials: list[tuple[Operation, Buffer]], chunks: Expr
) -> tuple[list[Stmt], Expr]:
    names = row.names
    lane_dim = max(d for d in row.kept_dims if row.shape[d] != 1)
    n = dim_expr(row.shape[lane_dim])
    outer = tuple(1 if d == lane_dim else row.shape[d] for d in row.kept_dims)
    blocks = ceil_div(n, COLUMN_WIDTH)
    item, c, rest, block, lane = (names.fresh(s) for s in ("item", "chunk", "rest", "block", "l"))
    start, stop, i, j, k = (names.fresh(s) for s in ("start", "stop", "i", "j", "k"))
    body: list[Stmt] = [
        Let(c, item % chunks),
        Let(rest, item // chunks // blocks),
        Let(block, item // chunks % blocks),
        Let(start, c * CHUNK),
        Let(stop, minimum(start + CHUNK, row.length)),
    ]
    stmts, coords = split_coords(rest, outer, names)
    body += stmts
    column = block * COLUMN_WIDTH + lane
    row.kept = tuple(column if d == lane_dim else x for d, x in zip(row.kept_dims, coords, strict=True))
    allocs: list[Stmt] = []
    arrays: list[Buffer] = []
    for op, buffer in partials:
        array = Buffer(f"lanes_{buffer.name}", _identity(op)[1], "local")
        arrays.append(array)
        allocs.append(Alloc(array, LANES * COLUMN_WIDTH))
    triples = [(op, b, a) for (op, b), a in zip(partials, arrays, strict=True)]

    def slot(at: Expr) -> Expr:
        return at * COLUMN_WIDTH + lane

    inside: list[Stmt] = [
        For(k, index(0), index(LANES), tuple(Store(a, slot(k), _identity(op)[0]) for op, _, a in triples), index(1))
    ]
    accumulate = [
        Store(a, slot(j), _combine(op, load(a, slot(j)), row.element(op, i))) for op, _, a in triples
    ]
    inside.append(
        For(i, start, stop, (Let(j, (i - start) % LANES), *take_reports(row.pull), *accumulate), index(1))
    )
    half = LANES // 2
    while half:
        h = names.fresh("h")
        stores = tuple(
            Store(a, slot(h), _combine(op, load(a, slot(h)), load(a, slot(h + half)))) for op, _, a in triples
        )
        inside.append(For(h, index(0), index(half), stores, index(1)))
        half //= 2
    flat = row.flat_kept()
    inside += [Store(b, flat * chunks + c, load(a, lane)) for _, b, a in triples]
    body.append(Vector(lane, COLUMN_WIDTH, (If(column < n, tuple(inside)),)))
    loop = For(item, var("begin"), var("end"), tuple(body), index(1))
    return [*allocs, loop], dim_expr(size_of(outer)) * blocks * chunks
