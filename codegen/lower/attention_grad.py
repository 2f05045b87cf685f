"""attention_grad: two kernels, each sum by one item alone, so that nothing is added up across threads.

- by the queries: an item is a block of queries and goes over the keys; lanes are queries;
- by the keys and values: an item is a block of keys and goes over the query heads that read its head and
  their queries; lanes are keys.
Both compute the weights again from logsumexp. Where there are heads enough for all threads, one kernel does both ("whole"): an item is a
head of the keys, and the sums by the queries wait in memory while the blocks of keys pass by, which is the same order. The definition is at the head of ir/ops/attention.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.codegen.elementwise import convert
from graphc.codegen.expr import Expr, const, equal, index, load, select, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.attention_blocks import KEYS, Blocks, Where, work_of
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.nest import ceil_div, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math.exponential import exp
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import size_of

Targets = Mapping[Value, Buffer]


def gradient_kernels(
    group: Function, op: Operation, pull: Pull, targets: Targets, vector_bits: int, queries: int, whole: bool
) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...]]:
    """The kernels of those of dq, dk, dv that the group returns."""
    if whole and op.results[0] in targets:
        x = Blocks(pull, op, vector_bits, KEYS)
        size = size_of(op.operands[0].type.shape[:3]) * x.padded(x.sizes[0])
        scratch = Scratch(Buffer("sums_q", x.wide, "scratch"), x.wide, size)
        return (_by_keys(group, x, targets, scratch.buffer),), (scratch,)
    kernels = []
    if op.results[0] in targets:
        kernels.append(_by_queries(group, Blocks(pull, op, vector_bits, queries), targets))
    if op.results[1] in targets or op.results[2] in targets:
        kernels.append(_by_keys(group, Blocks(pull, op, vector_bits, KEYS), targets, None))
    return tuple(kernels), ()


def _rows(x: Blocks, target: Buffer, row: Value, b: Expr, h: Expr, first: Expr, count: Expr) -> list[Stmt]:
    """target[r] = row[b, h, first + r] below `count`, else 0."""

    def one(lane: Expr) -> list[Stmt]:
        here = x.pull.at_if(row, Position(row.type.shape, (b, h, first + lane)), lane < count)
        return [Store(target, lane, here)]

    return x.lanes(x.queries, one, 16)


def _shifted(x: Blocks, lse: Buffer, at: Expr) -> Expr:
    return select(equal(load(lse, at), float("-inf")), const(x.wide, 0.0), load(lse, at))


def _scaled_rows(x: Blocks, rows: Buffer, sums: Buffer, size: int, scale: Expr | None) -> list[Stmt]:
    """rows[lane][d] = sums[d][lane], times the scale."""
    out: list[Stmt] = []
    if scale is not None:
        d = x.name("d")

        def times(lane: Expr) -> list[Stmt]:
            at = d * x.queries + lane
            return [Store(sums, at, load(sums, at) * scale)]

        out.append(For(d, index(0), index(x.padded(size)), tuple(x.lanes(x.queries, times)), index(1)))
    return [*out, *x.turn(rows, sums, x.padded(size), x.queries)]


def _by_queries(group: Function, x: Blocks, targets: Targets) -> Kernel:
    q, k, v, scale, lse, delta, dout, *masks = x.op.operands
    dq = x.op.results[0]
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    lanes = x.queries

    item, b, h, first, count, start, keys = (x.name(s) for s in ("item", "b", "h", "q", "queries", "k", "keys"))
    factor = x.name("scale", x.wide)
    blocks = ceil_div(dim_expr(length), lanes)
    total_keys = dim_expr(k.type.shape[2])
    kh = x.key_head(h)
    rows = x.array("rows", lanes * max(x.padded(depth), x.padded(width)))
    columns, dout_columns = x.array("columns", x.padded(depth) * lanes), x.array("dout_columns", x.padded(width) * lanes)
    key_block, value_block = x.array("keys", KEYS * x.padded(depth)), x.array("values", KEYS * x.padded(width))
    weights, slopes = x.array("weights", KEYS * lanes), x.array("slopes", KEYS * lanes)
    sums, sum_lse, sum_delta = x.array("sums", x.padded(depth) * lanes), x.array("lse", lanes), x.array("delta", lanes)

    where = Where(b, h, first, count, start, keys)
    j = x.name("j")

    def weight(lane: Expr) -> list[Stmt]:
        at = j * lanes + lane
        return [Store(weights, at, exp(load(weights, at) - _shifted(x, sum_lse, lane)))]

    def slope(row: Expr, lane: Expr, total: Expr) -> list[Stmt]:
        at = row * lanes + lane
        return [Store(slopes, at, load(weights, at) * (total - load(sum_delta, lane)))]

    inside: list[Stmt] = [
        Let(keys, x.least(total_keys - start, index(KEYS))),
        *x.copy(key_block, k, (b, kh), start, keys, KEYS),
        *x.copy(value_block, v, (b, kh), start, keys, KEYS),
        *x.scores(weights, key_block, columns, depth, factor, masks, where),
        *x.hide(weights, where),
        For(j, index(0), index(KEYS), tuple(x.lanes(lanes, weight)), index(1)),
        *x.product(
            KEYS, lanes, index(width),
            lambda r, e: load(value_block, r * x.padded(width) + e),
            lambda lane, e: load(dout_columns, e * lanes + lane),
            lambda r, lane: const(x.wide, 0.0),
            slope,
        ),
        *x.clear(slopes, keys, index(KEYS), lanes),
        *x.product(
            x.padded(depth), lanes, index(KEYS),
            lambda r, at: load(key_block, at * x.padded(depth) + r),
            lambda lane, at: load(slopes, at * lanes + lane),
            lambda r, lane: load(sums, r * lanes + lane),
            lambda r, lane, value: [Store(sums, r * lanes + lane, value)],
        ),
    ]  # fmt: skip
    stop = x.least(total_keys, first + count) if x.op.attrs["causal"] else total_keys
    body: list[Stmt] = [
        Let(h, (item // blocks) % dim_expr(heads)),
        Let(b, item // blocks // dim_expr(heads)),
        Let(first, (item % blocks) * lanes),
        Let(count, x.least(dim_expr(length) - first, index(lanes))),
        Let(factor, x.pull.at(scale, Position(()))),
        *x.copy(rows, q, (b, h), first, count, lanes),
        *x.turn(columns, rows, lanes, x.padded(depth)),
        *x.copy(rows, dout, (b, h), first, count, lanes),
        *x.turn(dout_columns, rows, lanes, x.padded(width)),
        *_rows(x, sum_lse, lse, b, h, first, count),
        *_rows(x, sum_delta, delta, b, h, first, count),
        *x.clear(sums, index(0), index(x.padded(depth)), lanes),
        For(start, index(0), stop, tuple(inside), index(KEYS)),
        *_scaled_rows(x, rows, sums, depth, factor),
        *x.put(targets[dq], dq.type.shape, rows, (b, h), first, count),
    ]
    return Kernel(
        name="attention_grad_q",
        buffers=(*x.pull.buffers.values(), targets[dq]),
        extents=group_extents(group),
        parallel=dim_expr(batch) * dim_expr(heads) * blocks,
        work=dim_expr(work_of(x.op, 2 * depth + width + 40)),
        body=(*x.allocations, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )


def _by_keys(group: Function, x: Blocks, targets: Targets, sums_q: Buffer | None) -> Kernel:
    """dk and dv; an item is a block of keys or, with dq, whose sums are in `sums_q`, all keys of a head."""
    q, k, v, scale, lse, delta, dout, *masks = x.op.operands
    dq, dk, dv = x.op.results
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    lanes = KEYS

    item, b, kh, first, count, start, rest = (x.name(s) for s in ("item", "b", "kh", "k", "keys", "q", "queries"))
    g, h, factor = x.name("g"), x.name("h"), x.name("scale", x.wide)
    key_heads = dim_expr(k.type.shape[1])
    blocks = ceil_div(dim_expr(k.type.shape[2]), lanes)
    rows = x.array("rows", lanes * max(x.padded(depth), x.padded(width)))
    columns, value_columns = x.array("columns", x.padded(depth) * lanes), x.array("value_columns", x.padded(width) * lanes)
    query_block, dout_block = x.array("queries", KEYS * x.padded(depth)), x.array("douts", KEYS * x.padded(width))
    weights, slopes = x.array("weights", KEYS * lanes), x.array("slopes", KEYS * lanes)
    sums_k, sums_v = x.array("sums_k", x.padded(depth) * lanes), x.array("sums_v", x.padded(width) * lanes)
    block_lse, block_delta = x.array("lse", KEYS), x.array("delta", KEYS)
    key_block = rows if sums_q is None else x.array("keys", KEYS * x.padded(depth))
    r = x.name("r")

    def line(head: Expr, query: Expr) -> Expr:
        """Where the sums of a query begin."""
        return ((b * dim_expr(heads) + head) * dim_expr(length) + query) * x.padded(depth)

    def score(row: Expr, lane: Expr, total: Expr) -> list[Stmt]:
        inside = (row < rest) & (lane < count)
        value = x.scored(total, factor, masks, (b, h, start + row, first + lane), inside)
        return [Store(weights, row * lanes + lane, value)]

    r2 = x.name("r")

    def above(lane: Expr) -> list[Stmt]:
        return [If(first + lane > start + r2, (Store(weights, r2 * lanes + lane, const(x.wide, float("-inf"))),))]

    def weight(lane: Expr) -> list[Stmt]:
        at = r * lanes + lane
        return [Store(weights, at, exp(load(weights, at) - _shifted(x, block_lse, r)))]

    def slope(row: Expr, lane: Expr, total: Expr) -> list[Stmt]:
        at = row * lanes + lane
        return [Store(slopes, at, load(weights, at) * (total - load(block_delta, row)))]

    hide: list[Stmt] = []
    if x.op.attrs["causal"]:
        hide.append(If(start < first + lanes, (For(r2, index(0), index(KEYS), tuple(x.lanes(lanes, above)), index(1)),)))

    def add(sums: Buffer, size: int, block: Buffer, factors: Buffer) -> list[Stmt]:
        return x.product(
            x.padded(size), lanes, index(KEYS),
            lambda d, at: load(block, at * x.padded(size) + d),
            lambda lane, at: load(factors, at * lanes + lane),
            lambda d, lane: load(sums, d * lanes + lane),
            lambda d, lane, value: [Store(sums, d * lanes + lane, value)],
        )  # fmt: skip

    def add_to_queries(sums: Buffer) -> list[Stmt]:
        """The slopes of keys that do not exist are zero; rows of queries that do not exist are left alone."""
        n = x.name("r")

        def beyond(lane: Expr) -> list[Stmt]:
            return [If(lane >= count, (Store(slopes, n * lanes + lane, const(x.wide, 0.0)),))]

        return [
            If(count < lanes, (For(n, index(0), index(KEYS), tuple(x.lanes(lanes, beyond)), index(1)),)),
            *x.product(
                KEYS, x.padded(depth), index(KEYS),
                lambda row, at: load(slopes, row * lanes + at),
                lambda lane, at: load(key_block, at * x.padded(depth) + lane),
                lambda row, lane: load(sums, line(h, start + x.least(row, rest - 1)) + lane),
                lambda row, lane, value: [If(row < rest, (Store(sums, line(h, start + row) + lane, value),))],
            ),
        ]  # fmt: skip

    inside: list[Stmt] = [
        Let(rest, x.least(dim_expr(length) - start, index(KEYS))),
        *x.copy(query_block, q, (b, h), start, rest, KEYS),
        *x.copy(dout_block, dout, (b, h), start, rest, KEYS),
        *_rows(x, block_lse, lse, b, h, start, rest),
        *_rows(x, block_delta, delta, b, h, start, rest),
        *x.product(
            KEYS, lanes, index(depth),
            lambda row, d: load(query_block, row * x.padded(depth) + d),
            lambda lane, d: load(columns, d * lanes + lane),
            lambda row, lane: const(x.wide, 0.0),
            score,
        ),
        *hide,
        For(r, index(0), index(KEYS), tuple(x.lanes(lanes, weight)), index(1)),
        *x.product(
            KEYS, lanes, index(width),
            lambda row, e: load(dout_block, row * x.padded(width) + e),
            lambda lane, e: load(value_columns, e * lanes + lane),
            lambda row, lane: const(x.wide, 0.0),
            slope,
        ),
        # Queries that do not exist: their products with -0.0 change no sum.
        *x.clear(weights, rest, index(KEYS), lanes),
        *x.clear(slopes, rest, index(KEYS), lanes),
        *(add(sums_v, width, dout_block, weights) if dv in targets else ()),
        *(add(sums_k, depth, query_block, slopes) if dk in targets else ()),
        *(add_to_queries(sums_q) if sums_q is not None else ()),
    ]  # fmt: skip
    one_head: list[Stmt] = [
        Let(h, kh * (dim_expr(heads) // key_heads) + g) if heads != k.type.shape[1] else Let(h, kh + g),
        For(start, first if x.op.attrs["causal"] else index(0), dim_expr(length), tuple(inside), index(KEYS)),
    ]
    many = dim_expr(heads) // key_heads if heads != k.type.shape[1] else index(1)
    of_block: list[Stmt] = [
        Let(count, x.least(dim_expr(k.type.shape[2]) - first, index(lanes))),
        *x.copy(key_block, k, (b, kh), first, count, lanes),
        *x.turn(columns, key_block, lanes, x.padded(depth)),
        *x.copy(rows, v, (b, kh), first, count, lanes),
        *x.turn(value_columns, rows, lanes, x.padded(width)),
        *x.clear(sums_k, index(0), index(x.padded(depth)), lanes),
        *x.clear(sums_v, index(0), index(x.padded(width)), lanes),
        For(g, index(0), many, tuple(one_head), index(1)),
    ]
    for result, sums, size, by in ((dk, sums_k, depth, factor), (dv, sums_v, width, None)):
        if result in targets:
            of_block += _scaled_rows(x, rows, sums, size, by)
            of_block += x.put(targets[result], result.type.shape, rows, (b, kh), first, count)
    head = item if sums_q is not None else item // blocks
    body: list[Stmt] = [
        Let(kh, head % key_heads), Let(b, head // key_heads), Let(factor, x.pull.at(scale, Position(()))),
    ]  # fmt: skip
    written = [dk, dv]
    if sums_q is None:
        body += [Let(first, (item % blocks) * lanes), *of_block]
    else:
        written.insert(0, dq)

        waiting = sums_q

        def clear(head: Expr, query: Expr) -> list[Stmt]:
            at = line(head, query)
            return x.lanes(x.padded(depth), lambda lane: [Store(waiting, at + lane, const(x.wide, 0.0))], 8)

        def put(head: Expr, query: Expr) -> list[Stmt]:
            def one(lane: Expr) -> list[Stmt]:
                value = convert(load(waiting, line(head, query) + lane) * factor, targets[dq].dtype)
                place = Position(dq.type.shape, (b, head, query, lane)).flat
                return [If(lane < depth, (Store(targets[dq], place, value),))]

            return x.lanes(x.padded(depth), one, 8)

        def every_query(step: Callable[[Expr, Expr], list[Stmt]]) -> Stmt:
            """step(head, query) for the query heads of this item."""
            g2, i = x.name("g"), x.name("i")
            queries = For(i, index(0), dim_expr(length), tuple(step(kh * many + g2, i)), index(1))
            return For(g2, index(0), many, (queries,), index(1))

        body += [
            every_query(clear),
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
    )
