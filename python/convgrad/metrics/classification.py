"""How good predicted classes are."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.backend import host, is_array
from convgrad.tensor import Tensor

__all__ = ["accuracy", "binary_accuracy", "confusion_matrix", "precision_recall"]


def array_of(value: Any) -> np.ndarray:
    """A tensor's, or an array's, values on the host."""
    array = value.array if isinstance(value, Tensor) else value
    return np.asarray(host(array) if is_array(array) else array)


def accuracy(output: Any, target: Any) -> float:
    """The part of targets that have the highest score: output (N, K, ...), target (N, ...)."""
    output, target = array_of(output), array_of(target)
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise ValueError(
            "[accuracy] output must be (N, K, ...) and target (N, ...). Got "
            f"{output.shape} and {target.shape}."
        )
    return float((output.argmax(1) == target).mean())


def binary_accuracy(output: Any, target: Any) -> float:
    """The part of targets in {0, 1} that the sign of a logit predicts, both of one shape."""
    output, target = array_of(output), array_of(target)
    if output.shape != target.shape:
        raise ValueError(
            "[binary_accuracy] output and target must have one shape. Got "
            f"{output.shape} and {target.shape}."
        )
    return float(((output > 0) == (target > 0.5)).mean())


def confusion_matrix(target: Any, predicted: Any, classes: int) -> np.ndarray:
    """(classes, classes) counts: row = the true class, column = the predicted one."""
    target, predicted = array_of(target).ravel(), array_of(predicted).ravel()
    if target.shape != predicted.shape:
        raise ValueError(
            "[confusion_matrix] target and predicted must have one size. Got "
            f"{target.size} and {predicted.size}."
        )
    for name, values in (("target", target), ("predicted", predicted)):
        wrong = (values < 0) | (values >= classes)
        if wrong.any():
            raise ValueError(
                f"[confusion_matrix] {name} must be in 0..{classes - 1}. Got {values[wrong][0]}."
            )
    index = target.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def precision_recall(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each class from a confusion matrix; NaN where there is none."""
    right = np.diag(matrix).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return right / matrix.sum(0), right / matrix.sum(1)
