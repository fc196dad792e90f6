"""How well boxes and heat maps say where something is."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgrad.metrics.classification import array_of

__all__ = ["box_iou", "pointing_game"]


def box_iou(predicted: Any, target: Any) -> np.ndarray:
    """Intersection over union of boxes (N, 2 axes): centre and then size along each axis, as in (y,
    x, h, w). A box of no size has IoU 0 with every other."""
    a, b = array_of(predicted).astype(np.float64), array_of(target).astype(np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] % 2:
        raise ValueError(
            "[box_iou] predicted and target must be (N, 2 axes), centres and then sizes. Got "
            f"{a.shape} and {b.shape}."
        )
    axes = a.shape[1] // 2
    low = np.maximum(a[:, :axes] - a[:, axes:] / 2, b[:, :axes] - b[:, axes:] / 2)
    high = np.minimum(a[:, :axes] + a[:, axes:] / 2, b[:, :axes] + b[:, axes:] / 2)
    common = np.clip(high - low, 0, None).prod(1)
    union = a[:, axes:].prod(1) + b[:, axes:].prod(1) - common
    return np.divide(common, union, out=np.zeros(len(a)), where=union > 0)


def pointing_game(heat: Any, mask: Any) -> float:
    """The part of heat maps (N, ...) whose maximum lies in the mask (N, ...) of the object.

    Maps without an object do not count; NaN if there are no others. (Zhang et al., "Top-down neural
    attention by excitation backprop", 2016.)
    """
    h, m = array_of(heat), array_of(mask).astype(bool)
    if h.shape != m.shape or h.ndim < 2:
        raise ValueError(
            f"[pointing_game] heat and mask must have one shape (N, ...). Got {h.shape} and "
            f"{m.shape}."
        )
    h, m = h.reshape(len(h), -1), m.reshape(len(m), -1)
    hits = m[np.arange(len(h)), h.argmax(1)][m.any(1)]
    return float(hits.mean()) if hits.size else float("nan")
