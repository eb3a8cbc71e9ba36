"""DeconvNet (Noh, Hong, Han, ICCV 2015): VGG-16, its mirror image of unpooling and deconvolution, a score layer.

At the paper's size (width 64, fc 4096, input 224, 21 classes) it has 251,805,653 parameters:

    conv1_1 .. conv5_3   14,714,688      fc6 102,764,544      fc7 16,781,312      (VGG-16's)
    fc6_deconv          102,760,960      deconv5_1 .. deconv1_2 14,749,376        score 1,365
    batch norm           33,408          (scale and shift of 16,704 channels)

A deconvolution of stride 1 with padding 1 is a convolution with the kernel turned round, and the kernel is learned
from noise that is the same either way, so deconv5_1 to deconv1_2 are `Conv2d`, which is faster on every device.
"""

import dataclasses

import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.kernels import unpool
from deconvnet.nets.layers import FcDeconv, Layer
from deconvnet.nets.vgg import VGG16
from deconvnet.settings import Size

# Channels of every 3x3 deconvolution in units of the width, from the 14x14 block (5) to the 224x224 block (1).
BLOCKS = {5: (8, 8, 8), 4: (8, 8, 4), 3: (4, 4, 2), 2: (2, 1), 1: (1, 1)}


class DeconvNet(nn.Module):
    """Crops to class scores. `eps` is batch norm's epsilon, or None for a net without batch norm (claim (d)).

    `unpooling` says how a block of the decoder doubles its map (paper 3.2.1): by the `switches` of the pooling, or, to
    see what those are worth (claim (g)), by `bilinear` interpolation, or by `transposed` convolutions: 4x4 with stride
    2, each in place of an unpooling and of the 3x3 layer after it.

    Deconvolutions start from zero-mean Gaussians of std 0.01, biases at 0 (release). In a narrower net the std grows as
    the fan-in shrinks: under batch norm a weight's size is its inverse learning rate, and 0.01 would start wildly.
    """

    def __init__(self, size: Size, classes: int, eps: float | None, unpooling: str = "switches"):
        super().__init__()
        self.spec = {"kind": "deconvnet", "size": dataclasses.asdict(size), "classes": classes, "eps": eps,
                     "unpooling": unpooling}  # fmt: skip
        self.encoder = VGG16(size, eps)
        channels = BLOCKS[5][0] * size.width
        self.fc6_deconv = Layer(FcDeconv(size.fc_width, channels, size.fc_kernel), eps)
        for number, block in BLOCKS.items():
            for index, multiple in enumerate(block, 1):
                kind, shape = nn.Conv2d, {"kernel_size": 3, "padding": 1}
                if unpooling == "transposed" and index == 1:
                    kind, shape = nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}
                self.add_module(f"deconv{number}_{index}", Layer(kind(channels, multiple * size.width, **shape), eps))
                channels = multiple * size.width
        self.score = nn.Conv2d(channels, classes, 1)
        for name, parameter in self.named_parameters():
            if name.endswith(("conv.weight", "score.weight")) and not name.startswith("encoder."):
                nn.init.normal_(parameter, std=0.01 * (64 / size.width) ** 0.5)
            elif name.endswith(("conv.bias", "score.bias")):
                nn.init.zeros_(parameter)

    def start_by_he(self) -> None:
        """Start the deconvolutions anew by He's rule (Kaiming et al., 2015): a std of sqrt(2 / fan-in).

        Under batch norm a layer turns at a speed of the learning rate over its weights' squared norm. At a std of 0.01
        for all that differs 65-fold between the widest and the narrowest layer of the decoder; by He's rule 8-fold.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("conv.weight") and not name.startswith("encoder."):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, 0 to 255, of the size's shape -> (B, classes, H, W) scores before the softmax."""
        pools = self.encoder.pools(self.encoder.normalise(images))
        x = self.encoder.fc6(pools[-1][0])  # (B, fc, 1, 1)
        x = self.encoder.fc7(x)  # (B, fc, 1, 1)
        x = self.fc6_deconv(x)  # (B, 8w, H/32, W/32)
        for number, block in BLOCKS.items():
            if self.spec["unpooling"] == "switches":
                x = unpool(x, pools[number - 1][1])  # (B, C, H/2^(number-1), W/2^(number-1))
            elif self.spec["unpooling"] == "bilinear":
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            for index in range(1, len(block) + 1):
                x = getattr(self, f"deconv{number}_{index}")(x)
        return self.score(x)  # (B, classes, H, W)
