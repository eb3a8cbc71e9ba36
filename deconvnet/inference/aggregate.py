"""Score maps of windows to scores of one image (paper 5.1)."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.settings import WindowInference

CHANNELS = 512  # the most that OpenCV resizes


class Aggregate:
    """Pixel-wise maximum or average of score maps (C, S, S) over an image, 0 where a window does not reach.

    On a CPU OpenCV resizes and NumPy adds up: measured to take a quarter of PyTorch's time, with equal results to
    rounding.
    """

    def __init__(self, classes: int, height: int, width: int, params: WindowInference, device: torch.device):
        self.params, self.count = params, 0
        # a clipped map never lowers a maximum below 0
        start = 0.0 if params.aggregation == "average" or params.clip else -torch.inf
        # classes innermost, as the nets' maps have them: both libraries resize those faster
        self.total = torch.full((height, width, classes), start, device=device)
        self.common = 0, 0, width, height  # left, top, right, bottom of what every window reaches
        self.array = self.total.numpy() if device.type == "cpu" and classes <= CHANNELS else None

    def add(self, score_map: Tensor, window: tuple[int, int, int, int]) -> None:
        """Add a window's score map, float32 (C, S, S). window: x, y, side_x, side_y in px, anywhere."""
        self.count += 1
        x, y, side_x, side_y = window
        height, width, classes = self.total.shape
        left, right, top, bottom = max(x, 0), min(x + side_x, width), max(y, 0), min(y + side_y, height)
        ours = self.common
        self.common = max(ours[0], left), max(ours[1], top), min(ours[2], right), min(ours[3], bottom)
        if left >= right or top >= bottom:
            return
        if self.array is not None:
            total, maximum = self.array, np.maximum
            values = np.ascontiguousarray(score_map.permute(1, 2, 0).numpy())
            resized = cv2.resize(values, (side_x, side_y)).reshape(side_y, side_x, classes)
        else:
            total, maximum = self.total, torch.maximum
            resized = F.interpolate(score_map[None], (side_y, side_x), mode="bilinear")[0].permute(1, 2, 0)
        resized = resized[top - y : bottom - y, left - x : right - x]
        here = total[top:bottom, left:right]
        if self.params.aggregation == "average":
            here += resized.clip(min=0) if self.params.clip else resized
        else:
            maximum(here, resized, out=here)

    def scores(self) -> Tensor:
        """float32 (C, H, W), classes innermost in memory; all 0, which is background, before the first window."""
        if self.params.aggregation == "average":
            return (self.total / max(self.count, 1)).permute(2, 0, 1)
        # where some window does not reach, its 0 takes part in the maximum
        result = self.total.clamp(min=0)
        left, top, right, bottom = self.common
        if self.count and left < right and top < bottom:
            result[top:bottom, left:right] = self.total[top:bottom, left:right]
        return result.permute(2, 0, 1)

    def labels(self) -> Tensor:
        """uint8 (H, W), the class of the highest score, the first of equal ones."""
        return self.scores().argmax(0).byte()
