"""codegen/c/numbers.h: every function, compiled as C99 with and without optimisation and as C++, against exact arithmetic."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from graphc.codegen.c.prelude import FOLDER, functions, header_functions, needed, sections
from graphc.codegen.evaluate import convert
from graphc.ir.types import F32, F64, dtype

NUMPY = {
    "float": "f4", "double": "f8", "unsigned": "u4", "unsigned short": "u2", "unsigned char": "u1", "unsigned long long": "u8",
    "int": "i4", "short": "i2", "signed char": "i1", "long long": "i8",
}  # fmt: skip
SIGNATURE = re.compile(r"^INLINE ([\w ]+?) (\w+)\(([^)]*)\)", re.MULTILINE)
SIGNATURES = {name: (result, [re.sub(r" \w+$", "", p.strip()) for p in params.split(",")])
              for result, name, params in SIGNATURE.findall((FOLDER / "numbers.h").read_text())}  # fmt: skip
# compiler, flags: undefined behaviour traps in the first
BUILDS = {
    "c99": ("gcc", "-std=c99 -pedantic -Wall -Wextra -Werror -O0 -fsanitize=undefined,float-cast-overflow -fsanitize-undefined-trap-on-error"),
    "c99 optimised": ("gcc", "-std=c99 -pedantic -Wall -Wextra -Werror -O3 -ffp-contract=off"),
    "c++": ("g++", "-x c++ -std=c++17 -Wall -Wextra -Werror -O2 -ffp-contract=off"),
}


def _loops() -> str:
    """For each function one that applies it to arrays."""
    out = ["#ifdef __cplusplus", 'extern "C" {', "#endif"]
    for name, (result, types) in SIGNATURES.items():
        params = ", ".join(f"const {t} *x{i}" for i, t in enumerate(types))
        args = ", ".join(f"x{i}[k]" for i in range(len(types)))
        out.append(f"void all_{name}({params}, {result} *y, long n);")
        out.append(f"void all_{name}({params}, {result} *y, long n) {{ long k; for (k = 0; k < n; k++) y[k] = {name}({args}); }}")
    return "\n".join([*out, "#ifdef __cplusplus", "}", "#endif", ""])


@pytest.fixture(scope="module", params=BUILDS)
def call(request, tmp_path_factory):
    """call(name, *arrays): the function on arrays."""
    compiler, flags = BUILDS[request.param]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder = tmp_path_factory.mktemp("numbers")
    # Through prelude.py, which must put each function before what calls it; backwards, so that it has to.
    (folder / "numbers.c").write_text(functions(reversed(SIGNATURES), "c99") + _loops())
    command = [compiler, *flags.split(), "-shared", "-fPIC", "numbers.c", "-o", "numbers.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "numbers.so"))

    def apply(name, *arrays):
        result, types = SIGNATURES[name]
        arrays = [np.ascontiguousarray(a, NUMPY[t]) for a, t in zip(np.broadcast_arrays(*arrays), types, strict=True)]
        out = np.empty(arrays[0].shape, NUMPY[result])
        getattr(library, f"all_{name}")(*[ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)], ctypes.c_long(out.size))
        return out

    return apply


def same(got, expected):
    """Equal bits, any NaN for any NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    unsigned = f"u{got.itemsize}"
    equal = got.view(unsigned) == expected.view(unsigned)
    if got.dtype.kind not in "iu":
        equal |= np.isnan(got) & np.isnan(expected)
    wrong = np.flatnonzero(~equal)
    assert not len(wrong), f"{got[wrong[:4]]} instead of {expected[wrong[:4]]}, of {len(wrong)}"


ALL_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
RNG = np.random.default_rng(7)


