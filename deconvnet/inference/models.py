"""Trained nets for inference, checked against the classes that they are to tell apart."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.folding import fold


def load_net(path: str | Path, device: torch.device, precision: str) -> tuple[nn.Module, dict]:
    """The net of a model file, ready on `device` for `arithmetic(device, precision)`, and its `about`.

    Batch norm is folded. Raises InputError for a bad file.
    """
    net, about = files.load(path)
    return ready(net, device, precision), about


def ready(net: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """A net in evaluation mode, made ready for inference in place: batch norm folded, weights as its kernels want them.

    precision: "bf16" rounds the weights of convolutions once, where autocast would at every call.
    """
    fold(net).requires_grad_(False).to(device, memory_format=torch.channels_last)
    for module in net.modules():
        if precision == "bf16" and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.bfloat16()
    return net


def check_classes(path: str | Path, net: nn.Module, about: dict, classes: Sequence[str], source: str) -> None:
    """Raise InputError unless the net of `path` scores just `classes`, in their order.

    source: where `classes` come from, with the remedy, such as "dataset.classes in params.yaml; train again".
    """
    number, names = net.spec["classes"], about.get("classes")
    if number != len(classes):
        raise InputError(f"{path}: scores {number} classes, not the {len(classes)} of {source}")
    for index, (trained, wanted) in enumerate(zip(names or classes, classes, strict=True)):
        if trained != wanted:
            raise InputError(f"{path}: class {index} is {trained!r}, not {wanted!r} as in {source}")
