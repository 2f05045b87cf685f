"""attention for few queries, as in decoding with a cache of keys: one pass over keys and values, at the speed of memory.

An item is a head of the keys and up to 16 *rows*: row r is query r mod T of query head r div T of those that read the head.
Lanes run along the keys of a block, which are turned, where scores are made, and along the elements of a value where
values are added up: no sum of the definition (ir/ops/attention.py) runs along lanes but that of a block's weights,
whose 16 lanes are combined by halving as the definition has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.elementwise import convert
from graphc.codegen.expr import Expr, cast, const, equal, fma, index, load, make, select, var
from graphc.codegen.loops import Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Transpose, Vector
from graphc.codegen.lower.attention_blocks import KEYS, TILE, Blocks, work_of
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.nest import ceil_div, group_extents
from graphc.codegen.math.exponential import exp
from graphc.codegen.math.logarithm import log
from graphc.ir.function import Function, Value
from graphc.ir.ops.attention import LANES

FEW = 8  # queries
ROWS = 16  # of an item
PART = 16  # keys that are turned at once: they stay in the nearest cache


def few_queries(group: Function, x: Blocks, targets: Mapping[Value, Buffer]) -> Kernel:
    """The kernel of a group with an attention."""
    q, k, v, scale, *masks = x.op.operands
    out, logsumexp = x.op.results
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    deep, wide = x.padded(depth), x.padded(width)
    grouped, causal = heads != k.type.shape[1], bool(x.op.attrs["causal"])
    zero, lowest = const(x.wide, 0.0), const(x.wide, float("-inf"))

    item, b, kh, first, count, start, keys = (x.name(s) for s in ("item", "b", "kh", "row", "rows", "k", "keys"))
    factor = x.name("scale", x.wide)
    total_keys, key_heads, queries = dim_expr(k.type.shape[2]), dim_expr(k.type.shape[1]), dim_expr(length)
    many = dim_expr(heads) // key_heads if grouped else index(1)
    chunks = ceil_div(many * queries, ROWS)
    key_block, columns = x.array("keys", PART * deep), x.array("columns", deep * KEYS)
    scores, sums = x.array("scores", ROWS * KEYS), x.array("sums", ROWS * wide)
    top, total, shrink = x.array("top", ROWS), x.array("total", ROWS), x.array("shrink", ROWS)
    value_block, copied = x.direct(v, (b, kh), start), []
    if value_block is None:
        values = x.array("values", KEYS * wide)
        copied = x.copy(values, v, (b, kh), start, keys, KEYS)
        value_block = lambda j, e: load(values, j * wide + e)  # noqa: E731
    value_at = value_block

    def head_of(row: Expr) -> Expr:
        return kh * many + (first + row) // queries if grouped else kh

    def query_of(row: Expr) -> Expr:
        return (first + row) % queries if grouped else first + row

    def put_scores(row: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        (t,) = totals
        inside = lane < keys
        score = x.scored(t, factor, masks, (b, head_of(row), query_of(row), start + lane), inside)
        seen = inside & (start + lane <= query_of(row)) if causal else inside
        return [Store(scores, row * KEYS + lane, select(seen, score, lowest))]

    r, z, highest = x.name("r"), x.name("z", x.wide), x.name("highest", x.wide)

    def weigh(lane: Expr) -> list[Stmt]:
        """A NaN is left out of the maximum: the weights carry it into every result."""
        t, m = x.name("t", x.wide), x.name("m", x.wide)
        known = select(t > lowest, t, lowest)
        return [
            Let(t, load(scores, r * KEYS + lane)),
            Let(m, make("lanes", x.wide, (known,), "max")),
            Let(highest, select(m > load(top, r), m, load(top, r))),
            Let(z, select(equal(highest, float("-inf")), zero, highest)),
            Store(shrink, r, exp(load(top, r) - z)),
            Store(top, r, highest),
            Store(scores, r * KEYS + lane, exp(t - z)),
        ]

    def add_up(lane: Expr) -> list[Stmt]:
        part = load(scores, r * KEYS + lane)
        for s in range(LANES, KEYS, LANES):
            part = part + load(scores, r * KEYS + s + lane)
        return [Store(total, r, fma(load(total, r), load(shrink, r), make("lanes", x.wide, (part,), "add")))]

    i, j, side, across = x.name("i"), x.name("j"), x.turned, min(64, wide & -wide)
    e0 = x.name("e")
    part, some, at_part = x.name("part"), x.name("some"), x.name("k")
    square = Transpose(columns, j * KEYS + part + i, index(KEYS), key_block, i * deep + j, index(deep), side)
    inside: list[Stmt] = [
        Let(keys, x.least(total_keys - start, index(KEYS))),
        For(part, index(0), keys, (
            Let(some, x.least(keys - part, index(PART))),
            Let(at_part, start + part),
            *x.copy(key_block, k, (b, kh), at_part, some, PART),
            For(i, index(0), some, (For(j, index(0), index(deep), (square,), index(side)),), index(side)),
        ), index(PART)),
        *copied,
        x.strip(
            1, index(0), count, index(depth),
            lambda row, d: cast(x.pull.at(q, Position(q.type.shape, (b, head_of(row), query_of(row), d))), x.wide),
            lambda lane, d: load(columns, d * KEYS + lane),
            lambda row, lane: zero,
            put_scores,
            KEYS,
        ),
        For(r, index(0), count, (*x.lanes(KEYS, weigh), *x.lanes(TILE, add_up)), index(1)),
        For(e0, index(0), index(wide), (x.strip(
            1, index(0), count, keys,
            lambda row, at: load(scores, row * KEYS + at),
            lambda lane, at: value_at(at, e0 + lane),
            lambda row, lane: load(sums, row * wide + e0 + lane) * load(shrink, row),
            lambda row, lane, totals: [Store(sums, row * wide + e0 + lane, totals[0])],
            across,
        ),), index(across)),
    ]  # fmt: skip
    at = x.name("at")
    # A query sees no block that begins behind it.
    stop = x.least(total_keys, queries) if causal else total_keys
    body: list[Stmt] = [
        Let(kh, (item // chunks) % key_heads),
        Let(b, item // chunks // key_heads),
        Let(first, (item % chunks) * ROWS),
        Let(count, x.least(many * queries - first, index(ROWS))),
        Let(factor, x.pull.at(scale, Position(()))),
        *x.lanes(ROWS, lambda lane: [Store(top, lane, lowest), Store(total, lane, zero)]),
        For(at, index(0), index(ROWS * wide), tuple(
            x.lanes(TILE, lambda lane: [Store(sums, at + lane, zero)])
        ), index(TILE)),
        For(start, index(0), stop, tuple(inside), index(KEYS)),
    ]  # fmt: skip
    row = x.name("row")
    last: list[Stmt] = []
    if out in targets:
        for e in range(0, wide, across):
            lane = x.name("lane")
            value = select(equal(load(total, row), 0.0), zero, load(sums, row * wide + e + lane) / load(total, row))
            place = Position(out.type.shape, (b, head_of(row), query_of(row), e + lane)).flat
            put = Store(targets[out], place, convert(value, targets[out].dtype))
            last.append(Vector(lane, across, (put if e + across <= width else If(lane < width - e, (put,)),)))
    if logsumexp in targets:
        value = x.name("logsumexp", x.wide)
        place = Position(logsumexp.type.shape, (b, head_of(row), query_of(row))).flat
        last += [Declare(value, load(top, row) + log(load(total, row))), Store(targets[logsumexp], place, value)]
    body.append(For(row, index(0), count, tuple(last), index(1)))
    return Kernel(
        name="attention",
        buffers=(*x.pull.buffers.values(), *targets.values()),
        extents=group_extents(group),
        parallel=dim_expr(batch) * key_heads * chunks,
        work=dim_expr(work_of(x.op, depth + width + 40)),
        body=(*x.allocations, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )
