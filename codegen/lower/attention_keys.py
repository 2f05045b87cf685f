"""The gradients of attention by keys and values, and in one kernel with them those by queries ("whole").

An item is a block of 64 keys, or all blocks of a head one after the other; it goes over the query heads that read its
head and their blocks of 64 queries, in tiles of 16 keys: weights and slopes (ds) are [query][key], lanes are keys. The
sums by queries wait in memory while the blocks of keys pass by.

Where queries and keys of a block cross under causality, the queries before a tile of keys have weights of 0 and slopes
of 0 of some sign. Such products change a sum only if a factor is not finite or the sum is -0.0, so they are left out if
the operands are moderate and the sums are not -0.0. The sums by keys begin with them, from +0.0 as a rule; those by queries end with
them: if one is -0.0 there, all slopes are computed after all, and what was left out follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.codegen.elementwise import convert
from graphc.codegen.expr import (
    Expr,
    cast,
    const,
    equal,
    index,
    load,
    select,
    var,
)
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.attention_blocks import KEYS, TILE, Blocks, work_of
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.nest import ceil_div, group_extents
from graphc.codegen.math.exponential import exp
from graphc.ir.function import Function, Value
from graphc.ir.types import I32, Dim, size_of

Step = Callable[[Expr, Expr], list[Stmt]]


def sums_size(x: Blocks) -> Dim:
    """Elements of the sums by queries: every head has room for whole blocks."""
    batch, heads, length = x.op.operands[0].type.shape[:3]
    return size_of((batch, heads, length + KEYS, x.padded(x.sizes[0])))


def by_keys(group: Function, x: Blocks, targets: Mapping[Value, Buffer], sums_q: Buffer | None) -> Kernel:
    """dk and dv; an item is a block of keys or, with dq, whose sums are in `sums_q`, all keys of a head."""
    q, k, v, scale, lse, delta, dout, *masks = x.op.operands
    dq, dk, dv = x.op.results
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    deep, wide = x.padded(depth), x.padded(width)
    grouped, causal = heads != k.type.shape[1], bool(x.op.attrs["causal"])
    zero, lowest = const(x.wide, 0.0), const(x.wide, float("-inf"))

    item, b, kh, first, count, start, rest = (x.name(s) for s in ("item", "b", "kh", "k", "keys", "q", "queries"))
    g, h, n0, factor, low, skip = (*(x.name(s) for s in ("g", "h", "n")), x.name("scale", x.wide), x.name("low"), x.name("skip"))
    turn, rows_rest = x.name("turn"), x.name("rows")
    again = x.name("again", x.wide)
    key_heads = dim_expr(k.type.shape[1])
    blocks = ceil_div(dim_expr(k.type.shape[2]), KEYS)
    many = dim_expr(heads) // key_heads if grouped else index(1)
    rows = x.array("rows", KEYS * max(deep, wide))
    columns, value_columns = x.array("columns", deep * KEYS), x.array("value_columns", wide * KEYS)
    query_block, dout_block = x.array("queries", KEYS * deep), x.array("douts", KEYS * wide)
    weights, slopes = x.array("weights", KEYS * TILE), x.array("slopes", KEYS * KEYS)
    sums_k, sums_v = x.array("sums_k", deep * KEYS), x.array("sums_v", wide * KEYS)
    block_lse, block_delta = x.array("lse", KEYS), x.array("delta", KEYS)
    key_block = rows if sums_q is None else x.array("keys", KEYS * deep)
    found = x.array("found", TILE)

    def line(head: Expr, query: Expr) -> Expr:
        """Where the sums of a query begin."""
        return ((b * dim_expr(heads) + head) * (dim_expr(length) + KEYS) + query) * deep

    def put_scores(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        done: list[Stmt] = []
        for i, t in enumerate(totals):
            inside = (r0 + i < rest) & (n0 + lane < count)
            done.append(Assign(t, x.scored(t, factor, masks, (b, h, start + r0 + i, first + n0 + lane), inside)))
        if causal:
            limit = x.name("limit", I32)
            hide = (Assign(t, select(limit > i, lowest, t)) for i, t in enumerate(totals))
            crossing = Let(limit, cast(first + n0 + lane - start - r0, I32))
            done.append(If(first + n0 + (TILE - 1) > start + r0, (crossing, *hide)))
        return [*done, *(Store(weights, (r0 + i) * TILE + lane, t) for i, t in enumerate(totals))]

    def weigh(lane: Expr) -> list[Stmt]:
        r, some = x.name("r"), 2
        at = [(r + i, (r + i) * TILE + lane) for i in range(some)]
        each = [Store(weights, place, exp(load(weights, place) - load(block_lse, row))) for row, place in at]
        return [For(r, low, rows_rest, tuple(each), index(some))]

    def put_slopes(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        return [
            Store(slopes, (r0 + i) * KEYS + n0 + lane, load(weights, (r0 + i) * TILE + lane) * (t - load(block_delta, r0 + i)))
            for i, t in enumerate(totals)
        ]

    def add(sums: Buffer, size: int, block: Buffer, factors: Buffer, step: int, at: Expr) -> Stmt:
        def place(r: Expr, lane: Expr) -> Expr:
            return n0 * size + r * TILE + lane

        return x.strip(
            x.tile_rows_of(size), index(0), index(size), lambda r0: (low, rest),
            lambda d, row: load(block, row * size + d),
            lambda lane, row: load(factors, row * step + at + lane),
            lambda d, lane: load(sums, place(d, lane)),
            lambda r0, lane, totals: [Store(sums, place(r0 + i, lane), t) for i, t in enumerate(totals)],
        )  # fmt: skip

    by_keys_once = [
        *([add(sums_v, wide, dout_block, weights, TILE, index(0))] if dv in targets else []),
        *([add(sums_k, deep, query_block, slopes, KEYS, n0)] if dk in targets else []),
    ]
    tile: list[Stmt] = [
        Let(low, select(equal(turn, 0), n0 * skip, index(0)) if causal else index(0)),
        x.strip(
            x.most_rows, low, rows_rest, index(depth),
            lambda row, d: load(query_block, row * deep + d),
            lambda lane, d: load(columns, n0 * deep + d * TILE + lane),
            lambda row, lane: zero,
            put_scores,
        ),
        *x.lanes(TILE, weigh),
        x.strip(
            x.most_rows, low, rows_rest, index(width),
            lambda row, e: load(dout_block, row * wide + e),
            lambda lane, e: load(value_columns, n0 * wide + e * TILE + lane),
            lambda row, lane: zero,
            put_slopes,
        ),
        If(equal(turn, 0), tuple(by_keys_once)) if causal else If(index(0) < 1, tuple(by_keys_once)),
    ]  # fmt: skip
    tiles: list[Stmt] = [For(n0, index(0), count, tuple(tile), index(TILE))]

    def add_to_queries(sums: Buffer) -> list[Stmt]:
        across = TILE if deep % TILE == 0 else 8
        l0 = x.name("l")

        def reach(r0: Expr) -> tuple[Expr, Expr]:
            """The keys of a tile of queries: all, or those that it sees; then the others."""
            if not causal:
                return index(0), count
            seen = x.least(count, r0 + x.most_rows)
            before = equal(turn, 0)
            return select(before, index(0), seen), select(before & (skip > 0), seen, count)

        def put(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
            done: list[Stmt] = [Store(sums, line(h, start + r0 + i) + l0 + lane, t) for i, t in enumerate(totals)]
            return [*done, If(skip > 0, tuple(x.note_zeros(found, lane, totals)))] if causal else done

        strip = x.strip(
            x.most_rows, index(0), rows_rest, reach,
            lambda row, at: load(slopes, row * KEYS + at),
            lambda lane, at: load(key_block, at * deep + l0 + lane),
            lambda row, lane: load(sums, line(h, start + row) + l0 + lane),
            put,
            across,
        )  # fmt: skip
        return [For(l0, index(0), index(deep), (strip,), index(across))]

    lane = x.name("lane")
    clear_found = Vector(lane, TILE, (Store(found, lane, zero),))
    inside: list[Stmt] = [
        Let(rest, x.least(dim_expr(length) - start, index(KEYS))),
        Let(rows_rest, x.whole_tiles(rest)),
        *x.copy(query_block, q, (b, h), start, rest, KEYS),
        *x.copy(dout_block, dout, (b, h), start, rest, KEYS),
        *x.fill_row(block_lse, lse, (b, h), start, rest, KEYS, shifted=True),
        *x.fill_row(block_delta, delta, (b, h), start, rest, KEYS),
    ]
    if not causal:
        # Nothing is skipped, and one turn does.
        body_of_pair = [Let(turn, index(0)), *tiles, *(add_to_queries(sums_q) if sums_q is not None else ())]
    else:
        moderate = x.name("moderate")
        checks = [query_block, dout_block, columns, value_columns, block_lse, block_delta]
        calm = x.moderate(moderate, checks, [sums_k, sums_v] if grouped else [])
        once: list[Stmt] = [*tiles, *(add_to_queries(sums_q) if sums_q is not None else ())]
        body_of_pair = [
            Declare(moderate, index(0)),
            If(equal(start, first), tuple(calm)),
            Let(skip, moderate),
            clear_found,
            Declare(again, zero),
            For(turn, index(0), index(1 if sums_q is None else 2), (
                If(equal(turn, 0) | (again > 0), tuple(once)),
                *([] if sums_q is None else x.lanes(TILE, lambda lane: [Assign(again, x.any_lane(load(found, lane)))])),
            ), index(1)),
        ]  # fmt: skip
    inside += body_of_pair
    one_head: list[Stmt] = [
        Let(h, kh * many + g if grouped else kh + g),
        For(start, first if causal else index(0), dim_expr(length), tuple(inside), index(KEYS)),
    ]
    of_block: list[Stmt] = [
        Let(count, x.least(dim_expr(k.type.shape[2]) - first, index(KEYS))),
        *x.copy(key_block, k, (b, kh), first, count, KEYS),
        *x.turn_in(columns, key_block, index(KEYS), deep),
        *x.copy(rows, v, (b, kh), first, count, KEYS),
        *x.turn_in(value_columns, rows, index(KEYS), wide),
        *x.clear(sums_k, index(0), index(deep), KEYS),
        *x.clear(sums_v, index(0), index(wide), KEYS),
        For(g, index(0), many, tuple(one_head), index(1)),
    ]
    for result, sums, size, by in ((dk, sums_k, deep, factor), (dv, sums_v, wide, None)):
        if result in targets:
            if by is not None:
                at = x.name("at")
                of_block.append(For(at, index(0), index(size * KEYS), tuple(
                    x.lanes(TILE, lambda lane: [Store(sums, at + lane, load(sums, at + lane) * by)])  # noqa: B023
                ), index(TILE)))  # fmt: skip
            of_block += x.turn_out(rows, sums, index(KEYS), size)
            of_block += x.put(targets[result], result.type.shape, rows, (b, kh), first, count)
    head = item if sums_q is not None else item // blocks
    body: list[Stmt] = [
        Let(kh, head % key_heads), Let(b, head // key_heads), Let(factor, x.pull.at(scale, Position(()))),
    ]  # fmt: skip
    written = [dk, dv]
    if sums_q is None:
        body += [Let(first, x.paired(item % blocks, blocks) * KEYS), *of_block]
    else:
        written.insert(0, dq)
        waiting = sums_q

        def clear(head: Expr, query: Expr) -> list[Stmt]:
            at = line(head, query)
            return x.lanes(deep, lambda lane: [Store(waiting, at + lane, zero)], 8)

        def put(head: Expr, query: Expr) -> list[Stmt]:
            def one(lane: Expr) -> list[Stmt]:
                value = convert(load(waiting, line(head, query) + lane) * factor, targets[dq].dtype)
                return [If(lane < depth, (Store(targets[dq], Position(dq.type.shape, (b, head, query, lane)).flat, value),))]

            return x.lanes(deep, one, 8)

        def every_query(step: Step, more: int = 0) -> Stmt:
            """step(head, query) for the query heads of this item."""
            g2, i = x.name("g"), x.name("i")
            queries = For(i, index(0), dim_expr(length) + more, tuple(step(kh * many + g2, i)), index(1))
            return For(g2, index(0), many, (queries,), index(1))

        body += [
            every_query(clear, KEYS),
            For(first, index(0), dim_expr(k.type.shape[2]), tuple(of_block), index(KEYS)),
            every_query(put),
        ]
    return Kernel(
        name="attention_grad_kv" if sums_q is None else "attention_grad",
        buffers=(
            *x.pull.buffers.values(), *(targets[r] for r in written if r in targets), *([] if sums_q is None else [sums_q])
        ),
        extents=group_extents(group),
        parallel=dim_expr(batch) * key_heads * (index(1) if sums_q is not None else blocks),
        work=dim_expr(work_of(x.op, 2 * depth + 2 * width + 40)),
        body=(*x.allocations, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )  # fmt: skip
