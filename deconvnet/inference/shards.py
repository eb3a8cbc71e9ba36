"""Shards of images to shards of scores: decoded ahead of the net, encoded and written behind it."""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from deconvnet import contents, tables
from deconvnet.boxes import inside, proposed
from deconvnet.errors import InputError
from deconvnet.images import decode_image
from deconvnet.inference.encoding import encoder
from deconvnet.inference.whole_images import by_images
from deconvnet.inference.windows import by_windows, select
from deconvnet.overlap import ahead, behind
from deconvnet.progress import progress
from deconvnet.settings import Crops, FcnTraining, Inference

AHEAD = 16  # images decoded before their turn, at most


@dataclass(frozen=True)
class Shard:
    """What a shard of scores is made from. proposals: None for FCN-8s. count: of images."""

    dataset: Path
    proposals: Path | None
    out: Path
    count: int


@dataclass(frozen=True)
class Plan:
    """How images are scored. fcn: for its canvas and scale. growth: numbers of proposals after which to keep labels."""

    infer: Inference
    crops: Crops
    fcn: FcnTraining
    growth: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """An image that is decoded, uint8 (H, W, 3), with its windows, int32 (n, 4); None for FCN-8s."""

    image_id: str
    image: np.ndarray
    windows: np.ndarray | None


def pictures(shards: list[Shard], plan: Plan) -> Iterator[Picture]:
    """All images of the shards, in their order."""
    settings, crops = plan.infer.deconvnet, plan.crops
    for shard in shards:
        boxes = None if shard.proposals is None else proposed(shard.proposals)
        for entry in tables.read(shard.dataset, ["image_id", "image"], contents.DATASET).to_pylist():
            try:
                image = decode_image(entry["image"])
            except ValueError as error:
                raise InputError(f"{shard.dataset}: {entry['image_id']}: {error}; run `dvc repro dataset`") from None
            windows = None
            if boxes is not None:
                if not inside(boxes.get(entry["image_id"], np.zeros((0, 4))), *image.shape[:2]):
                    raise InputError(
                        f"{shard.proposals}: {entry['image_id']}: a box beyond the image; run `dvc repro proposals`"
                    )
                found, most = boxes.get(entry["image_id"], np.zeros((0, 4))), max(settings.proposals, *plan.growth, 0)
                windows = select(found, crops.context, crops.square, settings.min_side, most, image.shape[:2])
            yield Picture(entry["image_id"], image, windows)


def score(
    net: nn.Module, model: Path, shards: list[Shard], found: Iterator[Picture], plan: Plan
) -> Iterator[Callable[[], dict]]:
    """For each picture what encodes its scores into a row. Batches never mix shards: bytes depend on one alone."""
    infer = plan.infer
    for shard in shards:
        unseen, again = itertools.tee(itertools.islice(found, shard.count))
        images = (picture.image for picture in unseen)
        if net.spec["kind"] == "fcn":
            maps = by_images(net, images, plan.fcn.canvas, infer.fcn_batch, infer.precision, plan.fcn.scale)
            results = ((each, []) for each in maps)
        else:
            places = ((picture.image, picture.windows) for picture in unseen)
            results = by_windows(net, places, infer.deconvnet, infer.precision, plan.growth)
        for picture, result in zip(again, results, strict=True):
            yield functools.partial(row, model, picture, encoder(*result), infer.deconvnet.proposals)


def row(model: Path, picture: Picture, encode: Callable[[], dict], proposals: int) -> dict:
    """The row of a picture in a table of scores."""
    try:
        columns = encode()
    except ValueError as error:
        raise InputError(f"{model}: {picture.image_id}: {error}; train the model again") from None
    windows = None if picture.windows is None else min(len(picture.windows), proposals)
    return {"image_id": picture.image_id, "windows": windows} | columns


def make(
    net: nn.Module, model: Path, shards: list[Shard], plan: Plan, threads: int,
    write: Callable[[Shard, list[dict]], None],
) -> None:  # fmt: skip
    """Score the shards, one after the other, and `write` each with its rows, in a thread, as soon as it is done.

    net: ready for inference. model: its file, for messages. Raises InputError for an image that does not decode and for
    scores that are not finite.
    """
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as writer:
        found = ahead(pictures(shards, plan), AHEAD)
        rows = behind(pool, score(net, model, shards, found, plan), 2 * threads)
        written = None
        for shard in shards:
            name = f"{model.stem} {shard.dataset.stem}"
            table = list(progress(itertools.islice(rows, shard.count), total=shard.count, unit="image", desc=name))
            if written:
                written.result()  # two tables in memory at most
            written = writer.submit(write, shard, table)
        if written:
            written.result()
