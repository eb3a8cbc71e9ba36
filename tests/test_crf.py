"""The dense CRF against mean field worked out over all pairs of pixels, and its table."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from stages import crf, scores, shards
from stages.cli import InputError
from stages.crf import Params, refine
from stages.images import decode_mask
from tests.conftest import jpeg

PARAMS = Params(5, 3, 3, 20, 3, 5)


def mean_field(class_scores, image, params):
    """Krahenbuhl and Koltun's equations with dense matrices, kernels normalised on both sides as in their code."""
    classes, height, width = class_scores.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    near = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    colours = image.reshape(-1, 3).astype(float)
    unlike = ((colours[:, None] - colours) ** 2).sum(-1)
    kernels = [
        (params.smoothness_weight, np.exp(-near / (2 * params.smoothness_sxy**2))),
        (params.appearance_weight,
         np.exp(-near / (2 * params.appearance_sxy**2) - unlike / (2 * params.appearance_srgb**2))),
    ]  # fmt: skip
    total = 0
    for weight, kernel in kernels:
        scale = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        total = total + weight * scale[:, None] * kernel * scale
    unary = -np.log(scores.softmax(class_scores)).reshape(classes, -1)
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(params.iterations):
        q = np.exp(-unary + q @ total)
        q /= q.sum(0)
    return q.argmax(0).reshape(height, width), np.sort(q, 0)[-1] - np.sort(q, 0)[-2]


def two_halves(seed=0, height=24, width=32):
    """An image whose left half is dark, with scores that find the border three columns too far and are noisy."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, width // 2 :] = 200
    maps = rng.normal(0, 1.2, (3, height, width)).astype(np.float32)
    maps[0, :, : width // 2 + 3] += 2
    maps[1, :, width // 2 + 3 :] += 2
    return image, maps


def test_labels_are_those_of_mean_field_over_all_pairs():
    image, maps = two_halves()
    wanted, margin = mean_field(maps, image, PARAMS)
    got = refine(maps, image, PARAMS)
    assert (got == wanted).mean() > 0.98  # the permutohedral lattice approximates the kernels
    assert (got != maps.argmax(0)).mean() > 0.1


def test_the_border_follows_the_image():
    image, maps = two_halves()
    labels = refine(maps, image, PARAMS)
    assert (labels[:, :16] == 0).mean() > 0.99
    assert (labels[:, 16:] == 1).mean() > 0.99


def test_without_weights_labels_stay():
    image, maps = two_halves()
    nothing = dataclasses.replace(PARAMS, smoothness_weight=0, appearance_weight=0)
    np.testing.assert_array_equal(refine(maps, image, nothing), maps.argmax(0))


@pytest.fixture
def tables(experiment):
    images, rows = [], []
    for number in range(3):
        image, maps = two_halves(number)
        images.append(jpeg(image))
        rows.append({"image_id": f"p{number}"} | scores.encode(maps))
    names = [row["image_id"] for row in rows]
    shards.write("data/dataset/val-000.parquet", pa.table({"image_id": names, "image": images}))
    shards.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    return rows


def call(processes):
    crf.main(["--dataset", "data/dataset/val-000.parquet", "--scores", "data/scores/fcn8s/val-000.parquet",
              "--out", "out.parquet", "--processes", str(processes)])  # fmt: skip
    return shards.read("out.parquet").to_pylist()


def test_processes_change_nothing(tables):
    one = call(1)
    assert [row["image_id"] for row in one] == ["p0", "p1", "p2"]
    before = crf.Path("out.parquet").read_bytes()
    call(2)
    assert crf.Path("out.parquet").read_bytes() == before
    assert (decode_mask(one[0]["labels"])[:, 16:] == 1).mean() > 0.99


@pytest.mark.parametrize("processes", [1, 2])
def test_scores_of_another_size_than_the_image_are_refused(tables, processes):
    tables[1] |= scores.encode(np.zeros((3, 24, 30), np.float32))
    shards.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(tables, scores.SCHEMA))
    with pytest.raises(InputError, match="p1: scores of 30x24 px, but the image has 32x24"):
        call(processes)
    assert not crf.Path("out.parquet").exists()
