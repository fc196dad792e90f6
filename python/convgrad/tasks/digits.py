"""scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI, 1998), which need no download.

The defaults were chosen by cross-validation within the training part; the test images took no part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convgrad.extras import require
from convgrad.tasks.images import Images, Settings, Splits, split_off

__all__ = ["AUGMENT", "AVERAGED", "CLASSES", "DEFAULTS", "NEEDS_DATA", "SHAPE", "load"]

SHAPE = (8, 8)
CLASSES = tuple("0123456789")
AVERAGED = False  # see images.network
NEEDS_DATA = False
TEST_SIZE, VALIDATION_SIZE = 540, 157

DEFAULTS = {
    "softmax": Settings(epochs=60, lr=0.2),
    "mlp": Settings(epochs=60, lr=0.1),
    "cnn": Settings(epochs=30, lr=0.05, l2=2.5e-4),
}
AUGMENT = {"shift": 0.7, "degrees": 10.0, "scale": 0.1}


def load(folder: Path | None = None, seed: int = 0) -> Splits:
    """1,100 images to train on, 157 to validate by, 540 to test on.

    The test split is always ``train_test_split(test_size=540, stratify=y, random_state=0)``;
    ``seed`` chooses the validation images.
    """
    digits = require("sklearn.datasets").load_digits()
    train, test = require("sklearn.model_selection").train_test_split(
        np.arange(len(digits.target)),
        test_size=TEST_SIZE,
        stratify=digits.target,
        random_state=0,
    )

    def images(index: np.ndarray) -> Images:
        # (N, 8, 8) in 0..16 -> (N, 1, 8, 8) in [0, 1]
        pixels = digits.images[index, None].astype(np.float32) / 16
        return Images(pixels, digits.target[index].astype(np.int64))

    training, validation = split_off(images(train), VALIDATION_SIZE, seed)
    return Splits(training, validation, lambda: images(test))
