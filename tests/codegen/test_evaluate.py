"""The NumPy evaluation of scalar expressions: fused multiply-add and casts against rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from graphc.codegen.evaluate import convert, evaluate, fused32, fused64
from graphc.codegen.expr import binary, bitcast, const, fma, load, select, unary, var
from graphc.codegen.loops import Buffer
from graphc.ir.types import F32, F64, I8, I32, I64, U8, U32, U64, DType

Array = np.ndarray[Any, Any]


def _nearest_float(value: Fraction, dtype: DType) -> float:
    """`value` rounded to nearest even by integer arithmetic."""
    info = np.finfo(dtype.numpy)
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += 0 if size >= Fraction(2) ** exponent else -1
    step = Fraction(2) ** max(exponent - info.nmant, info.minexp - info.nmant)
    quotient, rest = divmod(size, step)
    quotient += 1 if rest > step / 2 or (rest == step / 2 and quotient % 2) else 0
    rounded = quotient * step
    result = float("inf") if rounded > Fraction(float(info.max)) else float(rounded)
    return -result if value < 0 else result


def _operands(dtype: DType, count: int) -> list[Array]:
    """Triples that cancel, tie, underflow and overflow."""
    rng = np.random.default_rng(1)
    info = np.finfo(dtype.numpy)
    random = [np.ldexp(rng.uniform(-2, 2, count), rng.integers(-40, 40, count)) for _ in range(3)]
    a, b = (np.ldexp(rng.uniform(-2, 2, count), rng.integers(-9, 9, count)).astype(dtype.numpy) for _ in range(2))
    cancel = [a, b, -(a * b)]
    nearly = [a, b, np.nextafter(-(a * b), np.array(np.inf, dtype.numpy))]
    small = rng.integers(info.minexp - info.nmant - 4, info.minexp + 4, count)
    under = [np.ldexp(a.astype(np.float64), small // 2), np.ldexp(b.astype(np.float64), small - small // 2),
             np.ldexp(rng.uniform(-2, 2, count), np.maximum(small, -1074))]  # fmt: skip
    big = [np.ldexp(rng.uniform(1, 2, count), info.maxexp // 2 - 1) for _ in range(2)]
    over = [*big, np.ldexp(rng.uniform(-2, 2, count), info.maxexp - 2)]
    eps = float(info.eps)
    tie = [np.full(count, 1 + eps), np.full(count, 1 + eps), rng.choice([-1, 1], count) * eps**3]
    groups = [random, cancel, nearly, under, over, tie]
    with np.errstate(all="ignore"):
        return [np.concatenate([np.asarray(g[k]).astype(dtype.numpy) for g in groups]) for k in range(3)]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_fma_rounds_once(dtype: DType) -> None:
    a, b, c = _operands(dtype, 400)
    got = (fused32 if dtype is F32 else fused64)(a, b, c)
    assert got.dtype == dtype.numpy
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist()):
        if np.isfinite([x, y, z]).all():
            assert value == _nearest_float(Fraction(x) * Fraction(y) + Fraction(z), dtype), (x, y, z)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_fma_specials(dtype: DType) -> None:
    inf, nan = float("inf"), float("nan")
    cases = [
        (inf, 1, 1, inf), (inf, 0, 1, nan), (inf, 1, -inf, nan), (1, 1, -inf, -inf), (nan, 1, 1, nan),
        (0.0, -1, -0.0, -0.0), (0.0, 1, -0.0, 0.0), (1, 1, -1, 0.0), (-0.0, 1, 0.0, 0.0),
    ]  # fmt: skip
    for *args, want in cases:
        with np.errstate(all="ignore"):
            got = (fused32 if dtype is F32 else fused64)(*(np.array([v], dtype.numpy) for v in args))[0]
        assert (np.isnan(got) and np.isnan(want)) or (got == want and np.signbit(got) == np.signbit(want)), args


def test_float_to_integer_truncates_and_saturates() -> None:
    x = np.array([1.9, -1.9, 1e30, -1e30, np.nan, np.inf, -np.inf, 2.0**63, -(2.0**63), 127.5, 255.5, -0.5])
    low, high = -(2**63), 2**63 - 1
    assert convert(x, F64, I64).tolist() == [1, -1, high, low, 0, high, low, high, low, 127, 255, 0]
    assert convert(x, F64, U64).tolist()[:8] == [1, 0, 2**64 - 1, 0, 0, 2**64 - 1, 0, 2**63]
    assert convert(x, F64, I8).tolist()[:3] == [1, -1, 127]
    assert convert(x, F64, U8).tolist()[-3:] == [127, 255, 0]
    assert convert(x.astype(np.float32), F32, I32).tolist()[2:4] == [2**31 - 1, -(2**31)]


def test_integer_operations() -> None:
    rng = np.random.default_rng(2)
    for dtype in (U32, U64):
        a, b = (np.frombuffer(rng.bytes(200 * dtype.itemsize), dtype.numpy) for _ in range(2))
        got = evaluate(binary("mulhi", var("a", dtype), var("b", dtype)), {"a": a, "b": b})
        assert got.tolist() == [p * q >> dtype.bits for p, q in zip(a.tolist(), b.tolist())]
    env = {"a": np.array([7, -7, 7, -7], np.int32), "b": np.array([2, 2, -2, -2], np.int32)}
    a, b = var("a", I32), var("b", I32)
    assert evaluate(binary("idiv", a, b), env).tolist() == [3, -3, -3, 3]
    assert evaluate(binary("irem", a, b), env).tolist() == [1, -1, 1, -1]
    assert evaluate(binary("shr", a, const(I32, 1)), env).tolist() == [3, -4, 3, -4]


def test_shared_parts_are_evaluated_once_and_variables_checked() -> None:
    x = var("x", F32)
    e = x
    for _ in range(60):
        e = fma(e, e, x)  # 2**60 nodes if parts were not shared
    assert evaluate(e, {"x": np.zeros(3, np.float32)}).tolist() == [0, 0, 0]
    with pytest.raises(TypeError, match="variable x is f32"):
        evaluate(x, {"x": np.zeros(3)})
    with pytest.raises(TypeError, match="no value outside a kernel"):
        evaluate(load(Buffer("b", F32, "in"), const(I64, 0)), {})
    chosen = select(unary("not", binary("lt", x, const(F32, 0))), bitcast(bitcast(x, U32), F32), -x)
    assert evaluate(chosen, {"x": np.array([-2, 3], np.float32)}).tolist() == [2, 3]
