"""Max pooling that remembers where each maximum stood (its switch), and the unpooling that puts values back there.

Unpooling is the transpose of pooling's backward pass and the reverse, so two primitives serve all four directions:
`_place` writes values to their switches with zeros around them, `_pick` reads them. A switch is one byte, the corner of
its 2x2 window (0 1 / 2 3), where torch keeps an int64 index into the map: an eighth of the memory, no index scatter,
and channels-last stays channels-last. Among equal values the first in reading order wins, as in torch.

Eager CPU kernels are the exception: there torch's own pair was measured faster (2 cores, 32 x 16 x 64 x 64 bfloat16,
forward and backward: 6 ms against 14 ms), so `pool` uses it and returns its int64 indices as switches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling with stride 2: (B, C, H, W) -> values and switches, both (B, C, H//2, W//2)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return F.max_pool2d(x, 2, return_indices=True)
    return corner_pool(x)


def unpool(x: Tensor, switches: Tensor) -> Tensor:
    """Values at their switches, zero elsewhere: (B, C, H, W) -> (B, C, 2H, 2W)."""
    if switches.dtype == torch.int64:
        return F.max_unpool2d(x, switches, 2)
    return corner_unpool(x, switches)


def corner_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """`pool` with one-byte switches. An odd last row or column is dropped, as max pooling drops it."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return _Pool.apply(x[:, :, :height, :width])


def corner_unpool(x: Tensor, switches: Tensor) -> Tensor:
    """`unpool` from one-byte switches."""
    return _Unpool.apply(x, switches)


def _corners(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views (B, C, H/2, W/2) of the four corners of every 2x2 window, in reading order."""
    return x[:, :, ::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]


def _place(x: Tensor, switches: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    out = x.new_empty(batch, channels, 2 * height, 2 * width).contiguous(memory_format=layout)
    for index, corner in enumerate(_corners(out)):
        corner.copy_(x * (switches == index))
    return out


def _pick(x: Tensor, switches: Tensor) -> Tensor:
    first, second, third, fourth = _corners(x)
    left = (switches & 1) == 0
    return torch.where(switches < 2, torch.where(left, first, second), torch.where(left, third, fourth))


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        first, second, third, fourth = _corners(x)
        top, bottom = torch.maximum(first, second), torch.maximum(third, fourth)
        right = torch.where(top >= bottom, second > first, fourth > third)
        switches = right.to(torch.uint8) + 2 * (bottom > top).to(torch.uint8)
        ctx.save_for_backward(switches)
        ctx.mark_non_differentiable(switches)
        return torch.maximum(top, bottom), switches

    @staticmethod
    def backward(ctx, gradient, _):
        return _place(gradient, *ctx.saved_tensors)


class _Unpool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, switches):
        ctx.save_for_backward(switches)
        return _place(x, switches)

    @staticmethod
    def backward(ctx, gradient):
        return _pick(gradient, *ctx.saved_tensors), None
