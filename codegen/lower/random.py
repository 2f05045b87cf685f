"""Random bits as an expression of the position: Philox4x32-10, as defined in ir/ops/random.py."""

from __future__ import annotations

from graphc.codegen.expr import Expr, binary, cast, const, equal, select
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.pull import Pull, pullable
from graphc.ir.function import Operation
from graphc.ir.ops.random import MULTIPLIERS, ROUNDS, WEYL
from graphc.ir.types import U32, U64


def philox(counter: tuple[Expr, Expr], key: tuple[Expr, Expr]) -> tuple[Expr, Expr, Expr, Expr]:
    """The four u32 words of the block with the u32 counter words (low, high), 0, 0."""
    c0, c1 = counter
    c2 = c3 = const(U32, 0)
    k0, k1 = key
    m0, m1 = (const(U32, m) for m in MULTIPLIERS)
    for _ in range(ROUNDS):
        high0, low0 = binary("mulhi", c0, m0), c0 * m0
        high1, low1 = binary("mulhi", c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + WEYL[0], k1 + WEYL[1]
    return c0, c1, c2, c3


def random_bits(pull: Pull, op: Operation, result: int, at: Position) -> Expr:
    key, offset = (pull.at(v, Position(())) for v in op.operands)
    dtype = op.result.type.dtype
    position = offset + cast(at.flat, U64)
    shift = 2 if dtype is U32 else 1
    block = position >> shift
    word = position & ((1 << shift) - 1)
    out = philox((low_word(block), high_word(block)), (low_word(key), high_word(key)))
    if dtype is U32:
        return select(
            word < 2,
            select(equal(word, 0), out[0], out[1]),
            select(equal(word, 2), out[2], out[3]),
        )
    first = equal(word, 0)
    low, high = (cast(select(first, out[i], out[i + 2]), U64) for i in (0, 1))
    return low | (high << 32)


def low_word(x: Expr) -> Expr:
    return cast(x, U32)


def high_word(x: Expr) -> Expr:
    return cast(x >> 32, U32)


pullable("random_bits", random_bits)
