"""Cerebrospinal fluid, grey and white matter in simulated scans of the MNI152 average brain.

In 2-D a network sees one axial slice at a time (1 mm), in 3-D the whole volume (2 mm) in patches.
Real: the template, the average of 152 brains, and its tissues. Simulated: noise and bias field, see
:func:`convgrad.tasks.brain.corrupt`; every draw has its own, from (seed, epoch, index).

Blocks of slices are for training, validation and testing. In 3-D the slices of the other parts are
blank in the image: nothing that is tested on lies in the receptive field of anything trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convgrad import data, functional, metrics, models, optim, train
from convgrad.tasks import brain
from convgrad.tensor import Tensor

__all__ = [
    "CLASSES",
    "DEFAULTS",
    "IGNORE",
    "MODELS",
    "Part",
    "Settings",
    "SimulatedPatches",
    "SimulatedSlices",
    "fit",
    "measure",
    "network",
    "part",
    "predict",
    "threshold",
]

CLASSES = brain.CLASSES
IGNORE = -100  # the label of voxels that are not of the part, and cross_entropy's default
# What the slices are cut to: the left half's brain with a margin, sizes that can be halved 4 times.
WINDOW = slice(16, 96), slice(24, 216)
PATCH = (32, 32, 32)
VALIDATION_SEED, TEST_SEED = 1_000_003, 2_000_003  # of the noise; training draws from small ones


@dataclass(frozen=True)
class Settings:
    """How a model is trained unless the command line says otherwise."""

    epochs: int
    batch_size: int
    lr: float
    draws: int  # slices or patches per epoch


MODELS = ("unet", "segnet", "fcn", "unet3d")
DEFAULTS = {
    "unet": Settings(epochs=30, batch_size=4, lr=3e-3, draws=156),
    "segnet": Settings(epochs=15, batch_size=4, lr=3e-3, draws=156),
    "fcn": Settings(epochs=10, batch_size=4, lr=1e-3, draws=156),
    "unet3d": Settings(epochs=30, batch_size=2, lr=3e-3, draws=128),
}


def network(name: str) -> Any:
    """One of MODELS, for one channel and CLASSES. SegNet has a quarter of its authors' widths."""
    if name == "unet":
        return models.UNet2d(1, len(CLASSES), base=16, depth=3)
    if name == "segnet":
        return models.SegNet(1, len(CLASSES), widths=(16, 32, 64, 128, 128))
    if name == "fcn":
        return models.CardiacFCN(1, len(CLASSES))
    if name == "unet3d":
        return models.UNet3d(1, len(CLASSES), base=16, depth=3)
    raise ValueError(f"[tissue] A model is one of {', '.join(MODELS)}. Got {name!r}.")


# ---- data ----


class Part(NamedTuple):
    """What is trained on, chosen by or tested on, without noise.

    In 2-D images (slices, 80, 192) float32 and labels (the same) int64. In 3-D one image (1, 49,
    117, 95), blank where the other parts are, and labels, IGNORE outside this part.
    """

    images: np.ndarray
    labels: np.ndarray


def part(name: str, spatial: int) -> Part:
    """'train', 'validation' or 'test', in 2 or 3 dimensions."""
    millimetres = spatial - 1
    whole, blocks = brain.load(millimetres), brain.blocks(millimetres)
    own = blocks[name]
    if spatial == 2:
        cut = whole.image[WINDOW][..., own], whole.tissue[WINDOW][..., own].astype(np.int64)
        return Part(*(np.ascontiguousarray(np.moveaxis(a, 2, 0)) for a in cut))
    image, labels = whole.image.copy(), np.full(whole.tissue.shape, IGNORE, np.int64)
    for other in blocks.keys() - {name}:
        image[..., blocks[other]] = 0
    labels[..., own] = whole.tissue[..., own]
    return Part(image[None], labels[None])


