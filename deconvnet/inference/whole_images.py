"""FCN-8s on whole images."""

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.inference.devices import arithmetic, upload


@torch.inference_mode()
def by_images(
    net: nn.Module, images: Iterable[np.ndarray], canvas: tuple[int, int], batch: int, precision: str,
    scale: float = 1.0,
) -> Iterator[Tensor]:  # fmt: skip
    """Scores float32 (C, H, W) of each image, uint8 (H, W, 3) RGB, seen at the top left of a canvas (height, width).

    The net sees both resized by `scale`, and its scores are interpolated back to the image's size. The rest
    of the canvas has the encoder's mean colour, which is exactly 0 after normalisation (release). An image that exceeds
    the canvas is seen alone, on a canvas as large as it needs.
    """
    group = []
    for image in images:
        if image.shape[0] > canvas[0] or image.shape[1] > canvas[1]:
            yield from score_images(net, group, canvas, precision, scale)
            own = tuple(map(max, canvas, image.shape))
            yield from score_images(net, [image], own, precision, scale)
            group = []
            continue
        group.append(image)
        if len(group) == batch:
            yield from score_images(net, group, canvas, precision, scale)
            group = []
    yield from score_images(net, group, canvas, precision, scale)


def score_images(
    net: nn.Module, images: list[np.ndarray], canvas: tuple[int, int], precision: str, scale: float = 1.0
) -> Iterator[Tensor]:
    """Scores float32 (C, H, W) of each image, computed at once on canvases that no image exceeds."""
    if not images:
        return
    device = next(net.parameters()).device
    inputs = net.encoder.mean.expand(len(images), *scaled(canvas, scale), 3).contiguous()  # (B, H, W, 3)
    sizes = [scaled(image.shape[:2], scale) for image in images]
    for place, image, (height, width) in zip(inputs, images, sizes, strict=True):
        if scale != 1:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        place[:height, :width] = upload(image, device)
    with arithmetic(device, precision):
        maps = net(inputs.permute(0, 3, 1, 2)).float()  # (B, C, H, W), channels last
    for image, score_map, (height, width) in zip(images, maps, sizes, strict=True):
        seen = score_map[:, :height, :width]
        yield seen if scale == 1 else F.interpolate(seen[None], image.shape[:2], mode="bilinear")[0]


def scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width times `scale`, in whole px."""
    return tuple(max(1, round(side * scale)) for side in size)
