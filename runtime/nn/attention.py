"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) and its multi-head layer."""

from __future__ import annotations

import math

from graphc.runtime import ops as xp
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
        seen = xp.expand_dims(xp.arange(rows), axis=-1) >= xp.arange(columns)
        scores = xp.where(seen, scores, -math.inf)
    if mask is not None:
        scores = xp.where(mask, scores, -math.inf) if mask.dtype.kind == "b" else scores + mask
    top = xp.stop_gradient(xp.max(scores, axis=-1, keepdims=True))
    e = xp.exp(scores - xp.where(top == -math.inf, 0, top))
    total = xp.sum(e, axis=-1, keepdims=True)
    return narrowed(e / xp.where(total == 0, 1, total), query)


@composite
def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    return xp.matmul(_weights(query, key, mask, causal, scale), value)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value.

    query[..., L, E], key[..., S, E], value[..., S, V] -> [..., L, V]. attn_mask broadcasts to [..., L, S]: boolean
    (True may attend) or added to the scores. is_causal lets position i see keys 0..i. scale: 1 / sqrt(E) unless given.
    dropout_p drops attention weights, always: pass 0 in evaluation. A query that may see no key gives zeros.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: pass attn_mask or is_causal=True, not both")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            "scaled_dot_product_attention needs query[..., L, E], key[..., S, E], value[..., S, V], not shapes "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if dropout_p == 0.0:
        return _attention(query, key, value, attn_mask, is_causal, factor)
    return xp.matmul(dropout(_weights(query, key, attn_mask, is_causal, factor), dropout_p), value)


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
        if not self.batch_first:
            query, key, value = (xp.permute_dims(x, (1, 0, 2)) for x in (query, key, value))
        n, length, width = query.shape
        heads, size = self.num_heads, width // self.num_heads
        parts = []
        for i, x in enumerate((query, key, value)):
            w = self.in_proj_weight[i * width : (i + 1) * width]
            b = None if self.in_proj_bias is None else self.in_proj_bias[i * width : (i + 1) * width]
            y = xp.reshape(linear(x, w, b), (n, x.shape[1], heads, size))
            parts.append(xp.permute_dims(y, (0, 2, 1, 3)))
        q, k, v = parts
        mask = self._mask(attn_mask, key_padding_mask, n, length, k.shape[2])
        causal = is_causal and attn_mask is None
        p = self.dropout if self.training else 0.0
        weights = dropout(_weights(q, k, mask, causal, 1 / math.sqrt(size)), p)
        y = xp.reshape(xp.permute_dims(xp.matmul(weights, v), (0, 2, 1, 3)), (n, length, width))
        y = self.out_proj(y)
        if not self.batch_first:
            y = xp.permute_dims(y, (1, 0, 2))
        if not need_weights:
            return y, None
        return y, xp.mean(weights, axis=1) if average_attn_weights else weights

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
