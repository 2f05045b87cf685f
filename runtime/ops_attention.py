"""Attention as tensor functions: what `nn.functional.scaled_dot_product_attention` and `nn.MultiheadAttention` dispatch.

The IR operation wants rank 4; the reshapes and permutations around it are layout that its kernels read through.
Both functions return logsumexp too, so that the gradient finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.ir.ops.attention import LARGEST_HEAD, accumulator
from graphc.ir.types import BOOL, Dim, Shape, size_of
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor
from graphc.runtime.dispatch import Op, apply_many, operand_of
from graphc.runtime.precision import attribute, setting
from graphc.runtime.spec import broadcast_shapes, promote_all

Attrs = tuple[Any, ...]


def fits(*head_sizes: Dim) -> bool:
    """Whether the IR operation takes heads of these sizes."""
    return all(isinstance(d, int) and 1 <= d <= LARGEST_HEAD for d in head_sizes)


def _attend(b: Builder, parts: Sequence[Value], rest: list[Value], attrs: Attrs) -> tuple[Value, Value]:
    """The operation on q, k, v of rank 4; rest: the scale if it is an operand, then the mask if there is one."""
    causal, scaled, _, *precision = attrs
    dtype = parts[0].type.dtype
    wide = accumulator(dtype)
    size = parts[0].type.shape[3]
    assert isinstance(size, int)
    scale = e.cast(b, rest[0], wide) if scaled else e.constant(b, 1 / math.sqrt(size), wide)
    mask = rest[scaled:]
    if mask and mask[0].type.dtype not in (BOOL, dtype, wide):
        mask = [e.cast(b, mask[0], wide)]
    found: tuple[Value, Value] = b.emit(
        "attention", *parts, scale, *mask, causal=causal, **attribute(tuple(precision), dtype)
    )
    return found


def _emit_attention(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> tuple[Value, Value]:
    """q[.., L, D], k[.., S, D], v[.., S, E]; attrs: causal, whether scale is an operand, whether heads are grouped."""
    grouped = attrs[2]
    *parts, = values[:3]
    rest = list(values[3:])
    dtype = promote_all([v.type.dtype for v in parts], list(weak[:3]))
    if not dtype.is_float:
        raise TypeError(f"attention is defined for floating point, not {dtype}; cast query, key and value with astype")
    q, k, v = (e.cast(b, x, dtype) for x in parts)
    mask = rest[-1] if len(rest) > attrs[1] else None
    leads = [x.type.shape[:-2] for x in (q, k, v)]
    heads = leads[0][-1:] if grouped else ()
    key_heads = leads[1][-1:] if grouped else ()
    outer = [lead[:-1] if grouped else lead for lead in leads]
    if mask is not None:
        outer.append(mask.type.shape[:-3] if grouped else mask.type.shape[:-2])
    lead = broadcast_shapes(*outer)
    if not grouped:
        # Heads that all share one key head are grouped heads.
        heads, shared = lead[-1:], all(x[-1:] in ((), (1,)) for x in leads[1:])
        key_heads, lead = ((1,) if shared else heads), lead[:-1]
    batch = size_of(lead)

    def four(x: Value, of: Shape) -> Value:
        x = e.broadcast(b, x, (*lead, *of, *x.type.shape[-2:]))
        return e.reshape(b, x, (batch, size_of(of), *x.type.shape[-2:]))

    q4, k4, v4 = four(q, heads), four(k, key_heads), four(v, key_heads)
    if mask is not None:
        rest[-1] = _mask4(b, mask, lead, (*q4.type.shape[:3], k4.type.shape[2]))
    out, logsumexp = _attend(b, (q4, k4, v4), rest, attrs)
    return e.reshape(b, out, (*lead, *heads, *out.type.shape[2:])), logsumexp


def _mask4(b: Builder, mask: Value, lead: Shape, scores: Shape) -> Value:
    """A mask that broadcasts to (*lead, heads, L, S) as one of rank 4 with the dimensions of the scores or 1."""
    shape = mask.type.shape
    shape = (1,) * (len(lead) + 3 - len(shape)) + shape
    outer, inner = shape[: len(shape) - 3], shape[-3:]
    wanted = tuple(d if d == 1 else s for d, s in zip(inner, scores[1:]))
    if any(d not in (1, s) for d, s in zip(inner, scores[1:])):
        raise ValueError(
            f"the mask {mask.type} does not broadcast to the scores [{', '.join(map(str, (*lead, *scores[1:])))}]: "
            "each of its dimensions must be equal or 1"
        )
    if all(d == 1 for d in outer):
        return e.reshape(b, mask, (1, *wanted))
    mask = e.broadcast(b, e.reshape(b, mask, shape), (*lead, *wanted))
    return e.reshape(b, mask, (scores[0], *wanted))


def _emit_heads(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> tuple[Value, Value]:
    """Projections [N, L, heads*D], or [L, N, heads*D], to the same layout; attrs: causal, False, (heads, batch first,
    packed), where packed means one operand [.., 3*heads*D] that holds all three."""
    heads, first, packed = attrs[2]
    count = 1 if packed else 3
    parts = []
    for x in values[:count]:
        *outer, width = x.type.shape
        split = e.reshape(b, x, (*outer, 3, heads, width // (3 * heads)) if packed else (*outer, heads, width // heads))
        if not packed:
            parts.append(e.permute(b, split, (0, 2, 1, 3) if first else (1, 2, 0, 3)))
            continue
        whole = e.permute(b, split, (2, 0, 3, 1, 4) if first else (2, 1, 3, 0, 4))
        for i in range(3):
            shape = whole.type.shape[1:]
            part = b.emit("slice", whole, start=(i, 0, 0, 0, 0), limit=(i + 1, *shape), stride=(1,) * 5)
            parts.append(e.reshape(b, part, shape))
    mask = list(values[count:])
    if mask:
        scores = (*parts[0].type.shape[:3], parts[1].type.shape[2])
        mask = [_mask4(b, mask[0], scores[:1], scores)]
    out, logsumexp = _attend(b, parts, mask, attrs)
    out = e.permute(b, out, (0, 2, 1, 3) if first else (2, 0, 1, 3))
    return e.reshape(b, out, (*out.type.shape[:2], size_of(out.type.shape[2:]))), logsumexp


_ATTENTION = Op("scaled_dot_product_attention", _emit_attention)
_HEADS = Op("multihead_attention", _emit_heads)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | Tensor | None, grouped: bool
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value, over leading dimensions that broadcast; scale: 1 / sqrt(D) if None.

    grouped: the last of the leading dimensions are heads, and query has a multiple of those of key and value.
    """
    operands = [query, key, value, *([] if scale is None else [scale]), *([] if mask is None else [mask])]
    inputs = [operand_of(x, "scaled_dot_product_attention") for x in operands]
    return apply_many(_ATTENTION, inputs, (causal, scale is not None, grouped, *setting.attrs))[0]


def attention_of_heads(
    projections: Sequence[Tensor], mask: Tensor | None, causal: bool, heads: int, batch_first: bool
) -> Tensor:
    """Attention of [N, L, heads*D] (or [L, N, heads*D]) in each head. projections: of query, key, value, or one of all three."""
    inputs = [operand_of(x, "multihead_attention") for x in (*projections, *([] if mask is None else [mask]))]
    return apply_many(_HEADS, inputs, (causal, False, (heads, batch_first, len(projections) == 1), *setting.attrs))[0]
