"""Locally connected layers in float64: one product per output position."""

import numpy as np

__all__ = ["local", "local_gradients"]


def _windows(x, out, kernel, stride, padding, dilation):
    """(position, x's slice under it as an index into the padded x) for every output position."""
    for o in np.ndindex(*out):
        yield (
            o,
            tuple(
                slice(i * s, i * s + d * (k - 1) + 1, d)
                for i, s, k, d in zip(o, stride, kernel, dilation)
            ),
        )


def _pad(x, padding):
    return np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), *[(p, p) for p in padding]])


def local(x, w, b, stride, padding, dilation):
    """x (N, C, *in), w (K, C, *out, *kernel), b (K, *out) or None -> (N, K, *out)."""
    axes = x.ndim - 2
    out, kernel = w.shape[2 : 2 + axes], w.shape[2 + axes :]
    xp = _pad(x, padding)
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for o, window in _windows(x, out, kernel, stride, padding, dilation):
        filters = w[(slice(None), slice(None), *o)].reshape(w.shape[0], -1)
        seen = xp[(slice(None), slice(None), *window)].reshape(x.shape[0], filters.shape[1])
        y[(slice(None), slice(None), *o)] = seen @ filters.T.astype(np.float64)
    return y if b is None else y + b


def local_gradients(dy, x, w, stride, padding, dilation):
    """(dx, dw, db) of sum(dy * local(x, w, b))."""
    axes = x.ndim - 2
    out, kernel = w.shape[2 : 2 + axes], w.shape[2 + axes :]
    xp = _pad(x, padding)
    dx, dw = np.zeros(xp.shape), np.zeros(w.shape)
    for o, window in _windows(x, out, kernel, stride, padding, dilation):
        g = dy[(slice(None), slice(None), *o)].astype(np.float64)
        at = (slice(None), slice(None), *window)
        here = (slice(None), slice(None), *o)
        dw[here] = np.tensordot(g, xp[at], (0, 0))
        dx[at] += np.tensordot(g, w[here], (1, 0))
    inside = tuple(slice(p, p + i) for p, i in zip(padding, x.shape[2:]))
    return dx[(slice(None), slice(None), *inside)], dw, dy.sum(0, dtype=np.float64)
