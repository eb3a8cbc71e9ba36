"""Weights of VGG-16 from published files and from this project's model files, into an encoder.

What the files hold, what is missing from them and what input they expect differs:

    torchvision's vgg16-397923af.pth        all layers, trained anew by PyTorch      imagenet1k_v1
    torchvision's vgg16_features-*.pth      the original convolutions; fc6, fc7 NaN  imagenet1k_features
    jcjohnson's vgg16-00b39a1b.pth          all original layers, fed with BGR        caffe_bgr
"""

from pathlib import Path

import torch
from torch import Tensor

from deconvnet.errors import InputError
from deconvnet.nets.folding import folded
from deconvnet.nets.vgg import LAYERS, VGG16
from deconvnet.settings import Size

# Names of the 13 convolutions, fc6 and fc7 in state dicts: torchvision's, and for fc6 and fc7 jcjohnson's after them.
NAMES = dict(
    zip(
        LAYERS,
        [(f"features.{i}",) for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
        + [("classifier.0", "classifier.1"), ("classifier.3", "classifier.4")],
        strict=True,
    )
)


def read_vgg16(path: str | Path, size: Size, convention: str) -> dict[str, Tensor]:
    """What a published VGG-16 state dict holds for a net of `size`, in the names of `VGG16`, for RGB input.

    fc6 and fc7 turn from matrices into convolutions. A tensor of another shape is left out, and so is one with values
    that are not finite: torchvision's IMAGENET1K_FEATURES marks its missing classifier with NaN. Under the convention
    `caffe_bgr` the input channels of conv1_1 change places. Raises InputError for a file that is no such thing.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("not a plain file")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; get torchvision's vgg16-397923af.pth (the fetch stage does), or leave the VGG-16 "
            "file empty to pre-train from scratch"
        ) from None
    except Exception as error:
        raise InputError(f"{path}: not a PyTorch state dict: {' '.join(str(error).split())[:200]}") from None
    known = [f"{name}.weight" for names in NAMES.values() for name in names]
    if not isinstance(state, dict) or not any(name in state for name in known):
        raise InputError(f"{path}: holds no layer of VGG-16 in torchvision's names (features.0.weight, ...)")
    wanted = VGG16(size, eps=None).state_dict()
    found = {}
    for layer, names in NAMES.items():
        source = next((name for name in names if f"{name}.weight" in state), names[0])
        for kind in ("weight", "bias"):
            tensor, target = state.get(f"{source}.{kind}"), f"{layer}.conv.{kind}"
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                continue
            if tensor.ndim and tensor.numel() == wanted[target].numel() and tensor.shape[0] == wanted[target].shape[0]:
                found[target] = tensor.reshape(wanted[target].shape).float()
    first = "conv1_1.conv.weight"
    if convention == "caffe_bgr" and first in found:
        found[first] = found[first].flip(1)  # (w, BGR, 3, 3) -> (w, RGB, 3, 3)
    return found


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a whole net's state dict, in the names of `VGG16`."""
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}


def load_encoder(encoder: VGG16, state: dict[str, Tensor], eps: float | None) -> list[str]:
    """Put `state`, all or part of a VGG16's, into `encoder`; return the layers that it lacks, which stay as they were.

    eps: of the batch norm that `state` was learned with, None if without. Weights learned with batch norm go into a net
    without it by folding: in evaluation batch norm is a scale and a shift of each channel. Weights learned without it
    go under the net's fresh batch norm, as in the release, their biases left out: it would take them off.
    """
    wanted = encoder.state_dict()
    if eps is not None and not any(".norm." in name for name in wanted):
        state = _folded(state, eps)
    fitting = {name: tensor for name, tensor in state.items() if name in wanted and tensor.shape == wanted[name].shape}
    encoder.load_state_dict(fitting, strict=False)
    return [name for name in LAYERS if f"{name}.conv.weight" not in fitting]


def _folded(state: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    without = {name: tensor for name, tensor in state.items() if ".norm." not in name}
    for name in LAYERS:
        norm = {key: state[f"{name}.norm.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
        without[f"{name}.conv.weight"], without[f"{name}.conv.bias"] = folded(state[f"{name}.conv.weight"], norm, eps)
    return without
