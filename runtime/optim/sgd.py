"""Stochastic gradient descent with momentum (Sutskever et al. 2013, "On the importance of initialization and momentum")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.optim.optimizer import Optimizer, ParamGroup, State, compute_dtype, step_count, zeros_for
from graphc.runtime.tensor import Tensor


@composite(noinline=True)
def sgd(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    step: Tensor | None,
    lr: Tensor,
    momentum: Tensor,
    dampening: Tensor,
    weight_decay: Tensor,
    nesterov: bool,
    maximize: bool,
) -> tuple[Tensor, ...]:
    """g = grad + wd p; b = momentum b + (1 - dampening) g; p - lr b, or p - lr (g + momentum b) for Nesterov."""
    kind = compute_dtype(param)
    p = xp.astype(param, kind)
    g = xp.astype(-grad if maximize else grad, kind)
    g = g + xp.astype(weight_decay, kind) * p
    if buffer is None:
        return (xp.astype(p - xp.astype(lr, kind) * g, param.dtype),)
    m = xp.astype(momentum, kind)
    b = m * buffer + xp.astype(1 - dampening, kind) * g
    if step is not None:  # dampening does not apply to the first step
        b = xp.where(step == 0, g, b)
    direction = g + m * b if nesterov else b
    value = xp.astype(p - xp.astype(lr, kind) * direction, param.dtype)
    return (value, b) if step is None else (value, b, step + 1)


class SGD(Optimizer):
    """Gradient descent with momentum, dampening, Nesterov momentum and weight decay; the update is `sgd`.

    Without momentum there is no state; momentum cannot be switched on later.

    >>> import graphc as gc
    >>> w = gc.nn.Parameter(gc.asarray([1.0]))
    >>> opt = gc.optim.SGD([w], lr=0.5)
    >>> (w * w).sum().backward()
    >>> _ = opt.step()
    >>> w.item()
    0.0
    """

    together = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, numbers, {"nesterov": nesterov, "maximize": maximize})

    def check(self, values: Any) -> None:
        super().check(values)
        if values["nesterov"] and (float(values["momentum"]) == 0.0 or float(values["dampening"]) != 0.0):
            raise ValueError("SGD: Nesterov momentum needs momentum > 0 and dampening 0")

    def init_state(self, param: Tensor, group: ParamGroup) -> State:
        if group["momentum"] == 0.0:
            group.frozen["momentum"] = "SGD was made with momentum=0 and has no buffers for it; make it with momentum > 0"
            return {}
        state = {"momentum_buffer": zeros_for(param)}
        if group["dampening"] != 0.0:
            state["step"] = step_count(param)
        return state

    def update(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> tuple[Tensor, State]:
        n = group.tensors
        value, *changed = sgd(
            param,
            grad,
            state.get("momentum_buffer"),
            state.get("step"),
            n["lr"],
            n["momentum"],
            n["dampening"],
            n["weight_decay"],
            group.options["nesterov"],
            group.options["maximize"],
        )
        return value, dict(zip(state, changed, strict=True))
