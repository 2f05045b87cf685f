"""sin, cos, tan for arguments of any size.

The argument is reduced by integer arithmetic (M. Payne, R. Hanek, Radian reduction for trigonometric
functions, SIGNUM Newsletter 18, 1983): with |x| = m * 2**k, the fraction of x/2pi is m times those
bits of 1/2pi that begin at position k, all higher ones being whole turns. The bits are constants in
the expression and are selected by shifts, so every argument takes the same steps and none loses
accuracy. The first two bits of the fraction are the quadrant, the rest the angle.

Float32 evaluates its polynomials in float64: the reduced angle is there already, and a second
float32 with the reduction's error would cost as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graphc.codegen.expr import Expr, absolute, binary, bitcast, cast, const, equal, fma, not_equal, select
from graphc.codegen.math.floating import both, flip_sign, horner, nan, sign_bit
from graphc.codegen.math.inverse_trigonometric import HALF_PI
from graphc.ir.types import F32, F64, I64, U32, U64

# floor(2**1344 / 2pi): the bits of 1/2pi after the point.
_BITS = 1344
_INVERSE_TWO_PI = int(
    "28be60db9391054a7f09d5f47d4d377036d8a5664f10e4107f9458eaf7aef1586dc91b8e909374b801924bba82746487"
    "3f877ac72c4a69cfba208d7d4baed1213a671c09ad17df904e64758e60d4ce7d272117e2ef7e4a0ec7fe25fff7816603"
    "fbcbc462d6829b47db4d9fb3c9f2c26dd3d18fd9a797fa8b5d49eeb1faf97c5ecf41ce7de294a4ba9afed7ec47e35742"
    "1580cc11bf1edaeafc33ef0826bd0d876a78e45857b986c2",
    16,
)


def _words(zeros: int, count: int) -> list[Expr]:
    """The fraction bits of 1/2pi behind `zeros` zero bits, as 64-bit words."""
    total = 64 * count
    string = _INVERSE_TWO_PI >> (_BITS + zeros - total)
    return [const(U64, string >> (total - 64 * (i + 1))) for i in range(count)]


def _u64(value: int) -> Expr:
    return const(U64, value)


def _high_bits(words: Sequence[Expr], shift: Expr) -> list[Expr]:
    """All but the last of `words`, as one string, shifted left by a count in 0..63."""
    opposite = _u64(63) - shift
    return [(a << shift) | ((b >> _u64(1)) >> opposite) for a, b in pairwise(words)]


def _bit(x: Expr, position: int) -> Expr:
    return not_equal(x & _u64(1 << position), 0)


def _quadrant_and_rest(fraction: Expr) -> tuple[Expr, Expr]:
    """A fraction of a turn as (nearest quarter in the low two bits, signed rest in quarters / 2**64)."""
    return (fraction + _u64(1 << 61)) >> _u64(62), bitcast(fraction << _u64(2), I64)


def _reduce32(x: Expr) -> tuple[Expr, Expr]:
    """(quadrant in U64, angle in F64 within [-pi/4, pi/4]) of |x|."""
    bits = cast(bitcast(x, U32) & const(U32, 0x7FFFFFFF), U64)
    field = bits >> _u64(23)
    m = (bits & _u64(0x7FFFFF)) | _u64(0x800000)
    # Position 0 is for |x| in [1/2, 1); smaller ones need no reduction.
    tiny = field < 126
    shift = select(tiny, _u64(0), field - 126)
    words = _words(24, 6)
    words = [select(_bit(shift, 7), b, a) for a, b in zip(words, words[2:])]
    words = [select(_bit(shift, 6), b, a) for a, b in pairwise(words)]
    high, low = _high_bits(words, shift & _u64(63))
    fraction = m * high + ((m * (low >> _u64(32))) >> _u64(32))
    quadrant, rest = _quadrant_and_rest(fraction)
    angle = cast(rest, F64) * (HALF_PI[F64][0] * 2.0**-64)
    return select(tiny, _u64(0), quadrant), select(tiny, cast(absolute(x), F64), angle)


def _reduce64(x: Expr) -> tuple[Expr, Expr, Expr]:
    """(quadrant, angle, what the angle lost in rounding) of |x|."""
    bits = bitcast(x, U64) & _u64((1 << 63) - 1)
    field = bits >> _u64(52)
    m = (bits & _u64((1 << 52) - 1)) | _u64(1 << 52)
    tiny = field < 1022
    shift = select(tiny, _u64(0), field - 1022)
    words = _words(53, 20)
    last = words[16:20]  # position 1024, which only the largest exponent reaches
    for step in (8, 4, 2, 1):
        chosen = _bit(shift, 6 + step.bit_length() - 1)
        words = [select(chosen, b, a) for a, b in zip(words, words[step:])][: step + 3]
    words = [select(_bit(shift, 10), b, a) for a, b in zip(words, last)]
    first, second, third = _high_bits(words, shift & _u64(63))
    low = m * second
    fraction_low = low + binary("mulhi", m, third)
    carry = select(fraction_low < low, _u64(1), _u64(0))
    fraction = m * first + binary("mulhi", m, second) + carry
    quadrant, rest = _quadrant_and_rest(fraction)
    rest_bits = bitcast(rest, U64) | (fraction_low >> _u64(62))
    rest_low = fraction_low << _u64(2)
    # The magnitude of the 128-bit signed rest, then two floats of it: 53 bits, and what follows.
    negative = not_equal(rest_bits >> _u64(63), 0)
    magnitude_low = select(negative, _u64(0) - rest_low, rest_low)
    borrow = select(equal(rest_low, 0), _u64(1), _u64(0))
    magnitude = select(negative, ~rest_bits + borrow, rest_bits)
    top = cast(magnitude & _u64(~0x7FF), F64)
    below = cast(((magnitude & _u64(0x7FF)) << _u64(53)) | (magnitude_low >> _u64(11)), F64) * 2.0**-53
    turns = top + below
    turns_low = below - (turns - top)
    high, rest_of_pi = (c * 2.0**-64 for c in HALF_PI[F64])
    angle = turns * high
    lost = fma(turns_low, high, fma(turns, rest_of_pi, fma(turns, high, -angle)))
    sign = select(negative, _u64(1 << 63), _u64(0))
    angle, lost = flip_sign(angle, sign), flip_sign(lost, sign)
    zero = const(F64, 0.0)
    return select(tiny, _u64(0), quadrant), select(tiny, absolute(x), angle), select(tiny, zero, lost)


def _short_polynomials(r: Expr) -> tuple[Expr, Expr]:
    """(sin r, cos r), good for float32."""
    z = r * r
    return fma(r * z, horner("sin_short", z), r), fma(horner("cos_short", z), z, 1.0)


def _polynomials(r: Expr, lost: Expr) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr]]:
    """sin and cos of r + lost as (head, tail) each; see `_kernel_sin` and `_kernel_cos` of fdlibm."""
    z = r * r
    half = z * 0.5
    sin_tail = fma(r * z, horner("sin64", z), fma(-half, lost, lost))
    head = const(F64, 1.0) - half
    cos_tail = fma(z * z, horner("cos64", z), ((const(F64, 1.0) - head) - half) - r * lost)
    return (r, sin_tail), (head, cos_tail)


def _finish(value: Expr, x: Expr, quadrant: Expr, sign: Expr | None) -> Expr:
    """The sign of the half turn (bit 1 of the quadrant) and of x; NaN for an infinity."""
    pattern = (quadrant & _u64(2)) << _u64(62)
    value = flip_sign(value, pattern if sign is None else pattern ^ sign)
    return select(absolute(x) < float("inf"), cast(value, x.dtype), nan(x.dtype))


def _sine(x: Expr, offset: int, sign: Expr | None) -> Expr:
    """sin(|x| + offset quarter turns), negated where `sign` is set."""
    if x.dtype is F32:
        quadrant, r = _reduce32(x)
        sin, cos = _short_polynomials(r)
    else:
        quadrant, r, lost = _reduce64(x)
        pair, other = _polynomials(r, lost)
        sin, cos = pair[0] + pair[1], other[0] + other[1]
    quadrant = quadrant + offset
    return _finish(select(_bit(quadrant, 0), cos, sin), x, quadrant, sign)


def _wide_sign(x: Expr) -> Expr:
    sign = sign_bit(x)
    return sign if x.dtype is F64 else cast(sign, U64) << _u64(32)


def sin(x: Expr) -> Expr:
    return _sine(x, 0, _wide_sign(x))


def cos(x: Expr) -> Expr:
    return _sine(x, 1, None)


def tan(x: Expr) -> Expr:
    """sin/cos of the rest, or -cos/sin in an odd quadrant; the quotient carries both tails."""
    if x.dtype is F32:
        quadrant, r = _reduce32(x)
        sin_r, cos_r = _short_polynomials(r)
        odd = _bit(quadrant, 0)
        value = select(odd, cos_r, sin_r) / select(odd, sin_r, cos_r)
    else:
        quadrant, r, lost = _reduce64(x)
        pairs = _polynomials(r, lost)
        odd = _bit(quadrant, 0)
        # Normalised first, so that a tail is below half an ulp of its head.
        (s, s_low), (c, c_low) = (_normalised(*p) for p in pairs)
        top, top_low = select(odd, c, s), select(odd, c_low, s_low)
        bottom, bottom_low = select(odd, s, c), select(odd, s_low, c_low)
        ratio = top / bottom
        rest = fma(-ratio, bottom, top) + fma(-ratio, bottom_low, top_low)
        value = ratio + rest / bottom
        value = select(both(equal(rest, rest), absolute(ratio) < float("inf")), value, ratio)
    sign = select(odd, _u64(1 << 63), _u64(0)) ^ _wide_sign(x)
    return _finish(value, x, quadrant & _u64(1), sign)


def _normalised(head: Expr, tail: Expr) -> tuple[Expr, Expr]:
    total = head + tail
    return total, tail - (total - head)
