"""RMSprop (Tieleman & Hinton 2012, Coursera lecture 6.5), centered as in Graves 2013, arXiv:1308.0850."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.optim.optimizer import Optimizer, ParamGroup, State, compute_dtype, zeros_for
from graphc.runtime.tensor import Tensor


@composite(noinline=True)
def rmsprop(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    grad_avg: Tensor | None,
    buffer: Tensor | None,
    lr: Tensor,
    alpha: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
    momentum: Tensor,
    maximize: bool,
) -> tuple[Tensor, ...]:
    """s = alpha s + (1 - alpha) g^2; p - lr g / (sqrt(s) + eps), with s - mean(g)^2 under the root if centered.

    With momentum b = momentum b + g / (sqrt(s) + eps) replaces the quotient.
    """
    kind = compute_dtype(param)
    p = xp.astype(param, kind)
    g = xp.astype(-grad if maximize else grad, kind)
    g = g + xp.astype(weight_decay, kind) * p
    rest = xp.astype(1 - alpha, kind)
    square = xp.astype(alpha, kind) * square_avg + rest * g * g
    changed = [square]
    spread = square
    if grad_avg is not None:
        mean = grad_avg + rest * (g - grad_avg)
        changed.append(mean)
        spread = square - mean * mean
    root = xp.sqrt(spread) + xp.astype(eps, kind)
    rate = xp.astype(lr, kind)
    if buffer is None:
        value = p - rate * g / root
    else:
        buffer = xp.astype(momentum, kind) * buffer + g / root
        changed.append(buffer)
        value = p - rate * buffer
    return (xp.astype(value, param.dtype), *changed)


class RMSprop(Optimizer):
    """Divides the gradient by a running root mean square; the update is `rmsprop`.

    Without momentum there is no buffer for it; momentum cannot be switched on later.
    """

    together = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        numbers = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, numbers, {"centered": centered, "maximize": maximize})

    def init_state(self, param: Tensor, group: ParamGroup) -> State:
        state = {"square_avg": zeros_for(param)}
        if group.options["centered"]:
            state["grad_avg"] = zeros_for(param)
        if group["momentum"] == 0.0:
            group.frozen["momentum"] = (
                "RMSprop was made with momentum=0 and has no buffers for it; make it with momentum > 0"
            )
        else:
            state["momentum_buffer"] = zeros_for(param)
        return state

    def update(self, param: Tensor, grad: Tensor, state: State, group: ParamGroup) -> tuple[Tensor, State]:
        n = group.tensors
        value, *changed = rmsprop(
            param,
            grad,
            state["square_avg"],
            state.get("grad_avg"),
            state.get("momentum_buffer"),
            n["lr"],
            n["alpha"],
            n["eps"],
            n["weight_decay"],
            n["momentum"],
            group.options["maximize"],
        )
        return value, dict(zip(state, changed, strict=True))
