"""Bare words that mean something else than a symbolic dimension where an attribute value stands."""

from __future__ import annotations

from typing import Any

from graphc.ir.types import ALL_DTYPES

CONSTANT_WORDS: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "nan": float("nan"),
    "inf": float("inf"),
}
DTYPE_WORDS = {word: d for d in ALL_DTYPES for word in (d.name, d.short)}
RESERVED_WORDS = frozenset(CONSTANT_WORDS) | frozenset(DTYPE_WORDS)
