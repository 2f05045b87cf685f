"""Which number surely divides a position: what proves wide accesses aligned.

`divisor(e, facts)` is a d >= 0 such that e is a multiple of d for all values of its names that `facts` allows (name -> a
number that divides it; others may be anything). 0 means that e is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from graphc.codegen.expr import Expr, children_first

_MOST = 1 << 40  # more is of no use, and products stay small


def _limit(d: int) -> int:
    return d if d <= _MOST else d & -d if (d & -d) <= _MOST else _MOST


def divisor(e: Expr, facts: Mapping[Expr, int]) -> int:
    """A number that divides the I64 expression `e`.

    >>> from graphc.codegen.expr import index, var
    >>> divisor(var("i") * 4 + var("n") * 2, {var("n"): 4})
    4
    """
    found: dict[Expr, int] = {}
    for node in children_first((e,)):
        args = [found[a] for a in node.args]
        if node.op == "const":
            d = abs(int(node.data)) if node.dtype.kind in "iu" else 1
        elif node.op == "var":
            d = facts.get(node, 1)
        elif node.op in ("add", "sub", "irem"):
            d = gcd(args[0], args[1])
        elif node.op == "mul":
            d = args[0] * args[1]
        elif node.op == "idiv":
            by = node.args[1]
            exact = by.op == "const" and by.data != 0 and args[0] % abs(by.data) == 0
            d = args[0] // abs(by.data) if exact else 1
        elif node.op == "select":
            d = gcd(args[1], args[2])
        elif node.op == "neg":
            d = args[0]
        elif node.op == "shl" and node.args[1].op == "const":
            d = args[0] << min(int(node.args[1].data), 40)
        elif node.op == "and":
            # The low bits that are 0 in either operand are 0 in both's conjunction.
            d = 0 if 0 in args else max(a & -a for a in args)
        elif node.op in ("or", "xor"):
            low = gcd(args[0], args[1])
            d = low & -low
        else:
            d = 1
        found[node] = _limit(d)
    return found[e]
