"""Batch norm folded into the convolutions before it: in evaluation it is a scale and a shift of each channel."""

import torch
from torch import nn

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
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)  # (C,)
        transposed = isinstance(conv, nn.ConvTranspose2d)  # (in, out, k, k), a convolution's weight (out, in, k, k)
        shape = (1, -1, 1, 1) if transposed else (-1, 1, 1, 1)
        bias = norm.bias.double() - norm.running_mean.double() * scale
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
        conv.weight.copy_(conv.weight.double() * scale.view(shape))
        layer.norm = nn.ReLU(inplace=True)
    net.spec["eps"] = None
    return net
