"""Images and volumes turned, scaled, bent, mirrored and brightened at random (scipy.ndimage)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from convgrad.data.dataset import Dataset
from convgrad.extras import require
from convgrad.tensor import Tensor

__all__ = ["Augmentation", "AugmentedDataset"]


@dataclass(frozen=True)
class Augmentation:
    """How much an image or volume may change; what is left at 0 does not.

    Attributes:
        degrees: rotation about the centre, in every plane of two axes, by at most so much.
        scale: the logarithm of the size changes by at most so much, 0.1 for 10 %.
        shift: along every axis, by at most so many pixels.
        elastic: standard deviation, in pixels, of the displacements of a grid of control points
            that bends the image (as in Ronneberger et al., "U-Net", 2015).
        spacing: of those control points, in pixels.
        flip: spatial axes, 0 the first one, each mirrored in half of the draws.
        gain: the logarithm of the brightness, of all channels at once, changes by at most so much.
        offset: at most so much is added to all voxels.

    Beyond its edges an image goes on with the value at the edge. ValueError for a negative amount.
    """

    degrees: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    spacing: float = 16.0
    flip: Sequence[int] = ()
    gain: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "flip" and not value >= (1 if field.name == "spacing" else 0):
                raise ValueError(
                    f"[Augmentation] {field.name} must be at least "
                    f"{1 if field.name == 'spacing' else 0}. Got {value}."
                )

    def __call__(
        self, image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One draw.

        Args:
            image: (C, ...) floats, interpolated linearly.
            label: (...) whole numbers or None; each pixel gets the nearest one's.
            rng: what is drawn from.

        Returns arrays of the same shapes and dtypes.
        """
        shape = image.shape[1:]
        if label is not None and label.shape != shape:
            raise ValueError(
                "[Augmentation] image must be (C, ...) and label (...). Got "
                f"{image.shape} and {label.shape}."
            )
        if self.degrees or self.scale or self.shift or self.elastic:
            ndimage = require("scipy.ndimage", "medical")
            where = self._coordinates(shape, rng, ndimage)
            image = np.stack(
                [ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in image]
            )
            if label is not None:
                label = ndimage.map_coordinates(label, where, order=0, mode="nearest")
        for axis in self.flip:
            if rng.random() < 0.5:
                image = np.flip(image, axis + 1)
                label = None if label is None else np.flip(label, axis)
        if self.gain or self.offset:
            gain, offset = np.exp(self.gain * rng.uniform(-1, 1)), self.offset * rng.uniform(-1, 1)
            image = (gain * image + offset).astype(image.dtype)
        return image, label

    def _coordinates(
        self, shape: Sequence[int], rng: np.random.Generator, ndimage: Any
    ) -> np.ndarray:
        """(axes, *shape): the place that each pixel comes from."""
        axes = len(shape)
        matrix = np.eye(axes) * np.exp(self.scale * rng.uniform(-1, 1))
        for i in range(axes):
            for j in range(i + 1, axes):
                angle = np.deg2rad(self.degrees) * rng.uniform(-1, 1)
                turn = np.eye(axes)
                turn[[i, i, j, j], [i, j, i, j]] = (
                    np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
                )  # fmt: skip
                matrix = matrix @ turn
        middle = (np.array(shape) - 1) / 2
        shift = middle + self.shift * rng.uniform(-1, 1, axes)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        column = (slice(None), *(None,) * axes)
        where = np.tensordot(matrix, grid - middle[column], 1) + shift[column]
        if self.elastic:
            points = [int(np.ceil(n / self.spacing)) + 1 for n in shape]
            zoom = [n / p for n, p in zip(shape, points)]
            for axis in range(axes):
                bend = self.elastic * rng.standard_normal(points)
                where[axis] += ndimage.zoom(bend, zoom, order=3)
        return where


class AugmentedDataset(Dataset):
    """Another data set's (image, target) pairs, differently changed in every epoch.

    Args:
        source: its items are images (C, ...) with label images (...) or anything else, such as
            a class; what is no label image stays as it is.
        augmentation: how much they change.
        seed: what is drawn for item i in epoch e follows from (seed, e, i) alone, never from who
            loads it or when.
    """

    def __init__(self, source: Any, augmentation: Augmentation, seed: int = 0) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses an epoch's draws, here and in the source."""
        self.epoch = epoch
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = (
            item.numpy() if isinstance(item, Tensor) else np.asarray(item)
            for item in self.source[index]
        )
        rng = np.random.default_rng((self.seed, self.epoch, index))
        labelled = target.shape == image.shape[1:]
        image, changed = self.augmentation(image, target if labelled else None, rng)
        target = target if changed is None else changed
        return Tensor(np.ascontiguousarray(image)), Tensor(np.array(target, order="C"))
