"""Layout functions: they move elements and change none.

On values, reshape of contiguous memory, permutation, slicing, flipping and broadcasting give another
view of the same memory (values are immutable, so nobody can tell). The others copy.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.types import Dim, DimExpr, Shape, size_of
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor, contiguous_strides, is_contiguous
from graphc.runtime.dispatch import Op, apply, operand_of
from graphc.runtime.spec import Spec, broadcast_shapes, promote_all

Attrs = tuple[Any, ...]
Place = tuple[int, "tuple[int, ...] | None"]


def _strides(x: Tensor) -> tuple[int, ...]:
    return contiguous_strides(x._spec) if x._strides is None else x._strides


def _place(spec: Spec, address: int, strides: tuple[int, ...]) -> Place:
    return address, None if is_contiguous(spec, strides) else strides


# reshape


def _emit_reshape(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    size = values[0].type.size
    shape = e.wildcard(attrs[0], size)
    if size_of(shape) != size:
        raise ValueError(
            f"the shape {list(shape)} has {size_of(shape)} elements and the tensor {size}; the products must be equal "
            "(one size may be -1)"
        )
    return e.reshape(b, values[0], shape)


def _view_reshape(x: Tensor, spec: Spec, attrs: Attrs) -> Place | None:
    if x._strides is None:
        return x._address, None
    moved = respread(x._spec.shape, x._strides, spec.shape)
    return None if moved is None else _place(spec, x._address, moved)


def respread(shape: Shape, strides: tuple[int, ...], wanted: Shape) -> tuple[int, ...] | None:
    """The strides of `wanted` where it differs from `shape` in dimensions of size 1 only, else None."""
    kept = [s for d, s in zip(shape, strides) if d != 1]
    if [d for d in shape if d != 1] != [d for d in wanted if d != 1]:
        return None
    following = iter(kept)
    return tuple(0 if d == 1 else next(following) for d in wanted)


# permute


def _emit_permute(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    return e.permute(b, values[0], attrs[0])


def _view_permute(x: Tensor, spec: Spec, attrs: Attrs) -> Place:
    strides = _strides(x)
    return _place(spec, x._address, tuple(strides[a] for a in attrs[0]))


# broadcast


def _emit_broadcast(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    shape = attrs[0]
    source = values[0].type.shape
    if len(source) > len(shape) or broadcast_shapes(source, shape) != shape:
        raise ValueError(
            f"{values[0].type} cannot be broadcast to {list(shape)}: aligned at the end, each size must be equal or 1"
        )
    return e.broadcast(b, values[0], shape)


def _view_broadcast(x: Tensor, spec: Spec, attrs: Attrs) -> Place:
    source = x._spec.shape
    extra = len(spec.shape) - len(source)
    strides = [0] * extra
    strides += [0 if d == 1 and n != 1 else s for d, n, s in zip(source, spec.shape[extra:], _strides(x))]
    return _place(spec, x._address, tuple(strides))


# slice: attrs are (start, length, step) of each dimension, and the shape after dimensions of size 1
# were taken out or put in


def _emit_slice(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    ranges, shape = attrs
    x = values[0]
    starts, limits, steps, flipped = [], [], [], []
    for i, (start, length, step) in enumerate(ranges):
        low: Dim = start
        if step < 0:
            low = start + (length - 1) * step
            if length != 1:
                flipped.append(i)
        empty = isinstance(length, int) and length == 0
        starts.append(0 if empty else low)
        limits.append(0 if empty else low + (length - 1) * abs(step) + 1)
        steps.append(abs(step))
    whole = all(s == 0 and n == d for s, n, d in zip(starts, limits, x.type.shape)) and all(s == 1 for s in steps)
    if not whole:
        x = b.emit("slice", x, start=tuple(starts), limit=tuple(limits), stride=tuple(steps))
    if flipped:
        x = b.emit("flip", x, axes=tuple(flipped))
    return e.reshape(b, x, shape)


def _view_slice(x: Tensor, spec: Spec, attrs: Attrs) -> Place:
    strides = _strides(x)
    address = x._address
    for (start, length, _), s in zip(attrs[0], strides):
        if length:
            address += start * s
    moved = tuple(step * s for (_, _, step), s in zip(attrs[0], strides))
    lengths = tuple(length for _, length, _ in attrs[0])
    spread = respread(lengths, moved, spec.shape)
    assert spread is not None
    return _place(spec, address, spread)


# flip


def _emit_flip(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    return b.emit("flip", values[0], axes=attrs[0]) if attrs[0] else values[0]


def _view_flip(x: Tensor, spec: Spec, attrs: Attrs) -> Place:
    strides = list(_strides(x))
    address = x._address
    for a in attrs[0]:
        n = x._spec.shape[a]
        assert isinstance(n, int)
        address += max(n - 1, 0) * strides[a]
        strides[a] = -strides[a]
    return _place(spec, address, tuple(strides))


# concat, stack, pad


def _emit_concat(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    stacked, axis = attrs
    dtype = promote_all([v.type.dtype for v in values], list(weak))
    operands = [e.cast(b, v, dtype) for v in values]
    if stacked:
        shapes = {v.type.shape for v in operands}
        if len(shapes) > 1:
            raise ValueError(f"tensors to stack must have one shape, not {' and '.join(map(str, shapes))}; broadcast them")
        shape = operands[0].type.shape
        operands = [e.reshape(b, v, (*shape[:axis], 1, *shape[axis:])) for v in operands]
    if len(operands) == 1:
        return operands[0]
    result: Value = b.emit("concat", *operands, axis=axis)
    return result


def _emit_pad(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    low, high = attrs
    x = values[0]
    cut_low = [max(-n, 0) if isinstance(n, int) else 0 for n in low]
    cut_high = [max(-n, 0) if isinstance(n, int) else 0 for n in high]
    if any(cut_low) or any(cut_high):
        limits = tuple(d - c for d, c in zip(x.type.shape, cut_high))
        x = b.emit("slice", x, start=tuple(cut_low), limit=limits, stride=(1,) * len(low))
    value = e.cast(b, values[1], x.type.dtype)
    more = [tuple(n if isinstance(n, DimExpr) else max(n, 0) for n in amounts) for amounts in attrs]
    result: Value = b.emit("pad", x, value, low=more[0], high=more[1], interior=(0,) * len(low))
    return result


def _emit_triangle(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Value:
    lower, k = attrs
    x = values[0]
    shape = x.type.shape
    if len(shape) < 2:
        raise ValueError(f"a matrix needs two dimensions, {x.type} has {len(shape)}; reshape it")
    from graphc.ir.types import I64

    row = b.emit("iota", shape=shape[-2:], axis=0, dtype=I64)
    column = b.emit("iota", shape=shape[-2:], axis=1, dtype=I64)
    edge = b.emit("add", row, e.filled(b, k, I64, shape[-2:]))
    kept = b.emit("le" if lower else "ge", column, edge)
    result: Value = b.emit("select", e.broadcast(b, kept, shape), x, e.filled(b, 0, x.type.dtype, shape))
    return result


RESHAPE = Op("reshape", _emit_reshape, _view_reshape)
PERMUTE = Op("permute_dims", _emit_permute, _view_permute)
BROADCAST = Op("broadcast_to", _emit_broadcast, _view_broadcast)
SLICE = Op("slice", _emit_slice, _view_slice)
FLIP = Op("flip", _emit_flip, _view_flip)
_CONCAT = {False: Op("concat", _emit_concat), True: Op("stack", _emit_concat)}
_PAD = Op("pad", _emit_pad)
_TRIANGLE = {True: Op("tril", _emit_triangle), False: Op("triu", _emit_triangle)}


def reshape(x: Tensor, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    """`x` in row-major order in another shape of the same size; one size may be -1.

    >>> import graphc as gc
    >>> gc.arange(6).reshape(2, -1).shape
    (2, 3)
    """
    return apply(RESHAPE, (operand_of(x, "reshape"),), (e.normal_shape(shape),))


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """`x` with dimension i being dimension `axes[i]`. Raises `ValueError` unless axes are a permutation."""
    t = operand_of(x, "permute_dims")
    rank = len(t._spec.shape)
    normal = tuple(e.normal_axis(a, rank) for a in axes)
    if sorted(normal) != list(range(rank)):
        raise ValueError(f"permute_dims: axes {tuple(axes)} are not a permutation of the {rank} dimensions of {t._spec}")
    return apply(PERMUTE, (t,), (normal,))


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two dimensions exchanged. Raises `ValueError` below two dimensions."""
    return swapaxes(x, -1, -2)


