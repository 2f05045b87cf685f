"""attention_grad: two kernels, each sum by one item alone, so that nothing is added up across threads.

- by the queries: an item is a block of queries and goes over the keys; lanes are queries;
- by the keys and values (attention_keys.py): an item is a block of keys and goes over the query heads that read its head and
  their queries; lanes are keys.
Both compute the weights again from logsumexp. Where there are heads enough for all threads, one kernel does both ("whole"): an item is a
head of the keys, and the sums by the queries wait in memory while the blocks of keys pass by, which is the same order. The definition is at the head of ir/ops/attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.expr import Expr, const, equal, index, load, select, var
from graphc.codegen.loops import Buffer, For, Kernel, Let, Stmt, Store
from graphc.codegen.lower.attention_blocks import KEYS, Blocks, Where, work_of
from graphc.codegen.lower.attention_keys import by_keys, sums_size
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.nest import ceil_div, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math.exponential import exp
from graphc.ir.function import Function, Operation, Value

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
