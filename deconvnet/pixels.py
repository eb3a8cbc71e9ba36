"""Decoded images in one piece of memory, and windows cut from them for a whole batch at a time."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet import contents, tables
from deconvnet.errors import InputError
from deconvnet.images import VOID, decode_row
from deconvnet.progress import progress

BYTES = 5  # of a decoded pixel: red, green, blue, class; instance
OUTSIDE = -(1 << 40)  # an index so low that adding any other leaves it below 0


@dataclass(frozen=True)
class Pixels:
    """Images and masks of any sizes, decoded, end to end. Pixel 0 belongs to no image: black, void."""

    colours: Tensor  # int32 (N,), the bytes red, green, blue, class id
    instances: Tensor  # uint8 (N,)
    starts: Tensor  # int64 (images,), the index of each image's first pixel
    sizes: Tensor  # int64 (images, 2), height and width


def own_memory(length: int, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """uint8 (length,), zeros that `fill` then fills."""
    memory = np.zeros(length, np.uint8)
    fill(memory)
    return memory


class ImageStore:
    """The images of a data set that a crop table names, with their masks, by index into `ids`.

    Decoded into memory at once if they fit in `memory_gb` (on the GPU if they fit in half of what is free there);
    else their files' bytes are kept and each batch decodes what it needs, which is slower and is said so.

    memory: makes so many bytes and lets a function fill them, as `own_memory` does; `Worker.shared_memory` makes them
    once a machine.
    """

    def __init__(
        self, dataset: Path, ids: set[str], classes: int, memory_gb: float, device: torch.device,
        memory: Callable[[int, Callable[[np.ndarray], None]], np.ndarray] = own_memory,
    ):  # fmt: skip
        paths = sorted(dataset.glob("*.parquet"))
        if not paths:
            raise InputError(f"{dataset}: holds no shard; run `dvc repro dataset`")
        loaded = [tables.read(path, [*contents.PICTURE], contents.DATASET) for path in paths]
        self.rows = [row for table in loaded for row in table.to_pylist() if row["image_id"] in ids]
        self.ids = [row["image_id"] for row in self.rows]
        if len(set(self.ids)) < len(self.ids):
            raise InputError(f"{dataset}: an image is in two shards; run `dvc repro dataset`")
        self.sizes = {row["image_id"]: (row["height"], row["width"]) for row in self.rows}  # height, width
        if missing := ids - set(self.ids):
            raise InputError(
                f"{dataset}: lacks {len(missing)} images that the crop table names, such as {min(missing)}; "
                "run `dvc repro` for data set and crops"
            )
        self.classes, self.device, self.pixels = classes, torch.device("cpu"), None
        size = sum(row["height"] * row["width"] for row in self.rows) * BYTES
        if size <= memory_gb * 1e9:
            self.pixels = self._decode(range(len(self.rows)), memory, bar=True)
            self.rows = None
            if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
                self.pixels = Pixels(*(tensor.to(device) for tensor in vars(self.pixels).values()))
                self.device = device
        else:
            print(
                f"{len(self.rows)} images need {size / 1e9:.1f} GB decoded, more than memory_gb {memory_gb:g}: "
                "decoding for every batch, which is slower",
                flush=True,
            )

    def select(self, images: Tensor) -> tuple[Pixels, Tensor]:
        """Pixels that hold `images`, int64 (B,) indices into `ids` on the CPU, and the indices of `images` in them."""
        if self.pixels is not None:
            return self.pixels, images
        unique, places = torch.unique(images, return_inverse=True)
        return self._decode(unique.tolist()), places

    def scene(self, index: int) -> Tensor:
        """One image with its classes, uint8 (H, W, 4): red, green, blue, class id."""
        pixels, places = self.select(torch.tensor([index]))
        start, (height, width) = int(pixels.starts[places[0]]), pixels.sizes[places[0]].tolist()
        return pixels.colours[start : start + height * width].view(torch.uint8).view(height, width, 4)

    def _decode(self, indices, memory: Callable = own_memory, bar: bool = False) -> Pixels:
        sizes = torch.tensor([(self.rows[index]["height"], self.rows[index]["width"]) for index in indices])
        ends = 1 + sizes.prod(1).cumsum(0)
        number = int(ends[-1])

        def fill(flat: np.ndarray) -> None:
            colours, instances = flat[: 4 * number].reshape(number, 4), flat[4 * number :]
            colours[0, 3] = VOID

            def put(index, height, width, end):
                image, class_mask, instance_mask = decode_row(self.rows[index], self.classes)
                part = slice(end - height * width, end)
                colours[part, :3] = image.reshape(-1, 3)
                colours[part, 3] = class_mask.reshape(-1)
                instances[part] = instance_mask.reshape(-1)

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                done = pool.map(put, indices, *sizes.T.tolist(), ends.tolist())
                for _ in progress(done, total=len(sizes), unit="image", desc="decoding", leave=False, disable=not bar):
                    pass

        flat = torch.from_numpy(memory(BYTES * number, fill))
        colours = flat[: 4 * number].view(torch.int32)
        return Pixels(colours, flat[4 * number :], ends - sizes.prod(1), sizes)


def cut(
    pixels: Pixels, images: Tensor, windows: Tensor, resized: tuple[int, int], corners: Tensor, size: tuple[int, int],
    flips: Tensor, instances: Tensor | None = None, fill: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cut B windows, resize them to `resized`, take `size` from each at its corner, mirror those of `flips`.

    images: int64 (B,). windows: int64 (B, 4) as x, y, side_x, side_y in px of the image, anywhere. resized, size:
    height and width. corners: int64 (B, 2), x and y in the resized window. flips: bool (B,). instances: int64 (B,), the
    one object whose class is kept (the rest is background, void stays void), or None for the labels as they are. fill:
    float32 (3,), the colour outside of the image, RGB 0 to 255, or None for black.

    Returns float32 (B, 3, h, w) RGB 0 to 255, bilinear as `cv2.resize` and `F.interpolate` have it (at a window's edge
    its own pixels repeat), and uint8 (B, h, w) labels, void outside of the image. A label is the one nearest by pixel
    centres; the release rounds down (OpenCV's nearest neighbour), which shifts labels by up to half a pixel.
    """
    # All that has two axes has x first.
    lengths, device = pixels.sizes[images].flip(1), windows.device  # (B, 2)
    scale = _pair(resized[1], resized[0], device)
    place = torch.arange(max(size), device=device)  # (S,), S the longer side
    back = F.pad(flips[:, None], (0, 1))[:, :, None]
    place = corners[:, :, None] + torch.where(back, size[1] - 1 - place, place)  # (B, 2, S), in the resized window
    start, side = windows[:, :2, None], windows[:, 2:, None]
    centre = ((place + 0.5) * (side.double() / scale) - 0.5).clamp(min=0)
    before = centre.floor().long()
    after = torch.minimum(before + 1, side - 1)
    at = start + torch.stack([before, after, (2 * place + 1) * side // (2 * scale)])  # (3, B, 2, S), in the image
    at = torch.where((at >= 0) & (at < lengths[:, :, None]), at, OUTSIDE)
    columns, rows = at[:, :, 0, : size[1]], at[:, :, 1, : size[0]]  # (3, B, w), (3, B, h): before, after, nearest
    rows = torch.where(rows < 0, rows, pixels.starts[images, None] + rows * lengths[:, :1])
    weights = (centre - before).float()
    along, down = weights[:, 0, : size[1]][:, None, :, None], weights[:, 1, : size[0]][:, :, None, None]

    found = (rows[:2, None, :, :, None] + columns[None, :2, :, None, :]).clamp_(min=0)  # (2, 2, B, h, w): y, x
    colours = pixels.colours[found].unsqueeze(-1).view(torch.uint8).float()  # (2, 2, B, h, w, 4)
    if fill is not None:
        colours = torch.where((found == 0).unsqueeze(-1), F.pad(fill, (0, 1)), colours)
    upper, lower = torch.lerp(colours[:, 0], colours[:, 1], along)
    crops = torch.lerp(upper, lower, down)[..., :3].permute(0, 3, 1, 2)

    nearest = (rows[2, :, :, None] + columns[2, :, None, :]).clamp_(min=0)  # (B, h, w)
    labels = pixels.colours[nearest].unsqueeze(-1).view(torch.uint8)[..., 3]
    if instances is not None:
        alone = (pixels.instances[nearest] == instances[:, None, None]) | (labels == VOID)
        labels = torch.where(alone, labels, 0)
    return crops, labels


def _pair(x: int, y: int, device: torch.device) -> Tensor | int:
    """int64 (2, 1), made on the device, or the number that both are."""
    return x if x == y else torch.stack([torch.full((1,), value, device=device) for value in (x, y)])
