"""EDeconvNet: the scores of DeconvNet and FCN-8s put together (paper 5.2)."""

import numpy as np

from deconvnet import scores

LEAST = 1e-12  # a probability of 0 has no logarithm


def combine(a: np.ndarray, b: np.ndarray, method: str) -> np.ndarray:
    """Two score maps -> scores whose softmax is the ensemble's probabilities, all float32 (C, H, W).

    mean (P 5.2): log of the mean of both probability maps. product (R): product of both maps, each clipped at 0.
    """
    if method == "product":
        return np.maximum(a, 0) * np.maximum(b, 0)
    return np.log(np.maximum((scores.softmax(a) + scores.softmax(b)) / 2, LEAST, dtype=np.float32))
