"""Tumours segmented by thresholds: what a network must beat."""

from __future__ import annotations

import math

import numpy as np

from convgrad.extras import require
from convgrad.tasks.tumour import region_dice
from convgrad.tasks.tumour_slices import Slices

__all__ = ["Thresholds"]


class Thresholds:
    """Segmentation by thresholds on smoothed sequences, chosen on training slices.

    Abnormal is the largest patch of a slice that is bright in FLAIR and T2 and dark in T1; in it
    enhances what is brighter in T1c than in T1, and of the rest is core what is brighter in T2 than
    in FLAIR.
    """

    SIGMAS = (1.0, 1.5, 2.0)
    LEVELS = np.arange(-1.0, 6.0, 0.1)

    def fit(self, slices: Slices) -> Thresholds:
        """Tries every threshold, for one region after the other."""
        found = []
        for sigma in self.SIGMAS:
            score = self._scores(slices, sigma)
            self.sigma, self.levels = sigma, [math.inf] * 3
            for i, region in enumerate(("complete", "enhancing", "core")):
                found_levels = []
                for level in self.LEVELS:
                    self.levels[i] = level
                    dice = region_dice(self._classes(*score), slices.labels)[region]
                    found_levels.append((dice, level))
                self.levels[i] = max(found_levels)[1]
            dice = region_dice(self._classes(*score), slices.labels)
            found.append((sum(dice.values()), sigma, list(self.levels)))
        _, self.sigma, self.levels = max(found)
        return self

    def segment(self, slices: Slices) -> np.ndarray:
        """The classes (N, H, W) uint8."""
        return self._classes(*self._scores(slices, self.sigma))

    def _scores(self, slices: Slices, sigma: float) -> list[np.ndarray]:
        ndimage = require("scipy.ndimage", "medical")
        m = slices.margin
        smooth = ndimage.gaussian_filter(slices.images, (0, 0, sigma, sigma))
        t1, t1c, t2, flair = smooth[:, :4, m:-m, m:-m].swapaxes(0, 1)
        return [flair + 0.5 * t2 - t1, t1c - t1, t2 - flair]

    def _classes(self, abnormal: np.ndarray, uptake: np.ndarray, fluid: np.ndarray) -> np.ndarray:
        complete, enhancing, core = self.levels
        mask = np.stack([_largest(m) for m in abnormal > complete])
        kind = np.where(uptake > enhancing, 2, np.where(fluid > core, 1, 3))
        return (mask * kind).astype(np.uint8)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, count = require("scipy.ndimage", "medical").label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()
