"""FCN-32s, 16s and 8s (Long, Shelhamer, Darrell, CVPR 2015): VGG-16 on whole images, scores of several strides added.

The paper pads the input of FCN-8s by 100 and crops each map by a fixed offset to line it up with the next. All of it
follows from the side k of fc6's kernel (7 there) and the final stride s, worked out from the centres of the cells:

    padding of conv1_1             16 k - 16 + s / 2     (100) the least with which the scores cover every image
    of pool4 against fc7's scores  k - 2                 (5)
    of pool3 against pool4's       2 k - 5               (9)
    of the image                   31                    (31)

Pooling rounds the size up, as Caffe's does.
"""

import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.nets.layers import Dropout
from deconvnet.nets.vgg import VGG16
from deconvnet.settings import Size


class FCN(nn.Module):
    """Whole images to class scores, at stride 8 (FCN-8s), 16 or 32; about 134 M parameters at VGG-16's size.

    skip_scales: factors of the scores of pool4 and pool3 (at-once training: 0.01 and 0.0001). dropout: of fc6 and fc7.
    The score layers start at 0, the upsampling filters bilinear; the last upsampling stays so.
    """

    def __init__(
        self, size: Size, classes: int, eps: float | None, stride: int = 8, skip_scales=(0.01, 0.0001),
        dropout: float = 0.5,
    ):  # fmt: skip
        super().__init__()
        self.spec = {
            "kind": "fcn", "size": dataclasses.asdict(size), "classes": classes, "eps": eps, "stride": stride,
            "skip_scales": list(skip_scales), "dropout": dropout,
        }  # fmt: skip
        self.encoder = VGG16(size, eps)
        self.stride, self.skip_scales = stride, tuple(skip_scales)
        self.dropout6, self.dropout7 = Dropout(dropout), Dropout(dropout)
        self.score_fc7 = nn.Conv2d(size.fc_width, classes, 1)
        self.score_pools, self.upsamplings = nn.ModuleList(), nn.ModuleList()
        for channels in (8 * size.width, 4 * size.width)[: {32: 0, 16: 1, 8: 2}[stride]]:  # pool4, pool3
            self.score_pools.append(nn.Conv2d(channels, classes, 1))
            self.upsamplings.append(nn.ConvTranspose2d(classes, classes, 4, stride=2, bias=False))
        for score in (self.score_fc7, *self.score_pools):
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)
        own = torch.from_numpy(np.eye(classes, dtype=np.float32))[:, :, None, None]  # each class upsampled by itself
        for upsampling in self.upsamplings:
            with torch.no_grad():
                upsampling.weight.copy_(own * bilinear(2))

    def set_skip_scales(self, scales) -> None:
        """Change the factors of the scores of pool4 and pool3."""
        self.skip_scales, self.spec["skip_scales"] = tuple(scales), list(scales)

    def pools(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised and padded images -> pool1 to pool5; pool n is (B, C, H/2^n, W/2^n), rounded up."""
        return self.encoder.blocks(x, functools.partial(F.max_pool2d, kernel_size=2, ceil_mode=True))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, 0 to 255 -> (B, classes, H, W) scores before the softmax."""
        height, width = images.shape[-2:]
        kernel = self.encoder.size.fc_kernel  # height, width
        down, right = (16 * k - 16 + self.stride // 2 - 1 for k in kernel)  # conv1_1 pads by the last one itself
        pools = self.pools(F.pad(self.encoder.normalise(images), [right, right, down, down]))
        x = self.dropout6(self.encoder.fc6(pools[4]))
        x = self.dropout7(self.encoder.fc7(x))
        x = self.score_fc7(x)  # (B, classes, H/32, W/32), about
        skips = zip(
            (pools[3], pools[2]), ([k - 2 for k in kernel], [2 * k - 5 for k in kernel]), self.skip_scales,
            self.score_pools, self.upsamplings, strict=False,  # FCN-16s and 32s have fewer scores
        )  # fmt: skip
        for values, (top, left), scale, score, upsampling in skips:
            x = upsampling(x)  # (B, classes, 2H, 2W), about
            finer = score(values * scale)
            # crop where it lies beyond x, pad where it falls short: with a small kernel the offsets are below 0
            below, aside = x.shape[2] + top - finer.shape[2], x.shape[3] + left - finer.shape[3]
            x = x + F.pad(finer, [-left, aside, -top, below])
        # The last upsampling, a transposed convolution with the bilinear filter, begins half a stride earlier.
        x = F.interpolate(x, scale_factor=self.stride, mode="bilinear")
        first = 31 - self.stride // 2
        x = x[:, :, first : first + height, first : first + width]  # (B, classes, H, W)
        return x.contiguous(memory_format=torch.channels_last)


def bilinear(factor: int) -> Tensor:
    """(2f, 2f) filter of a transposed convolution of stride `factor` that interpolates linearly."""
    ramp = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    return torch.from_numpy(np.outer(ramp, ramp).astype(np.float32))
