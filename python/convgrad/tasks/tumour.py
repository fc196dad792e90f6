"""Brain tumours segmented by patches, in two phases (Havaei et al., Medical Image Analysis 2017).

A network classifies the middle of a 33x33 patch. The paper trains it first on patches whose middles
are of every class equally often, then only its last layer on patches as they come, 98 % of them
healthy: the first phase teaches it to see tumours, the second how rare they are.

As every layer is "valid" and of stride 1, a crop of 48x48 gives what its 256 patches would: crops
are trained on instead, which costs a hundredth per pixel. That each class counts equally is then
the loss's doing (:func:`balanced_cross_entropy`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convgrad import data, functional, metrics, models, nn, optim, tensor, train
from convgrad.autograd import no_grad
from convgrad.backend import host
from convgrad.models.havaei import MARGIN
from convgrad.tasks.tumour_slices import CLASSES, Slices
from convgrad.tensor import Tensor

__all__ = [
    "CROP",
    "DEFAULTS",
    "MODELS",
    "REGIONS",
    "Settings",
    "balanced_cross_entropy",
    "compare_patches",
    "crops",
    "fit",
    "log_parts",
    "margin_of",
    "network",
    "parts",
    "region_dice",
    "schedule",
    "seen",
    "segment",
]

MODELS = ("twopath", "inputcascade")
# The regions that are scored, as in the BraTS challenges, and the classes that they hold.
REGIONS = {"complete": (1, 2, 3), "core": (1, 2), "enhancing": (2,)}
CROP = 16  # pixels along each side of a crop that are classified
PATCHES = 64  # patches per batch where patches are compared with whole slices


@dataclass(frozen=True)
class Settings:
    """How a network is trained in each of its two phases.

    Attributes:
        epochs: of phase 1 and 2.
        steps: updates per epoch.
        batch_size: crops per update.
        lr: of Adam at its highest, in phase 1 and 2; it rises over ``warm_up`` updates and falls to
            0 as a cosine.
        head_lr: in phase 1 the last layer's rate, as a part of the others': it adds up thousands of
            inputs, and a step that is small for a weight is large for their sum.
    """

    epochs: tuple[int, int] = (8, 2)
    steps: int = 75
    batch_size: int = 8
    lr: tuple[float, float] = (1e-3, 3e-5)
    head_lr: float = 0.3
    warm_up: int = 20


DEFAULTS = Settings()
WIDTH = 0.25  # of the paper's numbers of maps, by default


# ---- crops ----


def crops(slices: Slices, count: int, seed: int, balanced: bool) -> data.RandomPatches:
    """Crops of which CROP x CROP pixels are classified: (C, CROP + 2 m, CROP + 2 m) and the classes
    of those pixels.

    Args:
        slices: to cut from.
        count: per epoch.
        seed: see :class:`convgrad.data.RandomPatches`.
        balanced: whether all classes are equally often in the middle; else all places are equally
            likely.
    """
    margin = slices.margin
    labels = np.pad(slices.labels, ((0, 0), (margin, margin), (margin, margin)))
    size = (CROP + 2 * margin,) * 2
    return data.RandomPatches(
        list(slices.images), list(labels), size, count, seed, balanced=balanced, margin=margin
    )


# ---- networks ----


def margin_of(model: str) -> int:
    """How far a network of this name (in MODELS) sees around a pixel."""
    return 2 * MARGIN if model == "inputcascade" else MARGIN


def network(model: str, width: float = WIDTH, channels: int = 4) -> Any:
    """One of MODELS, with kernels drawn as He et al. 2015: from the paper's, uniform in +-0.005,
    these runs are too short to get away.

    ValueError for another name.
    """
    if model not in MODELS:
        raise ValueError(f"[tumour] A model is one of {', '.join(MODELS)}. Got {model!r}.")
    first = _drawn(models.TwoPathCNN(channels, len(CLASSES), width=width))
    if model == "twopath":
        return first
    cascade = models.InputCascadeCNN(first, channels, len(CLASSES), width=width)
    _drawn(cascade.second)
    return cascade


def _drawn(net: Any) -> Any:
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter)
    with no_grad():
        net.head.weight.mul_(0.1)  # begin near equal probabilities
    return net


def parts(model: Any) -> dict[str, Any]:
    """The networks to train one after the other, by name: a TwoPathCNN itself, or both of a
    cascade."""
    if isinstance(model, models.InputCascadeCNN):
        return {"TwoPathCNN": model.first, "InputCascadeCNN": model.second}
    return {"TwoPathCNN": model}


def seen(model: Any, part: str, slices: Slices) -> Slices:
    """What this part of a model sees, with a margin of 16 pixels, of slices with the model's
    margin. For a cascade's second network that is images and the first one's probabilities,
    computed here once, as the first one learns no more."""
    if part == "InputCascadeCNN":
        images = train.predict(_Joined(model), slices.images, batch_size=1)
        return Slices(images, slices.labels)
    beyond = slices.margin - MARGIN
    inner = slice(beyond, -beyond or None)
    return Slices(slices.images[:, :, inner, inner], slices.labels)


class _Joined(nn.Module):
    def __init__(self, cascade: Any) -> None:
        super().__init__()
        self.cascade = cascade

    def forward(self, x: Tensor) -> Tensor:
        return self.cascade.joined(x)


# ---- two phases ----


def balanced_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """The mean, over the classes that occur, of the mean loss of each one's pixels: what patches
    drawn equally often from each class are expected to give.

    output (N, K, H, W), target (N, H, W) int64.
    """
    counts = np.bincount(host(target.array).ravel(), minlength=output.shape[1])
    weight = tensor((1 / np.maximum(counts, 1)).astype(np.float32), device=output.device)
    return functional.cross_entropy(output, target, weight)


LOSSES = (balanced_cross_entropy, functional.cross_entropy)  # of phase 1 and 2


class _Validation(train.Callback):
    """Adds val_loss and the Dice of each region to the row of the epoch."""

    def __init__(self, slices: Slices, phase: int) -> None:
        self.slices, self.phase = slices, phase

    def epoch(self, run: train.Run) -> None:
        logits = _logits(run.model, self.slices.images)
        target = tensor(self.slices.labels.astype(np.int64))
        loss = LOSSES[self.phase - 1](tensor(logits), target)
        dice = region_dice(logits.argmax(1), self.slices.labels)
        measured = {"loss": loss.item(), **dice}
        run.history[-1].update({f"val_{name}": value for name, value in measured.items()})


def fit(
    net: Any,
    slices: Slices,
    validation: Slices,
    phase: int,
    settings: Settings = DEFAULTS,
    seed: int = 0,
    callbacks: Iterable[train.Callback] = (),
) -> train.History:
    """Trains one of a model's :func:`parts`, on what it has :func:`seen`, in one phase.

    Args:
        net: all of it is trained in phase 1, only its ``head`` in phase 2; nothing of it has
            gradients afterwards.
        slices: to train on.
        validation: measured after each epoch.
        phase: 1 or 2.
        settings: see there.
        seed: what is drawn follows from it and the phase.
        callbacks: see :func:`convgrad.train.fit`.

    Returns a row per epoch, see :func:`convgrad.train.fit`; ``val_complete``, ``val_core`` and
    ``val_enhancing`` are the Dice of all validation slices.
    """
    net.requires_grad_(phase == 1)
    net.head.requires_grad_(True)
    if phase == 2:
        with no_grad():
            net.head.bias.add_(tensor(log_parts(slices.labels), device=net.head.bias.device))
    epochs, steps = settings.epochs[phase - 1], settings.steps
    dataset = crops(slices, steps * settings.batch_size, 2 * seed + phase, balanced=phase == 1)
    optimizer = _optimizer(net, settings, phase)

    scheduler = optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, epochs * steps, settings.warm_up)
    )
    history = train.fit(
        net,
        data.DataLoader(dataset, settings.batch_size, num_workers=1),
        LOSSES[phase - 1],
        optimizer,
        epochs,
        callbacks=[
            train.SchedulerStep(scheduler, every="batch"),
            _Validation(validation, phase),
            *callbacks,
        ],
    )
    net.requires_grad_(False)
    return history


def log_parts(labels: np.ndarray) -> np.ndarray:
    """(K,) float32: what to add to a last layer's biases so that probabilities learned for classes
    equally common become those of classes as common as in ``labels``."""
    counts = np.maximum(np.bincount(labels.ravel(), minlength=len(CLASSES)), 1)
    return np.log(counts * len(CLASSES) / counts.sum()).astype(np.float32)


def schedule(step: int, steps: int, warm_up: int) -> float:
    """The part of the highest learning rate after this many of all ``steps`` updates."""
    return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _optimizer(net: Any, settings: Settings, phase: int) -> Any:
    lr = settings.lr[phase - 1]
    head = list(net.head.parameters())
    if phase == 2:
        return optim.Adam(head, lr=lr)
    known = {id(p) for p in head}
    rest = [p for p in net.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": head, "lr": lr * settings.head_lr},
    ]
    return optim.Adam(groups, lr=lr)


# ---- prediction ----


def segment(net: Any, images: np.ndarray) -> np.ndarray:
    """The classes (N, H, W) uint8 of whole slices (N, C, H + 2 m, W + 2 m) with the margin m that
    the network needs, see :func:`margin_of`."""
    return _logits(net, images).argmax(1).astype(np.uint8)


def _logits(net: Any, images: np.ndarray) -> np.ndarray:
    return train.predict(net, images, batch_size=1)  # one slice fills the processor


def compare_patches(
    net: Any, image: np.ndarray, margin: int, count: int = 256, seed: int = 0
) -> dict[str, float]:
    """A slice at once beside patch by patch.

    Args:
        net: the network.
        image: (C, H + 2 m, W + 2 m).
        margin: m.
        count: patches, of pixels chosen at random by ``seed``; the time of a slice's H x W is
            extrapolated from them.

    Returns ``slice_seconds`` (the faster of two), ``patches_seconds``, their ratio ``speedup``, and
    ``difference``, the largest of two logits of a pixel as a part of the largest logit.
    """
    side = 2 * margin + 1
    height, width = (n - 2 * margin for n in image.shape[1:])
    places = np.random.default_rng(seed).integers((height, width), size=(count, 2))
    patches = np.stack([image[:, y : y + side, x : x + side] for y, x in places])
    whole, slice_seconds = min((_timed(net, image[None], 1) for _ in range(2)), key=lambda t: t[1])
    single, seconds = _timed(net, patches, PATCHES)
    expected = whole[0][:, places[:, 0], places[:, 1]].T
    patches_seconds = seconds * height * width / count
    return {
        "slice_seconds": slice_seconds,
        "patches_seconds": patches_seconds,
        "speedup": patches_seconds / slice_seconds,
        "difference": float(np.abs(single[:, :, 0, 0] - expected).max() / np.abs(whole).max()),
    }


def _timed(net: Any, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    out = train.predict(net, images, batch_size)
    return out, time.perf_counter() - start


def region_dice(predicted: Any, target: Any) -> dict[str, float]:
    """The Dice of each of REGIONS, of all slices together, so that false alarms in healthy slices
    count; 1 for a region that is neither there nor predicted.

    predicted and target hold classes, in one shape. ValueError for unequal shapes.
    """
    return {
        name: metrics.dice(np.isin(predicted, classes), np.isin(target, classes))
        for name, classes in REGIONS.items()
    }
