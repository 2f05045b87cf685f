"""attention: an item is a block of queries of one head; it goes over the keys in blocks of 64, in tiles of 16 queries.

Lanes run along the queries, so that the running maximum, the sum and the weights of a query stay in one lane and
nothing is combined across lanes. In memory of the item's own, for each tile of queries: the queries as columns [D][16],
their scores [64][16], the weighted sums [E][16]; and a block of keys, and of values where those cannot be read in place.
Tiles that causality hides are skipped. Their weights are 0, and what such products do to a sum is one product more
(`Blocks.shadows`). ir/ops/attention.py is the definition; the steps are in attention_blocks.py, few queries in
attention_few.py, the gradients in attention_grad.py and attention_keys.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from graphc.codegen.expr import Expr, cast, const, equal, fma, index, load, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.attention_blocks import KEYS, TILE, Blocks, Where, work_of
from graphc.codegen.lower.attention_few import FEW, few_queries
from graphc.codegen.lower.attention_grad import gradient_kernels
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import ceil_div, group_buffers, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math.exponential import exp
from graphc.codegen.math.logarithm import log
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import I32, size_of, substitute

NAMES = frozenset(("attention", "attention_grad"))
SMALL = 16  # queries of an item where there are no more
LARGE = 128  # where there are enough of them for all threads: a block of keys is copied for twice as many
HEADS = 4  # so many heads of keys for each thread are work for all, or a multiple of the threads


def attention_of(group: Function) -> Operation | None:
    """The attention or attention_grad of a group that has one."""
    return next((op for op in group.ops if op.name in NAMES), None)


def variant(op: Operation, hint: dict[str, int]) -> str:
    """How many queries an item has ("few": attention_few.py), and whether gradients are one kernel, as part of a key."""
    queries = substitute(op.operands[0].type.shape[2], dict(hint))
    lanes = SMALL if isinstance(queries, int) and queries <= SMALL else KEYS
    if op.name == "attention" and isinstance(queries, int) and queries <= FEW:
        return f"{op.name} few"
    if op.name == "attention" and isinstance(queries, int) and queries > KEYS:
        items = substitute(size_of(op.operands[0].type.shape[:2]), dict(hint))
        if isinstance(items, int) and items * -(-queries // LARGE) >= 4 * (os.cpu_count() or 1):
            lanes = LARGE
    if op.name == "attention_grad":
        heads = substitute(size_of(op.operands[1].type.shape[:2]), dict(hint))
        threads = os.cpu_count() or 1
        if isinstance(heads, int) and heads and (heads % threads == 0 or heads >= HEADS * threads):
            return f"{op.name} {lanes} whole"
    return f"{op.name} {lanes}"


def lower_attention(group: Function, op: Operation, vector_bits: int, choice: str) -> Lowered:
    """The kernels of a group whose only operation, but for layout, is `op`. choice: a `variant`."""
    _, queries, *whole = choice.split()
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    targets = dict(zip(group.results, results, strict=True))
    scratch: tuple[Scratch, ...] = ()
    if op.name == "attention_grad":
        kernels, scratch = gradient_kernels(group, op, pull, targets, vector_bits, int(queries), bool(whole))
    elif queries == "few":
        kernels = (few_queries(group, Blocks(pull, op, vector_bits, SMALL), targets),)
    else:
        kernels = (_forward(group, Blocks(pull, op, vector_bits, int(queries)), targets),)
    return Lowered(kernels, params, results, scratch, tuple(pull.sites))


def _forward(group: Function, x: Blocks, targets: Mapping[Value, Buffer]) -> Kernel:
    q, k, v, scale, *masks = x.op.operands
    out, logsumexp = x.op.results
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    deep, wide = x.padded(depth), x.padded(width)
    lanes, causal = x.queries, x.op.attrs["causal"]
    zero, lowest = const(x.wide, 0.0), const(x.wide, float("-inf"))

    item, b, h, first, count, start, keys = (x.name(s) for s in ("item", "b", "h", "q", "queries", "k", "keys"))
    factor, n0, seen, rows_seen = x.name("scale", x.wide), x.name("n"), x.name("seen"), x.name("rows")
    blocks = ceil_div(dim_expr(length), lanes)
    total_keys = dim_expr(k.type.shape[2])
    kh = x.key_head(h)
    rows = x.array("rows", lanes * max(deep, wide))
    columns, sums = x.array("columns", deep * lanes), x.array("sums", wide * lanes)
    key_block = x.array("keys", KEYS * deep)
    scores = x.array("scores", KEYS * TILE)
    top, total = x.array("top", lanes), x.array("total", lanes)
    running, shrink = x.array("running", TILE), x.array("shrink", TILE)
    shadow = x.array("shadow", 4 * wide) if causal else None
    where = Where(b, h, first, count, start, keys)
    value_block = x.direct(v, (b, kh), start)
    copied: list[Stmt] = []
    if value_block is None:
        values = x.array("values", KEYS * wide)
        copied = x.copy(values, v, (b, kh), start, keys, KEYS)
        value_block = lambda j, e: load(values, j * wide + e)  # noqa: E731
    mask = x.mask_tile(masks, where, n0)

    def put_scores(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        """Scores of keys that do not exist, or that causality hides, are -inf. A NaN is left out of the maximum: the
        weights carry it into every result."""
        done: list[Stmt] = [Assign(t, x.score(t, factor, mask, r0 + i, lane)) for i, t in enumerate(totals)]
        edge, near = r0 + len(totals) > keys, keys - r0
        if causal:
            edge = edge | (start + r0 + (len(totals) - 1) > first + n0)
            near = x.least(near, first + n0 + lane + 1 - start - r0)
        # In 32 bits a vector of lanes is one register.
        limit = x.name("limit", I32)
        hide = (Assign(t, select(limit > i, t, lowest)) for i, t in enumerate(totals))
        done.append(If(edge, (Let(limit, cast(near, I32)), *hide)))
        chains = [load(running, lane), *(lowest for _ in range(min(4, len(totals)) - 1))]
        for i, t in enumerate(totals):
            chain = chains[i % len(chains)]
            chains[i % len(chains)] = select(t > chain, t, chain)
        while len(chains) > 1:
            chains = [select(c > d, c, d) for c, d in zip(chains[::2], chains[1::2], strict=True)]
        return [*done, Store(running, lane, chains[0]), *(Store(scores, (r0 + i) * TILE + lane, t) for i, t in enumerate(totals))]

    def weigh(lane: Expr) -> list[Stmt]:
        """Scores become weights, and their sum is added."""
        z, j, s = x.name("z", x.wide), x.name("j"), x.name("s")
        highest = load(running, lane)
        parts = [x.name("part", x.wide) for _ in range(TILE)]
        some = 2
        each = [Store(scores, (j + i) * TILE + lane, exp(load(scores, (j + i) * TILE + lane) - z)) for i in range(some)]
        return [
            Declare(z, select(equal(highest, float("-inf")), zero, highest)),
            Store(shrink, lane, exp(load(top, n0 + lane) - z)),
            Store(top, n0 + lane, highest),
            For(j, index(0), rows_seen, tuple(each), index(some)),
            *(Declare(p, load(scores, index(i * TILE) + lane)) for i, p in enumerate(parts)),
            For(s, index(TILE), rows_seen, tuple(
                Assign(p, p + load(scores, (s + i) * TILE + lane)) for i, p in enumerate(parts)
            ), index(TILE)),
            Store(total, n0 + lane, fma(load(total, n0 + lane), load(shrink, lane), x.halved(parts))),
        ]  # fmt: skip

    def put_sums(r0: Expr, lane: Expr, totals: list[Expr]) -> list[Stmt]:
        done: list[Stmt] = []
        if shadow is not None:
            # The keys that causality hides from the whole tile have weights 0, which as a rule change nothing.
            line = (first + n0 + TILE - start) // TILE * wide
            hidden = tuple(Assign(t, fma(zero, load(shadow, line + r0 + i), t)) for i, t in enumerate(totals))
            done.append(If(seen < keys, hidden))
        return [*done, *(Store(sums, n0 * wide + (r0 + i) * TILE + lane, t) for i, t in enumerate(totals))]

    visible = x.least(keys, first + n0 + TILE - start) if causal else keys
    tile: list[Stmt] = [
        Let(seen, visible),
        Let(rows_seen, x.whole_tiles(seen)),
        *x.fill_mask(mask, masks, where, n0, rows_seen),
        *x.lanes(TILE, lambda lane: [Store(running, lane, load(top, n0 + lane))]),
        x.strip(
            x.most_rows, index(0), rows_seen, index(depth),
            lambda j, d: load(key_block, j * deep + d),
            lambda lane, d: load(columns, n0 * deep + d * TILE + lane),
            lambda j, lane: zero,
            put_scores,
        ),
        *x.lanes(TILE, weigh),
        x.strip(
            x.tile_rows_of(wide), index(0), index(wide), seen,
            lambda r, at: value_block(at, r),
            lambda lane, at: load(scores, at * TILE + lane),
            lambda r, lane: load(sums, n0 * wide + r * TILE + lane) * load(shrink, lane),
            put_sums,
        ),
    ]  # fmt: skip
    inside: list[Stmt] = [
        Let(keys, x.least(total_keys - start, index(KEYS))),
        *x.copy(key_block, k, (b, kh), start, keys, KEYS),
        *copied,
    ]
    if shadow is not None:
        inside.append(If(start + KEYS > first, tuple(x.shadows(shadow, value_block, width, keys))))
    # Queries before the block do not meet it.
    earliest = x.greatest(start - first, index(0)) if causal and lanes > KEYS else index(0)
    inside.append(For(n0, earliest, count, tuple(tile), index(TILE)))

    def divide(n: Expr, e: Expr, lane: Expr) -> list[Stmt]:
        at = n * wide + e * TILE + lane
        return [Store(sums, at, select(equal(load(total, n + lane), 0.0), zero, load(sums, at) / load(total, n + lane)))]

    def begin(n: Expr, e: Expr, lane: Expr) -> list[Stmt]:
        return [Store(sums, n * wide + e * TILE + lane, zero)]

    def every(body: Callable[[Expr, Expr, Expr], list[Stmt]]) -> Stmt:
        """body(first lane, e, lane) for all sums."""
        n, e, lane = x.name("n"), x.name("e"), x.name("lane")
        one = For(e, index(0), index(wide), (Vector(lane, TILE, tuple(body(n, e, lane))),), index(1))
        return For(n, index(0), count, (one,), index(TILE))

    def put_logsumexp(lane: Expr) -> list[Stmt]:
        at = Position(logsumexp.type.shape, (b, h, first + lane))
        return [If(lane < count, (Store(targets[logsumexp], at.flat, load(top, lane) + log(load(total, lane))),))]

    stop = x.least(total_keys, first + count) if x.op.attrs["causal"] else total_keys
    body: list[Stmt] = [
        Let(h, (item // blocks) % dim_expr(heads)),
        Let(b, item // blocks // dim_expr(heads)),
        Let(first, x.paired(item % blocks, blocks) * lanes),
        Let(count, x.least(dim_expr(length) - first, index(lanes))),
        Let(factor, x.pull.at(scale, Position(()))),
        *x.copy(rows, q, (b, h), first, count, lanes),
        *x.turn_in(columns, rows, count, deep),
        *x.lanes(lanes, lambda lane: [Store(top, lane, lowest), Store(total, lane, zero)]),
        every(begin),
        For(start, index(0), stop, tuple(inside), index(KEYS)),
        every(divide),
    ]  # fmt: skip
    if out in targets:
        body += x.turn_out(rows, sums, count, wide)
        body += x.put(targets[out], out.type.shape, rows, (b, h), first, count)
    if logsumexp in targets:
        body += x.lanes(lanes, put_logsumexp)
    return Kernel(
        name="attention",
        buffers=(*x.pull.buffers.values(), *targets.values()),
        extents=group_extents(group),
        parallel=dim_expr(batch) * dim_expr(heads) * blocks,
        work=dim_expr(work_of(x.op, depth + width + 40)),
        body=(*x.allocations, For(item, var("begin"), var("end"), tuple(body), index(1))),
    )
