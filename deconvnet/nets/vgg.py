"""VGG-16 (Simonyan, Zisserman, ICLR 2015) as a fully convolutional encoder, and the classifier that pre-trains it.

Published weights differ in the input that they expect (`CONVENTIONS`); the net keeps the one of its weights in the
buffers `mean` and `std`, so that whoever loads it feeds plain RGB pixels from 0 to 255.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deconvnet import kernels
from deconvnet.nets.layers import FcConv, Layer
from deconvnet.settings import Size

# Channels of every 3x3 convolution in units of the first one's, block by block; a 2x2 max pooling ends each block.
BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
CONVS = [f"conv{b}_{c}" for b, block in enumerate(BLOCKS, 1) for c in range(1, len(block) + 1)]
LAYERS = [*CONVS, "fc6", "fc7"]

# RGB mean and standard deviation, in pixel values, of the input that published weights were trained with.
CONVENTIONS = {
    "imagenet1k_v1": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # torchvision's own training
    "imagenet1k_features": ((123.00, 117.00, 104.00), (1.0, 1.0, 1.0)),  # the original Caffe net's convolutions, RGB
    "caffe_bgr": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),  # all of the original Caffe net, BGR in the file
}


class VGG16(nn.Module):
    """The 13 convolutions, fc6 and fc7 of VGG-16, each with batch norm of epsilon `eps` unless that is None.

    Weights start He-normal (Kaiming et al., 2015), biases at 0.
    """

    def __init__(self, size: Size, eps: float | None):
        super().__init__()
        self.size = size
        channels = 3
        for name, multiple in zip(CONVS, [m for block in BLOCKS for m in block], strict=True):
            self.add_module(name, Layer(nn.Conv2d(channels, multiple * size.width, 3, padding=1), eps))
            channels = multiple * size.width
        self.fc6 = Layer(FcConv(channels, size.fc_width, size.fc_kernel), eps)
        self.fc7 = Layer(FcConv(size.fc_width, size.fc_width, 1), eps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.register_buffer("mean", torch.empty(3))
        self.register_buffer("std", torch.empty(3))
        self.set_convention("imagenet1k_v1")

    def set_convention(self, name: str) -> None:
        """Normalise the input as the weights of `name` in `CONVENTIONS` want it."""
        for buffer, values in zip((self.mean, self.std), CONVENTIONS[name], strict=True):
            buffer.copy_(torch.tensor(values))

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, 0 to 255, any dtype -> the same shape, as the weights expect it, in their type."""
        images = (images.float() - self.mean[:, None, None]) / self.std[:, None, None]
        return images.to(self.conv1_1.conv.weight.dtype)

    def blocks(self, x: Tensor, pool: Callable) -> list:
        """(B, 3, H, W) normalised images -> what `pool` returns for the output of each of the five blocks.

        The next block takes it, or its first item where it is a tuple.
        """
        pooled = []
        for number, block in enumerate(BLOCKS, 1):
            for index in range(1, len(block) + 1):
                x = getattr(self, f"conv{number}_{index}")(x)  # (B, C, H/2^(number-1), W/2^(number-1))
            pooled.append(pool(x))
            x = pooled[-1][0] if isinstance(pooled[-1], tuple) else pooled[-1]
        return pooled

    def pools(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 3, H, W) normalised images -> pool1 to pool5 with their switches; pool n is (B, C, H/2^n, W/2^n)."""
        return self.blocks(x, kernels.max_pool)


class Classifier(nn.Module):
    """The encoder with one linear layer on fc7: what pre-training trains."""

    def __init__(self, size: Size, classes: int, eps: float | None):
        super().__init__()
        self.spec = {"kind": "classifier", "size": dataclasses.asdict(size), "classes": classes, "eps": eps}
        self.encoder = VGG16(size, eps)
        self.score = nn.Conv2d(size.fc_width, classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) RGB, 0 to 255 -> (B, classes) logits."""
        x = self.encoder.pools(self.encoder.normalise(images))[-1][0]  # (B, 8w, S/32, S/32)
        x = self.encoder.fc7(self.encoder.fc6(x))  # (B, fc, 1, 1)
        return self.score(x).flatten(1)
