"""How well a mask covers a reference: overlap, volume, and the distance of their surfaces.

S is the predicted and R the reference mask, of any number of axes; |S| counts pixels. Where a
figure is not defined, such as a distance to the surface of an empty mask, it is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convgrad.extras import require
from convgrad.metrics.classification import array_of

__all__ = [
    "assd",
    "dice",
    "dice_per_class",
    "hausdorff",
    "iou",
    "volume_difference",
    "volumetric_overlap_error",
]


def _masks(op: str, predicted: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    s, r = array_of(predicted), array_of(target)
    if s.shape != r.shape:
        raise ValueError(
            f"[{op}] predicted and target must have one shape. Got {s.shape} and {r.shape}."
        )
    for name, mask in (("predicted", s), ("target", r)):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ValueError(f"[{op}] {name} must be a mask of 0 and 1. Got other values.")
    return s.astype(bool), r.astype(bool)


def dice(predicted: Any, target: Any) -> float:
    """2 |S and R| / (|S| + |R|); 1 if both masks are empty."""
    s, r = _masks("dice", predicted, target)
    total = int(s.sum()) + int(r.sum())
    return 2 * int((s & r).sum()) / total if total else 1.0


def iou(predicted: Any, target: Any) -> float:
    """|S and R| / |S or R|, the Jaccard index; 1 if both masks are empty."""
    s, r = _masks("iou", predicted, target)
    union = int((s | r).sum())
    return int((s & r).sum()) / union if union else 1.0


def dice_per_class(predicted: Any, target: Any, classes: int) -> np.ndarray:
    """The Dice of each class 0 .. classes - 1 of two label images; NaN for one in neither."""
    s, r = array_of(predicted), array_of(target)
    if s.shape != r.shape:
        raise ValueError(
            f"[dice_per_class] predicted and target must have one shape. Got {s.shape} and "
            f"{r.shape}."
        )
    out = np.full(classes, np.nan)
    for c in range(classes):
        a, b = s == c, r == c
        total = int(a.sum()) + int(b.sum())
        if total:
            out[c] = 2 * int((a & b).sum()) / total
    return out


def volumetric_overlap_error(predicted: Any, target: Any) -> float:
    """100 (1 - |S and R| / |S or R|), in percent; 0 if both masks are empty."""
    return 100 * (1 - iou(predicted, target))


def volume_difference(predicted: Any, target: Any) -> float:
    """100 (|S| - |R|) / |R|, in percent: positive for a mask that is too large. NaN without R."""
    s, r = _masks("volume_difference", predicted, target)
    reference = int(r.sum())
    return 100 * (int(s.sum()) - reference) / reference if reference else float("nan")


def assd(predicted: Any, target: Any, spacing: Sequence[float] | None = None) -> float:
    """Average symmetric surface distance, in units of ``spacing`` (pixels if left out).

    The mean, over the surface pixels of both masks, of the distance to the other one's surface. A
    surface pixel has a neighbour along an axis that is outside the mask. NaN if a mask is empty.
    """
    there, back = _surface_distances("assd", predicted, target, spacing)
    count = there.size + back.size
    return float((there.sum() + back.sum()) / count) if there.size and back.size else float("nan")


def hausdorff(
    predicted: Any,
    target: Any,
    spacing: Sequence[float] | None = None,
    percentile: float = 100.0,
) -> float:
    """The largest of the distances that :func:`assd` averages, or a percentile of each direction's
    (95 leaves out a few stray pixels), the larger one. NaN if a mask is empty."""
    if not 0 <= percentile <= 100:
        raise ValueError(f"[hausdorff] percentile must be from 0 to 100. Got {percentile}.")
    there, back = _surface_distances("hausdorff", predicted, target, spacing)
    if not there.size or not back.size:
        return float("nan")
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def _surface_distances(
    op: str, predicted: Any, target: Any, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each surface pixel of S to R's surface, and of R to S's; empty if a mask is."""
    ndimage = require("scipy.ndimage", "medical")
    s, r = _masks(op, predicted, target)
    if spacing is not None and len(spacing) != s.ndim:
        raise ValueError(
            f"[{op}] spacing must have one entry for each of {s.ndim} axes. Got {tuple(spacing)}."
        )
    if not s.any() or not r.any():
        return np.zeros(0), np.zeros(0)
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (s, r)]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return away[1][surfaces[0]], away[0][surfaces[1]]
