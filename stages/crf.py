"""Scores and images -> labels by a fully connected CRF (Krahenbuhl, Koltun, NIPS 2011), as the release uses it.

A row of data/labels/{system}_crf/{split}-NNN.parquet: `image_id` · `labels`, a palette PNG.
"""

import argparse
import functools
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pydensecrf.densecrf as densecrf

from stages import scores, shards
from stages.cli import InputError, progress, run
from stages.config import Range, load
from stages.images import decode_image, encode_mask


@dataclass(frozen=True)
class Params:
    iterations: Annotated[int, Range(1)]  # of mean-field inference
    smoothness_sxy: Annotated[float, Range(0.1)]  # px, standard deviation of the kernel over positions
    smoothness_weight: Annotated[float, Range(0)]
    appearance_sxy: Annotated[float, Range(0.1)]  # px, of the kernel over positions and colours
    appearance_srgb: Annotated[float, Range(0.1)]  # of 0..255
    appearance_weight: Annotated[float, Range(0)]


def refine(class_scores: np.ndarray, image: np.ndarray, params: Params) -> np.ndarray:
    """Scores float32 (C, H, W) and image uint8 (H, W, 3) -> labels uint8 (H, W) of the mean field's best classes.

    The unary energy is -log of the scores' softmax, a Potts model joins pixels.
    """
    classes, height, width = class_scores.shape
    field = densecrf.DenseCRF2D(width, height, classes)
    shifted = class_scores - class_scores.max(0)
    energy = np.log(np.exp(shifted).sum(0)) - shifted  # -log softmax
    field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(classes, -1), np.float32))
    field.addPairwiseGaussian(sxy=params.smoothness_sxy, compat=params.smoothness_weight)
    field.addPairwiseBilateral(
        sxy=params.appearance_sxy,
        srgb=params.appearance_srgb,
        rgbim=np.array(image),  # pydensecrf wants one that it could write to
        compat=params.appearance_weight,
    )
    marginals = np.asarray(field.inference(params.iterations))  # (C, H*W)
    return marginals.argmax(0).astype(np.uint8).reshape(height, width)


def fingerprint(dataset: Path, source: Path, classes: int, params: Params) -> str:
    """What a shard of labels is made from."""
    inputs = [shards.footer(path).get("content", "") for path in (dataset, source)]
    return shards.fingerprint(__file__, [vars(params), classes], *inputs)


def label(pair: tuple[dict, bytes], classes: int, params: Params) -> dict:
    """A row of the table, from a row of scores and the image's bytes."""
    row, data = pair
    image, maps = decode_image(data), scores.decode(row, classes)
    if image.shape[:2] != maps.shape[1:]:
        raise InputError(
            f"{row['image_id']}: scores of {maps.shape[2]}x{maps.shape[1]} px, but the image has "
            f"{image.shape[1]}x{image.shape[0]}; run `dvc repro`"
        )
    return {"image_id": row["image_id"], "labels": encode_mask(refine(maps, image, params))}


def end_with_parent() -> None:
    """For a process of a pool: end when its parent is killed, instead of waiting for work for ever."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.crf", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--scores", type=Path, required=True, help="shard of scores")
    parser.add_argument("--out", type=Path, required=True, help="shard of labels")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    params, classes = load(Params, "crf"), len(load(list[str], "dataset.classes"))
    rows = scores.read(options.scores, options.dataset)
    images = shards.read(options.dataset, ["image"])["image"].to_pylist()
    mark = fingerprint(options.dataset, options.scores, classes, params)  # now: the code may be edited while it runs
    one = functools.partial(label, classes=classes, params=params)
    bar = functools.partial(progress, total=len(rows), unit="image", desc=options.out.parent.name)
    if options.processes == 1:
        table = list(bar(map(one, zip(rows, images, strict=True))))
    else:
        with ProcessPoolExecutor(options.processes, initializer=end_with_parent) as pool:
            table = list(bar(pool.map(one, zip(rows, images, strict=True), chunksize=4)))
    shards.write(options.out, pa.Table.from_pylist(table, scores.LABELS_SCHEMA), mark)


if __name__ == "__main__":
    run(main)
