"""The functions of tensors in one namespace, under their array API names (and a few of PyTorch's).

`from graphc.runtime import ops as xp` is how the library on top uses them; `graphc` shows the same names.
"""

from __future__ import annotations

from typing import Any

from graphc.runtime import (
    creation,
    dtypes,
    indexing,
    interop,
    ops_composed,
    ops_elementwise,
    ops_layout,
    ops_linear,
    ops_reduce,
    ops_scan,
    ops_window,
)
from graphc.runtime.keywords import SYNONYMS, with_synonyms

_MODULES: dict[Any, tuple[str, ...]] = {
    ops_elementwise: ("logical_not", "where", "clip", "astype", "bitcast"),
    ops_reduce: ("sum", "prod", "mean", "var", "std", "max", "min", "any", "all", "argmax", "argmin"),
    ops_scan: ("cumulative_sum", "cumulative_prod"),
    ops_layout: (
        "reshape", "permute_dims", "matrix_transpose", "swapaxes", "moveaxis", "broadcast_to", "broadcast_arrays",
        "expand_dims", "squeeze", "flatten", "flip", "concat", "stack", "unstack", "split", "chunk", "roll", "tile",
        "repeat", "pad", "tril", "triu",
    ),
    ops_linear: ("matmul", "tensordot", "vecdot", "outer", "einsum"),
    ops_window: ("conv", "max_pool", "sum_pool", "check_index"),
    indexing: ("take", "take_along_axis", "gather", "put_along_axis", "index_add", "nonzero"),
    creation: (
        "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange", "linspace", "eye", "one_hot", "meshgrid",
    ),
    ops_composed: (
        "isclose", "allclose", "diag", "diagonal", "trace", "diff", "count_nonzero", "scatter_add",
    ),
    interop: ("asarray", "tensor", "from_numpy", "from_dlpack"),
}  # fmt: skip

_FUNCTIONS: dict[str, Any] = {name: getattr(module, name) for module, names in _MODULES.items() for name in names}
_FUNCTIONS |= {name: with_synonyms(name, _FUNCTIONS[name]) for name in SYNONYMS}

NAMES: dict[str, Any] = {
    **ops_elementwise.FUNCTIONS,
    **_FUNCTIONS,
    **dtypes.FUNCTIONS,
    "empty": creation.empty_tensor,
    "empty_like": creation.zeros_like,
    # PyTorch's names
    "cat": _FUNCTIONS["concat"],
    "permute": _FUNCTIONS["permute_dims"],
    "unsqueeze": _FUNCTIONS["expand_dims"],
    "clamp": _FUNCTIONS["clip"],
    "mul": ops_elementwise.FUNCTIONS["multiply"],
    "sub": ops_elementwise.FUNCTIONS["subtract"],
    "div": ops_elementwise.FUNCTIONS["divide"],
    "neg": ops_elementwise.FUNCTIONS["negative"],
    "cumsum": _FUNCTIONS["cumulative_sum"],
    "cumprod": _FUNCTIONS["cumulative_prod"],
    "transpose": _FUNCTIONS["swapaxes"],
}
globals().update(NAMES)


def __getattr__(name: str) -> Any:
    import difflib

    close = difflib.get_close_matches(name, NAMES)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise AttributeError(f"there is no tensor function {name!r}{hint}")
