"""attention_grad: two kernels, each sum by one item alone, so that nothing is added up across threads.

- by the queries: an item is a block of queries and goes over the keys; lanes are queries;
- by the keys and values (attention_keys.py): an item is a block of keys and goes over the query heads that read its head and
  their queries; lanes are keys.
Both compute the weights again from logsumexp. Where there are heads enough for all threads, one kernel does both ("whole"): an item is a
head of the keys, and the sums by the queries wait in memory while the blocks of keys pass by, which is the same order. The definition is at the head of ir/ops/attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.expr import Expr, cast, const, equal, index, load, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.attention_blocks import KEYS, TILE, Blocks, Where, work_of
from graphc.codegen.lower.attention_keys import by_keys, sums_size
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.nest import ceil_div, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math.exponential import exp
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import I32

Targets = Mapping[Value, Buffer]


def gradient_kernels(
    group: Function, op: Operation, pull: Pull, targets: Targets, vector_bits: int, queries: int, whole: bool
) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
    """The kernels of those of dq, dk, dv that the group returns."""
    if whole and op.results[0] in targets:
        x = Blocks(pull, op, vector_bits, KEYS)
        scratch = Scratch(Buffer("sums_q", x.wide, "scratch"), x.wide, sums_size(x))
        return (by_keys(group, x, targets, scratch.buffer),), (scratch,)
    kernels = []
    if op.results[0] in targets:
        kernels.append(_by_queries(group, Blocks(pull, op, vector_bits, queries), targets))
    if op.results[1] in targets or op.results[2] in targets:
        kernels.append(by_keys(group, Blocks(pull, op, vector_bits, KEYS), targets, None))
    return tuple(kernels), ()


def _by_queries(group: Function, x: Blocks, targets: Targets) -> Kernel:
    """dq. Under causality what is hidden from a tile of queries is left out as attention_keys.py has it: the sums end with it."""
    q, k, v, scale, lse, delta, dout, *masks = x.op.operands
    dq = x.op.results[0]
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    deep, wide = x.padded(depth), x.padded(width)
    lanes, causal = x.queries, bool(x.op.attrs["causal"])
    zero, lowest = const(x.wide, 0.0), const(x.wide, float("-inf"))

    item, b, h, first, count, start, keys = (x.name(s) for s in ("item", "b", "h", "q", "queries", "k", "keys"))
    factor, n0, turn, again = x.name("scale", x.wide), x.name("n"), x.name("turn"), x.name("again", x.wide)
    seen, reach, rows_reach, moderate = (x.name(s) for s in ("seen", "reach", "rows", "moderate"))
    blocks = ceil_div(dim_expr(length), lanes)
    total_keys = dim_expr(k.type.shape[2])
    kh = x.key_head(h)
    rows = x.array("rows", lanes * max(deep, wide))
    columns, dout_columns = x.array("columns", deep * lanes), x.array("dout_columns", wide * lanes)
    key_block, value_block = x.array("keys", KEYS * deep), x.array("values", KEYS * wide)
    weights, slopes = x.array("weights", KEYS * TILE), x.array("slopes", KEYS * TILE)
    sums, row_lse, row_delta = x.array("sums", deep * lanes), x.array("lse", KEYS), x.array("delta", KEYS)
    found = x.array("found", TILE)
    where = Where(b, h, first, count, start, keys)
    mask = x.mask_tile(masks, where, n0)

    def put_scores(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        done: list[Stmt] = [Assign(t, x.score(t, factor, mask, r0 + i, lane)) for i, t in enumerate(totals)]
        if causal:
            limit = x.name("limit", I32)
            hide = (Assign(t, select(limit > i, t, lowest)) for i, t in enumerate(totals))
            crossing = Let(limit, cast(first + n0 + lane + 1 - start - r0, I32))
            done.append(If(start + r0 + (len(totals) - 1) > first + n0, (crossing, *hide)))
        return [*done, *(Store(weights, (r0 + i) * TILE + lane, t) for i, t in enumerate(totals))]

    def weigh(lane: Expr) -> list[Stmt]:
        r, z, some = x.name("r"), x.name("z", x.wide), 2
        at = [(r + i) * TILE + lane for i in range(some)]
        each = tuple(Store(weights, place, exp(load(weights, place) - z)) for place in at)
        return [Let(z, load(row_lse, n0 + lane)), For(r, index(0), rows_reach, each, index(some))]

    def put_slopes(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        at = [(r0 + i) * TILE + lane for i in range(len(totals))]
        return [Store(slopes, a, load(weights, a) * (t - load(row_delta, n0 + lane))) for a, t in zip(at, totals, strict=True)]

    def put_sums(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        done: list[Stmt] = [Store(sums, n0 * deep + (r0 + i) * TILE + lane, t) for i, t in enumerate(totals)]
        return [*done, If(reach < keys, tuple(x.note_zeros(found, lane, totals)))] if causal else done

    once: list[Stmt] = [
        Let(reach, select(equal(turn, 0) & (moderate > 0), seen, keys) if causal else keys),
        Let(rows_reach, x.whole_tiles(reach)),
        *x.fill_mask(mask, masks, where, n0, rows_reach),
        x.strip(
            x.most_rows, index(0), rows_reach, index(depth),
            lambda j, d: load(key_block, j * deep + d),
            lambda lane, d: load(columns, n0 * deep + d * TILE + lane),
            lambda j, lane: zero,
            put_scores,
        ),
        *x.lanes(TILE, weigh),
        x.strip(
            x.most_rows, index(0), rows_reach, index(width),
            lambda j, e: load(value_block, j * wide + e),
            lambda lane, e: load(dout_columns, n0 * wide + e * TILE + lane),
            lambda j, lane: zero,
            put_slopes,
        ),
        x.strip(
            x.tile_rows_of(deep), index(0), index(deep),
            lambda r0: (select(equal(turn, 0), index(0), seen) if causal else index(0), reach),
            lambda d, j: load(key_block, j * deep + d),
            lambda lane, j: load(slopes, j * TILE + lane),
            lambda d, lane: load(sums, n0 * deep + d * TILE + lane),
            put_sums,
        ),
    ]  # fmt: skip
    tile: list[Stmt] = [Let(turn, index(0)), *once]
    if causal:
        tile = [
            Let(seen, x.least(keys, first + n0 + TILE - start)),
            *x.lanes(TILE, lambda lane: [Store(found, lane, zero)]),
            Declare(again, zero),
            For(turn, index(0), index(2), (
                If(equal(turn, 0) | (again > 0), tuple(once)),
                *x.lanes(TILE, lambda lane: [Assign(again, x.any_lane(load(found, lane)))]),
            ), index(1)),
        ]  # fmt: skip
    inside: list[Stmt] = [
        Let(keys, x.least(total_keys - start, index(KEYS))),
        *x.copy(key_block, k, (b, kh), start, keys, KEYS),
        *x.copy(value_block, v, (b, kh), start, keys, KEYS),
    ]
    if causal:
        checks = x.moderate(moderate, [columns, dout_columns, key_block, value_block, row_lse, row_delta])
        inside += [Declare(moderate, index(0)), If(start + KEYS > first, tuple(checks))]
    inside.append(For(n0, index(0), count, tuple(tile), index(TILE)))
    at = x.name("at")
    stop = x.least(total_keys, first + count) if causal else total_keys
    body: list[Stmt] = [
        Let(h, (item // blocks) % dim_expr(heads)),
        Let(b, item // blocks // dim_expr(heads)),
        Let(first, x.paired(item % blocks, blocks) * lanes),
        Let(count, x.least(dim_expr(length) - first, index(lanes))),
        Let(factor, x.pull.at(scale, Position(()))),
        *x.copy(rows, q, (b, h), first, count, lanes),
        *x.turn_in(columns, rows, index(lanes), deep),
        *x.copy(rows, dout, (b, h), first, count, lanes),
        *x.turn_in(dout_columns, rows, index(lanes), wide),
        *x.fill_row(row_lse, lse, (b, h), first, count, KEYS, shifted=True),
        *x.fill_row(row_delta, delta, (b, h), first, count, KEYS),
        *x.clear(sums, index(0), index(deep), lanes),
        For(start, index(0), stop, tuple(inside), index(KEYS)),
        For(at, index(0), index(deep * lanes), tuple(
            x.lanes(TILE, lambda lane: [Store(sums, at + lane, load(sums, at + lane) * factor)])
        ), index(TILE)),
        *x.turn_out(rows, sums, count, deep),
        *x.put(targets[dq], dq.type.shape, rows, (b, h), first, count),
    ]  # fmt: skip
    return Kernel(
        name="attention_grad_q",
        buffers=(*x.pull.buffers.values(), targets[dq]),
        extents=group_extents(group),
        parallel=dim_expr(batch) * dim_expr(heads) * blocks,
        work=dim_expr(work_of(x.op, 2 * depth + width + 40)),
        body=(*x.allocations, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )
