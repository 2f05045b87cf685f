"""Map groups that join tensors: the domain is gone through piece by piece, one for each operand of a concat.

So an element costs what it costs in its piece, however many pieces there are; read anywhere else, a
concat looks at all its operands for every element.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr, index, logical_and, select, var
from graphc.codegen.loops import Buffer, For, If, Kernel, Let, Stmt
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
from graphc.codegen.lower.pull import Pull
from graphc.codegen.positions import step, tokens_of
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import size_of

# What follows the concat is written out once for each piece, as long as that is no more than so many operations.
MOST_WRITTEN_OUT = 300


def joining(group: Function) -> Operation | None:
    """The concat by whose operands a map group can be cut: all results have its shape, and read it at the
    current element only."""
    shape = group.results[0].type.shape
    if any(r.type.shape != shape for r in group.results):
        return None
    for op in sorted(group.ops, key=lambda op: -len(op.operands)):
        if op.name == "concat" and len(op.operands) > 1 and op.result.type.shape == shape and shape[op.attrs["axis"]] != 1:
            count = following(group, op)
            if count is not None and count * len(op.operands) <= MOST_WRITTEN_OUT:
                return op
    return None


def following(group: Function, op: Operation) -> int | None:
    """How many values come after `op`, its own included; None if one is read at another element."""
    producer = {r: o for o in group.ops for r in o.results}
    here = tokens_of(op.results[0].type.shape)
    stack = [(r, here) for r in group.results]
    seen = set(stack)
    dependent: set[Value] = set(op.results)
    for o in group.ops:
        if any(v in dependent for v in o.operands):
            dependent.update(o.results)
    while stack:
        value, at = stack.pop()
        if value in op.results:
            if at != here:
                return None
            continue
        if value not in dependent:
            continue
        for read in step(producer[value], at):
            if read not in seen:
                seen.add(read)
                stack.append(read)
    return len(dependent)


def lower_pieces(
    group: Function,
    op: Operation,
    params: tuple[Buffer, ...],
    results: tuple[Buffer, ...],
    pull: Pull,
    width: int,
    block_size: int,
    work: int,
) -> Lowered:
    """The kernel of a group that `joining` cuts by `op`: as for other maps, an item is a block of the
    innermost dimension."""
    shape, axis = op.result.type.shape, op.attrs["axis"]
    targets = list(zip(group.results, results, strict=True))
    names = Names()
    inner = max(i for i, d in enumerate(shape) if d != 1)
    n = dim_expr(shape[inner])
    blocks = ceil_div(n, block_size)
    item, block, row, start, stop = (names.fresh(s) for s in ("item", "block", "row", "s", "t"))
    body: list[Stmt] = [Let(row, item // blocks), Let(block, item % blocks)]
    stmts, coords = split_coords(row, tuple(1 if i == inner else d for i, d in enumerate(shape)), names)
    body += [*stmts, Let(start, block * block_size), Let(stop, minimum(start + block_size, n))]

    def stores(i: Expr) -> list[Stmt]:
        at = tuple(i if d == inner else c for d, c in enumerate(coords))
        return store_results(pull, targets, at, shape, names=names)

    first = index(0)
    for operand in op.operands:
        size = operand.type.shape[axis]
        after = first + dim_expr(size)
        bind_piece(pull, op, operand, axis, first)
        if axis != inner:
            here = logical_and(coords[axis] >= first, coords[axis] < after)
            body.append(If(here, tuple(sweep(start, stop, width, names, lambda i, lane: stores(i)))))
        elif size == 1:
            body.append(If(logical_and(start <= first, first < stop), tuple(stores(first))))
        elif size != 0:
            low, high = names.fresh("s"), names.fresh("t")
            body += [Let(low, select(start > first, start, first)), Let(high, minimum(stop, after))]
            body.append(If(low < high, tuple(sweep(low, high, width, names, lambda i, lane: stores(i)))))
        first = after
    rows = dim_expr(size_of(d for i, d in enumerate(shape) if i != inner))
    kernel = Kernel(
        name="join",
        buffers=tuple(dict.fromkeys((*params, *results))),
        extents=group_extents(group),
        parallel=rows * blocks,
        work=rows * n * work,
        body=(For(item, var("begin"), var("end"), tuple(body), index(1)),),
    )
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def bind_piece(pull: Pull, op: Operation, operand: Value, axis: int, first: Expr) -> None:
    """From now on the concat is read in one of its operands."""

    def at(position: Position) -> Expr:
        moved: Sequence[Expr] = [_below(c, first) if i == axis else c for i, c in enumerate(position.coords)]
        return pull.at(operand, Position(operand.type.shape, moved))

    pull.bind(op.result, at)


def _below(c: Expr, first: Expr) -> Expr:
    """c - first, where a sum with `first` loses it."""
    return c.args[0] if c.op == "add" and c.args[1] is first else c - first
