"""Dense CRF stage, against bare pydensecrf calls on one core, and on 2 cores against 1."""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pydensecrf.densecrf as densecrf

from benchmarks import world
from deconvnet import scores, tables
from demo.world.archives import jpeg


def bare(maps: list[np.ndarray], images: list[np.ndarray]) -> None:
    """The calls that a script would make, results thrown away."""
    for score_map, image in zip(maps, images, strict=True):
        classes, height, width = score_map.shape
        powers = np.exp(score_map - score_map.max(0))
        field = densecrf.DenseCRF2D(width, height, classes)
        field.setUnaryEnergy(-np.log(powers / powers.sum(0)).reshape(classes, -1))
        field.addPairwiseGaussian(sxy=3, compat=3, normalization=densecrf.NO_NORMALIZATION)
        field.addPairwiseBilateral(sxy=20, srgb=3, rgbim=image, compat=5, normalization=densecrf.NO_NORMALIZATION)
        np.asarray(field.inference(10)).argmax(0)


def main(folder: Path, count: int = 32) -> None:
    world.params(folder)
    rng = np.random.default_rng(0)
    rows, table, images, maps = [], [], [], []
    for number in range(count):
        image, classes, _, _ = world.mosaic(number)
        score_map = np.stack(
            [cv2.GaussianBlur((classes == label).astype(np.float32), (0, 0), 6) for label in range(11)]
        )
        score_map = 8 * score_map + np.stack(
            [cv2.resize(rng.normal(0, 2, (6, 8)), classes.shape[::-1]) for _ in range(11)]
        )
        image_id = f"p{number:03d}"
        images.append(image)
        maps.append(score_map.astype(np.float32))
        rows.append({"image_id": image_id, "image": jpeg(image)})
        table.append({"image_id": image_id} | scores.encode(maps[-1]))
    tables.write("val-000.parquet", pa.Table.from_pylist(rows))
    tables.write("scores.parquet", pa.Table.from_pylist(table, scores.SCHEMA))
    start = time.perf_counter()
    bare(maps, images)
    plain = time.perf_counter() - start
    stage = [sys.executable, "-m", "stages.crf"]
    startup = world.timed(*stage, "--help")
    seconds = [world.timed(*stage, "--dataset", "val-000.parquet", "--scores", "scores.parquet", "--out", "out.parquet",
                           "--processes", processes) - startup for processes in ("1", "2")]  # fmt: skip
    print(f"{count} images of 400x320, 11 classes: bare pydensecrf {plain:.1f} s; stage on 1 core {seconds[0]:.1f} s "
          f"= x{seconds[0] / plain:.2f} (at most 1.1 is wanted), on 2 cores {seconds[1]:.1f} s: "
          f"{seconds[0] / seconds[1]:.2f} times faster (at least 1.8 is wanted)")  # fmt: skip
