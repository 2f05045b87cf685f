"""The rows of the table, one module for each family."""

from __future__ import annotations

import importlib

MODULES = ("start", "eager", "calls", "matmul", "elementwise", "reduction", "attention", "convolution", "training", "depth")


def load() -> None:
    """Register the rows of every module, in this order."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