def edges(bits: int) -> np.ndarray:
    """Float patterns around every power of two, random ones, all specials."""
    kind, mantissa = {32: ("u4", 23), 64: ("u8", 52)}[bits]
    exponents = np.arange(1 << (bits - 1 - mantissa), dtype=kind) << np.array(mantissa, kind)
    low = (exponents[:, None] + np.arange(-3, 4).astype(kind)[None]).ravel()
    half = exponents + np.array(1 << (mantissa - 1), kind)
    patterns = np.concatenate([low, half, half + np.array(1, kind), half - np.array(1, kind)])
    random = RNG.integers(0, 1 << bits, 1 << 18, dtype=kind)
    both = np.concatenate([patterns, random])
    return np.concatenate([both, both | np.array(1 << (bits - 1), kind)]).view(f"f{bits // 8}")


def around(narrow: np.ndarray) -> np.ndarray:
    """float32 values at, between and beside neighbouring 16-bit floats: where rounding decides."""
    with np.errstate(all="ignore"):
        values = np.sort(narrow.astype(np.float64)[np.isfinite(narrow.astype(np.float64))])
        middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        parts = [values.astype(np.float32), middle]
        parts += [np.nextafter(middle, np.float32(s)) for s in (np.inf, -np.inf)]
        return np.concatenate(parts)


def test_bits(call):
    for wide, bits, kind in (("float", 32, "f4"), ("double", 64, "f8")):
        x = edges(bits)
        assert np.array_equal(call(f"{wide}_bits", x), x.view(f"u{bits // 8}"))
        same(call(f"bits_{wide}", x.view(f"u{bits // 8}")), x.view(kind))


@pytest.mark.parametrize("name, narrow", [("half", np.float16), ("bfloat", ml_dtypes.bfloat16)])
def test_sixteen_bits(call, name, narrow):
    """Every 16-bit float to float32 and back; from float32 wherever rounding decides."""
    with np.errstate(all="ignore"):
        wide = ALL_16.view(narrow).astype(np.float32)
        same(call(f"{name}_to_float", ALL_16), wide)
        same(call(f"float_to_{name}", wide).view(narrow), ALL_16.view(narrow))
        x = np.concatenate([around(ALL_16.view(narrow)), edges(32)])
        same(call(f"float_to_{name}", x).view(narrow), x.astype(narrow))


def _odd(x: float, exact: Fraction, step: float) -> None:
    """x is `exact` rounded to odd, where neighbours lie `step` apart."""
    if Fraction(x) != exact:
        assert abs(x) < abs(exact) or np.float32(x).view("u4") & 1, "toward zero, or odd"
        assert abs(Fraction(x) - exact) < Fraction(step)


def test_double_to_float_odd(call):
    """Exact where possible; else between the same neighbours, with the last bit set."""
    with np.errstate(all="ignore"):
        base = edges(32)[::7].astype(np.float64)
        step = np.spacing(base)
        x = np.concatenate([base, base + step, base - step, base * (1 + 2.0**-30), edges(64)])
        y = call("double_to_float_odd", x)
        back = y.astype(np.float64)
        exact = (x.astype(np.float32).astype(np.float64) == x) | np.isnan(x)
    assert np.array_equal(np.isnan(y), np.isnan(x))
    with np.errstate(all="ignore"):
        same(y[exact], x[exact].astype(np.float32))
    inexact = ~exact
    assert np.all(y[inexact].view("u4") & 1), "the last bit of an inexact result is set"
    with np.errstate(all="ignore"):
        above = np.nextafter(y[inexact], np.float32(np.inf)).astype(np.float64)
        below = np.nextafter(y[inexact], np.float32(-np.inf)).astype(np.float64)
    assert np.all((below < x[inexact]) & (x[inexact] < above)) and np.all(np.isfinite(back[inexact]))


