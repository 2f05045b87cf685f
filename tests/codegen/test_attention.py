"""Attention on the CPU: every kernel gives the interpreter's bits, whatever the sizes, masks and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.fuse import fuse
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.lower.lower import lower, variant
from graphc.codegen.stages import stage_text
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType

from tests.codegen.attention_cases import Case, projected
from tests.codegen.compiled import run
from tests.codegen.run_kernels import Native
from tests.ir.exact import assert_equal_bits

Array = np.ndarray[Any, Any]

CASES = [
    # B, H, Hk, T, S, D, E
    Case((1, 1, 1, 1, 1, 1, 1)),
    Case((2, 4, 2, 65, 67, 5, 8)),
    Case((1, 2, 1, 70, 130, 17, 3), causal=True),
    Case((1, 2, 2, 130, 70, 16, 24), causal=True, kind="bfloat16"),
    Case((2, 3, 3, 16, 63, 64, 64), kind="float16"),
    Case((1, 1, 1, 7, 65, 33, 9), mask=("bool", (1, 1, 7, 65)), kind="float64"),
    Case((1, 2, 1, 20, 40, 8, 8), mask=("added", (1, 2, 1, 40)), kind="float16"),
    Case((2, 2, 2, 66, 31, 4, 7), mask=("bool", (2, 1, 66, 1)), causal=True),
    Case((1, 2, 2, 5, 64, 3, 1), mask=("added", (1, 1, 5, 64))),
    Case((1, 1, 1, 3, 4, 256, 200)),
    Case((1, 2, 2, 3, 0, 4, 4)),
]


def native(
    f: Function, args: list[Array], parts: int = 1, target: Target | None = None, choice: str = ""
) -> list[Array]:
    """The results of the group `f` by its kernels, launched in `parts` parts."""
    canonical = canonicalise(f)
    extents = {name: int(d) for name, d in canonical.extents}  # type: ignore[call-overload]
    host = target or host_target()
    lowered = lower(canonical.function, host, extents, choice or variant(canonical.function, host, extents))
    types = [r.type for r in canonical.function.results]
    flat = [np.ascontiguousarray(a).ravel() for a in args]
    results = Native(lowered, host).run(flat, types, extents, parts)
    return [a.reshape(r.type.shape) for a, r in zip(results, f.results, strict=True)]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_give_the_interpreters_bits(case: Case, gradient: bool) -> None:
    f, args = case.function(gradient), case.args(gradient)
    want = interpret(f, args)
    for parts in (1, 3):
        for a, b in zip(native(f, args, parts), want, strict=True):
            assert_equal_bits(a, b)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_by_one_kernel_are_the_same(case: Case) -> None:
    """An item is a whole head of the keys, where there are heads enough for all threads."""
    f, args = case.function(True), case.args(True)
    for a, b in zip(native(f, args, 2, choice="attention_grad 64 whole"), interpret(f, args), strict=True):
        assert_equal_bits(a, b)


FEW = [
    Case((1, 2, 2, 1, 130, 64, 64)),
    Case((2, 4, 2, 3, 70, 5, 24), kind="bfloat16"),
    Case((1, 6, 1, 7, 200, 16, 40), mask=("bool", (1, 6, 7, 200))),
    Case((1, 40, 2, 1, 65, 8, 3), mask=("added", (1, 1, 1, 65)), kind="float64"),
    Case((1, 2, 1, 8, 100, 33, 16), causal=True),
    Case((1, 2, 2, 70, 5, 8, 8), mask=("added", (1, 1, 70, 1))),
]


@pytest.mark.parametrize("case", [*FEW, *CASES], ids=str)
def test_few_queries(case: Case) -> None:
    f, args = case.function(False), case.args(False)
    args[2][0, 0, 2:3, -1:], args[1][0, -1, 4:5, 0] = np.inf, np.nan
    want = interpret(f, args)
    for parts in (1, 3):
        for a, b in zip(native(f, args, parts, choice="attention few"), want, strict=True):
            assert_equal_bits(a, b)


def test_few_queries_are_a_schedule_of_their_own() -> None:
    for queries, few in ((1, True), (8, True), (9, False)):
        group = canonicalise(Case((1, 2, 2, queries, 70, 8, 8)).function(False))
        extents = {name: int(d) for name, d in group.extents}  # type: ignore[call-overload]
        assert (variant(group.function, host_target(), extents) == "attention few") == few


def test_one_kernel_for_gradients_needs_heads_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for heads, threads, whole in ((1, 2, False), (2, 2, True), (3, 2, False), (9, 2, True), (12, 64, False), (4096, 64, True)):
        monkeypatch.setattr("os.cpu_count", lambda: threads)  # noqa: B023
        group = canonicalise(Case((1, heads, heads, 70, 70, 8, 8)).function(True))
        extents = {name: int(d) for name, d in group.extents}  # type: ignore[call-overload]
        assert variant(group.function, host_target(), extents).endswith("whole") == whole


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_infinities_and_nan(gradient: bool) -> None:
    case = Case((1, 2, 2, 66, 70, 4, 4), causal=True)
    args = case.args(gradient)
    args[0][0, 0, 3, 1], args[1][0, 0, 9, 2], args[2][0, 1, 60, 0], args[2][0, 0, 69, 1] = np.inf, np.nan, -np.inf, np.inf
    if gradient:
        args[6][0, 1, 65, 2], args[4][0, 1, 2], args[5][0, 1, 50] = np.inf, -np.inf, np.nan
    f = case.function(gradient)
    for choice in ("", "attention_grad 64 whole")[: 1 + gradient]:
        for a, b in zip(native(f, args, choice=choice), interpret(f, args), strict=True):
            assert_equal_bits(a, b)


CAUSAL = [
    Case((1, 2, 2, 128, 128, 16, 16), causal=True),
    Case((1, 4, 1, 150, 150, 8, 24), causal=True),
    Case((1, 1, 1, 200, 90, 3, 5), causal=True),
    Case((1, 2, 1, 40, 131, 32, 16), causal=True),
    Case((1, 1, 1, 81, 64, 8, 8), causal=True, kind="float64"),
    Case((1, 2, 2, 100, 129, 16, 8), causal=True, mask=("added", (1, 2, 100, 129))),
    Case((2, 2, 2, 70, 70, 8, 8), causal=True, mask=("bool", (2, 1, 70, 70)), kind="bfloat16"),
]


def edged(case: Case, gradient: bool, how: str) -> list[Array]:
    """Operands where a sum that leaves out a product of zero would be seen. "zeros": weights and products underflow, so
    that sums become -0.0. "infinite": elements that are not finite, in places that causality hides from some queries."""
    args = case.args(gradient)
    with np.errstate(over="ignore", under="ignore"):
        if how == "zeros":
            args[0] = (args[0] * 12).astype(args[0].dtype)
            for i in (2, 6)[: 1 + gradient]:
                # About the least numbers there are.
                least = {"float64": 5e-324, "bfloat16": 9e-41}.get(case.kind, 1.4e-45)
                args[i] = (args[i].astype(np.float32).astype(np.float64) * least).astype(args[i].dtype)
                args[i][..., ::2] = -np.abs(args[i][..., ::2])
            if gradient:
                args[1][..., 1::2], args[5][...] = -np.abs(args[1][..., 1::2]), 0
                args[4] = interpret(case.function(False), [*args[:4], *args[7:]])[1]
        if how == "infinite":
            for i, value in ((2, np.inf), (2, np.nan), (1, -np.inf), (0, np.nan), *(((6, np.nan), (6, -np.inf)) if gradient else ())):
                x = args[i]
                x[0, -1, x.shape[2] * 3 // 4 - int(value == np.inf), x.shape[3] // 2] = value
    return args


@pytest.mark.parametrize("how", ["zeros", "infinite"])
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_tiles_that_causality_hides_are_skipped_without_a_trace(case: Case, how: str) -> None:
    f, args = case.function(False), edged(case, False, how)
    want = interpret(f, args)
    if how == "zeros" and case.mask is None:
        assert (np.signbit(want[0]) & (want[0] == 0)).any()
    for choice in ("attention 16", "attention 64", "attention 128"):
        for a, b in zip(native(f, args, 2, choice=choice), want, strict=True):
            assert_equal_bits(a, b)


@pytest.mark.parametrize("how", ["zeros", "infinite"])
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_gradients_skip_hidden_tiles_without_a_trace(case: Case, how: str) -> None:
    f, args = case.function(True), edged(case, True, how)
    want = interpret(f, args)
    for choice in ("attention_grad 16", "attention_grad 64", "attention_grad 64 whole"):
        for a, b in zip(native(f, args, 2, choice=choice), want, strict=True):
            assert_equal_bits(a, b)


@pytest.mark.parametrize("choice", ["attention_grad 16", "attention_grad 64", "attention_grad 64 whole"])
def test_negative_zeros_before_and_after_hidden_tiles(choice: str) -> None:
    """Sums that are -0.0 where products of zero come that causality leaves: they become +0.0, as if nothing were skipped."""
    case = Case((1, 2, 1, 64, 64, 8, 8), causal=True)
    f, args = case.function(True), case.args(True)
    q, k, v, _, _, delta, dout = args
    for x in (q, k, v, delta, dout):
        x[...] = 0
    # Head 0 has equal weights. Its dq: slopes of -1e-45, of the keys from 16 on +0.0; by 0.25 the former underflow to -0.0.
    k[..., 1], v[..., :16, 0], v[..., 16:, 0], dout[0, 0, :, 0] = 0.25, -1, 1, 5.6e-45
    # dv: head 0 leaves -0.0; of head 1 only key 0 has a weight, and the queries before a tile of keys add 0 * 1.
    k[..., 0, 2], q[0, 1, :, 2], dout[0, 0, :, 1], dout[0, 1, :16, 1], dout[0, 1, 16:, 1] = 100, 10, -1.4e-45, 1, -1
    args[4] = interpret(case.function(False), args[:4])[1]
    want = interpret(f, args)
    assert want[0][0, 0, 3, 1] == want[2][0, 0, 40, 1] == 0
    assert not np.signbit(want[0][0, 0, 3, 1]) and not np.signbit(want[2][0, 0, 40, 1])
    for a, b in zip(native(f, args, choice=choice), want, strict=True):
        assert_equal_bits(a, b)


def test_narrow_vectors_give_the_same_bits() -> None:
    """The tiles of a processor with vectors of 256 bits."""
    host = host_target()
    if host.vector_bits != 512:
        pytest.skip("this processor has one width of vectors")
    narrow = Target(**{**vars(host), "vector_bits": 256})
    case = Case((1, 2, 1, 67, 70, 12, 20), causal=True)
    for gradient in (False, True):
        f, args = case.function(gradient), case.args(gradient)
        for a, b in zip(native(f, args, target=narrow), interpret(f, args), strict=True):
            assert_equal_bits(a, b)


def test_layout_in_front_is_read_through() -> None:
    b = Builder("projected")
    x = b.param(TensorType.parse("f32[2, 70, 72]"))
    f = b.build([projected(b, x)])
    calls = fuse(f).entry.ops
    names = [{op.name for op in c.attrs["function"].ops} for c in calls]
    assert len(calls) == 2 and "attention" in names[0] and names[1] == {"permute", "reshape"}
    assert [p.type.shape for p in calls[0].attrs["function"].params] == [(2, 70, 72)]
    value = np.random.default_rng(1).standard_normal((2, 70, 72)).astype(np.float32)
    assert_equal_bits(run(f, value)[0], interpret(f, [value])[0])


def test_nothing_is_as_large_as_the_scores() -> None:
    f = Case((1, 1, 1, 1000, 1000, 8, 8)).function(False)
    canonical = canonicalise(f)
    extents = {name: int(d) for name, d in canonical.extents}  # type: ignore[call-overload]
    assert lower(canonical.function, host_target(), extents).scratch == ()


def test_one_kernel_serves_all_lengths() -> None:
    keys = {
        canonicalise(Case((b, h, h, t, s, 16, 16)).function(False)).function.key()
        for b, h, t, s in ((2, 3, 70, 80), (5, 7, 100, 20), (4, 6, 33, 65))
    }
    assert len(keys) == 1


def test_stages_are_printed() -> None:
    f = Case((2, 2, 2, 70, 70, 8, 8), causal=True).function(True)
    assert "= attention_grad(j < e2 in blocks of 64, j <= i2: sum(d < 8: " in stage_text(f, "loops")
    assert "kernel @attention_grad" in stage_text(f, "scheduled")
