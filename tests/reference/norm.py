"""Normalisation, written out in NumPy: in float64 as the oracle, in float32 with plain sequential
sums as the measure of what error is reasonable."""

from __future__ import annotations

import numpy as np


def total(x: np.ndarray) -> np.ndarray:
    """The sum of each row of x (groups, count), one element after the other in x's type."""
    return np.cumsum(x, axis=1, dtype=x.dtype)[:, -1:]


def normalise(x, dy, w, b, eps, to_groups, from_groups, dtype):
    """(y, dx, dw per element, db per element): `to_groups` brings an array of x's shape into
    (groups, count), `from_groups` back; w and b are of x's shape."""
    x, dy, w, b = (to_groups(a).astype(dtype) for a in (x, dy, w, b))
    count = dtype(x.shape[1])
    mean = total(x) / count
    var = total((x - mean) ** 2) / count
    inv_std = dtype(1) / np.sqrt(var + dtype(eps))
    hat = (x - mean) * inv_std
    g = dy * w
    dx = inv_std * (g - total(g) / count - hat * (total(g * hat) / count))
    return [from_groups(a) for a in (hat * w + b, dx, dy * hat, dy)]


def batch_groups(shape):
    """(to_groups, from_groups) of one group per channel of (N, C, ...)."""
    order = (1, 0, *range(2, len(shape)))
    moved = [shape[i] for i in order]

    def to(a):
        return np.transpose(a, order).reshape(shape[1], -1)

    def back(a):
        return np.transpose(a.reshape(moved), order)

    return to, back


def sample_groups(shape, groups):
    """One group per sample and C / groups channels."""
    return (lambda a: a.reshape(shape[0] * groups, -1)), (lambda a: a.reshape(shape))


def row_groups(shape, axes):
    """One group per element of all but the last `axes` axes."""
    rows = int(np.prod(shape[: len(shape) - axes]))
    return (lambda a: a.reshape(rows, -1)), (lambda a: a.reshape(shape))
