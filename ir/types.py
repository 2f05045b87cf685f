"""Element types, dimensions (integers or symbolic expressions) and tensor types.

Invariants: every object here is immutable and hashable; a `Dim` that is a known integer is always
a plain `int`, never a `DimExpr`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np


@dataclass(frozen=True, eq=False)
class DType:
    """One element type. `kind` is "b" (bool), "i", "u" (integers) or "f" (floating point). There is one object of each."""

    name: str
    short: str
    kind: str
    bits: int
    itemsize: int = field(init=False)
    is_float: bool = field(init=False)
    is_integer: bool = field(init=False)
    is_signed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "itemsize", max(1, self.bits // 8))
        object.__setattr__(self, "is_float", self.kind == "f")
        object.__setattr__(self, "is_integer", self.kind in "iu")
        object.__setattr__(self, "is_signed", self.kind in "if")

    @property
    def numpy(self) -> np.dtype[Any]:
        return _NUMPY[self.name]

    def __str__(self) -> str:
        return self.short

    def __repr__(self) -> str:
        return f"graphc.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (dtype, (self.name,))


BOOL = DType("bool", "bool", "b", 1)
I8 = DType("int8", "i8", "i", 8)
I16 = DType("int16", "i16", "i", 16)
I32 = DType("int32", "i32", "i", 32)
I64 = DType("int64", "i64", "i", 64)
U8 = DType("uint8", "u8", "u", 8)
U16 = DType("uint16", "u16", "u", 16)
U32 = DType("uint32", "u32", "u", 32)
U64 = DType("uint64", "u64", "u", 64)
F16 = DType("float16", "f16", "f", 16)
BF16 = DType("bfloat16", "bf16", "f", 16)
F32 = DType("float32", "f32", "f", 32)
F64 = DType("float64", "f64", "f", 64)

ALL_DTYPES = (BOOL, I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64)


class _NumPyTypes(dict[str, "np.dtype[Any]"]):
    """NumPy's dtypes by name. It has no bfloat16 of its own; ml_dtypes is imported for the first that is asked for."""

    def __missing__(self, name: str) -> np.dtype[Any]:
        import ml_dtypes

        self[name] = np.dtype(ml_dtypes.bfloat16)
        return self[name]


_NUMPY = _NumPyTypes({d.name: np.dtype(d.name) for d in ALL_DTYPES if d is not BF16})
_BY_NAME = {key: d for d in ALL_DTYPES for key in (d.name, d.short)}
_BY_NUMPY = {_NUMPY[d.name]: d for d in ALL_DTYPES if d is not BF16}


