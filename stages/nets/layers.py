"""The layer both networks are made of: convolution, batch norm where asked for, ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics come from `crops` images at a time, or from all of the batch (None).

    The release normalises over the 8 crops of its micro-batch. With `crops` = 8 a larger micro-batch, which fills the
    device better, computes the same thing.
    """

    crops: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.crops is None or len(x) <= self.crops:
            return super().forward(x)
        return torch.cat([super(BatchNorm, self).forward(part) for part in x.split(self.crops)])


class Layer(nn.Module):
    """`conv`, then batch norm of epsilon `eps` unless that is None, then ReLU."""

    def __init__(self, conv: nn.Module, eps: float | None):
        super().__init__()
        self.conv = conv
        self.norm = nn.Identity() if eps is None else BatchNorm(conv.out_channels, eps=eps)
        if eps is not None:
            nn.init.constant_(self.norm.bias, 0.001)  # release: scale 1, shift 0.001

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


def set_batch_norm_crops(net: nn.Module, crops: int | None) -> None:
    """Let every batch norm of `net` take its training statistics over `crops` images (None: the micro-batch)."""
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.crops = crops
