"""FCN-8s on whole images."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from deconvnet.inference.devices import arithmetic, upload


@torch.inference_mode()
def by_images(
    net: nn.Module, images: Iterable[np.ndarray], canvas: tuple[int, int], batch: int, precision: str
) -> Iterator[Tensor]:
    """Scores float32 (C, H, W) of each image, uint8 (H, W, 3) RGB, seen at the top left of a canvas (height, width).

    The rest of the canvas has the encoder's mean colour, which is exactly 0 after normalisation (release). An image
    that exceeds the canvas is seen alone, on a canvas as large as it needs.
    """
    group = []
    for image in images:
        if image.shape[0] > canvas[0] or image.shape[1] > canvas[1]:
            yield from score_images(net, group, canvas, precision)
            yield from score_images(net, [image], tuple(map(max, canvas, image.shape)), precision)
            group = []
            continue
        group.append(image)
        if len(group) == batch:
            yield from score_images(net, group, canvas, precision)
            group = []
    yield from score_images(net, group, canvas, precision)


def score_images(net: nn.Module, images: list[np.ndarray], canvas: tuple[int, int], precision: str) -> Iterator[Tensor]:
    """Scores float32 (C, H, W) of each image, computed at once on canvases that no image exceeds."""
    if not images:
        return
    device = next(net.parameters()).device
    inputs = net.encoder.mean.expand(len(images), *canvas, 3).contiguous()  # (B, H, W, 3)
    for place, image in zip(inputs, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = upload(image, device)
    with arithmetic(device, precision):
        maps = net(inputs.permute(0, 3, 1, 2)).float()  # (B, C, H, W), channels last
    for image, score_map in zip(images, maps, strict=True):
        yield score_map[:, : image.shape[0], : image.shape[1]]
