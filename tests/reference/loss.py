"""Losses, written out in float64 NumPy."""

from __future__ import annotations

import numpy as np


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def cross_entropy(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient of its sum in x) of logits (N, C, ...)."""
    classes = x.shape[1]
    logs = np.moveaxis(log_softmax(x, 1), 1, -1)
    w = np.ones(classes) if weight is None else weight.astype(np.float64)
    if target.dtype.kind == "f":
        q = np.moveaxis(target.astype(np.float64), 1, -1)
        count = np.ones(q.shape[:-1])
    else:
        valid = target != ignore_index
        q = np.eye(classes)[np.where(valid, target, 0)] * valid[..., None]
        count = (q * w).sum(-1)
    q = w * ((1 - label_smoothing) * q + label_smoothing / classes)
    if target.dtype.kind != "f":
        q = q * valid[..., None]
    loss = -(q * logs).sum(-1)
    dx = np.moveaxis(np.exp(logs) * q.sum(-1, keepdims=True) - q, -1, 1)
    divisor = count.sum() if reduction == "mean" else 1.0
    return (loss if reduction == "none" else loss.sum() / divisor), dx / divisor
