"""Index expressions as polynomials: one normal form, strides, and undone divisions.

A flat position that was split into coordinates (`p // d`, `p % d`) and put together again by a
row-major layout is the position itself; only the polynomial form shows it. The normal form adds
terms from the outermost loop to the innermost, so that everything invariant is hoisted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphc.codegen.expr import (
    Expr,
    cast,
    children_first,
    const,
    equal,
    index,
    load,
    logical_and,
    make,
    select,
)
from graphc.codegen.lower.index import dim_expr
from graphc.ir.types import BOOL, I64, U32, Shape

Monomial = tuple[Expr, ...]
Terms = dict[Monomial, int]


def terms(e: Expr, _memo: dict[Expr, Terms] | None = None) -> Terms:
    """An I64 expression as a sum of integer multiples of products of atoms."""
    memo: dict[Expr, Terms] = {} if _memo is None else _memo
    for node in children_first((e,)):
        if node not in memo:
            memo[node] = _terms(node, memo)
    return memo[e]


def _terms(e: Expr, memo: dict[Expr, Terms]) -> Terms:
    if e.op == "const":
        return {(): int(e.data)} if e.data else {}
    if e.dtype is I64 and e.op in ("add", "sub"):
        return _sum(memo[e.args[0]], memo[e.args[1]], 1 if e.op == "add" else -1)
    if e.dtype is I64 and e.op == "mul":
        return _product(memo[e.args[0]], memo[e.args[1]])
    return {(e,): 1}


def _sum(a: Terms, b: Terms, scale: int = 1) -> Terms:
    out = dict(a)
    for m, c in b.items():
        total = out.get(m, 0) + scale * c
        if total:
            out[m] = total
        else:
            del out[m]
    return out


def _product(a: Terms, b: Terms) -> Terms:
    out: Terms = {}
    for m, c in a.items():
        for n, d in b.items():
            out = _sum(out, {_sorted(m + n): c * d})
    return out


_order: dict[Expr, int] = {}


def _sorted(m: Monomial) -> Monomial:
    """Atoms in a fixed order, so that equal products are equal keys."""
    return tuple(sorted(m, key=id))


def _undo_divisions(p: Terms) -> Terms:
    """c*A*d*(x // d) + c*A*(x % d) is c*A*x."""
    while True:
        merged = _undo_one(p)
        if merged is None:
            return p
        p = merged


def _undo_one(p: Terms) -> Terms | None:
    for monomial, c in p.items():
        for atom in monomial:
            if atom.op != "irem":
                continue
            x, d = atom.args
            divisor = terms(d)
            if len(divisor) != 1:
                continue
            ((factors, scale),) = divisor.items()
            rest = list(monomial)
            rest.remove(atom)
            quotient = make("idiv", I64, (x, d))
            partner = _sorted((*rest, quotient, *factors))
            if p.get(partner, 0) != c * scale:
                continue
            left = {m: k for m, k in p.items() if m not in (monomial, partner)}
            return _sum(left, _product({_sorted(tuple(rest)): c}, terms(x)))
    return None


class Levels:
    """Loop variables from the outermost to the innermost; everything else is outside of all."""

    def __init__(self, loops: Iterable[Expr]) -> None:
        self.rank = {v: i + 1 for i, v in enumerate(loops)}
        self._memo: dict[Expr, int] = {}

    def of(self, e: Expr) -> int:
        found = self._memo.get(e)
        if found is None:
            for node in children_first((e,)):
                if node not in self._memo:
                    inner = max((self._memo[a] for a in node.args), default=0)
                    self._memo[node] = max(inner, self.rank.get(node, 0))
            found = self._memo[e]
        return found


def normal(e: Expr, levels: Levels) -> Expr:
    """`e` (I64), divisions undone, summed from the outermost terms to the innermost."""
    return _build(_undo_divisions(terms(e)), levels)


def _build(p: Terms, levels: Levels) -> Expr:
    total: Expr | None = None
    literal = p.get((), 0)
    ranked = sorted(
        ((max(levels.of(a) for a in m), i, m, c) for i, (m, c) in enumerate(p.items()) if m),
        key=lambda t: t[:2],
    )
    for _, _, monomial, c in ranked:
        atoms = sorted(monomial, key=levels.of)
        product = atoms[0]
        for a in atoms[1:]:
            product = product * a
        if c != 1:
            product = product * c
        total = product if total is None else total + product
    if total is None:
        return index(literal)
    return total + literal


def linear(e: Expr, v: Expr, levels: Levels) -> tuple[Expr, Expr] | None:
    """(c, rest) with e = c*v + rest, neither depending on v; None if e is not linear in v."""
    p = _undo_divisions(terms(e))
    slope: Terms = {}
    rest: Terms = {}
    alone = Levels((v,))
    for m, c in p.items():
        inside = [a for a in m if alone.of(a)]
        if not inside:
            rest[m] = c
        elif inside == [v]:
            without = list(m)
            without.remove(v)
            slope[tuple(without)] = c
        else:
            return None
    return _build(slope, levels), _build(rest, levels)


def depends(e: Expr, v: Expr) -> bool:
    return Levels((v,)).of(e) > 0


def tidy(e: Expr, loops: Sequence[Expr], small: Expr | None = None) -> Expr:
    """`e` with the positions of its loads in normal form for the given loops, outermost first.

    small: an I64 expression in [0, 2**32): its divisions by literals are done in 32 bits, of which a
        vector register holds twice as many.
    """
    levels = Levels(loops)
    done: dict[Expr, Expr] = {}
    for node in children_first((e,)):
        args = tuple(done[a] for a in node.args)
        if node.op == "load":
            done[node] = load(node.data, normal(args[0], levels), *args[1:])
        else:
            done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
    return done[e] if small is None else _narrow_divisions(done[e], small)


def _narrow_divisions(e: Expr, small: Expr) -> Expr:
    narrow: dict[Expr, Expr] = {small: cast(small, U32)}
    done: dict[Expr, Expr] = {}
    for node in children_first((e,)):
        if node.op in ("idiv", "irem") and node.args[0] in narrow and node.args[1].op == "const":
            narrow[node] = make(node.op, U32, (narrow[node.args[0]], cast(node.args[1], U32)))
            done[node] = cast(narrow[node], I64)
            continue
        args = tuple(done[a] for a in node.args)
        done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
    return done[e]


def split_lanes(base: Expr, lane: Expr, width: int, shape: Shape) -> tuple[Expr, ...]:
    """Coordinates of base + lane, for lanes 0 .. width - 1 and a base that is a multiple of `width`.

    Wherever a dimension and the width divide each other, the lane's part is a literal of the lane.
    """
    coords = [index(0)] * len(shape)
    big = [i for i, d in enumerate(shape) if d != 1]
    while big:
        i = big.pop()
        d = shape[i]
        if not big:
            coords[i] = base + lane
        elif width > 1 and isinstance(d, int) and d > 0 and width % d == 0:
            coords[i] = lane % d
            base, lane, width = base // d, lane // d, width // d
        elif width > 1 and isinstance(d, int) and d > 0 and d % width == 0:
            coords[i] = base % d + lane
            base, lane, width = base // d, index(0), 1
        else:
            flat = base + lane
            coords[i] = flat % dim_expr(d)
            base, lane, width = flat // dim_expr(d), index(0), 1
    return tuple(coords)


def ceil_div(a: Expr, b: int) -> Expr:
    """The quotient of a >= 0 by a literal, rounded up."""
    return (a + (b - 1)) // b


def least_of(a: Expr, b: Expr) -> Expr:
    if a.op == b.op == "const":
        return a if a.data <= b.data else b
    return a if a is b else select(a < b, a, b)


def greatest_of(a: Expr, b: Expr) -> Expr:
    if a.op == b.op == "const":
        return a if a.data >= b.data else b
    return a if a is b else select(a < b, b, a)


def decided(cond: Expr) -> Expr:
    """A comparison of two literals, folded."""
    if len(cond.args) == 2 and all(a.op == "const" for a in cond.args):
        a, b = (x.data for x in cond.args)
        table = {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}
        if cond.op in table:
            return const(BOOL, table[cond.op])
    return cond


__all__ = [
    "Levels", "ceil_div", "decided", "depends", "equal", "greatest_of", "least_of", "linear",
    "logical_and", "normal", "split_lanes", "terms", "tidy",
]  # fmt: skip
