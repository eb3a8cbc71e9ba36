"""The dense CRF against mean field worked out over all pairs of pixels."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deconvnet import scores
from deconvnet.crf import refine, refine_rows
from deconvnet.settings import Crf
from tests.conftest import jpeg

SYMMETRIC = Crf(5, "symmetric", 3, 3, 20, 3, 5)
NONE = Crf(3, "none", 1, 0.3, 3, 20, 0.1)  # sums that are not normalised are large: small kernels, small weights


def mean_field(class_scores, image, params):
    """Krahenbuhl and Koltun's equations with dense matrices, kernels as they are or normalised on both sides."""
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
        scale = 1 / np.sqrt(kernel.sum(1) + 1e-20) if params.normalization == "symmetric" else np.ones(len(kernel))
        total = total + weight * scale[:, None] * kernel * scale
    unary = -np.log(scores.softmax(class_scores)).reshape(classes, -1)
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(params.iterations):
        q = np.exp(-unary + q @ total)
        q /= q.sum(0)
    return q.argmax(0).reshape(height, width)


def two_halves(seed=0, height=24, width=32):
    """An image whose left half is dark, with scores that find the border three columns too far and are noisy."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, width // 2 :] = 200
    maps = rng.normal(0, 1.2, (3, height, width)).astype(np.float32)
    maps[0, :, : width // 2 + 3] += 2
    maps[1, :, width // 2 + 3 :] += 2
    return image, maps


@pytest.mark.parametrize("settings, agreement, other", [(SYMMETRIC, 0.98, NONE), (NONE, 0.97, SYMMETRIC)])
def test_labels_are_those_of_mean_field_over_all_pairs(settings, agreement, other):
    image, maps = two_halves()
    wanted = mean_field(maps, image, settings)
    got = refine(maps, image, settings)
    assert (got == wanted).mean() > agreement  # the permutohedral lattice approximates the kernels
    assert (got != maps.argmax(0)).mean() > 0.1
    wrong = dataclasses.replace(settings, normalization=other.normalization)
    if settings is NONE:  # where the kernels are small enough, the normalisation decides
        assert (refine(maps, image, wrong) == wanted).mean() < 0.9


def test_without_normalisation_the_pairwise_term_eats_an_isolated_region():
    """A block of 30x30 px with a margin of 10 in a flat image: among its neighbours within 20 px it is a minority."""
    image = np.full((60, 60, 3), 120, np.uint8)
    maps = np.zeros((2, 60, 60), np.float32)
    maps[0] = 10
    maps[:, 15:45, 15:45] = np.float32([0, 10])[:, None, None]
    kept = {name: (refine(maps, image, Crf(normalization=name)) == 1).sum() for name in ("none", "symmetric")}
    assert kept == {"none": 0, "symmetric": 900}


def test_the_border_follows_the_image():
    image, maps = two_halves()
    labels = refine(maps, image, SYMMETRIC)
    assert (labels[:, :16] == 0).mean() > 0.99
    assert (labels[:, 16:] == 1).mean() > 0.99


def test_without_weights_labels_stay():
    image, maps = two_halves()
    nothing = dataclasses.replace(SYMMETRIC, smoothness_weight=0, appearance_weight=0)
    np.testing.assert_array_equal(refine(maps, image, nothing), maps.argmax(0))


def table(count):
    images, rows = [], []
    for number in range(count):
        image, maps = two_halves(number)
        images.append(jpeg(image))
        rows.append({"image_id": f"p{number}"} | scores.encode(maps))
    return rows, images


def test_processes_start_without_a_fork_of_this_one(monkeypatch):
    """pyarrow's threads may hold locks here that a forked process would wait for, for ever."""
    rows, images = table(6)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    found = list(refine_rows(rows, images, 3, SYMMETRIC, processes=2))
    assert found == list(refine_rows(rows, images, 3, SYMMETRIC))
    assert [row["image_id"] for row in found] == [f"p{number}" for number in range(6)]


def alive(pid: int) -> bool:
    """There is such a process, and it is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_end_when_their_parent_is_killed():
    script = """
import multiprocessing, sys
from tests.deconvnet.test_crf import SYMMETRIC, refine_rows, table
if __name__ == "__main__":
    rows, images = table(4)
    for row in refine_rows(rows * 5000, images * 5000, 3, SYMMETRIC, processes=2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        parent.kill()
    end = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "a process outlived its parent"
        time.sleep(0.05)
