"""Max pooling that keeps its switches, and unpooling by them (paper 3.2.1, figure 3), for tensors of any kind.

The networks call `deconvnet.kernels` themselves, whose switches have two forms; here they have one.

>>> import torch
>>> x = torch.tensor([[[[1.0, 2.0, 7.0, 7.0], [4.0, 3.0, 7.0, 7.0]]]])  # (1, 1, 2, 4)
>>> values, switches = max_pool2d(x)
>>> values
tensor([[[[4., 7.]]]])
>>> switches  # the corner at the bottom left, and the first of four equal ones
tensor([[[[2, 0]]]], dtype=torch.uint8)
>>> max_unpool2d(values, switches)
tensor([[[[0., 0., 7., 0.],
          [4., 0., 0., 0.]]]])
"""

import torch
from torch import Tensor

from deconvnet import kernels


def max_pool2d(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling with stride 2: (B, C, H, W) -> values and switches, both (B, C, H//2, W//2).

    A switch is the corner of its 2x2 window that has the maximum, uint8: 0 and 1 above, 2 and 3 below. Among equal
    values the first wins. An odd last row or column is left out. Gradients flow through the values.
    """
    values, switches = kernels.max_pool(x.contiguous(memory_format=torch.channels_last))
    if switches.dtype != torch.uint8:  # indices into the map, whose width is even
        switches = (switches // (2 * values.shape[3]) % 2 * 2 + switches % 2).byte()
    return values, switches


def max_unpool2d(x: Tensor, switches: Tensor) -> Tensor:
    """Values at their switches, those of `max_pool2d`, and zero elsewhere: (B, C, H, W) -> (B, C, 2H, 2W)."""
    x = x.contiguous(memory_format=torch.channels_last)
    if not kernels.usable(x):
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device)[:, None] * 2 + switches // 2
        columns = torch.arange(width, device=x.device) * 2 + switches % 2
        switches = rows * (2 * width) + columns
    return kernels.unpool(x, switches)
