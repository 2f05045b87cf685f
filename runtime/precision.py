"""How exactly products of matrices and convolutions are computed where the hardware offers a choice.

One setting for the process. Products ask for it when they are dispatched, so it is part of what every cache and
every recording is found by.
"""

from __future__ import annotations

from graphc.ir.types import F32, DType
from graphc.runtime.grad_mode import local

# What a user says -> (the attribute of products of float32, that of all other floats)
LEVELS: dict[str, tuple[str, str]] = {
    "highest": ("", ""),
    "high": ("tf32", ""),
    "medium": ("bf16", ""),
    "exact": ("exact", "exact"),
}


class _Setting:
    """level: as set. attrs: what it adds to the attributes of a product when it is dispatched."""

    __slots__ = ("attrs", "level")

    def __init__(self) -> None:
        self.level = "highest"
        self.attrs: tuple[str, ...] = ()


setting = _Setting()


def set_matmul_precision(precision: str) -> None:
    """How products and convolutions of float32 tensors are computed on devices with tensor cores, from now on.

    precision: "highest", float32 by fused multiply-add; "high", operands rounded to tf32 (11 significant bits); "medium", to
        bfloat16; both summed in float32. "exact": as "highest", and float16 and bfloat16 products also give the
        bits of a CPU. On a CPU all four are the same. Raises `ValueError` for other names, and `RuntimeError` inside
        of a function that is being compiled.

    >>> import graphc as gc
    >>> gc.set_matmul_precision("high")
    >>> gc.get_matmul_precision()
    'high'
    >>> gc.set_matmul_precision("highest")
    """
    if precision not in LEVELS:
        known = ", ".join(f'"{name}"' for name in LEVELS)
        raise ValueError(f"set_matmul_precision: the precision is one of {known}, not {precision!r}")
    if local.tracer is not None:
        raise RuntimeError(
            "set_matmul_precision: a compiled or composite function is traced once and would not set it again; "
            "call it before the function"
        )
    setting.level = precision
    setting.attrs = () if precision == "highest" else (precision,)


def get_matmul_precision() -> str:
    """What `set_matmul_precision` set; "highest" at first."""
    return setting.level


def attribute(attrs: tuple[str, ...], dtype: DType) -> dict[str, str]:
    """The attribute `precision` of a product of operands of this element type; attrs: as in `setting` at its dispatch."""
    if not attrs or not dtype.is_float:
        return {}
    float32, others = LEVELS[attrs[0]]
    return {"precision": float32 if dtype is F32 else others}


__all__ = ["get_matmul_precision", "set_matmul_precision"]
