"""Convolution and its gradients in float64, tap by tap, and a plain sequential float32 sum.

Three sums on padded arrays say everything: convolution gathers, its adjoint in x scatters, and the
weight's gradient correlates the two sides. Transposed convolution is the same with the sides
swapped.
"""

from itertools import product
from math import prod

import numpy as np

__all__ = [
    "conv",
    "conv_gradients",
    "conv_transpose",
    "conv_transpose_gradients",
    "sequential_conv",
]


def _ints(value, count):
    return (value,) * count if isinstance(value, int) else tuple(value)


class _Geometry:
    """Stride, dilation and (low, high) padding per axis, for weight w (K, C / groups, ...)."""

    def __init__(self, w, stride, padding, dilation, groups):
        self.kernel, self.groups = w.shape[2:], groups
        count = len(self.kernel)
        self.stride, self.dilation = _ints(stride, count), _ints(dilation, count)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel)]
        if padding == "valid":
            padding = 0
        if padding == "same":
            padding = tuple((r // 2, r - r // 2) for r in reach)
        self.pads = [p if isinstance(p, tuple) else (p, p) for p in _ints(padding, count)]
        self.reach = reach

    def pad(self, x):
        return np.pad(x, [(0, 0), (0, 0), *self.pads])

    def crop(self, x):
        return x[(..., *[slice(lo, n - hi) for (lo, hi), n in zip(self.pads, x.shape[2:])])]

    def taps(self, positions):
        """For each tap, its index and where the padded input meets the output positions."""
        for tap in product(*map(range, self.kernel)):
            yield (
                tap,
                tuple(
                    slice(t * d, t * d + (n - 1) * s + 1, s)
                    for t, d, n, s in zip(tap, self.dilation, positions, self.stride)
                ),
            )

    def split(self, a):
        """(N, C, ...) -> (N, groups, C / groups, ...)."""
        return a.reshape(a.shape[0], self.groups, a.shape[1] // self.groups, *a.shape[2:])

    def split_weight(self, w):
        """(K, C / groups, ...) -> (groups, K / groups, C / groups, ...)."""
        return w.reshape(self.groups, w.shape[0] // self.groups, *w.shape[1:])

    def gather(self, x, w):
        """Padded x -> y."""
        out = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], self.reach, self.stride)]
        x, wg = self.split(x), self.split_weight(w)
        y = np.zeros((x.shape[0], self.groups, wg.shape[1], *out))
        for tap, at in self.taps(out):
            y += np.einsum("ngc...,gkc->ngk...", x[(..., *at)], wg[(..., *tap)])
        return y.reshape(y.shape[0], w.shape[0], *out)

    def scatter(self, y, w, size):
        """y -> padded x of spatial size `size`."""
        wg, yg = self.split_weight(w), self.split(y)
        x = np.zeros((y.shape[0], self.groups, w.shape[1], *size))
        for tap, at in self.taps(y.shape[2:]):
            x[(..., *at)] += np.einsum("ngk...,gkc->ngc...", yg, wg[(..., *tap)])
        return x.reshape(y.shape[0], self.groups * w.shape[1], *size)

    def correlate(self, y, x, w):
        """y, padded x -> the gradient of w."""
        dw, yg, xg = np.zeros(self.split_weight(w).shape), self.split(y), self.split(x)
        pixels = prod(y.shape[2:])
        flat = yg.reshape(*yg.shape[:3], pixels)
        for tap, at in self.taps(y.shape[2:]):
            seen = xg[(..., *at)].reshape(*xg.shape[:3], pixels)
            dw[(..., *tap)] = np.einsum("ngkp,ngcp->gkc", flat, seen)
        return dw.reshape(w.shape)


def _doubles(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def _plus_bias(y, b):
    return y if b is None else y + np.asarray(b, np.float64).reshape(-1, *[1] * (y.ndim - 2))


def conv(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """x (N, C, ...), w (K, C / groups, ...), b (K) -> y (N, K, ...)."""
    x, w = _doubles(x, w)
    g = _Geometry(w, stride, padding, dilation, groups)
    return _plus_bias(g.gather(g.pad(x), w), b)


def conv_gradients(dy, x, w, stride=1, padding=0, dilation=1, groups=1):
    """(dx, dw, db) of sum(dy * conv(x, w, b))."""
    dy, x, w = _doubles(dy, x, w)
    g = _Geometry(w, stride, padding, dilation, groups)
    padded = g.pad(x)
    dx = g.crop(g.scatter(dy, w, padded.shape[2:]))
    return dx, g.correlate(dy, padded, w), dy.sum((0, *range(2, dy.ndim)))


def conv_transpose(x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """x (N, C, ...), w (C, K / groups, ...), b (K) -> y (N, K, ...)."""
    x, w = _doubles(x, w)
    g = _Geometry(w, stride, padding, dilation, groups)
    extra = _ints(output_padding, w.ndim - 2)
    size = [(n - 1) * s + r + 1 + e for n, s, r, e in zip(x.shape[2:], g.stride, g.reach, extra)]
    return _plus_bias(g.crop(g.scatter(x, w, size)), b)


def conv_transpose_gradients(dy, x, w, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """(dx, dw, db) of sum(dy * conv_transpose(x, w, b)); output_padding shows in dy's shape."""
    dy, x, w = _doubles(dy, x, w)
    g = _Geometry(w, stride, padding, dilation, groups)
    padded = g.pad(dy)
    dx = g.gather(padded, w)[(..., *[slice(n) for n in x.shape[2:]])]
    return dx, g.correlate(x, padded, w), dy.sum((0, *range(2, dy.ndim)))


def sequential_conv(x, w, padding=0):
    """conv(x, w), one term after another in float32; stride, dilation and groups 1."""
    g = _Geometry(w, 1, padding, 1, 1)
    x = g.pad(x)
    out = [n - r for n, r in zip(x.shape[2:], g.reach)]
    y = np.zeros((x.shape[0], w.shape[0], *out), np.float32)
    for tap, at in g.taps(out):
        for c in range(x.shape[1]):
            y += np.einsum("n...,k->nk...", x[(slice(None), c, *at)], w[(slice(None), c, *tap)])
    return y
