"""Maps that join tensors: blocks belong to the operands of a concat, in order, and see only theirs."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.maps.sweep import BLOCK, Lanes, blocks_for, sweep_grid, tiles_of
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import Expr, index, logical_and
from graphc.codegen.loops import Buffer, If, Let, Stmt
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.nest import Names, split_coords, store_results
from graphc.codegen.lower.pieces import bind_piece
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import Shape, size_of, substitute


def piece_width(op: Operation, sizes: Mapping[str, int], width: int) -> int:
    """The widest vector whose ends are the ends of all pieces' lines."""
    shape = op.result.type.shape
    inner = max(i for i, d in enumerate(shape) if d != 1)
    for v in (*op.operands, op.result):
        n = substitute(v.type.shape[inner], dict(sizes))
        assert isinstance(n, int)
        while n % width:
            width //= 2
    return width


def join_pieces(
    group: Function,
    op: Operation,
    pull: Pull,
    targets: list[tuple[Value, Buffer]],
    width: int,
    vectors: int,
    target: Target,
) -> tuple[list[Stmt], Expr]:
    """The body and the number of blocks of a group that `lower.pieces.joining` cuts by `op`."""
    shape, axis = op.result.type.shape, op.attrs["axis"]
    inner = max(i for i, d in enumerate(shape) if d != 1)
    names = Names()
    body: list[Stmt] = []
    first_block, first = index(0), index(0)
    for operand in op.operands:
        piece: Shape = operand.type.shape
        if 0 in piece:
            continue
        bind_piece(pull, op, operand, axis, first)

        def prepare(p: Expr, piece: Shape = piece, first: Expr = first) -> tuple[list[Stmt], Lanes]:
            stmts, coords = split_coords(p, piece, names)

            def lanes(lane: Expr) -> list[Stmt]:
                at = [c + lane if d == inner else c for d, c in enumerate(coords)]
                at[axis] = at[axis] + first
                return store_results(pull, targets, tuple(at), shape, names=names)

            return stmts, lanes

        total = dim_expr(size_of(piece))
        count, after = names.fresh("n"), names.fresh("to")
        blocks = blocks_for(tiles_of(total, width, vectors), target)
        body += [Let(count, blocks), Let(after, first_block + count)]
        block = BLOCK - first_block
        stmts = sweep_grid(total, width, vectors, True, prepare, names, block, count)
        mine = after > BLOCK
        body.append(If(mine if first_block is index(0) else logical_and(first_block <= BLOCK, mine), tuple(stmts)))
        first_block, first = after, first + dim_expr(piece[axis])
    sizes = (dim_expr(size_of(v.type.shape)) for v in op.operands if 0 not in v.type.shape)
    everything = index(0)
    for total in sizes:
        everything = everything + blocks_for(tiles_of(total, width, vectors), target)
    return body, everything
