"""Canonical groups: what merges, what is named, and that neither changes what a group computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise, collapse, symbolise
from graphc.codegen.fuse import fuse
from graphc.codegen.groups import separate
from graphc.codegen.prepare import prepare
from graphc.ir.function import Builder, Function, Loc, Value
from graphc.ir.interpret import specialize
from graphc.ir.passes import run_pipeline
from graphc.ir.types import F32, DimExpr, TensorType, symbol
from graphc.ir.verify import verify

from tests.codegen.compiled import Array, difference
from tests.codegen.values import mixed
from tests.equality.oracle import exact_interpret
from tests.ir.random_functions import random_function

F = TensorType.parse


def function(*types: str, make: Callable[..., Any]) -> Function:
    b = Builder("f")
    out = make(b, *[b.param(F(t)) for t in types])
    return b.build(out if isinstance(out, list) else [out])


def shapes(f: Function) -> str:
    """The shapes of parameters and results: `5,7 5 -> 35`."""
    show = lambda values: " ".join(",".join(map(str, v.type.shape)) or "()" for v in values)  # noqa: E731
    return f"{show(f.params)} -> {show(f.results)}"


def as_shaped(args: list[Array], f: Function) -> list[Array]:
    return [a.reshape([int(d) for d in p.type.shape]) for a, p in zip(args, f.params, strict=True)]


def assert_same_memory(f: Function, g: Function, seed: int = 0) -> None:
    """`g` computes what `f` computes, on the same memory in other shapes."""
    args = [mixed(p.type.dtype, tuple(map(int, p.type.shape)), seed + i) for i, p in enumerate(f.params)]
    try:
        expected = exact_interpret(f, args)
    except IndexError:
        with pytest.raises(IndexError):
            exact_interpret(g, as_shaped(args, g))
        return
    for e, r in zip(expected, exact_interpret(g, as_shaped(args, g)), strict=True):
        assert e.size == r.size
        wrong = difference(e.reshape(-1), r.reshape(-1))
        assert not wrong, f"{wrong}\n{f}\n{g}"


def row_sum(b: Builder, x: Value, axes: tuple[int, ...]) -> Value:
    total = b.sum(x, axes=axes)
    kept = tuple(a for a in range(x.type.rank) if a not in axes)
    out: Value = b.sub(x, b.broadcast(total, shape=x.type.shape, axes=kept))
    return out


CASES: dict[str, tuple[Function, str]] = {
    "elementwise": (function("f32[2, 3, 4, 5]", "f32[2, 3, 4, 5]", make=lambda b, x, y: b.add(b.exp(x), y)), "120 120 -> 120"),
    "rank 0": (function("f32[]", make=lambda b, x: b.exp(x)), "() -> ()"),
    "bias": (
        function("f32[2, 3, 4]", "f32[4]", make=lambda b, x, y: b.add(x, b.broadcast(y, shape=(2, 3, 4), axes=(2,)))),
        "6,4 4 -> 6,4",
    ),
    "channel bias": (
        function("f32[2, 3, 4, 5]", "f32[3]", make=lambda b, x, y: b.add(x, b.broadcast(y, shape=(2, 3, 4, 5), axes=(1,)))),
        "2,3,20 3 -> 2,3,20",
    ),
    "scalar": (function("f32[3, 4]", "f32[]", make=lambda b, x, y: b.mul(x, b.full(y, shape=(3, 4)))), "12 () -> 12"),
    "unit dimensions that repeat": (
        function("f32[1, 1]", make=lambda b, x: b.broadcast(x, shape=(2, 3, 4), axes=(0, 2))),
        "1 -> 24",
    ),
    "unit dimensions, one repeats": (
        function("f32[1, 4]", make=lambda b, x: b.broadcast(x, shape=(2, 3, 4), axes=(0, 2))),
        "1,4 -> 6,4",
    ),
    "last axis": (function("f32[2, 3, 4, 5]", make=lambda b, x: row_sum(b, x, (3,))), "24,5 -> 24,5"),
    "middle axes": (function("f32[2, 3, 4, 5]", make=lambda b, x: row_sum(b, x, (1, 2))), "2,12,5 -> 2,12,5"),
    "first axis": (function("f32[2, 3, 4, 5]", make=lambda b, x: row_sum(b, x, (0,))), "2,60 -> 2,60"),
    "all axes": (function("f32[2, 3, 4]", make=lambda b, x: b.sum(x, axes=(0, 1, 2))), "24 -> ()"),
    "position": (function("f32[2, 3, 4, 5]", make=lambda b, x: b.argmax(x, axis=1)), "2,3,20 -> 2,20"),
    "transposed": (function("f32[2, 3, 4, 5]", make=lambda b, x: b.permute(x, axes=(2, 3, 0, 1))), "6,20 -> 20,6"),
    "heads": (function("f32[2, 3, 4, 5]", make=lambda b, x: b.exp(b.permute(x, axes=(0, 2, 1, 3)))), "2,3,4,5 -> 2,4,3,5"),
    "sliced": (
        function("f32[2, 3, 4, 5]", make=lambda b, x: b.slice(x, start=(0, 1, 0, 0), limit=(2, 3, 4, 5), stride=(1, 1, 1, 1))),
        "2,3,20 -> 2,2,20",
    ),
    "padded": (
        function("f32[2, 3, 4]", "f32[]", make=lambda b, x, y: b.pad(x, y, low=(0, 0, 1), high=(0, 0, 0), interior=(0, 0, 0))),
        "6,4 () -> 6,5",
    ),
    "joined": (function("f32[2, 3, 4]", "f32[2, 1, 4]", make=lambda b, x, y: b.concat(x, y, axis=1)), "2,3,4 2,1,4 -> 2,4,4"),
    "flipped": (function("f32[2, 3, 4]", make=lambda b, x: b.flip(x, axes=(0,))), "2,12 -> 2,12"),
    "reshaped": (function("f32[2, 3, 4]", make=lambda b, x: b.exp(b.reshape(b.neg(x), shape=(4, 6)))), "24 -> 24"),
    "flattened rows": (
        function("f32[2, 3, 4]", make=lambda b, x: row_sum(b, b.reshape(x, shape=(2, 12)), (1,))),
        "2,12 -> 2,12",
    ),
    "embedding": (function("f32[50, 3, 4]", "i64[2, 5]", make=lambda b, x, i: b.gather(x, i, axis=0)), "50,12 10 -> 10,12"),
    "gather inside": (
        function("f32[2, 3, 50, 4, 5]", "i64[7, 2]", make=lambda b, x, i: b.gather(x, i, axis=2)),
        "6,50,20 14 -> 6,14,20",
    ),
    "along": (function("f32[2, 3, 4]", "i64[2, 3, 9]", make=lambda b, x, i: b.take_along(x, i, axis=2)), "6,4 6,9 -> 6,9"),
    "scan": (
        function("f32[2, 3, 4]", "f32[2, 3, 4]", make=lambda b, x, y: b.linear_scan(x, y, axis=0, reverse=False)),
        "2,12 2,12 -> 2,12",
    ),
    "product": (
        function("f32[2, 3, 4]", "f32[4, 5, 6]", make=lambda b, x, w: b.dot(x, w, lhs_contract=(2,), rhs_contract=(0,))),
        "6,4 4,30 -> 6,30",
    ),
    "product over two": (
        function("f32[2, 3, 4]", "f32[3, 4, 6]", make=lambda b, x, w: b.dot(x, w, lhs_contract=(1, 2), rhs_contract=(0, 1))),
        "2,12 12,6 -> 2,6",
    ),
    "product over two, exchanged": (
        function("f32[2, 3, 4]", "f32[4, 3, 6]", make=lambda b, x, w: b.dot(x, w, lhs_contract=(1, 2), rhs_contract=(1, 0))),
        "2,3,4 4,3,6 -> 2,6",
    ),
    "pooled": (
        function(
            "f32[2, 3, 8, 6]",
            make=lambda b, x: b.sum_pool(x, window=(2, 2), strides=(2, 2), padding=((0, 0),) * 2, dilation=(1, 1)),
        ),
        "6,8,6 -> 6,4,3",
    ),
    "iota": (
        function("i64[2, 3, 4]", make=lambda b, x: b.add(x, b.iota(shape=(2, 3, 4), axis=2, dtype=x.type.dtype))),
        "6,4 -> 6,4",
    ),
    "a dimension of nothing": (function("f32[2, 0, 3]", make=lambda b, x: b.exp(x)), "2,0,3 -> 2,0,3"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_merges(name: str) -> None:
    f, expected = CASES[name]
    g = collapse(f)
    verify(g)
    assert shapes(g) == expected
    assert_same_memory(f, g)
    assert shapes(collapse(g)) == expected


@pytest.mark.parametrize("name", CASES)
def test_names_stand_for_dimensions(name: str) -> None:
    """With the extents put back, the canonical function is the collapsed one."""
    f, _ = CASES[name]
    canonical = canonicalise(f)
    verify(canonical.function)
    extents = {n: int(d) for n, d in canonical.extents}
    assert list(extents) == [f"e{i}" for i in range(len(extents))]
    back = specialize(canonical.function, extents)
    assert back.param_types == collapse(f).param_types and back.result_types == collapse(f).result_types
    assert_same_memory(f, back)


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_groups_of_random_functions_keep_their_meaning(start: int) -> None:
    for seed in range(start, start + 10):
        f, _ = prepare(run_pipeline(specialize(random_function(seed, 12), {"B": 2 + seed % 3}), ("inline",)))
        for module in (fuse(f), separate(f)):
            for op in module.entry.ops:
                group: Function = op.attrs["function"]
                collapsed = collapse(group)
                verify(collapsed)
                canonical = symbolise(collapsed)
                verify(canonical.function)
                back = specialize(canonical.function, {n: int(d) for n, d in canonical.extents})
                assert back.result_types == collapsed.result_types
                assert_same_memory(group, back, seed)


# --------------------------------------------------------------- keys


def key(f: Function) -> Any:
    return canonicalise(f).function.key()


def test_names_lines_and_sizes_are_not_in_the_key() -> None:
    def layer(name: str, rows: int, width: int, loc: Loc | None) -> Function:
        b = Builder(name)
        x, y = b.param(TensorType(F32, (rows, width)), name), b.param(TensorType(F32, (width,)))
        b.loc = loc
        return b.build([b.add(x, b.broadcast(y, shape=(rows, width), axes=(1,)))])

    first = key(layer("f", 3, 5, None))
    assert key(layer("other", 40, 7, Loc("a.py", 1))) == first
    # Whether two dimensions are equal by chance is not in the key, whether one is 1 is.
    assert key(layer("f", 5, 5, None)) == first
    assert key(layer("f", 1, 5, None)) != first


def test_every_rank_of_an_elementwise_operation_has_one_key() -> None:
    keys = {
        key(function(f"f32[{dims}]", f"f32[{dims}]", make=lambda b, x, y: b.add(x, y)))
        for dims in ("7", "2, 3", "5, 5", "2, 3, 4", "1, 8", "2, 1, 2", "4, 3, 2, 1, 5")
    }
    assert len(keys) == 1


def test_numbers_that_are_not_dimensions_are_in_the_key() -> None:
    def cut(start: int) -> Function:
        return function("f32[9, 20]", make=lambda b, x: b.slice(x, start=(0, start), limit=(9, 20), stride=(1, 1)))

    assert key(cut(1)) != key(cut(2))
    assert key(function("f32[9]", make=lambda b, x: b.cast(x, dtype=F("f64[]").dtype))) != key(
        function("f32[9]", make=lambda b, x: b.cast(x, dtype=F("i32[]").dtype))
    )


def test_windows_of_convolutions_stay_numbers() -> None:
    def conv(size: int, window: int) -> Function:
        return function(
            f"f32[4, 64, {size}]",
            f"f32[70, 64, {window}]",
            make=lambda b, x, w: b.conv(x, w, strides=(1,), padding=((1, 1),), lhs_dilation=(1,), rhs_dilation=(1,)),
        )

    kernel = canonicalise(conv(100, 3)).function
    assert kernel.params[1].type.shape[2] == 3 and isinstance(kernel.params[0].type.shape[2], DimExpr)
    assert key(conv(100, 3)) == key(conv(200, 3)) != key(conv(200, 5))


def test_symbols_of_a_program_become_extents() -> None:
    """A dimension that a caller leaves open is an extent like any other."""
    batch = symbol("B")
    b = Builder("f")
    x, y = b.param(TensorType(F32, (batch, 4))), b.param(TensorType(F32, (batch, 4)))
    open_batch = canonicalise(b.build([b.add(x, y)]))
    closed = canonicalise(function("f32[3, 5]", "f32[3, 5]", make=lambda b, x, y: b.add(x, y)))
    assert open_batch.function == closed.function
    assert open_batch.extents == (("e0", batch * 4),) and closed.extents == (("e0", 15),)


def test_a_size_has_one_name() -> None:
    """Else a result of the domain's shape is taken for one of another shape, and not swept."""
    f = canonicalise(
        function(
            "f64[2]",
            "f64[2]",
            make=lambda b, x, y: b.pad(
                b.slice(b.add(y, b.full(b.sum(x, axes=(0,)), shape=(2,))), start=(0,), limit=(1,), stride=(1,)),
                b.constant(value=np.array(0.0)),
                low=(0,),
                high=(1,),
                interior=(1,),
            ),
        )
    ).function
    assert f.params[0].type.shape == f.results[0].type.shape == (2,)


def test_a_reshaped_parameter_among_the_results_of_a_reduction_keeps_the_domain() -> None:
    b = Builder("f")
    x = b.param(TensorType(F32, (2, 18)))
    y = b.reshape(x, shape=(18, 2))
    f = canonicalise(b.build([b.max(y, axes=(1,)), y])).function
    domain = next(op.operands[0].type.shape for op in f.ops if op.name == "max")
    assert len(domain) == 2 and f.results[1].type.shape == domain
