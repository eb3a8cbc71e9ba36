"""Crop tables to batches, which depend on (seed, step) alone.

There is no sampler state to save: a resumed run sees the batches that it would have seen.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deconvnet.errors import InputError
from deconvnet.pixels import ImageStore, cut


def held_out(image_ids: pd.Series, fraction: float) -> np.ndarray:
    """bool (N,): the images kept from training, a fixed pseudo-random `fraction` by the hash of their names."""
    chosen = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < fraction * 2**32
        for name in image_ids.unique()
    }
    return image_ids.map(chosen).to_numpy(bool)


def _spread(rows: np.ndarray, class_ids: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the rows (N,), each once: of every class equally many, as far as it has them."""
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    turn = pd.Series(class_ids[order]).groupby(class_ids[order]).cumcount().to_numpy()  # place within its class
    return rows[order[np.argsort(turn, kind="stable")[:limit]]]


class Batches:
    """Training batches of a crop table by step, and its held-out crops.

    table: the columns of data/crops/stage*.parquet. labels: "scene" all classes, "instance" those of the centred object
    alone (stage 1), "class" one a crop (pre-training). resized, size: height and width of the resized window and of the
    random crop of it. The same images are held out for every table and seed. fraction: share of the images that are
    held out; limit: of their crops, at most, each once, as many of every class as there are. fill: colour outside of
    the images, RGB 0 to 255.

    whole_images: every window starts at its image's top left corner. So that the image lies at the top left when it is
    mirrored, too, the window of a mirrored one ends at the image's right edge.

    Raises InputError where nothing is left to train on, or nothing to validate on though `fraction` is above 0.
    """

    def __init__(
        self, store: ImageStore, table: pd.DataFrame, labels: Literal["scene", "instance", "class"],
        resized: tuple[int, int], size: tuple[int, int], flip: bool, seed: int, fraction: float, limit: int,
        device: torch.device, fill: Sequence[float] = (0, 0, 0), whole_images: bool = False,
    ):  # fmt: skip
        self.store, self.labels, self.resized, self.size = store, labels, resized, size
        self.flip, self.seed, self.device, self.whole_images = flip, seed, device, whole_images
        self.fill = torch.tensor(fill, dtype=torch.float32, device=store.device) if any(fill) else None
        index = {name: number for number, name in enumerate(store.ids)}
        # int64 (N, 7): image, x, y, side_x, side_y, instance, class
        columns = [table["image_id"].map(index)]
        columns += [table[name] for name in ("x", "y", "side_x", "side_y", "instance", "class_id")]
        self.table = torch.from_numpy(np.stack(columns, 1).astype(np.int64))
        kept = held_out(table["image_id"], fraction)
        rows = np.arange(len(table))
        self.train_rows = np.repeat(rows[~kept], table["copies"][~kept])
        self.validation_rows = _spread(rows[kept], table["class_id"].to_numpy()[kept], limit, seed)
        if not len(self.train_rows) or (fraction and not len(self.validation_rows)):
            raise InputError(
                f"held_out {fraction:g} of {table['image_id'].nunique()} images leaves no crops to train or validate on"
            )
        self._epoch, self._order, self._lock = -1, None, threading.Lock()

    def train(self, step: int, batch: int, part: slice) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w) and labels of a part of the `batch` crops of a step, both counted from 0."""
        with self._lock:  # several lanes ask at once
            rows = np.array([self._row(number) for number in range(step * batch, (step + 1) * batch)])
        random = np.random.default_rng([self.seed, 2, step])
        spare = np.subtract(self.resized, self.size)[::-1] + 1  # x, y
        corners = random.integers(0, spare, (batch, 2))
        flips = (random.random(batch) < 0.5) & self.flip
        return self._make(rows[part], corners[part], flips[part])

    def validation(self, number: int, crops: int) -> tuple[Tensor, Tensor]:
        """The held-out crops from `number` on, at most `crops` of them, centred and as they are."""
        rows = self.validation_rows[number : number + crops]
        corner = np.subtract(self.resized, self.size)[::-1] // 2
        return self._make(rows, np.tile(corner, (len(rows), 1)), np.zeros(len(rows), bool))

    def _row(self, number: int) -> int:
        """The table's row of a run's crop `number`: every epoch is all rows by their copies, in an order of its own."""
        epoch, place = divmod(number, len(self.train_rows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.train_rows)
            self._epoch = epoch
        return self._order[place]

    def _make(self, rows: np.ndarray, corners: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        # All that a batch is made from in one tensor, so that it takes one copy to a GPU.
        drawn = torch.from_numpy(np.concatenate([corners, flips[:, None]], 1).astype(np.int64))
        plan = torch.cat([self.table[torch.from_numpy(rows)], drawn], 1)  # (B, 10)
        pixels, images = self.store.select(plan[:, 0])
        plan[:, 0] = images
        plan = _to(plan, pixels.colours.device)
        images, windows, mirrored = plan[:, 0], plan[:, 1:5], plan[:, 9] > 0
        if self.whole_images:
            x = torch.where(mirrored, pixels.sizes[images, 1] - windows[:, 2], windows[:, 0])
            windows = torch.cat([x[:, None], windows[:, 1:]], 1)
        crops, labels = cut(
            pixels, images, windows, self.resized, plan[:, 7:9], self.size, mirrored,
            plan[:, 5] if self.labels == "instance" else None, self.fill,
        )  # fmt: skip
        return _to(crops, self.device), _to(plan[:, 6] if self.labels == "class" else labels, self.device)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; nobody waits for a copy to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
