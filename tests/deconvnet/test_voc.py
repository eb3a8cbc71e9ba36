import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet import settings, voc


def test_skipped_instance_numbers_and_stray_pixels_are_kept():
    classes, instances = np.zeros((4, 10), np.uint8), np.zeros((4, 10), np.uint8)
    instances[:, 5:] = 2  # no instance 1
    classes[:, 5:] = 3
    classes[0, 5] = 0  # a stray pixel
    kinds, boxes, areas = voc.instances(classes, instances, classes=4)
    assert (kinds.tolist(), boxes.tolist(), areas.tolist()) == ([0, 3], [[0, 0, 0, 0], [5, 0, 5, 4]], [0, 20])


@given(st.integers(0, 2**32 - 1))
def test_boxes_and_areas_by_a_loop(seed):
    mask = np.random.default_rng(seed).choice(np.array([0, 1, 3, 255], np.uint8), (7, 9), p=[0.7, 0.1, 0.1, 0.1])
    classes = np.where(mask == 3, 1, mask)
    _, boxes, areas = voc.instances(classes, mask, 2, np.array([1, 1, 1]))
    for number in (1, 2, 3):
        pixels = [(x, y) for y in range(7) for x in range(9) if mask[y, x] == number]
        assert areas[number - 1] == len(pixels)
        xs, ys = zip(*pixels, strict=True) if pixels else ([0], [0])
        expected = [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]
        assert boxes[number - 1].tolist() == (expected if pixels else [0, 0, 0, 0])


def test_class_of_an_instance_is_that_of_most_pixels_by_a_loop():
    rng = np.random.default_rng(0)
    instances = rng.integers(0, 4, (30, 40)).astype(np.uint8)
    classes = np.choose(instances, [0, 5, 2, 5]).astype(np.uint8)
    noise = rng.random(classes.shape) < 0.2
    classes[noise] = rng.integers(0, 7, noise.sum())
    kinds, _, areas = voc.instances(classes, instances, classes=7)
    for number in (1, 2, 3):
        values = [int(c) for c, i in zip(classes.ravel(), instances.ravel(), strict=True) if i == number]
        assert kinds[number - 1] == max(set(values), key=values.count)
        assert areas[number - 1] == len(values)


def test_counts_are_those_that_settings_may_name():
    assert tuple(voc.COUNTS) == settings.Dataset.COUNTS
    kinds = [("train", "voc")] * 2 + [("train", "sbd")] * 3 + [("val", "voc")] * 4 + [("test", "voc")]
    sources = [voc.Source(None, str(number), source, split) for number, (split, source) in enumerate(kinds)]
    assert voc.count_images(sources) == {"voc_train": 2, "val": 4, "trainaug": 5, "trainval_aug": 9, "test": 1}


@pytest.mark.parametrize("images, sizes", [(3, [2, 2, 3]), (7, [7]), (100, [7]), (1, [1] * 7)])
def test_shards_are_even(images, sizes):
    sources = [voc.Source(None, str(number), "voc", "train") for number in range(7)]
    planned = voc.plan(sources, images)
    assert list(planned) == [f"train-{number:03d}.parquet" for number in range(len(sizes))]
    assert [len(members) for members in planned.values()] == sizes
    assert sum(planned.values(), []) == sources


def test_reading_vocs_own_archives_needs_no_scipy():
    code = "import sys; sys.modules['scipy'] = None; import deconvnet.voc, numpy as np\n"
    code += "mask = np.eye(4, dtype=np.uint8)\nprint(deconvnet.voc.instances(mask, mask, 2)[1].tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[[0, 0, 4, 4]]\n"
