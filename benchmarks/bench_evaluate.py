"""Images a second that one core evaluates: one system, 21 classes, 500x375 px, with sizes and boundary bands."""

import resource
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from benchmarks import world
from deconvnet import tables
from deconvnet.images import VOID, encode_mask
from deconvnet.scores import LABELS_SCHEMA
from deconvnet.voc import SCHEMA
from experiment.params import load
from stages.evaluate import evaluate


def large(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (500, 375), interpolation=cv2.INTER_NEAREST)


def main(folder: Path, count: int = 200, shard_images: int = 100) -> None:
    world.params(folder)
    settings = load().evaluate
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, count, shard_images)):
        rows, labels = [], []
        for index in range(start, start + shard_images):
            image, classes, objects = map(large, world.mosaic(index)[:3])
            if index % 2:  # the shapes are 10 classes; these are the other 10
                classes[(classes > 0) & (classes < VOID)] += 10
            said = np.roll(classes, rng.integers(-9, 10, 2), (0, 1))  # wrong at every contour
            said[said == VOID] = 0
            x, y = rng.integers(0, 300, 2)
            said[y : y + 50, x : x + 80] = rng.integers(21)
            rows.append(world.row(f"{index:06d}", "val", image, classes, objects))
            labels.append({"image_id": f"{index:06d}", "labels": encode_mask(said)})
        tables.write(folder / f"dataset/val-{number:03d}.parquet", pa.Table.from_pylist(rows, SCHEMA))
        tables.write(folder / f"fcn8s/val-{number:03d}.parquet", pa.Table.from_pylist(labels, LABELS_SCHEMA))
    cv2.setNumThreads(1)
    folders = {"fcn8s": folder / "fcn8s"}
    seconds = []
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        counts, _, _ = evaluate(folder / "dataset", folders, 21, 0, settings)
        after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
        seconds.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall))
    cpu, wall = np.median(seconds, 0)
    print(
        f"{count} images, {counts.objects.sum()} objects, {len(settings.boundary)} bands: {count / cpu:.0f} images "
        f"a second of one core's time (at least 150 is wanted); {count / wall:.0f} a second on the clock"
    )
