"""Scores and labels on a device to the columns of deconvnet/scores.py; what is copied to the host is what is stored."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deconvnet import scores as storage
from deconvnet.images import encode_mask


@torch.inference_mode()
def encoder(scores: Tensor, growth: Sequence[Tensor]) -> Callable[[], dict]:
    """Begin to encode scores, float32 (C, H, W), and labels, uint8 (H, W) each; the function returned does the rest.

    It may run in another thread, and returns the columns of `storage.encode` and `growth`, or raises its ValueError.
    A GPU shortens the scores to what is stored and copies that while this process goes on.
    """
    unique = {id(labels): labels for labels in growth}  # after 50 and after 100 proposals, of an image that has 9
    copied = None
    if scores.device.type == "cuda":
        short = [to_host(tensor) for tensor in quantise(scores)]
        unique = {key: to_host(labels) for key, labels in unique.items()}
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(scores.device))

    def finish() -> dict:
        if copied:
            copied.synchronize()
            columns = storage.pack(*(tensor.numpy() for tensor in short))
        else:
            columns = storage.encode(scores.numpy())
        pictures = {key: encode_mask(labels.numpy()) for key, labels in unique.items()}
        return columns | {"growth": [pictures[id(labels)] for labels in growth]}

    return finish


def to_host(tensor: Tensor) -> Tensor:
    """A pinned copy of a GPU's tensor, which is there once what the GPU is now asked to do is done."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def quantise(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`storage.quantise` on any device, without waiting for it."""
    best, labels = scores.max(0)  # the first of equal ones
    distance = best - scores  # (C, H, W)
    deepest = distance.max()
    scale = storage.STEPS / torch.log1p(deepest.double() / storage.FINE).clamp(min=1e-9)
    steps = torch.log1p(distance / storage.FINE) * scale.float()
    steps = torch.maximum(steps.round(), (distance > 0).float()).byte()
    steps[..., 1:] = steps.diff(dim=2)
    extreme = best.flatten().take(best.abs().argmax())
    return labels.byte(), best.half(), steps, torch.stack([deepest, extreme])
