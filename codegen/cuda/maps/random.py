"""Random bits of the lanes of a vector: a block of Philox serves all the elements whose words it holds.

Lanes are consecutive positions, so a thread needs width / (elements of a block) blocks, and one more where the first
position is not a multiple of that. Whether it is, is the same for all threads of a launch.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, cast, const, equal, index, load, not_equal, select
from graphc.codegen.loops import Alloc, Assign, Buffer, Declare, If, Let, Stmt, Store
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.nest import Names
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.random import high_word, low_word, philox, random_bits
from graphc.ir.function import Function, Operation
from graphc.ir.types import U32, U64


def draw_vectors(group: Function, pull: Pull, first: Expr, width: int, names: Names) -> list[Stmt]:
    """Statements that draw what the lanes at first .. first + width - 1 read; `pull` then finds it there."""
    stmts: list[Stmt] = []
    for op in group.ops:
        if op.name == "random_bits" and op.result.type.size == group.results[0].type.size:
            stmts += _draw(op, pull, first, width, names)
    return stmts


def _draw(op: Operation, pull: Pull, first: Expr, width: int, names: Names) -> list[Stmt]:
    dtype = op.result.type.dtype
    in_block = 4 if dtype is U32 else 2
    if width % in_block:
        return []
    key, offset = (pull.at(v, Position(())) for v in op.operands)
    keys = low_word(key), high_word(key)
    position, block, skip = (names.fresh(n, U64) for n in ("position", "block", "skip"))
    stmts: list[Stmt] = [
        Let(position, offset + cast(first, U64)),
        Let(block, position >> (in_block.bit_length() - 1)),
        Let(skip, position & (in_block - 1)),
    ]

    def draws(number: int) -> list[Expr]:
        # Positions wrap at 2^64, blocks with them.
        counter = (block + const(U64, number)) & (2**64 // in_block - 1) if number else block
        words = philox((low_word(counter), high_word(counter)), keys)
        if dtype is U32:
            return list(words)
        return [cast(words[i], U64) | (cast(words[i + 1], U64) << 32) for i in (0, 2)]

    values: list[Expr] = []
    for number in range(width // in_block):
        drawn = [names.fresh("w", dtype) for _ in range(in_block)]
        stmts += [Let(w, e) for w, e in zip(drawn, draws(number), strict=True)]
        values += drawn
    more = [names.fresh("w", dtype) for _ in range(in_block)]
    stmts += [Declare(w, const(dtype, 0)) for w in more]
    last = draws(width // in_block)
    stmts.append(If(not_equal(skip, 0), tuple(Assign(w, e) for w, e in zip(more, last, strict=True))))
    values += more
    held = Buffer(str(names.fresh("bits").data), dtype, "local")
    stmts.append(Alloc(held, width))
    for lane in range(width):
        value = values[lane + in_block - 1]
        for skipped in reversed(range(in_block - 1)):
            value = select(equal(skip, skipped), values[lane + skipped], value)
        stmts.append(Store(held, index(lane), value))

    def at(where: Position) -> Expr:
        flat = where.flat
        if flat.op == "add" and flat.args[0] is first:
            return load(held, flat.args[1])
        return random_bits(pull, op, 0, where)

    pull.bind(op.result, at)
    return stmts
