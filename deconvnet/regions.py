"""Pixels counted region by region of an image, for comparisons in which some pixels matter more than others.

All of the image; bands at boundaries and objects by size, as `deconvnet.evaluation` defines them; and thin parts. A
part of an object is thin where no disc of a given diameter inside the object covers it, and it has at least the area of
that diameter squared: legs, handles, spokes, and not the corners of what is wide. The region has the pixels at most
half the diameter from such a part, so that what is labelled too generously counts as well.
"""

import cv2
import numpy as np

from deconvnet.bootstrap import parts
from deconvnet.evaluation import banded_confusion, overlap, prepare
from deconvnet.images import VOID
from deconvnet.metrics import confusion
from deconvnet.settings import Evaluation


def thin(class_mask: np.ndarray, instance_mask: np.ndarray, diameter: int) -> np.ndarray:
    """The region of thin parts, bool (H, W), from masks uint8 (H, W). Void belongs to it where it is near.

    diameter: px, odd, so that a disc has a middle.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    found = np.zeros(class_mask.shape, np.uint8)
    for number in np.unique(instance_mask[(instance_mask > 0) & (instance_mask != VOID)]):
        own = (instance_mask == number).astype(np.uint8)
        own = cv2.copyMakeBorder(own, *[diameter] * 4, cv2.BORDER_REPLICATE)  # an object that goes on beyond the image
        rest = (own - cv2.morphologyEx(own, cv2.MORPH_OPEN, disc))[diameter:-diameter, diameter:-diameter]
        _, labels, stats, _ = cv2.connectedComponentsWithStats(rest, connectivity=8)
        large = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= diameter**2)
        found |= np.isin(labels, large[large > 0]).astype(np.uint8)
    return cv2.dilate(found, disc) > 0


def count(
    row: dict, class_mask: np.ndarray, instance_mask: np.ndarray, labels: np.ndarray, classes: int, chosen: Evaluation,
    diameter: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """By region, the pixels that are right, true and predicted, by class: int64 (3, C), as `bootstrap.parts`.

    row, class_mask, instance_mask: the truth, as of `evaluation.prepare`. labels: uint8 (H, W). For objects of a size
    `predicted` is such that true + predicted - right is the union of `evaluation.overlap`.
    """
    truth = prepare(row, class_mask, instance_mask, classes, chosen)
    banded = banded_confusion(labels, truth.key, classes, len(chosen.boundary)).cumsum(0)
    found = {"all": parts(banded[-1])}
    found |= {f"within {width}": parts(band) for width, band in zip(chosen.boundary, banded, strict=False)}
    region = thin(class_mask, instance_mask, diameter)
    found["thin"] = parts(confusion(class_mask[region], labels[region], classes))
    both = overlap(labels, truth.objects, classes, len(chosen.sizes) + 1)
    for size, (inter, union) in enumerate(zip(*both, strict=True), 1):
        found[f"size {size}"] = np.stack([inter, union, inter])
    return found
