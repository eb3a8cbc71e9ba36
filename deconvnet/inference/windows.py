"""DeconvNet on an image's proposals: every window is scored alone, and its score map put back into the image."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deconvnet.boxes import windows
from deconvnet.inference.aggregate import Aggregate
from deconvnet.inference.devices import arithmetic, upload
from deconvnet.pixels import Pixels, cut
from deconvnet.settings import WindowInference

OPEN = 32  # images under way at once, at most: each holds its scores in memory


def select(
    boxes: np.ndarray, context: float | str, square: bool, min_side: int, number: int,
    size: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """The windows of an image's best proposals.

    boxes: float32 (N, 4), best first. context, square: as the net was trained (settings.Crops). min_side: px; boxes
    whose window has a shorter side are passed over. size: height and width of the image, which is the one window where
    context is "whole". Returns int32 (n, 4), n at most `number`.
    """
    found = windows(boxes, context, square, size)
    if context == "whole":
        return found
    return found[found[:, 2:].min(1) >= min_side][:number]


@dataclass
class Pending:
    """An image with windows that are still to be scored."""

    image: np.ndarray | Tensor  # uint8 (H, W, 3); on a GPU int32 (H, W) there, the bytes red, green, blue, 0
    windows: np.ndarray
    aggregate: Aggregate
    scores: Tensor | None = None  # after `params.proposals` windows
    labels: dict[int, Tensor] = field(default_factory=dict)  # by number of windows


@torch.inference_mode()
def by_windows(
    net: nn.Module, images: Iterable[tuple[np.ndarray, np.ndarray]], params: WindowInference, precision: str,
    growth: Sequence[int] = (),
) -> Iterator[tuple[Tensor, list[Tensor]]]:  # fmt: skip
    """Scores float32 (C, H, W) of each image, uint8 (H, W, 3) RGB, from its windows int32 (n, 4), best first.

    Windows of several images share a batch. The second value has the labels, uint8 (H, W), after the first n windows
    for each n of `growth`; the scores themselves come from the first `params.proposals`. On a GPU nothing waits for
    it: the tensors are on it, and may still be in work.
    """
    device = next(net.parameters()).device
    waiting: deque[Pending] = deque()
    queue: deque[tuple[Pending, tuple[int, int, int, int]]] = deque()

    def work(least: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Score windows while at least `least` are queued; yield the images that are done."""
        while len(queue) >= least:
            batch = [queue.popleft() for _ in range(min(params.batch, len(queue)))]
            # a GPU looks for the fastest kernels once for each size of a batch: let there be one
            more = params.batch - len(batch) if device.type == "cuda" else 0
            filled = batch + batch[-1:] * more
            places = np.array([window for _, window in filled])
            maps = score_windows(net, [pending.image for pending, _ in filled], places, precision)
            for (pending, window), score_map in zip(batch, maps.unbind(), strict=not more):
                aggregate = pending.aggregate
                aggregate.add(score_map, window)
                if aggregate.count == params.proposals:
                    pending.scores = aggregate.scores()
                if aggregate.count in growth:
                    pending.labels[aggregate.count] = aggregate.labels()
        while waiting and waiting[0].aggregate.count == len(waiting[0].windows):
            done = waiting.popleft()
            number = done.aggregate.count
            if any(n > number for n in growth):
                done.labels.setdefault(number, done.aggregate.labels())
            scores = done.aggregate.scores() if done.scores is None else done.scores
            yield scores, [done.labels[min(n, number)] for n in growth]

    for image, places in images:
        aggregate = Aggregate(net.spec["classes"], *image.shape[:2], params, device)
        if device.type == "cuda":
            image = upload(four_bytes(image), device)
        waiting.append(Pending(image, places, aggregate))
        queue.extend((waiting[-1], tuple(window)) for window in places.tolist())
        yield from work(least=params.batch if len(waiting) < OPEN else 1)
    yield from work(least=1)


def score_windows(net: nn.Module, images: list, places: np.ndarray, precision: str) -> Tensor:
    """Score maps, float32 (B, C, h, w), of windows `places` (B, 4), each of its image as in `Pending`."""
    device, size = next(net.parameters()).device, net.encoder.size.shape
    crops = gather_windows(images, places, size) if device.type == "cuda" else cut_windows(images, places, size)
    with arithmetic(device, precision):
        maps = net(crops.contiguous(memory_format=torch.channels_last))  # (B, C, h, w)
    return maps.float()


def cut_windows(images: list[np.ndarray], places: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Windows `places` (B, 4), each of its image uint8 (H, W, 3), resized: float32 (B, 3, *size), RGB 0 to 255.

    The same as `deconvnet.pixels.cut` to rounding, black outside, at a tenth of its time on a CPU.
    """
    crops = np.empty((len(images), *size, 3), np.float32)
    for crop, image, (x, y, side_x, side_y) in zip(crops, images, places.tolist(), strict=True):
        height, width = image.shape[:2]
        left, right, top, bottom = max(x, 0), min(x + side_x, width), max(y, 0), min(y + side_y, height)
        window = np.zeros((side_y, side_x, 3), np.float32)
        if left < right and top < bottom:
            window[top - y : bottom - y, left - x : right - x] = image[top:bottom, left:right]
        cv2.resize(window, size[::-1], dst=crop)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def gather_windows(images: list[Tensor], places: np.ndarray, size: tuple[int, int]) -> Tensor:
    """`cut_windows` of images int32 (H, W) on a device, all at once there; one image may come several times."""
    unique = {id(image): image for image in images}
    order = {key: number for number, key in enumerate(unique)}
    device, sizes = images[0].device, np.array([image.shape for image in unique.values()])
    starts = 1 + np.cumsum(sizes.prod(1)) - sizes.prod(1)
    flat = torch.cat([images[0].new_zeros(1), *(image.flatten() for image in unique.values())])
    about = upload(np.column_stack([starts, sizes]), device)  # int64 (images, 3)
    pixels = Pixels(flat, torch.zeros(1, dtype=torch.uint8, device=device), about[:, 0], about[:, 1:])
    numbers = np.array([order[id(image)] for image in images])
    wanted = upload(np.column_stack([numbers, places]), device)  # int64 (B, 5)
    crops, _ = cut(
        pixels, wanted[:, 0], wanted[:, 1:], size, torch.zeros_like(wanted[:, :2]), size,
        torch.zeros_like(wanted[:, 0], dtype=torch.bool),
    )  # fmt: skip
    return crops


def four_bytes(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> int32 (H, W), the bytes red, green, blue, 0."""
    return np.pad(image, ((0, 0), (0, 0), (0, 1))).view(np.int32)[..., 0]
