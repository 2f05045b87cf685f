"""Sizes that are equal by chance: a batch of 32 before 32 channels.

In canonical text one name stands for one size. Dimensions that no operation ties together must not share a name for being of one
size today, or another batch would be another kernel. So before they are named, such dimensions get numbers that nothing else has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphc.codegen.literal import Place, changed_places, is_prefix, same_ends
from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import IRTypeError, lookup
from graphc.ir.types import Dim

# The numbers that are given out are greater, in the order of the sizes. Sizes that are asked for whether they are small are not replaced.
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
        first, last = same_ends(op)
        for i in range(first):
            ties.tie(source, i, out, i)
        for i in range(1, last + 1):
            ties.tie(source, source.type.rank - i, out, out.type.rank - i)
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
    elif family == "attention":
        _tie_attention(ties, op)
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


def _tie_attention(ties: Ties, op: Operation) -> None:
    """Batches; of heads, of queries and keys, and of head sizes what is equal is taken to be tied."""
    scored = [v for v in (*op.operands[:3], *op.operands[4:], *op.results) if v.type.rank]
    mask = op.operands[_MASK[op.name]] if len(op.operands) > _MASK[op.name] else None
    kinds: tuple[list[Place], ...] = ([], [], [], [])
    for v in scored:
        for i in range(v.type.rank):
            kinds[min(i, 2) if v is mask else i].append((v, i))
    for kind in kinds:
        for n, (v, i) in enumerate(kind):
            for u, j in kind[:n]:
                if v.type.shape[i] == u.type.shape[j]:
                    ties.tie(v, i, u, j)


# Which operand of an operation is the mask, where there is one.
_MASK = {"attention": 4, "attention_grad": 7}


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


def _prefixes(group: Function) -> list[Operation]:
    return [op for op in group.ops if op.name in ("slice", "pad") and is_prefix(op, 0)]


@dataclass(frozen=True)
class Apart:
    """A group in which dimensions that nothing ties differ, and the sizes that its new numbers stand for."""

    group: Function
    sizes: dict[Dim, Dim]


def told_apart(group: Function) -> Apart | None:
    """The group with such numbers; None where there is nothing to tell apart."""
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
    # Of the dimensions of one size those keep it that come first, unless others are held literal or asked whether they are small.
    kept = {ties.find(place) for place in changed_places(group)}
    classes: dict[Dim, list[Place]] = {}
    for v in values:
        for i, d in enumerate(v.type.shape):
            root = ties.find((v, i))
            if isinstance(d, int) and d > 1 and root not in classes.setdefault(d, []):
                classes[d].append(root)
    renamed: list[tuple[int, Place]] = []
    compared = {ties.find((v, 0)) for op in _prefixes(group) for v in (op.operands[0], op.result)}
    alone: list[tuple[int, Place]] = []
    for d, roots in classes.items():
        assert isinstance(d, int)
        others = [r for r in roots if r not in kept]
        first = others[:1] if len(others) == len(roots) else []
        renamed += [(d, r) for r in others[len(first) :]]
        alone += [(d, r) for r in first if r in compared]
    if not renamed:
        return None
    # What is compared with another size is so with its number.
    numbers = {r: FIRST + (d << 20) + 2 * n for n, (d, r) in enumerate((*renamed, *alone))}
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
            if is_prefix(op, 0):
                attrs["limit"] = (at(op.result)[0], *attrs["limit"][1:])
        elif op.name == "pad" and is_prefix(op, 0):
            attrs["high"] = (at(op.result)[0] - at(op.operands[0])[0], *attrs["high"][1:])
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
