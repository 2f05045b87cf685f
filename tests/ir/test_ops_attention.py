"""attention and attention_grad: against the plain formula, types, masks, gradients of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen import math
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import var
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Value
from graphc.ir.interpret import interpret
from graphc.ir.ops import exponential
from graphc.ir.ops.attention import LARGEST_HEAD
from graphc.ir.registry import IRTypeError
from graphc.ir.text import parse_function, print_function
from graphc.ir.types import F32, F64, DType, TensorType, dtype
from graphc.ir.verify import verify

from tests.ir.exact import assert_equal_bits, special_values
from tests.ir.gradcheck import build, check_gradients
from tests.ir.one_op import function_of, infer

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(3)


def normal(*shape: int, kind: Any = np.float64) -> Array:
    return np.asarray(RANDOM.standard_normal(shape)).astype(kind)


def plain(q: Array, k: Array, v: Array, scale: float, mask: Array | None = None, causal: bool = False) -> tuple[Array, Array]:
    """softmax(q k^T * scale + mask) v in float64, and the logarithm of the sums."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, np.repeat(k, group, 1), np.repeat(v, group, 1)))
    t = q @ k.swapaxes(2, 3) * scale
    if mask is not None:
        t = np.where(mask, t, -np.inf) if mask.dtype == bool else t + mask
    if causal:
        t = np.where(np.tri(*t.shape[2:], dtype=bool), t, -np.inf)
    top = t.max(-1, keepdims=True)
    e = np.exp(t - np.where(top == -np.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return e / np.where(total == 0, 1, total) @ v, np.where(top == -np.inf, -np.inf, top + np.log(total))[..., 0]


def run(q: Array, k: Array, v: Array, scale: float, *mask: Array, causal: bool = False) -> list[Array]:
    wide = np.float64 if q.dtype == np.float64 else np.float32
    args = [q, k, v, np.asarray(scale, wide), *mask]
    return interpret(build(lambda b, *x: b.attention(*x, causal=causal), args), args)


SHAPES = [
    # B, H, Hk, T, S, D, E
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 5, 4, 3),
    (1, 4, 2, 65, 67, 5, 8),
    (1, 2, 1, 3, 130, 17, 2),
    (1, 6, 2, 70, 64, 3, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", [F64, F32, dtype("float16"), dtype("bfloat16")])
def test_it_is_softmax_of_scores_times_values(shape: tuple[int, ...], causal: bool, kind: DType) -> None:
    b, h, hk, t, s, d, e = shape
    q, k, v = normal(b, h, t, d, kind=kind.numpy), normal(b, hk, s, d, kind=kind.numpy), normal(b, hk, s, e, kind=kind.numpy)
    out, logsumexp = run(q, k, v, 0.4, causal=causal)
    want, want_sum = plain(q, k, v, 0.4, causal=causal)
    # Half an ulp of the result's dtype (8 bits for bfloat16), or the rounding of sums in float32 (float64).
    tolerance = {"float64": 1e-13, "float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}[kind.name]
    assert out.dtype == kind.numpy and logsumexp.dtype == (np.float64 if kind is F64 else np.float32)
    np.testing.assert_allclose(out.astype(np.float64), want, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(logsumexp, want_sum, rtol=max(1e-13, min(tolerance, 3e-6)), atol=3e-6)


@pytest.mark.parametrize("dims", [(2, 4, 6, 70), (1, 1, 6, 70), (2, 1, 1, 70), (1, 4, 6, 1)])
def test_masks_are_boolean_or_added(dims: tuple[int, ...]) -> None:
    q, k, v = normal(2, 4, 6, 3), normal(2, 2, 70, 3), normal(2, 2, 70, 5)
    for mask in (normal(*dims), normal(*dims) > 0.3):
        out, logsumexp = run(q, k, v, 0.5, mask)
        want, want_sum = plain(q, k, v, 0.5, mask)
        np.testing.assert_allclose(out, want, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(logsumexp, want_sum, rtol=1e-12)


def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient() -> None:
    q, k, v = normal(1, 1, 3, 2), normal(1, 1, 4, 2), normal(1, 1, 4, 2)
    seen = np.ones((1, 1, 3, 4), bool)
    seen[0, 0, 1] = False
    f = build(lambda b, *x: b.attention(*x), [q, k, v, np.array(1.0), seen])
    out, logsumexp, dq, dk, dv, _ = interpret(vjp(f), [q, k, v, np.array(1.0), seen, normal(1, 1, 3, 2), normal(1, 1, 3)])
    assert (out[0, 0, 1] == 0).all() and logsumexp[0, 0, 1] == -np.inf
    assert (dq[0, 0, 1] == 0).all() and all(np.isfinite(x).all() for x in (dq, dk, dv))
    no_keys = run(q, k[:, :, :0], v[:, :, :0], 1.0)
    assert (no_keys[0] == 0).all() and (no_keys[1] == -np.inf).all()


def test_hidden_blocks_are_not_visited() -> None:
    """A value of infinity in a block that causality hides does not reach the result; in the query's own block it does."""
    q, k, v = normal(1, 1, 130, 2), normal(1, 1, 130, 2), normal(1, 1, 130, 2)
    v[0, 0, 70] = np.inf
    out = run(q, k, v, 1.0, causal=True)[0][0, 0]
    assert np.isfinite(out[:64]).all() and np.isnan(out[64:70]).all() and not np.isfinite(out[70:]).any()


def test_gradients_of_both_operations() -> None:
    q, k, v, scale = normal(1, 2, 3, 2), normal(1, 1, 4, 2), normal(1, 1, 4, 3), np.array(0.7)
    for causal in (False, True):
        check_gradients(lambda b, *x, seen=causal: b.attention(*x, causal=seen), [q, k, v, scale], order=1)
    for mask in (normal(1, 2, 1, 4), np.array([True, False, True, True]).reshape(1, 1, 1, 4)):
        check_gradients(lambda b, *x: b.attention(*x), [q, k, v, scale, mask], order=1)
    rows = [normal(1, 2, 3) + 2, normal(1, 2, 3), normal(1, 2, 3, 3)]
    check_gradients(lambda b, *x: b.attention_grad(*x), [q, k, v, scale, *rows], order=1)


def test_second_order() -> None:
    q, k, v = normal(1, 2, 2, 1), normal(1, 1, 2, 1), normal(1, 1, 2, 1)
    check_gradients(lambda b, *x: b.attention(*x), [q, k, v, np.array(0.7), normal(1, 1, 1, 2)], order=2)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_gradients_are_rounded_once(name: str) -> None:
    kind = dtype(name).numpy
    args = [normal(1, 2, 66, 4, kind=kind), normal(1, 2, 66, 4, kind=kind), normal(1, 2, 66, 4, kind=kind), np.float32(0.5)]
    rows = [normal(1, 2, 66, kind=np.float32) + 4, normal(1, 2, 66, kind=np.float32), normal(1, 2, 66, 4, kind=kind)]

    def body(b: Builder, *x: Value) -> Any:
        return b.attention_grad(*x, causal=True)

    narrow = interpret(build(body, [*args, *rows]), [*args, *rows])
    wide_args = [a.astype(np.float32) for a in [*args, *rows]]
    wide = interpret(build(body, wide_args), wide_args)
    for a, b in zip(narrow, wide):
        assert_equal_bits(a, b.astype(kind))


@pytest.mark.parametrize("kind", [F32, F64])
@pytest.mark.parametrize("name", ["exp", "log"])
def test_exp_and_log_are_those_of_compiled_code(name: str, kind: DType) -> None:
    with np.errstate(over="ignore"):
        wide = np.exp(normal(20000) * 30).astype(kind.numpy)
    x = np.concatenate([special_values(kind), normal(20000, kind=kind.numpy) * 40, wide])
    want = evaluate(getattr(math, name)(var("x", kind)), {"x": x})
    assert_equal_bits(getattr(exponential, name)(x), want)


def test_types() -> None:
    q, k, v = "bf16[B, 6, T, 64]", "bf16[B, 2, S, 64]", "bf16[B, 2, S, 32]"
    assert infer("attention", q, k, v, "f32[]") == "bf16[B, 6, T, 32]; f32[B, 6, T]"
    assert infer("attention", q, k, v, "f32[]", "bool[1, 1, T, S]", causal=True) == "bf16[B, 6, T, 32]; f32[B, 6, T]"
    rows = ["f32[B, 6, T]", "f32[B, 6, T]", "bf16[B, 6, T, 32]"]
    assert infer("attention_grad", q, k, v, "f32[]", *rows) == f"{q}; {k}; {v}"
    f = function_of("attention", q, k, v, "f32[]", causal=True, precision="exact")
    verify(f)
    assert parse_function(print_function(f)) == f
    verify(vjp(function_of("attention", "f32[B, H, T, 8]", "f32[B, H, S, 8]", "f32[B, H, S, 8]", "f32[]", "f32[1, H, 1, S]")))


X, ONE = "f32[2, 4, 5, 8]", "f32[]"
WRONG = [
    ((X, X, X), {}, "takes 4 operands and optionally a mask, not 3"),
    (("i32[2, 4, 5, 8]", X, X, ONE), {}, "defined for floating point"),
    (("f32[4, 5, 8]", X, X, ONE), {}, "rank 4"),
    ((X, "f16[2, 4, 5, 8]", X, ONE), {}, "one dtype, not f32, f16, f32; cast them"),
    ((X, "f32[3, 4, 5, 8]", X, ONE), {}, "one batch size"),
    ((X, X, "f32[2, 4, 6, 8]", ONE), {}, "agree in heads and keys"),
    ((X, "f32[2, 4, 5, 9]", X, ONE), {}, "one head size, not 8 and 9"),
    ((X, "f32[2, 3, 5, 8]", "f32[2, 3, 5, 8]", ONE), {}, "4 heads of q must be a multiple of the 3"),
    ((X, X, f"f32[2, 4, 5, {LARGEST_HEAD + 1}]", ONE), {}, "a number from 1 to 256, not 257; compose it"),
    (("f32[2, 4, 5, D]", "f32[2, 4, 5, D]", X, ONE), {}, "a number from 1 to 256, not D"),
    ((X, X, X, "f64[]"), {}, r"scale must be f32\[\], not f64\[\]"),
    ((X, X, X, ONE, "i32[2, 4, 5, 5]"), {}, "the mask is bool, or f32"),
    ((X, X, X, ONE, "bool[2, 4, 5, 6]"), {}, r"those of the scores \[2, 4, 5, 5\] or 1, not \[2, 4, 5, 6\]"),
    ((X, X, X, ONE), {"causal": 1}, "causal must be True or False"),
    ((X, X, X, ONE), {"precision": "fast"}, "precision must be one of"),
]


@pytest.mark.parametrize(("types", "attrs", "message"), WRONG)
def test_errors(types: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of("attention", *types, **attrs)


def test_errors_of_the_gradient() -> None:
    row = TensorType(F32, (2, 4, 5))
    with pytest.raises(IRTypeError, match=r"attention_grad.*delta must be f32\[2, 4, 5\], not f32\[2, 4, 6\]"):
        function_of("attention_grad", X, X, X, ONE, row, "f32[2, 4, 6]", X)
