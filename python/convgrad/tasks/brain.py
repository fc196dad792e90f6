"""The MNI152 average brain that comes with nilearn, and what a scanner would add to it.

It is one brain, the average of 152, and exactly symmetric: only its left half is used, and what is
trained on, chosen by and tested on lies in blocks of slices with gaps between them. Results say how
well a network does within this template, nothing about patients.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convgrad.extras import require

__all__ = ["CLASSES", "Brain", "blocks", "corrupt", "load"]

CLASSES = ("background", "CSF", "grey matter", "white matter")
NOISE = 0.09  # of the brightest voxel: sigma of the noise in both channels of the receiver
BIAS = 0.25  # the field's largest deviation from 1
COARSE = 17
# Axial slices that show enough brain at 1 mm, cut into blocks of 20 to train on and 12 to test on
# with gaps of 8. Of each training block the last 4 slices, behind a gap of 3, are for validation.
FIRST, END = 20, 140
TRAIN_BLOCK, GAP, TEST_BLOCK = 20, 8, 12
VALIDATION_GAP, VALIDATION = 3, 4


@dataclass(frozen=True)
class Brain:
    """The left half of the template.

    Attributes:
        image: (96, 233, 189) T1-weighted, float32 in [0, 1]; at 2 mm (49, 117, 95).
        tissue: the same shape, uint8: 0 outside the brain, then CSF, grey and white matter.
        fractions: (3, ...) float32, how much of each voxel is which tissue.
    """

    image: np.ndarray
    tissue: np.ndarray
    fractions: np.ndarray


@functools.cache
def load(millimetres: int = 1) -> Brain:
    """At 1 or 2 mm. A voxel of the brain belongs to the tissue that fills most of it."""
    datasets = require("nilearn.datasets", "medical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        images = [
            getattr(datasets, f"load_mni152_{name}")(resolution=millimetres)
            for name in ("template", "gm_template", "wm_template", "brain_mask")
        ]
    half = 96 if millimetres == 1 else 49
    t1, grey, white, mask = (np.array(i.dataobj, np.float32)[:half] for i in images)
    fractions = np.stack([np.clip(1 - grey - white, 0, 1), grey, white]) * (mask > 0)
    tissue = np.where(mask > 0, 1 + fractions.argmax(0), 0).astype(np.uint8)
    return Brain(t1, tissue, fractions)


def blocks(millimetres: int = 1) -> dict[str, np.ndarray]:
    """The axial slices of 'train', 'validation' and 'test', none nearer than the gaps above."""
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for start in range(FIRST, END, TRAIN_BLOCK + GAP + TEST_BLOCK + GAP):
        stop = min(start + TRAIN_BLOCK, END)
        middle = stop - VALIDATION - VALIDATION_GAP
        found["train"] += range(start, middle)
        found["validation"] += range(stop - VALIDATION, stop)
        begin = start + TRAIN_BLOCK + GAP
        found["test"] += range(begin, min(begin + TEST_BLOCK, END))
    return {k: np.unique(np.array(v) // millimetres) for k, v in found.items()}


def corrupt(
    image: np.ndarray,
    rng: np.random.Generator,
    whole: Sequence[int] | None = None,
    start: Sequence[int] | None = None,
) -> np.ndarray:
    """The image as a magnitude scan: under a smooth bias field, with Rician noise.

    The field is a polynomial of second order in the axes with random coefficients, scaled to
    deviate from 1 by at most BIAS; noise is added to the real and the imaginary part.

    Args:
        image: (...) float32.
        rng: what is drawn from.
        whole, start: where the image is a window that begins at ``start`` of a scan of shape
            ``whole``, whose field it is then under. (That field's largest deviation is looked for
            on a grid of COARSE points an axis only.)
    """
    shape = image.shape if whole is None else whole
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    terms = len(axes) * (len(axes) + 3) // 2
    coefficients = rng.uniform(-1, 1, terms)
    if whole is None or start is None:
        field = _polynomial(coefficients, axes)
        largest = np.abs(field).max()
    else:
        field = _polynomial(
            coefficients, [a[s : s + n] for a, s, n in zip(axes, start, image.shape)]
        )
        coarse = np.linspace(-1, 1, COARSE, dtype=np.float32)
        largest = np.abs(_polynomial(coefficients, [coarse] * len(axes))).max()
    field = 1 + BIAS * field / largest
    real, imaginary = NOISE * rng.standard_normal((2, *image.shape), np.float32)
    return np.hypot(image * field + real, imaginary)


def _polynomial(coefficients: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """The polynomial of second order without a constant on the grid of the axes, float32."""
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [*grid, *(a * b for i, a in enumerate(grid) for b in grid[i:])]
    field = sum(c * term for c, term in zip(coefficients, terms))
    return np.broadcast_to(field, [len(a) for a in axes]).astype(np.float32)
