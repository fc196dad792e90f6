"""Losses: what a network's output is worth, as one number or one per element."""

from __future__ import annotations

from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of, of
from convgrad.tensor import Tensor

__all__ = ["cross_entropy", "nll_loss"]

Array = Any


class CrossEntropy(Op):
    """Per row of C logits: -sum over c of q[c] log softmax(x)[c], q = weight * smoothed target."""

    fresh = True

    def forward(self, x: Array, target: Array, weight: Array | None, op: str, *args: Any) -> Array:
        lib = lib_of(x)
        x = lib.channels_last(x)
        if target.dtype.kind != "f" and not target.flags.c_contiguous:
            target = of(x).xp.ascontiguousarray(target)
        loss, stats, norm = lib.cross_entropy_forward(op, x, target, weight, *args)
        self.saved = x, target, weight, stats, norm
        self.args = op, args
        return loss

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        op, args = self.args
        dx, dtarget = lib_of(dy).cross_entropy_backward(op, dy, *self.saved, *args, self.needs[1])
        return dx, dtarget, None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits (N, C), (N, C, d1, ...) or (C).

    Args:
        target: int64 classes, of the input's shape without the class axis; or probabilities, of
            the input's shape and dtype.
        weight: (C), multiplies each class's terms.
        ignore_index: rows of this class count for nothing (class targets only).
        reduction: 'none' (one loss per row), 'sum', or 'mean': the sum divided by the weights of
            the target classes, or, for probabilities, by the number of rows.
        label_smoothing: this share of the target is spread evenly over the classes.

    ValueError for shapes that do not fit and for a class outside [0, C), TypeError for dtypes.
    """
    args = ignore_index, reduction, float(label_smoothing), False
    return CrossEntropy.apply((input, target, weight), "cross_entropy", *args)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-weight[t] input[t] per row of log-probabilities; shapes, reductions, errors as
    :func:`cross_entropy` with class targets."""
    if target.array.dtype.kind == "f":
        raise TypeError(f"[nll_loss] target must be int64 classes. Got {target.array.dtype}.")
    args = ignore_index, reduction, 0.0, True
    return CrossEntropy.apply((input, target, weight), "nll_loss", *args)
