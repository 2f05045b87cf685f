"""Launch sizes as text: what is written to the cache evaluates to what the expression means."""

from __future__ import annotations

from graphc.codegen.expr import Expr, index, select, show, var
from graphc.codegen.kernels import evaluate_size, size_text


def test_a_short_size() -> None:
    e0, e1 = var("e0"), var("e1")
    assert evaluate_size(size_text((e0 + 15) // 16 * e1), {"e0": 33, "e1": 5}) == 15


def test_a_long_size_with_shared_parts() -> None:
    size: Expr = var("e0")
    for _ in range(12):
        size = select(size < 1000, size + size % 7, (size + 1) // 2)
    assert " where " in show(size)

    def meaning(n: int) -> int:
        for _ in range(12):
            n = n + n % 7 if n < 1000 else (n + 1) // 2
        return n

    for n in (0, 1, 5, 13, 999, 1000, 123456):
        assert evaluate_size(size_text(size), {"e0": n}) == meaning(n)
    assert evaluate_size(size_text(index(3)), {}) == 3
