"""Which neighbouring dimensions the operations of a group tell apart.

A boundary lies between two neighbouring dimensions of a value. Operations tie boundaries of their
operands and results together, or cut them; what is not cut may vanish. One rule for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphc.ir.function import Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import Dim, Shape, size_of

Boundary = tuple[Value, int]  # between dimensions i and i + 1 of a value


class Boundaries:
    """Union-find over boundaries; a class is either free to vanish or cut."""

    def __init__(self) -> None:
        self.parent: dict[Boundary, Boundary] = {}
        self.is_cut: set[Boundary] = set()

    def find(self, b: Boundary) -> Boundary:
        root = b
        while (up := self.parent.get(root, root)) != root:
            root = up
        while b != root:
            self.parent[b], b = root, self.parent.get(b, b)
        return root

    def tie(self, a: Boundary, b: Boundary) -> None:
        p, q = self.find(a), self.find(b)
        if p != q:
            self.parent[p] = q
            if p in self.is_cut:
                self.is_cut.add(q)

    def cut(self, b: Boundary) -> None:
        self.is_cut.add(self.find(b))

    def cut_all(self, values: Iterable[Value]) -> None:
        for v in values:
            for i in range(v.type.rank - 1):
                self.cut((v, i))

    def isolate(self, v: Value, axis: int) -> None:
        for i in (axis - 1, axis):
            if 0 <= i < v.type.rank - 1:
                self.cut((v, i))

    def tie_all(self, values: Iterable[Value]) -> None:
        first, *rest = values
        for v in rest:
            for i in range(first.type.rank - 1):
                self.tie((first, i), (v, i))

    def runs(self, v: Value) -> list[list[int]]:
        """The dimensions of `v` in runs that are merged into one dimension each."""
        runs: list[list[int]] = []
        for d in range(v.type.rank):
            if d and self.find((v, d - 1)) not in self.is_cut:
                runs[-1].append(d)
            else:
                runs.append([d])
        return runs


def _mark_elementwise(bs: Boundaries, op: Operation) -> None:
    bs.tie_all([*op.operands, *op.results])


def _mark_free(bs: Boundaries, op: Operation) -> None:
    pass


def _mark_hard(bs: Boundaries, op: Operation) -> None:
    bs.cut_all([*op.operands, *op.results])


def _mark_broadcast(bs: Boundaries, op: Operation) -> None:
    source, out = op.operands[0], op.result
    axes: tuple[int, ...] = op.attrs["axes"]
    came_from = {a: i for i, a in enumerate(axes)}

    def spread(d: int) -> bool:
        i = came_from.get(d)
        return i is None or source.type.shape[i] != out.type.shape[d]

    for d in range(out.type.rank - 1):
        i, j = came_from.get(d), came_from.get(d + 1)
        if spread(d) != spread(d + 1):
            bs.cut((out, d))
            if i is not None and j is not None:
                bs.cut((source, i))
        elif i is not None and j is not None:
            bs.tie((out, d), (source, i))
    for i in range(source.type.rank - 1):
        between = range(axes[i], axes[i + 1] + 1)
        if len(between) > 2 and all(map(spread, between)):
            # Dimensions of size 1 that all repeat: they merge if what they become does.
            for d in between[:-1]:
                bs.tie((out, d), (source, i))
        elif len(between) > 2:
            bs.cut((source, i))


def _mark_permute(bs: Boundaries, op: Operation) -> None:
    source, out, axes = op.operands[0], op.result, op.attrs["axes"]
    tied = set()
    for d in range(out.type.rank - 1):
        if axes[d + 1] == axes[d] + 1:
            bs.tie((out, d), (source, axes[d]))
            tied.add(axes[d])
        else:
            bs.cut((out, d))
    for i in range(source.type.rank - 1):
        if i not in tied:
            bs.cut((source, i))


def _prefixes(shape: Shape) -> list[Dim]:
    return [size_of(shape[: i + 1]) for i in range(len(shape) - 1)]


def _mark_reshape(bs: Boundaries, op: Operation) -> None:
    source, out = op.operands[0], op.result
    at: dict[Dim, Boundary] = {}
    for v in (source, out):
        for i, p in enumerate(_prefixes(v.type.shape)):
            if p in at:
                bs.tie(at[p], (v, i))
            else:
                at[p] = (v, i)


def _mark_reduce(bs: Boundaries, op: Operation) -> None:
    source, out = op.operands[0], op.results[0]
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    kept = [d for d in range(source.type.rank) if d not in axes]
    place = {d: i for i, d in enumerate(kept)}
    for d in range(source.type.rank - 1):
        if (d in axes) != (d + 1 in axes):
            bs.cut((source, d))
        elif d not in axes:
            bs.tie((source, d), (out, place[d]))
    for i in range(len(kept) - 1):
        if kept[i + 1] != kept[i] + 1:
            bs.cut((out, i))


def _mark_touched(touched: Callable[[Operation, int], bool]) -> Callable[[Boundaries, Operation], None]:
    """Operands of equal rank to the result; the touched dimensions stay on their own."""

    def mark(bs: Boundaries, op: Operation) -> None:
        rank = op.result.type.rank
        values = [v for v in op.operands if v.type.rank == rank] + [op.result]
        if rank:
            bs.tie_all(values)
        for d in range(rank):
            if touched(op, d):
                for v in values:
                    bs.isolate(v, d)

    return mark


def _sliced(op: Operation, d: int) -> bool:
    return bool(op.operands[0].type.shape[d] != op.result.type.shape[d] or op.attrs["stride"][d] != 1)


def _padded(op: Operation, d: int) -> bool:
    return any(op.attrs[k][d] != 0 for k in ("low", "high", "interior"))


def _mark_iota(bs: Boundaries, op: Operation) -> None:
    bs.isolate(op.result, op.attrs["axis"])


def _mark_gather(bs: Boundaries, op: Operation) -> None:
    source, indices = op.operands
    out, axis, rank = op.result, op.attrs["axis"], indices.type.rank
    bs.isolate(source, axis)
    for d in range(axis - 1):
        bs.tie((source, d), (out, d))
    for d in range(rank - 1):
        bs.tie((indices, d), (out, axis + d))
    for d in range(axis + 1, source.type.rank - 1):
        bs.tie((source, d), (out, d - 1 + rank))
    for i in (axis - 1, axis + rank - 1):
        if 0 <= i < out.type.rank - 1:
            bs.cut((out, i))


def _mark_dot(bs: Boundaries, op: Operation) -> None:
    lhs, rhs, out = op.operands[0], op.operands[1], op.result
    a = op.attrs
    place = 0
    target: list[dict[int, int]] = [{}, {}]
    for i, d in enumerate(a["lhs_batch"]):
        target[0][d] = i
    for i, d in enumerate(a["rhs_batch"]):
        target[1][d] = i
    place = len(a["lhs_batch"])
    for side, (v, batch, contract) in enumerate(
        ((lhs, a["lhs_batch"], a["lhs_contract"]), (rhs, a["rhs_batch"], a["rhs_contract"]))
    ):
        for d in range(v.type.rank):
            if d not in batch and d not in contract:
                target[side][d] = place
                place += 1
    nb = len(a["lhs_batch"])
    tied = set()
    for side, v in enumerate((lhs, rhs)):
        other = rhs if side == 0 else lhs
        mine = a["lhs_contract"] if side == 0 else a["rhs_contract"]
        theirs = a["rhs_contract"] if side == 0 else a["lhs_contract"]
        partner = dict(zip(mine, theirs, strict=True))
        for d in range(v.type.rank - 1):
            p, q = target[side].get(d), target[side].get(d + 1)
            free = p is not None and q is not None and q == p + 1 and p >= nb
            if free:
                assert p is not None
                bs.tie((v, d), (out, p))
                tied.add(p)
            elif (
                d in partner
                and d + 1 in partner
                and partner[d + 1] == partner[d] + 1
                and (list(mine).index(d + 1) == list(mine).index(d) + 1)
            ):
                bs.tie((v, d), (other, partner[d]))
            else:
                bs.cut((v, d))
    for i in range(out.type.rank - 1):
        if i not in tied:
            bs.cut((out, i))


def _mark_pool(bs: Boundaries, op: Operation) -> None:
    spatial = len(op.attrs["window"])
    values = [*op.operands, *op.results]
    bs.tie_all(values)
    rank = op.results[0].type.rank
    for d in range(rank - spatial, rank):
        for v in values:
            bs.isolate(v, d)


_MARK: dict[str, Callable[[Boundaries, Operation], None]] = {
    "broadcast": _mark_broadcast,
    "permute": _mark_permute,
    "reshape": _mark_reshape,
    "full": _mark_free,
    "random_bits": _mark_free,
    "iota": _mark_iota,
    "gather": _mark_gather,
    "dot": _mark_dot,
    "stop_gradient": _mark_elementwise,
    "check_index": _mark_elementwise,
    "slice": _mark_touched(_sliced),
    "pad": _mark_touched(_padded),
    "concat": _mark_touched(lambda op, d: bool(d == op.attrs["axis"])),
    "flip": _mark_touched(lambda op, d: bool(d in op.attrs["axes"])),
    "take_along": _mark_touched(lambda op, d: bool(d == op.attrs["axis"])),
    "linear_scan": _mark_touched(lambda op, d: bool(d == op.attrs["axis"])),
    **dict.fromkeys(("argmax", "argmin"), _mark_reduce),
    **dict.fromkeys(("sum", "prod", "max", "min", "any", "all"), _mark_reduce),
    **dict.fromkeys(("max_pool", "max_pool_grad", "max_pool_take", "sum_pool", "sum_pool_grad"), _mark_pool),
}


def mark(bs: Boundaries, op: Operation) -> None:
    if op.name in _MARK:
        _MARK[op.name](bs, op)
    elif lookup(op.name).family in ("elementwise", "compare"):
        _mark_elementwise(bs, op)
    else:
        _mark_hard(bs, op)
