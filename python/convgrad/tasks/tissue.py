"""Cerebrospinal fluid, grey and white matter in simulated scans of the MNI152 average brain.

In 2-D a network sees one axial slice at a time (1 mm), in 3-D the whole volume (2 mm) in patches.
Real: the template, the average of 152 brains, and its tissues. Simulated: noise and bias field, see
:func:`convgrad.tasks.brain.corrupt`; every draw has its own, from (seed, epoch, index).

Blocks of slices are for training, validation and testing. A 3-D network sees beyond a block; there
the slices of the other parts are replaced by mirror images of what lies between the blocks. So
nothing that is tested on is in the receptive field of anything trained on, nor the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from convgrad import data, metrics
from convgrad.tasks import brain, segmentation
from convgrad.tasks.segmentation import IGNORE, Measured
from convgrad.tensor import Tensor

__all__ = [
    "CLASSES",
    "PATCH",
    "Part",
    "SimulatedPatches",
    "SimulatedSlices",
    "Template",
    "baseline",
    "labelled_slices",
    "measure",
    "part",
    "predict",
    "scans",
]

CLASSES = brain.CLASSES
# What the template is cut to, by number of axes: the left half's brain and a margin. Slices have
# sizes that can be halved 4 times.
WINDOW = {2: (slice(16, 96), slice(24, 216)), 3: (slice(9, 49), slice(10, 106), slice(0, 80))}
SCANS = 4  # of a volume to validate by or to test on: one alone would have one bias field
PATCH = (32, 32, 32)
VALIDATION_SEED, TEST_SEED = 1_000_003, 2_000_003  # of the noise; training draws from others
PICTURES = 6  # slices shown
COPIES = 8
WARP = data.Augmentation(degrees=8, scale=0.1, elastic=1.5, spacing=16)
BINS = 256  # of intensities, when the baseline's thresholds are chosen


class Part(NamedTuple):
    """Images and their labels.

    In 2-D images (slices, 80, 192) float32 and labels (the same) int64. In 3-D one image (1, 40,
    96, 80), without the other parts' slices, and labels, IGNORE outside this part.
    """

    images: np.ndarray
    labels: np.ndarray


def part(name: str, spatial: int) -> Part:
    """'train', 'validation' or 'test' without noise, in 2 or 3 dimensions."""
    millimetres = spatial - 1
    whole, blocks = brain.load(millimetres), brain.blocks(millimetres)
    own = blocks[name]
    image, tissue = whole.image[WINDOW[spatial]], whole.tissue[WINDOW[spatial]].astype(np.int64)
    if spatial == 2:
        cut = image[..., own], tissue[..., own]
        return Part(*(np.ascontiguousarray(np.moveaxis(a, 2, 0)) for a in cut))
    hidden = np.concatenate([blocks[other] for other in blocks.keys() - {name}])
    labels = np.full(tissue.shape, IGNORE)
    labels[..., own] = tissue[..., own]
    return Part(image[..., _mirrored(image.shape[2], hidden)][None], labels[None])


def _mirrored(count: int, hidden: np.ndarray) -> np.ndarray:
    """For each of ``count`` slices the one to show: itself, or for a hidden one its mirror image
    behind the nearest visible slice, as far as slices are visible there without a gap."""
    shown = np.arange(count)
    visible = ~np.isin(shown, hidden)
    places = np.flatnonzero(visible)
    for z in np.unique(hidden):
        nearest = int(places[np.abs(places - z).argmin()])
        away = 1 if nearest > z else -1
        mirror = nearest
        for _ in range(abs(nearest - z) - 1):
            if 0 <= mirror + away < count and visible[mirror + away]:
                mirror += away
        shown[z] = mirror
    return shown


def scans(name: str, spatial: int) -> Part:
    """'validation' or 'test' under the noise of its own fixed seed; in 3-D SCANS of the volume."""
    clean = part(name, spatial)
    if spatial == 3:
        clean = Part(*(np.repeat(values, SCANS, axis=0) for values in clean))
    seed = {"validation": VALIDATION_SEED, "test": TEST_SEED}[name]
    noisy = [
        brain.corrupt(image, np.random.default_rng((seed, i)))
        for i, image in enumerate(clean.images)
    ]
    return Part(np.stack(noisy), clean.labels)


def _warped(clean: Part, seed: int) -> Part:
    """The images and COPIES - 1 copies of each, differently bent: drawn once, as bending an image
    takes as long as training on it."""
    images, labels = list(clean.images), list(clean.labels)
    for copy in range(1, COPIES):
        for i, (image, label) in enumerate(zip(clean.images, clean.labels)):
            rng = np.random.default_rng((seed, copy, i))
            bent, its_label = WARP(image[None], label, rng)
            images.append(bent[0])
            labels.append(label if its_label is None else its_label)
    return Part(np.stack(images), np.stack(labels))


class SimulatedSlices(data.Dataset):
    """Slices (1, H, W) under fresh noise, half of them mirrored, with their labels (H, W).

    The epochs go through the slices in turn.

    Args:
        source: what to draw from, in 2-D.
        draws: how many an epoch has.
        seed: the noise of item i in epoch e follows from (seed, e, i) alone.
    """

    def __init__(self, source: Part, draws: int, seed: int = 0) -> None:
        self.source, self.draws, self.seed, self.epoch = source, draws, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses an epoch's noise."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        which = (self.epoch * self.draws + index) % len(self.source.images)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)  # left and right are alike
        image, label = self.source.images[which][flip], self.source.labels[which][flip]
        return brain.corrupt(image, rng), label

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        images, labels = self.batch([index])
        return Tensor(images.array[0]), Tensor(labels.array[0])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images (N, 1, ...) and labels (N, ...)."""
        images, labels = zip(*(self._draw(i) for i in indices))
        return Tensor(np.stack(images)[:, None]), Tensor(np.stack(labels))


