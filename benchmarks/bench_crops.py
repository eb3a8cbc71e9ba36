"""Stage-2 windows of 12,000 images with 2,000 proposals each: time and peak memory."""

import resource
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import world
from deconvnet import tables
from deconvnet.proposals import SCHEMA as PROPOSALS
from deconvnet.voc import SCHEMA
from demo.world.shapes import CLASSES


def main(folder: Path, images: int = 12_000, boxes: int = 2000, shard_images: int = 256) -> None:
    world.params(folder)
    rng = np.random.default_rng(0)
    picture = world.row("", "train", *world.mosaic(0)[:3])
    for number, start in enumerate(range(0, images, shard_images)):
        ids = [f"{index:06d}" for index in range(start, min(start + shard_images, images))]
        rows, found = [], []
        for image_id in ids:
            sides = rng.uniform(20, 200, (3, 2))
            objects = np.concatenate([rng.uniform(0, 200, (3, 2)), sides], 1)
            near = objects[rng.integers(0, 3, boxes)] + rng.normal(0, 25, (boxes, 4))  # about a quarter overlap enough
            found.append(np.concatenate([near[:, :2], np.maximum(near[:, 2:], 5)], 1).astype(np.float32))
            kinds = rng.integers(1, len(CLASSES), 3).tolist()
            row = {"image_id": image_id, "instance_classes": kinds, "instance_boxes": objects.astype(int).tolist()}
            rows.append(picture | row | {"instance_areas": [1, 1, 1]})
        tables.write(folder / f"data/dataset/train-{number:03d}.parquet", pa.Table.from_pylist(rows, SCHEMA))
        columns = [np.repeat(ids, boxes), np.tile(np.arange(1, boxes + 1, dtype=np.int32), len(ids))]
        columns += [*np.concatenate(found).T, np.zeros(len(ids) * boxes, np.float32)]
        table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=PROPOSALS)
        tables.write(folder / f"data/proposals/train-{number:03d}.parquet", table)
    seconds = world.timed(sys.executable, "-m", "stages.crops", "stage2", "--dataset", "data/dataset", "--proposals",
                          "data/proposals", "--out", "crops.parquet", "--balance", "balance.csv",
                          "--render", "sheet.png")  # fmt: skip
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    windows = len(tables.read("crops.parquet", ["copies"]))
    print(f"{images} images x {boxes} proposals: {seconds:.0f} s, {memory:.2f} GB at the peak, {windows} windows used "
          "(under 120 s and 4 GB is wanted)")  # fmt: skip