def swapaxes(x: Tensor, /, axis1: int, axis2: int) -> Tensor:
    """Two dimensions exchanged."""
    rank = len(x._spec.shape)
    if rank < 2 and {axis1, axis2} == {-1, -2}:
        raise ValueError(f"a matrix needs two dimensions, {x._spec} has {rank}; reshape it")
    i, j = e.normal_axis(axis1, rank), e.normal_axis(axis2, rank)
    axes = list(range(rank))
    axes[i], axes[j] = j, i
    return apply(PERMUTE, (x,), (tuple(axes),))


def moveaxis(x: Tensor, source: Any, destination: Any, /) -> Tensor:
    """Dimensions `source` moved to the places `destination`; the others keep their order."""
    rank = len(x._spec.shape)
    sources = [source] if isinstance(source, int) else list(source)
    places = [destination] if isinstance(destination, int) else list(destination)
    froms, tos = [e.normal_axis(a, rank) for a in sources], [e.normal_axis(a, rank) for a in places]
    if len(froms) != len(tos) or len(set(froms)) != len(froms) or len(set(tos)) != len(tos):
        raise ValueError(f"moveaxis: {source} to {destination} does not name as many different axes on both sides")
    order = [a for a in range(rank) if a not in froms]
    for to, a in sorted(zip(tos, froms)):
        order.insert(to, a)
    return apply(PERMUTE, (x,), (tuple(order),))


