"""Pixels counted for the measurements of an evaluation: by class, by object size, at boundaries, by proposals.

`deconvnet.metrics` says how quotients are made of them. Void pixels are never counted.

Object size. An object is judged inside its box scaled 2x about its centre and clipped to the image, without void and
without other objects of its class, which a prediction is right to cover. The intersection and the union of the object
with the pixels predicted as its class are added up per class and size; a size's value is the mean over its classes.
So what spills over beside an object counts against it, and what is predicted far away does not.

Boundaries. A pixel is on a boundary where one of its four neighbours has another label. Void is a label too, so that
bands begin at the rim of VOC's void contours and not in their middle. The band of width w has the pixels at most w px
from a pixel on a boundary, centre to centre.
"""

from typing import NamedTuple

import cv2
import numpy as np

from deconvnet.images import VOID
from deconvnet.metrics import divide, ious, mean
from deconvnet.settings import Evaluation

SIZES = ("small", "medium", "large")  # names of the three that an experiment tells apart
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class Object(NamedTuple):
    kind: int  # class
    size: int  # how many of the settings' `sizes` its area reaches
    window: tuple[slice, slice]  # rows and columns of the image inside which it is judged
    own: np.ndarray  # bool, of the window's shape: the object
    other: np.ndarray  # bool: where its class would be wrong


class Truth(NamedTuple):
    """The truth of an image, prepared once for all systems."""

    key: np.ndarray  # (H, W): (band x classes + class) x classes; void: bands x classes x classes
    objects: list[Object]


class Counts(NamedTuple):
    """Counts over one or more images for S systems, B widths, Z sizes and C classes; int64.

    Each pixel is in one band: that of the smallest width that reaches it, or the last one, beyond all widths.
    """

    confusion: np.ndarray  # (S, B + 1, C, C) pixels: band, truth, predicted
    overlap: np.ndarray  # (S, 2, Z, C) pixels: intersection and union, size, class
    growth: np.ndarray  # (numbers of proposals, C, C) pixels: truth, predicted
    objects: np.ndarray  # (Z,): number of objects of each size


def bands(class_mask: np.ndarray, widths: list[int]) -> np.ndarray:
    """Index of each pixel's band, uint8 (H, W): the number of the ascending `widths` (px) below its distance."""
    inner = cv2.morphologyEx(class_mask, cv2.MORPH_GRADIENT, CROSS) == 0  # dilated = eroded: all neighbours alike
    # precise: the other masks only approximate the distance; without any boundary it is 65536 or more
    distance = cv2.distanceTransform(inner.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    band = np.zeros(class_mask.shape, np.uint8)
    for width in widths:
        band += distance > width
    return band


def prepare(
    row: dict, class_mask: np.ndarray, instance_mask: np.ndarray, classes: int, settings: Evaluation
) -> Truth:  # fmt: skip
    """The truth of an image, from its masks, uint8 (H, W), and its row of the data set.

    Used of the row: instance_classes, instance_boxes ([x, y, width, height], px) and instance_areas (px).
    """
    void = class_mask == VOID
    outside = (len(settings.boundary) + 1) * classes * classes
    key = bands(class_mask, settings.boundary).astype(np.min_scalar_type(outside + classes))  # uint16 for VOC: faster
    key *= classes
    key += class_mask
    key *= classes
    key[void] = outside
    objects = []
    columns = (row[f"instance_{name}"] for name in ("classes", "boxes", "areas"))
    for number, (kind, (x, y, width, height), area) in enumerate(zip(*columns, strict=True), 1):
        aside, above = (width + 1) // 2, (height + 1) // 2
        window = np.s_[max(y - above, 0) : y + height + above, max(x - aside, 0) : x + width + aside]
        own = (instance_mask[window] == number) & ~void[window]
        if not own.any():  # a number without pixels, or with void ones only
            continue
        other = (class_mask[window] != kind) & ~void[window] & ~own
        objects.append(Object(kind, int(np.searchsorted(settings.sizes, area, "right")), window, own, other))
    return Truth(key, objects)


def banded_confusion(labels: np.ndarray, key: np.ndarray, classes: int, widths: int) -> np.ndarray:
    """Pixels by band, truth and predicted label, int64 (widths + 1, C, C), of labels uint8 (H, W) and a Truth's key."""
    shape = (widths + 1, classes, classes)
    counted = np.bincount((key + labels).ravel(), minlength=np.prod(shape))[: np.prod(shape)]  # beyond: void
    return counted.reshape(shape)


def overlap(labels: np.ndarray, objects: list[Object], classes: int, sizes: int) -> np.ndarray:
    """Intersections and unions with the objects, added up: int64 (2, sizes, C), of labels uint8 (H, W)."""
    total = np.zeros((2, sizes, classes), np.int64)
    for kind, size, window, own, other in objects:
        said = labels[window] == kind
        total[0, size, kind] += np.count_nonzero(said & own)
        total[1, size, kind] += np.count_nonzero(own) + np.count_nonzero(said & other)
    return total


def count(
    row: dict, class_mask: np.ndarray, instance_mask: np.ndarray, labels: list[np.ndarray], growth: list[np.ndarray],
    classes: int, settings: Evaluation,
) -> Counts:  # fmt: skip
    """Counts of one image, from masks and labels, uint8 (H, W), and its row of the data set (see `prepare`).

    labels: of each system. growth: after each number of proposals.
    """
    truth = prepare(row, class_mask, instance_mask, classes, settings)
    widths, sizes = len(settings.boundary), len(settings.sizes) + 1
    grown = [banded_confusion(each, truth.key, classes, widths).sum(0) for each in growth]
    return Counts(
        np.stack([banded_confusion(each, truth.key, classes, widths) for each in labels]),
        np.stack([overlap(each, truth.objects, classes, sizes) for each in labels]),
        np.array(grown, np.int64).reshape(-1, classes, classes),
        np.bincount([each.size for each in truth.objects], minlength=sizes),
    )


def by_width(matrices: np.ndarray) -> np.ndarray:
    """Counts.confusion (S, B + 1, C, C) -> mean IoU in the whole of each band (S, B)."""
    return mean(ious(matrices.cumsum(1)[:, :-1]))


def by_size(overlaps: np.ndarray) -> np.ndarray:
    """Counts.overlap (S, 2, Z, C) -> mean IoU of the objects of each size (S, Z)."""
    return mean(divide(overlaps[:, 0], overlaps[:, 1]))
