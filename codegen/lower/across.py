"""Loads that run across the lines of a map: contiguous along another dimension of the domain than the innermost."""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.expr import Expr, children_first, index, var
from graphc.codegen.loops import Stmt
from graphc.codegen.lower.affine import Levels, depends, linear
from graphc.codegen.lower.index import Position
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function
from graphc.ir.types import Shape


@dataclass(frozen=True)
class Template:
    """A map at coordinates that are variables. values, places: of each result; across: for each dimension, the
    loads that are contiguous along it and not along the innermost one."""

    coords: tuple[Expr, ...]
    values: tuple[Expr, ...]
    places: tuple[Expr, ...]
    reports: tuple[Stmt, ...]
    across: dict[int, list[Expr]]


def innermost(shape: Shape) -> int:
    return max(i for i, d in enumerate(shape) if d != 1)


def template(group: Function, pull: Pull) -> Template:
    shape = group.results[0].type.shape
    coords = tuple(index(0) if d == 1 else var(f"at{i}") for i, d in enumerate(shape))
    at = [Position(shape, coords).reshaped(r.type.shape) for r in group.results]
    values = tuple(pull.at(r, p) for r, p in zip(group.results, at, strict=True))
    reports = tuple(pull.take_reports())
    inner = innermost(shape)
    levels = Levels(())
    across: dict[int, list[Expr]] = {}
    for node in children_first(values):
        if node.op != "load":
            continue
        along = linear(node.args[0], coords[inner], levels)
        if along is None and not _looked_up(node.args[0], coords[inner]):
            continue
        if along is not None and along[0].op == "const" and along[0].data in (0, 1):
            continue
        for k, c in enumerate(coords[:inner]):
            step = linear(node.args[0], c, levels) if c.op == "var" else None
            if step is not None and step[0] is index(1):
                across.setdefault(k, []).append(node)
    return Template(coords, values, tuple(p.flat for p in at), reports, across)


def _looked_up(position: Expr, coordinate: Expr) -> bool:
    """Whether a position depends on a coordinate through memory, as that of a gathered line does."""
    return any(n.op == "load" and depends(n, coordinate) for n in children_first((position,)))
