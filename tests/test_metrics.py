"""Accuracy and confusion matrix, against scikit-learn and by hand."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import metrics


@pytest.mark.quick
def test_accuracy_of_vectors_and_of_images():
    scores = np.array([[1, 2], [3, 0], [0, 1]], np.float32)
    assert metrics.accuracy(cg.tensor(scores), cg.tensor(np.array([1, 0, 0]))) == 2 / 3
    dense = np.zeros((2, 3, 4, 5), np.float32)
    dense[:, 2] = 1
    target = np.full((2, 4, 5), 2)
    target[0, 0, 0] = 1
    assert metrics.accuracy(dense, target) == 39 / 40
    assert metrics.binary_accuracy(np.array([-1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0])) == 2 / 3


def test_confusion_matrix_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs: pip install '.[demo]'")
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 4, (2, 200))
    matrix = metrics.confusion_matrix(target, predicted, 5)
    np.testing.assert_array_equal(matrix[:4, :4], sklearn.confusion_matrix(target, predicted))
    assert matrix.shape == (5, 5) and matrix[4].sum() == 0
    precision, recall = metrics.precision_recall(matrix)
    want = sklearn.precision_recall_fscore_support(target, predicted)
    np.testing.assert_allclose(precision[:4], want[0])
    np.testing.assert_allclose(recall[:4], want[1])
    assert np.isnan(precision[4]) and np.isnan(recall[4])


def test_wrong_shapes_and_classes_are_named():
    with pytest.raises(ValueError, match=r"\[accuracy\] .*\(3, 2\) and \(2,\)"):
        metrics.accuracy(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(ValueError, match=r"\[binary_accuracy\] .*\(3,\) and \(2,\)"):
        metrics.binary_accuracy(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match=r"\[confusion_matrix\] predicted must be in 0..2. Got 7"):
        metrics.confusion_matrix(np.array([0, 1]), np.array([0, 7]), 3)
    with pytest.raises(ValueError, match=r"\[confusion_matrix\] .*Got 2 and 3"):
        metrics.confusion_matrix(np.zeros(2, int), np.zeros(3, int), 3)