class SimulatedSlices(data.Dataset):
    """Slices (1, H, W) under fresh noise with their labels (H, W); item i is of slice i mod slices.

    Args:
        source: what to draw from, in 2-D.
        draws: how many an epoch has; every slice once if left out.
        seed: the noise of item i in epoch e follows from (seed, e, i) alone.
    """

    def __init__(self, source: Part, draws: int | None = None, seed: int = 0) -> None:
        self.source, self.seed, self.epoch = source, seed, 0
        self.draws = len(source.images) if draws is None else draws

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.draws

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        which = index % len(self.source.images)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return brain.corrupt(self.source.images[which], rng), self.source.labels[which]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = self._draw(index)
        return Tensor(image[None]), Tensor(label)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images (N, 1, ...) and labels (N, ...)."""
        images, labels = zip(*(self._draw(i) for i in indices))
        return Tensor(np.stack(images)[:, None]), Tensor(np.stack(labels))


class SimulatedPatches(SimulatedSlices):
    """Patches (1, *PATCH) of a 3-D part under fresh noise, with their labels.

    A patch's centre is a labelled voxel, of each class equally often; it is moved inwards from the
    edge of the volume. Place and noise follow from (seed, epoch, index).
    """

    def __init__(self, source: Part, draws: int, seed: int = 0) -> None:
        super().__init__(source, draws, seed)
        flat = source.labels[0].ravel()
        self.places = [np.flatnonzero(flat == c) for c in range(len(CLASSES))]

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.source.images[0], self.source.labels[0]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        centre = np.unravel_index(rng.choice(self.places[index % len(self.places)]), labels.shape)
        window = tuple(
            slice(start := min(max(c - n // 2, 0), m - n), start + n)
            for c, n, m in zip(centre, PATCH, labels.shape)
        )
        return brain.corrupt(image[window], rng), labels[window]


# ---- training ----


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the labelled voxels, and where all are labelled the soft Dice loss too."""
    value = functional.cross_entropy(logits, target, ignore_index=IGNORE)
    if target.ndim == 4:  # patches
        return value
    return value + functional.dice_loss(logits, target)


def fit(
    model: Any,
    settings: Settings,
    seed: int = 0,
    spatial: int = 2,
    callbacks: Iterable[Any] = (),
) -> list[dict[str, float]]:
    """Trains ``model`` by Adam, its rate falling to 0 as a cosine; a row per epoch."""
    source = part("train", spatial)
    cls = SimulatedSlices if spatial == 2 else SimulatedPatches
    dataset = cls(source, settings.draws, seed)
    batches = data.DataLoader(
        dataset, settings.batch_size, shuffle=True, seed=seed, drop_last=True, num_workers=1
    )
    optimizer = optim.Adam(model.parameters(), lr=settings.lr)
    steps = settings.epochs * len(batches)

    def schedule(step: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * step / steps)

    scheduler = optim.lr_scheduler.LambdaLR(optimizer, schedule)
    return train.fit(
        model,
        batches,
        loss,
        optimizer,
        settings.epochs,
        callbacks=[train.SchedulerStep(scheduler, every="batch"), *callbacks],
    )


# ---- measuring ----


def scans(name: str, spatial: int) -> Part:
    """The images of 'validation' or 'test' under their fixed noise, and their labels."""
    source = part(name, spatial)
    seed = {"validation": VALIDATION_SEED, "test": TEST_SEED}[name]
    images = [
        brain.corrupt(image, np.random.default_rng((seed, i)))
        for i, image in enumerate(source.images)
    ]
    return Part(np.stack(images), source.labels)


def predict(model: Any, images: np.ndarray) -> np.ndarray:
    """The classes of slices (N, H, W) or volumes (N, D, H, W), those by overlapping patches."""
    if images.ndim == 3:
        return train.predict(model, images[:, None], 4).argmax(1)
    return np.stack([train.predict_tiles(model, i[None], PATCH, 0.5, 4).argmax(0) for i in images])


def measure(predicted: np.ndarray, labels: np.ndarray, millimetres: float) -> dict[str, float]:
    """Dice of each tissue over all labelled voxels, and its surface distance.

    The average symmetric surface distance is taken within each slice, in mm, and averaged over the
    slices where both have the tissue: blocks of slices have no surface across their ends.
    """
    if labels.ndim == 4:  # (1, X, Y, Z) -> the labelled slices (N, X, Y)
        own = (labels[0] != IGNORE).all((0, 1))
        predicted, labels = (np.moveaxis(a[0][..., own], 2, 0) for a in (predicted, labels))
    out: dict[str, float] = {}
    overlap = metrics.dice_per_class(predicted, labels, len(CLASSES))
    for c, name in enumerate(CLASSES[1:], 1):
        out[f"dice {name}"] = float(overlap[c])
        out[f"distance {name}"] = float(
            np.nanmean(
                [
                    metrics.assd(p == c, r == c, (millimetres, millimetres))
                    for p, r in zip(predicted, labels)
                ]
            )
        )
    return out


def threshold(name: str, spatial: int) -> np.ndarray:
    """The baseline: classes of the scans by two thresholds, given which voxels are brain.

    The thresholds have the best mean Dice on simulated training images.
    """
    raise NotImplementedError
