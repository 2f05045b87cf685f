"""Reductions along rows: the reduced dimensions are the innermost, lanes run along them."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.elementwise import reduction
from graphc.codegen.expr import Expr, children_first, equal, index, load, make, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Let, Stmt, Vector
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import (
    minimum,
    split_coords,
    take_reports,
)
from graphc.codegen.lower.rewrite import rewritten
from graphc.codegen.lower.row_group import (
    CHUNK,
    EXPENSIVE,
    LANE_OP,
    LANES,
    Added,
    RowGroup,
    accumulator,
    better,
    combine,
    finish,
    identity_of,
    ordered,
    same_value,
    stores_at,
    sweeps_of,
)
from graphc.codegen.lower.segments import within_segments
from graphc.ir.function import Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import BOOL, I64, size_of

WIDTH = 32  # of the sweep that only stores
_STAYS = frozenset(("broadcast", "full", "constant", "stop_gradient"))


def lower_rows(row: RowGroup, targets: list[tuple[Value, Buffer]]) -> tuple[list[Stmt], Expr]:
    item = row.names.fresh("row")
    head, row.kept = split_coords(item, row.kept_shape, row.names)
    loop = For(item, var("begin"), var("end"), (*head, *row_body(row, targets)), index(1))
    return [loop], dim_expr(size_of(row.kept_shape))


def row_body(row: RowGroup, targets: list[tuple[Value, Buffer]], added: Sequence[Added] = ()) -> list[Stmt]:
    """What is done for one row, whose coordinates are `row.kept`. added: reductions down the columns, each of which takes its
    elements in the first sweep that knows them."""
    cache = _cached_values(row, targets, [a.op.operands[0] for a in added])
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    full = [(v, b) for v, b in targets if row.is_full(v)]
    cached: set[Value] = set()
    body: list[Stmt] = []
    for level in range(1, depth + 1):
        ops = [op for op in row.reductions if row.levels[op.results[0]] == level]
        ready = [(v, b) for v, b in full if row.levels[v] == level - 1]
        full = [t for t in full if t not in ready]
        keep = [(v, b) for v, b in cache if v not in cached and row.levels[v] == level - 1]
        body += _row_level(row, ops, ready, keep, [a for a in added if row.levels[a.op.operands[0]] == level - 1])
        for v, b in keep:
            cached.add(v)
            row.pull.bind(v, lambda at, b=b: load(b, at.flat))  # type: ignore[misc]
    last = [a for a in added if row.levels[a.op.operands[0]] == depth]
    if full or last:
        body += _full_stores(row, full, last)
    return body + row.store_kept([t for t in targets if not row.is_full(t[0])])


def _full_stores(row: RowGroup, full: list[tuple[Value, Buffer]], added: Sequence[Added]) -> list[Stmt]:
    from graphc.codegen.lower.nest import sweep

    def body(i: Expr, lane: Expr) -> Sequence[Stmt]:
        return within_segments(without_bounds(row, stores_at(row, full, i, added), i), lane, WIDTH)

    return sweep(index(0), row.length, WIDTH, row.names, body)


def _row_level(
    row: RowGroup,
    ops: list[Operation],
    ready: list[tuple[Value, Buffer]],
    keep: list[tuple[Value, Buffer]],
    added: Sequence[Added],
) -> list[Stmt]:
    """One sweep: accumulate `ops` and what is `added`, store the full-shape results and cached values that are ready."""
    names = row.names
    plain = [op for op in ops if op.name not in ("argmax", "argmin")]
    positional = [op for op in ops if op.name in ("argmax", "argmin")]
    totals = []
    out: list[Stmt] = []
    for op in plain:
        identity, dtype = identity_of(op)
        total = names.fresh("total", dtype)
        totals.append(total)
        out.append(Declare(total, identity))
    chunk, stop, lane = names.fresh("chunk"), names.fresh("stop"), names.fresh("l")
    registers = [names.fresh("acc", t.dtype) for t in totals]
    region: list[Stmt] = [Declare(r, identity_of(op)[0]) for r, op in zip(registers, plain, strict=True)]

    def step(i: Expr) -> tuple[Stmt, ...]:
        stmts: list[Stmt] = []
        for r, op in zip(registers, plain, strict=True):
            stmts.append(Assign(r, combine(op, r, row.element(op, i))))
        stores = stores_at(row, [*ready, *keep], i, added)
        return without_bounds(row, (*take_reports(row.pull), *stmts, *stores), i)

    if plain or ready or keep or added:
        i, main = names.fresh("i"), names.fresh("m")
        region += [
            Let(main, (stop - chunk) // LANES * LANES + chunk),
            For(i, chunk, main, within_segments(step(i + lane), lane, LANES), index(LANES)),
            If(main < stop, (If(main + lane < stop, step(main + lane)),)),
        ]
        for r, t, op in zip(registers, totals, plain, strict=True):
            combined = make("lanes", r.dtype, (r,), LANE_OP[op.name])
            region.append(Assign(t, combine(op, t, combined)))
        body = (Let(stop, minimum(chunk + CHUNK, row.length)), Vector(lane, LANES, tuple(region)))
        out.append(For(chunk, index(0), row.length, body, index(CHUNK)))
    for t, op in zip(totals, plain, strict=True):
        row.bind(op, finish(op, t, row.length))
        if op.name == "max" and t.dtype is op.operands[0].type.dtype:
            row.maxima[t] = op
    for op in positional:
        out += _row_position(row, op)
    return out


def without_bounds(row: RowGroup, body: Sequence[Stmt], i: Expr) -> tuple[Stmt, ...]:
    """`body`, the statements at reduced position `i`, without upper bounds for what is negative anyway: elements less the greatest one
    of their row, of which a softmax takes exponentials."""
    if not row.maxima:
        return tuple(body)
    greatest = {total: row.element(op, i) for total, op in row.maxima.items()}
    take_reports(row.pull)  # which the sweep that found the greatest has seen
    done: dict[Expr, Expr] = {}

    def rewrite(e: Expr) -> Expr:
        for node in children_first((e,)):
            if node in done:
                continue
            x = _bounded(node) if node.op == "select" else None
            if x is not None and x.op == "sub" and greatest.get(x.args[1]) is x.args[0]:
                done[node] = done[x]
                continue
            args = tuple(done[a] for a in node.args)
            done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
        return done[e]

    return rewritten(body, rewrite)


def _bounded(e: Expr) -> Expr | None:
    """x, if `e` is x or a positive number that is less; else None."""
    cond, bound, x = e.args
    if cond.op != "gt" or cond.args[0] is not x or cond.args[1] is not bound or bound.op != "const" or not x.dtype.is_float:
        return None
    return x if 0 < bound.data < 1 << x.dtype.bits - 1 else None


def _row_position(row: RowGroup, op: Operation) -> list[Stmt]:
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
        is_better = names.fresh("better", BOOL)
        return (
            *take_reports(row.pull),
            Let(is_better, better(op.name, x, best, equal(where, far))),
            Assign(where, select(is_better, position, where)),
            Assign(best, select(is_better, x, best)),
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
        Let(winner, make("lanes", wide, (ordered(op.name, best),), "max" if op.name == "argmax" else "min")),
        Assign(total, make("lanes", I64, (select(same_value(best, winner), where, far),), "min")),
    )
    row.bind(op, total)
    return [Declare(total, index(0)), Vector(lane, LANES, region)]


def _cached_values(
    row: RowGroup, targets: list[tuple[Value, Buffer]], added: Sequence[Value]
) -> list[tuple[Value, Buffer]]:
    """Expensive full-shape values that several sweeps need, each with an output to keep it in.

    A result of the full shape and the same dtype that is stored in the last sweep serves as memory
    for one such value until then.
    """
    if not all(
        op.name in _STAYS or lookup(op.name).family in ("elementwise", "compare", "reduce")
        for op in row.group.ops
    ):
        return []  # something is read at another position, which may be overwritten by then
    depth = max(row.levels[op.results[0]] for op in row.reductions)
    free = [(v, b) for v, b in targets if row.is_full(v) and row.levels[v] == depth]
    candidates: list[tuple[Value, Buffer]] = []
    sweeps = sweeps_of(row, targets, added)
    for op in reversed(row.group.ops):
        if op.name not in EXPENSIVE:
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
