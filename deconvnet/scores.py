"""Class scores of whole images, one byte per class and pixel, in tables of one row per image.

A row: `image_id` · `height`, `width` px · `windows` the number of proposals used (null: the whole image at once) ·
`labels` palette PNG of the best class · `growth` such PNGs after the first n proposals, n from `infer.growth`
(DeconvNet alone) · and the scores, in three columns that only `encode` and `decode` know.

Softmax turns scores into probabilities, and a maximum with 0 into the release's clipped scores, so one table serves
both ensembles and the CRF. A pixel's highest score is kept as float16. Each other score is kept as its distance below
the highest, on a scale of 255 steps that are finest near 0, where they decide: 0.01 there, 2 % of a large distance.
What that loses of mean IoU, and how large a row is, was measured (README).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from deconvnet import contents, tables
from deconvnet.errors import InputError
from deconvnet.images import encode_mask

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "windows": pa.int32(),
        "labels": pa.binary(),
        "growth": pa.list_(pa.binary()),
        "best": pa.binary(),
        "drops": pa.binary(),
        "deepest": pa.float32(),
    }
)
LABELS_SCHEMA = pa.schema({"image_id": pa.string(), "labels": pa.binary()})
STEPS = 255
FINE = 0.5  # score distance below which steps are about equal, above which they grow in proportion
CODEC = pa.Codec("zstd", 1)  # level 3 was measured to take twice the time for as many bytes


def encode(scores: np.ndarray) -> dict:
    """float32 (C, H, W) scores -> the columns that hold them, and `labels`. Among equal scores the first class wins.

    Raises ValueError for scores that are not finite, or beyond float16 (65504), in which the highest are kept.
    """
    return pack(*quantise(scores))


def quantise(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """float32 (C, H, W) scores -> labels uint8 (H, W), the highest float16 (H, W), the others uint8 (C, H, W).

    The last value has the largest distance from a highest score, and the highest score that is farthest from 0.
    """
    scores = np.ascontiguousarray(scores)
    best = scores.max(0)  # (H, W)
    labels = np.zeros(best.shape, np.uint8)
    for number in reversed(range(len(scores))):  # in a quarter of the time of argmax
        np.copyto(labels, np.uint8(number), where=scores[number] == best)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = best - scores  # (C, H, W), 0 or more; nan or inf where a score is
        half = best.astype(np.float16)
        deepest = distance.max()
        steps = np.log1p(distance / np.float32(FINE))
        steps *= np.float32(STEPS / max(np.log1p(float(deepest) / FINE), 1e-9))
        steps = np.rint(steps, out=steps).astype(np.uint8)
    # nothing may catch up with the best by rounding
    np.maximum(steps, (distance > 0).view(np.uint8), out=steps)
    steps[..., 1:] -= steps[..., :-1].copy()
    return labels, half, steps, np.array([deepest, best.flat[abs(best).argmax()]])


def pack(labels: np.ndarray, half: np.ndarray, steps: np.ndarray, extremes: np.ndarray) -> dict:
    """What `quantise` returns -> what `encode` returns. Raises its ValueError."""
    deepest, extreme = extremes.tolist()
    if not np.isfinite(deepest):
        raise ValueError("scores are not finite (nan or infinity)")
    if not np.isfinite(half).all():
        raise ValueError(f"a score of {extreme:g} is beyond float16's range of +-65504")
    return {
        "height": labels.shape[0],
        "width": labels.shape[1],
        "labels": encode_mask(labels),
        "best": CODEC.compress(_planes(half), asbytes=True),
        "drops": CODEC.compress(steps, asbytes=True),
        "deepest": deepest,
    }


def decode(row: dict, classes: int) -> np.ndarray:
    """A row's scores, float32 (C, H, W). Raises InputError where they are not of `classes` x height x width."""
    height, width = row["height"], row["width"]
    try:
        best = np.frombuffer(CODEC.decompress(row["best"], 2 * height * width), np.uint8).reshape(2, height, width)
        drops = np.frombuffer(CODEC.decompress(row["drops"], classes * height * width), np.uint8)
        drops = drops.reshape(classes, height, width)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{row['image_id']}: scores are not of {classes} classes x {height} x {width} px ({error}); "
            "infer again with a model of this data set"
        ) from None
    best = np.ascontiguousarray(best.transpose(1, 2, 0)).view(np.float16)[..., 0]  # (H, W)
    if not np.isfinite(best).all() or not 0 <= row["deepest"] < np.inf:
        raise InputError(f"{row['image_id']}: its scores are not finite; run `dvc repro`")
    table = (FINE * np.expm1(np.arange(STEPS + 1) / STEPS * np.log1p(row["deepest"] / FINE))).astype(np.float32)
    return best.astype(np.float32) - table[np.cumsum(drops, 2, dtype=np.uint8)]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Scores (C, H, W) -> probabilities, float32 (C, H, W)."""
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


def read(path: Path, dataset: Path, columns: list[str] | None = None) -> list[dict]:
    """Rows of a table of scores or labels, after a check that it has the images of the data set's shard, in order."""
    if not path.is_file():
        raise InputError(f"{path}: missing shard; run `dvc repro`")
    kind = contents.LABELS if columns == ["image_id", "labels"] else contents.SCORES
    rows = tables.read(path, columns, kind).to_pylist()
    images = tables.read(dataset, ["image_id", "height", "width"], contents.DATASET).to_pylist()
    if [row["image_id"] for row in rows] != [image["image_id"] for image in images]:
        raise InputError(f"{path}: {len(rows)} images that are not the {len(images)} of {dataset}; run `dvc repro`")
    for row, image in zip(rows, images, strict=True):  # before anything of that size is decoded
        if "height" in row and (row["height"], row["width"]) != (image["height"], image["width"]):
            raise InputError(
                f"{path}: {row['image_id']}: of {row['width']}x{row['height']} px, but the image has "
                f"{image['width']}x{image['height']}; run `dvc repro`"
            )
    return rows


def _planes(values: np.ndarray) -> np.ndarray:
    """float16 (H, W) -> uint8 (2, H, W): low and high bytes apart, which compress better."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(*values.shape, 2).transpose(2, 0, 1))
