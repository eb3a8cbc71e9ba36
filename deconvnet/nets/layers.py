"""The layer both networks are made of: convolution, batch norm where asked for, ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics come from `crops` images at a time, or from all of the batch (None).

    The release normalises over the 8 crops of its micro-batch. With `crops` = 8 a larger micro-batch, which fills the
    device better, computes the same thing.

    Training leaves the running statistics alone: `deconvnet.training.statistics` estimates them.
    """

    crops: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        parts = x.split(self.crops or len(x))
        normalised = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps) for part in parts
        ]
        return normalised[0] if len(parts) == 1 else torch.cat(normalised)


class Layer(nn.Module):
    """`conv`, then batch norm of epsilon `eps` unless that is None, then ReLU."""

    def __init__(self, conv: nn.Module, eps: float | None):
        super().__init__()
        self.conv = conv
        self.norm = nn.Identity() if eps is None else BatchNorm(conv.out_channels, eps=eps)
        if eps is not None:
            nn.init.constant_(self.norm.bias, 0.001)  # release: scale 1, shift 0.001

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), as `conv` has it."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


def batch_norms(net: nn.Module) -> dict[str, BatchNorm]:
    """Every batch norm of `net` by its name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNorm)}


def set_batch_norm_crops(net: nn.Module, crops: int | None) -> None:
    """Let every batch norm of `net` take its training statistics over `crops` images (None: the micro-batch)."""
    for module in batch_norms(net).values():
        module.crops = crops
