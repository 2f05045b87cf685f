"""Launches that share a kernel, side by side: the table of members, and which launches come together."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from graphc.codegen.cuda.together import Launched, block_ends, can_join, join, most_members, runs
from graphc.codegen.kernels import evaluate_size, size_text
from graphc.ir.function import Builder, Value
from graphc.ir.types import F32, I64
from hypothesis import given
from hypothesis import strategies as st

from tests.codegen.device import Case, Memory, Prepared, check_compiles, cuda_text, library, prepare
from tests.codegen.test_cuda_map import biased, built, crossed
from tests.codegen.values import Array, plain
from tests.equality.oracle import exact_interpret


def update(b: Builder, p: Value, g: Value, m: Value) -> tuple[Value, Value]:
    moved = b.add(b.mul(m, m), g)
    return b.sub(p, moved), moved


def one(n: int) -> Prepared:
    return prepare(Case(*built(*[(F32, (n,))] * 3, body=update), in_place=((0, 0), (2, 1))))


def run_members(sizes: list[int], seed: int = 0) -> list[tuple[Array, Array]]:
    """The updates of parameters of these sizes by one launch, in place."""
    single = one(7)
    kernel = join(single.kernels[0], len(sizes))
    assert kernel.grid is not None
    blocks = [evaluate_size(size_text(kernel.grid.blocks), {"e0": n}) for n in sizes]
    held, words = [], []
    for n, end in zip(sizes, block_ends(blocks), strict=True):
        arrays = [Memory((n,), np.float32, plain(F32, (n,), i), i != 1) for i in range(3)]
        held.append(arrays)
        words += [*(a.address for a in arrays), n, end]
    error = (ctypes.c_longlong * 3)()
    table = (ctypes.c_longlong * (len(words) + 2))(*words, ctypes.addressof(error), 1)
    library(cuda_text([kernel])).launch(kernel.name, [table], sum(blocks), kernel.grid.threads, 0, seed)
    assert all(m.check() for arrays in held for m in arrays)
    out = [(arrays[0].array.copy(), arrays[2].array.copy()) for arrays in held]
    for arrays in held:
        for m in arrays:
            m.free()
    return out


@pytest.mark.parametrize("sizes", [[5], [1024, 1], [1, 100, 1024, 5000, 3, 1025, 2048, 4]])
def test_members(sizes: list[int]) -> None:
    for n, (p, m) in zip(sizes, run_members(sizes), strict=True):
        expected = exact_interpret(built(*[(F32, (n,))] * 3, body=update)[0], [plain(F32, (n,), i) for i in range(3)])
        assert p.tobytes() == expected[0].tobytes() and m.tobytes() == expected[1].tobytes()


def test_table_fits_the_arguments() -> None:
    kernel = one(7).kernels[0]
    assert most_members(kernel) == (4000 // 8 - 2) // 5
    joined = join(kernel, most_members(kernel))
    assert joined.name == f"{kernel.name}_x99"
    with pytest.raises(ValueError, match="takes from 1 to 99 members at once, not 100"):
        join(kernel, 100)
    check_compiles([cuda_text([joined, join(kernel, 2)])], hot=("map",))


def test_who_can_join() -> None:
    assert can_join(one(7).lowered)
    assert can_join(prepare(Case(*biased((7, 64)))).lowered)
    assert not can_join(prepare(Case(*crossed((128, 96), (1, 0), F32))).lowered)
    gather: Any = built((F32, (4,)), (I64, (3,)), body=lambda b, x, i: b.gather(x, i, axis=0))
    assert not can_join(prepare(Case(*gather)).lowered), "it reports errors, of which a member is not known"


# Who comes together


def launched(key: str | None, reads: str = "", writes: str = "", limit: int = 9) -> Launched:
    return Launched(key, limit, tuple((c, 0, 4) for c in reads), tuple((c, 0, 4) for c in writes))


def test_independent_launches_come_together() -> None:
    updates = [launched("adam", f"{p}g", p) for p in "abcd"]
    assert runs(updates) == [[0, 1, 2, 3]]
    assert runs([updates[0], launched("other", "x", "y"), updates[1]]) == [[0, 2], [1]]
    assert runs([launched("adam", "g", c, limit=2) for c in "abc"]) == [[0, 1], [2]]


def test_dependent_launches_stay_apart() -> None:
    assert runs([launched("k", "a", "b"), launched("k", "b", "c")]) == [[0], [1]]
    assert runs([launched("k", "a", "b"), launched("k", "c", "a")]) == [[0], [1]]
    assert runs([launched("k", "a", "b"), launched("k", "c", "b")]) == [[0], [1]]
    # Between them the second one's operand is made, of what the first one makes.
    assert runs([launched("k", "a", "b"), launched("m", "b", "c"), launched("k", "c", "d")]) == [[0], [1], [2]]


def test_launches_wait_for_the_last_of_their_kernel() -> None:
    # An update waits for the gradient of the other parameter, which is made after it.
    assert runs([launched("k", "a", "b"), launched("m", "x", "c"), launched("k", "c", "d")]) == [[1], [0, 2]]
    assert runs([launched(None, "a", "b"), launched(None, "c", "d")]) == [[0], [1]]


def test_places_meet_where_their_bytes_do() -> None:
    def at(start: int, end: int) -> Launched:
        return Launched("k", 9, (), (("arena", start, end),))

    assert runs([at(0, 8), at(8, 16), at(16, 20)]) == [[0, 1, 2]]
    assert runs([at(0, 8), at(7, 16)]) == [[0], [1]]


@given(st.lists(st.tuples(st.sampled_from("kmn"), st.text("abcdef", max_size=2), st.text("abcdef", max_size=1)), max_size=12))
def test_order_means_the_same(parts: list[tuple[str, str, str]]) -> None:
    """Memory after the launches, each of which writes what it read and its number."""
    listed = [launched(*part, limit=3) for part in parts]

    def after(order: list[list[int]]) -> dict[str, Any]:
        memory: dict[str, Any] = {}
        for together in order:
            seen = {i: tuple(memory.get(c) for c in parts[i][1]) for i in together}
            for i in together:
                memory.update(dict.fromkeys(parts[i][2], (i, seen[i])))
        return memory

    found = runs(listed)
    assert sorted(i for run in found for i in run) == list(range(len(parts)))
    assert after(found) == after([[i] for i in range(len(parts))])
    assert all(len({parts[i][0] for i in run}) == 1 and len(run) <= 3 for run in found)
