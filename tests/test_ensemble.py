"""The ensemble by hand, and its table."""

import numpy as np
import pyarrow as pa
import pytest

from stages import ensemble, scores, shards
from stages.cli import InputError


def test_mean_by_hand():
    a = np.log(np.float32([0.9, 0.1])).reshape(2, 1, 1) + 7  # softmax forgets what all classes share
    b = np.log(np.float32([0.3, 0.7])).reshape(2, 1, 1)
    combined = scores.softmax(ensemble.combine(a, b, "mean"))
    np.testing.assert_allclose(combined.ravel(), [0.6, 0.4], rtol=1e-5)


def test_product_by_hand():
    a, b = np.float32([2, -1, 3]).reshape(3, 1, 1), np.float32([0.5, -4, -2]).reshape(3, 1, 1)
    np.testing.assert_allclose(ensemble.combine(a, b, "product").ravel(), [1, 0, 0])


def test_probabilities_are_averaged_before_the_best_class_is_taken():
    a = np.log(np.float32([0.51, 0.49, 1e-9])).reshape(3, 1, 1)
    b = np.log(np.float32([1e-9, 0.49, 0.51])).reshape(3, 1, 1)
    assert ensemble.combine(a, b, "mean").argmax() == 1


def test_a_class_that_neither_knows_stays_finite():
    a = np.float32([0, -500]).reshape(2, 1, 1)
    assert np.isfinite(ensemble.combine(a, a, "mean")).all()


@pytest.fixture
def tables(experiment):
    shards.write("data/dataset/val-000.parquet", pa.table({"image_id": ["a", "b"]}))
    rng = np.random.default_rng(0)
    maps = {}
    for member in ("deconvnet", "fcn8s"):
        maps[member] = rng.normal(0, 3, (2, 3, 8, 9)).astype(np.float32)
        rows = [{"image_id": name} | scores.encode(found) for name, found in zip("ab", maps[member], strict=True)]
        shards.write(f"data/scores/{member}/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    return maps


def call():
    members = [f"data/scores/{member}/val-000.parquet" for member in ("deconvnet", "fcn8s")]
    ensemble.main(["--dataset", "data/dataset/val-000.parquet", "--members", *members, "--out", "out.parquet"])
    return shards.read("out.parquet").to_pylist()


def test_the_table_has_the_mean_of_both_members(tables):
    for row, a, b in zip(call(), tables["deconvnet"], tables["fcn8s"], strict=True):
        mean = (np.exp(a) / np.exp(a).sum(0) + np.exp(b) / np.exp(b).sum(0)) / 2
        np.testing.assert_allclose(scores.softmax(scores.decode(row, 3)), mean, atol=0.02)


def test_members_of_other_sizes_are_refused(tables):
    rows = [{"image_id": name} | scores.encode(np.zeros((3, 5, 5), np.float32)) for name in "ab"]
    shards.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    with pytest.raises(InputError, match="a: scores of 9x8 px in data/scores/deconvnet.*, 5x5 in data/scores/fcn8s"):
        call()
