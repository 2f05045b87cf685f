"""The operations, a file for each family; importing this package registers all of them."""

from graphc.ir.ops import (
    attention,
    compare,
    control,
    conv,
    create,
    dot,
    elementwise,
    indexing,
    layout,
    pool,
    random,
    reduce,
    scan,
)

__all__ = [
    "attention",
    "compare",
    "control",
    "conv",
    "create",
    "dot",
    "elementwise",
    "indexing",
    "layout",
    "pool",
    "random",
    "reduce",
    "scan",
]
