"""Embedding tables and one-hot codes."""

from __future__ import annotations

from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn import init
from graphc.runtime.nn.module import Module
from graphc.runtime.nn.parameter import Parameter, assign
from graphc.runtime.tensor import Tensor, no_grad


@composite
def embedding(index: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight[index]: integers [...] and weight[V, D] -> [..., D]; no gradient reaches row `padding_idx`."""
    if not index.dtype.is_integer:
        raise TypeError(f"embedding needs integer indices, not {index.dtype.name}; cast them with astype")
    rows = xp.take(weight, index, axis=0)
    if padding_idx is None:
        return rows
    skipped = xp.expand_dims(index == padding_idx % weight.shape[0], axis=-1)
    return xp.where(skipped, xp.stop_gradient(rows), rows)


@composite
def _one_hot(index: Tensor, num_classes: int) -> Tensor:
    index = xp.check_index(index, num_classes)
    classes = xp.arange(num_classes, dtype=index.dtype, device=index.device)
    return xp.astype(xp.expand_dims(index, axis=-1) == classes, "int64")


def one_hot(index: Tensor, num_classes: int = -1) -> Tensor:
    """int64[..., num_classes] with 1 at `index`; -1 takes the largest index + 1, which waits for the values."""
    if not index.dtype.is_integer:
        raise TypeError(f"one_hot needs integer indices, not {index.dtype.name}; cast them with astype")
    if num_classes == -1:
        num_classes = int(xp.max(index)) + 1
    if num_classes <= 0:
        raise ValueError(f"one_hot needs num_classes > 0 (or -1), not {num_classes}")
    return _one_hot(index, num_classes)


class Embedding(Module):
    """A table of `num_embeddings` rows of `embedding_dim`, drawn from the normal distribution N(0, 1).

    padding_idx: a row that starts as zeros and gets no gradient.

    >>> import graphc as gc
    >>> gc.nn.Embedding(10, 4)(gc.asarray([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"Embedding: padding_idx {padding_idx} is outside the {num_embeddings} rows")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = Parameter(init.empty((num_embeddings, embedding_dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                row = xp.expand_dims(xp.arange(self.num_embeddings, device=self.weight.device), axis=-1) == self.padding_idx
                assign(self.weight, xp.where(row, 0.0, self.weight))

    def forward(self, index: Tensor) -> Tensor:
        return embedding(index, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        text: Any = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"
