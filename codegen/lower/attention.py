"""attention: an item is a block of queries of one head; it goes over the keys in blocks of 64.

Lanes run along the queries, so that the running maximum, the sum and the weights of a query stay in one lane and
nothing is combined across lanes. In memory of the item's own: the queries as columns [D][queries], a block of keys and
values (padded with -0.0, whose products change no sum), their scores [64][queries], the weighted sums [E][queries].
ir/ops/attention.py is the definition; the steps are in attention_blocks.py, the gradients in attention_grad.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from graphc.codegen.expr import Expr, const, equal, fma, index, load, select, var
from graphc.codegen.loops import Assign, Buffer, Declare, For, If, Kernel, Let, Stmt, Store
from graphc.codegen.lower.attention_blocks import KEYS, Blocks, Where, work_of
from graphc.codegen.lower.attention_grad import gradient_kernels
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.lowered import Lowered, Scratch
from graphc.codegen.lower.nest import ceil_div, group_buffers, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.math.exponential import exp
from graphc.codegen.math.logarithm import log
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import size_of, substitute

NAMES = frozenset(("attention", "attention_grad"))
SMALL = 16  # queries of an item where there are no more
HEADS = 8  # so many heads of keys, at least, are work for all threads


def attention_of(group: Function) -> Operation | None:
    """The attention or attention_grad of a group that has one."""
    return next((op for op in group.ops if op.name in NAMES), None)


def variant(op: Operation, hint: dict[str, int]) -> str:
    """How many queries an item has, and whether gradients are one kernel, as part of a kernel's key."""
    queries = substitute(op.operands[0].type.shape[2], dict(hint))
    lanes = SMALL if isinstance(queries, int) and queries <= SMALL else KEYS
    if op.name == "attention_grad":
        heads = substitute(size_of(op.operands[1].type.shape[:2]), dict(hint))
        if isinstance(heads, int) and heads >= max(HEADS, os.cpu_count() or 1):
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
    else:
        kernels = (_forward(group, Blocks(pull, op, vector_bits, int(queries)), targets),)
    return Lowered(kernels, params, results, scratch, tuple(pull.sites))


def _forward(group: Function, x: Blocks, targets: Mapping[Value, Buffer]) -> Kernel:
    q, k, v, scale, *masks = x.op.operands
    out, logsumexp = x.op.results
    batch, heads, length, _ = q.type.shape
    depth, width = x.sizes
    lanes = x.queries
    zero = const(x.wide, 0.0)

    item, b, h, first, count, start, keys = (x.name(s) for s in ("item", "b", "h", "q", "queries", "k", "keys"))
    factor, e, e2 = x.name("scale", x.wide), x.name("e"), x.name("e")
    blocks = ceil_div(dim_expr(length), lanes)
    total_keys = dim_expr(k.type.shape[2])
    kh = x.key_head(h)
    rows = x.array("rows", lanes * max(x.padded(depth), x.padded(width)))
    columns, sums = x.array("columns", x.padded(depth) * lanes), x.array("sums", x.padded(width) * lanes)
    key_block, value_block = x.array("keys", KEYS * x.padded(depth)), x.array("values", KEYS * x.padded(width))
    scores = x.array("scores", KEYS * lanes)
    top, total, shrink = x.array("top", lanes), x.array("total", lanes), x.array("shrink", lanes)
    where = Where(b, h, first, count, start, keys)

    def weigh(lane: Expr) -> list[Stmt]:
        """Scores become weights. A NaN is left out of the maximum: the weights carry it into every result."""
        running, z, j, j2 = x.name("running", x.wide), x.name("z", x.wide), x.name("j"), x.name("j")
        here, there = load(scores, j * lanes + lane), load(scores, j2 * lanes + lane)
        return [
            Declare(running, load(top, lane)),
            For(j, index(0), index(KEYS), (Assign(running, select(here > running, here, running)),), index(1)),
            Let(z, select(equal(running, float("-inf")), zero, running)),
            Store(shrink, lane, exp(load(top, lane) - z)),
            Store(top, lane, running),
            For(j2, index(0), index(KEYS), (Store(scores, j2 * lanes + lane, exp(there - z)),), index(1)),
        ]

    def add_up(lane: Expr) -> list[Stmt]:
        return [Store(total, lane, fma(load(total, lane), load(shrink, lane), x.block_sum(scores, lane)))]

    def divide(lane: Expr) -> list[Stmt]:
        at = e2 * lanes + lane
        return [Store(sums, at, select(equal(load(total, lane), 0.0), zero, load(sums, at) / load(total, lane)))]

    def put_logsumexp(lane: Expr) -> list[Stmt]:
        at = Position(logsumexp.type.shape, (b, h, first + lane))
        return [If(lane < count, (Store(targets[logsumexp], at.flat, load(top, lane) + log(load(total, lane))),))]

    inside: list[Stmt] = [
        Let(keys, x.least(total_keys - start, index(KEYS))),
        *x.copy(key_block, k, (b, kh), start, keys, KEYS),
        *x.copy(value_block, v, (b, kh), start, keys, KEYS),
        *x.scores(scores, key_block, columns, depth, factor, masks, where),
        *x.hide(scores, where),
        *x.lanes(lanes, weigh),
        *x.lanes(lanes, add_up, x.vector),
        *x.product(
            x.padded(width), lanes, index(KEYS),
            lambda r, at: load(value_block, at * x.padded(width) + r),
            lambda lane, at: load(scores, at * lanes + lane),
            lambda r, lane: load(sums, r * lanes + lane) * load(shrink, lane),
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
        *x.lanes(lanes, lambda lane: [Store(top, lane, const(x.wide, float("-inf"))), Store(total, lane, zero)]),
        For(e, index(0), index(x.padded(width)), tuple(
            x.lanes(lanes, lambda lane: [Store(sums, e * lanes + lane, zero)])
        ), index(1)),
        For(start, index(0), stop, tuple(inside), index(KEYS)),
        For(e2, index(0), index(x.padded(width)), tuple(x.lanes(lanes, divide)), index(1)),
    ]  # fmt: skip
    if out in targets:
        body += x.turn(rows, sums, x.padded(width), lanes)
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
