"""VGG-16 (Simonyan, Zisserman, ICLR 2015) as a fully convolutional encoder, and its weights from torchvision's files.

Two published files differ in the input that they expect (`CONVENTIONS`); the net keeps the one of its weights in the
buffers `mean` and `std`, so that whoever loads it feeds plain RGB pixels from 0 to 255.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from stages.cli import InputError
from stages.config import Range
from stages.nets.layers import Layer
from stages.nets.switches import pool

# Channels of every 3x3 convolution in units of the first one's, block by block; a 2x2 max pooling ends each block.
BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
CONVS = [f"conv{b}_{c}" for b, block in enumerate(BLOCKS, 1) for c in range(1, len(block) + 1)]

# RGB mean and standard deviation in pixel values that each of torchvision's files was trained with.
CONVENTIONS = {
    "imagenet1k_v1": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "imagenet1k_features": ((123.00, 117.00, 104.00), (1.0, 1.0, 1.0)),  # the original Caffe net's
}
# torchvision's names of the 13 convolutions and of fc6 and fc7.
TORCHVISION = dict(
    zip(
        [*CONVS, "fc6", "fc7"],
        [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)] + ["classifier.0", "classifier.3"],
        strict=True,
    )
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a net is. VGG-16 itself: 64, 4096, 224."""

    width: Annotated[int, Range(1)]  # channels of conv1_1
    fc_width: Annotated[int, Range(1)]  # channels of fc6 and fc7
    input_size: Annotated[int, Range(64)]  # pixels a side of a crop

    def __post_init__(self):
        if self.input_size % 32:
            raise ValueError(f"input_size: {self.input_size} is not a multiple of 32, the stride of five poolings")

    @property
    def fc_kernel(self) -> int:
        """Side of fc6's kernel, which covers the whole of pool5: 7 for an input of 224."""
        return self.input_size // 32


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
        self.fc6 = Layer(nn.Conv2d(channels, size.fc_width, size.fc_kernel), eps)
        self.fc7 = Layer(nn.Conv2d(size.fc_width, size.fc_width, 1), eps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        self.register_buffer("mean", torch.empty(3))
        self.register_buffer("std", torch.empty(3))
        self.set_convention("imagenet1k_v1")

    def set_convention(self, name: str) -> None:
        """Normalise the input as the weights file `name` of `CONVENTIONS` wants it."""
        for buffer, values in zip((self.mean, self.std), CONVENTIONS[name], strict=True):
            buffer.copy_(torch.tensor(values))

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, 0 to 255, any dtype -> the same shape, float32, as the weights expect it."""
        return (images.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def pools(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 3, H, W) normalised images -> pool1 to pool5 with their switches; pool n is (B, C, H/2^n, W/2^n)."""
        pooled = []
        for number, block in enumerate(BLOCKS, 1):
            for index in range(1, len(block) + 1):
                x = getattr(self, f"conv{number}_{index}")(x)
            x, switches = pool(x)
            pooled.append((x, switches))
        return pooled


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


def read_vgg16(path: str | Path, size: Size) -> dict[str, Tensor]:
    """What a VGG-16 state dict in torchvision's names holds for a net of `size`, in the names of `VGG16`.

    fc6 and fc7 turn from matrices into convolutions. A tensor of another shape is left out, and so is one with values
    that are not finite: torchvision's IMAGENET1K_FEATURES marks its missing classifier with NaN.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; get torchvision's vgg16-397923af.pth (the fetch stage does), or leave the VGG-16 "
            "file empty to pre-train from scratch"
        ) from None
    except Exception as error:
        raise InputError(f"{path}: not a PyTorch state dict: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, dict) or not any(f"{name}.weight" in state for name in TORCHVISION.values()):
        raise InputError(f"{path}: holds no layer of VGG-16 in torchvision's names (features.0.weight, ...)")
    wanted = VGG16(size, eps=None).state_dict()
    found = {}
    for name, source in TORCHVISION.items():
        for kind in ("weight", "bias"):
            tensor, target = state.get(f"{source}.{kind}"), f"{name}.conv.{kind}"
            if tensor is None or not torch.isfinite(tensor).all():
                continue
            if tensor.numel() == wanted[target].numel() and tensor.shape[0] == wanted[target].shape[0]:
                found[target] = tensor.reshape(wanted[target].shape).float()
    return found


def load_encoder(encoder: VGG16, state: dict[str, Tensor], eps: float | None) -> list[str]:
    """Put `state`, all or part of a VGG16's, into `encoder`; return the layers that it lacks, which stay as they were.

    eps: of the batch norm that `state` was learned with, None if without. Weights learned with batch norm go into a net
    without it by folding: in evaluation batch norm is a scale and a shift of each channel. Weights learned without it
    go under the net's fresh batch norm, as in the release.
    """
    wanted = encoder.state_dict()
    if eps is not None and not any(".norm." in name for name in wanted):
        state = _folded(state, eps)
    fitting = {name: tensor for name, tensor in state.items() if name in wanted and tensor.shape == wanted[name].shape}
    encoder.load_state_dict(fitting, strict=False)
    return [name for name in TORCHVISION if f"{name}.conv.weight" not in fitting]


def _folded(state: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    folded = {name: tensor for name, tensor in state.items() if ".norm." not in name}
    for name in TORCHVISION:
        norm = {key: state[f"{name}.norm.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + eps)
        folded[f"{name}.conv.weight"] = state[f"{name}.conv.weight"] * scale[:, None, None, None]
        folded[f"{name}.conv.bias"] = (state[f"{name}.conv.bias"] - norm["running_mean"]) * scale + norm["bias"]
    return folded
