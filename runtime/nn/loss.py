"""Loss functions. Each computes a loss for every element or sample; `reduced` then applies the reduction.

float16 and bfloat16 are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from graphc.runtime import ops as xp
from graphc.runtime.composite import composite
from graphc.runtime.nn.activation import log_softmax
from graphc.runtime.nn.wide import narrowed, widened
from graphc.runtime.tensor import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(name: str, reduction: str, allowed: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise `ValueError` unless `reduction` is one of `allowed`."""
    if reduction not in allowed:
        raise ValueError(f"{name}: reduction must be one of {', '.join(map(repr, allowed))}, not {reduction!r}")


def _reduce(name: str, loss: Tensor, reduction: str, like: Tensor, weight: Tensor | None = None) -> Tensor:
    """`loss` itself, its sum, or its mean (over the total `weight`, where there is one), in the dtype of `like`."""
    check_reduction(name, reduction)
    if reduction == "mean":
        loss = xp.mean(loss) if weight is None else xp.sum(loss) / xp.sum(weight)
    elif reduction == "sum":
        loss = xp.sum(loss)
    return narrowed(loss, like)


def _same_shape(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: input of shape {tuple(input.shape)} and target of shape {tuple(target.shape)} differ; "
            "reshape one of them (a silent broadcast would average the wrong elements)"
        )
    x = widened(input)
    return x, xp.astype(target, x.dtype)


@composite
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2."""
    x, y = _same_shape("mse_loss", input, target)
    d = x - y
    return _reduce("mse_loss", d * d, reduction, input)


@composite
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|."""
    x, y = _same_shape("l1_loss", input, target)
    return _reduce("l1_loss", xp.abs(x - y), reduction, input)


@composite
def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) elsewhere, d = input - target (Huber 1964)."""
    x, y = _same_shape("huber_loss", input, target)
    d = xp.abs(x - y)
    return _reduce("huber_loss", xp.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction, input)


@composite
def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere (Girshick 2015, arXiv:1504.08083); beta 0 is L1."""
    x, y = _same_shape("smooth_l1_loss", input, target)
    d = xp.abs(x - y)
    loss = d if beta == 0 else xp.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta)
    return _reduce("smooth_l1_loss", loss, reduction, input)


@composite
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(t log p + (1 - t) log(1 - p)) for probabilities p = input; the logs are held at >= -100, as in PyTorch."""
    p, t = _same_shape("binary_cross_entropy", input, target)
    # Where a log is held its gradient would be 0 * inf: both selects keep it out.
    log_p, log_q = _held_log(p), _held_log(1 - p)
    loss = (t - 1) * log_q - t * log_p
    return _reduce("binary_cross_entropy", loss if weight is None else loss * weight, reduction, input)


def _held_log(p: Tensor) -> Tensor:
    tiny = p < 3.720075976020836e-44  # exp(-100)
    return xp.where(tiny, -100, xp.log(xp.where(tiny, 1, p)))


@composite
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`binary_cross_entropy` of sigmoid(input), computed from log(1 + exp(-|x|)); `pos_weight` multiplies t log p."""
    name = "binary_cross_entropy_with_logits"
    x, t = _same_shape(name, input, target)
    # softplus(-x) = log(1 + exp(-|x|)) + max(-x, 0); selects give the right derivative at 0.
    soft = xp.log1p(xp.exp(xp.where(x >= 0, -x, x))) + xp.where(x < 0, -x, 0)
    scale = 1 if pos_weight is None else 1 + (pos_weight - 1) * t
    loss = (1 - t) * x + scale * soft
    return _reduce(name, loss if weight is None else loss * weight, reduction, input)


@composite
def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target * (log target - input) for log-probabilities `input` (Kullback & Leibler 1951); 0 where target is 0.

    reduction: also "batchmean", the sum over the first dimension's size, which is the divergence itself.
    """
    check_reduction("kl_div", reduction, (*REDUCTIONS, "batchmean"))
    x, t = _same_shape("kl_div", input, target)
    if log_target:
        loss = xp.exp(t) * (t - x)
    else:
        some = t > 0
        loss = xp.where(some, t * xp.log(xp.where(some, t, 1)), 0) - t * x
    if reduction == "batchmean":
        return narrowed(xp.sum(loss) / x.shape[0], input)
    return _reduce("kl_div", loss, reduction, input)


@composite
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input[n, target[n], ...] for log-probabilities input[N, C, ...] and classes target[N, ...].

    weight[C]: a factor for each class; the mean divides by the total weight. Targets equal to `ignore_index` count nothing.
    An unbatched input[C] takes a rank-0 target. Raises `IndexError` for a target outside the classes.
    """
    x = widened(input)
    picked, weights = _picked("nll_loss", x, target, weight, ignore_index)
    return _reduce("nll_loss", -picked * weights, reduction, input, weights)


