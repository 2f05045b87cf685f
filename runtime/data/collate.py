"""From samples to batches: stacking tensors, arrays and numbers inside tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from graphc.runtime.tensor import Tensor, asarray


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """The values of a tensor (without a copy on the CPU) or anything NumPy takes."""
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else asarray(value)


def default_collate(samples: Sequence[Any]) -> Any:
    """One batch from a list of samples of one structure.

    Tensors, arrays and numbers are stacked along a new first axis; Python floats become float32 and
    ints int64. Tuples, named tuples, lists and dicts are collated entry by entry; strings and bytes stay a list.
    Raises `TypeError` for other types and `ValueError` for shapes or lengths that differ.
    """
    first = samples[0]
    if isinstance(first, (str, bytes)):
        return list(samples)
    if isinstance(first, Mapping):
        return {key: default_collate([s[key] for s in samples]) for key in first}
    if isinstance(first, (tuple, list)):
        if len({len(s) for s in samples}) > 1:
            lengths = sorted({len(s) for s in samples})
            raise ValueError(f"samples of one batch have different numbers of entries: {lengths}")
        columns = [default_collate(column) for column in zip(*samples, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    if isinstance(first, (Tensor, np.ndarray, np.generic)):
        arrays = [as_array(s) for s in samples]
        shapes = sorted({a.shape for a in arrays})
        if len(shapes) > 1:
            raise ValueError(
                f"samples of one batch have different shapes {shapes}; pad them in the dataset or pass a collate_fn"
            )
        return asarray(np.stack(arrays))
    if isinstance(first, (bool, int)):
        return asarray(np.asarray(samples))
    if isinstance(first, float):
        return asarray(np.asarray(samples, dtype=np.float32))
    raise TypeError(
        f"default_collate cannot batch samples of type {type(first).__name__}; it knows tensors, NumPy arrays, "
        "numbers, strings, tuples, lists and dicts: pass a collate_fn"
    )