def broadcast_to(x: Tensor, /, shape: Any) -> Tensor:
    """`x` repeated to `shape`; a size -1 keeps the size of `x`."""
    t = operand_of(x, "broadcast_to")
    wanted = list(e.normal_shape(shape))
    extra = len(wanted) - len(t._spec.shape)
    for i, d in enumerate(wanted):
        if not isinstance(d, DimExpr) and d == -1 and i >= extra >= 0:
            wanted[i] = t._spec.shape[i - extra]
    return apply(BROADCAST, (t,), (tuple(wanted),))


def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    """All tensors broadcast to their common shape."""
    tensors = [operand_of(x, "broadcast_arrays") for x in arrays]
    shape = broadcast_shapes(*(t._spec.shape for t in tensors))
    return [apply(BROADCAST, (t,), (shape,)) for t in tensors]


def expand_dims(x: Tensor, /, axis: Any = 0) -> Tensor:
    """A dimension of size 1 put in at `axis` of the result (several, if it is a tuple)."""
    t = operand_of(x, "expand_dims")
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    rank = len(t._spec.shape) + len(axes)
    places = e.normal_axes(tuple(axes), rank)
    sizes = iter(t._spec.shape)
    return apply(RESHAPE, (t,), (tuple(1 if i in places else next(sizes) for i in range(rank)),))


def squeeze(x: Tensor, /, axis: Any = None) -> Tensor:
    """Dimensions of size 1 taken out: those of `axis`, or all. Raises `ValueError` if one is not 1."""
    t = operand_of(x, "squeeze")
    shape = t._spec.shape
    if axis is None:
        places: tuple[int, ...] = tuple(i for i, d in enumerate(shape) if d == 1)
    else:
        places = e.normal_axes(axis, len(shape))
        for a in places:
            if shape[a] != 1:
                raise ValueError(f"squeeze: dimension {a} of {t._spec} is not 1; name dimensions of size 1")
    return apply(RESHAPE, (t,), (tuple(d for i, d in enumerate(shape) if i not in places),))


