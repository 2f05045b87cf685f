"""Attention of many kinds for the tests of its kernels: operands, and the function of one operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from graphc.ir.function import Builder, Function, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import BOOL, TensorType, dtype

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """Sizes as in ir/ops/attention.py. mask: "bool" or "added" with its dimensions, or None."""

    shape: tuple[int, int, int, int, int, int, int]  # B, H, Hk, T, S, D, E
    causal: bool = False
    mask: tuple[str, tuple[int, ...]] | None = None
    kind: str = "float32"
    precision: str = ""

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), self.kind, self.precision, "causal" * self.causal]
        return " ".join(filter(None, [*parts, f"{self.mask[0]} {self.mask[1]}" if self.mask else ""]))

    def args(self, gradient: bool, seed: int = 0) -> list[Array]:
        """Operands of attention, or of attention_grad; the first query of a bool mask sees nothing."""
        random = np.random.default_rng(seed)
        b, h, hk, t, s, d, e = self.shape
        kind = dtype(self.kind).numpy
        wide = np.dtype(np.float64 if self.kind == "float64" else np.float32)

        def normal(*shape: int) -> Array:
            drawn = np.asarray(random.standard_normal(shape) * 1.5)
            # Rounding float32 operands to bfloat16 then is exact.
            return drawn.astype(dtype("bfloat16").numpy).astype(kind) if self.precision == "bf16" else drawn.astype(kind)

        args = [normal(b, h, t, d), normal(b, hk, s, d), normal(b, hk, s, e), np.asarray(0.37, wide)]
        mask = []
        if self.mask is not None:
            drawn = random.standard_normal(self.mask[1])
            if self.mask[0] == "bool":
                drawn[:, :, :1] = -1
            mask.append(drawn > 0.2 if self.mask[0] == "bool" else drawn.astype(kind))
        if gradient:
            logsumexp = interpret(self.function(False), [*args, *mask])[1]
            args += [logsumexp, random.standard_normal((b, h, t)).astype(wide), normal(b, h, t, e)]
        return [*args, *mask]

    def function(self, gradient: bool) -> Function:
        batch, heads, key_heads, queries, keys, depth, width = self.shape
        kind = dtype(self.kind)
        wide = kind if self.kind == "float64" else dtype("float32")
        row = (batch, heads, queries)
        types = [TensorType(kind, (*row, depth)), *(TensorType(kind, (batch, key_heads, keys, d)) for d in (depth, width)), TensorType(wide)]
        if gradient:
            types += [TensorType(wide, row), TensorType(wide, row), TensorType(kind, (*row, width))]
        if self.mask is not None:
            types.append(TensorType(BOOL if self.mask[0] == "bool" else kind, self.mask[1]))
        b = Builder("attention")
        params = [b.param(t) for t in types]
        name = "attention_grad" if gradient else "attention"
        return b.build(b.emit_op(name, *params, causal=self.causal, precision=self.precision).results)


def projected(b: Builder, x: Value) -> Any:
    """Self-attention of x[B, T, 3*H*D], as a layer has it: layout in front and behind."""
    size, length, width = (int(d) for d in x.type.shape)  # type: ignore[call-overload]
    heads, depth = 3, width // 9
    split = b.permute(b.reshape(x, shape=(size, length, 3, heads, depth)), axes=(2, 0, 3, 1, 4))
    parts = []
    for i in range(3):
        part = b.slice(split, start=(i, 0, 0, 0, 0), limit=(i + 1, size, heads, length, depth), stride=(1,) * 5)
        parts.append(b.reshape(part, shape=(size, heads, length, depth)))
    out, _ = b.attention(*parts, b.constant(value=np.asarray(0.5, np.float32)), causal=True)
    return b.reshape(b.permute(out, axes=(0, 2, 1, 3)), shape=(size, length, heads * depth))
