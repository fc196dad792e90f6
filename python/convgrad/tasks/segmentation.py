"""A class for every pixel or voxel: networks, loss, training and prediction of the segmentation
tasks, of simulated scans and of folders alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convgrad import data, functional, models, optim, train, where
from convgrad.tensor import Tensor

__all__ = [
    "DEFAULTS",
    "IGNORE",
    "MODELS",
    "Measured",
    "Settings",
    "Validation",
    "fit",
    "loss",
    "network",
    "predict",
    "spatial_axes",
]

IGNORE = -100  # the label of voxels that count for nothing
MULTIPLE = 16  # sizes that every network here takes: halved four times
CERTAIN = 30.0  # a logit beside which zeros count for nothing in float32


@dataclass(frozen=True)
class Settings:
    """How a model is trained unless the command line says otherwise."""

    epochs: int
    batch_size: int
    lr: float  # at first; it falls to 0 as a cosine
    draws: int  # slices or patches per epoch


MODELS = ("unet", "segnet", "fcn", "unet3d")
DEFAULTS = {
    "unet": Settings(epochs=40, batch_size=4, lr=3e-3, draws=156),
    "segnet": Settings(epochs=20, batch_size=4, lr=3e-3, draws=156),
    "fcn": Settings(epochs=10, batch_size=4, lr=1e-3, draws=78),
    "unet3d": Settings(epochs=30, batch_size=4, lr=5e-3, draws=128),
}


def network(name: str, channels: int, classes: int) -> Any:
    """One of MODELS. SegNet has a quarter of its authors' widths, to be trained in minutes.

    ValueError for another name.
    """
    if name == "unet":
        return models.UNet2d(channels, classes)
    if name == "unet3d":
        return models.UNet3d(channels, classes)
    if name == "segnet":
        return models.SegNet(channels, classes, widths=(16, 32, 64, 128, 128))
    if name == "fcn":
        return models.CardiacFCN(channels, classes)
    raise ValueError(f"[network] A model is one of {', '.join(MODELS)}. Got {name!r}.")


def spatial_axes(name: str) -> int:
    """3 for the networks that see volumes, 2 for those that see slices."""
    return 3 if name.endswith("3d") else 2


# ---- training ----


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus the soft Dice loss, of the voxels whose label is not IGNORE.

    Args:
        logits: (N, K, ...)
        target: int64 (N, ...)
    """
    value = functional.cross_entropy(logits, target, ignore_index=IGNORE)
    ignored = target == IGNORE
    if bool(ignored.any()):
        # As background that is predicted for certain: it moves no other class's Dice.
        background = np.zeros((1, logits.shape[1], *[1] * (logits.ndim - 2)), np.float32)
        background[:, 0] = CERTAIN
        logits = where(ignored.unsqueeze(1), Tensor(background).to(logits.device), logits)
        target = where(ignored, 0, target)
    return value + functional.dice_loss(logits, target)


class Validation(train.Callback):
    """Adds 'val_dice' to every few epochs' rows: what ``score()`` says of the network then.

    To be listed before what shows or writes the rows.
    """

    def __init__(self, score: Callable[[], float], every: int) -> None:
        self.score, self.every = score, every

    def epoch(self, run: train.Run) -> None:
        if run.epoch % self.every == 0 or run.epoch == run.epochs:
            run.history[-1]["val_dice"] = self.score()


def fit(
    model: Any,
    dataset: Any,
    settings: Settings,
    seed: int = 0,
    callbacks: Iterable[train.Callback] = (),
) -> train.History:
    """Trains ``model`` on (image, labels) pairs by Adam; a row per epoch.

    The order of the draws follows from ``seed``, or is the data set's own if that says ``shuffle =
    False``.
    """
    batches = data.DataLoader(
        dataset,
        settings.batch_size,
        shuffle=getattr(dataset, "shuffle", True),
        seed=seed,
        drop_last=True,
        num_workers=1,
    )
    optimizer = optim.Adam(model.parameters(), lr=settings.lr)
    steps = settings.epochs * len(batches)

    def schedule(step: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * step / steps)

    scheduler = optim.lr_scheduler.LambdaLR(optimizer, schedule)
    steps_first = [train.SchedulerStep(scheduler, every="batch"), *callbacks]
    return train.fit(model, batches, loss, optimizer, settings.epochs, callbacks=steps_first)


# ---- prediction ----


class Measured(NamedTuple):
    """How good a network is on a part of the data.

    Attributes:
        row: 'dice NAME' and 'distance NAME' (of surfaces, mm) of each class but the background.
        images, predicted, truths: slices (H, W) to show, of one shape where the subjects have one.
    """

    row: dict[str, float]
    images: list[np.ndarray]
    predicted: list[np.ndarray]
    truths: list[np.ndarray]

    def mean_dice(self) -> float:
        """Over the classes."""
        return float(np.mean([v for k, v in self.row.items() if k.startswith("dice ")]))


def predict(model: Any, images: np.ndarray, patch: Sequence[int] | None = None) -> np.ndarray:
    """The classes of every pixel, int64.

    Args:
        model: in 2-D (patch None) or in 3-D.
        images: slices (N, C, H, W) of any size; or with ``patch`` volumes (N, C, X, Y, Z), which
            are predicted by overlapping patches of this size.

    ValueError if a patch does not fit into the volume.
    """
    if patch is not None:
        return np.stack([train.predict_tiles(model, i, patch, 0.5, 4).argmax(0) for i in images])
    height, width = images.shape[2:]
    room = [(0, -n % MULTIPLE) for n in (height, width)]
    padded = np.pad(images, ((0, 0), (0, 0), *room), mode="edge")
    parts = [
        train.predict(model, padded[i : i + 4])[..., :height, :width].argmax(1)
        for i in range(0, len(padded), 4)
    ]
    return np.concatenate(parts)
