"""Positions in a value: coordinates or a flat row-major position, converted only when asked for.

Division and remainder are expensive and hide contiguity from the vectoriser, so a position keeps
whichever form it was made in, and reshapes pass coordinates through wherever dimensions agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.expr import Expr, index, var
from graphc.ir.types import Dim, DimExpr, Shape, size_of


def dim_expr(d: Dim) -> Expr:
    """A dimension as an I64 expression; symbols become variables of the same name."""
    if not isinstance(d, DimExpr):
        return index(d)
    total = index(0)
    for monomial, c in d.terms:
        product = index(c)
        for atom in monomial:
            product = product * (var(atom) if isinstance(atom, str) else dim_expr(atom[1]) // atom[2])
        total = total + product
    return total


def linearise(coords: Sequence[Expr], shape: Shape) -> Expr:
    """The row-major position of `coords` in `shape`."""
    flat = index(0)
    for c, d in zip(coords, shape, strict=True):
        flat = flat * dim_expr(d) + c
    return flat


def delinearise(flat: Expr, shape: Shape) -> tuple[Expr, ...]:
    """The coordinates of a row-major position."""
    big = [i for i, d in enumerate(shape) if d != 1]
    coords = [index(0)] * len(shape)
    rest = flat
    for i in reversed(big):
        if i == big[0]:
            coords[i] = rest
        else:
            d = dim_expr(shape[i])
            coords[i] = rest % d
            rest = rest // d
    return tuple(coords)


class Position:
    """A position in a value of type `shape`."""

    __slots__ = ("_coords", "_flat", "_key", "shape")

    def __init__(
        self, shape: Shape, coords: Sequence[Expr] | None = None, flat: Expr | None = None
    ) -> None:
        self.shape = shape
        if coords is None and flat is None:
            coords = [index(0)] * len(shape)  # the first element; of rank 0, the only one
        self._coords = None if coords is None else tuple(coords)
        self._flat = flat
        # Fixed here: a position is still the same one when its other form is asked for.
        self._key: tuple[Expr, ...] = self._coords if self._coords is not None else (self.flat,)

    @property
    def coords(self) -> tuple[Expr, ...]:
        if self._coords is None:
            assert self._flat is not None
            self._coords = delinearise(self._flat, self.shape)
        return self._coords

    @property
    def flat(self) -> Expr:
        if self._flat is None:
            assert self._coords is not None
            self._flat = linearise(self._coords, self.shape)
        return self._flat

    def key(self) -> tuple[Expr, ...]:
        """Equal keys mean equal positions (expressions are interned)."""
        return self._key

    def reshaped(self, shape: Shape) -> Position:
        """The same element seen in a value of another shape and the same size."""
        if shape == self.shape:
            return self
        if self._coords is None:
            return Position(shape, flat=self._flat)
        pairs = _factor_groups(self.shape, shape)
        if pairs is None:
            return Position(shape, flat=self.flat)
        coords: list[Expr] = []
        for source, target in pairs:
            held, dims = [self._coords[i] for i in source], tuple(self.shape[i] for i in source)
            wanted = tuple(shape[i] for i in target)
            coords.extend(delinearise(linearise(held, dims), wanted))
        return Position(shape, coords)


def _factor_groups(a: Shape, b: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Split two shapes of equal size into runs of equal size; None if a symbol blocks that."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left, right = [], []
        # Take at least one dimension a side, then extend the smaller side until both sizes agree.
        if i < len(a):
            left.append(i)
            i += 1
        if j < len(b):
            right.append(j)
            j += 1
        while True:
            p, q = size_of(a[k] for k in left), size_of(b[k] for k in right)
            if p == q:
                break
            grow_left = _grow_left(p, q, i < len(a), j < len(b))
            if grow_left is None:
                return None
            if grow_left:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups


def _grow_left(p: Dim, q: Dim, more_left: bool, more_right: bool) -> bool | None:
    if not more_left and not more_right:
        return None
    if not more_left:
        return False
    if not more_right:
        return True
    if isinstance(p, int) and isinstance(q, int):
        return p < q
    # With a symbol on one side only, the side without it is short of a factor.
    if isinstance(q, DimExpr) and not isinstance(p, DimExpr):
        return True
    if isinstance(p, DimExpr) and not isinstance(q, DimExpr):
        return False
    assert isinstance(p, DimExpr) and isinstance(q, DimExpr)
    return len(p.terms[0][0]) < len(q.terms[0][0])
