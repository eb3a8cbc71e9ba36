"""Intervals for mean IoU by the bootstrap over images (Efron, Tibshirani 1993).

Another val set of the same size would have given another figure. How far off is estimated by drawing as many images
anew, with repetition, and taking the IoU over all that was drawn, as the evaluation does. Systems are compared on the
same draws: what makes an image difficult for both then cancels out.

A class that few images hold is missing in many a draw. There its IoU is taken from all images: were it left out of the
mean, draws without a difficult class would look better, and the interval would lean upwards.

The intervals speak of the choice of images alone. Another seed of the training would move the figures, too.
"""

import numpy as np

from deconvnet.metrics import divide, mean

ROUNDS, SEED, LEVEL = 2000, 2015, 0.95


def parts(confusion: np.ndarray) -> np.ndarray:
    """Pixels (..., truth, predicted) -> those that are right, true and predicted, by class: (..., 3, C)."""
    return np.stack([np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)], -2)


def mean_ious(images: np.ndarray, rounds: int = ROUNDS, seed: int = SEED) -> np.ndarray:
    """Mean IoU (rounds, ...) over the classes that occur, of images (N, ..., 3, C) of `parts`, in every draw."""
    count = len(images)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), rounds)  # (rounds, N)
    sums = (drawn.astype(float) @ images.reshape(count, -1)).reshape(rounds, *images.shape[1:])
    found = _ious(sums)
    return mean(np.where(np.isnan(found), _ious(images.sum(0)), found))


def _ious(pixels: np.ndarray) -> np.ndarray:
    """IoU (..., C) of pixels (..., 3, C); nan for a class that the truth lacks."""
    right, true, predicted = np.moveaxis(pixels, -2, 0)
    return divide(right, np.where(true > 0, true + predicted - right, 0))


def interval(values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The two percentiles (2, ...) between which the share `level` of the draws' values (rounds, ...) lies."""
    return np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
