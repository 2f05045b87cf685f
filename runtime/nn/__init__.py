"""Neural-network layers, their functional forms, initialisation and gradient clipping."""

from typing import Any

from graphc.runtime.nn import functional, init
from graphc.runtime.nn.activation import (
    ELU,
    GELU,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from graphc.runtime.nn.attention import MultiheadAttention
from graphc.runtime.nn.clip import clip_grad_norm_, clip_grad_value_
from graphc.runtime.nn.container import ModuleDict, ModuleList, ParameterList, Sequential
from graphc.runtime.nn.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from graphc.runtime.nn.dropout import Dropout, Dropout2d
from graphc.runtime.nn.embedding import Embedding
from graphc.runtime.nn.linear import Flatten, Identity, Linear
from graphc.runtime.nn.module import HookHandle, IncompatibleKeys, Module
from graphc.runtime.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    LayerNorm,
    RMSNorm,
)
from graphc.runtime.nn.parameter import Parameter
from graphc.runtime.nn.pooling import AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d

_LOSSES = (
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
)

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "HookHandle",
    "Identity",
    "IncompatibleKeys",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "Parameter",
    "ParameterList",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "clip_grad_norm_",
    "clip_grad_value_",
    "functional",
    "init",
]


def __getattr__(name: str) -> Any:
    # The loss classes live in graphc.runtime.losses, which needs this package first.
    if name in _LOSSES:
        from graphc.runtime import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LOSSES])
