"""Lesions found in three stages, in the style of "CADe" (see ``models.cade``): is there one in the
slice, a box around it, and GrowCut from seeds that the box gives. The lesions are simulated on a
template (see ``lesions``).

The settings were chosen by validation slices of seed 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from convgrad import data, explain, metrics, optim, train
from convgrad.autograd import no_grad
from convgrad.extras import require
from convgrad.functional import cross_entropy, relu, smooth_l1_loss
from convgrad.segment import BACKGROUND, OBJECT, box_seeds, grow_cut
from convgrad.tasks import lesions
from convgrad.tasks.images import Settings
from convgrad.tensor import Tensor

__all__ = [
    "BOXES",
    "CLASSES",
    "SIZES",
    "SLICES",
    "Splits",
    "Threshold",
    "box_batches",
    "box_loss",
    "fit_boxes",
    "fit_slices",
    "grow",
    "load",
    "look",
    "measure",
    "slice_batches",
    "with_lesion",
]

CLASSES = ("normal", "abnormal")
SIZES = (4000, 400, 400)  # slices for training, validation and test; half of each have a lesion
SLICES = Settings(epochs=8, lr=3e-3)
BOXES = Settings(epochs=16, lr=1e-2)  # of the half that has a lesion
VALIDATION_BATCH = 200
# Where GrowCut's seeds are, as parts of the box, and how much its image is smoothed before, pixels.
INNER, OUTER, SMOOTH = 0.6, 1.15, 1.0


class Splits(NamedTuple):
    """What to train on, what to choose by, and how to draw the test slices (once, at the end)."""

    train: lesions.Slices
    validation: lesions.Slices
    test: Callable[[], lesions.Slices]


def load(seed: int = 0, sizes: tuple[int, int, int] = SIZES) -> Splits:
    """Slices of the three splits; the test slices are the same for every seed."""
    training, validation, test = map(range, sizes)
    return Splits(
        lesions.slices(seed, "train", training),
        lesions.slices(seed, "validation", validation),
        lambda: lesions.slices(seed, "test", test),
    )


# ---- training ----


class _Targets(data.Dataset):
    """(image, target of its labels) of another data set's (image, labels)."""

    def __init__(self, source: Any, target: Callable[[np.ndarray], Any]) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, labels = self.source[index]
        return image, self.target(labels.numpy())


def fit_slices(
    model: Any,
    splits: Splits,
    settings: Settings = SLICES,
    seed: int = 0,
    callbacks: Iterable[train.Callback] = (),
) -> train.History:
    """Trains a classifier of slices, normal or abnormal; a row of the history per epoch."""
    return _fit(
        model, slice_batches(splits.train, settings.batch_size, seed),
        slice_batches(splits.validation, VALIDATION_BATCH),
        cross_entropy, {"accuracy": metrics.accuracy}, settings, callbacks,
    )  # fmt: skip


def fit_boxes(
    model: Any,
    splits: Splits,
    settings: Settings = BOXES,
    seed: int = 0,
    callbacks: Iterable[train.Callback] = (),
) -> train.History:
    """Trains a network that gives boxes, on the slices with a lesion."""
    return _fit(
        model, box_batches(splits.train, settings.batch_size, seed),
        box_batches(splits.validation, VALIDATION_BATCH),
        box_loss, {"iou": _mean_iou}, settings, callbacks,
    )  # fmt: skip


def slice_batches(
    slices: lesions.Slices, batch_size: int, seed: int | None = None
) -> data.DataLoader:
    """Batches of images and 0 for normal, 1 for abnormal; with a seed shuffled, and mirrored at
    random."""
    return _batches(slices, lambda labels: int(labels.any()), batch_size, seed)


def box_batches(
    slices: lesions.Slices, batch_size: int, seed: int | None = None
) -> data.DataLoader:
    """Batches of the images with a lesion and its box; with a seed as ``slice_batches``."""
    return _batches(
        with_lesion(slices), lambda labels: lesions.box_of(labels > 0), batch_size, seed
    )


