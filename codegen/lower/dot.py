"""`dot` as a contraction."""

from __future__ import annotations

from graphc.codegen.expr import Expr
from graphc.codegen.lower.contraction import Contraction, Coords, Element, Operand
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.ops.dot import free_axes


def dot_contraction(group: Function, root: Operation, pull: Pull) -> Contraction:
    """Rows are the free dimensions of lhs, lanes those of rhs, depth the contracted ones."""
    lhs, rhs = root.operands
    a = root.attrs
    sides = []
    for name, v in (("lhs", lhs), ("rhs", rhs)):
        batch, contract = a[f"{name}_batch"], a[f"{name}_contract"]
        free = free_axes(v.type.rank, batch, contract)
        shape = tuple(v.type.shape[i] for i in free)
        sides.append(Operand(shape, _element(pull, v, batch, free, contract)))
    batch_shape = tuple(lhs.type.shape[i] for i in a["lhs_batch"])
    depth = tuple(lhs.type.shape[i] for i in a["lhs_contract"])

    def place(batch: Coords, left: Coords, right: Coords) -> tuple[Expr, ...]:
        return (*batch, *left, *right)

    return Contraction(group, root, pull, batch_shape, depth, sides[0], sides[1], place)


def _element(
    pull: Pull, v: Value, batch_axes: tuple[int, ...], free_axes: tuple[int, ...], contract: tuple[int, ...]
) -> Element:
    def at(batch: Coords, free: Coords, depth: Coords) -> Expr:
        where = dict(zip((*batch_axes, *free_axes, *contract), (*batch, *free, *depth), strict=True))
        return pull.at(v, Position(v.type.shape, [where[i] for i in range(v.type.rank)]))

    return at
