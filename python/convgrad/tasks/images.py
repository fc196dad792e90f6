"""Labelled images: splitting, augmenting and batching them; the networks that classify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convgrad import data, nn
from convgrad.tensor import Tensor

__all__ = [
    "MODELS",
    "AugmentedImages",
    "Images",
    "Settings",
    "Splits",
    "network",
    "split_off",
    "warp",
]

MODELS = ("softmax", "mlp", "cnn")


class Images(NamedTuple):
    """Images (N, 1, H, W) float32 in [0, 1] and their classes (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """What to train on, what to choose by, and how to read the test images (once, at the end)."""

    train: Images
    validation: Images
    test: Callable[[], Images]


@dataclass(frozen=True)
class Settings:
    """How a model is trained unless the command line says otherwise."""

    epochs: int
    batch_size: int = 32
    lr: float = 0.05
    l2: float = 0.0


def split_off(whole: Images, size: int, seed: int) -> tuple[Images, Images]:
    """(the rest, ``size`` images chosen at random), each in its original order."""
    chosen = np.zeros(len(whole.labels), bool)
    chosen[np.random.default_rng(seed).permutation(len(chosen))[:size]] = True
    return (
        Images(whole.images[~chosen], whole.labels[~chosen]),
        Images(whole.images[chosen], whole.labels[chosen]),
    )


def network(name: str, shape: tuple[int, int], classes: int, averaged: bool = False) -> Any:
    """A classifier of (N, 1, *shape) images: softmax regression, two layers, or convolutions.

    ``averaged``: the convolutional one is small and averages its last maps over the image, so that
    it goes by what is seen close by and not by where.
    """
    height, width = shape
    if name == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(height * width, classes))
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(height * width, 128), nn.ReLU(), nn.Linear(128, classes)
        )
    if name == "cnn" and averaged:
        layers = [*_convolution(1, 16), nn.MaxPool2d(2), *_convolution(16, 32)]
        head = nn.Linear(32, classes)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    if name == "cnn":
        # Two convolutions at full size, then one after each pooling, down to 7x7 or less.
        layers = _convolution(1, 32) + _convolution(32, 32)
        channels = 32
        while max(height, width) > 7:
            layers += [nn.MaxPool2d(2), *_convolution(channels, 64)]
            height, width, channels = height // 2, width // 2, 64
        head = nn.Linear(channels * height * width, classes)
        return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), head)
    raise ValueError(f"[network] A model is one of {', '.join(MODELS)}. Got {name!r}.")


def _convolution(in_channels: int, out_channels: int) -> list[Any]:
    # No bias: the normalisation would subtract it again.
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def warp(
    images: np.ndarray, draws: np.ndarray, shift: float, degrees: float, scale: float
) -> np.ndarray:
    """Each image shifted, rotated and scaled a little about its centre, bilinearly.

    Args:
        images: (N, 1, H, W); beyond their edges is zero.
        draws: (N, 4) in [-1, 1]: how much of each of the following, and of both shifts.
        shift: at most so many pixels, down and right.
        degrees: at most so much rotation.
        scale: at most this change of the logarithm of the size.
    """
    n, _, height, width = images.shape
    move = draws.astype(np.float32)[:, :, None, None]
    angle, size = np.deg2rad(degrees) * move[:, 0], np.exp(scale * move[:, 1])
    cos, sin = np.cos(angle) * size, np.sin(angle) * size
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = np.arange(height, dtype=np.float32)[:, None] - middle_y
    x = np.arange(width, dtype=np.float32) - middle_x
    # Where output pixel (y, x) comes from: (N, H, W); a border of zeros around the image.
    from_y = np.clip(cos * y - sin * x + middle_y + shift * move[:, 2], -1, height) + 1
    from_x = np.clip(sin * y + cos * x + middle_x + shift * move[:, 3], -1, width) + 1
    top, left = from_y.astype(np.intp), from_x.astype(np.intp)
    down, right = (from_y - top).astype(np.float32), (from_x - left).astype(np.float32)
    padded = np.pad(images[:, 0], ((0, 0), (1, 2), (1, 2)))
    i = np.arange(n)[:, None, None]
    above = padded[i, top, left] * (1 - right) + padded[i, top, left + 1] * right
    below = padded[i, top + 1, left] * (1 - right) + padded[i, top + 1, left + 1] * right
    return (above * (1 - down) + below * down)[:, None]


class AugmentedImages(data.Dataset):
    """Images warped a little, differently in every epoch (which the loader sets).

    The warp of image i in epoch e follows from (seed, e, i) alone, never from who loads it or when.
    """

    def __init__(
        self, source: Images, seed: int, shift: float, degrees: float, scale: float
    ) -> None:
        self.source = source
        self.seed = seed
        self.amounts = shift, degrees, scale
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the warps of an epoch: row i is image i's."""
        rng = np.random.default_rng((self.seed, epoch, 1))  # 1: not the order's draws
        self.draws = rng.uniform(-1, 1, (len(self), 4))

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        images, labels = self.batch([index])
        return Tensor(images.array[0]), Tensor(labels.array[0])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The warped images (N, 1, H, W) and their labels (N,)."""
        images = warp(self.source.images[indices], self.draws[indices], *self.amounts)
        return Tensor(images), Tensor(self.source.labels[indices])
