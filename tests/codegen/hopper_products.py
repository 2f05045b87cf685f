"""Products for wgmma in simulation: small cases, tiles of the table, operands whose sums are exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import choose
from graphc.codegen.cuda.products import hopper
from graphc.codegen.cuda.target import HOPPER
from graphc.ir.function import Builder, Function
from graphc.ir.types import TensorType

from tests.codegen.device import Case, Prepared

Array = np.ndarray[Any, Any]
SMALL = dataclasses.replace(HOPPER, multiprocessors=2)  # so that blocks take several tiles


def dot(
    lhs: str, rhs: str, left: Sequence[int] = (1,), right: Sequence[int] = (0,), batch: int = 0, precision: str = "",
    epilogue: Any = None,
) -> Function:
    b = Builder("group")
    x, y = b.param(TensorType.parse(lhs)), b.param(TensorType.parse(rhs))
    both = tuple(range(batch))
    root = b.emit(
        "dot", x, y, lhs_batch=both, rhs_batch=both, lhs_contract=tuple(left), rhs_contract=tuple(right), precision=precision
    )
    return b.build(epilogue(b, root) if epilogue else [root])


def integers(group: Function, seed: int = 0, most: int = 3) -> list[Array]:
    """Small enough that every sum is exact in any order."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-most, most + 1, [int(d) for d in p.type.shape]).astype(p.type.dtype.numpy) for p in group.params]


def reals(group: Function, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal([int(d) for d in p.type.shape]).astype(p.type.dtype.numpy) for p in group.params]


def chosen(group: Function, tile: hopper.Tile, target: Any = SMALL) -> Choice:
    """The choice for a group, with another tile."""
    c = canonicalise(group)
    found = choose(c.function, {n: int(d) for n, d in c.extents}, target)
    assert found.form == hopper.FORM
    return hopper.tile_choice(
        tile, (found.number("left"), found.number("right")), found.number("example"), found.divides, found.narrow,
        bool(found.number("packed")),
    )  # fmt: skip


def case(group: Function, tile: hopper.Tile | None = None, inputs: list[Array] | None = None) -> Case:
    return Case(group, integers(group) if inputs is None else inputs, chosen(group, tile) if tile else None, SMALL)


def ways(p: Prepared) -> tuple[int, int]:
    return p.choice.number("left"), p.choice.number("right")


MAJORS = {
    "kk": ("[{m}, {k}]", "[{n}, {k}]", (1,), (1,)),
    "km": ("[{m}, {k}]", "[{k}, {n}]", (1,), (0,)),
    "mk": ("[{k}, {m}]", "[{n}, {k}]", (0,), (1,)),
    "mm": ("[{k}, {m}]", "[{k}, {n}]", (0,), (0,)),
}


def plain(dtype: str, major: str, m: int, k: int, n: int, precision: str = "") -> Function:
    left, right, a, b = MAJORS[major]
    return dot(dtype + left.format(m=m, k=k, n=n), dtype + right.format(m=m, k=k, n=n), a, b, precision=precision)
