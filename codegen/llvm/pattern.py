"""Lane patterns: indices that differ from lane to lane by literals.

A pattern is what `Value.coef` holds beside a single coefficient: a tuple with the offset of each
lane, that of lane 0 being 0. Small images whose dimensions are literals give such indices; their
elements are then loaded with contiguous loads and picked by shuffles instead of a gather.
"""

from __future__ import annotations

from collections.abc import Callable

Coef = int | tuple[int, ...]


def expand(coef: Coef, width: int) -> tuple[int, ...]:
    """The offset of each lane."""
    return coef if isinstance(coef, tuple) else tuple(range(0, coef * width, coef)) if coef else (0,) * width


def normal(lanes: tuple[int, ...]) -> tuple[int, Coef]:
    """(offset, coefficient or pattern) of the given lane values."""
    start = lanes[0]
    step = lanes[1] - start if len(lanes) > 1 else 0
    if all(x == start + i * step for i, x in enumerate(lanes)):
        return start, step
    return start, tuple(x - start for x in lanes)


def add(a: Coef, b: Coef, sign: int, width: int) -> tuple[int, Coef]:
    if isinstance(a, int) and isinstance(b, int):
        return 0, a + sign * b
    return normal(tuple(x + sign * y for x, y in zip(expand(a, width), expand(b, width), strict=True)))


def scale(a: Coef, c: int) -> Coef:
    if isinstance(a, int):
        return a * c
    return tuple(x * c for x in a) if c else 0


def each(
    f: Callable[[int, int], int], a: Coef, a_offset: int, b: int, width: int
) -> tuple[int, ...]:
    """f of every lane of a and the literal b."""
    return tuple(f(a_offset + x, b) for x in expand(a, width))


def truncated_quotient(x: int, y: int) -> int:
    return abs(x) // y * (1 if x >= 0 else -1)


def remainder(x: int, y: int) -> int:
    return x - truncated_quotient(x, y) * y


# How many vectors of the region's width a pattern may reach over before a gather is as good.
MOST_CHUNKS = 8


def chunks(lanes: tuple[int, ...], width: int) -> int:
    """Contiguous loads needed to cover a pattern; 0 if too many."""
    count = -(-(max(lanes) - min(lanes) + 1) // width)
    return count if count <= MOST_CHUNKS else 0
