"""Canonical groups: the same kernel for every shape that it can serve.

Two steps, both on a group function:
- `collapse` merges neighbouring dimensions that no operation tells apart, so that a same-shape
  addition of any rank becomes one of rank 1;
- `symbolise` replaces every dimension by an extent symbol e0, e1, ... in order of appearance.

The printed result is the key of the kernel caches; the extents' values are arguments at launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import IRTypeError, lookup
from graphc.ir.types import Dim, DimExpr, Shape, TensorType, size_of, substitute, symbol

Boundary = tuple[Value, int]  # between dimensions i and i + 1 of a value


class _Boundaries:
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


def _mark_elementwise(bs: _Boundaries, op: Operation) -> None:
    bs.tie_all([*op.operands, *op.results])


def _mark_free(bs: _Boundaries, op: Operation) -> None:
    pass


def _mark_hard(bs: _Boundaries, op: Operation) -> None:
    bs.cut_all([*op.operands, *op.results])


def _mark_broadcast(bs: _Boundaries, op: Operation) -> None:
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


def _mark_permute(bs: _Boundaries, op: Operation) -> None:
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


def _mark_reshape(bs: _Boundaries, op: Operation) -> None:
    source, out = op.operands[0], op.result
    at: dict[Dim, Boundary] = {}
    for v in (source, out):
        for i, p in enumerate(_prefixes(v.type.shape)):
            if p in at:
                bs.tie(at[p], (v, i))
            else:
                at[p] = (v, i)


def _mark_reduce(bs: _Boundaries, op: Operation) -> None:
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


def _mark_touched(touched: Callable[[Operation, int], bool]) -> Callable[[_Boundaries, Operation], None]:
    """Operands of equal rank to the result; the touched dimensions stay on their own."""

    def mark(bs: _Boundaries, op: Operation) -> None:
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


def _mark_iota(bs: _Boundaries, op: Operation) -> None:
    bs.isolate(op.result, op.attrs["axis"])


def _mark_gather(bs: _Boundaries, op: Operation) -> None:
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


def _mark_dot(bs: _Boundaries, op: Operation) -> None:
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
            elif d in partner and d + 1 in partner and partner[d + 1] == partner[d] + 1 and (
                list(mine).index(d + 1) == list(mine).index(d) + 1
            ):
                bs.tie((v, d), (other, partner[d]))
            else:
                bs.cut((v, d))
    for i in range(out.type.rank - 1):
        if i not in tied:
            bs.cut((out, i))


def _mark_pool(bs: _Boundaries, op: Operation) -> None:
    spatial = len(op.attrs["window"])
    values = [*op.operands, *op.results]
    bs.tie_all(values)
    rank = op.results[0].type.rank
    for d in range(rank - spatial, rank):
        for v in values:
            bs.isolate(v, d)


_MARK: dict[str, Callable[[_Boundaries, Operation], None]] = {
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


def _mark(bs: _Boundaries, op: Operation) -> None:
    if op.name in _MARK:
        _MARK[op.name](bs, op)
    elif lookup(op.name).family in ("elementwise", "compare"):
        _mark_elementwise(bs, op)
    else:
        _mark_hard(bs, op)


def collapse(group: Function) -> Function:
    """`group` with neighbouring dimensions merged wherever every operation allows it.

    Parameters and results keep their memory (row-major), not their shapes.
    """
    group = _without_outer_reshapes(group)
    bs = _Boundaries()
    values = [*group.params, *(r for op in group.ops for r in op.results)]
    if any(d == 0 for v in values for d in v.type.shape):
        return group
    for op in group.ops:
        _mark(bs, op)
    reduced = [op.operands[0] for op in group.ops if lookup(op.name).family == "reduce"]
    if reduced:
        # One domain: what has its shape is swept together, so it must keep one shape.
        full = [r for r in group.results if r.type.shape == reduced[0].type.shape]
        bs.tie_all([*reduced, *full])
    runs = {v: bs.runs(v) for v in values}
    if all(len(run) == 1 for r in runs.values() for run in r):
        return group
    b = Builder(group.name)
    env: dict[Value, Value] = {}
    for p, name in zip(group.params, group.param_names, strict=True):
        env[p] = b.param(_merged(p.type, runs[p]), name)
    for op in group.ops:
        b.loc = op.loc
        attrs = _merged_attrs(op, runs)
        operands = [env[v] for v in op.operands]
        if op.name == "reshape" and operands[0].type.shape == attrs["shape"]:
            env[op.result] = operands[0]
            continue
        emitted = b.emit_op(op.name, *operands, **attrs)
        env.update(zip(op.results, emitted.results, strict=True))
    return b.build([env[r] for r in group.results])


def _without_outer_reshapes(group: Function) -> Function:
    """Parameters in the shape that they are read in, results in the shape that they are made in."""
    made = {op.result: op for op in group.ops if op.name == "reshape"}
    if not made:
        return group
    users: dict[Value, list[Operation]] = {}
    for op in group.ops:
        for v in op.operands:
            users.setdefault(v, []).append(op)
    results = [made[r].operands[0] if r in made else r for r in group.results]
    env: dict[Value, Value] = {}
    params = []
    for p in group.params:
        readers = users.get(p, [])
        shapes = {op.result.type.shape for op in readers if op.name == "reshape"}
        if p not in results and len(shapes) == 1 and all(op.name == "reshape" for op in readers):
            q = Value(p.type.with_shape(shapes.pop()))
            env.update({op.result: q for op in readers})
            params.append(q)
        else:
            params.append(p)
    ops: list[Operation] = []
    for op in group.ops:
        if op.name == "reshape" and op.result in env:
            continue
        if any(v in env for v in op.operands):
            copy = Operation(op.name, [env.get(v, v) for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
            env.update(zip(op.results, copy.results, strict=True))
            op = copy
        ops.append(op)
    return Function(group.name, params, ops, [env.get(r, r) for r in results], group.param_names)


def _merged(type: TensorType, runs: list[list[int]]) -> TensorType:
    return type.with_shape(size_of(type.shape[d] for d in run) for run in runs)


def _merged_attrs(op: Operation, runs: dict[Value, list[list[int]]]) -> dict[str, Any]:
    attrs = dict(op.attrs)
    if not op.results:
        return attrs

    def place(v: Value, d: int) -> int:
        return next(i for i, run in enumerate(runs[v]) if d in run)

    def places(v: Value, dims: Iterable[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(place(v, d) for d in dims))

    out = op.results[0]
    merged = _merged(out.type, runs[out])
    source = op.operands[0] if op.operands else out
    name = op.name
    if name in ("reshape", "full", "random_bits"):
        attrs["shape"] = merged.shape
    elif name == "iota":
        attrs["shape"], attrs["axis"] = merged.shape, place(out, attrs["axis"])
    elif name == "broadcast":
        attrs["shape"] = merged.shape
        attrs["axes"] = tuple(place(out, op.attrs["axes"][run[0]]) for run in runs[source])
    elif name == "permute":
        attrs["axes"] = tuple(place(source, op.attrs["axes"][run[0]]) for run in runs[out])
    elif name == "slice":
        sizes = _merged(source.type, runs[source]).shape
        for key, whole in (("start", None), ("limit", sizes), ("stride", None)):
            attrs[key] = tuple(
                op.attrs[key][run[0]]
                if len(run) == 1
                else (whole[i] if whole else (0 if key == "start" else 1))
                for i, run in enumerate(runs[out])
            )
    elif name == "pad":
        for key in ("low", "high", "interior"):
            attrs[key] = tuple(op.attrs[key][run[0]] if len(run) == 1 else 0 for run in runs[out])
    elif name == "flip":
        attrs["axes"] = places(source, attrs["axes"])
    elif name == "dot":
        for key, v in zip(
            ("lhs_batch", "lhs_contract", "rhs_batch", "rhs_contract"),
            (op.operands[0], op.operands[0], op.operands[1], op.operands[1]),
            strict=True,
        ):
            attrs[key] = places(v, attrs[key])
    elif "input_shape" in attrs:
        spatial = len(attrs["window"])
        lead = merged.shape[: len(merged.shape) - spatial]
        attrs["input_shape"] = (*lead, *op.attrs["input_shape"][-spatial:])
    elif "axes" in attrs:
        attrs["axes"] = places(source, attrs["axes"])
    elif "axis" in attrs:
        attrs["axis"] = place(source, attrs["axis"])
    return attrs


@dataclass(frozen=True)
class Canonical:
    """A group in canonical form, and the dimension that each extent symbol stands for."""

    function: Function
    extents: tuple[tuple[str, Dim], ...]


# Attributes that hold dimensions and follow the shapes.
_DIM_ATTRS = ("shape", "input_shape", "limit", "size")


def symbolise(group: Function) -> Canonical:
    """`group` with dimensions replaced by extents, as far as its type rules allow."""
    for keep in (_keep_windows, _keep_spatial):
        try:
            return _symbolise(group, keep(group))
        except (IRTypeError, ValueError, TypeError):
            continue
    # Dimensions that depend on each other by arithmetic: only their symbols become extents.
    try:
        return _symbolise(group, _keep_spatial(group), structural=True)
    except (IRTypeError, ValueError, TypeError):
        return _symbolise(group, {d for v in _all_values(group) for d in v.type.shape}, structural=True)


def _all_values(group: Function) -> list[Value]:
    return [*group.params, *(r for op in group.ops for r in op.results)]


# Images of at most so many pixels a side keep their size in the kernel: a vector covers several lines.
SMALL_IMAGE = 32


def _keep_windows(group: Function) -> set[Dim]:
    """Kernel windows of convolutions stay literal: they are unrolled; so do small images in pooling."""
    keep: set[Dim] = {0, 1}
    for op in group.ops:
        if op.name == "conv":
            keep |= set(op.operands[1].type.shape[2:])
        if lookup(op.name).family in ("conv", "pool"):
            count = len(op.attrs["window"] if "window" in op.attrs else op.attrs["strides"])
            sides = [d for v in (*op.operands, *op.results) for d in v.type.shape[-count:]]
            if all(not isinstance(d, DimExpr) and d <= SMALL_IMAGE for d in sides):
                keep |= set(sides)
    return keep


def _keep_spatial(group: Function) -> set[Dim]:
    """Every dimension that an operation changes by arithmetic stays literal."""
    keep = _keep_windows(group)
    for op in group.ops:
        family = lookup(op.name).family
        if family == "conv":
            for v in (*op.operands, *op.results):
                keep |= set(v.type.shape[2:])
            if op.attrs["groups"] != 1 or op.attrs["batch_groups"] != 1:
                for v in (*op.operands, *op.results):
                    keep |= set(v.type.shape)
        elif family == "pool":
            for v in (*op.operands, *op.results):
                keep |= set(v.type.shape[-len(op.attrs["window"]) :])
        elif op.name in ("slice", "pad", "concat"):
            for v in (*op.operands, op.result):
                if v.type.rank == op.result.type.rank:
                    keep |= {
                        d
                        for d, e in zip(v.type.shape, op.result.type.shape, strict=True)
                        if d != e or op.name == "concat"
                    }
            keep |= {d for d, e in zip(op.result.type.shape, op.operands[0].type.shape, strict=True) if d != e}
        elif op.name == "reshape":
            a, b = op.operands[0].type.shape, op.result.type.shape
            keep |= (set(a) | set(b)) - (set(a) & set(b))
    return keep


def _symbolise(group: Function, literal: set[Dim], structural: bool = False) -> Canonical:
    names: dict[Dim, DimExpr] = {}

    def extent(d: Dim) -> Dim:
        if isinstance(d, DimExpr):
            if structural and d != symbol(min(d.symbols())):
                return substitute(d, {s: extent(symbol(s)) for s in sorted(d.symbols())})
        elif d in literal:
            return d
        if d not in names:
            names[d] = symbol(f"e{len(names)}")
        return names[d]

    b = Builder("kernel")
    env: dict[Value, Value] = {}
    for p in group.params:
        env[p] = b.param(p.type.with_shape(map(extent, p.type.shape)))
    for op in group.ops:
        b.loc = op.loc
        attrs = dict(op.attrs)
        for key in _DIM_ATTRS:
            if key in attrs:
                attrs[key] = (
                    tuple(
                        extent(d) if key != "limit" or d == op.operands[0].type.shape[i] else d
                        for i, d in enumerate(attrs[key])
                    )
                    if isinstance(attrs[key], tuple)
                    else extent(attrs[key])
                )
        emitted = b.emit_op(op.name, *(env[v] for v in op.operands), **attrs)
        for old, new in zip(op.results, emitted.results, strict=True):
            if new.type.rank != old.type.rank:
                raise IRTypeError("rank changed")
            env[old] = new
    function = b.build([env[r] for r in group.results])
    return Canonical(function, tuple((e.terms[0][0][0], d) for d, e in names.items()))  # type: ignore[misc]


def canonicalise(group: Function) -> Canonical:
    """The canonical form of a group function."""
    return symbolise(collapse(group))