def _batches(
    slices: lesions.Slices,
    target: Callable[[np.ndarray], Any],
    batch_size: int,
    seed: int | None,
) -> data.DataLoader:
    source: data.Dataset = data.TensorDataset(slices.images, slices.labels)
    if seed is None:
        return data.DataLoader(_Targets(source, target), batch_size)
    source = data.AugmentedDataset(source, data.Augmentation(flip=(0, 1)), seed)
    return data.DataLoader(
        _Targets(source, target), batch_size, shuffle=True, seed=seed, num_workers=1
    )


def _fit(
    model: Any,
    batches: data.DataLoader,
    validation: data.DataLoader,
    loss: Callable[[Tensor, Tensor], Tensor],
    measured: dict[str, Any],
    settings: Settings,
    callbacks: Iterable[train.Callback],
) -> train.History:
    """Adam with a rate that falls to 0 as a cosine."""
    optimizer = optim.Adam(model.parameters(), lr=settings.lr)
    falling = optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * len(batches))
    return train.fit(
        model,
        batches,
        loss,
        optimizer,
        settings.epochs,
        validation=validation,
        metrics=measured,
        callbacks=[train.SchedulerStep(falling, every="batch"), *callbacks],
    )


def with_lesion(slices: lesions.Slices) -> lesions.Slices:
    """Those that have one."""
    return lesions.Slices(*(part[slices.opacities > 0] for part in slices))


def box_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - IoU, and a smooth-L1 distance in tenths of the image that also leads together boxes that
    do not touch; mean over boxes (N, 4) as (y, x, h, w)."""
    low = (predicted[:, :2] - predicted[:, 2:] / 2).maximum(target[:, :2] - target[:, 2:] / 2)
    high = (predicted[:, :2] + predicted[:, 2:] / 2).minimum(target[:, :2] + target[:, 2:] / 2)
    common = relu(high - low)
    intersection = common[:, 0] * common[:, 1]
    size = relu(predicted[:, 2:])
    union = size[:, 0] * size[:, 1] + target[:, 2] * target[:, 3] - intersection
    return (1 - intersection / (union + 1e-6)).mean() + smooth_l1_loss(predicted * 10, target * 10)


def _mean_iou(predicted: Tensor, target: Tensor) -> float:
    return float(metrics.box_iou(predicted, target).mean())


# ---- segmentation ----


def contrast(images: np.ndarray) -> np.ndarray:
    """(N, 4, H, W) -> (N, H, W): FLAIR + T2 / 2 - T1, smoothed; all of a lesion is brighter in it
    than grey and white matter."""
    smooth = require("scipy.ndimage", "medical").gaussian_filter
    weighed = images[:, 3] + 0.5 * images[:, 2] - images[:, 0]
    return smooth(weighed, (0, SMOOTH, SMOOTH))


def grow(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Lesions (N, H, W), bool, of images (N, 4, H, W), by GrowCut from seeds that boxes (N, 4)
    give."""
    bright = contrast(images)
    return np.stack(
        [
            grow_cut(image, box_seeds(box, image.shape, INNER, OUTER)) == OBJECT
            for image, box in zip(bright, boxes)
        ]
    )


class Threshold(NamedTuple):
    """What one would do without learning: the largest connected part above a threshold.

    Attributes:
        alone: of ``contrast``, for slices of which nothing is known.
        pixels: a slice is abnormal if that part has so many.
        inside: of ``contrast``, within a box.
    """

    alone: float
    pixels: int
    inside: float

    @classmethod
    def chosen(cls, slices: lesions.Slices) -> Threshold:
        """The best for these slices: in accuracy and IoU together, and in Dice in true boxes."""
        has, bright = slices.opacities > 0, contrast(slices.images)
        steps = [round(0.05 * i, 2) for i in range(2, 20)]
        best = (-np.inf, 0.0, 0)
        for alone in steps:
            parts = _largest_parts(bright, alone)
            iou = metrics.box_iou(_boxes_of(parts[has]), slices.boxes[has]).mean()
            for pixels in (10, 20, 40, 60):
                accuracy = np.mean((parts.sum((1, 2)) >= pixels) == has)
                best = max(best, (accuracy + iou, alone, pixels))
        boxed, truth = _inside(slices.boxes[has], bright.shape[1:]), slices.labels[has] > 0
        inside = max(steps, key=lambda value: _mean_dice(boxed & (bright[has] > value), truth))
        return cls(best[1], best[2], inside)

    def segment(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) bool: the largest part of each slice, empty if it is too small."""
        parts = _largest_parts(contrast(images), self.alone)
        return parts & (parts.sum((1, 2), keepdims=True) >= self.pixels)

    def segment_in(self, images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(N, H, W) bool: what is above the threshold within boxes (N, 4)."""
        bright = contrast(images)
        return _inside(boxes, bright.shape[1:]) & (bright > self.inside)


