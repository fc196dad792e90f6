"""Brick, grass or gravel: 32x32 patches of three photographs that come with scikit-image.

Nothing tells the classes apart but texture: a patch is brought to mean 0 and variance 1. The left
240 columns are trained on and the right 240 tested on; nobody sees the 32 between them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convgrad.extras import require
from convgrad.tasks.images import Images, Settings, Splits

__all__ = ["AUGMENT", "AVERAGED", "CLASSES", "DEFAULTS", "NEEDS_DATA", "SHAPE", "load"]

SHAPE = (32, 32)
CLASSES = ("brick", "grass", "gravel")
AVERAGED = True  # see images.network
NEEDS_DATA = False
# Rows and columns of the 512x512 photographs, and how far apart patches lie.
TRAIN, VALIDATION, TEST = (
    (slice(0, 384), slice(0, 240), 8),
    (slice(416, 512), slice(0, 240), 8),
    (slice(0, 512), slice(272, 512), 16),
)

DEFAULTS = {
    "softmax": Settings(epochs=20, lr=0.02),
    "mlp": Settings(epochs=20, lr=0.05),
    "cnn": Settings(epochs=10, lr=0.05, l2=2.5e-4),
}
# None: turning a patch a little blurs it, and so changes the texture.
AUGMENT: dict[str, float] = {}


def load(folder: Path | None = None, seed: int = 0) -> Splits:
    """3,645 patches to train on, 729 to validate by (the lower left), 1,302 to test on.

    ``seed`` changes nothing: the split is by place alone.
    """
    photographs = require("skimage.data", "medical")
    whole = [getattr(photographs, name)().astype(np.float32) for name in CLASSES]

    def images(rows: slice, columns: slice, step: int) -> Images:
        parts = [patches(photograph[rows, columns], step) for photograph in whole]
        labels = np.repeat(np.arange(len(CLASSES)), [len(part) for part in parts])
        return Images(np.concatenate(parts)[:, None], labels)

    return Splits(images(*TRAIN), images(*VALIDATION), lambda: images(*TEST))


def patches(photograph: np.ndarray, step: int) -> np.ndarray:
    """(N, 32, 32), each of mean 0 and variance 1, from a grid of corners ``step`` apart."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, SHAPE)[::step, ::step]
    out = np.array(windows.reshape(-1, *SHAPE))
    out -= out.mean((1, 2), keepdims=True)
    return out / out.std((1, 2), keepdims=True)
