"""The gradients of a convolution's weight and bias in float64."""

import itertools

import numpy as np

__all__ = ["conv_backward_weight"]


def conv_backward_weight(dy, x, w_shape, stride, padding, dilation, groups):
    """(dw, db) for dy (N, K, *out), x (N, C, *in), w_shape (K, C / groups, *kernel)."""
    dy, x = np.asarray(dy, np.float64), np.asarray(x, np.float64)
    out, kernel = dy.shape[2:], w_shape[2:]
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation)]
    pads = [(p, max(0, r - p - i)) for p, r, i in zip(padding, reach, x.shape[2:])]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    n, k, c = x.shape[0], w_shape[0] // groups, w_shape[1]
    g = dy.reshape(n, groups, k, np.prod(out))
    dw = np.zeros((groups, k, c, *kernel))
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, dilation, out, stride)
        )
        seen = x[(slice(None), slice(None), *window)].reshape(n, groups, c, np.prod(out))
        dw[(slice(None), slice(None), slice(None), *tap)] = np.einsum("ngkp,ngcp->gkc", g, seen)
    return dw.reshape(w_shape), dy.sum(axis=(0, *range(2, dy.ndim)))