def flatten(x: Tensor, /, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions `start_dim` to `end_dim` as one."""
    shape = x._spec.shape
    if not shape:
        return apply(RESHAPE, (x,), ((1,),))
    i, j = e.normal_axis(start_dim, len(shape)), e.normal_axis(end_dim, len(shape))
    if i > j:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    return apply(RESHAPE, (x,), ((*shape[:i], size_of(shape[i : j + 1]), *shape[j + 1 :]),))


def flip(x: Tensor, /, axis: Any = None) -> Tensor:
    """The order of elements reversed along `axis` (None: along all)."""
    t = operand_of(x, "flip")
    return apply(FLIP, (t,), (e.normal_axes(axis, len(t._spec.shape)),))


def concat(arrays: Sequence[Tensor], /, axis: int | None = 0, *, dim: int | None = None) -> Tensor:
    """Tensors one after another along `axis`; None flattens them first. Element types are promoted."""
    tensors = [operand_of(x, "concat") for x in arrays]
    if not tensors:
        raise ValueError("concat: there is nothing to concatenate; give at least one tensor")
    if axis is None and dim is None:
        return apply(_CONCAT[False], [reshape(t, (-1,)) for t in tensors], (False, 0))
    at = e.normal_axis(axis if dim is None else dim, len(tensors[0]._spec.shape))
    return apply(_CONCAT[False], tensors, (False, at))


def stack(arrays: Sequence[Tensor], /, axis: int = 0, *, dim: int | None = None) -> Tensor:
    """Tensors of one shape along a new dimension `axis`."""
    tensors = [operand_of(x, "stack") for x in arrays]
    if not tensors:
        raise ValueError("stack: there is nothing to stack; give at least one tensor")
    at = e.normal_axis(axis if dim is None else dim, len(tensors[0]._spec.shape) + 1)
    return apply(_CONCAT[True], tensors, (True, at))


def part(x: Tensor, axis: int, start: Dim, length: Dim, drop: bool = False) -> Tensor:
    """The elements start .. start + length along `axis`; `drop` takes the dimension out."""
    shape = x._spec.shape
    ranges = tuple((start, length, 1) if i == axis else (0, d, 1) for i, d in enumerate(shape))
    middle: Shape = () if drop else (length,)
    return apply(SLICE, (x,), (ranges, (*shape[:axis], *middle, *shape[axis + 1 :])))


def unstack(x: Tensor, /, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, which is taken out."""
    t = operand_of(x, "unstack")
    at = e.normal_axis(axis, len(t._spec.shape))
    return tuple(part(t, at, i, 1, drop=True) for i in range(t._spec.shape[at]))  # type: ignore[arg-type]


def split(x: Tensor, /, sizes: int | Sequence[int], axis: int = 0, *, dim: int | None = None) -> tuple[Tensor, ...]:
    """Consecutive parts along `axis`: of the given sizes, or of one size (the last may be smaller)."""
    at = e.normal_axis(axis if dim is None else dim, len(x._spec.shape))
    n = x._spec.shape[at]
    if isinstance(sizes, int):
        assert isinstance(n, int)
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)] or [0]
    if sum(sizes) != n:
        raise ValueError(f"split: the sizes {list(sizes)} add up to {sum(sizes)}, dimension {at} of {x._spec} is {n}")
    out, start = [], 0
    for size in sizes:
        out.append(part(x, at, start, size))
        start += size
    return tuple(out)


