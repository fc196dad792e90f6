"""Patches of images and volumes: drawn at random to train on, laid out as tiles to predict by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convgrad.data.dataset import Dataset
from convgrad.tensor import Tensor

__all__ = ["RandomPatches", "tile_starts", "tiles"]


class RandomPatches(Dataset):
    """Patches (C, *size) of labelled volumes, drawn anew for every epoch (which the loader sets).

    Args:
        volumes: arrays (C, ...), float32.
        labels: an array (...) of classes 0, 1, ... for each of them.
        size: of a patch, one entry per axis.
        count: patches per epoch.
        seed: what is drawn follows from (seed, epoch) alone.
        balanced: choose the class at the patch's centre first, each equally often among those that
            occur, and then one of its pixels. Otherwise every pixel is equally likely.
        centre: the target is the class at the centre instead of all classes (*size). The centre of
            an even size is the pixel behind the middle.
        margin: else the target leaves out so many pixels on every side, as a network of "valid"
            convolutions does.

    Only patches that lie wholly inside their volume are drawn. ValueError for arrays that do not
    fit together, voxels that are not finite, and a volume smaller than a patch.
    """

    def __init__(
        self,
        volumes: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        size: Sequence[int],
        count: int,
        seed: int = 0,
        balanced: bool = False,
        centre: bool = False,
        margin: int = 0,
    ) -> None:
        self.size = tuple(int(n) for n in size)
        self.volumes, self.labels = list(volumes), list(labels)
        self.count, self.seed = count, seed
        self.centre, self.margin = centre, margin
        self._check()
        # Per class, or of all at once: (volume, flat index of the patch's first corner).
        self._places = self._find(balanced)
        self.set_epoch(0)

    def _check(self) -> None:
        if len(self.volumes) != len(self.labels) or not self.volumes:
            raise ValueError(
                "[RandomPatches] volumes and labels must be lists of one length, at least 1. Got "
                f"{len(self.volumes)} and {len(self.labels)}."
            )
        if not 0 <= 2 * self.margin < min(self.size):
            raise ValueError(
                "[RandomPatches] margin must be at least 0 and leave something of a patch. Got "
                f"{self.margin} for size {self.size}."
            )
        for volume, label in zip(self.volumes, self.labels):
            if volume.shape[1:] != label.shape or label.ndim != len(self.size):
                raise ValueError(
                    "[RandomPatches] A volume must be (C, ...), its labels (...), with an axis for "
                    f"each entry of size {self.size}. Got {volume.shape} and {label.shape}."
                )
            if any(n < 1 or n > m for n, m in zip(self.size, label.shape)):
                raise ValueError(
                    f"[RandomPatches] A patch must fit into every volume. Got size {self.size} for "
                    f"a volume of {label.shape}."
                )
            if not np.isfinite(volume).all():
                raise ValueError(
                    "[RandomPatches] Voxels must be finite. Got "
                    f"{int((~np.isfinite(volume)).sum())} that are not, in {volume.shape}."
                )

    def _find(self, balanced: bool) -> list[np.ndarray]:
        found: dict[int, list[np.ndarray]] = {}
        for number, label in enumerate(self.labels):
            room = [m - n + 1 for n, m in zip(self.size, label.shape)]
            middle = label[
                tuple(slice(n // 2, n // 2 + free) for n, free in zip(self.size, room))
            ].ravel()
            for c in np.unique(middle) if balanced else (0,):
                places = np.flatnonzero(middle == c) if balanced else np.arange(middle.size)
                pairs = np.stack([np.full_like(places, number), places], axis=1)
                found.setdefault(int(c), []).append(pairs)
        return [np.concatenate(pairs) for _, pairs in sorted(found.items())]

    def set_epoch(self, epoch: int) -> None:
        """Draws the patches of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        classes = rng.permutation(np.arange(self.count) % len(self._places))
        self.drawn = np.empty((self.count, 2), np.int64)
        for c, places in enumerate(self._places):
            chosen = classes == c
            self.drawn[chosen] = places[rng.integers(len(places), size=int(chosen.sum()))]

    def __len__(self) -> int:
        return self.count

    def _patch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number, place = self.drawn[index]
        volume, label = self.volumes[number], self.labels[number]
        room = [m - n + 1 for n, m in zip(self.size, label.shape)]
        start = np.unravel_index(place, room)
        window = tuple(slice(s, s + n) for s, n in zip(start, self.size))
        target = label[window]
        if self.centre:
            target = target[tuple(n // 2 for n in self.size)]
        elif self.margin:
            target = target[(slice(self.margin, -self.margin),) * target.ndim]
        return volume[(slice(None), *window)], np.asarray(target)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, target = self._patch(index)
        return Tensor(np.ascontiguousarray(image)), Tensor(target.astype(np.int64))

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Patches (N, C, *size) and their targets (N, *size) without margins, or (N,) of their
        centres."""
        pairs = [self._patch(i) for i in indices]
        images = np.stack([image for image, _ in pairs])
        return Tensor(images), Tensor(np.stack([t for _, t in pairs]).astype(np.int64))


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles of an axis begin: evenly spaced, the last one ending at ``length``, neighbours
    having at least the part ``overlap`` of a tile in common."""
    if tile > length:
        raise ValueError(f"[tiles] A tile must fit into the volume. Got {tile} for {length}.")
    if not 0 <= overlap < 1:
        raise ValueError(f"[tiles] overlap must be in [0, 1). Got {overlap}.")
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def tiles(
    shape: Sequence[int], size: Sequence[int], overlap: float = 0.5
) -> Iterator[tuple[slice, ...]]:
    """Windows of ``size`` that cover an image or volume of ``shape``, see :func:`tile_starts`."""
    starts = [tile_starts(m, n, overlap) for m, n in zip(shape, size, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(s, s + n) for s, n in zip(corner, size))


def blend_weights(size: Sequence[int]) -> Any:
    """(*size) float32: how much each pixel of a tile counts where tiles overlap, least at the edge.

    Along each axis a triangle from 1 / n at both ends, so that no weight is 0.
    """
    weights: Any = np.ones((), np.float32)
    for n in size:
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        weights = weights[..., None] * (2 * ramp / (n + 1))
    return weights
