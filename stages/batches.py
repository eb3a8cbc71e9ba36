"""Crop tables to batches: images decoded once, windows cut, resized, cropped and flipped for a whole batch at a time.

What a batch holds depends on (seed, step) alone: there is no sampler state to save, and a resumed run sees the batches
that it would have seen.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages import shards
from stages.cli import InputError, progress
from stages.images import VOID, decode_image, decode_mask

BYTES = 5  # of a decoded pixel: red, green, blue, class; instance
OUTSIDE = -(1 << 40)  # an index so low that adding any other leaves it below 0


@dataclass(frozen=True)
class Pixels:
    """Images and masks of any sizes, decoded, end to end. Pixel 0 lies outside of every image: black, void."""

    colours: Tensor  # int32 (N,), the bytes red, green, blue, class id
    instances: Tensor  # uint8 (N,)
    starts: Tensor  # int64 (images,), the index of each image's first pixel
    sizes: Tensor  # int64 (images, 2), height and width


class Pictures:
    """The images of a data set that a crop table names, with their masks, by index into `ids`.

    Decoded into memory at once if they fit in `memory_gb` (on the GPU if they fit in half of what is free there);
    else their files' bytes are kept and each batch decodes what it needs, which is slower and is said so.
    """

    def __init__(self, dataset: Path, ids: set[str], classes: int, memory_gb: float, device: torch.device):
        columns = ["image_id", "height", "width", "image", "class_mask", "instance_mask"]
        paths = sorted(dataset.glob("*.parquet"))
        if not paths:
            raise InputError(f"{dataset}: holds no shard; run `dvc repro dataset`")
        tables = [shards.read(path, columns) for path in paths]
        self.rows = [row for table in tables for row in table.to_pylist() if row["image_id"] in ids]
        self.ids = [row["image_id"] for row in self.rows]
        self.sizes = {row["image_id"]: (row["height"], row["width"]) for row in self.rows}  # height, width
        if missing := ids - set(self.ids):
            raise InputError(
                f"{dataset}: lacks {len(missing)} images that the crop table names, such as {min(missing)}; "
                "run `dvc repro` for data set and crops"
            )
        self.classes, self.device, self.pixels = classes, torch.device("cpu"), None
        size = sum(row["height"] * row["width"] for row in self.rows) * BYTES
        if size <= memory_gb * 1e9:
            self.pixels = self._decode(range(len(self.rows)), bar=True)
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
        """Pixels that hold `images`, int64 (B,) indices into `ids`, and the indices of `images` in them."""
        if self.pixels is not None:
            return self.pixels, images.to(self.device)
        unique, places = torch.unique(images, return_inverse=True)
        return self._decode(unique.tolist()), places

    def _decode(self, indices, bar: bool = False) -> Pixels:
        sizes = torch.tensor([(self.rows[index]["height"], self.rows[index]["width"]) for index in indices])
        ends = 1 + sizes.prod(1).cumsum(0)
        colours = np.zeros((int(ends[-1]), 4), np.uint8)
        instances = np.zeros(int(ends[-1]), np.uint8)
        colours[0, 3] = VOID

        def put(index, height, width, end):
            image, class_mask, instance_mask = self._arrays(self.rows[index], height, width)
            part = slice(end - height * width, end)
            colours[part, :3] = image.reshape(-1, 3)
            colours[part, 3] = class_mask.reshape(-1)
            instances[part] = instance_mask.reshape(-1)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(put, indices, *sizes.T.tolist(), ends.tolist())
            for _ in progress(done, total=len(sizes), unit="image", desc="decoding", leave=False, disable=not bar):
                pass
        flat = torch.from_numpy(colours).view(torch.int32).squeeze(1)
        return Pixels(flat, torch.from_numpy(instances), ends - sizes.prod(1), sizes)

    def _arrays(self, row: dict, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            image, class_mask = decode_image(row["image"]), decode_mask(row["class_mask"])
            instance_mask = decode_mask(row["instance_mask"])
        except ValueError as error:
            raise InputError(f"{row['image_id']}: {error}; run `dvc repro dataset`") from None
        if not (image.shape[:2] == class_mask.shape == instance_mask.shape == (height, width)):
            raise InputError(f"{row['image_id']}: image and masks differ in size from {height}x{width}")
        ids = np.flatnonzero(np.bincount(class_mask.reshape(-1), minlength=VOID + 1)[:VOID])
        if len(ids) and ids[-1] >= self.classes:
            raise InputError(
                f"{row['image_id']}: label {ids[-1]} in the class mask; allowed: 0 to {self.classes - 1} and {VOID}"
            )
        return image, class_mask, instance_mask


def cut(
    pixels: Pixels, images: Tensor, windows: Tensor, resized: tuple[int, int], corners: Tensor, size: tuple[int, int],
    flips: Tensor, instances: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cut B windows, resize them to `resized`, take `size` from each at its corner, mirror those of `flips`.

    images: int64 (B,). windows: int64 (B, 4) as x, y, side_x, side_y in px of the image, anywhere. resized, size:
    height and width. corners: int64 (B, 2), x and y in the resized window. flips: bool (B,). instances: int64 (B,), the
    one object whose class is kept (the rest is background, void stays void), or None for the labels as they are.

    Returns float32 (B, 3, h, w) RGB 0 to 255, bilinear as `cv2.resize` and `F.interpolate` have it (at a window's edge
    its own pixels repeat), and uint8 (B, h, w) labels, nearest by pixel centres. Outside the image: black and void.
    """
    heights, widths = pixels.sizes[images].T
    ys = _axis(windows[:, 1], windows[:, 3], corners[:, 1], resized[0], size[0], torch.zeros_like(flips), heights)
    xs = _axis(windows[:, 0], windows[:, 2], corners[:, 0], resized[1], size[1], flips, widths)
    start = pixels.starts[images, None]
    (top, bottom, row), down = (torch.where(y < 0, y, start + y * widths[:, None]) for y in ys[:3]), ys[3].float()
    (left, right, column), along = xs[:3], xs[3].float()

    def index(y, x):  # int64 (B, h), (B, w) -> (B, h, w)
        return (y[:, :, None] + x[:, None, :]).clamp_(min=0)

    def colour(y, x):  # float32 (B, h, w, 4)
        return pixels.colours[index(y, x)].unsqueeze(-1).view(torch.uint8).float()

    along, down = along[:, None, :, None], down[:, :, None, None]
    upper = torch.lerp(colour(top, left), colour(top, right), along)
    lower = torch.lerp(colour(bottom, left), colour(bottom, right), along)
    crops = torch.lerp(upper, lower, down)[..., :3].permute(0, 3, 1, 2)

    nearest = index(row, column)
    labels = pixels.colours[nearest].unsqueeze(-1).view(torch.uint8)[..., 3]
    if instances is not None:
        alone = (pixels.instances[nearest] == instances[:, None, None]) | (labels == VOID)
        labels = torch.where(alone, labels, 0)
    return crops, labels