class SimulatedPatches(SimulatedSlices):
    """Patches (1, *PATCH) of a 3-D part under fresh noise, with their labels.

    Its centre is a labelled voxel, of the classes in turn, or lies as near to it as the volume's
    edge allows. Place, mirroring and noise follow from (seed, epoch, index). Left in this order
    every small batch has every class, and batch normalisation sees the same mixture each time.
    """

    shuffle = False

    def __init__(self, source: Part, draws: int, seed: int = 0) -> None:
        super().__init__(source, draws, seed)
        # Per class: (volume, flat index) of its voxels.
        flat = source.labels.reshape(len(source.labels), -1)
        self.places = [np.argwhere(flat == c) for c in range(len(CLASSES))]

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        places = self.places[index % len(self.places)]
        number, place = places[rng.integers(len(places))]
        image, labels = self.source.images[number], self.source.labels[number]
        centre = np.unravel_index(place, labels.shape)
        starts = [min(max(c - n // 2, 0), m - n) for c, n, m in zip(centre, PATCH, labels.shape)]
        window = tuple(slice(s, s + n) for s, n in zip(starts, PATCH))
        scan = brain.corrupt(image[window], rng, image.shape, starts)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        return scan[flip], labels[window][flip]


class Template:
    """The simulated scans of the template, as slices (``spatial`` 2) or as a volume (3)."""

    classes = CLASSES
    channels = 1

    def __init__(self, spatial: int) -> None:
        self.spatial = spatial

    def training_set(self, draws: int, seed: int = 0) -> SimulatedSlices:
        """What an epoch is trained on."""
        cls = SimulatedSlices if self.spatial == 2 else SimulatedPatches
        return cls(_warped(part("train", self.spatial), seed), draws, seed)

    def measure(self, model: Any, name: str) -> Measured:
        """On the scans of 'validation' or 'test'."""
        scan = scans(name, self.spatial)
        return self._measured(scan, predict(model, scan.images))

    def baseline(self, name: str) -> Measured:
        """What two thresholds reach, which are told where the brain is."""
        scan = scans(name, self.spatial)
        return self._measured(scan, baseline(scan))

    def _measured(self, scan: Part, predicted: np.ndarray) -> Measured:
        row = measure(predicted, scan.labels, self.spatial - 1)
        images, masks, truths = (
            labelled_slices(values, scan.labels) for values in (scan.images, predicted, scan.labels)
        )
        step = -(-len(images) // PICTURES)
        return Measured(row, *(list(v[::step]) for v in (images, masks, truths)))


# ---- measuring ----


def predict(model: Any, images: np.ndarray) -> np.ndarray:
    """The classes of scans: slices (N, H, W), or volumes (N, X, Y, Z) by overlapping patches."""
    return segmentation.predict(model, images[:, None], PATCH if images.ndim == 4 else None)


def labelled_slices(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The axial slices (N, H, W) that have labels: of slices all, of volumes (N, X, Y, Z) some."""
    if labels.ndim == 3:
        return values
    own = (labels[0] != IGNORE).all((0, 1))
    return np.concatenate([np.moveaxis(volume[..., own], 2, 0) for volume in values])


def measure(predicted: np.ndarray, labels: np.ndarray, millimetres: float) -> dict[str, float]:
    """'dice CSF', 'distance CSF' and so on, of the labelled slices.

    Dice is of all voxels together. The average symmetric surface distance is taken within each
    slice, in mm, and averaged over the slices where both have the tissue: a block of slices has no
    surface where it was cut. NaN for a tissue that is nowhere.
    """
    predicted, labels = labelled_slices(predicted, labels), labelled_slices(labels, labels)
    out: dict[str, float] = {}
    overlap = metrics.dice_per_class(predicted, labels, len(CLASSES))
    for c, name in list(enumerate(CLASSES))[1:]:
        distances = [
            metrics.assd(p == c, r == c, (millimetres, millimetres))
            for p, r in zip(predicted, labels)
        ]
        found = [d for d in distances if d == d]
        out[f"dice {name}"] = float(overlap[c])
        out[f"distance {name}"] = float(np.mean(found)) if found else float("nan")
    return out


def baseline(test: Part, seed: int = 0, draws: int = 78) -> np.ndarray:
    """The classes of scans by two thresholds, given which voxels are brain.

    The thresholds have the best mean Dice on simulated training slices, or on SCANS whole volumes.
    """
    spatial = test.images.ndim - 1
    clean = part("train", spatial)
    noisy = [
        brain.corrupt(clean.images[i % len(clean.images)], np.random.default_rng((seed, i)))
        for i in range(draws if spatial == 2 else SCANS)
    ]
    truth = np.concatenate([clean.labels] * (len(noisy) // len(clean.labels)))
    thresholds = _best_thresholds(np.stack(noisy), truth)
    return np.where(test.labels > 0, 1 + np.digitize(test.images, thresholds), 0)


def _best_thresholds(images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Between CSF, grey and white matter: the best of all pairs of the intensities' bins."""
    edges = np.linspace(0, images.max(), BINS + 1)
    # below[c, i]: voxels of tissue c below edge i
    below = np.stack(
        [
            np.concatenate([[0], np.histogram(images[labels == c], edges)[0].cumsum()])
            for c in range(1, len(CLASSES))
        ]
    )
    low, high = below[:, :, None], below[:, None, :]
    total = below[:, -1]
    inside = np.stack(np.broadcast_arrays(low[0], high[1] - low[1], total[2] - high[2]))
    all_below = below.sum(0)
    size = np.stack(
        np.broadcast_arrays(
            all_below[:, None],
            all_below[None] - all_below[:, None],
            all_below[-1] - all_below[None],
        )
    )
    dice = (2 * inside / np.maximum(size + total[:, None, None], 1)).mean(0)
    dice[np.tril_indices(BINS + 1)] = -1  # the second threshold is the higher one
    i, j = np.unravel_index(dice.argmax(), dice.shape)
    return float(edges[i]), float(edges[j])
