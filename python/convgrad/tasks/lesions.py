"""Simulated brain lesions: axial slices in four sequences (T1, T1c, T2, FLAIR), half with a lesion.

The anatomy is the template's (see ``brain``): what a sequence shows of a voxel is the mean of its
tissues' intensities by their fractions. A lesion is an ellipse in the brain that is blended in with
a random opacity: a necrotic core in an enhancing rim in edema. Then every sequence gets a bias
field and noise of its own, as in ``brain.corrupt``. Nothing of this is a patient's.

Slice ``index`` of a split is the same whenever and wherever it is drawn: it follows from (seed,
split, index) alone, and that of 'test' from (TEST_SEED, index).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from convgrad.tasks import brain

__all__ = [
    "OPACITY",
    "REGIONS",
    "SEQUENCES",
    "SPLITS",
    "TEST_SEED",
    "Slices",
    "box_of",
    "draw",
    "shape",
    "slices",
]

SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
REGIONS = ("healthy", "core", "enhancing", "edema")
SPLITS = ("train", "validation", "test")
TEST_SEED = 2018

# Rows: sequences; columns: CSF, grey and white matter, then core, enhancing rim and edema.
INTENSITIES = np.array(
    [
        [0.25, 0.60, 0.85, 0.25, 0.50, 0.50],
        [0.25, 0.60, 0.85, 0.30, 1.00, 0.50],
        [1.00, 0.60, 0.45, 0.90, 0.70, 0.85],
        [0.20, 0.65, 0.55, 0.50, 0.75, 0.95],
    ],
    np.float32,
)
# All uniform. Of the edema's ellipse: the longer half axis in mm, and the other as a part of it;
# of the rim's outer ellipse, its size as a part of the edema's; of the core's, as a part of that.
LONG_AXIS, SHORT_AXIS, RIM, CORE = (12.0, 24.0), (0.6, 1.0), (0.6, 0.8), (0.5, 0.75)
OPACITY = (0.35, 0.8)
ROWS = slice(5, 229)  # of the template's 233: the brain is in rows 27 to 207


class Slices(NamedTuple):
    """Slices as a scanner would show them, and what is in them.

    Attributes:
        images: (N, 4, H, W) float32, the sequences; healthy brain is about 0.2 to 1.
        labels: (N, H, W) uint8, 0 where healthy or outside the brain, then as in REGIONS.
        boxes: (N, 4) float32, of the whole lesion: centre and size (y, x, h, w), as fractions of H
            and W; 0 without a lesion.
        opacities: (N,) float32, 0 without a lesion.
        positions: (N,) int64, the axial slice of the template, in mm.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    opacities: np.ndarray
    positions: np.ndarray


def shape(millimetres: int = 2) -> tuple[int, int]:
    """(H, W) of a slice: left to the middle, then back to front."""
    return 96 // millimetres, (ROWS.stop - ROWS.start) // millimetres


def slices(
    seed: int, split: str, indices: range, lesion: bool | None = None, millimetres: int = 2
) -> Slices:
    """These slices of a split, see ``draw``."""
    drawn = [draw(seed, split, index, lesion, millimetres) for index in indices]
    return Slices(*(np.stack(parts) for parts in zip(*drawn)))


def draw(
    seed: int, split: str, index: int, lesion: bool | None = None, millimetres: int = 2
) -> Slices:
    """One slice, without the first axis.

    Args:
        seed: of the anatomy, the lesions and the noise of 'train' and 'validation'.
        split: one of SPLITS, which share no slice of the template.
        index: 0 or more, without end: another epoch may go on counting.
        lesion: whether it has one; None: if the index is odd.
        millimetres: of a pixel, 1 or 2.
    """
    if split not in SPLITS:
        raise ValueError(f"[draw] split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    if millimetres not in (1, 2):
        raise ValueError(f"[draw] millimetres must be 1 or 2. Got {millimetres!r}.")
    if index < 0:
        raise ValueError(f"[draw] index must be 0 or more. Got {index}.")
    key = (TEST_SEED if split == "test" else seed, SPLITS.index(split), index)
    rng = np.random.default_rng(key)
    choices = brain.blocks()[split]
    position = int(choices[rng.integers(len(choices))])
    clean, tissue = _anatomy(millimetres)
    image, mask = clean[position - brain.FIRST], tissue[position - brain.FIRST]
    labels, opacity = np.zeros(mask.shape, np.uint8), 0.0
    if index % 2 == 1 if lesion is None else lesion:
        labels = _lesion(mask, millimetres, rng)
        opacity = rng.uniform(*OPACITY)
        image = _blend(image, labels, opacity)
    scan = np.stack([brain.corrupt(sequence, rng) for sequence in image])
    box = box_of(labels > 0)
    return Slices(scan, labels, box, np.array(opacity, np.float32), np.array(position))


def box_of(mask: np.ndarray) -> np.ndarray:
    """The smallest box around a mask: centre and then size along each axis, as fractions of the
    mask's size; zeros for an empty mask."""
    if not mask.any():
        return np.zeros(2 * mask.ndim, np.float32)
    where = np.argwhere(mask)
    low, high = where.min(0), where.max(0) + 1
    size = np.array(mask.shape)
    return np.concatenate([(low + high) / 2 / size, (high - low) / size]).astype(np.float32)


@functools.cache
def _anatomy(millimetres: int) -> tuple[np.ndarray, np.ndarray]:
    """(intensities (slices, 4, H, W), brain or not (slices, H, W)) of the axial slices in use."""
    fractions = brain.load().fractions[:, :, ROWS, brain.FIRST : brain.END]
    kinds, x, y, z = fractions.shape
    step = millimetres
    fractions = fractions.reshape(kinds, x // step, step, y // step, step, z).mean((2, 4))
    clean = np.einsum("sk,kxyz->zsxy", INTENSITIES[:, :kinds], fractions)
    mask = fractions.sum(0).transpose(2, 0, 1) > 0.5
    return np.ascontiguousarray(clean), np.ascontiguousarray(mask)


def _lesion(mask: np.ndarray, millimetres: int, rng: np.random.Generator) -> np.ndarray:
    """Labels of a lesion within the mask: at least half of its ellipse, and something of each of
    its regions; drawn again until it is so."""
    places = np.argwhere(mask)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    while True:
        middle = places[rng.integers(len(places))]
        long = rng.uniform(*LONG_AXIS) / millimetres
        short = long * rng.uniform(*SHORT_AXIS)
        angle = rng.uniform(0, np.pi)
        rim = rng.uniform(*RIM)
        core = rim * rng.uniform(*CORE)
        along = np.cos(angle) * (y - middle[0]) + np.sin(angle) * (x - middle[1])
        across = np.cos(angle) * (x - middle[1]) - np.sin(angle) * (y - middle[0])
        radius = np.hypot(along / long, across / short)  # 1 on the edge of the ellipse
        labels = mask * np.select([radius < core, radius < rim, radius < 1], [1, 2, 3], 0)
        areas = np.bincount(labels.ravel(), minlength=len(REGIONS))[1:]
        if areas.all() and areas.sum() >= 0.5 * np.pi * long * short:
            return labels.astype(np.uint8)


def _blend(image: np.ndarray, labels: np.ndarray, opacity: float) -> np.ndarray:
    """The image (4, H, W) with the regions' intensities laid over it."""
    regions = INTENSITIES[:, -3:][:, np.maximum(labels, 1) - 1]
    return np.where(labels > 0, image + np.float32(opacity) * (regions - image), image)