def _axis(start, side, corner, resized, size, flip, length):
    """Along one axis, int64 (B, size) pixels before, after and nearest to each sample, and float64 weights of `after`.

    start, side: of the windows, length: of the images, all (B,) in px. A pixel outside its image is OUTSIDE.
    """
    place = torch.arange(size, device=start.device)
    place = corner[:, None] + torch.where(flip[:, None], size - 1 - place, place)  # in the resized window
    side, start = side[:, None], start[:, None]
    centre = ((place + 0.5) * (side.double() / resized) - 0.5).clamp(min=0)
    before = centre.floor().long()
    after = torch.minimum(before + 1, side - 1)
    nearest = (2 * place + 1) * side // (2 * resized)

    def inside(x):
        x = start + x
        return torch.where((x >= 0) & (x < length[:, None]), x, OUTSIDE)

    return inside(before), inside(after), inside(nearest), centre - before


def held_out(image_ids: pd.Series, fraction: float) -> np.ndarray:
    """bool (N,): the images kept from training, a fixed pseudo-random `fraction` by the hash of their names."""
    chosen = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < fraction * 2**32
        for name in image_ids.unique()
    }
    return image_ids.map(chosen).to_numpy(bool)


class Batches:
    """Training batches of a crop table by step, and its held-out crops.

    table: the columns of data/crops/stage*.parquet. labels: "scene" all classes, "instance" those of the centred object
    alone (stage 1), "class" one a crop (pre-training). resized, size: height and width of the resized window and of the
    random crop of it. The same images are held out for every table and seed.
    """

    def __init__(
        self, pictures: Pictures, table: pd.DataFrame, labels: Literal["scene", "instance", "class"],
        resized: tuple[int, int], size: tuple[int, int], flip: bool, seed: int, fraction: float, limit: int,
        device: torch.device,
    ):  # fmt: skip
        self.pictures, self.labels, self.resized, self.size = pictures, labels, resized, size
        self.flip, self.seed, self.device = flip, seed, device
        index = {name: number for number, name in enumerate(pictures.ids)}
        self.images = torch.from_numpy(table["image_id"].map(index).to_numpy(np.int64, copy=True))
        self.windows = torch.from_numpy(table[["x", "y", "side_x", "side_y"]].to_numpy(np.int64, copy=True))
        self.instances = torch.from_numpy(table["instance"].to_numpy(np.int64, copy=True))
        self.class_ids = torch.from_numpy(table["class_id"].to_numpy(np.int64, copy=True))
        kept = held_out(table["image_id"], fraction)
        rows = np.arange(len(table))
        self.train_rows = np.repeat(rows[~kept], table["copies"][~kept])
        # as many crops as asked for, drawn as training draws them
        validation = np.repeat(rows[kept], table["copies"][kept])
        self.validation_rows = np.random.default_rng([seed, 1]).permutation(validation)[:limit]
        if not len(self.train_rows) or (fraction and not len(self.validation_rows)):
            raise InputError(
                f"held_out {fraction:g} of {table['image_id'].nunique()} images leaves no crops to train or validate on"
            )
        self._epoch, self._order = -1, None

    def train(self, step: int, batch: int, part: slice) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w) and labels of a part of the `batch` crops of a step, both counted from 0."""
        rows = np.array([self._row(number) for number in range(step * batch, (step + 1) * batch)])
        random = np.random.default_rng([self.seed, 2, step])
        spare = np.subtract(self.resized, self.size)[::-1] + 1  # x, y
        corners = random.integers(0, spare, (batch, 2))
        flips = (random.random(batch) < 0.5) & self.flip
        return self._make(rows[part], corners[part], flips[part])

    def validation(self, micro_batch: int, rank: int, world: int):
        """This rank's share of the held-out crops, centred and as they are, in batches."""
        corner = np.subtract(self.resized, self.size)[::-1] // 2
        for start in range(rank * micro_batch, len(self.validation_rows), world * micro_batch):
            rows = self.validation_rows[start : start + micro_batch]
            yield self._make(rows, np.tile(corner, (len(rows), 1)), np.zeros(len(rows), bool))

    def _row(self, number: int) -> int:
        """The table's row of a run's crop `number`: every epoch is all rows by their copies, in an order of its own."""
        epoch, place = divmod(number, len(self.train_rows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.train_rows)
            self._epoch = epoch
        return self._order[place]

    def _make(self, rows: np.ndarray, corners: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(rows)
        pixels, images = self.pictures.select(self.images[rows])
        at = pixels.colours.device
        images, labels = cut(
            pixels, images, self.windows[rows].to(at), self.resized, torch.from_numpy(corners).to(at), self.size,
            torch.from_numpy(flips).to(at), self.instances[rows].to(at) if self.labels == "instance" else None,
        )  # fmt: skip
        if self.labels == "class":
            labels = self.class_ids[rows]
        return images.to(self.device), labels.to(self.device)
