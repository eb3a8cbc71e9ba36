"""Quality of labels: confusions, IoUs, accuracies. The one home of mean IoU.

Everything comes from pixels counted over a whole split, as VOC does it: an IoU is the quotient of two sums, never a
mean of the quotients of single images or objects, in which few pixels of a class would weigh as much as many. Void
pixels are never counted. A class that the counted truth lacks has no IoU and no part in a mean; where it is predicted
all the same, that is an error of the class that is there.
"""

import numpy as np


def confusion(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by true and predicted class, int64 (C, C), from masks uint8 (H, W). Pixels of true void are left out."""
    counts = np.bincount(truth.ravel().astype(np.int64) * classes + labels.ravel(), minlength=classes * classes)
    return counts[: classes * classes].reshape(classes, classes)  # what is beyond is void


def ious(matrix: np.ndarray, predicted: bool = False) -> np.ndarray:
    """IoU of each class (..., C) from pixels (..., truth, predicted); nan for a class that the truth lacks.

    predicted: nan only for a class that the prediction lacks, too.
    """
    hits, truth = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    union = truth + matrix.sum(-2) - hits
    return divide(hits, np.where(predicted | (truth > 0), union, 0))


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of the pixels that are right (...) from pixels (..., C, C)."""
    return divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not nan; nan where nothing is."""
    return divide(np.nansum(values, -1), np.isfinite(values).sum(-1))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """float64 quotients, nan for a divisor of 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
