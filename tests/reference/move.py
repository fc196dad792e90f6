"""Oracles for moving data: constant padding by explicit indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad_constant(
    x: np.ndarray, low: Sequence[int], high: Sequence[int], value: float
) -> np.ndarray:
    """y[i] = x[i - low] where that is inside x, else value; negative amounts crop."""
    shape = tuple([n + a + b for n, a, b in zip(x.shape, low, high)])
    y = np.full(shape, value, x.dtype)
    for i in np.ndindex(*shape):
        j = tuple([a - b for a, b in zip(i, low)])
        if all(0 <= a < n for a, n in zip(j, x.shape)):
            y[i] = x[j]
    return y


def index_add(index: np.ndarray, values: np.ndarray, rows: int) -> np.ndarray:
    """out[index[i]] += values[i], one after another in values' own precision."""
    out = np.zeros((rows, *values.shape[1:]), values.dtype)
    for i, v in zip(index, values):
        out[i] += v
    return out
