"""Differences over seeds and their verdicts: by hand, and the interval against scipy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from deconvnet import bootstrap, metrics
from deconvnet.comparison import Difference, difference, together, verdict

random = np.random.default_rng(3)
IMAGES, SEEDS, CLASSES = 30, 3, 4
MATRICES = random.poisson(30, (2, IMAGES, SEEDS, CLASSES, CLASSES)) + 200 * np.eye(CLASSES, dtype=int)
MATRICES[0] += 60 * np.eye(CLASSES, dtype=int) * random.integers(0, 3, (IMAGES, 1, 1, 1))
ONE, OTHER = bootstrap.parts(MATRICES)


@pytest.mark.parametrize(
    "seeds, low, high, expected",
    [
        ((2.0, 3.0), 1.0, 4.0, "holds"),
        ((2.0, -0.1), 0.2, 2.0, "undecided"),  # one seed speaks against it
        ((0.1, 0.2), 0.05, 0.3, "holds"),  # small, but sure
        ((0.3, 0.1), -0.1, 0.4, "does not hold"),  # at best less than the margin
        ((0.3, 0.1), -0.1, 0.6, "undecided"),  # perhaps more than the margin
        ((-2.0, -1.0), -3.0, -0.5, "does not hold"),
        ((0.0, 0.0), 0.0, 0.0, "does not hold"),  # the same on every image
    ],
)
def test_verdicts_by_hand(seeds, low, high, expected):
    assert verdict(Difference(seeds, low, high), margin=0.5) == expected


@pytest.mark.parametrize(
    "low, high, expected", [(-2, -0.1, "does not hold"), (-2, 0.1, "undecided"), (0.1, 1, "holds")]
)
def test_without_a_margin_the_interval_alone_decides(low, high, expected):
    assert verdict(Difference((0.5, 0.4), low, high), margin=0) == expected


def test_a_claim_of_several_comparisons():
    assert together(["holds", "holds"]) == "holds"
    assert together(["holds", "undecided"]) == "undecided"
    assert together(["undecided", "does not hold", "holds"]) == "does not hold"
    assert together([]) == "not run"


def test_differences_are_the_evaluations():
    found = difference(ONE, OTHER, 200)
    expected = [100 * (metrics.mean(metrics.ious(MATRICES[0, :, seed].sum(0)))
                       - metrics.mean(metrics.ious(MATRICES[1, :, seed].sum(0)))) for seed in range(SEEDS)]  # fmt: skip
    assert found.seeds == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.spread == pytest.approx(np.std(expected, ddof=1))
    assert np.isnan(difference(ONE[:, :1], OTHER[:, :1], 100).spread)  # one seed is one seed


def test_the_interval_is_scipys():
    """Of images drawn together for both sides and all seeds."""

    def mean_over_seeds(at):
        values = []
        for side in MATRICES:
            matrices = side[at.astype(int)].sum(0)  # (seeds, C, C)
            values.append(metrics.mean(metrics.ious(matrices)).mean())
        return 100 * (values[0] - values[1])

    found = difference(ONE, OTHER, 4000)
    theirs = stats.bootstrap(
        (np.arange(float(IMAGES)),), mean_over_seeds, n_resamples=4000, vectorized=False, method="percentile", rng=2
    ).confidence_interval
    width = theirs.high - theirs.low
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=0.1 * width)


def test_the_same_on_both_sides_differs_by_nothing():
    found = difference(ONE, ONE, 100)
    assert found.seeds == (0.0,) * SEEDS and found.low == found.high == 0.0
