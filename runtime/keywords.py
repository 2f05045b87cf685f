"""Keyword names: the functions of tensors take those of the array API, and PyTorch's for the same thing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

_AXIS = {"dim": "axis"}
_AXES = {"dim": "axis", "dims": "axis"}
_KEEP = {"keepdim": "keepdims"}
_DIAGONAL = {"diagonal": "k"}
# function -> PyTorch's keyword -> the function's own. Those in `{}` have PyTorch's in their signature.
SYNONYMS: dict[str, Mapping[str, str]] = {
    "squeeze": _AXES,
    "expand_dims": _AXES,
    "flip": _AXES,
    "unstack": _AXIS,
    "repeat": _AXIS,
    "take": {"dim": "axis"},
    "take_along_axis": _AXIS,
    "put_along_axis": _AXIS,
    "vecdot": _AXIS,
    "diff": _AXIS,
    "count_nonzero": {**_AXIS, **_KEEP},
    "diag": _DIAGONAL,
    "roll": {"shifts": "shift", "dims": "axis", "dim": "axis"},
    "tril": _DIAGONAL,
    "triu": _DIAGONAL,
    "permute_dims": {"dims": "axes"},
    "swapaxes": {"axis0": "axis1", "axis1": "axis2", "dim0": "axis1", "dim1": "axis2"},
    "broadcast_to": {"size": "shape"},
    "full": {"size": "shape"},
    "split": {"split_size_or_sections": "sizes", "split_size": "sizes"},
    "tensordot": {"dims": "axes"},
    **{name: {} for name in (
        "sum", "prod", "mean", "var", "std", "max", "min", "any", "all", "argmax", "argmin", "concat", "stack", "chunk",
        "clip", "reshape", "flatten", "cumulative_sum", "cumulative_prod", "gather", "index_add", "linspace", "arange", "pad",
    )},
}  # fmt: skip


def with_synonyms(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` taking the keywords of `SYNONYMS[name]` besides its own.

    Raises `TypeError` for any other, naming those there are, and for one thing given under two names.
    """
    names = SYNONYMS[name]

    @functools.wraps(f)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        return f(*args, **_translated(name, f, names, keywords)) if keywords else f(*args)

    return wrapper


@functools.cache
def _own(f: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(f).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def _translated(
    name: str, f: Callable[..., Any], names: Mapping[str, str], keywords: Mapping[str, Any]
) -> Mapping[str, Any]:
    own = _own(f)
    # First the function's own: `axis1` of swapaxes is the first axis in one library and the second in the other.
    if own.issuperset(keywords):
        return keywords
    out = {}
    for keyword, value in keywords.items():
        target = names.get(keyword, keyword)
        if target not in own:
            accepted = ", ".join(sorted({*own, *names}))
            raise TypeError(f"{name}: there is no keyword {keyword!r}; it takes {accepted}")
        if target in out:
            raise TypeError(f"{name}: {target!r} is given twice, by {' and '.join(keywords)}")
        out[target] = value
    return out
