"""Optimizers, learning-rate schedules and gradient clipping."""

from graphc.runtime.nn.clip import clip_grad_norm_, clip_grad_value_
from graphc.runtime.optim import lr_scheduler
from graphc.runtime.optim.adagrad import Adagrad
from graphc.runtime.optim.adam import Adam, AdamW
from graphc.runtime.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from graphc.runtime.optim.optimizer import Optimizer, ParamGroup
from graphc.runtime.optim.rmsprop import RMSprop
from graphc.runtime.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "ParamGroup",
    "PolynomialLR",
    "RMSprop",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "lr_scheduler",
]
