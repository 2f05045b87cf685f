"""Canonical groups: the same kernel for every shape that it can serve.

Two steps, both on a group function:
- `collapse` merges neighbouring dimensions that no operation tells apart, so that a same-shape
  addition of any rank becomes one of rank 1;
- `symbolise` replaces every dimension by an extent symbol e0, e1, ... in order of appearance.

The printed result is the key of the kernel caches; the extents' values are arguments at launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graphc.codegen.apart import told_apart
from graphc.codegen.boundaries import Boundaries, mark
from graphc.codegen.literal import Place, changed_places, is_prefix, window_places
from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.registry import IRTypeError, lookup
from graphc.ir.types import Dim, DimExpr, TensorType, size_of, substitute, symbol


def collapse(group: Function) -> Function:
    """`group` with neighbouring dimensions merged wherever every operation allows it.

    Parameters and results keep their memory (row-major), not their shapes.
    """
    group = _without_outer_reshapes(group)
    bs = Boundaries()
    values = [*group.params, *(r for op in group.ops for r in op.results)]
    if any(d == 0 for v in values for d in v.type.shape):
        return group
    for op in group.ops:
        mark(bs, op)
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
    # What is reduced is swept: a result of that shape keeps it, or its elements would not be met.
    swept = {op.operands[0].type.shape for op in group.ops if lookup(op.name).family == "reduce"}
    results = [made[r].operands[0] if r in made and r.type.shape not in swept else r for r in group.results]
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
            copy = Operation(
                op.name,
                [env.get(v, v) for v in op.operands],
                op.attrs,
                [Value(r.type) for r in op.results],
                op.loc,
            )
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
_DIM_ATTRS = ("shape", "input_shape", "start", "limit", "size")
# Attributes that change them.
_STEPS = ("low", "high", "padding")


def symbolise(group: Function) -> Canonical:
    """`group` with dimensions replaced by extents, as far as its type rules allow."""
    for places in (window_places, changed_places):
        try:
            return _symbolise(group, _sizes(places(group)))
        except (IRTypeError, ValueError, TypeError):
            continue
    # Dimensions that depend on each other by arithmetic: only their symbols become extents.
    try:
        return _symbolise(group, _sizes(changed_places(group)), structural=True)
    except (IRTypeError, ValueError, TypeError):
        return _symbolise(group, {d for v in _all_values(group) for d in v.type.shape}, structural=True)


def _all_values(group: Function) -> list[Value]:
    return [*group.params, *(r for op in group.ops for r in op.results)]


def _sizes(places: set[Place]) -> set[Dim]:
    return {0, 1, *(v.type.shape[i] for v, i in places)}


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

    def fixed(op: Operation, key: str, i: int) -> bool:
        """Whether a bound of a slice is a number of its own, not the size of what is sliced."""
        d = op.attrs[key][i]
        if key not in ("start", "limit") or isinstance(d, DimExpr) or (key == "limit" and is_prefix(op, i)):
            return False
        return key == "start" or d != op.operands[0].type.shape[i]

    def followed(step: Any) -> Any:
        """What an operation adds to a dimension, if that depends on symbols."""
        if isinstance(step, tuple):
            return tuple(map(followed, step))
        if not isinstance(step, DimExpr):
            return step
        if not structural:
            raise IRTypeError("a step that depends on symbols")
        return substitute(step, {s: extent(symbol(s)) for s in sorted(step.symbols())})

    b = Builder("kernel")
    env: dict[Value, Value] = {}
    stands_for: dict[Dim, Dim] = {}
    for p in group.params:
        env[p] = b.param(p.type.with_shape(map(extent, p.type.shape)))
        stands_for.update(zip(p.type.shape, env[p].type.shape, strict=True))
    for op in group.ops:
        b.loc = op.loc
        attrs = dict(op.attrs)
        for key in _DIM_ATTRS:
            if key in attrs:
                attrs[key] = (
                    tuple(d if fixed(op, key, i) else extent(d) for i, d in enumerate(attrs[key]))
                    if isinstance(attrs[key], tuple)
                    else extent(attrs[key])
                )
        for key in _STEPS:
            if key == "high" and op.name == "pad" and is_prefix(op, 0):
                # What is added is what is missing.
                more = extent(op.result.type.shape[0]) - extent(op.operands[0].type.shape[0])
                attrs[key] = (more, *followed(attrs[key][1:]))
            elif key in attrs:
                attrs[key] = followed(attrs[key])
        emitted = b.emit_op(op.name, *(env[v] for v in op.operands), **attrs)
        for old, new in zip(op.results, emitted.results, strict=True):
            if new.type.rank != old.type.rank:
                raise IRTypeError("rank changed")
            # Lowering asks whether two shapes are the same; equal sizes must have one name.
            for d, e in zip(old.type.shape, new.type.shape, strict=True):
                if stands_for.setdefault(d, e) != e:
                    raise IRTypeError(f"the size {d} would be both {stands_for[d]} and {e}")
            env[old] = new
    function = b.build([env[r] for r in group.results])
    return Canonical(function, tuple((e.terms[0][0][0], d) for d, e in names.items()))  # type: ignore[misc]


def canonicalise(group: Function) -> Canonical:
    """The canonical form of a group function."""
    group = collapse(group)
    apart = told_apart(group)
    if apart is not None:
        found = symbolise(apart.group)
        if not _literals(found.function) & apart.sizes.keys():
            return Canonical(found.function, tuple((name, _size(d, apart.sizes)) for name, d in found.extents))
    return symbolise(group)


def _literals(f: Function) -> set[Dim]:
    """The numbers among the dimensions of a function."""
    return {d for v in _all_values(f) for d in v.type.shape} | {
        d for op in f.ops for key in _DIM_ATTRS if isinstance(op.attrs.get(key), tuple) for d in op.attrs[key]
    }


def _size(d: Dim, sizes: Mapping[Dim, Dim]) -> Dim:
    return sizes.get(d, d)