def _nearest_bfloat(x: Fraction) -> np.uint16:
    """x rounded once to bfloat16, ties to even; finite x."""
    sign, x = (0x8000, -x) if x < 0 else (0, x)
    if x == 0:
        return np.uint16(sign)
    exponent = max(math.floor(math.log2(x.numerator) - math.log2(x.denominator)) - 1, -126)
    while exponent < 127 and x >= Fraction(2) ** (exponent + 1):
        exponent += 1
    units = x / Fraction(2) ** (exponent - 7)
    whole = units.numerator // units.denominator
    rest = units - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    pattern = ((exponent + 126) << 7) + whole if whole >= 128 or exponent > -126 else whole
    return np.uint16(sign | min(pattern, 0x7F80))


def _integers(signed: bool) -> list[int]:
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
    found = {low, high, 0, 1}
    for k in range(64):
        # Around powers of two, and around the middle of two neighbouring bfloat16.
        for base in (1 << k, (1 << k) + (1 << max(0, k - 8)), (1 << k) + 3 * (1 << max(0, k - 8))):
            found |= {s * (base + d) for s in (1, -1) for d in (-2, -1, 0, 1, 2)}
    found |= {int(x) for x in RNG.integers(0, 1 << 63, 300)}
    return sorted(x for x in found if low <= x <= high)


@pytest.mark.parametrize("name, signed", [("i64", True), ("u64", False)])
def test_long_to_bfloat(call, name, signed):
    """One rounding from 64 bits to 8: the two steps by odd rounding are as good as one."""
    values = _integers(signed)
    x = np.array(values, "i8" if signed else "u8")
    same(call(f"{name}_to_bfloat", x).view(ml_dtypes.bfloat16),
         np.array([_nearest_bfloat(Fraction(v)) for v in values]).view(ml_dtypes.bfloat16))  # fmt: skip
    y = call(f"{name}_to_double_odd", x)
    for v, d in zip(values, y.tolist(), strict=True):
        if abs(v) < 1 << (52 if signed else 53):
            assert int(d) == v
        else:
            # Bits are folded, not rounded: 42 bits stay as they are, and whatever lies below leaves a trace.
            assert abs(int(d) - v) < 1 << 12 and (int(d) % (1 << 12) != 0) == (v % (1 << 12) != 0)


def test_reference_of_bfloat():
    """The exact rounding above agrees with ml_dtypes where that rounds once."""
    x = around(ALL_16.view(ml_dtypes.bfloat16))[::97]
    x = x[np.isfinite(x)]
    same(np.array([_nearest_bfloat(Fraction(float(v))) for v in x]).view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))


def test_double_to_sixteen_bits(call):
    """double through float, rounded to odd: as if rounded once. What plain rounding twice gets wrong is among the values."""
    narrow = ALL_16.view(ml_dtypes.bfloat16)[:0x7F7F]
    middle = (narrow[1:].astype(np.float64) + narrow[:-1].astype(np.float64)) / 2
    x = np.concatenate([np.nextafter(middle, np.inf), np.nextafter(middle, 0), middle])[::5]
    with np.errstate(all="ignore"):
        twice = x.astype(np.float32).astype(ml_dtypes.bfloat16).view("u2")
    got = call("float_to_bfloat", call("double_to_float_odd", x))
    expected = np.array([_nearest_bfloat(Fraction(v)) for v in x.tolist()])
    assert np.array_equal(got, expected) and not np.array_equal(twice, expected)
    halves = np.arange(0x7BFF, dtype="u2").view(np.float16).astype(np.float64)
    middle = (halves[1:] + halves[:-1]) / 2
    x = np.concatenate([np.nextafter(middle, np.inf), np.nextafter(middle, 0), middle, [65519.99, 65520.0, 1e300]])
    with np.errstate(over="ignore"):
        same(call("float_to_half", call("double_to_float_odd", x)).view(np.float16), x.astype(np.float16))


