"""DeconvNet on an image's proposals: every window is scored alone, and its score map put back into the image."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deconvnet.boxes import windows
from deconvnet.inference.aggregate import Aggregate
from deconvnet.inference.devices import arithmetic
from deconvnet.pixels import Pixels, cut
from deconvnet.settings import WindowInference

OPEN = 32  # images under way at once, at most: each holds its scores in memory


def select(boxes: np.ndarray, context: float, square: bool, min_side: int, number: int) -> np.ndarray:
    """The windows of an image's best proposals.

    boxes: float32 (N, 4), best first. context, square: as the net was trained (settings.Crops). min_side: px; boxes
    whose window has a shorter side are passed over. Returns int32 (n, 4), n at most `number`.
    """
    found = windows(boxes, context, square)
    return found[found[:, 2:].min(1) >= min_side][:number]


@dataclass
class Pending:
    """An image with windows that are still to be scored."""

    image: np.ndarray
    windows: np.ndarray
    aggregate: Aggregate
    snapshots: dict[int, Tensor]  # scores by number of windows


@torch.inference_mode()
def by_windows(
    net: nn.Module, images: Iterable[tuple[np.ndarray, np.ndarray]], params: WindowInference, precision: str,
    growth: Sequence[int] = (),
) -> Iterator[tuple[Tensor, list[Tensor]]]:  # fmt: skip
    """Scores float32 (C, H, W) of each image, uint8 (H, W, 3) RGB, from its windows int32 (n, 4), best first.

    Windows of several images share a batch. The second value has the scores after the first n windows for each n of
    `growth`; the scores themselves come from the first `params.proposals`.
    """
    device = next(net.parameters()).device
    wanted = {params.proposals, *growth}
    waiting: deque[Pending] = deque()
    queue: deque[tuple[Pending, tuple[int, int, int, int]]] = deque()

    def work(least: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Score windows while at least `least` are queued; yield the images that are done."""
        while len(queue) >= least:
            batch = [queue.popleft() for _ in range(min(params.batch, len(queue)))]
            places = np.array([window for _, window in batch])
            maps = score_windows(net, [pending.image for pending, _ in batch], places, precision)
            for (pending, window), score_map in zip(batch, maps, strict=True):
                pending.aggregate.add(score_map, window)
                if pending.aggregate.count in wanted:
                    pending.snapshots[pending.aggregate.count] = pending.aggregate.scores()
        while waiting and waiting[0].aggregate.count == len(waiting[0].windows):
            done = waiting.popleft()
            last = done.aggregate.scores()
            yield done.snapshots.get(params.proposals, last), [done.snapshots.get(n, last) for n in growth]

    for image, places in images:
        aggregate = Aggregate(net.spec["classes"], *image.shape[:2], params, device)
        waiting.append(Pending(image, places, aggregate, {}))
        queue.extend((waiting[-1], tuple(window)) for window in places.tolist())
        yield from work(least=params.batch if len(waiting) < OPEN else 1)
    yield from work(least=1)


def score_windows(net: nn.Module, images: list[np.ndarray], places: np.ndarray, precision: str) -> Tensor:
    """Score maps, float32 (B, C, S, S), of windows `places` (B, 4), each of its image uint8 (H, W, 3)."""
    device, side = next(net.parameters()).device, net.encoder.size.input_size
    pixels, numbers = pack(images)
    pixels = Pixels(*(tensor.to(device) for tensor in vars(pixels).values()))
    places = torch.from_numpy(places).long().to(device)
    crops, _ = cut(
        pixels, numbers.to(device), places, (side, side), torch.zeros_like(places[:, :2]), (side, side),
        torch.zeros_like(places[:, 0], dtype=torch.bool),
    )  # fmt: skip
    with arithmetic(device, precision):
        maps = net(crops.contiguous(memory_format=torch.channels_last))  # (B, C, S, S)
    return maps.float()


def pack(images: list[np.ndarray]) -> tuple[Pixels, Tensor]:
    """Images (one object may come several times) end to end, without masks, and the index of each in them."""
    unique = {id(image): image for image in images}
    order = {key: number for number, key in enumerate(unique)}
    sizes = torch.tensor([image.shape[:2] for image in unique.values()])
    ends = 1 + sizes.prod(1).cumsum(0)
    colours = np.zeros((int(ends[-1]), 4), np.uint8)
    for image, end in zip(unique.values(), ends.tolist(), strict=True):
        colours[end - image.shape[0] * image.shape[1] : end, :3] = image.reshape(-1, 3)
    flat = torch.from_numpy(colours).view(torch.int32).squeeze(1)
    pixels = Pixels(flat, torch.zeros(1, dtype=torch.uint8), ends - sizes.prod(1), sizes)
    return pixels, torch.tensor([order[id(image)] for image in images])
