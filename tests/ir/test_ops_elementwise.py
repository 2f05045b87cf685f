"""Elementwise operations: type rules, edge values to the bit, dtypes, gradients to second order."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from graphc.ir.ops.elementwise import APPROXIMATE
from graphc.ir.ops.fma import fma
from graphc.ir.registry import IRTypeError, operations
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U64, DType

from tests.ir.gradcheck import check_gradients
from tests.ir.one_op import infer, run, same_bits

NAN, INF = math.nan, math.inf
ELEMENTWISE = {n: d for n, d in operations().items() if d.family == "elementwise"}


def positive(*shape: int, low: float = 0.3, high: float = 2.0, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, high, shape)


def signed(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Values of both signs, at least 0.2 away from 0."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.2, 1.5, shape)


def unit(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(-0.8, 0.8, shape)


# Operation -> points inside its domain and away from its kinks.
GRADIENT_POINTS: dict[str, list[np.ndarray[Any, Any]]] = {
    **{n: [signed(4)] for n in ["neg", "abs", "sign", "reciprocal", "square", "exp", "exp2", "expm1", "sin", "cos", "atan", "sinh", "cosh", "tanh", "asinh", "erf"]},
    **{n: [signed(4) + 0.013] for n in ["floor", "ceil", "trunc", "round"]},
    **{n: [positive(4)] for n in ["sqrt", "log", "log2", "log10", "log1p"]},
    **{n: [unit(4)] for n in ["tan", "asin", "acos", "atanh"]},
    "acosh": [positive(4, low=1.2, high=3.0)],
    **{n: [signed(4), signed(4, seed=1)] for n in ["add", "sub", "mul", "div", "maximum", "minimum", "atan2", "hypot", "copysign", "logaddexp"]},
    "floor_divide": [signed(4), positive(4, seed=1)],
    "remainder": [signed(4), positive(4, seed=1)],
    "pow": [positive(4), signed(4, seed=1)],
    "fma": [signed(4), signed(4, seed=1), signed(4, seed=2)],
}


@pytest.mark.parametrize("name", GRADIENT_POINTS)
def test_gradient(name: str) -> None:
    check_gradients(lambda b, *xs: b.emit(name, *xs), GRADIENT_POINTS[name])


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "reciprocal"])
def test_third_derivative(name: str) -> None:
    check_gradients(lambda b, x: b.emit(name, x), [unit(2) + 1.0], order=3)


def test_gradient_of_select_and_cast() -> None:
    cond = np.array([True, False, True, False])
    check_gradients(lambda b, c, x, y: b.select(c, b.mul(x, x), b.mul(x, y)), [cond, signed(4), signed(4, seed=1)])
    check_gradients(lambda b, x: b.mul(b.cast(x, dtype=F64), x), [signed(4)])


def test_every_operation_with_a_gradient_is_checked() -> None:
    assert {n for n, d in ELEMENTWISE.items() if d.vjp} == set(GRADIENT_POINTS) | {"select", "cast"}


def gradient(name: str, *points: float) -> list[float]:
    """The gradient of a scalar operation at a point, by float64."""
    from graphc.ir.autodiff import vjp
    from graphc.ir.interpret import interpret

    from tests.ir.gradcheck import build

    arrays = [np.asarray(p, np.float64) for p in points]
    f = build(lambda b, *xs: b.emit(name, *xs), arrays)
    return [float(g) for g in interpret(vjp(f), [*arrays, np.asarray(1.0)])[1:]]


@pytest.mark.parametrize(
    ("name", "point", "want"),
    [
        ("abs", (0.0,), [0.0]),
        ("maximum", (2.0, 2.0), [0.5, 0.5]),
        ("minimum", (2.0, 2.0), [0.5, 0.5]),
        ("maximum", (1.0, 2.0), [0.0, 1.0]),
        ("minimum", (1.0, 2.0), [1.0, 0.0]),
        ("pow", (0.0, 2.0), [0.0, 0.0]),
        ("pow", (0.0, 0.0), [0.0, 0.0]),
        ("pow", (0.0, 1.0), [1.0, 0.0]),
        ("pow", (2.0, 0.0), [0.0, math.log(2.0)]),
        ("sqrt", (0.0,), [INF]),
        ("copysign", (0.0, -1.0), [0.0, 0.0]),
        ("logaddexp", (-INF, 0.0), [0.0, 1.0]),
        ("logaddexp", (INF, 0.0), [1.0, 0.0]),
        ("logaddexp", (-INF, -INF), [1.0, 1.0]),
        ("remainder", (7.5, 2.0), [1.0, -3.0]),
    ],
)
def test_gradient_conventions(name: str, point: tuple[float, ...], want: list[float]) -> None:
    assert gradient(name, *point) == want


# ---- meaning -----------------------------------------------------------------------------------

# (operation, operands, result): special cases of the array API standard 2024.12 and the bit contract.
SPECIAL: list[tuple[str, tuple[float, ...], float]] = [
    ("sign", (NAN,), NAN), ("sign", (-0.0,), 0.0), ("sign", (-INF,), -1.0),
    ("abs", (-0.0,), 0.0), ("neg", (0.0,), -0.0), ("sqrt", (-0.0,), -0.0), ("sqrt", (-1.0,), NAN),
    ("reciprocal", (-0.0,), -INF), ("reciprocal", (-INF,), -0.0), ("square", (-INF,), INF),
    ("round", (0.5,), 0.0), ("round", (1.5,), 2.0), ("round", (2.5,), 2.0), ("round", (-0.5,), -0.0),
    ("floor", (-0.5,), -1.0), ("ceil", (-0.5,), -0.0), ("trunc", (-0.9,), -0.0), ("floor", (-0.0,), -0.0),
    ("exp", (-INF,), 0.0), ("expm1", (-0.0,), -0.0), ("log", (0.0,), -INF), ("log", (-1.0,), NAN), ("log1p", (-1.0,), -INF),
    ("atanh", (1.0,), INF), ("acosh", (0.5,), NAN), ("erf", (INF,), 1.0), ("erf", (-0.0,), -0.0), ("tanh", (-INF,), -1.0),
    ("add", (-0.0, -0.0), -0.0), ("add", (INF, -INF), NAN), ("sub", (0.0, 0.0), 0.0), ("mul", (INF, 0.0), NAN), ("div", (-1.0, 0.0), -INF),
    ("maximum", (-0.0, 0.0), -0.0), ("maximum", (0.0, -0.0), 0.0), ("maximum", (NAN, 1.0), NAN), ("maximum", (1.0, NAN), NAN),
    ("minimum", (0.0, -0.0), 0.0), ("minimum", (-0.0, 0.0), -0.0), ("minimum", (1.0, NAN), NAN),
    ("floor_divide", (-7.0, 2.0), -4.0), ("floor_divide", (1.0, 0.0), INF), ("floor_divide", (-0.0, 3.0), -0.0), ("floor_divide", (0.0, 0.0), NAN),
    ("remainder", (-7.0, 2.0), 1.0), ("remainder", (7.0, -2.0), -1.0), ("remainder", (6.0, -2.0), -0.0), ("remainder", (1.0, INF), 1.0), ("remainder", (1.0, 0.0), NAN),
    ("pow", (NAN, 0.0), 1.0), ("pow", (1.0, NAN), 1.0), ("pow", (-0.0, -1.0), -INF), ("pow", (-8.0, 1 / 3), NAN), ("pow", (-1.0, INF), 1.0),
    ("atan2", (0.0, -0.0), math.pi), ("atan2", (-0.0, 1.0), -0.0), ("hypot", (INF, NAN), INF), ("hypot", (3.0, 4.0), 5.0),
    ("copysign", (2.0, -0.0), -2.0), ("copysign", (-2.0, 1.0), 2.0),
    ("logaddexp", (-INF, -INF), -INF), ("logaddexp", (INF, 1.0), INF), ("logaddexp", (1000.0, 0.0), 1000.0),
    ("fma", (INF, 0.0, 1.0), NAN), ("fma", (-1.0, 0.0, -0.0), -0.0), ("fma", (1.0, 1.0, -1.0), 0.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize(("name", "operands", "want"), SPECIAL)
def test_special_values(name: str, operands: tuple[float, ...], want: float, dtype: DType) -> None:
    got = run(name, *(np.array([x]).astype(dtype.numpy) for x in operands))
    assert same_bits(got, np.array([want]).astype(dtype.numpy)), got


INTEGERS: list[tuple[str, DType, tuple[int, ...], int]] = [
    ("neg", I8, (-128,), -128), ("neg", U8, (1,), 255), ("abs", I8, (-128,), -128), ("sign", I32, (-5,), -1), ("sign", U8, (5,), 1),
    ("square", I8, (16,), 0), ("add", I8, (127, 1), -128), ("sub", U8, (0, 1), 255), ("mul", I64, (2**62, 2), -(2**63)),
    ("floor_divide", I32, (-7, 2), -4), ("floor_divide", I32, (7, 0), 0), ("floor_divide", I8, (-128, -1), -128), ("floor_divide", U8, (255, 0), 0),
    ("remainder", I32, (-7, 2), 1), ("remainder", I32, (7, -2), -1), ("remainder", I32, (7, 0), 0), ("remainder", I8, (-128, -1), 0),
    ("pow", I32, (3, 4), 81), ("pow", I32, (2, 31), -(2**31)), ("pow", I32, (2, -1), 0), ("pow", I32, (-1, -3), -1), ("pow", I32, (1, -3), 1), ("pow", I32, (0, -1), 0),
    ("pow", U8, (3, 255), pow(3, 255, 256)), ("pow", I64, (0, 0), 1),
    ("shift_left", I32, (1, 31), -(2**31)), ("shift_left", I32, (1, 32), 0), ("shift_left", I32, (1, -1), 0), ("shift_left", U64, (1, 2**63), 0),
    ("shift_right", I32, (-8, 1), -4), ("shift_right", I32, (-8, 40), -1), ("shift_right", I32, (8, 40), 0), ("shift_right", I8, (-1, -5), -1),
    ("shift_right", U8, (255, 7), 1), ("shift_right", U8, (255, 8), 0),
    ("not", U8, (1,), 254), ("not", I8, (0,), -1), ("and", I8, (-1, 6), 6), ("or", U8, (1, 6), 7), ("xor", I64, (-1, 5), -6),
    ("maximum", U64, (2**64 - 1, 2**63), 2**64 - 1), ("minimum", I8, (-128, 127), -128), ("fma", I8, (127, 2, 3), 1),
    ("floor", I32, (5,), 5), ("round", U8, (5,), 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "operands", "want"), INTEGERS)
def test_integers(name: str, dtype: DType, operands: tuple[int, ...], want: int) -> None:
    got = run(name, *(np.array([x], dtype.numpy) for x in operands))
    assert got.dtype == dtype.numpy and got.tolist() == [want]


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I32, U8, BOOL], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (3, 1)])
def test_shapes(shape: tuple[int, ...], dtype: DType) -> None:
    x = np.ones(shape, dtype.numpy)
    for name in ("add", "maximum"):
        got = run(name, x, x)
        assert got.shape == shape and got.dtype == dtype.numpy


@pytest.mark.parametrize("name", sorted(APPROXIMATE - {"pow", "atan2", "hypot", "logaddexp"}))
def test_float32_functions_are_nearly_correctly_rounded(name: str) -> None:
    """Within one unit in the last place of the float64 value, which is many digits better."""
    (x,) = (p.astype(np.float32) for p in GRADIENT_POINTS[name])
    wide = run(name, x.astype(np.float64))
    assert np.all(np.abs(run(name, x) - wide) <= np.spacing(np.abs(wide.astype(np.float32))))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_narrow_floats_round_once(dtype: DType) -> None:
    """a + b in float32 is exact enough here that the narrow result is the nearest to the real sum."""
    x = np.array([1.0, 1.0, 256.0, 0.1], dtype.numpy)
    y = np.array([2**-9, 3 * 2**-9, 1.0, 0.2], np.float32).astype(dtype.numpy)
    want = (x.astype(np.float32) + y.astype(np.float32)).astype(dtype.numpy)
    assert same_bits(run("add", x, y), want)


def test_nextafter_moves_in_the_operands_own_dtype() -> None:
    for dtype in (F16, BF16, F32, F64):
        one, two = (np.array([v], dtype.numpy) for v in (1.0, 2.0))
        assert float(run("nextafter", one, two)[0]) == 1.0 + float(ml_dtypes.finfo(dtype.numpy).eps)
    tiny = run("nextafter", np.array([0.0, 0.0, -0.0, 1.0]), np.array([1.0, -1.0, 0.0, NAN]))
    assert same_bits(tiny, np.array([5e-324, -5e-324, 0.0, NAN]))


CASTS: list[tuple[DType, float, DType, float]] = [
    (F32, 300.7, I8, 127), (F32, -300.7, I8, -128), (F32, -1.9, I32, -1), (F32, -1.0, U8, 0), (F32, NAN, I32, 0), (F32, INF, I64, 2**63 - 1),
    (F64, -INF, I64, -(2**63)), (F64, 2.0**64, U64, 2**64 - 1), (F64, 2.0**63, U64, 2**63), (F16, 255.9, U8, 255), (BF16, -3.9, I8, -3), (F32, 2.0**31, I32, 2**31 - 1),
    (I32, 300, I8, 44), (I8, -1, U64, 2**64 - 1), (F32, 0.3, BOOL, True), (F32, -0.0, BOOL, False), (F32, NAN, BOOL, True), (I8, 2, BOOL, True),
    (BOOL, True, F16, 1.0), (I64, 2**24 + 1, F32, 2.0**24), (I64, 2**24 + 3, F32, 2.0**24 + 4), (F64, 1e300, F32, INF), (F32, 65520.0, F16, INF), (F32, 65519.0, F16, 65504.0),
    # One rounding: through float32 these would come out one step too low or too high.
    (F64, 1.0 + 2.0**-8 + 2.0**-40, BF16, 1.0 + 2.0**-7), (F64, 1.0 + 2.0**-11 + 2.0**-40, F16, 1.0 + 2.0**-10),
    (I64, 2**62 + 2**54 + 1, BF16, 2.0**62 + 2.0**55), (I32, 2**30 + 2**22 + 1, BF16, 2.0**30 + 2.0**23), (I64, -(2**62) - 2**54 - 1, BF16, -(2.0**62) - 2.0**55),
    (I64, 65520, F16, INF), (I64, 2049, F16, 2048.0), (U64, 2**64 - 1, F16, INF),
]  # fmt: skip


@pytest.mark.parametrize(("source", "value", "target", "want"), CASTS)
def test_cast(source: DType, value: float, target: DType, want: float) -> None:
    got = run("cast", np.array([value]).astype(source.numpy), dtype=target)
    assert same_bits(got, np.array([want]).astype(target.numpy)), got


@pytest.mark.parametrize("source", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("target", ALL_DTYPES, ids=str)
def test_small_integers_survive_every_cast(source: DType, target: DType) -> None:
    x = np.array([[0, 1]], source.numpy)
    assert same_bits(run("cast", x, dtype=target), np.array([[0, 1]], target.numpy))


def test_bitcast_keeps_bits() -> None:
    x = np.array([1.0, -0.0, NAN], np.float32)
    assert run("bitcast", x, dtype=I32).tolist() == x.view(np.int32).tolist()
    assert run("bitcast", np.array(1.0, np.float16), dtype=BF16).view(np.uint16) == np.float16(1.0).view(np.uint16)


def test_select_chooses_bits() -> None:
    got = run("select", np.array([True, False]), np.array([-0.0, 1.0]), np.array([NAN, NAN]))
    assert same_bits(got, np.array([-0.0, NAN]))


# ---- fma ---------------------------------------------------------------------------------------


def nearest(value: Fraction, got: float, dtype: type) -> bool:
    """Whether `got` is a representable number nearest to `value`, of two the one with an even last bit."""
    x = dtype(got)
    bits = int(x.view({np.float32: np.uint32, np.float64: np.uint64}[dtype]))
    error = abs(value - Fraction(float(x)))
    for side in (-INF, INF):
        other = np.nextafter(x, dtype(side))
        if np.isfinite(other):
            rival = abs(value - Fraction(float(other)))
            if rival < error or (rival == error and bits % 2):
                return False
    return True


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype: type) -> None:
    """Against rational arithmetic, where the product nearly cancels and at the ends of the range."""
    rng = np.random.default_rng(3)
    info = np.finfo(dtype)
    scale = rng.choice([1.0, 2.0 ** (info.maxexp // 2 - 3), 2.0 ** (info.minexp // 2 - 12)], 400)
    a, b = ((rng.standard_normal(400) * scale).astype(dtype) for _ in range(2))
    near = (-a * b * (1 + rng.integers(-3, 4, 400) * float(info.eps))).astype(dtype)
    c = np.where(rng.random(400) < 0.7, near, rng.standard_normal(400)).astype(dtype)
    got = fma(a, b, c)
    for x, y, z, result in zip(a, b, c, got):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert nearest(exact, float(result), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_keeps_an_infinity_beside_a_product_beyond_the_range(dtype: type) -> None:
    large = np.array([np.finfo(dtype).max, -np.finfo(dtype).max])
    got = fma(large.astype(dtype), np.full(2, 2.0, dtype), np.array([-INF, INF], dtype))
    assert got.tolist() == [-INF, INF]


# ---- type rules --------------------------------------------------------------------------------


def test_types_of_results() -> None:
    assert infer("add", "f32[B, 3]", "f32[B, 3]") == "f32[B, 3]"
    assert infer("select", "bool[B]", "i8[B]", "i8[B]") == "i8[B]"
    assert infer("cast", "f32[B]", dtype=I64) == "i64[B]"
    assert infer("bitcast", "f32[B]", dtype=I32) == "i32[B]"


@pytest.mark.parametrize(
    ("name", "types", "attrs", "message"),
    [
        ("add", ["f32[3]", "f64[3]"], {}, r"add\(f32\[3\], f64\[3\]\): operands must have the same dtype, not f32 and f64; cast one of them, for example to f64"),
        ("mul", ["f32[B]", "f32[4]"], {}, r"operands must have the same shape, not \[B\] and \[4\]; emit broadcast or reshape first"),
        ("exp", ["i32[3]"], {}, "exp is defined for floating point elements, not i32; cast the operand"),
        ("and", ["f32[]", "f32[]"], {}, "and is defined for bool or signed integer or unsigned integer elements, not f32"),
        ("sub", ["bool[]", "bool[]"], {}, "sub is defined for"),
        ("select", ["i32[3]", "f32[3]", "f32[3]"], {}, r"the condition must be bool, not i32; compare it with 0 \(ne\)"),
        ("select", ["bool[3]", "f32[3]", "f16[3]"], {}, "operands must have the same dtype"),
        ("select", ["bool[]", "f32[3]", "f32[3]"], {}, "operands must have the same shape"),
        ("cast", ["f32[3]"], {"dtype": "f64"}, "dtype must be an element type, not 'f64'; pass a graphc dtype"),
        ("bitcast", ["f32[3]"], {"dtype": I64}, "f32 has 32 bits and i64 has 64; both must be numbers of one width; use cast"),
        ("bitcast", ["bool[3]"], {"dtype": BOOL}, "both must be numbers"),
        ("neg", ["f32[]", "f32[]"], {}, "neg takes 1 operand, not 2"),
    ],
)  # fmt: skip
def test_type_errors(name: str, types: list[str], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        infer(name, *types, **attrs)
