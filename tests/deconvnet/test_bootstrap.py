"""Intervals of mean IoU: against scipy's bootstrap, and cases worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from deconvnet import bootstrap, metrics

random = np.random.default_rng(7)
# 40 images of two systems and three classes; class 2 is in few of them
CONFUSIONS = random.poisson(20, (40, 2, 3, 3)) * (1 + 4 * np.eye(3, dtype=int)) * random.integers(1, 4, (40, 1, 1, 1))
CONFUSIONS[5:, :, 2] = 0
PARTS = bootstrap.parts(CONFUSIONS)


def test_parts_by_hand():
    assert bootstrap.parts(np.array([[3, 1], [2, 4]])).tolist() == [[3, 4], [4, 6], [5, 5]]


def test_all_images_once_have_the_evaluations_mean_iou():
    drawn = bootstrap.mean_ious(PARTS.sum(0, keepdims=True), 1)
    assert drawn[0] == pytest.approx(metrics.mean(metrics.ious(CONFUSIONS.sum(0))))


def test_a_class_missing_in_a_draw_has_its_iou_of_all_images():
    one = bootstrap.parts(np.array([[[8, 0], [0, 0]], [[0, 0], [5, 5]]]))  # class 0 alone, then class 1 alone
    drawn = bootstrap.mean_ious(one, 200)
    # all images: class 0 has 8 of 8 + 5, class 1 has 5 of 10. The first twice: class 0 has 1, class 1 keeps 5 / 10; the
    # second twice: class 1 has 5 / 10, class 0 keeps 8 / 13
    found = np.unique(drawn.round(6))
    assert found.tolist() == pytest.approx([(8 / 13 + 0.5) / 2, (1 + 0.5) / 2], abs=1e-6)


def test_a_rare_difficult_class_does_not_lift_the_interval():
    # class 1 is in one image of 20 and never found; class 0 is always right. The mean IoU is near 1 / 2 in every draw.
    easy = np.tile([[100, 0], [0, 0]], (19, 1, 1))
    drawn = bootstrap.mean_ious(bootstrap.parts(np.concatenate([easy, [[[0, 0], [1, 0]]]])))
    assert drawn.max() <= 0.5 and bootstrap.interval(drawn)[1] <= 0.5


def test_intervals_are_scipys():
    total = PARTS.sum(0)
    whole = total[:, 0] / (total[:, 1] + total[:, 2] - total[:, 0])

    def difference(at):
        counts = PARTS[at.astype(int)].sum(0)
        found = metrics.divide(counts[:, 0], counts[:, 1] + counts[:, 2] - counts[:, 0])
        values = np.where(np.isnan(found), whole, found).mean(-1)
        return values[0] - values[1]

    drawn = bootstrap.mean_ious(PARTS, 4000)
    ours = bootstrap.interval(drawn[:, 0] - drawn[:, 1])
    theirs = stats.bootstrap(
        (np.arange(40.0),), difference, n_resamples=4000, vectorized=False, method="percentile", rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.1 * width)


def test_paired_differences_are_narrower_than_unpaired_ones():
    # the second system is the first with the same share of errors more in every image: only images vary
    worse = PARTS[:, :1].copy()
    worse[:, :, 0] = (0.9 * worse[:, :, 0]).astype(int)
    drawn = bootstrap.mean_ious(np.concatenate([PARTS[:, :1], worse], 1))
    low, high = bootstrap.interval(drawn[:, 0] - drawn[:, 1])
    alone = np.diff(bootstrap.interval(drawn[:, 0]))[0]
    assert 0 < low < high and high - low < alone