def chunk(x: Tensor, /, chunks: int, axis: int = 0, *, dim: int | None = None) -> tuple[Tensor, ...]:
    """`x` in at most `chunks` parts of equal size along `axis`; the last may be smaller."""
    at = e.normal_axis(axis if dim is None else dim, len(x._spec.shape))
    n = x.shape[at]
    return split(x, max(1, -(-n // chunks)), at)


def roll(x: Tensor, /, shift: Any, axis: Any = None) -> Tensor:
    """Elements moved by `shift` places along `axis`, around the end; None rolls the flattened tensor."""
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, 0), x._spec.shape)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if len(shifts) == 1:
        shifts = tuple(shifts) * len(axes)
    if len(shifts) != len(axes):
        raise ValueError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for s, a in zip(shifts, axes):
        at = e.normal_axis(a, len(x._spec.shape))
        n = x._spec.shape[at]
        if not isinstance(n, DimExpr):
            s = operator.index(s) % n if n else 0
        if not isinstance(s, int) or s:
            x = concat([part(x, at, n - s, s), part(x, at, 0, n - s)], axis=at)
    return x


def tile(x: Tensor, repetitions: Any, /) -> Tensor:
    """`x` repeated as a whole `repetitions[i]` times along dimension i."""
    counts: list[Any] = list(e.normal_shape(repetitions))
    shape = list(x.shape)
    rank = max(len(counts), len(shape))
    counts = [1] * (rank - len(counts)) + counts
    shape = [1] * (rank - len(shape)) + shape
    spread = [d for pair in zip([1] * rank, shape) for d in pair]
    wide = [d for pair in zip(counts, shape) for d in pair]
    return reshape(broadcast_to(reshape(x, tuple(spread)), tuple(wide)), tuple(c * d for c, d in zip(counts, shape)))


def repeat(x: Tensor, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    """Each element repeated `repeats` times in place: an integer, or one for each index (a tensor or list)."""
    if axis is None:
        return repeat(reshape(x, (-1,)), repeats, axis=0)
    at = e.normal_axis(axis, len(x._spec.shape))
    shape = x._spec.shape
    if not isinstance(repeats, (int, DimExpr)):
        from graphc.runtime.indexing import take
        from graphc.runtime.interop import asarray

        counts = repeats.tolist() if isinstance(repeats, Tensor) else list(repeats)
        if len(counts) == 1:
            counts = counts * shape[at]  # type: ignore[operator]
        if len(counts) != shape[at]:
            raise ValueError(f"repeat: {len(counts)} counts for dimension {at} of size {shape[at]}")
        return take(x, asarray([i for i, n in enumerate(counts) for _ in range(n)], dtype="int64", device=x.device), axis=at)
    wide = broadcast_to(expand_dims(x, at + 1), (*shape[: at + 1], repeats, *shape[at + 1 :]))
    return reshape(wide, (*shape[:at], shape[at] * repeats, *shape[at + 1 :]))


def pad(x: Tensor, /, widths: Any, value: Any = 0) -> Tensor:
    """`x` with `value` around it; `widths` holds (before, after) for each dimension, negative ones crop."""
    t = operand_of(x, "pad")
    rank = len(t._spec.shape)
    pairs = [(w, w) if isinstance(w, (int, DimExpr)) else tuple(w) for w in widths]
    if len(pairs) != rank or any(len(p) != 2 for p in pairs):
        raise ValueError(f"pad: widths must hold (before, after) for each of the {rank} dimensions of {t._spec}, not {widths}")
    if all(w == 0 for p in pairs for w in p):
        return t
    amounts = (tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
    return apply(_PAD, (t, operand_of(value, "pad")), amounts)


def tril(x: Tensor, /, k: int = 0) -> Tensor:
    """The matrices of `x` with zeros above diagonal `k`."""
    return apply(_TRIANGLE[True], (operand_of(x, "tril"),), (True, int(k)))


def triu(x: Tensor, /, k: int = 0) -> Tensor:
    """The matrices of `x` with zeros below diagonal `k`."""
    return apply(_TRIANGLE[False], (operand_of(x, "triu"),), (False, int(k)))
