"""The table of operations: one `OpDef` for each, registered by the modules of `ir/ops/`.

Everything that the compiler knows of an operation, but for how it is lowered, is in its `OpDef`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.types import TensorType

Array = np.ndarray[Any, Any]
Infer = Callable[[tuple[TensorType, ...], Attrs], tuple[TensorType, ...]]
Eval = Callable[[Sequence[Array], Attrs, tuple[TensorType, ...]], Sequence[Array]]
# vjp(b, op, cotangents) -> one cotangent (or None for zero) for each operand. `op` is the forward
# operation as it stands in the function being built: its operands and results may be read.
Vjp = Callable[[Builder, Operation, tuple[Value | None, ...]], Sequence[Value | None]]

REQUIRED = object()


class IRTypeError(TypeError):
    """An operation's operands or attributes break its type rule."""


@dataclass(frozen=True)
class OpDef:
    """One operation.

    family: "elementwise", "compare", "reduce", "scan", "layout", "create", "dot", "conv", "pool",
        "indexing", "random" or "control"; fusion decides by it.
    attrs: attribute name -> default, or `REQUIRED`.
    reads: what the gradient rule reads of the forward operation: any of "operands", "results",
        or "operand0", "operand1", ... A trace keeps only these alive.
    no_gradient: why there is no gradient rule, where there is none.
    """

    name: str
    family: str
    infer: Infer
    eval: Eval
    doc: str
    vjp: Vjp | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ("operands", "results")
    no_gradient: str = ""

    def complete(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """`attrs` with defaults filled in; raises `IRTypeError` for unknown or missing names."""
        for key in attrs:
            if key not in self.attrs:
                known = ", ".join(self.attrs) or "none"
                raise IRTypeError(f"{self.name} has no attribute {key!r}; it has: {known}")
        out = dict(attrs)
        for key, default in self.attrs.items():
            if key not in out:
                if default is REQUIRED:
                    raise IRTypeError(f"{self.name} needs the attribute {key!r}")
                out[key] = default
        return out


_TABLE: dict[str, OpDef] = {}
_loaded = False


def register(definition: OpDef) -> OpDef:
    if definition.name in _TABLE:
        raise ValueError(f"operation {definition.name} is registered twice")
    _TABLE[definition.name] = definition
    return definition


def lookup(name: str) -> OpDef:
    """The definition of operation `name`; raises `KeyError` with close names if there is none."""
    if name not in _TABLE:
        _load()
    try:
        return _TABLE[name]
    except KeyError:
        import difflib

        close = difflib.get_close_matches(name, _TABLE)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise KeyError(f"there is no operation {name!r}{hint}") from None


def operations() -> Mapping[str, OpDef]:
    """Every operation by name."""
    _load()
    return dict(_TABLE)


def _load() -> None:
    global _loaded
    if not _loaded:
        # Threads that come meanwhile wait for the import.
        import graphc.ir.ops  # noqa: F401  (registers every family)

        _loaded = True
