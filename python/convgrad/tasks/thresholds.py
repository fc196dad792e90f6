"""Tumours segmented by thresholds: what a network must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    SIGMAS = (1.0, 1.5, 2.0)  # pixels
    LEVELS = np.arange(-1.0, 5.0, 0.2)  # standard deviations of a slice

    def fit(self, slices: Slices) -> Thresholds:
        """Tries every threshold, for one region after the other, at every smoothing."""
        _, self.sigma, *self.levels = max(self._fit_at(sigma, slices) for sigma in self.SIGMAS)
        return self

    def _fit_at(self, sigma: float, slices: Slices) -> tuple[float, ...]:
        """(sum of the regions' Dice, sigma, the best thresholds)."""
        abnormal, uptake, fluid = self._scores(slices, sigma)

        def best(region: str, classes: Callable[[float], np.ndarray]) -> tuple[float, float]:
            return max(
                (region_dice(classes(level), slices.labels)[region], float(level))
                for level in self.LEVELS
            )

        first, complete = best("complete", lambda level: 3 * _largest(abnormal > level))
        mask = _largest(abnormal > complete)
        second, enhancing = best("enhancing", lambda level: mask * _kinds(uptake > level, False))
        bright = uptake > enhancing
        third, core = best("core", lambda level: mask * _kinds(bright, fluid > level))
        return first + second + third, sigma, complete, enhancing, core

    def segment(self, slices: Slices) -> np.ndarray:
        """The classes (N, H, W) uint8."""
        scores = self._scores(slices, self.sigma)
        complete, enhancing, core = (s > level for s, level in zip(scores, self.levels))
        return (_largest(complete) * _kinds(enhancing, core)).astype(np.uint8)

    def _scores(self, slices: Slices, sigma: float) -> list[np.ndarray]:
        ndimage = require("scipy.ndimage", "medical")
        m = slices.margin
        smooth = ndimage.gaussian_filter(slices.images, (0, 0, sigma, sigma))
        t1, t1c, t2, flair = smooth[:, :4, m:-m, m:-m].swapaxes(0, 1)
        return [flair + 0.5 * t2 - t1, t1c - t1, t2 - flair]


def _kinds(enhancing: Any, core: Any) -> np.ndarray:
    """The class of each abnormal pixel: enhancing comes before core, the rest is edema."""
    return np.where(enhancing, 2, np.where(core, 1, 3))


def _largest(masks: np.ndarray) -> np.ndarray:
    """The largest connected part of each mask (H, W)."""
    label = require("scipy.ndimage", "medical").label
    out = masks.copy()
    for mask in out:
        labels, count = label(mask)
        if count > 1:
            mask[...] = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return out
