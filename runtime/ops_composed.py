"""Functions that are written with other functions of tensors: comparison within tolerances, diagonals, differences, counts."""

from __future__ import annotations

from typing import Any

from graphc.ir.types import BOOL, F64
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor
from graphc.runtime.creation import eye
from graphc.runtime.dispatch import operand_of
from graphc.runtime.indexing import getitem, put_along_axis, setitem
from graphc.runtime.ops_elementwise import FUNCTIONS, astype, where
from graphc.runtime.ops_layout import concat, expand_dims, moveaxis, pad, reshape
from graphc.runtime.ops_reduce import all as every
from graphc.runtime.ops_reduce import sum as total


def isclose(x1: Any, x2: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |x1 - x2| <= atol + rtol |x2|, elementwise; equal infinities are close, NaN to NaN if `equal_nan`.

    Integers are compared in float64.
    """
    a, b = (_as_float(operand_of(x, "isclose")) for x in (x1, x2))
    far = FUNCTIONS["abs"](a - b)
    close = (a == b) | (FUNCTIONS["isfinite"](far) & (far <= atol + rtol * FUNCTIONS["abs"](b)))
    return close | ((a != a) & (b != b)) if equal_nan else close


def _as_float(x: Tensor) -> Tensor:
    if x._spec.weak:
        return x
    return x if x._spec.dtype.is_float else astype(x, F64)


def allclose(x1: Any, x2: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close, as `isclose` has it: a bool of Python."""
    return bool(every(isclose(x1, x2, rtol, atol, equal_nan)))


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Diagonal `offset` of the matrices in dimensions `dim1` and `dim2`, as a new last dimension."""
    rank = len(x._spec.shape)
    first, second = e.normal_axis(dim1, rank), e.normal_axis(dim2, rank)
    if first == second:
        raise ValueError(f"diagonal: dim1 and dim2 are both dimension {first} of {x._spec}; a matrix has two")
    x = moveaxis(x, (first, second), (-2, -1))
    *batch, rows, columns = x._spec.shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise TypeError(f"diagonal: the sizes of the matrices must be known, in {x._spec} they are symbolic; multiply by an eye")
    length = max(0, min(rows - max(-offset, 0), columns - max(offset, 0)))
    start = min(offset if offset >= 0 else -offset * columns, rows * columns)
    line = reshape(x, (*batch, rows * columns))
    return getitem(line, (..., slice(start, start + length * (columns + 1), columns + 1)))


def diag(x: Tensor, k: int = 0) -> Tensor:
    """Of a matrix its diagonal `k`; of a vector the square matrix with it on diagonal `k` and zeros elsewhere."""
    rank = len(x._spec.shape)
    if rank == 2:
        return diagonal(x, k)
    if rank != 1:
        raise ValueError(f"diag takes a vector or a matrix, not {x._spec}; use diagonal")
    padded = pad(x, [(max(-k, 0), max(k, 0))])
    size = padded._spec.shape[0]
    return where(eye(size, size, k=k, dtype=BOOL, device=x._spec.device), expand_dims(padded, 1), 0)  # type: ignore[arg-type]


def trace(x: Tensor, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of diagonal `offset` of the matrices in the last two dimensions."""
    return total(diagonal(x, offset, -2, -1), -1, dtype=dtype)


def diff(x: Tensor, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """The `n`-th differences of neighbours along `axis`; of bools, whether they differ."""
    if n < 0:
        raise ValueError(f"diff: n is the number of times to take differences, >= 0, not {n}")
    at = e.normal_axis(axis, len(x._spec.shape))
    x = concat([part for part in (prepend, x, append) if part is not None], axis=at)
    for _ in range(n):
        before = (slice(None),) * at
        later, earlier = getitem(x, (*before, slice(1, None))), getitem(x, (*before, slice(None, -1)))
        x = later != earlier if x._spec.dtype is BOOL else later - earlier
    return x


def count_nonzero(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The number of elements over `axis` that are not zero, int64."""
    return total(operand_of(x, "count_nonzero") != 0, axis, keepdims)


def scatter_add(x: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
    """A copy of `x` with each element of `src` added at the place along `dim` that `index` names, in ascending order.

    index has the rank of `x`; where it is smaller than `x` or `src`, their first elements take part (PyTorch).
    """
    axis = e.normal_axis(dim, len(x._spec.shape))
    shape = index._spec.shape
    if len(shape) != len(x._spec.shape):
        raise ValueError(f"scatter_add: the index {index._spec} must have the {len(x._spec.shape)} dimensions of {x._spec}")
    source = operand_of(src, "scatter_add")
    if source._spec.shape and source._spec.shape != shape:
        source = getitem(source, tuple(slice(0, d) for d in shape))
    if all(d == n for i, (d, n) in enumerate(zip(shape, x._spec.shape)) if i != axis):
        return put_along_axis(x, index, source, axis, add=True)
    first = tuple(slice(None) if i == axis else slice(0, d) for i, d in enumerate(shape))
    result = FUNCTIONS["positive"](x)
    setitem(result, first, put_along_axis(getitem(x, first), index, source, axis, add=True))
    return result  # type: ignore[no-any-return]


__all__ = ["allclose", "count_nonzero", "diag", "diagonal", "diff", "isclose", "scatter_add", "trace"]
