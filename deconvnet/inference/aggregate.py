"""Score maps of windows to scores of one image (paper 5.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.settings import WindowInference


class Aggregate:
    """Pixel-wise maximum or average of score maps (C, S, S) over an image, 0 where a window does not reach."""

    def __init__(self, classes: int, height: int, width: int, params: WindowInference, device: torch.device):
        self.params, self.count = params, 0
        start = 0.0 if params.aggregation == "average" else -torch.inf
        # classes innermost, as the nets' maps have them: resizing those was measured to be twice as fast on a CPU
        self.total = torch.full((height, width, classes), start, device=device).permute(2, 0, 1)
        self.covered = torch.zeros(height, width, dtype=torch.int32, device=device)

    def add(self, score_map: Tensor, window: tuple[int, int, int, int]) -> None:
        """Add a window's score map, float32 (C, S, S). window: x, y, side_x, side_y in px, anywhere."""
        self.count += 1
        x, y, side_x, side_y = window
        height, width = self.covered.shape
        left, right, top, bottom = max(x, 0), min(x + side_x, width), max(y, 0), min(y + side_y, height)
        if left >= right or top >= bottom:
            return
        resized = F.interpolate(score_map[None], (side_y, side_x), mode="bilinear")[0]  # (C, side_y, side_x)
        resized = resized[:, top - y : bottom - y, left - x : right - x]
        if self.params.clip:
            resized = resized.clamp(min=0)
        here = self.total[:, top:bottom, left:right]
        if self.params.aggregation == "average":
            here += resized
        else:
            torch.maximum(here, resized, out=here)
        self.covered[top:bottom, left:right] += 1

    def scores(self) -> Tensor:
        """float32 (C, H, W); all 0, which is background, before the first window."""
        if self.params.aggregation == "average":
            return self.total / max(self.count, 1)
        everywhere = self.covered == self.count if self.count else torch.zeros_like(self.covered, dtype=torch.bool)
        # where some window does not reach, its 0 takes part in the maximum
        return torch.where(everywhere, self.total, self.total.clamp(min=0))