@pytest.mark.parametrize("short", ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"])
def test_float_to_integer(call, short):
    """Toward zero, saturating, NaN gives 0."""
    target = dtype(short)
    info = np.iinfo(target.numpy)
    near = np.array([b + d for b in (info.min, info.max, 0) for d in (-1.5, -1, -0.75, -0.5, 0, 0.25, 0.5, 1, 1.5)], "f8")
    for name, source in (("f32", F32), ("f64", F64)):
        x = np.concatenate([edges(source.bits), np.array([*near, np.nan, np.inf, -np.inf], source.numpy)])
        x = np.concatenate([x, *(np.nextafter(near.astype(source.numpy), source.numpy.type(end)) for end in (np.inf, -np.inf))])
        with np.errstate(all="ignore"):
            expected = convert(x, source, target)
        got = call(f"{name}_to_{short}", x)
        wrong = np.flatnonzero(got != expected)
        assert not len(wrong), f"{x[wrong[:5]]} gives {got[wrong[:5]]} instead of {expected[wrong[:5]]}"


def _words(bits: int) -> np.ndarray:
    special = [0, 1, 2, 3, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << bits) - 1, (1 << bits // 2) - 1, 1 << bits // 2]
    return np.concatenate([np.array(special, f"u{bits // 8}"), RNG.integers(0, 1 << bits, 40, dtype=f"u{bits // 8}")])


@pytest.mark.parametrize("bits", [32, 64])
def test_integer_arithmetic(call, bits):
    """Signed arithmetic wraps; mulhi is the upper half of the exact product."""
    u = _words(bits)
    a, b = (g.ravel() for g in np.meshgrid(u, u))
    high = [int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)]
    assert call(f"mulhi_u{bits}", a, b).tolist() == high
    signed = f"i{bits // 8}"
    x, y = a.view(signed), b.view(signed)
    with np.errstate(over="ignore"):
        for name, expected in (("add", a + b), ("sub", a - b), ("mul", a * b)):
            assert np.array_equal(call(f"{name}_i{bits}", x, y), expected.view(signed)), name
        assert np.array_equal(call(f"neg_i{bits}", x), (0 - a).astype(a.dtype).view(signed))
    counts = (b % np.array(bits, b.dtype)).view(signed)
    assert np.array_equal(call(f"shl_i{bits}", x, counts), (a << counts.view(a.dtype)).view(signed))


def test_every_function_is_tested():
    """Each function of the header has a test above, in this file's text or by a name made of its parts."""
    kinds = ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]
    made = {f"{s}_to_{t}" for s in ("f32", "f64") for t in kinds}
    made |= {f"{op}_i{b}" for op in ("add", "sub", "mul", "neg", "shl") for b in (32, 64)} | {"mulhi_u32", "mulhi_u64"}
    made |= {f"{a}_to_{b}" for n in ("half", "bfloat") for a, b in ((n, "float"), ("float", n))} | {"double_to_float_odd"}
    made |= {f"{n}_to_{wide}" for n in ("i64", "u64") for wide in ("bfloat", "double_odd")}
    made |= {f"{a}_{b}" for n in ("float", "double") for a, b in ((n, "bits"), ("bits", n))}
    assert set(SIGNATURES) == header_functions("numbers.h").keys() == made


def test_sections():
    """A section brings what it calls, before itself; CUDA's own version of a function wins; unknown names are refused."""
    assert needed(["i64_to_bfloat"], "c99").index("double_to_float_odd") < needed(["i64_to_bfloat"], "c99").index("i64_to_bfloat")
    for name, text in header_functions("numbers.h").items():
        assert len(re.findall(r"^INLINE", text, re.MULTILINE)) == 1 and f" {name}(" in text
    assert "cvt.rn.f16.f32" in sections("cuda")["float_to_half"] and "asm" not in sections("c99")["float_to_half"]
    assert functions([], "c99") == "" and functions(["f32_to_u8"], "cuda").startswith("#ifndef SIMULATED\n")
    with pytest.raises(KeyError, match="no function 'sincos'"):
        functions(["sincos"], "cuda")
    with pytest.raises(ValueError, match="dialect 'metal'"):
        sections("metal")
