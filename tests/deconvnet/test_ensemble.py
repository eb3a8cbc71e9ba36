"""The ensemble by hand."""

import numpy as np

from deconvnet import ensemble, scores


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
