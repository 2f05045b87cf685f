"""Vectors that stay within a segment: where a dimension was split or joined, positions hold quotients of the lane.

A row over (8 channels, 3136 pixels) reads its gain at position i // 3136. For most vectors all lanes have the same
quotient, and remainders that ascend by one: then one element is read for all lanes, and others lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr, children_first, const, index, logical_and, make, select
from graphc.codegen.loops import If, Stmt
from graphc.codegen.lower.rewrite import expressions, rewritten
from graphc.ir.types import BOOL

# Bodies with more divisors than this keep to the general form.
MOST = 4


def within_segments(body: Sequence[Stmt], lane: Expr, width: int) -> tuple[Stmt, ...]:
    """`body`, where that helps in two forms: for vectors within one segment of each position that is divided, and for others."""
    segments = _Segments(lane)
    for e in expressions(body):
        segments.find(e)
    if not segments.found or len(segments.found) > MOST:
        return tuple(body)
    inside = const(BOOL, True)
    for base, d in segments.found:
        inside = logical_and(inside, base % d <= d - width)
    across = _Across(segments, width)
    return (If(inside, rewritten(body, segments.rewrite), rewritten(body, across.rewrite)),)


class _Segments:
    """Finds quotients and remainders of base + lane by what is the same for all lanes, and rewrites them."""

    def __init__(self, lane: Expr) -> None:
        self.lane = lane
        self.found: dict[tuple[Expr, Expr], None] = {}
        self.base: dict[Expr, Expr] = {lane: index(0)}  # b of every b + lane
        self.varying: set[Expr] = {lane}
        self.done: dict[Expr, Expr] = {}

    def find(self, e: Expr) -> None:
        for node in children_first((e,)):
            if any(a in self.varying for a in node.args):
                self.varying.add(node)
            if node.op in ("add", "sub") and node.dtype is self.lane.dtype:
                a, b = node.args
                if a in self.base and b not in self.varying:
                    self.base[node] = self.base[a] + b if node.op == "add" else self.base[a] - b
                elif node.op == "add" and b in self.base and a not in self.varying:
                    self.base[node] = a + self.base[b]
            elif self.divides(node):
                base, d = self.base[node.args[0]], node.args[1]
                self.found[(base, d)] = None
                if node.op == "irem":
                    self.base[node] = base % d

    def divides(self, node: Expr) -> bool:
        return node.op in ("idiv", "irem") and node.args[0] in self.base and node.args[1] not in self.varying

    def rewrite(self, e: Expr) -> Expr:
        """`e` where all lanes lie within one segment."""
        done = self.done
        for node in children_first((e,)):
            if node in done:
                continue
            if self.divides(node):
                base, d = self.base[node.args[0]], node.args[1]
                done[node] = base // d if node.op == "idiv" else base % d + self.lane
                continue
            args = tuple(done[a] for a in node.args)
            done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
        return done[e]


class _Across:
    """Quotients and remainders of a vector that ends in the next segment, if segments are known to be as long as vectors: one
    comparison a lane instead of a division."""

    def __init__(self, segments: _Segments, width: int) -> None:
        self.segments, self.width = segments, width
        self.done: dict[Expr, Expr] = {}

    def rewrite(self, e: Expr) -> Expr:
        for node in children_first((e,)):
            if node in self.done:
                continue
            args = tuple(self.done[a] for a in node.args)
            if self.segments.divides(node) and args == node.args and args[1].op == "const" and args[1].data >= self.width:
                base, d = self.segments.base[args[0]], args[1]
                at = base % d + self.segments.lane
                if node.op == "idiv":
                    self.done[node] = base // d + select(at >= d, index(1), index(0))
                else:
                    self.done[node] = at - select(at >= d, d, index(0))
                continue
            self.done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
        return self.done[e]
