"""Division of many elements by one divisor: three operations an element instead of a dozen, and the same bits.

With y = 1/b rounded to nearest, q0 = a*y and r = fma(-q0, b, a), the quotient fma(r, y, q0) is a/b rounded to nearest
(Markstein, Computation of elementary functions on the IBM RISC System/6000 processor, 1990), as long as nothing
overflows or underflows on the way. For float32: q0 is within 1.5 units in the last place of a/b, so before the last rounding
the result differs from a/b by less than 4.5/(2B) units, B the significand of b as an integer; only quotients so near to
the middle between two floats could be rounded wrongly, and every one of them (116 million) has been tried.

Overflow, infinities and NaN make q NaN or infinite; underflow cannot happen where |q| >= 2**-60 and b is between 2**-20 and
2**60. Where that does not hold for some element of a thread, the thread computes its elements again by division.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from graphc.codegen.expr import Expr, absolute, children_first, const, fma, load, make
from graphc.codegen.loops import Buffer, If, Let, Stmt, Store
from graphc.ir.types import BOOL, F32

LEAST_QUOTIENT, LEAST_DIVISOR, GREATEST_DIVISOR = 2.0**-60, 2.0**-20, 2.0**60


def safe_divisor(b: Expr) -> Expr:
    """Whether quotients by `b` may be computed by its reciprocal."""
    return (b >= LEAST_DIVISOR) & (b <= GREATEST_DIVISOR)


class Quotients:
    """Rewrites divisions by what is the same for a whole row.

    uniform: the names that are; reciprocal(b): the expression of 1/b, computed once. `used` are the divisors met.
    """

    def __init__(self, uniform: Collection[Expr], reciprocal: Callable[[Expr], Expr], fine: Buffer) -> None:
        self.uniform, self.reciprocal, self.fine = uniform, reciprocal, fine
        self.used: dict[Expr, Expr] = {}

    def rewrite(self, stmts: Sequence[Stmt], slot: Expr) -> list[Stmt]:
        """`stmts` with such divisions replaced; what is not fine is noted in element `slot` of `fine`."""
        out: list[Stmt] = []
        for s in stmts:
            quotients: list[Expr] = []
            if isinstance(s, Let):
                s = Let(s.var, self._expr(s.value, quotients))
            elif isinstance(s, Store):
                s = Store(s.buffer, s.index, self._expr(s.value, quotients), s.stream)
            elif isinstance(s, If) and not s.orelse:
                s = If(s.cond, tuple(self.rewrite(s.then, slot)))
            out.append(s)
            for q in quotients:
                out.append(Store(self.fine, slot, load(self.fine, slot) & (absolute(q) >= LEAST_QUOTIENT)))
        return out

    def _expr(self, e: Expr, quotients: list[Expr]) -> Expr:
        done: dict[Expr, Expr] = {}
        for node in children_first((e,)):
            args = tuple(done[a] for a in node.args)
            if node.op == "div" and node.dtype is F32 and self._is_uniform(node.args[1]) and not self._is_uniform(node.args[0]):
                a, b = args
                y = self.used.setdefault(b, self.reciprocal(b))
                q = a * y
                done[node] = fma(fma(-q, b, a), y, q)
                quotients.append(done[node])
                continue
            done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
        return done[e]

    def _is_uniform(self, e: Expr) -> bool:
        """Whether `e` is made of the names of what is the same for a row."""
        return all(n in self.uniform if n.op == "var" else n.op not in ("load", "shuffle", "lanes") for n in children_first((e,)))


def unless_fine(fine: Buffer, slots: Sequence[Expr], again: Sequence[Stmt]) -> Stmt:
    """`again`, where some quotient was not fine."""
    every = const(BOOL, True)
    for k in slots:
        every = load(fine, k) if every.op == "const" else every & load(fine, k)
    return If(~every, tuple(again))
