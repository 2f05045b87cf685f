"""Pieces that lowerings share: buffers of a group, coordinates of an item, vector sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from graphc.codegen.expr import Expr, index, select, var
from graphc.codegen.loops import Buffer, For, If, Let, Stmt, Store, Vector
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Value
from graphc.ir.types import I64, DimExpr, Shape, dim_symbols


def ceil_div(a: Expr, b: int) -> Expr:
    return (a + (b - 1)) // b


def minimum(a: Expr, b: Expr) -> Expr:
    return a if a is b else select(a < b, a, b)


class Names:
    """Fresh variable names."""

    def __init__(self) -> None:
        self._count = count()

    def fresh(self, stem: str, dtype: object = I64) -> Expr:
        return var(f"{stem}{next(self._count)}", dtype)  # type: ignore[arg-type]


def group_buffers(
    group: Function, in_place: Iterable[tuple[int, int]] = ()
) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """Buffers for the parameters and the results of a group. in_place: (parameter, result) that are one."""
    source = {result: param for param, result in in_place}
    shared = set(source.values())
    params = tuple(
        Buffer(f"x{i}", p.type.dtype, "inout" if i in shared else "in") for i, p in enumerate(group.params)
    )
    results = tuple(
        params[source[i]] if i in source else Buffer(f"y{i}", r.type.dtype, "out")
        for i, r in enumerate(group.results)
    )
    return params, results


def group_extents(group: Function) -> tuple[str, ...]:
    """The extent symbols of a canonical group, e0, e1, ... in order."""
    names: set[str] = set()
    for v in [*group.params, *(r for op in group.ops for r in op.results)]:
        for d in v.type.shape:
            names |= dim_symbols(d)
    for op in group.ops:
        names |= _attribute_symbols(tuple(op.attrs.values()))
    return tuple(sorted(names, key=lambda n: int(n[1:])))


def _attribute_symbols(value: object) -> frozenset[str]:
    if isinstance(value, tuple):
        return frozenset().union(*map(_attribute_symbols, value))
    return dim_symbols(value) if isinstance(value, DimExpr) else frozenset()


def split_coords(item: Expr, shape: Shape, names: Names) -> tuple[list[Stmt], tuple[Expr, ...]]:
    """Statements that name the coordinates of the row-major position `item` in `shape`."""
    stmts: list[Stmt] = []
    coords: list[Expr] = [index(0)] * len(shape)
    big = [i for i, d in enumerate(shape) if d != 1]
    rest = item
    for i in reversed(big):
        if i == big[0]:
            coords[i] = rest
            break
        d = dim_expr(shape[i])
        name = names.fresh("c")
        stmts.append(Let(name, rest % d))
        coords[i] = name
        following = names.fresh("q")
        stmts.append(Let(following, rest // d))
        rest = following
    return stmts, tuple(coords)


def sweep(
    start: Expr, stop: Expr, width: int, names: Names, body: Callable[[Expr, Expr], Sequence[Stmt]], rest: int = 0
) -> list[Stmt]:
    """Run `body(position, lane)` over positions start .. stop - 1, `width` lanes at a time.

    The last, partial block is masked; rest: it is gone through so many lanes at a time.
    """
    i, lane, tail_lane = names.fresh("i"), names.fresh("l"), names.fresh("l")
    last, first = names.fresh("m"), names.fresh("i")
    whole = (stop - start) // width * width + start
    narrower = 0 < rest < width
    at = (first if narrower else last) + tail_lane
    masked = Vector(tail_lane, rest if narrower else width, (If(at < stop, tuple(body(at, tail_lane))),))
    return [
        Let(last, whole),
        For(i, start, last, (Vector(lane, width, tuple(body(i + lane, lane))),), index(width)),
        For(first, last, stop, (masked,), index(rest)) if narrower else If(last < stop, (masked,)),
    ]


def take_reports(pull: Pull) -> list[Stmt]:
    return pull.take_reports()


def store_results(
    pull: Pull,
    targets: Sequence[tuple[Value, Buffer]],
    coords: tuple[Expr, ...],
    shape: Shape,
    stream: bool = False,
    names: Names | None = None,
    flat: Expr | None = None,
) -> list[Stmt]:
    """Stores of the given results at `coords` of the domain `shape`. flat: the row-major position of `coords`, where
    the caller knows a better expression than the sum over them."""
    here = Position(shape, coords, flat)
    places = [here.reshaped(value.type.shape) for value, _ in targets]
    if flat is not None:
        places = [at if at is here else Position(at.shape, at.coords, flat) for at in places]
    values = [pull.at(value, at) for (value, _), at in zip(targets, places, strict=True)]
    lets: list[Stmt] = []
    if names is not None and any(buffer.kind == "inout" for _, buffer in targets):
        # What is read must be read before it is written over.
        named = [names.fresh("v", v.dtype) for v in values]
        lets, values = [Let(n, v) for n, v in zip(named, values, strict=True)], named
    stores = [Store(b, at.flat, v, stream) for (_, b), at, v in zip(targets, places, values, strict=True)]
    return [*take_reports(pull), *lets, *stores]
