"""The scalar expressions of elementwise operations against the meaning in ir/ops, equal to the bit."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from graphc.codegen.elementwise import OPERATIONS, greatest, least, reduction, scalar
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import var
from graphc.ir.ops.elementwise import APPROXIMATE
from graphc.ir.registry import IRTypeError, OpDef, operations
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U64, DType, TensorType

Array = np.ndarray[Any, Any]
FAMILIES = {n: d for n, d in operations().items() if d.family in ("elementwise", "compare")}
FLOATS = tuple(d for d in ALL_DTYPES if d.is_float)
OPERAND_DTYPES = {"select": lambda d: (BOOL, d, d)}
ATTRIBUTES = {"cast": [{"dtype": d} for d in ALL_DTYPES], "bitcast": [{"dtype": d} for d in ALL_DTYPES]}


def interesting(dtype: DType, count: int, seed: int) -> Array:
    """Edges of the format, small numbers, random values and random bits."""
    rng = np.random.default_rng(seed)
    if dtype is BOOL:
        return rng.integers(0, 2, count).astype(bool)
    bits = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype.numpy)
    if dtype.is_integer:
        edges = [least(dtype), least(dtype) + 1, greatest(dtype), 0, 1, 2, 3, 7, 31, 32, 63, 64, 100]
        small = rng.integers(-9 if dtype.kind == "i" else 0, 70, count)
        head = np.array([v for v in edges if v <= greatest(dtype)], dtype.numpy)
        values = np.concatenate([head, small.astype(dtype.numpy), bits])
    else:
        with np.errstate(all="ignore"):
            numbers = [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -1.5, 2.5, 3, 1 / 3, 1e-7, -1e4, 300, 2.0**31, -(2.0**63)]
            head = np.array(numbers, np.float64).astype(dtype.numpy)
            normal = (rng.standard_normal(count) * 3).astype(dtype.numpy)
        denormal = np.array([1, 1 << (dtype.bits - 1) | 3], f"u{dtype.itemsize}").view(dtype.numpy)
        values = np.concatenate([head, denormal, normal, bits])
    rng.shuffle(values)
    return np.resize(values, count)


def arity(definition: OpDef) -> int:
    for count in (1, 2, 3):
        for d in (F32, I32):
            types = tuple(TensorType(t, (4,)) for t in OPERAND_DTYPES.get(definition.name, lambda d, c=count: (d,) * c)(d))
            try:
                definition.infer(types[:count], {"dtype": d})
                return count
            except IRTypeError:
                continue
    raise AssertionError(f"no operand types fit {definition.name}")


def assert_equal_bits(a: Array, b: Array, what: str, args: list[Array]) -> None:
    assert a.dtype == b.dtype, what
    same = a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")
    if a.dtype.kind in "fV":
        with np.errstate(invalid="ignore"):
            same |= np.isnan(a) & np.isnan(b)
    if not same.all():
        i = int(np.argmin(same))
        raise AssertionError(f"{what}({', '.join(str(v[i]) for v in args)}) = {a[i]}, meaning {b[i]}")


def test_every_elementwise_and_compare_operation_has_an_expression() -> None:
    assert set(FAMILIES) == set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_meaning(name: str) -> None:
    definition, count, checked = FAMILIES[name], arity(FAMILIES[name]), 0
    for dtype in ALL_DTYPES:
        dtypes = OPERAND_DTYPES.get(name, lambda d: (d,) * count)(dtype)
        types = tuple(TensorType(d, (700,)) for d in dtypes)
        for attrs in ATTRIBUTES.get(name, [{}]):
            try:
                (result,) = definition.infer(types, attrs)
            except IRTypeError:
                continue
            args = [interesting(d, 700, i) for i, d in enumerate(dtypes)]
            names = [f"x{i}" for i in range(count)]
            e = scalar(name, [var(n, d) for n, d in zip(names, dtypes)], attrs, result.dtype)
            assert e.dtype is result.dtype
            got = np.broadcast_to(evaluate(e, dict(zip(names, args))), 700)
            checked += 1
            if name in APPROXIMATE and dtype.is_float:
                continue  # its bits are defined here; test_math.py has its accuracy
            (want,) = definition.eval(args, attrs, (result,))
            assert_equal_bits(np.ascontiguousarray(got), want, f"{name}[{dtype}]{attrs or ''}", args)
    assert checked


def test_undefined_operand_types_are_named_in_the_error() -> None:
    x = var("x", I32)
    with pytest.raises(TypeError, match=r"exp\(i32\) is not defined; exp takes floats"):
        scalar("exp", [x], {}, I32)
    with pytest.raises(TypeError, match="sum_pool is not an elementwise operation"):
        scalar("sum_pool", [x], {}, I32)
    with pytest.raises(TypeError, match="the reduction any is not defined for i32"):
        reduction("any", I32)


# --- what ir/ops defines in the same way, checked independently -------------------------------


@pytest.mark.parametrize("dtype", [I8, U8])
def test_small_integers_exhaustively(dtype: DType) -> None:
    values = range(least(dtype), greatest(dtype) + 1)
    pairs = np.array(list(itertools.product(values, values)), dtype.numpy)
    a, b = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    x, y = var("x", dtype), var("y", dtype)

    def check(name: str, meaning: Any) -> None:
        got = evaluate(scalar(name, [x, y], {}, dtype), {"x": a, "y": b}).tolist()
        size = 1 << dtype.bits
        for p, q, value in zip(a.tolist(), b.tolist(), got):
            assert (value - meaning(p, q)) % size == 0, f"{name}({p}, {q}) = {value}"

    check("floor_divide", lambda p, q: p // q if q else 0)
    check("remainder", lambda p, q: p % q if q else 0)
    check("shift_left", lambda p, q: p << q if 0 <= q < 8 else 0)
    check("shift_right", lambda p, q: p >> (q if 0 <= q < 8 else 8))
    check("pow", lambda p, q: pow(p, q, 1 << dtype.bits) if q >= 0 else {1: 1, -1: -1 if q % 2 else 1}.get(p, 0))


def test_wide_integers_at_their_edges() -> None:
    x, y = var("x", I64), var("y", I64)
    low = least(I64)
    env = {"x": np.array([low, low, 7, -7, low]), "y": np.array([-1, 0, -2, 2, 1])}
    assert evaluate(scalar("floor_divide", [x, y], {}, I64), env).tolist() == [low, 0, -4, -4, low]
    assert evaluate(scalar("remainder", [x, y], {}, I64), env).tolist() == [0, 0, -1, 1, 0]
    u, v = var("x", U64), var("y", U64)
    env = {"x": np.array([3, 2, 2, 10], np.uint64), "y": np.array([41, 63, 64, 19], np.uint64)}
    assert evaluate(scalar("pow", [u, v], {}, U64), env).tolist() == [3**41 % 2**64, 2**63, 0, 10**19]


@pytest.mark.parametrize("divisor", [1, 2, 3, 10, -3, -1, 0])
def test_division_by_a_literal_is_division(divisor: int) -> None:
    from graphc.codegen.expr import const

    x, y = var("x", I32), var("y", I32)
    a = interesting(I32, 300, 5)
    for name in ("floor_divide", "remainder"):
        literal = evaluate(scalar(name, [x, const(I32, divisor)], {}, I32), {"x": a})
        general = evaluate(scalar(name, [x, y], {}, I32), {"x": a, "y": np.full(300, divisor, np.int32)})
        assert (literal == general).all()


def _nearest(value: Fraction, dtype: DType) -> float:
    """The finite float of a 16-bit dtype nearest to a `value` >= 0, ties to even, by search over all."""
    infinity = int(np.array(np.inf, dtype.numpy).view(np.uint16))
    every = np.arange(infinity, dtype=np.uint16).view(dtype.numpy).astype(np.float64)
    i = int(np.searchsorted(every, float(value)))
    around = range(max(0, i - 2), min(len(every), i + 3))
    return float(every[min(around, key=lambda k: (abs(Fraction(every[k]) - value), k % 2))])


@pytest.mark.parametrize("target", [F16, BF16])
def test_casts_to_16_bits_round_once(target: DType) -> None:
    rng = np.random.default_rng(3)
    middle = np.array([1.0 + 2.0**-11, 1.0 + 2.0**-8, 1.0 + 2.0**-9], np.float64)
    # Just beside a tie of the narrow format, by less than a float32 can tell.
    wide = np.concatenate([middle * (1 + 2.0**-45), middle * (1 - 2.0**-45), middle, rng.uniform(0, 2, 50)])
    got = evaluate(scalar("cast", [var("x", F64)], {}, target), {"x": wide})
    for value, result in zip(wide, got):
        assert float(result) == _nearest(Fraction(value), target)
    if target is BF16:
        integers = np.array([(1 << 62) + (1 << 54) + 1, (1 << 62) + (1 << 54), (1 << 62) + (1 << 54) - 1, 2**24 + 1], np.int64)
        got = evaluate(scalar("cast", [var("x", I64)], {}, target), {"x": integers})
        for value, result in zip(integers.tolist(), got):
            assert float(result) == _nearest(Fraction(value), target)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_nextafter_steps_in_the_dtype_itself(dtype: DType) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
    every = every[np.isfinite(every.astype(np.float32))]
    up = np.full(every.shape, np.inf, dtype.numpy)
    e = scalar("nextafter", [var("x", dtype), var("y", dtype)], {}, dtype)
    stepped = evaluate(e, {"x": every, "y": up}).astype(np.float64)
    ordered = np.unique(every.astype(np.float64))
    following = dict(zip(ordered, [*ordered[1:], np.inf]))
    assert all(s == following[float(v)] for v, s in zip(every, stepped))


def test_maximum_and_minimum_keep_the_first_of_equals_and_any_nan() -> None:
    for dtype in FLOATS:
        a = np.array([0.0, -0.0, np.nan, 1, 2], np.float32).astype(dtype.numpy)
        b = np.array([-0.0, 0.0, 1, np.nan, 1], np.float32).astype(dtype.numpy)
        x, y = var("x", dtype), var("y", dtype)
        for name, last in (("maximum", 2.0), ("minimum", 1.0)):
            got = evaluate(scalar(name, [x, y], {}, dtype), {"x": a, "y": b}).astype(np.float32)
            assert np.signbit(got[:2]).tolist() == [False, True]
            assert np.isnan(got[2:4]).all() and got[4] == last


# --- float remainders -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_float_remainder_is_exact(dtype: DType) -> None:
    """Against rationals: |x - trunc(x/y)*y| needs no rounding; then Python's sign rule, rounded once."""
    a, b = interesting(dtype, 1500, 11), interesting(dtype, 1500, 12)
    e = scalar("remainder", [var("x", dtype), var("y", dtype)], {}, dtype)
    got = evaluate(e, {"x": a, "y": b})
    for x, y, value in zip(a.tolist(), b.tolist(), got.tolist()):
        if not np.isfinite([x, y]).all() or y == 0:
            continue
        exact = abs(Fraction(x)) % abs(Fraction(y)) * (-1 if x < 0 else 1)
        if exact and (exact < 0) != (y < 0):
            exact = Fraction(float(dtype.numpy.type(float(exact)) + dtype.numpy.type(y)))  # one float addition
        assert Fraction(value) == exact, (x, y)


# --- reductions -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "any", "all"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_reduction_identity_and_combine(name: str, dtype: DType) -> None:
    if name in ("any", "all") and dtype is not BOOL:
        with pytest.raises(TypeError, match=name):
            reduction(name, dtype)
        return
    identity, combine = reduction(name, dtype)
    wide = F32 if dtype in (F16, BF16) else dtype
    assert identity.dtype is wide
    values = interesting(wide, 400, 2)
    if name == "max" and wide.is_float:
        values = values[values != -np.inf]
    x = var("x", wide)
    got = evaluate(combine(identity, x), {"x": values})
    assert_equal_bits(np.ascontiguousarray(got), values, f"{name} of the identity and", [values])
    acc = var("acc", wide)
    other = interesting(wide, len(values), 4)
    got = evaluate(combine(acc, x), {"acc": values, "x": other})
    with np.errstate(all="ignore"):
        want = {
            "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
            "any": np.logical_or, "all": np.logical_and,
        }[name](values, other)  # fmt: skip
    same = (got == want) | ((got != got) & (want != want))
    assert same.all()
