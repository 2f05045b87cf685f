"""Random functions of the IR from a seed, with inputs for them.

`row_wise=True` makes functions whose every value has the batch as its first dimension and whose
rows never meet, so that a row alone must give the bits that it gives in company.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import BOOL, F32, F64, I32, I64, DType, TensorType

Array = np.ndarray[Any, Any]
DIMS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 40)
UNARY = (
    "neg abs sign square floor ceil trunc round exp expm1 sin cos tanh erf atan asinh sigmoid_like sqrt_abs log_abs"
).split()
BINARY = "add sub mul div maximum minimum atan2 hypot copysign".split()
INT_BINARY = "add sub mul maximum minimum floor_divide remainder and or xor".split()
COMPARE = "eq ne lt le gt ge".split()


class Generator:
    """Grows one function, an operation at a time."""

    def __init__(self, seed: int, row_wise: bool = False, batch: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        self.row_wise = row_wise
        # What a seed decides must not depend on the batch: shapes are drawn without it.
        self.batch = batch
        self.b = Builder(f"seed{seed}")
        self.values: list[Value] = []

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = int(self.rng.integers(0, 4)) if rank is None else rank
        dims = tuple(int(self.pick(DIMS)) for _ in range(rank))
        return (self.batch, *dims[: max(1, rank)]) if self.row_wise else dims

    def param(self, dtype: DType, shape: tuple[int, ...]) -> Value:
        value = self.b.param(TensorType(dtype, shape))
        self.values.append(value)
        return value

    def scalar(self, value: float, dtype: DType) -> Value:
        out: Value = self.b.constant(value=np.array(value).astype(dtype.numpy))
        return out

    def full(self, value: float, like: Value) -> Value:
        out: Value = self.b.full(self.scalar(value, like.type.dtype), shape=like.type.shape)
        return out

    def any_value(self, test: Callable[[Value], bool] = lambda v: True) -> Value | None:
        fits = [v for v in self.values if test(v)]
        # Later values more often, so that chains grow.
        if not fits:
            return None
        return fits[max(int(self.rng.integers(len(fits))), int(self.rng.integers(len(fits))))]

    def first_axis(self) -> int:
        return 1 if self.row_wise else 0

    def grow(self) -> None:
        v: Value | None = self.pick(_STEPS)(self)
        if v is not None:
            self.values.append(v)

    def function(self, steps: int = 14) -> Function:
        dtypes = (F32, F32, F32, F64, I32)
        for i in range(int(self.rng.integers(2, 5))):
            self.param(F32 if i == 0 else self.pick(dtypes), self.shape(2 if i == 0 else None))
        params = len(self.values)
        for _ in range(steps):
            self.grow()
        made = self.values[params:] or self.values
        results = [made[-1]]
        for v in made[:-1]:
            if self.rng.random() < 0.15:
                results.append(v)
        return self.b.build(results)


def is_float(v: Value) -> bool:
    return v.type.dtype.is_float


def _unary(g: Generator) -> Value | None:
    v = g.any_value(is_float)
    if v is None:
        return None
    name, b = g.pick(UNARY), g.b
    out: Value
    if name == "sigmoid_like":
        one = g.full(1.0, v)
        out = b.div(one, b.add(one, b.exp(b.neg(v))))
    elif name == "sqrt_abs":
        out = b.sqrt(b.abs(v))
    elif name == "log_abs":
        out = b.log(b.add(b.abs(v), g.full(0.5, v)))
    else:
        out = b.emit(name, v)
    return out


def _binary(g: Generator) -> Value | None:
    v = g.any_value(lambda v: v.type.dtype is not BOOL)
    if v is None:
        return None
    w = g.any_value(lambda u: u.type == v.type)
    assert w is not None
    out: Value = g.b.emit(g.pick(BINARY if is_float(v) else INT_BINARY), v, w)
    return out


def _choose(g: Generator) -> Value | None:
    v = g.any_value(is_float)
    if v is None:
        return None
    w = g.any_value(lambda u: u.type == v.type)
    out: Value = g.b.select(g.b.emit(g.pick(COMPARE), v, w), v, w)
    return out


def _cast(g: Generator) -> Value | None:
    v = g.any_value()
    assert v is not None
    out: Value = g.b.cast(v, dtype=g.pick((F32, F32, F64, I32, I64)))
    return out


def _reduce(g: Generator) -> Value | None:
    v = g.any_value(lambda v: v.type.rank > g.first_axis() and v.type.dtype is not BOOL and v.type.size != 0)
    if v is None:
        return None
    axes = [a for a in range(g.first_axis(), v.type.rank) if g.rng.random() < 0.6] or [v.type.rank - 1]
    name = g.pick(("sum", "sum", "sum", "max", "min", "prod", "argmax"))
    out: Value
    if name == "argmax":
        out = g.b.argmax(v, axis=axes[-1])
    else:
        out = g.b.emit(name, v, axes=tuple(axes))
    if g.rng.random() < 0.6:  # back to the full shape: rows and their sums meet again
        gone = axes if name != "argmax" else axes[-1:]
        kept = tuple(a for a in range(v.type.rank) if a not in gone)
        wide = g.b.broadcast(out, shape=v.type.shape, axes=kept)
        g.values.append(out)
        return g.b.sub(v, wide) if wide.type == v.type else wide  # type: ignore[no-any-return]
    return out


def _softmax(g: Generator) -> Value | None:
    v = g.any_value(lambda v: is_float(v) and v.type.rank > g.first_axis())
    if v is None:
        return None
    b, axis = g.b, v.type.rank - 1
    kept = tuple(range(axis))

    def wide(r: Value) -> Value:
        out: Value = b.broadcast(r, shape=v.type.shape, axes=kept)
        return out

    e = b.exp(b.sub(v, wide(b.max(v, axes=(axis,)))))
    out: Value = b.div(e, wide(b.sum(e, axes=(axis,))))
    return out


def _layout(g: Generator) -> Value | None:
    v = g.any_value(lambda v: v.type.rank > g.first_axis())
    if v is None:
        return None
    b, rank, lead = g.b, v.type.rank, g.first_axis()
    shape = [int(d) for d in v.type.shape]
    kind = g.pick(("permute", "reshape", "slice", "pad", "flip", "concat", "broadcast"))
    out: Value
    if kind == "permute":
        order = list(range(lead)) + [lead + int(i) for i in g.rng.permutation(rank - lead)]
        out = b.permute(v, axes=tuple(order))
    elif kind == "reshape":
        size = int(np.prod(shape[lead:]))
        factors = [f for f in (2, 3, 4, 5, 8) if size % f == 0]
        tail = (size // (f := g.pick(factors)), f) if factors else (size,)
        out = b.reshape(v, shape=(*shape[:lead], *tail))
    elif kind == "slice":
        start = [0 if a < lead else int(g.rng.integers(0, d)) for a, d in enumerate(shape)]
        limit = [d if a < lead else int(g.rng.integers(s + 1, d + 1)) for a, (s, d) in enumerate(zip(start, shape))]
        stride = [1 if a < lead else int(g.rng.integers(1, 3)) for a in range(rank)]
        out = b.slice(v, start=tuple(start), limit=tuple(limit), stride=tuple(stride))
    elif kind == "pad":
        low = tuple(0 if a < lead else int(g.rng.integers(0, 3)) for a in range(rank))
        high = tuple(0 if a < lead else int(g.rng.integers(0, 3)) for a in range(rank))
        inner = tuple(0 if a < lead else int(g.rng.integers(0, 2)) for a in range(rank))
        filler = b.constant(value=np.array(1).astype(v.type.dtype.numpy))
        out = b.pad(v, filler, low=low, high=high, interior=inner)
    elif kind == "flip":
        out = b.flip(v, axes=(rank - 1,))
    elif kind == "concat":
        w = g.any_value(lambda u: u.type == v.type)
        out = b.concat(v, w, axis=rank - 1)
    else:
        out = b.broadcast(v, shape=(*shape[:lead], 3, *shape[lead:]), axes=(*range(lead), *range(lead + 1, rank + 1)))
    return out


def _dot(g: Generator) -> Value | None:
    v = g.any_value(lambda v: is_float(v) and v.type.rank >= 2)
    if v is None:
        return None
    k, n = v.type.shape[-1], int(g.pick(DIMS))
    w = g.b.param(TensorType(v.type.dtype, (k, n)))
    out: Value = g.b.dot(v, w, lhs_batch=(), rhs_batch=(), lhs_contract=(v.type.rank - 1,), rhs_contract=(0,))
    if g.rng.random() < 0.5:
        bias = g.b.param(TensorType(v.type.dtype, (n,)))
        g.values.append(out)
        out = g.b.add(out, g.b.broadcast(bias, shape=out.type.shape, axes=(out.type.rank - 1,)))
    return out


def _conv(g: Generator) -> Value | None:
    v = g.any_value(lambda v: is_float(v) and v.type.rank >= 2 and v.type.size != 0)
    if v is None:
        return None
    lead = g.first_axis()
    n = v.type.shape[0] if lead else 1
    size = int(np.prod([int(d) for d in v.type.shape[lead:]]))
    c = g.pick([f for f in (1, 2, 3) if size % f == 0])
    h = g.pick([f for f in (1, 2, 4, 8) if size // c % f == 0])
    x = g.b.reshape(v, shape=(n, c, h, size // c // h))
    window = (int(g.rng.integers(1, 4)), int(g.rng.integers(1, 4)))
    w = g.b.param(TensorType(v.type.dtype, (int(g.pick((1, 2, 5, 16))), c, *window)))
    pads = tuple((int(g.rng.integers(0, 2)) + k - 1, int(g.rng.integers(0, 2))) for k in window)
    strides = (int(g.rng.integers(1, 3)), int(g.rng.integers(1, 3)))
    out: Value = g.b.conv(
        x, w, strides=strides, padding=pads, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1, batch_groups=1
    )
    if 0 in out.type.shape:
        return None
    if g.rng.random() < 0.5:
        pool: tuple[Value, Value] = g.b.max_pool(
            out, window=(2, 2), strides=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1)
        )
        g.values.append(out)
        out = pool[0]
    return out


def _index(g: Generator) -> Value | None:
    v = g.any_value(lambda v: v.type.rank > g.first_axis() and v.type.shape[-1] != 0 and v.type.dtype is not BOOL)
    if v is None:
        return None
    b, rank = g.b, v.type.rank
    axis, size = rank - 1, int(v.type.shape[-1])
    kind = g.pick(("gather", "take", "scatter", "scan"))
    if kind == "scan":
        if not is_float(v):
            return None
        ones = g.full(1.0, v)
        out: Value = b.linear_scan(ones, v, axis=axis, reverse=bool(g.rng.integers(2)))
        return out
    picks = np.asarray(g.rng.integers(-size, size, (6,)), np.int64)
    index = b.constant(value=picks)
    if kind == "gather":
        out = b.gather(v, index, axis=axis)
        return out
    shape = (*v.type.shape[:-1], 6)
    wide = b.broadcast(index, shape=shape, axes=(axis,))
    if kind == "take":
        out = b.take_along(v, wide, axis=axis)
        return out
    updates = b.take_along(v, wide, axis=axis)
    out = b.put_along_add(v, wide, updates, axis=axis)
    return out


_STEPS: tuple[Callable[[Generator], Value | None], ...] = (
    _unary, _unary, _unary, _binary, _binary, _binary, _binary, _choose, _cast, _reduce, _reduce, _reduce,
    _softmax, _layout, _layout, _layout, _dot, _conv, _index,
)  # fmt: skip


def inputs_for(f: Function, seed: int) -> list[Array]:
    """Inputs with a few special values among them."""
    rng = np.random.default_rng(seed + 10_000)
    out: list[Array] = []
    for p in f.params:
        shape = tuple(int(d) for d in p.type.shape)
        if p.type.dtype.is_float:
            x = rng.standard_normal(shape).astype(p.type.dtype.numpy)
            special = np.array([0.0, -0.0, 1.0, -1.0, 1e-30, 50.0, np.inf, np.nan], x.dtype)
            if x.size and seed % 3 == 0:
                mask = rng.random(shape) < 0.05
                x[mask] = rng.choice(special, int(mask.sum()))
        else:
            x = np.asarray(rng.integers(-9, 9, shape)).astype(p.type.dtype.numpy)
        out.append(np.asarray(x))
    return out


def same_bits(a: Array, b: Array) -> bool:
    """Equal shape, dtype and bits, where any NaN equals any other."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind == "f":
        kind = f"u{a.dtype.itemsize}"
        return bool(np.all((np.isnan(a) & np.isnan(b)) | (a.view(kind) == b.view(kind))))
    return bool(np.array_equal(a, b))
