"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) and its multi-head layer."""

from __future__ import annotations

import math

from graphc.runtime import ops as xp
from graphc.runtime import ops_attention
from graphc.runtime.composite import composite
from graphc.runtime.nn import init
from graphc.runtime.nn.dropout import dropout
from graphc.runtime.nn.linear import Linear, linear
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter
from graphc.runtime.nn.wide import narrowed, widened
from graphc.runtime.tensor import Tensor


@composite
def _weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """softmax(query @ key^T * scale + mask) over the keys; rows that may see no key are zero."""
    scores = widened(xp.matmul(query * scale, xp.matrix_transpose(key)))
    if causal:
        rows, columns = scores.shape[-2:]
        seen = xp.expand_dims(xp.arange(rows, device=scores.device), axis=-1) >= xp.arange(columns, device=scores.device)
        scores = xp.where(seen, scores, -math.inf)
    if mask is not None:
        scores = xp.where(mask, scores, -math.inf) if mask.dtype.kind == "b" else scores + mask
    top = xp.stop_gradient(xp.max(scores, axis=-1, keepdims=True))
    e = xp.exp(scores - xp.where(top == -math.inf, 0, top))
    total = xp.sum(e, axis=-1, keepdims=True)
    return narrowed(e / xp.where(total == 0, 1, total), query)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value.

    query[..., L, E], key[..., S, E], value[..., S, V] -> [..., L, V]. attn_mask broadcasts to [..., L, S]: boolean
    (True may attend) or added to the scores. is_causal lets position i see keys 0..i. scale: 1 / sqrt(E) unless given.
    dropout_p drops attention weights, always: pass 0 in evaluation. enable_gqa: query has a multiple of the heads (dimension -3) of
    key and value, neighbours share theirs. A query that may see no key gives zeros. Without dropout, and for heads of at most 256
    elements, nothing of the size [L, S] is made.

    >>> import graphc as gc
    >>> q, k = gc.ones((2, 8, 5, 16)), gc.ones((2, 2, 5, 16))
    >>> gc.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True).shape
    (2, 8, 5, 16)
    """
    _check(query, key, value, attn_mask, is_causal, enable_gqa)
    if dropout_p == 0.0 and ops_attention.fits(query.shape[-1], value.shape[-1]):
        return ops_attention.attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (xp.repeat(x, groups, axis=-3) for x in (key, value))
    factor = 1 / math.sqrt(max(1, query.shape[-1])) if scale is None else scale
    weights = _weights(query, key, attn_mask, is_causal, factor)
    return xp.matmul(dropout(weights, dropout_p) if dropout_p else weights, value)


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> None:
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: pass attn_mask or is_causal=True, not both")
    shapes = f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
    ranks = [len(x.shape) for x in (query, key, value)]
    if min(ranks) < 2 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            "scaled_dot_product_attention needs query[..., L, E], key[..., S, E], value[..., S, V], not shapes " + shapes
        )
    if not enable_gqa:
        return
    if min(ranks) < 3 or key.shape[-3] != value.shape[-3] or not key.shape[-3] or query.shape[-3] % key.shape[-3]:
        raise ValueError(
            "scaled_dot_product_attention with enable_gqa needs query[..., Hq, L, E], key[..., H, S, E], "
            f"value[..., H, S, V] with Hq a multiple of H, not shapes {shapes}"
        )


class MultiheadAttention(Module):
    """Attention in `num_heads` subspaces of `embed_dim`, with input and output projections.

    Parameters as PyTorch's: in_proj_weight[3E, E] (query, key, value), in_proj_bias[3E], out_proj. Inputs are
    [L, N, E], or [N, L, E] with batch_first.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, batch_first: bool = False
    ) -> None:
        super().__init__()
        if num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.in_proj_weight = Parameter(init.empty((3 * embed_dim, embed_dim)))
        self.register_parameter("in_proj_bias", Parameter(init.empty((3 * embed_dim,))) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections anew: Xavier uniform for the inputs, zeros for the biases."""
        init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, attention weights or None).

        The masks follow PyTorch's layer, where True in a boolean mask means "may not attend": key_padding_mask[N, S],
        attn_mask[L, S] (or [N * heads, L, S]). The weights are [N, L, S], or [N, heads, L, S] if not averaged.
        """
        causal = is_causal and attn_mask is None
        p = self.dropout if self.training else 0.0
        length, n = query.shape[:2] if not self.batch_first else query.shape[1::-1]
        keys = key.shape[1 if self.batch_first else 0]
        mask = self._mask(attn_mask, key_padding_mask, n, length, keys)
        parts = self._projections(query, key, value)
        if not need_weights and p == 0.0 and ops_attention.fits(self.embed_dim // self.num_heads):
            return self.out_proj(ops_attention.attention_of_heads(parts, mask, causal, self.num_heads, self.batch_first)), None
        q, k, v = (self._heads(x) for x in (xp.split(parts[0], self.embed_dim, axis=-1) if len(parts) == 1 else parts))
        weights = dropout(_weights(q, k, mask, causal, 1 / math.sqrt(q.shape[-1])), p)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        y = self.out_proj(xp.reshape(xp.permute_dims(xp.matmul(weights, v), order), query.shape))
        if not need_weights:
            return y, None
        return y, xp.mean(weights, axis=1) if average_attn_weights else weights

    def _projections(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Of query, key and value; one of all three where they are the same tensor."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key and key is value:
            return [linear(query, weight, bias)]
        rows = [slice(i * width, (i + 1) * width) for i in range(3)]
        return [linear(x, weight[r], None if bias is None else bias[r]) for x, r in zip((query, key, value), rows)]

    def _heads(self, x: Tensor) -> Tensor:
        """A projection as [N, heads, L, size]."""
        x = xp.reshape(x, (*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads))
        return xp.permute_dims(x, (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, n: int, length: int, keys: int
    ) -> Tensor | None:
        mask = None
        if attn_mask is not None:
            mask = _allowed(attn_mask)
            if attn_mask.ndim == 3:
                mask = xp.reshape(mask, (n, self.num_heads, length, keys))
        if padding is None:
            return mask
        seen = xp.reshape(_allowed(padding), (n, 1, 1, keys))
        if mask is None:
            return seen
        if mask.dtype.kind == "b" and seen.dtype.kind == "b":
            return mask & seen
        return _added(mask) + _added(seen)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _allowed(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype.kind == "b" else mask


def _added(mask: Tensor) -> Tensor:
    return xp.where(mask, 0.0, -math.inf) if mask.dtype.kind == "b" else mask
