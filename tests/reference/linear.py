"""Matrix products in float64, and the plain sequential float32 sum they are measured against."""

import numpy as np

__all__ = ["linear", "linear_gradients", "sequential_product"]


def linear(x, w, b=None):
    """x (..., in), w (out, in), b (out) -> (..., out)."""
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    return y if b is None else y + b


def linear_gradients(dy, x, w):
    """(dx, dw, db) of sum(dy * linear(x, w, b))."""
    dy, x, w = (np.asarray(a, np.float64) for a in (dy, x, w))
    rows = tuple(range(dy.ndim - 1))
    return dy @ w, np.tensordot(dy, x, (rows, rows)), dy.sum(rows)


def sequential_product(a, b):
    """a (m, k) times b (k, n), one term after another in float32."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total += a[:, k : k + 1] * b[k]
    return total
