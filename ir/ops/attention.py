"""Scaled dot-product attention over blocks of keys, with a running maximum: `attention`, `attention_grad`.

Nothing of the size of all scores exists (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018; Dao,
"FlashAttention-2", 2023). The order of every sum is part of the bit contract, so that all schedules agree.

Operands, H a multiple of Hk (query head h reads key head h // (H // Hk)):
    q[B, H, T, D], k[B, Hk, S, D], v[B, Hk, S, E], scale[], and optionally mask, of rank 4, whose dimensions are those of
    the scores [B, H, T, S] or 1: bool (true: may be seen), or added to the scores: of the dtype of q, or as wide as scale.
float16 and bfloat16 are widened to float32, results rounded once; scale, logsumexp and delta are float32, of
float64 operands float64. `causal`: query i sees the keys 0..i.

The score of query i and key j is t = dot(q_i, k_j) * scale, dot being a chain of fma over ascending d from +0.0;
with an added mask fma(dot, scale, mask). A key that may not be seen has t = -inf.

attention -> (out[B, H, T, E], logsumexp[B, H, T]). For each query, from m = -inf, l = 0, acc = 0, over the blocks
of 64 keys, ascending, the last one shorter, under `causal` only the blocks that begin at or before the query:
    m' = max(m, the t of the block);  z = m', or 0 where m' is -inf
    p_j = exp(t_j - z);  alpha = exp(m - z)
    l = fma(l, alpha, sum of p), the sum: lane r of 16 adds p_j for j = r (mod 16), ascending; lanes are combined
        by halving (r with r + 8, 4, 2, 1)
    acc_e = fma(p_j, v_je, acc_e) over ascending j, from acc_e * alpha
out = acc / l, and zeros where l is 0 (no key may be seen); logsumexp = m + log(l).

attention_grad(q, k, v, scale, logsumexp, delta[B, H, T], dout[B, H, T, E][, mask]) -> (dq, dk, dv). With delta the sum of
dout * out (less the cotangent of logsumexp), over the same pairs of queries and keys as above:
    z = logsumexp, or 0 where it is -inf;  p = exp(t - z)
    dp = dot(dout_i, v_j), a chain over e from +0.0;  ds = p * (dp - delta)
    dv_j: fma(p, dout_i, .) over the query heads of the key head and their queries, ascending, from +0.0
    dk_j: fma(ds, q_i, .) in the same order, then * scale
    dq_i: fma(ds, k_j, .) over ascending keys from +0.0, then * scale
Under `causal` query i and key j meet if the block of 64 keys that holds j begins at or before i.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs, Builder, Function, Operation, Value
from graphc.ir.ops import exponential
from graphc.ir.ops.create import filled
from graphc.ir.ops.fma import fma
from graphc.ir.ops.rules import check_kinds, check_precision, show_shape, type_error
from graphc.ir.registry import Array, OpDef, register
from graphc.ir.types import BOOL, F32, F64, I64, Dim, DType, Shape, TensorType, size_of

Types = tuple[TensorType, ...]
KEYS = 64  # of a block
LANES = 16  # of a block's sum
LARGEST_HEAD = 256


def accumulator(dtype: DType) -> DType:
    """The dtype that attention computes in."""
    return dtype if dtype is F64 else F32


# Type rules


def _check(name: str, types: Types, attrs: Attrs, fixed: int) -> None:
    """Everything about q, k, v, scale, the mask at position `fixed`, and the attributes."""
    if len(types) not in (fixed, fixed + 1):
        raise type_error(name, types, f"{name} takes {fixed} operands and optionally a mask, not {len(types)}")
    q, k, v, scale = types[:4]
    check_kinds(name, types, q.dtype, "f")
    if any(t.rank != 4 for t in types[:3]):
        raise type_error(name, types, "q, k and v have rank 4: batch, heads, positions, head size", "reshape them")
    if any(t.dtype is not q.dtype for t in (k, v)):
        raise type_error(name, types, f"q, k and v must have one dtype, not {q.dtype}, {k.dtype}, {v.dtype}", "cast them")
    if k.shape[0] != q.shape[0] or v.shape[0] != q.shape[0]:
        raise type_error(name, types, f"q, k and v must have one batch size, not {q.shape[0]}, {k.shape[0]}, {v.shape[0]}")
    if k.shape[1] != v.shape[1] or k.shape[2] != v.shape[2]:
        raise type_error(name, types, f"k and v must agree in heads and keys, not {k.shape[1:3]} and {v.shape[1:3]}")
    if k.shape[3] != q.shape[3]:
        raise type_error(name, types, f"q and k must have one head size, not {q.shape[3]} and {k.shape[3]}")
    for size in (q.shape[3], v.shape[3]):
        if not isinstance(size, int) or not 1 <= size <= LARGEST_HEAD:
            rule = f"a head size is a number from 1 to {LARGEST_HEAD}, not {size}"
            raise type_error(name, types, rule, "compose it from dot, exp and sum")
    heads, key_heads = q.shape[1], k.shape[1]
    if isinstance(heads, int) and isinstance(key_heads, int) and (heads % key_heads if key_heads else heads):
        raise type_error(name, types, f"the {heads} heads of q must be a multiple of the {key_heads} of k and v")
    wide = accumulator(q.dtype)
    if scale != TensorType(wide):
        raise type_error(name, types, f"scale must be {TensorType(wide)}, not {scale}")
    if len(types) > fixed:
        mask, scores = types[fixed], (*q.shape[:3], k.shape[2])
        if mask.dtype not in (BOOL, q.dtype, wide):
            raise type_error(name, types, f"the mask is bool, or {q.dtype} as q is, or {wide}, not {mask.dtype}", "cast it")
        if mask.rank != 4 or any(m not in (1, d) for m, d in zip(mask.shape, scores)):
            rule = f"the mask's dimensions are those of the scores {show_shape(scores)} or 1, not {show_shape(mask.shape)}"
            raise type_error(name, types, rule, "reshape it to rank 4")
    if not isinstance(attrs["causal"], bool):
        raise type_error(name, types, f"causal must be True or False, not {attrs['causal']!r}")
    check_precision(name, types, attrs["precision"])


def _infer(types: Types, attrs: Attrs) -> Types:
    _check("attention", types, attrs, 4)
    q, _, v = types[:3]
    return q.with_shape((*q.shape[:3], v.shape[3])), TensorType(accumulator(q.dtype), q.shape[:3])


def _infer_grad(types: Types, attrs: Attrs) -> Types:
    name = "attention_grad"
    _check(name, types, attrs, 7)
    q, k, v = types[:3]
    row = TensorType(accumulator(q.dtype), q.shape[:3])
    out = q.with_shape((*q.shape[:3], v.shape[3]))
    for what, t, wanted in (("logsumexp", types[4], row), ("delta", types[5], row), ("dout", types[6], out)):
        if t != wanted:
            raise type_error(name, types, f"{what} must be {wanted}, not {t}")
    return q, k, v


# Meaning


def _scores(q: Array, k: Array, scale: Array, mask: Array | None, causal: bool) -> tuple[Array, Array]:
    """(t, whether the pair is visited), [B, H, T, S] and [T, S]; k with the heads of q."""
    t = np.zeros((*q.shape[:3], k.shape[2]), q.dtype)
    for d in range(q.shape[3]):
        t = fma(q[..., d, None], k[..., None, :, d], t)
    t = t * scale if mask is None or mask.dtype == bool else fma(t, scale, mask.astype(q.dtype))
    if mask is not None and mask.dtype == bool:
        t = np.where(mask, t, q.dtype.type(-np.inf))
    i, j = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])
    if not causal:
        return t, np.broadcast_to(True, (len(i), len(j)))
    return np.where(j <= i, t, q.dtype.type(-np.inf)), j // KEYS * KEYS <= i


def _shift(m: Array) -> Array:
    return np.where(m == -np.inf, m.dtype.type(0), m)


def _block_sum(p: Array) -> Array:
    """The sum of the last axis, of at most 64 elements."""
    lanes = np.zeros((*p.shape[:-1], LANES), p.dtype)
    for start in range(0, p.shape[-1], LANES):
        part = p[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return np.asarray(lanes[..., 0])


def _wide(args: Sequence[Array], dtype: DType) -> list[Array]:
    return [a if a.dtype == bool else a.astype(accumulator(dtype).numpy) for a in args]


def _eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    q, k, v, scale, *rest = _wide(args, types[0].dtype)
    k, v = (np.repeat(x, q.shape[1] // max(1, k.shape[1]), axis=1) for x in (k, v))
    with np.errstate(all="ignore"):
        t, visited = _scores(q, k, scale, rest[0] if rest else None, attrs["causal"])
        m = np.full(q.shape[:3], -np.inf, q.dtype)
        total = np.zeros(q.shape[:3], q.dtype)
        acc = np.zeros((*q.shape[:3], v.shape[3]), q.dtype)
        for start in range(0, k.shape[2], KEYS):
            here, block = visited[:, start], t[..., start : start + KEYS]
            top = np.maximum(m, block.max(-1))
            z = _shift(top)
            p, alpha = exponential.exp(block - z[..., None]), exponential.exp(m - z)
            added = acc * alpha[..., None]
            for j in range(block.shape[-1]):
                added = fma(p[..., j, None], v[..., None, start + j, :], added)
            total = np.where(here, fma(total, alpha, _block_sum(p)), total)
            acc, m = np.where(here[:, None], added, acc), np.where(here, top, m)
        zero = total == 0
        out = np.where(zero[..., None], q.dtype.type(0), acc / total[..., None])
        logsumexp = np.asarray(m + exponential.log(total))
    return [out.astype(types[0].dtype.numpy), logsumexp]


def _eval_grad(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    q, k, v, scale, logsumexp, delta, dout, *rest = _wide(args, types[0].dtype)
    group = q.shape[1] // max(1, k.shape[1])
    many_k, many_v = (np.repeat(x, group, axis=1) for x in (k, v))
    with np.errstate(all="ignore"):
        t, visited = _scores(q, many_k, scale, rest[0] if rest else None, attrs["causal"])
        p = exponential.exp(t - _shift(logsumexp)[..., None])
        dp = np.zeros(t.shape, q.dtype)
        for e in range(v.shape[3]):
            dp = fma(dout[..., e, None], many_v[..., None, :, e], dp)
        ds = p * (dp - delta[..., None])
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        for j in range(k.shape[2]):
            dq = np.where(visited[:, j, None], fma(ds[..., j, None], many_k[..., None, j, :], dq), dq)
        for g in range(group):
            for i in range(q.shape[2]):
                met = visited[i][:, None]
                dv = np.where(met, fma(p[:, g::group, i, :, None], dout[:, g::group, i, None, :], dv), dv)
                dk = np.where(met, fma(ds[:, g::group, i, :, None], q[:, g::group, i, None, :], dk), dk)
        return [x.astype(types[0].dtype.numpy) for x in (dq * scale, dk * scale, dv)]


# Gradients


class _Composed:
    """Attention as ordinary operations: what the gradients by the mask and the scale, and of higher order, are made of.

    Query heads lie in groups here: q is [B, Hk, G, T, D].
    """

    def __init__(self, b: Builder, operands: Sequence[Value], mask: Value | None, causal: bool) -> None:
        self.b, self.mask, self.causal = b, mask, causal
        q, k, v, self.scale = operands[:4]
        self.wide = accumulator(q.type.dtype)
        batch, heads, queries, _ = q.type.shape
        keys = k.type.shape[2]
        self.groups: Shape = (batch, k.type.shape[1], _quotient(heads, k.type.shape[1]))
        self.rows: Shape = (*self.groups, queries)
        self.shape: Shape = (*self.rows, keys)
        self.q, self.k, self.v = self.grouped(q), self.widened(k), self.widened(v)
        self.dots = self.product(self.q, self.k, 4, 3)
        scaled = b.emit("mul", self.dots, self.full(self.scale))
        never = filled(b, -np.inf, TensorType(self.wide, self.shape))
        if mask is not None:
            spread = self._spread(mask)
            if mask.type.dtype is BOOL:
                scaled = b.emit("select", spread, scaled, never)
            else:
                scaled = b.emit("add", scaled, self.widened(spread))
        if causal:
            i, j = (b.emit("iota", shape=self.shape, axis=axis, dtype=I64) for axis in (3, 4))
            scaled = b.emit("select", b.emit("le", j, i), scaled, never)
        self.scores = scaled

    def widened(self, x: Value) -> Value:
        return x if x.type.dtype is self.wide else self.b.emit("cast", x, dtype=self.wide)

    def grouped(self, x: Value) -> Value:
        """[B, H, ..] as [B, Hk, G, ..], widened."""
        x = self.widened(x)
        return self.b.emit("reshape", x, shape=(*self.groups, *x.type.shape[2:]))  # type: ignore[no-any-return]

    def full(self, scalar: Value) -> Value:
        return self.b.emit("full", scalar, shape=self.shape)  # type: ignore[no-any-return]

    def along_keys(self, row: Value) -> Value:
        return self.b.emit("broadcast", row, shape=self.shape, axes=(0, 1, 2, 3))  # type: ignore[no-any-return]

    def product(self, a: Value, c: Value, i: int, j: int) -> Value:
        """A grouped operand and one with key heads, axis i of the one contracted with axis j of the other."""
        return self.b.emit(  # type: ignore[no-any-return]
            "dot", a, c, lhs_batch=(0, 1), rhs_batch=(0, 1), lhs_contract=(i,), rhs_contract=(j,)
        )

    def over_queries(self, a: Value, x: Value) -> Value:
        """[B, Hk, S, ..]: a[.., T, S] and x[.., T, ..] contracted over the query heads of a key head and their queries."""
        return self.b.emit(  # type: ignore[no-any-return]
            "dot", a, x, lhs_batch=(0, 1), rhs_batch=(0, 1), lhs_contract=(2, 3), rhs_contract=(2, 3)
        )

    def _spread(self, mask: Value) -> Value:
        """The mask with the shape of the scores."""
        heads: Dim = 1 if mask.type.shape[1] == 1 else self.groups[1] * self.groups[2]
        whole = (self.shape[0], heads, *self.shape[3:])
        if mask.type.shape != whole:
            mask = self.b.emit("broadcast", mask, shape=whole, axes=(0, 1, 2, 3))
        split = self.groups[1:] if heads != 1 or size_of(self.groups[1:]) == 1 else (1, 1)
        mask = self.b.emit("reshape", mask, shape=(self.shape[0], *split, *self.shape[3:]))
        if split == (1, 1) and self.groups[1:] != (1, 1):
            mask = self.b.emit("broadcast", mask, shape=self.shape, axes=(0, 1, 2, 3, 4))
        return mask

    def gradient(self, logsumexp: Value, delta: Value, dout: Value) -> tuple[Value, Value]:
        """(p, ds) of the head of this file."""
        b, rows = self.b, TensorType(self.wide, self.rows)
        lse, delta = (b.emit("reshape", x, shape=self.rows) for x in (logsumexp, delta))
        lost = b.emit("eq", lse, filled(b, -np.inf, rows))
        z = b.emit("select", lost, filled(b, 0.0, rows), lse)
        p = b.emit("exp", b.emit("sub", self.scores, self.along_keys(z)))
        dp = self.product(self.grouped(dout), self.v, 4, 3)
        return p, b.emit("mul", p, b.emit("sub", dp, self.along_keys(delta)))

    def scale_gradient(self, ds: Value) -> Value:
        return self.b.emit("sum", self.b.emit("mul", ds, self.dots), axes=(0, 1, 2, 3, 4))  # type: ignore[no-any-return]

    def mask_gradient(self, ds: Value) -> Value | None:
        b, mask = self.b, self.mask
        if mask is None or mask.type.dtype is BOOL:
            return None
        whole = (self.shape[0], self.groups[1] * self.groups[2], *self.shape[3:])
        ds = b.emit("reshape", ds, shape=whole)
        axes = tuple(i for i, (m, d) in enumerate(zip(mask.type.shape, whole)) if m != d)
        if axes:
            ds = b.emit("reshape", b.emit("sum", ds, axes=axes), shape=mask.type.shape)
        return self.narrowed(ds, mask)

    def narrowed(self, x: Value, like: Value) -> Value:
        """`x` with the type of `like`."""
        if x.type.shape != like.type.shape:
            x = self.b.emit("reshape", x, shape=like.type.shape)
        return x if x.type.dtype is like.type.dtype else self.b.emit("cast", x, dtype=like.type.dtype)


def _quotient(heads: Dim, key_heads: Dim) -> Dim:
    if isinstance(heads, int) and isinstance(key_heads, int):
        return heads // max(1, key_heads)
    return heads // key_heads


def _vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    dout, dlse = cotangents
    q, k, v, scale, *rest = op.operands
    out, logsumexp = op.results
    if dout is None:
        dout = filled(b, 0.0, out.type)
    wide = logsumexp.type.dtype
    terms = [x if x.type.dtype is wide else b.emit("cast", x, dtype=wide) for x in (dout, out)]
    delta = b.emit("sum", b.emit("mul", *terms), axes=(3,))
    if dlse is not None:
        delta = b.emit("sub", delta, dlse)
    dq, dk, dv = b.emit("attention_grad", q, k, v, scale, logsumexp, delta, dout, *rest, **op.attrs)
    # By the scale and the mask: rarely wanted, and dropped where nobody reads them.
    composed = _Composed(b, op.operands, rest[0] if rest else None, op.attrs["causal"])
    _, ds = composed.gradient(logsumexp, delta, dout)
    return [dq, dk, dv, composed.scale_gradient(ds), *([composed.mask_gradient(ds)] if rest else [])]


def _composed_grad(op: Operation) -> Function:
    """attention_grad of the types of `op` as a function of ordinary operations."""
    b = Builder("attention_grad")
    params = [b.param(v.type) for v in op.operands]
    composed = _Composed(b, params, params[7] if len(params) > 7 else None, op.attrs["causal"])
    p, ds = composed.gradient(*params[4:7])
    scaled = b.emit("mul", ds, composed.full(params[3]))
    dq = composed.product(scaled, composed.k, 4, 2)
    dk = composed.over_queries(scaled, composed.q)
    dv = composed.over_queries(p, composed.grouped(params[6]))
    return b.build([composed.narrowed(x, r) for x, r in zip((dq, dk, dv), op.results, strict=True)])


def _vjp_grad(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    from graphc.ir.autodiff import gradient

    f = _composed_grad(op)
    wrt = tuple(i for i, p in enumerate(f.params) if p.type.dtype.is_float)
    seeds = tuple(i for i, g in enumerate(cotangents) if g is not None)
    found = b.inline(gradient(f, wrt, seeds), *op.operands, *(g for g in cotangents if g is not None))
    by_operand: dict[int, Value] = dict(zip(wrt, found, strict=True))
    return [by_operand.get(i) for i in range(len(op.operands))]


_ATTRS = {"causal": False, "precision": ""}

register(
    OpDef(
        "attention",
        "attention",
        _infer,
        _eval,
        "(out, logsumexp) of softmax(q k^T * scale + mask) v for q[B, H, T, D], k[B, Hk, S, D], v[B, Hk, S, E], scale[] and "
        "optionally a mask, over blocks of 64 keys in ascending order with a running maximum (Dao 2023, FlashAttention-2); a query that "
        "may see no key gives zeros.",
        _vjp,
        _ATTRS,
    )
)
register(
    OpDef(
        "attention_grad",
        "attention",
        _infer_grad,
        _eval_grad,
        "(dq, dk, dv) of attention from q, k, v, scale, logsumexp, delta (the sums of dout * out), dout and the mask; the scores "
        "are computed again (Dao 2023, FlashAttention-2).",
        _vjp_grad,
        _ATTRS,
        reads=("operands",),
    )
)
