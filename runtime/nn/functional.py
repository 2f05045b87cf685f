"""The functional forms of all layers and losses, under one name."""

from graphc.runtime.nn.activation import (
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    logsigmoid,
    logsumexp,
    relu,
    relu6,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from graphc.runtime.nn.attention import scaled_dot_product_attention
from graphc.runtime.nn.convolution import conv1d, conv2d, conv3d, conv_transpose2d
from graphc.runtime.nn.dropout import dropout, dropout2d
from graphc.runtime.nn.embedding import embedding, one_hot
from graphc.runtime.nn.linear import linear
from graphc.runtime.nn.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from graphc.runtime.nn.normalization import batch_norm, group_norm, layer_norm, rms_norm
from graphc.runtime.nn.pooling import adaptive_avg_pool2d, avg_pool1d, avg_pool2d, max_pool1d, max_pool2d
from graphc.runtime.nn.shape import normalize, pad

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout2d",
    "elu",
    "embedding",
    "gelu",
    "group_norm",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "logsumexp",
    "max_pool1d",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "relu6",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]