def dtype(spec: DType | str | np.dtype[Any] | type) -> DType:
    """The `DType` for a name ("float32", "f32"), a NumPy dtype or scalar type, or a `DType`.

    Raises `TypeError` for anything graphc has no element type for.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]
    try:
        found = np.dtype(spec)
        return _BY_NUMPY.get(found) or _BY_NAME["bfloat16" if found == BF16.numpy else ""]
    except (TypeError, KeyError):
        names = ", ".join(d.name for d in ALL_DTYPES)
        raise TypeError(f"{spec!r} is not an element type of graphc; it has {names}") from None


# A symbolic dimension is a polynomial with integer coefficients. Its atoms are symbol names, or
# ("//", numerator, denominator) for a floor division that does not come out even.
Atom = Union[str, tuple[str, "Dim", int]]
Monomial = tuple[Atom, ...]


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, _atom_text(atom))


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    return f"(({atom[1]})//{atom[2]})"


class DimExpr:
    """A dimension that depends on symbols, such as `B`, `4*B` or `((H + 2)//2)`.

    Supports `+ - * //` with integers and other dimensions. Equality is structural on the canonical
    form. Symbols stand for integers >= 0.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "_hash", hash(terms))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a dimension is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return (DimExpr, (self.terms,))

    def __hash__(self) -> int:
        return int(self._hash)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, DimExpr) and self.terms == other.terms)

    def __add__(self, other: Dim) -> Dim:
        return _from_terms([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (other * -1)

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        return _from_terms(
            [
                (tuple(sorted(a + b, key=_atom_key)), x * y)
                for a, x in self.terms
                for b, y in _terms(other)
            ]
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        if isinstance(other, DimExpr):
            return _divide_exactly(self, other)
        if other <= 0:
            raise ValueError(f"dimension {self} divided by {other}")
        if all(c % other == 0 for _, c in self.terms):
            return _from_terms([(m, c // other) for m, c in self.terms])
        # Whole multiples come out and remainders stay in, so that (3*B + 3)//2 and B + 1 + (B + 1)//2 agree.
        whole = [(m, c // other) for m, c in self.terms]
        rest = _from_terms([(m, c % other) for m, c in self.terms])
        if isinstance(rest, int):
            return _from_terms(whole)
        return _from_terms(whole) + _from_terms([((("//", rest, other),), 1)])

    def __rfloordiv__(self, other: int) -> Dim:
        return _divide_exactly(other, self)

    def __mod__(self, other: int) -> Dim:
        return self - (self // other) * other

    def __str__(self) -> str:
        parts = []
        for monomial, c in self.terms:
            factors = [_atom_text(a) for a in monomial]
            if c != 1 or not factors:
                factors.insert(0, str(c))
            parts.append("*".join(factors))
        return " + ".join(parts).replace("+ -", "- ") if parts else "0"

    __repr__ = __str__

    def __truediv__(self, other: object) -> float:
        raise TypeError(
            f"the dimension {self} is symbolic and has no value to divide by or into while tracing; "
            "trace with a concrete size"
        )

    __rtruediv__ = __truediv__

    def __bool__(self) -> bool:
        raise TypeError(
            f"the dimension {self} is symbolic: Python cannot decide on its value while tracing"
        )

    def __index__(self) -> int:
        raise TypeError(
            f"the dimension {self} is symbolic and has no integer value while tracing; "
            "pass it on in shapes, or trace with a concrete size"
        )

    def symbols(self) -> frozenset[str]:
        """The names this dimension depends on."""
        return frozenset(
            name
            for monomial, _ in self.terms
            for atom in monomial
            for name in ([atom] if isinstance(atom, str) else dim_symbols(atom[1]))
        )


Dim = Union[int, DimExpr]
Shape = tuple[Dim, ...]


def _terms(d: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(d, DimExpr):
        return d.terms
    return (((), int(d)),)


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, c in terms:
        total[monomial] = total.get(monomial, 0) + c
    kept = [(m, c) for m, c in total.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    # Highest degree first, the constant last.
    return DimExpr(tuple(sorted(kept, key=lambda t: (-len(t[0]), [_atom_key(a) for a in t[0]]))))


def _divide_exactly(a: Dim, b: DimExpr) -> Dim:
    """`a // b` for a symbolic divisor that divides every term of `a`, else `ValueError`."""
    if isinstance(a, DimExpr) and len(b.terms) == 1:
        divisor, scale = b.terms[0]
        quotient = []
        for monomial, c in a.terms:
            rest = list(monomial)
            for atom in divisor:
                if atom not in rest:
                    break
                rest.remove(atom)
            else:
                if c % scale == 0:
                    quotient.append((tuple(rest), c // scale))
                    continue
            break
        else:
            return _from_terms(quotient)
    if a == b:
        return 1
    if isinstance(a, int) and a == 0:
        return 0
    raise ValueError(f"dimension {a} is not divisible by the symbolic dimension {b}")


def symbol(name: str) -> DimExpr:
    """The symbolic dimension `name`, an identifier."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"{name!r} is not a name for a dimension")
    return DimExpr((((name,), 1),))


def dim_symbols(d: Dim) -> frozenset[str]:
    return d.symbols() if isinstance(d, DimExpr) else frozenset()


def substitute(d: Dim, values: Mapping[str, Dim]) -> Dim:
    """`d` with symbols replaced; an `int` if no symbol is left."""
    if not isinstance(d, DimExpr):
        return d
    total: Dim = 0
    for monomial, c in d.terms:
        product: Dim = c
        for atom in monomial:
            if isinstance(atom, str):
                product = product * values.get(atom, symbol(atom))
            else:
                product = product * (substitute(atom[1], values) // atom[2])
        total = total + product
    return total


def size_of(shape: Iterable[Dim]) -> Dim:
    """The number of elements of a shape."""
    total: Dim = 1
    for d in shape:
        total = total * d
    return total


@dataclass(frozen=True, eq=False)
class TensorType:
    """An element type and a shape, printed `f32[B, 784]`. Rank 0 prints `f32[]`."""

    dtype: DType
    shape: Shape = ()
    _hash: int = field(init=False, repr=False)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, TensorType) and self.dtype is other.dtype and self.shape == other.shape
        )

    def __hash__(self) -> int:
        # Types are hashed far more often than made.
        try:
            return self._hash
        except AttributeError:
            object.__setattr__(self, "_hash", hash((self.dtype, self.shape)))
            return self._hash

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return size_of(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.size * self.dtype.itemsize

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.short}[{', '.join(map(str, self.shape))}]"

    __repr__ = __str__

    @staticmethod
    def parse(text: str) -> TensorType:
        """A type from text such as `"f32[B, 1, 8, 8]"`; dimensions are integers or names.

        >>> TensorType.parse("f32[B, 784]")
        f32[B, 784]
        """
        match = re.fullmatch(r"\s*(\w+)\s*\[([^\]]*)\]\s*", text)
        if not match:
            raise ValueError(f'{text!r} is not a type; write for example "f32[B, 1, 8, 8]"')
        dims: list[Dim] = []
        for part in filter(None, (p.strip() for p in match[2].split(","))):
            dims.append(int(part) if part.isdigit() else symbol(part))
        return TensorType(dtype(match[1]), tuple(dims))
