"""Two ways of doing one thing, compared over several seeds: the difference, how sure it is, and a verdict.

The interval is that of the bootstrap over images (`deconvnet.bootstrap`), of the difference's mean over the seeds: both
ways are judged on the same draw of images, seed by seed. How far the seeds lie apart is told beside it; three seeds
are too few to be drawn from.
"""

from dataclasses import dataclass

import numpy as np

from deconvnet.bootstrap import interval, mean_ious

VERDICTS = ("holds", "does not hold", "undecided")


@dataclass(frozen=True)
class Difference:
    """One minus the other in points of mean IoU."""

    seeds: tuple[float, ...]  # of each seed
    low: float  # of the 95 % interval of their mean
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.seeds))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n - 1); nan for one seed."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else float("nan")


def difference(one: np.ndarray, other: np.ndarray, rounds: int) -> Difference:
    """The difference of mean IoU of one and the other, each (N, seeds, 3, C) pixels as `bootstrap.parts` has them."""
    both = np.stack([one, other], 2)  # (N, seeds, 2, 3, C)
    seeds = mean_ious(both.sum(0, keepdims=True), 1)[0]  # (seeds, 2), of each image once
    drawn = mean_ious(both, rounds)  # (rounds, seeds, 2)
    low, high = interval((drawn[..., 0] - drawn[..., 1]).mean(1))
    return Difference(tuple((100 * (seeds[:, 0] - seeds[:, 1])).tolist()), 100 * float(low), 100 * float(high))


def verdict(found: Difference, margin: float) -> str:
    """Whether one is better than the other, stated before anything was measured.

    holds: the interval lies above 0, and so does every seed's difference. does not hold: the interval ends below
    `margin`, points that are worth the name, or lies below 0. undecided: all else.
    """
    if found.low > 0 and min(found.seeds) > 0:
        return "holds"
    return "does not hold" if found.high < max(margin, 0) else "undecided"


def together(verdicts: list[str]) -> str:
    """The verdict of a claim that makes several comparisons: it holds where all hold, and not where one does not."""
    return next(
        (each for each in ("does not hold", "undecided") if each in verdicts), "holds" if verdicts else "not run"
    )
