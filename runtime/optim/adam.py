"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) and AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from graphc.ir.types import F64
from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.optim.optimizer import Optimizer, ParamGroup, State, compute_dtype, step_count, zeros_for
from graphc.runtime.tensor import Tensor


@composite(noinline=True)
def adam(
    param: Tensor,
    grad: Tensor,
    step: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
    decoupled: bool,
    maximize: bool,
) -> tuple[Tensor, ...]:
    """m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps).

    Weight decay adds wd p to the gradient, or, `decoupled`, multiplies p by 1 - lr wd first. With `max_exp_avg_sq` the
    largest v so far divides (AMSGrad, Reddi et al. 2018, arXiv:1904.09237). Scalars are computed in float64.
    """
    kind = compute_dtype(param)
    p = xp.astype(param, kind)
    g = xp.astype(-grad if maximize else grad, kind)
    step = step + 1
    t = xp.astype(step, F64)
    step_size = xp.astype(lr / (1 - beta1**t), kind)
    root = xp.astype(xp.sqrt(1 - beta2**t), kind)
    if decoupled:
        p = p * xp.astype(1 - lr * weight_decay, kind)
    else:
        g = g + xp.astype(weight_decay, kind) * p
    m = exp_avg + xp.astype(1 - beta1, kind) * (g - exp_avg)
    v = xp.astype(beta2, kind) * exp_avg_sq + xp.astype(1 - beta2, kind) * g * g
    largest = v if max_exp_avg_sq is None else xp.maximum(max_exp_avg_sq, v)
    value = p - step_size * m / (xp.sqrt(largest) / root + xp.astype(eps, kind))
    value = xp.astype(value, param.dtype)
    return (value, step, m, v) if max_exp_avg_sq is None else (value, step, m, v, largest)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), with optional AMSGrad. For step t = 1, 2, ...:

        g = grad + weight_decay p
        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    betas is (b1, b2); `amsgrad` divides by the largest v so far; `maximize` takes -grad for grad.
    """

    together = True

    bounds: ClassVar[dict[str, bool]] = {"beta1": True, "beta2": True}
    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        numbers = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, numbers, {"amsgrad": amsgrad, "maximize": maximize})

    def init_state(self, param: Tensor, group: ParamGroup) -> State:
        state = {"step": step_count(param), "exp_avg": zeros_for(param), "exp_avg_sq": zeros_for(param)}
        if group.options["amsgrad"]:
            state["max_exp_avg_sq"] = zeros_for(param)
        return state

    def update(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> tuple[Tensor, State]:
        n = group.tensors
        value, *changed = adam(
            param,
            grad,
            state["step"],
            state["exp_avg"],
            state["exp_avg_sq"],
            state.get("max_exp_avg_sq"),
            n["lr"],
            n["beta1"],
            n["beta2"],
            n["eps"],
            n["weight_decay"],
            self.decoupled,
            group.options["maximize"],
        )
        return value, dict(zip(state, changed, strict=True))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101). For step t = 1, 2, ...:

        p = p (1 - lr weight_decay)
        m = b1 m + (1 - b1) grad
        v = b2 v + (1 - b2) grad^2
        p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
