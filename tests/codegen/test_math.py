"""Elementary functions: errors in ulp against the bounds promised, specials, and equal native bits."""

from __future__ import annotations

import itertools
import math as scalar_math
import platform
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from graphc.codegen import math
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import Expr, var
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.math.accuracy import BOUNDS, table, ulp_error
from graphc.codegen.math.coefficients import COEFFICIENTS
from graphc.codegen.math.remez import FITS, fit
from graphc.ir.types import F32, F64, DType

from tests.codegen.compiled_expression import CompiledExpression
from tests.codegen.math_references import EXACT, REFERENCES

Array = np.ndarray[Any, Any]
NAMES = sorted(set(math.FUNCTIONS) - {"remainder", "floor_divide"})
INF, NAN = float("inf"), float("nan")
X86 = platform.machine().lower() in ("x86_64", "amd64")
TARGETS = (host_target(), make_target("x86-64-v3")) if X86 else (host_target(),)
UNSIGNED = {F32: np.uint32, F64: np.uint64}


def expression(name: str, dtype: DType) -> tuple[Expr, list[str]]:
    names = ["x", "y"] if name in math.BINARY else ["x"]
    return math.FUNCTIONS[name](*(var(n, dtype) for n in names)), names


def arguments(dtype: DType, count: int, seed: int) -> Array:
    """Random bits, every exponent with its neighbours, and dense stretches where functions turn."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype.numpy)
    bits = rng.integers(0, 1 << dtype.bits, count, dtype=np.uint64, endpoint=False) if dtype is F32 else rng.integers(
        0, 1 << 64, count, dtype=np.uint64
    )
    random_bits = bits.astype(UNSIGNED[dtype]).view(dtype.numpy)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    powers = np.ldexp(np.ones(len(exponents)), exponents).astype(dtype.numpy)
    boundaries = np.concatenate([np.nextafter(powers, np.array(0, dtype.numpy)), powers, -powers])
    wide = info.maxexp * 0.75
    dense = np.concatenate(
        [
            rng.uniform(-wide, wide, count),
            rng.uniform(-2, 2, count),
            rng.standard_normal(count) * 4,
            np.ldexp(rng.uniform(-1, 1, count), rng.integers(-info.nmant - 4, 40, count)),
            1 + np.ldexp(rng.uniform(-1, 1, count), rng.integers(-info.nmant - 1, 0, count)),
        ]
    ).astype(dtype.numpy)
    return np.concatenate([random_bits, boundaries, dense, np.array([0.0, -0.0, INF, -INF, NAN], dtype.numpy)])


def assert_within(name: str, bound: float, error: Array, args: list[Array], got: Array, exact: Array) -> None:
    i = int(np.argmax(error))
    where = ", ".join(f"{float(a[i])!r} ({float(a[i]).hex()})" for a in args)
    assert error[i] <= bound, f"{name}({where}) = {got[i]!r}, exactly {exact[i]!r}: {error[i]:.3f} ulp, not {bound}"


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    e, names = expression(name, F32)
    args = [arguments(F32, 15000, i) for i in range(len(names))]
    rng = np.random.default_rng(9)
    for a in args[1:]:
        rng.shuffle(a)
    got = evaluate(e, dict(zip(names, args)))
    with np.errstate(all="ignore"):
        exact = REFERENCES[name](*(a.astype(np.float64) for a in args))
    error = ulp_error(got, exact)
    if name == "logaddexp":
        error = _relative_to_largest(error, args, exact)
    assert_within(name, BOUNDS[name][0], error, args, got, exact)


def _relative_to_largest(error: Array, args: list[Array], exact: Array) -> Array:
    """logaddexp's bound is in ulp of the larger of |result| and |max(x, y)|: the two terms of the
    sum may cancel, and then no digits of the exponential's argument are left."""
    with np.errstate(all="ignore"):
        largest = np.abs(np.maximum(*args)).astype(np.float64)
        scale = np.maximum(1.0, largest / np.abs(exact))
    usable = np.isfinite(scale) & np.isfinite(error)
    return np.where(usable, error / np.where(usable, scale, 1.0), error)


