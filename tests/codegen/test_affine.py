"""Index polynomials: the normal form has the same values, divisions vanish where they should."""

from __future__ import annotations

import itertools

import numpy as np
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import Expr, children_first, index, load, var
from graphc.codegen.loops import Buffer
from graphc.codegen.lower.affine import Levels, linear, normal, split_lanes, tidy
from graphc.codegen.lower.index import delinearise, dim_expr, linearise
from graphc.ir.types import F32, Dim, symbol

A, B, C, N = (var(n) for n in "abcn")
E, G = symbol("e"), symbol("g")


def value(expr: Expr, **values: int) -> int:
    return int(evaluate(expr, {k: np.int64(v) for k, v in values.items()}))


def divisions(e: Expr) -> int:
    return sum(n.op in ("idiv", "irem") for n in children_first((e,)))


def test_normal_form_has_the_same_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pool: list[Expr] = [A, B, C, N, index(int(rng.integers(0, 9)))]
        for _ in range(8):
            p, q = (pool[rng.integers(len(pool))] for _ in range(2))
            kind = rng.integers(5)
            pool.append([p + q, p * q, p - q, p // int(rng.integers(1, 6)), p % int(rng.integers(1, 6))][kind])
        e = pool[-1] + pool[-2] * pool[-3]
        tidied = normal(e, Levels([A, B, C]))
        for _ in range(3):
            at = {k: int(x) for k, x in zip("abcn", rng.integers(0, 20, 4))}
            assert value(tidied, **at) == value(e, **at)


def test_a_position_split_and_joined_is_itself() -> None:
    for shape in ((4, 5), (E, 5), (5, E), (E, G), (2, E, 3), (7, G, E, 2), (1, E, 1, G)):
        joined = linearise(delinearise(N, shape), shape)
        assert normal(joined, Levels([N])) is N
    assert divisions(linearise(delinearise(N, (3, 4)), (3, 5))) == 2


def test_what_is_invariant_comes_first() -> None:
    e = normal(C + B * dim_expr(E) + A * dim_expr(E) * dim_expr(G) + 7, Levels([A, B, C]))
    assert str(e).endswith("+ c) + 7)")
    inner = e.args[0]
    assert inner.args[1] is C
    assert Levels([B, C]).of(inner.args[0].args[0]) == 0


def test_linear() -> None:
    levels = Levels([A, B])
    slope, rest = linear(A * dim_expr(E) + B * 3 + 1, B, levels) or (N, N)
    assert value(slope) == 3 and value(rest, a=2, e=5) == 11
    assert linear((B // 2) * 4, B, levels) is None
    assert linear(B * B, B, levels) is None
    assert linear(B * dim_expr(E) + (A // 3), B, levels) is not None


def test_split_lanes_are_the_coordinates() -> None:
    shapes: list[tuple[Dim, ...]] = [(6, 8), (3, 4, 4), (5, 7), (4, 32), (2, 1, 16), (9,), (3, 6, 2)]
    for shape, width in itertools.product(shapes, (1, 2, 4, 8, 16)):
        size = int(np.prod(shape))
        coords = split_lanes(A, B, width, shape)
        plain = delinearise(A + B, shape)
        for base in range(0, size, width):
            for lane in range(min(width, size - base)):
                at = {"a": base, "b": lane}
                assert [value(c, **at) for c in coords] == [value(c, **at) for c in plain]


def test_literal_lanes_where_sizes_divide() -> None:
    """Neighbouring lanes of a small image differ by literals: nothing depends on lane and base together."""
    coords = split_lanes(A, B, 16, (5, 4, 4))
    assert coords[2] is B % 4
    joined = linearise(coords, (5, 4, 4))
    step = linear(normal(joined, Levels([A, B])), B, Levels([A, B]))
    assert step is not None and value(step[0]) == 1


def test_small_divisions_are_done_in_32_bits() -> None:
    x = Buffer("x", F32, "in")
    free = A + B
    e = load(x, (free // 3) * 10 + free % 3)
    narrow = tidy(e, [A, B], free)
    wide = [n for n in children_first((narrow,)) if n.op in ("idiv", "irem")]
    assert wide and all(n.dtype.name == "uint32" for n in wide)
    at = {"a": 40, "b": 7}
    assert value(narrow.args[0], **at) == value(e.args[0], **at) == 152
