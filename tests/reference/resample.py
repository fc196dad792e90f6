"""Oracles for interpolation and repeating padding: one dense float64 matrix per axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nearest(size: int, out: int) -> np.ndarray:
    """Row o reads floor(o size / out)."""
    m = np.zeros((out, size))
    m[np.arange(out), np.arange(out) * size // out] = 1
    return m


def linear(size: int, out: int, align_corners: bool, scale: float | None = None) -> np.ndarray:
    """Row o reads (o + 0.5) / scale - 0.5, clamped, or o (size - 1) / (out - 1)."""
    m = np.zeros((out, size))
    for o in range(out):
        if align_corners:
            at = o * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            at = max((o + 0.5) * (size / out if scale is None else 1 / scale) - 0.5, 0.0)
        low = min(int(at), size - 1)
        share = min(at - low, 1.0)
        m[o, low] += 1 - share
        m[o, min(low + 1, size - 1)] += share
    return m


def padding(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """Row o reads the element that NumPy's own padding puts there; negative amounts crop."""
    source = np.arange(size)
    name = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    source = np.pad(source, (max(low, 0), max(high, 0)), name)
    source = source[max(-low, 0) : len(source) - max(-high, 0)]
    return np.eye(size)[source]


def apply(x: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """x (N, C, *spatial) times one matrix per spatial axis."""
    y = x.astype(float)
    for axis, m in enumerate(matrices):
        y = np.moveaxis(np.tensordot(m, y, (1, axis + 2)), 0, axis + 2)
    return y
