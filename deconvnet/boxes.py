"""Boxes and windows: [x, y, width, height] in px, origin top left, half-open (a box covers x <= column < x + width)."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from deconvnet import contents, tables
from deconvnet.errors import InputError


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of a (N, 4) with every box of b (M, 4) -> float32 (N, M)."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    outer = a[:, None, 2:].prod(-1) + b[None, :, 2:].prod(-1) - inner
    return np.divide(inner, outer, out=np.zeros_like(inner), where=outer > 0)


def windows(boxes: np.ndarray, context: float | str, square: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """Boxes (N, 4) enlarged about their centres by the factor `context` -> windows int32 (N, 4).

    A square window takes the longer side: the six windows printed in the release's issues #3 and #11 are square. It
    may begin before the image and end beyond it: cropping pads, it never clips.

    context "whole": the one window (1, 4) is the image of `size`, height and width, whatever the boxes.
    """
    if context == "whole":
        return np.array([[0, 0, size[1], size[0]]], np.int32)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] * context
    if square:
        sides = np.repeat(sides.max(1, keepdims=True), 2, 1)
    sides = np.maximum(np.rint(sides), 1)
    corner = np.rint(boxes[:, :2] + boxes[:, 2:] / 2 - sides / 2)
    return np.concatenate([corner, sides], 1).astype(np.int32)


def proposed(path: Path) -> dict[str, np.ndarray]:
    """Boxes float32 (N, 4) of each image of a shard of proposals, best first. Raises InputError for a bad shard."""
    try:
        return by_image(tables.read(path, ["image_id", "rank", "x", "y", "width", "height"], contents.PROPOSALS))
    except ValueError as error:
        raise InputError(f"{path}: {error}; run `dvc repro proposals`") from None


def inside(boxes: np.ndarray, height: int, width: int) -> bool:
    """Whether boxes (N, 4) lie in an image of so many px; a px beyond is rounding."""
    return not len(boxes) or bool((boxes[:, :2] + boxes[:, 2:] <= (width + 1, height + 1)).all())


def by_image(proposals: pa.Table) -> dict[str, np.ndarray]:
    """Rows of a proposals table -> boxes float32 (N, 4) of each image, best first.

    Raises ValueError where an image's rows are no neighbours.
    """
    ids = proposals["image_id"].combine_chunks().dictionary_encode()
    indices = ids.indices.to_numpy()
    if (indices[1:] < indices[:-1]).any():
        raise ValueError("the rows of an image do not stand together")
    boxes = np.stack([proposals[name].to_numpy() for name in ("x", "y", "width", "height")], 1)
    ends = np.searchsorted(indices, np.arange(len(ids.dictionary) + 1))
    return {name: boxes[ends[k] : ends[k + 1]] for k, name in enumerate(ids.dictionary.to_pylist())}