def _exact_value(name: str, args: tuple[float, ...]) -> tuple[float, float] | None:
    """The exact value as two floats; None where mpmath has no real value or it is out of range."""
    # mpmath's zero has no sign, which decides between the angles 0 and pi.
    if not all(map(scalar_math.isfinite, args)) or (name == "atan2" and 0.0 in args):
        return None
    x = mpmath.mpf(args[0])
    growth = {"pow": lambda: mpmath.log(abs(x)) * args[1] if x else 0, "logaddexp": lambda: x - args[1]}
    size = abs(growth.get(name, lambda: x if name in ("exp", "exp2", "expm1", "sinh", "cosh", "tanh", "erf") else 0)())
    if size > 3000:
        return None
    try:
        value = EXACT[name](*map(mpmath.mpf, args))
    except (ValueError, ZeroDivisionError):
        return None
    if isinstance(value, mpmath.mpc):
        return NAN, 0.0
    try:
        high = float(value)
    except OverflowError:
        return (INF if value > 0 else -INF), 0.0
    return high, float(value - high) if scalar_math.isfinite(high) else 0.0


def _check_float64(name: str, count: int, seed: int) -> float:
    """The largest error over `count` arguments against mpmath, which must be within the bound.

    Results out of range and specials are in the tests below.
    """
    e, names = expression(name, F64)
    args = []
    for i in range(len(names)):
        every = arguments(F64, count // 5, seed + i)
        args.append(np.random.default_rng(seed + 20 + i).permutation(every)[:count])
    got = evaluate(e, dict(zip(names, args)))
    high, low = got.copy(), np.zeros(got.shape)
    compared, tiny = 0, {}
    with mpmath.workprec(300 if name in ("sin", "cos", "tan", "acosh", "logaddexp") else 160):
        for i, values in enumerate(zip(*(a.tolist() for a in args))):
            found = _exact_value(name, values)
            if found is not None:
                (high[i], low[i]), compared = found, compared + 1
                if abs(high[i]) < 2.0**-1000:
                    tiny[i] = float(abs(mpmath.mpf(float(got[i])) - EXACT[name](*values)) * mpmath.mpf(2) ** 1074)
    assert compared > 0.3 * count
    # A zero in mpmath has no sign; signs of zeros are among the specials.
    high = np.where((high == 0) & (got == 0), got, high)
    error = ulp_error(got, high, low)
    # Two floats do not hold an exact value next to the least denormal.
    for i, value in tiny.items():
        error[i] = value / max(1.0, abs(high[i]) / 2.0**-1022) if np.isfinite(error[i]) else error[i]
    if name == "logaddexp":
        error = _relative_to_largest(error, args, high)
    assert_within(name, BOUNDS[name][1], error, args, got, high)
    return float(np.max(error))


@pytest.mark.parametrize("name", NAMES)
def test_float64(name: str) -> None:
    _check_float64(name, 2500, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float64_at_length(name: str) -> None:
    print(f"{name:10} {_check_float64(name, 50000, 70):.4f} ulp", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(math.BINARY) & set(NAMES)))
def test_float32_pairs_at_length(name: str) -> None:
    e, names = expression(name, F32)
    function, worst = CompiledExpression(e), 0.0
    for seed in range(60):
        args = [arguments(F32, 100000, 100 + 2 * seed + i) for i in range(2)]
        np.random.default_rng(seed).shuffle(args[1])
        got = function(dict(zip(names, args)))
        with np.errstate(all="ignore"):
            exact = REFERENCES[name](*(a.astype(np.float64) for a in args))
        error = ulp_error(got, exact)
        if name == "logaddexp":
            error = _relative_to_largest(error, args, exact)
        assert_within(name, BOUNDS[name][0], error, args, got, exact)
        worst = max(worst, float(np.max(error)))
    print(f"{name:10} {worst:.4f} ulp", flush=True)


# Arguments whose reduction cancels most: next to a multiple of pi/2, for float32 and for float64.
H = float.fromhex
HARD_ANGLES = [
    (F32, [H("0x1.6AC5B2p83"), H("0x1.C8BBC8p-1"), H("0x1.8D82F8p64"), H("0x1.FFFFFEp127"), 16367173.0 * 2.0**72, 1e10, H("0x1.921FB6p0"), H("0x1.921FB6p1")]),
    (F64, [6381956970095103.0 * 2.0**797, 6411027962775774.0 * 2.0**-48, 1e22, H("0x1.FFFFFFFFFFFFFp1023"), H("0x1.921FB54442D18p0"), 3.141592653589793, 1e300]),
]  # fmt: skip


@pytest.mark.parametrize("dtype, angles", HARD_ANGLES, ids=["f32", "f64"])
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_angles_next_to_multiples_of_a_quarter_turn(name: str, dtype: DType, angles: list[float]) -> None:
    x = np.array(angles, dtype.numpy)
    x = np.concatenate([x, -x, np.nextafter(x, np.array(0, dtype.numpy))])
    got = evaluate(math.FUNCTIONS[name](var("x", dtype)), {"x": x})
    with mpmath.workprec(1400):
        exact = [EXACT[name](mpmath.mpf(v)) for v in x.tolist()]
        high = np.array([float(v) for v in exact])
        low = np.array([float(v - float(v)) for v in exact])
    bound = BOUNDS[name][0 if dtype is F32 else 1]
    assert_within(name, bound, ulp_error(got, high, low), [x], got, high)


PI = scalar_math.pi
# function -> (arguments..., exact result), from C23 Annex F.10; signs of zeros count.
SPECIALS: dict[str, list[tuple[float, ...]]] = {
    "exp": [(0.0, 1), (-0.0, 1), (-INF, 0.0), (INF, INF), (1e30, INF), (-1e30, 0.0)],
    "exp2": [(0.0, 1), (-0.0, 1), (-INF, 0.0), (INF, INF), (3, 8), (-4, 0.0625), (1e30, INF), (-1e30, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (-INF, -1), (INF, INF), (-1e30, -1), (1e-40, 1e-40), (-1e-40, -1e-40)],
    "log": [(1, 0.0), (0.0, -INF), (-0.0, -INF), (-1, NAN), (-1e-40, NAN), (INF, INF), (-INF, NAN)],
    "log2": [(1, 0.0), (0.0, -INF), (-0.0, -INF), (-1, NAN), (INF, INF), (8, 3), (0.125, -3), (2.0**-149, -149), (-INF, NAN)],
    "log10": [(1, 0.0), (0.0, -INF), (-0.0, -INF), (-1, NAN), (INF, INF), (1000, 3), (1e10, 10), (-INF, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1, -INF), (-2, NAN), (INF, INF), (-INF, NAN), (1e-40, 1e-40), (-1e-40, -1e-40)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e-40, 1e-40), (-1e-40, -1e-40)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN), (1e-40, 1)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e-40, 1e-40), (-1e-40, -1e-40)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1, PI / 2), (-1, -PI / 2), (1.5, NAN), (-INF, NAN), (1e-40, 1e-40)],
    "acos": [(1, 0.0), (-1, PI), (0.0, PI / 2), (-0.0, PI / 2), (1.5, NAN), (-1.5, NAN), (INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, PI / 2), (-INF, -PI / 2), (-1e-40, -1e-40)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e30, INF), (-1e30, -INF), (1e-40, 1e-40)],
    "cosh": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, INF), (1e30, INF), (-1e30, INF), (1e-40, 1)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (1e30, 1), (-30, -1), (1e-40, 1e-40)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e-40, 1e-40), (-1e-40, -1e-40)],
    "acosh": [(1, 0.0), (0.5, NAN), (-1, NAN), (-INF, NAN), (INF, INF)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1, INF), (-1, -INF), (1.5, NAN), (-INF, NAN), (INF, NAN), (1e-40, 1e-40)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (10, 1), (-10, -1)],
    "hypot": [(INF, NAN, INF), (NAN, -INF, INF), (0.0, -0.0, 0.0), (3, -4, 5), (1e-40, 0.0, 1e-40), (NAN, 1, NAN)],
    "logaddexp": [
        (INF, INF, INF), (-INF, -INF, -INF), (INF, -INF, INF), (-INF, 2, 2), (3, -INF, 3), (NAN, 1, NAN), (1, NAN, NAN),
        (INF, NAN, NAN), (0.0, 0.0, scalar_math.log(2)),
    ],
    "atan2": [
        (0.0, 0.0, 0.0), (-0.0, 0.0, -0.0), (0.0, -0.0, PI), (-0.0, -0.0, -PI), (0.0, 1, 0.0), (-0.0, 1, -0.0),
        (0.0, -1, PI), (-0.0, -1, -PI), (1, 0.0, PI / 2), (1, -0.0, PI / 2), (-1, 0.0, -PI / 2), (-1, -0.0, -PI / 2),
        (INF, INF, PI / 4), (INF, -INF, 3 * PI / 4), (-INF, INF, -PI / 4), (-INF, -INF, -3 * PI / 4), (1, INF, 0.0),
        (-1, INF, -0.0), (1, -INF, PI), (-1, -INF, -PI), (INF, 1, PI / 2), (-INF, -1, -PI / 2), (NAN, 1, NAN),
        (1, NAN, NAN), (1, 1, PI / 4), (1, -1, 3 * PI / 4), (1e38, 1e38, PI / 4), (1e-40, 1e-40, PI / 4),
    ],
    "pow": [
        (NAN, 0.0, 1), (NAN, -0.0, 1), (1, NAN, 1), (1, INF, 1), (1, -INF, 1), (-1, INF, 1), (-1, -INF, 1), (-1, NAN, NAN),
        (0.0, 3, 0.0), (-0.0, 3, -0.0), (-0.0, 2, 0.0), (0.0, -3, INF), (-0.0, -3, -INF), (-0.0, -2, INF), (-0.0, 2.5, 0.0),
        (-0.0, -2.5, INF), (0.0, INF, 0.0), (0.0, -INF, INF), (-0.0, -INF, INF), (0.5, INF, 0.0), (0.5, -INF, INF),
        (2, INF, INF), (2, -INF, 0.0), (-2, INF, INF), (-2, -INF, 0.0), (INF, 2, INF), (INF, -2, 0.0), (-INF, 3, -INF),
        (-INF, 2, INF), (-INF, 2.5, INF), (-INF, -3, -0.0), (-INF, -2, 0.0), (-INF, -2.5, 0.0), (INF, INF, INF),
        (INF, -INF, 0.0), (-INF, INF, INF), (-2, 3, -8), (-2, 0.5, NAN), (-8, 1 / 3, NAN), (3, 4, 81), (2, -149, 2.0**-149),
        (10, 2, 100), (NAN, 1, NAN), (2, NAN, NAN), (0.0, NAN, NAN), (4, 0.5, 2), (-1e10, 1e30, INF), (-3, 1e20, INF),
    ],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", NAMES)
