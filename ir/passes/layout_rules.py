"""Simplification rules of operations that move elements, of `full`, and of reductions over nothing.

They compare dimensions as expressions: a rule applies where it holds for every value of the symbols.
"""

from __future__ import annotations

from graphc.ir.function import DenseArray, Operation, Value
from graphc.ir.passes.equation import Rule
from graphc.ir.passes.rewrite import Rewriter, scalar
from graphc.ir.registry import operations
from graphc.ir.types import Dim, Shape


def _inner(b: Rewriter, value: Value, name: str) -> Operation | None:
    """The operation `name` that `value` comes from."""
    op = b.definition(value)
    return op if op is not None and op.name == name else None


def _dims(shape: Shape) -> list[Dim]:
    """The dimensions of a shape but for those of size 1."""
    return [d for d in shape if d != 1]


def _at_least(d: Dim, least: int) -> bool:
    return isinstance(d, int) and d >= least


def _reshape(b: Rewriter, x: Value, shape: Shape) -> Value:
    result: Value = b.emit("reshape", x, shape=shape)
    return result


# reshape, permute


def _reshape_same(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    return x if x.type.shape == op.attrs["shape"] else None


def _reshape_reshape(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "reshape")
    return None if inner is None else _reshape(b, inner.operands[0], op.attrs["shape"])


def _permute_identity(b: Rewriter, op: Operation) -> Value | None:
    axes = op.attrs["axes"]
    return op.operands[0] if axes == tuple(range(len(axes))) else None


def _permute_permute(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "permute")
    if inner is None:
        return None
    axes = tuple(inner.attrs["axes"][a] for a in op.attrs["axes"])
    result: Value = b.emit("permute", inner.operands[0], axes=axes)
    return result


def _permute_ones(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    moved = [a for a in op.attrs["axes"] if x.type.shape[a] != 1]
    return _reshape(b, x, op.result.type.shape) if moved == sorted(moved) else None


def _permute_dot(b: Rewriter, op: Operation) -> Value | None:
    """The gradient of a weight comes out the other way round: its product is then taken the other way round."""
    inner = _inner(b, op.operands[0], "dot")
    if inner is None or not b.used_once(inner.result):
        return None
    lhs, rhs = inner.operands
    a = inner.attrs
    batch = len(a["lhs_batch"])
    left = batch + lhs.type.rank - batch - len(a["lhs_contract"])
    rank = inner.result.type.rank
    if left in (batch, rank) or op.attrs["axes"] != (*range(batch), *range(left, rank), *range(batch, left)):
        return None
    swapped = {f"{mine}_{kind}": a[f"{other}_{kind}"] for mine, other in (("lhs", "rhs"), ("rhs", "lhs")) for kind in ("batch", "contract")}
    result: Value = b.emit("dot", rhs, lhs, **swapped, precision=a["precision"])
    return result


# broadcast, full


def _broadcast_identity(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    return x if x.type.shape == op.attrs["shape"] else None


def _broadcast_scalar(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    if x.type.shape:
        return None
    result: Value = b.emit("full", x, shape=op.attrs["shape"])
    return result


def _broadcast_broadcast(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "broadcast")
    if inner is None:
        return None
    axes = tuple(op.attrs["axes"][a] for a in inner.attrs["axes"])
    result: Value = b.emit("broadcast", inner.operands[0], shape=op.attrs["shape"], axes=axes)
    return result


def _broadcast_ones(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    shape = op.attrs["shape"]
    return _reshape(b, x, shape) if _dims(x.type.shape) == _dims(shape) else None


def _broadcast_reshape(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "reshape")
    if inner is None:
        return None
    (x,) = inner.operands
    between = inner.result.type.shape
    if list(x.type.shape) != _dims(between):
        return None
    axes = tuple(axis for d, axis in zip(between, op.attrs["axes"]) if d != 1)
    result: Value = b.emit("broadcast", x, shape=op.attrs["shape"], axes=axes)
    return result


def _constant_splat(b: Rewriter, op: Operation) -> Value | None:
    array = op.attrs["value"].array
    if array.ndim == 0 or array.size == 0:
        return None
    bits = array.reshape(-1).view(f"u{array.itemsize}")
    if bits[0] != bits[-1] or (bits != bits[0]).any():
        return None
    return b.constant(DenseArray(array.reshape(-1)[:1].reshape(())), op.result.type)


def _full_scalar(b: Rewriter, op: Operation) -> Value | None:
    return None if op.attrs["shape"] else op.operands[0]


_LAYOUT_OF_FULL = ("reshape", "permute", "broadcast", "slice", "flip")


def _layout_of_full(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "full")
    if inner is None:
        return None
    result: Value = b.emit("full", inner.operands[0], shape=op.result.type.shape)
    return result


def _elementwise_of_full(b: Rewriter, op: Operation) -> Value | None:
    """Compute the one element instead. Elementwise operations do not look at positions."""
    if not op.operands[0].type.shape:
        return None
    sources = [_inner(b, v, "full") for v in op.operands]
    found = [source.operands[0] for source in sources if source is not None]
    if len(found) < len(sources):
        return None
    element: Value = b.emit(op.name, *found, **op.attrs)
    result: Value = b.emit("full", element, shape=op.result.type.shape)
    return result


# slice


def _slice_full(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    whole = all(lo == 0 for lo in op.attrs["start"]) and op.attrs["limit"] == x.type.shape
    return x if whole and all(s == 1 for s in op.attrs["stride"]) else None


def _slice_slice(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "slice")
    if inner is None:
        return None
    start, limit, stride = [], [], []
    outer = zip(op.attrs["start"], op.attrs["limit"], op.attrs["stride"])
    for first, step, (lo, hi, skip) in zip(inner.attrs["start"], inner.attrs["stride"], outer):
        if step != 1 and not (_at_least(lo, 0) and _at_least(hi, 1) and isinstance(first, int)):
            return None
        start.append(first + lo * step)
        limit.append(first + (hi - 1) * step + 1)
        stride.append(step * skip)
    result: Value = b.emit(
        "slice", inner.operands[0], start=tuple(start), limit=tuple(limit), stride=tuple(stride)
    )
    return result


def _moved_slice(b: Rewriter, op: Operation, x: Value, offset: list[Dim]) -> Value | None:
    """The slice `op` of something that holds `x` at `offset`, as a slice of `x`, if it stays inside `x`."""
    start = [lo - at for lo, at in zip(op.attrs["start"], offset)]
    limit = [hi - at for hi, at in zip(op.attrs["limit"], offset)]
    for lo, hi, d in zip(start, limit, x.type.shape):
        if not (_at_least(lo, 0) and _at_least(d - hi, 0)):
            return None
    result: Value = b.emit("slice", x, start=tuple(start), limit=tuple(limit), stride=op.attrs["stride"])
    return result


def _slice_pad(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "pad")
    if inner is None or any(inner.attrs["interior"]):
        return None
    return _moved_slice(b, op, inner.operands[0], list(inner.attrs["low"]))


def _slice_concat(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "concat")
    if inner is None:
        return None
    axis = inner.attrs["axis"]
    offset: list[Dim] = [0] * op.result.type.rank
    for piece in inner.operands:
        found = _moved_slice(b, op, piece, offset)
        if found is not None:
            return found
        offset[axis] = offset[axis] + piece.type.shape[axis]
    return None


# pad


def _pad_zero(b: Rewriter, op: Operation) -> Value | None:
    amounts = (*op.attrs["low"], *op.attrs["high"], *op.attrs["interior"])
    return op.operands[0] if all(a == 0 for a in amounts) else None


def _same_scalar(b: Rewriter, one: Value, other: Value) -> bool:
    held = b.uniform(one)
    return one is other or (held is not None and held == b.uniform(other))


def _pad_pad(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "pad")
    if inner is None or any(op.attrs["interior"]) or not _same_scalar(b, op.operands[1], inner.operands[1]):
        return None
    low, high = (
        tuple(one + other for one, other in zip(op.attrs[side], inner.attrs[side]))
        for side in ("low", "high")
    )
    result: Value = b.emit("pad", *inner.operands, low=low, high=high, interior=inner.attrs["interior"])
    return result


def _pad_full(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "full")
    if inner is None or not _same_scalar(b, inner.operands[0], op.operands[1]):
        return None
    result: Value = b.emit("full", op.operands[1], shape=op.result.type.shape)
    return result


# concat


def _concat_one(b: Rewriter, op: Operation) -> Value | None:
    return op.operands[0] if len(op.operands) == 1 else None


def _concat(b: Rewriter, op: Operation, operands: list[Value]) -> Value:
    result: Value = b.emit("concat", *operands, axis=op.attrs["axis"])
    return result


def _concat_empty(b: Rewriter, op: Operation) -> Value | None:
    axis = op.attrs["axis"]
    kept = [v for v in op.operands if v.type.shape[axis] != 0]
    return _concat(b, op, kept) if 0 < len(kept) < len(op.operands) else None


def _concat_concat(b: Rewriter, op: Operation) -> Value | None:
    operands: list[Value] = []
    for v in op.operands:
        inner = _inner(b, v, "concat")
        flat = inner is not None and inner.attrs["axis"] == op.attrs["axis"]
        operands += inner.operands if inner is not None and flat else [v]
    return _concat(b, op, operands) if len(operands) > len(op.operands) else None


def _concat_full(b: Rewriter, op: Operation) -> Value | None:
    first = _inner(b, op.operands[0], "full")
    for v in op.operands:
        inner = _inner(b, v, "full")
        if first is None or inner is None or not _same_scalar(b, first.operands[0], inner.operands[0]):
            return None
    assert first is not None
    result: Value = b.emit("full", first.operands[0], shape=op.result.type.shape)
    return result


def _concat_slices(b: Rewriter, op: Operation) -> Value | None:
    """Pieces that lie side by side in one value become one slice of it."""
    operands = [op.operands[0]]
    for v in op.operands[1:]:
        joined = _joined(b, operands[-1], v, op.attrs["axis"])
        operands[-1:] = [joined] if joined is not None else [operands[-1], v]
    if len(operands) == len(op.operands):
        return None
    return _concat(b, op, operands)


def _joined(b: Rewriter, left: Value, right: Value, axis: int) -> Value | None:
    one, other = _inner(b, left, "slice"), _inner(b, right, "slice")
    if one is None or other is None or one.operands != other.operands:
        return None
    if any(s != 1 for s in (*one.attrs["stride"], *other.attrs["stride"])):
        return None
    for i, (lo, hi) in enumerate(zip(other.attrs["start"], one.attrs["limit"])):
        if i == axis and lo != hi:
            return None
        if i != axis and (one.attrs["start"][i] != lo or other.attrs["limit"][i] != hi):
            return None
    limit = list(one.attrs["limit"])
    limit[axis] = other.attrs["limit"][axis]
    result: Value = b.emit(
        "slice", *one.operands, start=one.attrs["start"], limit=tuple(limit), stride=one.attrs["stride"]
    )
    return result


# flip


def _flip_ones(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    return x if all(x.type.shape[a] == 1 for a in op.attrs["axes"]) else None


def _flip_flip(b: Rewriter, op: Operation) -> Value | None:
    inner = _inner(b, op.operands[0], "flip")
    if inner is None:
        return None
    axes = tuple(sorted(set(op.attrs["axes"]) ^ set(inner.attrs["axes"])))
    result: Value = b.emit("flip", inner.operands[0], axes=axes)
    return result


# Reductions of single elements. The identity of every reduction is neutral to the bit (-0.0 for sum).

_REDUCTIONS = ("sum", "prod", "max", "min", "any", "all")


def _reduce_ones(b: Rewriter, op: Operation) -> Value | None:
    (x,) = op.operands
    if any(x.type.shape[a] != 1 for a in op.attrs["axes"]) or x.type.dtype != op.result.type.dtype:
        return None
    return _reshape(b, x, op.result.type.shape)


def _arg_ones(b: Rewriter, op: Operation) -> Value | None:
    if op.operands[0].type.shape[op.attrs["axis"]] != 1:
        return None
    return b.constant(scalar(0, op.result.type), op.result.type)


def _elementwise_names() -> tuple[str, ...]:
    return tuple(n for n, d in operations().items() if d.family in ("elementwise", "compare"))


LAYOUT_RULES = (
    Rule("reshape_same", "reshape(x, shape of x) = x", ("reshape",), _reshape_same),
    Rule("reshape_reshape", "reshape(reshape(x, s), t) = reshape(x, t)", ("reshape",), _reshape_reshape),
    Rule("permute_identity", "permute(x, (0, 1, ..)) = x", ("permute",), _permute_identity),
    Rule("permute_permute", "permute(permute(x, p), q) = permute(x, p[q])", ("permute",), _permute_permute),
    Rule("permute_ones", "permute(x, p) = reshape(x), p moving dimensions of size 1 only", ("permute",), _permute_ones),
    Rule("permute_dot", "permute(dot(x, y), p) = dot(y, x), p exchanging what x and y keep, nobody else reading the product", ("permute",), _permute_dot),
    Rule("broadcast_identity", "broadcast(x, shape of x) = x", ("broadcast",), _broadcast_identity),
    Rule("broadcast_scalar", "broadcast(x, s) = full(x, s), x of rank 0", ("broadcast",), _broadcast_scalar),
    Rule("broadcast_broadcast", "broadcast(broadcast(x, s, a), t, b) = broadcast(x, t, b[a])", ("broadcast",), _broadcast_broadcast),
    Rule("broadcast_ones", "broadcast(x, s) = reshape(x, s), s adding dimensions of size 1 only", ("broadcast",), _broadcast_ones),
    Rule("broadcast_reshape", "broadcast(reshape(x, s), t) = broadcast(x, t), s adding dimensions of size 1 to x", ("broadcast",), _broadcast_reshape),
    Rule("constant_splat", "constant of equal elements = full(the element)", ("constant",), _constant_splat),
    Rule("full_scalar", "full(x, []) = x", ("full",), _full_scalar),
    Rule("layout_of_full", "reshape(full(x)) = full(x), and permute, broadcast, slice, flip", _LAYOUT_OF_FULL, _layout_of_full),
    Rule("elementwise_of_full", "f(full(x), full(y), ..) = full(f(x, y, ..)), f elementwise", _elementwise_names(), _elementwise_of_full),
    Rule("slice_full", "slice(x, 0, shape of x) = x", ("slice",), _slice_full),
    Rule("slice_slice", "slice(slice(x)) = slice(x)", ("slice",), _slice_slice),
    Rule("slice_pad", "slice(pad(x)) = slice(x), the slice taking no padding", ("slice",), _slice_pad),
    Rule("slice_concat", "slice(concat(x, y, ..)) = slice(y), the slice being inside y", ("slice",), _slice_concat),
    Rule("pad_zero", "pad(x, v, 0, 0, 0) = x", ("pad",), _pad_zero),
    Rule("pad_pad", "pad(pad(x, v, a, b), v, c, d) = pad(x, v, a + c, b + d)", ("pad",), _pad_pad),
    Rule("pad_full", "pad(full(v), v) = full(v)", ("pad",), _pad_full),
    Rule("concat_one", "concat(x) = x", ("concat",), _concat_one),
    Rule("concat_empty", "concat(x, y) = concat(y), x being empty", ("concat",), _concat_empty),
    Rule("concat_concat", "concat(concat(x, y), z) = concat(x, y, z), along one axis", ("concat",), _concat_concat),
    Rule("concat_full", "concat(full(v), full(v)) = full(v)", ("concat",), _concat_full),
    Rule("concat_slices", "concat(x[a:b], x[b:c]) = x[a:c]", ("concat",), _concat_slices),
    Rule("flip_ones", "flip(x, axes) = x, the axes being of size 1", ("flip",), _flip_ones),
    Rule("flip_flip", "flip(flip(x, a), b) = flip(x, a xor b)", ("flip",), _flip_flip),
    Rule("reduce_ones", "sum(x, axes) = reshape(x), the axes being of size 1, and prod, max, min, any, all", _REDUCTIONS, _reduce_ones),
    Rule("arg_ones", "argmax(x, axis) = 0, the axis being of size 1, and argmin", ("argmax", "argmin"), _arg_ones),
)  # fmt: skip
