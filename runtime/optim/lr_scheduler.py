"""Learning-rate schedules. Each is a closed form: lr = base * factor(epoch), or a formula of base and epoch.

A scheduler writes the groups' "lr" when it is made (epoch 0) and at every `step()`. The base rate of a
group is its "initial_lr", set by the first scheduler that sees it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphc.runtime.optim.optimizer import Optimizer
from graphc.runtime.tensor import Tensor, asarray

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


def __dir__() -> list[str]:
    return __all__


class LRScheduler:
    """The base class: a subclass defines `rate(base, epoch, group)`."""

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__} needs an Optimizer, not {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.epoch = 0
        for group in optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = group["lr"]
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self._write()

    def rate(self, base: float, epoch: int, group: int) -> float:
        """The learning rate of group number `group` in epoch `epoch`, counted from 0."""
        raise TypeError(f"{type(self).__name__} defines no rate(base, epoch, group)")

    def step(self) -> None:
        """Go to the next epoch."""
        self.epoch += 1
        self._write()

    def _write(self) -> None:
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.rate(base, self.epoch, i)

    def get_last_lr(self) -> list[float]:
        """The learning rates that are set, one for each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def __repr__(self) -> str:
        fixed = {"optimizer", "epoch", "base_lrs"}
        own = "".join(f"{k}={v!r}, " for k, v in self.__dict__.items() if k not in fixed and not k.startswith("_"))
        rates = ", ".join(f"{r:g}" for r in self.get_last_lr())
        return f"{type(self).__name__}({own}epoch={self.epoch}, lr={rates})"

    def state_dict(self) -> dict[str, Tensor]:
        """The epoch, as a tensor that `graphc.save` takes."""
        return {"epoch": asarray(self.epoch, dtype="int64")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the epoch of `state` and set its learning rates."""
        if "epoch" not in state:
            raise ValueError(f"{type(self).__name__}.load_state_dict: the state has no 'epoch'")
        self.epoch = int(state["epoch"])
        self._write()


class LambdaLR(LRScheduler):
    """base * lr_lambda(epoch), with one function or one for each group."""

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]
    ) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"LambdaLR got {len(self.lr_lambdas)} functions for {groups} parameter groups")
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return base * self.lr_lambdas[group](epoch)


class StepLR(LRScheduler):
    """base * gamma^floor(epoch / step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size <= 0:
            raise ValueError(f"StepLR needs step_size > 0, not {step_size}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return base * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """base * gamma^(how many milestones have been reached)."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """base * gamma^epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return base * self.gamma**epoch


class LinearLR(LRScheduler):
    """base times a factor that goes from start_factor to end_factor over total_iters epochs, then stays."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        if not 0.0 < start_factor <= 1.0 or not 0.0 <= end_factor <= 1.0 or total_iters <= 0:
            raise ValueError(
                "LinearLR needs 0 < start_factor <= 1, 0 <= end_factor <= 1 and total_iters > 0, not "
                f"{start_factor}, {end_factor}, {total_iters}"
            )
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        part = min(epoch, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * part)


class ConstantLR(LRScheduler):
    """base * factor for total_iters epochs, then base."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return base * self.factor if epoch < self.total_iters else base


class PolynomialLR(LRScheduler):
    """base * (1 - epoch / total_iters)^power, then 0."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        if total_iters <= 0:
            raise ValueError(f"PolynomialLR needs total_iters > 0, not {total_iters}")
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return float(base * (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power)


class CosineAnnealingLR(LRScheduler):
    """eta_min + (base - eta_min) (1 + cos(pi epoch / T_max)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max <= 0:
            raise ValueError(f"CosineAnnealingLR needs T_max > 0, not {T_max}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class OneCycleLR(LRScheduler):
    """Up to max_lr and down again by cosines (Smith & Topin 2018, arXiv:1708.07120), stepped once a batch.

    It starts at max_lr / div_factor, reaches max_lr after the fraction `pct_start` of total_steps, and ends at the
    start / final_div_factor. Momentum is left alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if total_steps <= 1 or not 0.0 < pct_start < 1.0:
            raise ValueError(
                f"OneCycleLR needs total_steps > 1 and 0 < pct_start < 1, not {total_steps} and {pct_start}"
            )
        self.max_lr, self.total_steps, self.pct_start = max_lr, total_steps, pct_start
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        start = self.max_lr / self.div_factor
        peak, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        at = min(epoch, last)
        if at <= peak:
            return _cosine(start, self.max_lr, at / peak)
        return _cosine(self.max_lr, start / self.final_div_factor, (at - peak) / (last - peak))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class SequentialLR(LRScheduler):
    """One scheduler after the other: number i from milestones[i - 1] on, its own epochs counted from there."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        if len(self.schedulers) != len(self.milestones) + 1 or sorted(self.milestones) != self.milestones:
            raise ValueError(
                f"SequentialLR needs one ascending milestone less than its {len(self.schedulers)} schedulers, "
                f"not {self.milestones}"
            )
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        which = bisect.bisect_right(self.milestones, epoch)
        return self.schedulers[which].rate(base, epoch - (self.milestones[which - 1] if which else 0), group)


class ReduceLROnPlateau:
    """Multiplies the rates by `factor` when a number has not improved for more than `patience` epochs.

    mode: "min" or "max", whether less or more is better. An improvement is one by more than `threshold`: of the best
    value so far ("rel"), or as it is ("abs"). After a reduction `cooldown` epochs do not count. No rate goes
    below `min_lr`, and changes below `eps` are not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"ReduceLROnPlateau needs an Optimizer, not {type(optimizer).__name__}")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceLROnPlateau: mode is 'min' or 'max' and threshold_mode 'rel' or 'abs', not {mode!r} and {threshold_mode!r}"
            )
        if not 0.0 < factor < 1.0:
            raise ValueError(f"ReduceLROnPlateau needs 0 < factor < 1, not {factor}")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.min_lr, self.eps = cooldown, min_lr, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, metrics: Any) -> None:
        """Take the number of an epoch: a float, or a tensor of one element."""
        value = float(metrics)
        if self._improves(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            for group in self.optimizer.param_groups:
                old = float(group["lr"])
                new = max(old * self.factor, self.min_lr)
                if old - new > self.eps:
                    group["lr"] = new

    def _improves(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        if math.isinf(self.best):
            return sign * value < sign * self.best
        margin = self.threshold * (abs(self.best) if self.threshold_mode == "rel" else 1.0)
        return sign * value < sign * self.best - margin

    def get_last_lr(self) -> list[float]:
        """The learning rates that are set, one for each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Tensor]:
        """What `step` remembers, as tensors that `graphc.save` takes."""
        return {name: asarray(getattr(self, name), dtype=kind) for name, kind in _REMEMBERED.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` holds. The rates are the optimizer's state."""
        missing = [name for name in _REMEMBERED if name not in state]
        if missing:
            raise ValueError(f"ReduceLROnPlateau.load_state_dict: the state has no {', '.join(map(repr, missing))}")
        self.best = float(state["best"])
        self.num_bad_epochs, self.cooldown_counter = int(state["num_bad_epochs"]), int(state["cooldown_counter"])

    def __repr__(self) -> str:
        rates = ", ".join(f"{r:g}" for r in self.get_last_lr())
        return f"ReduceLROnPlateau(mode={self.mode!r}, factor={self.factor}, patience={self.patience}, lr={rates})"


_REMEMBERED = {"best": "float64", "num_bad_epochs": "int64", "cooldown_counter": "int64"}
