"""Batch norm folded into the convolutions before it: in evaluation it is a scale and a shift of each channel."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deconvnet.nets.layers import BatchNormReLU, Layer


@torch.no_grad()
def fold(net: nn.Module) -> nn.Module:
    """Turn every convolution of `net` and the batch norm after it into one convolution with a bias, in place.

    The net, in evaluation mode, computes what it did up to rounding: weights are folded in float64 and rounded once,
    to their own type. Its `spec` then says that it has no batch norm. A folded net comes back as it is.
    """
    for layer in (module for module in net.modules() if isinstance(module, Layer)):
        conv, norm = layer.conv, layer.norm
        if not isinstance(norm, BatchNormReLU):
            continue
        weight, bias = folded(conv.weight, norm.state_dict(), norm.eps, isinstance(conv, nn.ConvTranspose2d))
        conv.weight.copy_(weight)
        conv.bias = nn.Parameter(bias)
        layer.norm = nn.ReLU(inplace=True)
    net.spec["eps"] = None
    return net


def folded(weight: Tensor, norm: Mapping[str, Tensor], eps: float, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias, `weight`, and the batch norm after it.

    norm: its state dict. transposed: weight is (in, out, k, k), not (out, in, k, k).
    """
    scale = norm["weight"].double() / torch.sqrt(norm["running_var"].double() + eps)  # (out,)
    bias = norm["bias"].double() - norm["running_mean"].double() * scale
    scale = scale.view((1, -1, 1, 1) if transposed else (-1, 1, 1, 1))
    return (weight.double() * scale).to(weight.dtype), bias.to(weight.dtype)