def test_specials(name: str, dtype: DType) -> None:
    e, names = expression(name, dtype)
    cases = [*SPECIALS[name], (NAN,) * (len(names) + 1)]
    for *args, want in cases:
        got = evaluate(e, {n: np.array([a], dtype.numpy) for n, a in zip(names, args)})[0]
        wanted = dtype.numpy.type(want)
        same = (got == wanted and np.signbit(got) == np.signbit(wanted)) or (np.isnan(got) and np.isnan(wanted))
        assert same, f"{name}({', '.join(map(str, args))}) = {got!r}, not {wanted!r}"


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", [*NAMES, "remainder", "floor_divide"])
def test_native_code_has_the_same_bits(name: str, dtype: DType) -> None:
    """For the vectors of this CPU, and for those of the oldest one that code is made for."""
    e, names = expression(name, dtype)
    env = {n: arguments(dtype, 1500, 60 + i) for i, n in enumerate(names)}
    for n in names[1:]:
        np.random.default_rng(1).shuffle(env[n])
    wanted = evaluate(e, env)
    for target in TARGETS:
        native = CompiledExpression(e, target)(env)
        nan = np.isnan(native) & np.isnan(wanted)
        different = (native.view(UNSIGNED[dtype]) != wanted.view(UNSIGNED[dtype])) & ~nan
        i = int(np.argmax(different))
        values = [v[i] for v in env.values()]
        assert not different.any(), f"{name}({values}), {target.cpu}: {native[i]!r}, evaluated {wanted[i]!r}"


