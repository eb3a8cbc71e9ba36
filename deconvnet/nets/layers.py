"""The layer that both networks are made of: convolution, batch norm where asked for, ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet import kernels


class BatchNormReLU(nn.BatchNorm2d):
    """Batch norm and ReLU; in training the statistics come from `crops` images at a time, or from all of them (None).

    The release normalises over the 8 crops of its micro-batch. With `crops` = 8 a larger micro-batch, which fills the
    device better, computes the same thing.

    Training leaves the running statistics alone: `deconvnet.training.statistics` estimates them.
    """

    crops: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.training:
            return kernels.batch_norm_relu(x, self.weight, self.bias, self.eps, self.crops)
        return F.relu(super().forward(x), inplace=True)


class Layer(nn.Module):
    """`conv`, then batch norm of epsilon `eps` unless that is None, then ReLU.

    Under batch norm a convolution has no bias: the mean that is taken off takes it off, too (the release has 16,704 of
    them in DeconvNet, without effect).
    """

    def __init__(self, conv: nn.Module, eps: float | None):
        super().__init__()
        self.conv = conv
        self.norm = nn.ReLU(inplace=True) if eps is None else BatchNormReLU(conv.out_channels, eps=eps)
        if eps is not None:
            conv.bias = None
            nn.init.constant_(self.norm.bias, 0.001)  # release: scale 1, shift 0.001

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), as `conv` has it."""
        return self.norm(self.conv(x))


class FcConv(nn.Conv2d):
    """A convolution without padding that is one matrix product where its kernel covers the map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H - k + 1, W - k + 1)."""
        if x.shape[2:] != self.weight.shape[2:]:
            return super().forward(x)
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1)  # (out, k*k*in), a view of channels-last memory
        out = F.linear(x.permute(0, 2, 3, 1).flatten(1), kernel, self.bias)  # (B, out)
        return out[:, :, None, None]


class FcDeconv(nn.ConvTranspose2d):
    """A transposed convolution of a 1x1 map: one matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 1, 1) -> (B, out, k, k)."""
        out, *kernel = self.weight.shape[1:]
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # (in, k*k*out), a view of channels-last memory
        x = (x.flatten(1) @ matrix).unflatten(1, (*kernel, out)).permute(0, 3, 1, 2)  # (B, out, k, k)
        return x if self.bias is None else x + self.bias[:, None, None]


class Dropout(nn.Module):
    """Dropout whose mask of every crop follows from the crop's seed, whatever batch it is in.

    seeds: of the crops of the next batch, set by `set_seeds`; PyTorch's own dropout where there are none.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share, self.seeds = share, None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training or not self.share:
            return x
        if self.seeds is None:
            return F.dropout(x, self.share)
        generator = torch.Generator("cpu" if x.is_meta else x.device)
        kept = torch.empty_like(x)
        for mask, seed in zip(kept, self.seeds, strict=True):
            mask.bernoulli_(1 - self.share, generator=generator.manual_seed(seed))
        return x * kept / (1 - self.share)


def batch_norms(net: nn.Module) -> dict[str, BatchNormReLU]:
    """Every batch norm of `net` by its name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, BatchNormReLU)}


def set_batch_norm_crops(net: nn.Module, crops: int | None) -> None:
    """Let every batch norm of `net` take its training statistics over `crops` images (None: the micro-batch)."""
    for module in batch_norms(net).values():
        module.crops = crops


def set_seeds(net: nn.Module, seeds: list[int]) -> None:
    """Give every dropout of `net` a seed for each crop of the next batch, another one in each of them."""
    for number, module in enumerate(m for m in net.modules() if isinstance(m, Dropout)):
        module.seeds = [(seed * 16 + number) % 2**63 for seed in seeds]
