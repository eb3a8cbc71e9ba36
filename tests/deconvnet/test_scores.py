"""Stored scores: what comes back, what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deconvnet import scores, tables
from deconvnet.errors import InputError
from deconvnet.images import decode_mask, encode_mask
from deconvnet.inference import encoding


def smooth(seed, classes=21, height=40, width=50, spread=12):
    """Scores as networks give them: a coarse random map, interpolated."""
    import cv2

    coarse = np.random.default_rng(seed).normal(0, spread, (classes, 6, 7)).astype(np.float32)
    return np.stack([cv2.resize(plane, (width, height)) for plane in coarse])


def test_what_comes_back_is_close_where_it_matters():
    maps = smooth(0)
    back = scores.decode({"image_id": "a"} | scores.encode(maps), 21)
    distance, again = maps.max(0) - maps, back.max(0) - back
    np.testing.assert_allclose(back.max(0), maps.max(0), rtol=1e-3)
    # a step is (FINE + distance) x log(1 + deepest / FINE) / STEPS; rounding is off by half of one
    step = (scores.FINE + distance) * np.log1p(distance.max() / scores.FINE) / scores.STEPS
    assert (abs(again - distance) <= 0.5 * step + 0.01).all()
    assert abs(scores.softmax(back) - scores.softmax(maps)).max() < 0.01


@given(arrays.arrays(np.float32, (4, 3, 5), elements=st.floats(-50, 50, width=32)))
def test_the_best_class_survives_and_ties_go_to_the_first(maps):
    row = {"image_id": "a"} | scores.encode(maps)
    np.testing.assert_array_equal(decode_mask(row["labels"]), maps.argmax(0))
    np.testing.assert_array_equal(scores.decode(row, 4).argmax(0), maps.argmax(0))


def test_steps_by_hand():
    # distances below the best, 3: 3, 0 and 0.5; the deepest has step 255, 0.5 has 255 x log(1 + 1) / log(1 + 6) = 90.8
    labels, half, steps, extremes = scores.quantise(np.float32([[[0, 3, 2.5]], [[3, 3, 3]]]))
    assert labels.tolist() == [[1, 0, 1]] and half.tolist() == [[3, 3, 3]] and extremes.tolist() == [3, 3]
    assert np.cumsum(steps, 2, dtype=np.uint8).tolist() == [[[255, 0, 91]], [[0, 0, 0]]]


@pytest.mark.parametrize("spread", [0.01, 12, 1000])
def test_a_devices_steps_are_the_hosts(spread):
    maps = smooth(3, spread=spread)
    maps[:, 5:9] = 0  # ties
    maps[4, 30] = maps[7, 30]
    ours = scores.quantise(maps)
    theirs = [tensor.numpy() for tensor in encoding.quantise(torch.from_numpy(maps))]
    for number in (0, 1, 3):
        np.testing.assert_array_equal(theirs[number], ours[number])
        assert theirs[number].dtype == ours[number].dtype
    one, two = (np.cumsum(steps, 2, dtype=np.uint8).astype(int) for steps in (ours[2], theirs[2]))
    assert abs(one - two).max() <= 1 and (one != two).mean() < 1e-3  # the last digit of a logarithm
    np.testing.assert_array_equal(one == 0, two == 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520])
def test_a_device_leaves_it_to_the_host_to_refuse(value):
    maps = smooth(2, classes=3, height=4, width=5)
    maps[1, 2, 3] = value
    with pytest.raises(ValueError, match="not finite|a score of 65520 is beyond"):
        scores.pack(*(tensor.numpy() for tensor in encoding.quantise(torch.from_numpy(maps))))


def test_what_is_encoded_in_a_pool_is_what_is_encoded_at_once():
    maps = smooth(4)
    labels = torch.from_numpy(maps.argmax(0)).byte()
    row = encoding.encoder(torch.from_numpy(maps), [labels, labels])()
    assert row == scores.encode(maps) | {"growth": [encode_mask(labels.numpy())] * 2}


def test_nothing_seen_stays_nothing():
    back = scores.decode({"image_id": "a"} | scores.encode(np.zeros((3, 4, 5), np.float32)), 3)
    assert not back.any()


def test_softmax():
    np.testing.assert_allclose(scores.softmax(np.log(np.float32([[[1]], [[3]]])))[:, 0, 0], [0.25, 0.75], rtol=1e-6)
    assert np.isfinite(scores.softmax(np.full((2, 1, 1), 1e30, np.float32))).all()


@pytest.mark.parametrize("classes", [20, 22])
def test_scores_of_other_classes_are_refused(classes):
    with pytest.raises(InputError, match=rf"a: scores are not of {classes} classes x 40 x 50 px"):
        scores.decode({"image_id": "a"} | scores.encode(smooth(1)), classes)


def test_a_table_of_other_images_is_refused(tmp_path):
    dataset, path = tmp_path / "val-000.parquet", tmp_path / "scores" / "val-000.parquet"
    tables.write(dataset, pa.table({"image_id": ["a", "b"], "height": [4, 4], "width": [5, 5]}))
    with pytest.raises(InputError, match="scores/val-000.parquet: missing shard; run `dvc repro`"):
        scores.read(path, dataset)
    rows = [{"image_id": name, "labels": b"x"} for name in "ba"]
    tables.write(path, pa.Table.from_pylist(rows, scores.LABELS_SCHEMA))
    with pytest.raises(InputError, match="2 images that are not the 2 of"):
        scores.read(path, dataset, ["image_id", "labels"])


def test_scores_of_another_size_are_refused_before_they_are_decoded(tmp_path):
    tables.write(tmp_path / "d", pa.table({"image_id": ["a"], "height": [4], "width": [5]}))
    row = {"image_id": "a"} | scores.encode(smooth(1)) | {"height": 60_000, "width": 60_000}
    tables.write(tmp_path / "s", pa.Table.from_pylist([row], scores.SCHEMA))
    with pytest.raises(InputError, match="s: a: of 60000x60000 px, but the image has 5x4; run `dvc repro`"):
        scores.read(tmp_path / "s", tmp_path / "d")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_not_decoded(value):
    row = {"image_id": "a"} | scores.encode(np.zeros((2, 4, 5), np.float32))
    high = np.full((4, 5), value, np.float16)
    best = scores.CODEC.compress(scores._planes(high), asbytes=True)
    for damage in ({"best": best}, {"deepest": value}):
        with pytest.raises(InputError, match="a: its scores are not finite"):
            scores.decode(row | damage, 2)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.nan, "scores are not finite"),
        (np.inf, "scores are not finite"),
        (-np.inf, "scores are not finite"),
        (65520, "a score of 65520 is beyond float16's range"),  # the first that rounds to infinity
    ],
)
def test_scores_that_cannot_be_kept_are_refused(value, message):
    maps = smooth(2, classes=3, height=4, width=5)
    maps[1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        scores.encode(maps)


def test_scores_that_are_all_far_below_zero_are_refused():
    maps = np.full((3, 4, 5), -1.0, np.float32)
    maps[:, 2, 3] = -70_000
    with pytest.raises(ValueError, match="a score of -70000 is beyond"):
        scores.encode(maps)


def test_the_largest_score_that_float16_holds_is_kept():
    maps = np.full((2, 1, 1), -65504, np.float32)
    maps[0] = 65504
    assert scores.decode({"image_id": "a"} | scores.encode(maps), 2)[0, 0, 0] == 65504
