"""Oracles for pooling: loops over windows, float64, x (N, C, *spatial)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

Windows = list[list[np.ndarray]]  # per axis, per output: the input coordinates it covers


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Windows:
    """The coordinates of each window's taps, padding included (negative, or beyond the size)."""
    axes = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation):
        starts = [i for i in range(-p, n + p, s) if i + d * (k - 1) < n + p]
        if ceil_mode and starts[-1] + d * (k - 1) < n + p - 1 and starts[-1] + s < n:
            starts.append(starts[-1] + s)
        axes.append([i + d * np.arange(k) for i in starts])
    return axes


def adaptive_windows(size: Sequence[int], out: Sequence[int | None]) -> Windows:
    """Window o covers [floor(o n / m), ceil((o + 1) n / m))."""
    return [
        [np.arange(o * n // (m or n), -(-(o + 1) * n // (m or n))) for o in range(m or n)]
        for n, m in zip(size, out)
    ]


def _each(axes: Windows, size: Sequence[int]) -> Any:
    for o in product(*[range(len(a)) for a in axes]):
        taps = [a[i] for a, i in zip(axes, o)]
        inside = [t[(t >= 0) & (t < n)] for t, n in zip(taps, size)]
        yield o, taps, np.ix_(*inside)


def max_pool(x: np.ndarray, axes: Windows) -> tuple[np.ndarray, np.ndarray]:
    """(y, index into each channel's flattened plane); the first maximum, or the last NaN."""
    size = x.shape[2:]
    y = np.empty(x.shape[:2] + tuple(map(len, axes)))
    index = np.empty(y.shape, np.int64)
    flat = np.arange(int(np.prod(size))).reshape(size)
    for o, _, at in _each(axes, size):
        window = x[(..., *at)].reshape(*x.shape[:2], flat[at].size)
        nan = np.isnan(window)
        last_nan = window.shape[-1] - 1 - nan[..., ::-1].argmax(-1)
        best = np.where(nan.any(-1), last_nan, np.where(nan, -np.inf, window).argmax(-1))
        y[(..., *o)] = np.take_along_axis(window, best[..., None], -1)[..., 0]
        index[(..., *o)] = flat[at].ravel()[best]
    return y, index


def max_pool_backward(dy: np.ndarray, index: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """dx: each dy added at its index."""
    n, c = dy.shape[:2]
    dx = np.zeros((n, c, int(np.prod(size))))
    for i, j in np.ndindex(n, c):
        np.add.at(dx[i, j], index[i, j].ravel(), dy[i, j].ravel())
    return dx.reshape(n, c, *size)


def _counts(
    axes: Windows, size: Sequence[int], padding: Sequence[int], count_include_pad: bool
) -> np.ndarray:
    counts = []
    for a, n, p in zip(axes, size, padding):
        edge = p if count_include_pad else 0
        counts.append(np.array([np.sum((t >= -edge) & (t < n + edge)) for t in a]))
    total = counts[0]
    for c in counts[1:]:
        total = total[..., None] * c
    return total


def avg_pool(
    x: np.ndarray,
    axes: Windows,
    padding: Sequence[int],
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> np.ndarray:
    """The sum of each window over its count (of taps inside the input or its padding)."""
    y = np.empty(x.shape[:2] + tuple(map(len, axes)))
    for o, _, at in _each(axes, x.shape[2:]):
        y[(..., *o)] = x[(..., *at)].sum(tuple(range(2, x.ndim)), dtype=float)
    return y / (divisor or _counts(axes, x.shape[2:], padding, count_include_pad))


def avg_pool_backward(
    dy: np.ndarray,
    axes: Windows,
    size: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> np.ndarray:
    """dx: each dy over its count, added to the inputs of its window."""
    dx = np.zeros(dy.shape[:2] + tuple(size))
    scaled = dy / (divisor or _counts(axes, size, padding, count_include_pad))
    for o, _, at in _each(axes, size):
        dx[(..., *at)] += scaled[(..., *o)].reshape(*dy.shape[:2], *[1] * len(size))
    return dx
