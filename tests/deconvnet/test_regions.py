"""Pixels by region: thin parts by hand, the others against the evaluation's own counts."""

import numpy as np
import pytest

from deconvnet import evaluation, regions
from deconvnet.bootstrap import parts
from deconvnet.images import VOID
from deconvnet.metrics import confusion
from deconvnet.settings import Evaluation

CHOSEN = Evaluation("val", [40, 400], [1, 3])


def lollipop():
    """A square of 20 px with a stick of 3 px width and 24 px length below it: one object of class 1."""
    mask = np.zeros((64, 48), np.uint8)
    mask[8:28, 10:30] = 1
    mask[28:52, 18:21] = 1
    return mask


def test_a_stick_is_thin_and_a_square_is_not():
    mask = lollipop()
    found = regions.thin(mask, mask, 7)
    assert found[32:52, 18:21].all()  # the stick, but for its root inside the square's disc
    assert found[40, 15:24].tolist() == [True] * 9  # and 3 px on either side of it
    assert not found[40, :15].any() and not found[40, 24:].any()
    assert not found[8:22, 10:30].any()  # neither the square nor its upper corners


def test_what_the_images_rim_cuts_is_not_thin():
    mask = np.zeros((40, 40), np.uint8)
    mask[:3, 5:35] = 1  # the lower rim of something wide
    assert not regions.thin(mask, mask, 7).any()


def test_every_object_is_looked_at_by_itself():
    instances = np.zeros((40, 40), np.uint8)
    for number in range(1, 7):
        instances[5:35, 5 + 3 * number : 8 + 3 * number] = number  # side by side they are as wide as long
    assert regions.thin((instances > 0).astype(np.uint8), instances, 7)[10:30, 8:23].all()
    assert not regions.thin((instances > 0).astype(np.uint8), (instances > 0).astype(np.uint8), 7).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_regions_are_the_evaluations(seed):
    random = np.random.default_rng(seed)
    classes, instances = np.zeros((2, 60, 80), np.uint8)
    row = {"instance_classes": [], "instance_boxes": [], "instance_areas": []}
    for number, (y, x, height, width) in enumerate([(5, 5, 6, 5), (20, 10, 15, 12), (15, 40, 30, 35)], 1):
        part = np.s_[y : y + height, x : x + width]
        classes[part], instances[part] = 1 + number % 2, number
        row["instance_classes"].append(1 + number % 2)
        row["instance_boxes"].append([x, y, width, height])
        row["instance_areas"].append(height * width)
    classes[14] = instances[14] = VOID
    labels = np.where(random.uniform(size=classes.shape) < 0.7, np.where(classes == VOID, 0, classes), 2).astype(
        np.uint8
    )
    found = regions.count(row, classes, instances, labels, 3, CHOSEN, 7)
    counted = evaluation.count(row, classes, instances, [labels], [], 3, CHOSEN)

    assert found["all"].tolist() == parts(confusion(classes, labels, 3)).tolist()
    for index, width in enumerate((1, 3)):
        assert found[f"within {width}"].tolist() == parts(counted.confusion[0, : index + 1].sum(0)).tolist()
    region = regions.thin(classes, instances, 7)
    assert found["thin"].tolist() == parts(confusion(classes[region], labels[region], 3)).tolist()
    for size in range(3):
        right, true, predicted = found[f"size {size + 1}"]
        inter, union = counted.overlap[0, :, size]
        assert right.tolist() == inter.tolist() and (true + predicted - right).tolist() == union.tolist()
    assert counted.objects.tolist() == [1, 1, 1]