def test_every_function_has_a_bound_and_specials() -> None:
    assert set(BOUNDS) == set(NAMES) == set(SPECIALS) == set(REFERENCES)


@pytest.mark.parametrize("name", ["exp32", "sin_short", "sinh32", "log_short"])
def test_coefficients_are_what_the_fit_gives(name: str) -> None:
    values, _ = fit(FITS[name])
    assert values == COEFFICIENTS[name]


def test_every_fit_is_in_the_file_and_used() -> None:
    assert set(FITS) == set(COEFFICIENTS)


def test_the_page_on_numerics_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()
    assert table() in page, "run `python -m graphc.codegen.math.accuracy` and put its output into docs/numerics.md"


def test_ulp_error() -> None:
    for dtype in (np.float32, np.float64):
        one, eps = dtype(1), np.finfo(dtype).eps
        exact = np.array([1.0, 1.0, 1.0, 0.0, INF, NAN, 1.0, NAN])
        computed = np.array([1.0, one + eps, one - eps / 2, -0.0, INF, NAN, NAN, 1.0], dtype)
        assert ulp_error(computed, exact).tolist() == [0, 1, 0.5, INF, 0, 0, INF, INF]
    least = np.float32(2.0**-149)
    computed = np.array([least, least * 3, np.inf, np.inf], np.float32)
    assert ulp_error(computed, np.array([0.0, 2.0**-148, 1e39, 3e38])).tolist() == [1, 1, 0, INF]
    assert ulp_error(np.array([1.0]), np.array([1.0]), np.array([2.0**-53])).tolist() == [0.5]


def test_functions_are_monotonic_at_their_seams() -> None:
    """Where one formula hands over to another the order of results is kept."""
    seams = {"tanh": [1.0, 9.0], "sinh": [1.0], "erf": [1.0, 3.9], "atan": [1.0], "asin": [0.5], "asinh": [2.0**-12]}
    for name, points in seams.items():
        e, _ = expression(name, F32)
        for point in points:
            bits = int(np.float32(point).view(np.uint32))
            x = np.arange(bits - 2000, bits + 2000, dtype=np.uint32).view(np.float32)
            y = evaluate(e, {"x": x})
            # Within one rounding: an error below 1 ulp cannot reverse values two apart.
            assert (y[2:] >= y[:-2]).all() or (np.diff(y) >= -np.spacing(y[1:])).all(), name


def test_signs_mirror() -> None:
    x = np.abs(arguments(F32, 2000, 5))
    x = x[~np.isnan(x)]
    for name, odd in itertools.product(["sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "erf", "cos", "cosh"], [1]):
        e, _ = expression(name, F32)
        even = name in ("cos", "cosh")
        plus, minus = evaluate(e, {"x": x}), evaluate(e, {"x": -x})
        assert np.array_equal(plus, minus * (odd if even else -odd), equal_nan=True), name