@composite
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of softmax(input) along axis 1 of input[N, C, ...] with classes or probabilities.

    target: class indices [N, ...], or probabilities of the shape of input. weight[C], ignore_index: as `nll_loss`.
    label_smoothing s mixes the target with the uniform distribution: (1 - s) target + s / C
    (Szegedy et al. 2016, arXiv:1512.00567).
    """
    name = "cross_entropy"
    check_reduction(name, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be between 0 and 1, not {label_smoothing}")
    axis = _class_axis(input)
    classes = input.shape[axis]
    log_p = log_softmax(widened(input), axis)
    if target.dtype.is_float:
        if tuple(target.shape) != tuple(input.shape):
            raise ValueError(
                f"cross_entropy: probabilities of shape {tuple(target.shape)} need the shape of the input, "
                f"{tuple(input.shape)}; class indices would be integers"
            )
        t = xp.astype(target, log_p.dtype)
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / classes
        per_class = log_p * t if weight is None else log_p * t * _class_weight(weight, log_p, axis)
        loss = -xp.sum(per_class, axis=axis)
        if reduction == "mean":
            return narrowed(xp.sum(loss) / (loss.size if loss.ndim else 1), input)
        return _reduce(name, loss, reduction, input)
    picked, weights = _picked(name, log_p, target, weight, ignore_index)
    loss = -picked * weights
    if label_smoothing:
        every = log_p if weight is None else log_p * _class_weight(weight, log_p, axis)
        smooth = xp.where(target == ignore_index, 0, -xp.sum(every, axis=axis))
        loss = loss * (1 - label_smoothing) + smooth * (label_smoothing / classes)
    return _reduce(name, loss, reduction, input, weights)


def _class_axis(input: Tensor) -> int:
    if input.ndim == 0:
        raise ValueError("the input needs an axis of classes, and it is a scalar")
    return 0 if input.ndim == 1 else 1


def _class_weight(weight: Tensor, log_p: Tensor, axis: int) -> Tensor:
    return xp.astype(xp.reshape(weight, (weight.shape[0], *(1,) * (log_p.ndim - axis - 1))), log_p.dtype)


def _picked(
    name: str, log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """log_p at the target class, and the weight of each target (0 where ignored).

    Picking by comparison with iota, rather than by a gather, keeps loss and gradient in the softmax's own pass.
    """
    axis = _class_axis(log_p)
    classes = log_p.shape[axis]
    expected = (*log_p.shape[:axis], *log_p.shape[axis + 1 :])
    if not target.dtype.is_integer:
        raise TypeError(f"{name}: class targets are integers, not {target.dtype.name}")
    if tuple(target.shape) != expected:
        raise ValueError(
            f"{name}: an input of shape {tuple(log_p.shape)} needs class targets of shape {expected}, "
            f"not {tuple(target.shape)}"
        )
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ValueError(f"{name}: weight needs one factor for each of the {classes} classes, not {tuple(weight.shape)}")
    ignored = target == ignore_index
    # check_index counts negative indices from the end; here they are mistakes, so they are moved out of range.
    index = xp.where(ignored, 0, target)
    index = xp.check_index(xp.where(index < 0, index - classes, index), classes)
    positions = xp.reshape(xp.arange(classes, dtype=index.dtype, device=index.device), (classes, *(1,) * (log_p.ndim - axis - 1)))
    chosen = xp.expand_dims(index, axis=axis) == positions
    picked = xp.sum(xp.where(chosen, log_p, 0), axis=axis)
    if weight is None:
        weights = xp.astype(~ignored, log_p.dtype)
    else:
        each = xp.sum(xp.where(chosen, _class_weight(weight, log_p, axis), 0), axis=axis)
        weights = xp.where(ignored, 0, each)
    # Ignored positions must not turn an infinite log-probability into NaN by 0 * inf.
    return xp.where(ignored, 0, picked), weights
