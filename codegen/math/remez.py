"""How the polynomial coefficients of `coefficients.py` were made.

    python -m graphc.codegen.math.remez           # fits everything, prints the errors, writes the file

Each entry of `FITS` asks for the polynomial that minimises the largest weighted error over an
interval: Remez's exchange algorithm (E. W. Cheney, Introduction to Approximation Theory, ch. 3) on
a dense Chebyshev grid in high precision. Coefficients must be floats of the format in which they
are used, so they are rounded one at a time, lowest degree first, and the rest is fitted again
around each rounded one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np

Real = Any  # an mpmath number
Function = Callable[[Real], Real]


@dataclass(frozen=True)
class Fit:
    """Polynomial of `count` coefficients in t for `target(t)` over [low, high].

    The error that is minimised is `weight(t) * (polynomial - target)`. `digits` is the precision
    of the coefficients: 24 (float32) or 53 (float64) bits.
    """

    target: Function
    weight: Function
    low: Real
    high: Real
    count: int
    digits: int


def _solve(points: list[int], powers: list[list[Real]], free: range, residual: list[Real], weight: list[Real]) -> list[Real]:
    """Coefficients (the last is the levelled error) of the interpolation with equal alternating error."""
    n = len(points)
    matrix, rhs = mpmath.matrix(n, n), mpmath.matrix(n, 1)
    for row, p in enumerate(points):
        for column, degree in enumerate(free):
            matrix[row, column] = powers[p][degree]
        matrix[row, n - 1] = (-1) ** row / weight[p]
        rhs[row] = residual[p]
    return list(mpmath.lu_solve(matrix, rhs))


def _extrema(error: list[Real], count: int) -> list[int]:
    """`count` grid points of alternating sign with the largest errors."""
    runs: list[int] = []
    for i, e in enumerate(error):
        if runs and (error[runs[-1]] > 0) == (e > 0):
            if abs(e) > abs(error[runs[-1]]):
                runs[-1] = i
        else:
            runs.append(i)
    while len(runs) > count:
        # Dropping an end point, or the smaller of two neighbours with its partner, keeps alternation.
        if len(runs) == count + 1:
            runs.pop(0 if abs(error[runs[0]]) < abs(error[runs[-1]]) else -1)
        else:
            k = min(range(len(runs) - 1), key=lambda j: max(abs(error[runs[j]]), abs(error[runs[j + 1]])))
            del runs[k : k + 2]
    return runs


def _exchange(powers: list[list[Real]], free: range, residual: list[Real], weight: list[Real]) -> list[Real]:
    """Remez: the best coefficients of the powers in `free`; empty if the system is singular."""
    size, n = len(residual), len(free) + 1
    points = [round((size - 1) * (1 - mpmath.cos(mpmath.pi * i / (n - 1))) / 2) for i in range(n)]
    solution: list[Real] = []
    for _ in range(30):
        try:
            solution = _solve(points, powers, free, residual, weight)
        except ZeroDivisionError:
            break
        error = [
            w * (r - mpmath.fdot(zip(solution, p[free.start : free.stop])))
            for w, r, p in zip(weight, residual, powers)
        ]
        found = _extrema(error, n)
        if len(found) < n or found == points:
            break
        points = found
    return solution[:-1]


def _round(x: Real, digits: int) -> float:
    return float(np.float32(float(x))) if digits == 24 else float(x)


def fit(request: Fit) -> tuple[tuple[float, ...], float]:
    """The rounded coefficients, lowest degree first, and log2 of the largest weighted error."""
    with mpmath.workdps(60):
        low, high = mpmath.mpf(request.low), mpmath.mpf(request.high)
        size = 40 * request.count + 1
        grid = [(low + high - (high - low) * mpmath.cos(mpmath.pi * i / (size - 1))) / 2 for i in range(size)]
        tiny = mpmath.mpf(10) ** -9
        grid = [t if abs(t) > tiny else tiny for t in grid]
        target = [request.target(t) for t in grid]
        weight = [abs(request.weight(t)) for t in grid]
        powers = [[t**k for k in range(request.count)] for t in grid]
        rounded: list[float] = []
        residual, best = target, None
        for k in range(request.count):
            free = range(k, request.count)

            def worst_error(rest: list[Real], residual: list[Real] = residual, free: range = free) -> Real:
                return max(
                    w * abs(r - mpmath.fdot(zip(rest, p[free.start :])))
                    for w, r, p in zip(weight, residual, powers)
                )

            # Around fixed low coefficients the powers left over need not be a Chebyshev system, so
            # an exchange may fail; the coefficients found before are then still good.
            candidates = [_exchange(powers, free, residual, weight), best[1:] if best else []]
            best = min(filter(None, candidates), key=worst_error)
            rounded.append(_round(best[0], request.digits))
            residual = [r - rounded[-1] * p[k] for r, p in zip(residual, powers)]
        worst = max(w * abs(r) for w, r in zip(weight, residual))
        return tuple(rounded), float(mpmath.log(worst, 2))


def _odd(f: Function, high: Real, count: int, digits: int) -> Fit:
    """f(x) = x + x*z*P(z) with z = x*x; the error is relative to f."""

    def target(z: Real) -> Real:
        x = mpmath.sqrt(z)
        return (f(x) / x - 1) / z

    return Fit(target, lambda z: z * mpmath.sqrt(z) / f(mpmath.sqrt(z)), 0, mpmath.mpf(high) ** 2, count, digits)


def _fits() -> dict[str, Fit]:
    mp = mpmath
    half_ln2, quarter_pi = mp.log(2) / 2 * mp.mpf("1.0001"), mp.pi / 4 * mp.mpf("1.0001")

    def exp_tail(count: int, digits: int) -> Fit:
        """exp(r) = 1 + r + r*r*P(r)."""
        return Fit(lambda r: (mp.expm1(r) - r) / r**2, lambda r: r**2 / mp.exp(r), -half_ln2, half_ln2, count, digits)

    def exp2_tail(count: int, digits: int) -> Fit:
        """2**r = 1 + r*P(r)."""
        two = mp.mpf(2)
        return Fit(lambda r: mp.expm1(r * mp.log(2)) / r, lambda r: r / two**r, -0.5001, 0.5001, count, digits)

    def cos_tail(count: int, digits: int) -> Fit:
        """cos(x) = 1 + z*P(z), z = x*x."""
        return Fit(lambda z: (mp.cos(mp.sqrt(z)) - 1) / z, lambda z: z, 0, quarter_pi**2, count, digits)

    def cos_rest(count: int, digits: int) -> Fit:
        """cos(x) = 1 - z/2 + z*z*P(z), z = x*x."""
        return Fit(
            lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, lambda z: z**2, 0, quarter_pi**2, count, digits
        )

    def log1p_tail(count: int, digits: int) -> Fit:
        """log1p(f) = f - f*f/2 + f*f*f*P(f)."""
        return Fit(
            lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, lambda f: f**3 / mp.log1p(f), -0.3125, 0.375, count, digits
        )

    def log_ratio(count: int, digits: int, high: Real = 0.186) -> Fit:
        """log((1 + s)/(1 - s)) = 2s + s*z*P(z), z = s*s."""
        return Fit(
            lambda z: (2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 2) / z, lambda z: z / 2, 0, mp.mpf(high) ** 2, count, digits
        )

    def log_ratio_rest(count: int, digits: int) -> Fit:
        """log((1 + s)/(1 - s)) = 2s + s*(2/3*z + 2/5*z*z + z*z*z*P(z)), z = s*s."""

        def target(z: Real) -> Real:
            s = mp.sqrt(z)
            return (2 * mp.atanh(s) / s - 2 - 2 * z / 3 - 2 * z**2 / 5) / z**3

        return Fit(target, lambda z: z**3 / 2, 0, mp.mpf(0.186) ** 2, count, digits)

    def erfcx(count: int, digits: int) -> Fit:
        """exp(x*x)*erfc(x) = P(t), t = (x - 2)/(x + 2), 1 <= x <= 6; absolute error of erfc."""

        def x(t: Real) -> Real:
            return 2 * (1 + t) / (1 - t)

        third = mp.mpf(1) / 3
        return Fit(
            lambda t: mp.exp(x(t) ** 2) * mp.erfc(x(t)), lambda t: mp.exp(-(x(t) ** 2)), -third, 0.5, count, digits
        )

    def erf_small(count: int, digits: int, middle: float) -> Fit:
        """erf(x) = x + x*P(x*x - middle), |x| <= 1."""

        def root(w: Real) -> Real:
            return mp.sqrt(abs(w + mp.mpf(middle)))

        return Fit(
            lambda w: mp.erf(root(w)) / root(w) - 1, lambda w: root(w) / mp.erf(root(w)), -middle + 1e-12, 1 - middle, count, digits
        )

    def erfc_large(count: int, digits: int) -> Fit:
        """erf(t + 2.25) = 1 - P(t), 1 <= t + 2.25 <= 4; absolute error, the value being near 1."""
        return Fit(lambda t: mp.erfc(t + mp.mpf(2.25)), lambda t: mp.mpf(1), -1.25, 1.75, count, digits)

    return {
        "exp32": exp_tail(5, 24),
        "exp64": exp_tail(10, 53),
        "exp2_32": exp2_tail(6, 24),
        "exp2_short": exp2_tail(7, 53),
        "exp2_64": exp2_tail(12, 53),
        "log32": log1p_tail(9, 24),
        "log64": log_ratio(7, 53),
        "log_short": log_ratio(5, 53),
        "log1p_short": log_ratio(6, 53, 0.3334),
        "log_rest": log_ratio_rest(8, 53),
        "sin_short": _odd(mp.sin, quarter_pi, 4, 53),
        "cos_short": cos_tail(4, 53),
        "sin64": _odd(mp.sin, quarter_pi, 7, 53),
        "cos64": cos_rest(7, 53),
        "tanh32": _odd(mp.tanh, 1, 8, 24),
        "tanh64": _odd(mp.tanh, 1, 15, 53),
        "sinh32": _odd(mp.sinh, 1, 4, 24),
        "sinh64": _odd(mp.sinh, 1, 8, 53),
        "atan32": _odd(mp.atan, 1, 10, 24),
        "atan64": _odd(mp.atan, 1, 21, 53),
        "atan_half64": _odd(mp.atan, 0.5, 12, 53),
        "atan_short": _odd(mp.atan, 0.5, 7, 53),
        "asin32": _odd(mp.asin, 0.5, 6, 24),
        "asin64": _odd(mp.asin, 0.5, 13, 53),
        "erf32": erf_small(7, 24, 0.5),
        "erfc_large32": erfc_large(16, 24),
        "erfcx64": erfcx(13, 53),
        "erf64": erf_small(14, 53, 0.5),
    }


FITS = _fits()
_PATH = Path(__file__).with_name("coefficients.py")
_HEAD = '"""Polynomial coefficients, lowest degree first; written by `remez.py`, which says what each is for."""\n\n'


def main() -> None:
    lines = [_HEAD, "COEFFICIENTS: dict[str, tuple[float, ...]] = {\n"]
    for name, request in FITS.items():
        values, error = fit(request)
        print(f"{name:12} {request.count:2} coefficients, error 2^{error:.1f}", flush=True)
        lines += [f'    "{name}": (  # error 2^{error:.1f}\n', *(f"        {v!r},\n" for v in values), "    ),\n"]
    _PATH.write_text("".join([*lines, "}\n"]))


if __name__ == "__main__":
    main()