def _largest_parts(bright: np.ndarray, threshold: float) -> np.ndarray:
    """The largest connected part above the threshold of each (N, H, W)."""
    label = require("scipy.ndimage", "medical").label
    out = np.zeros(bright.shape, bool)
    for part, image in zip(out, bright):
        labelled, count = label(image > threshold)
        if count:
            sizes = np.bincount(labelled.ravel())
            part[...] = labelled == 1 + sizes[1:].argmax()
    return out


def _boxes_of(masks: np.ndarray) -> np.ndarray:
    return np.stack([lesions.box_of(mask) for mask in masks])


def _inside(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(N, H, W) bool."""
    return np.stack([box_seeds(box, shape, 0.01, 1) != BACKGROUND for box in boxes])


def _mean_dice(masks: np.ndarray, truths: np.ndarray) -> float:
    return float(np.mean([metrics.dice(mask, truth) for mask, truth in zip(masks, truths)]))


# ---- heat maps, and how good it all is ----


def look(model: Any, images: np.ndarray) -> np.ndarray:
    """Where a SliceCNN saw a lesion: (N, H, W) class-activation maps of 'abnormal'."""
    features = Tensor(train.predict(model.trunk, images)).to(model.classify.weight.device)
    with no_grad():
        maps = explain.class_activation_maps(features, model.classify)
    return explain.enlarge(maps[:, 1], images.shape[2:])


def measure(
    model: Any, test: lesions.Slices, threshold: Threshold
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How good a CADe is, beside the threshold; and what it said.

    Returns (figures, {'classes' (N,), and of the slices with a lesion alone 'boxes' (M, 4),
    'masks', 'heat' (M, H, W)}). Accuracy is of all slices; the other figures are means over those
    with a lesion, whatever the first stage said of them:

    iou, found       of the box, and the part of boxes whose IoU is above a half
    dice             of GrowCut from the predicted box; _in_box: of the threshold within that box
    pointing         the part of heat maps whose maximum lies in the lesion: class activation maps,
                     and _grad_cam: Grad-CAM of the last convolution's maps
    threshold_       the same of the threshold alone
    """
    sick = with_lesion(test)
    truth = sick.labels > 0
    classes = train.predict(model.slices, test.images).argmax(1)
    boxes = train.predict(model.boxes, sick.images)
    masks, heat = grow(sick.images, boxes), look(model.slices, sick.images)
    gradients = explain.grad_cam(model.slices, model.slices.trunk, sick.images, 1)
    alone = threshold.segment(test.images)
    iou = metrics.box_iou(boxes, sick.boxes)
    alone_iou = metrics.box_iou(_boxes_of(alone[test.opacities > 0]), sick.boxes)
    figures = {
        "accuracy": np.mean(classes == (test.opacities > 0)),
        "iou": iou.mean(),
        "found": np.mean(iou > 0.5),
        "dice": _mean_dice(masks, truth),
        "dice_in_box": _mean_dice(threshold.segment_in(sick.images, boxes), truth),
        "pointing": metrics.pointing_game(heat, truth),
        "pointing_grad_cam": metrics.pointing_game(
            explain.enlarge(gradients, truth.shape[1:]), truth
        ),
        "threshold_accuracy": np.mean(alone.any((1, 2)) == (test.opacities > 0)),
        "threshold_iou": alone_iou.mean(),
        "threshold_found": np.mean(alone_iou > 0.5),
        "threshold_dice": _mean_dice(alone[test.opacities > 0], truth),
    }
    said = {"classes": classes, "boxes": boxes, "masks": masks, "heat": heat}
    return {name: float(value) for name, value in figures.items()}, said
