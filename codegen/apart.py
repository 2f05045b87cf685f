"""Sizes that are equal by chance: a batch of 32 before 32 channels.

In canonical text one name stands for one size. Dimensions that no operation ties together must not share a name for being of one
size today, or another batch would be another kernel. So before they are named, such dimensions get numbers that nothing else has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import IRTypeError, lookup
from graphc.ir.types import Dim

Place = tuple[Value, int]
# The first number that is given out. Sizes that are asked for whether they are small are not replaced.
FIRST = (1 << 40) + 15


class Ties:
    """Union-find over the dimensions of values."""

    def __init__(self) -> None:
        self.parent: dict[Place, Place] = {}

    def find(self, p: Place) -> Place:
        root = p
        while (up := self.parent.get(root, root)) != root:
            root = up
        while p != root:
            self.parent[p], p = root, self.parent.get(p, p)
        return root

    def tie(self, a: Value, i: int, b: Value, j: int) -> None:
        p, q = self.find((a, i)), self.find((b, j))
        if p != q:
            self.parent[p] = q

    def tie_all(self, values: Iterable[Value]) -> None:
        """Dimensions of equal size at equal places."""
        first, *rest = values
        for v in rest:
            if v.type.rank == first.type.rank:
                for i, (d, e) in enumerate(zip(first.type.shape, v.type.shape, strict=True)):
                    if d == e:
                        self.tie(first, i, v, i)

    def tie_equal(self, a: Value, b: Value) -> None:
        """All dimensions of equal size."""
        for i, d in enumerate(a.type.shape):
            for j, e in enumerate(b.type.shape):
                if d == e:
                    self.tie(a, i, b, j)


def _tie(ties: Ties, op: Operation) -> bool:
    """What an operation ties together; False for one that is not known here."""
    family, name, a = lookup(op.name).family, op.name, op.attrs
    if not op.operands or name == "full":
        return True
    source, out = op.operands[0], op.results[0]
    if family in ("elementwise", "compare", "pool") or name in _ALIKE:
        ties.tie_all([*op.operands, *op.results])
    elif name == "broadcast":
        for i, d in enumerate(a["axes"]):
            if source.type.shape[i] == out.type.shape[d]:
                ties.tie(source, i, out, d)
    elif name == "permute":
        for i, d in enumerate(a["axes"]):
            ties.tie(source, d, out, i)
    elif name == "reshape":
        ties.tie_equal(source, out)
    elif family == "reduce":
        axes = a["axes"] if "axes" in a else (a["axis"],)
        for i, d in enumerate(d for d in range(source.type.rank) if d not in axes):
            for r in op.results:
                ties.tie(source, d, r, i)
    elif name == "dot":
        _tie_dot(ties, op)
    elif name == "conv":
        _tie_conv(ties, op)
    elif name in ("gather", "scatter", "scatter_add"):
        index, picked = op.operands[1], out if name == "gather" else op.operands[2]
        if name != "gather":
            ties.tie_all([source, out])
        axis, rank = a["axis"], index.type.rank
        for d in range(rank):
            ties.tie(index, d, picked, axis + d)
        for d in range(source.type.rank):
            if d != axis:
                ties.tie(source, d, picked, d if d < axis else d - 1 + rank)
    elif family == "attention" and all(v.type.rank in (0, 3, 4) for v in op.operands):
        # Of a mask, and of other sizes than the batch, what is equal is taken to be tied.
        values = [v for v in (*op.operands, *op.results) if v.type.rank]
        ties.tie_all([v for v in values if v.type.rank == 4])
        for v in values:
            ties.tie(values[0], 0, v, 0) if v.type.shape[0] == values[0].type.shape[0] else None
            for u in values:
                for i in range(1, v.type.rank):
                    for j in range(1, u.type.rank):
                        if v.type.shape[i] == u.type.shape[j]:
                            ties.tie(v, i, u, j)
    else:
        return False
    return True


# Operations whose operands and results have one size at one place, where sizes are equal.
_ALIKE = frozenset(
    (
        "slice",
        "pad",
        "flip",
        "concat",
        "linear_scan",
        "take_along",
        "put_along",
        "put_along_add",
        "stop_gradient",
        "check_index",
    )
)


def _tie_dot(ties: Ties, op: Operation) -> None:
    (lhs, rhs), out, a, place = op.operands, op.result, op.attrs, 0
    for d, e in zip(a["lhs_batch"], a["rhs_batch"], strict=True):
        ties.tie(lhs, d, rhs, e)
        ties.tie(lhs, d, out, place)
        place += 1
    for d, e in zip(a["lhs_contract"], a["rhs_contract"], strict=True):
        ties.tie(lhs, d, rhs, e)
    for v, taken in (
        (lhs, (*a["lhs_batch"], *a["lhs_contract"])),
        (rhs, (*a["rhs_batch"], *a["rhs_contract"])),
    ):
        for d in range(v.type.rank):
            if d not in taken:
                ties.tie(v, d, out, place)
                place += 1


def _tie_conv(ties: Ties, op: Operation) -> None:
    (x, w), out, a = op.operands, op.result, op.attrs
    grouped, parts = a["groups"] > 1, a["batch_groups"] > 1
    # Sides follow from each other by arithmetic, and so do channels and examples that are taken in parts.
    tangled = [(v, i) for v in (x, w, out) for i in range(2, x.type.rank)]
    for (v, i), (u, j), alone in (
        ((x, 0), (out, 0), not parts),
        ((x, 1), (w, 1), not grouped),
        ((w, 0), (out, 1), not grouped and not parts),
    ):
        if alone:
            ties.tie(v, i, u, j)
        else:
            tangled += [(v, i), (u, j)]
    for v, i in tangled:
        for u, j in tangled:
            if v.type.shape[i] == u.type.shape[j]:
                ties.tie(v, i, u, j)


def _open(op: Operation) -> list[Place]:
    """Dimensions that are never asked whether they are small, whatever sizes the operation holds literal."""
    a, family = op.attrs, lookup(op.name).family
    if op.name == "conv":
        return (
            [(op.operands[0], 0)]
            if a["batch_groups"] == 1
            else [(op.operands[0], 1)]
            if a["groups"] == 1
            else []
        )
    if family == "pool":
        return [(op.operands[0], i) for i in range(op.operands[0].type.rank - len(a["window"]))]
    if family == "reduce":
        axes = a["axes"] if "axes" in a else (a["axis"],)
        return [(op.operands[0], i) for i in range(op.operands[0].type.rank) if i not in axes]
    return [(op.operands[0], 0)] if family == "attention" else []


@dataclass(frozen=True)
class Apart:
    """A group in which dimensions that nothing ties differ, and the sizes that its new numbers stand for."""

    group: Function
    sizes: dict[Dim, Dim]


def told_apart(group: Function, literal: set[Dim]) -> Apart | None:
    """The group with such numbers; None where there is nothing to tell apart. literal: sizes that stay what they are."""
    values = [*group.params, *(r for op in group.ops for r in op.results)]
    often: dict[Dim, int] = {}
    for v in group.params:
        for d in v.type.shape:
            often[d] = often.get(d, 0) + 1
    if not any(n > 1 and isinstance(d, int) and d > 1 for d, n in often.items()):
        return None
    ties = Ties()
    for op in group.ops:
        if not _tie(ties, op):
            return None
    # Lowering asks whether what is swept together has one shape.
    swept = [*group.results, *(op.operands[0] for op in group.ops if lookup(op.name).family == "reduce")]
    swept += [op.result for op in group.ops if op.name in ("dot", "conv")]
    for i, v in enumerate(swept):
        for u in swept[:i]:
            if u.type.shape == v.type.shape:
                ties.tie_all((u, v))
    # Of the dimensions of one size those that come first keep it, and those that are held literal.
    free = {ties.find(place) for op in group.ops for place in _open(op)}
    classes: dict[Dim, list[Place]] = {}
    for v in values:
        for i, d in enumerate(v.type.shape):
            root = ties.find((v, i))
            if isinstance(d, int) and d > 1 and root not in classes.setdefault(d, []):
                classes[d].append(root)
    numbers: dict[Place, int] = {}
    for d, roots in classes.items():
        others = [r for r in roots if r in free] if d in literal else roots[1:]
        if len(others) < len(roots):
            numbers.update((r, FIRST + 2 * (len(numbers) + n)) for n, r in enumerate(others))
    if not numbers:
        return None
    sizes: dict[Dim, Dim] = {}

    def at(v: Value) -> tuple[Dim, ...]:
        shape = tuple([numbers.get(ties.find((v, i)), d) for i, d in enumerate(v.type.shape)])
        sizes.update({n: d for n, d in zip(shape, v.type.shape, strict=True) if n != d})
        return shape

    b = Builder(group.name)
    env = {
        p: b.param(p.type.with_shape(at(p)), name)
        for p, name in zip(group.params, group.param_names, strict=True)
    }
    for op in group.ops:
        attrs = dict(op.attrs)
        if "shape" in attrs:
            attrs["shape"] = at(op.result)
        elif "input_shape" in attrs:
            attrs["input_shape"] = at(op.result)
        elif op.name == "slice":
            whole, new = op.operands[0].type.shape, at(op.operands[0])
            attrs["limit"] = tuple(
                n if limit == d else limit for limit, d, n in zip(attrs["limit"], whole, new, strict=True)
            )
        b.loc = op.loc
        try:
            made = b.emit_op(op.name, *[env[v] for v in op.operands], **attrs)
        except (IRTypeError, ValueError, TypeError):
            return None
        for old, fresh in zip(op.results, made.results, strict=True):
            if fresh.type.shape != at(old):
                return None
            env[old] = fresh
    return Apart(b.build([env[r] for r in group.results]), sizes)
