"""Adagrad (Duchi, Hazan & Singer 2011, JMLR 12)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphc.ir.types import F64
from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.optim.optimizer import Optimizer, ParamGroup, State, compute_dtype, step_count, zeros_for
from graphc.runtime.tensor import Tensor


@composite(noinline=True)
def adagrad(
    param: Tensor,
    grad: Tensor,
    step: Tensor,
    total: Tensor,
    lr: Tensor,
    lr_decay: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
    maximize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """s += g^2; p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)."""
    kind = compute_dtype(param)
    p = xp.astype(param, kind)
    g = xp.astype(-grad if maximize else grad, kind)
    g = g + xp.astype(weight_decay, kind) * p
    rate = xp.astype(lr / (1 + xp.astype(step, F64) * lr_decay), kind)
    total = total + g * g
    value = p - rate * g / (xp.sqrt(total) + xp.astype(eps, kind))
    return xp.astype(value, param.dtype), step + 1, total


class Adagrad(Optimizer):
    """Divides the gradient by the root of the sum of all its squares. For step t = 1, 2, ...:

        s = s + g^2
        p = p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)
    """

    together = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        if not initial_accumulator_value >= 0.0:
            raise ValueError(f"Adagrad needs initial_accumulator_value >= 0, not {initial_accumulator_value}")
        self._initial = initial_accumulator_value
        numbers = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, numbers, {"maximize": maximize})

    def init_state(self, param: Tensor, group: ParamGroup) -> State:
        return {"step": step_count(param), "sum": zeros_for(param, self._initial)}

    def update(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> tuple[Tensor, State]:
        n = group.tensors
        value, step, total = adagrad(
            param,
            grad,
            state["step"],
            state["sum"],
            n["lr"],
            n["lr_decay"],
            n["eps"],
            n["weight_decay"],
            group.options["maximize"],
        )
        return value, {"step": step, "sum": total}
