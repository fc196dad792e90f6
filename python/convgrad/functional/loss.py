"""Losses: what a network's output is worth, as one number or one per element."""

from __future__ import annotations

from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of, of
from convgrad.dtypes import FLOATS
from convgrad.mixed_precision import in_float32
from convgrad.tensor import Tensor, array_of

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dice_loss",
    "hinge_embedding_loss",
    "hinge_loss",
    "huber_loss",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
]

Array = Any


def _number(op: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"[{op}] {name} must be a number. Got {value!r}.") from None


def _c_order(target: Array) -> Array:
    """Classes as the kernels read them; a float target is converted by them."""
    if target.dtype.kind in FLOATS or target.flags.c_contiguous:
        return target
    return of(target).xp.ascontiguousarray(target)


class CrossEntropy(Op):
    """Per row of C logits: -sum over c of q[c] log softmax(x)[c], q = weight * smoothed target."""

    fresh = True

    def forward(self, x: Array, target: Array, weight: Array | None, op: str, *args: Any) -> Array:
        lib = lib_of(x)
        x = lib.channels_last(x)
        target = _c_order(target)
        loss, stats, norm = lib.cross_entropy_forward(op, x, target, weight, *args)
        self.saved = x, target, weight, stats, norm
        self.args = op, args
        return loss

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        op, args = self.args
        dx, dtarget = lib_of(dy).cross_entropy_backward(op, dy, *self.saved, *args, self.needs[1])
        return dx, dtarget, None


@in_float32
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
    op = "cross_entropy"
    args = ignore_index, reduction, _number(op, "label_smoothing", label_smoothing), False
    return CrossEntropy.apply((input, target, weight), op, *args)


@in_float32
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-weight[t] input[t] per row of log-probabilities; shapes, reductions, errors as
    :func:`cross_entropy` with class targets."""
    if array_of("nll_loss", target, "target").dtype.kind in FLOATS:
        raise TypeError(f"[nll_loss] target must be int64 classes. Got {target.array.dtype}.")
    args = ignore_index, reduction, 0.0, True
    return CrossEntropy.apply((input, target, weight), "nll_loss", *args)


# ---- element by element ----


class Pointwise(Op):
    """One loss per element of input a and target b (csrc/ops.h, LossKind), weighted and reduced."""

    fresh = True

    def forward(
        self,
        a: Array,
        b: Array,
        weight: Array | None,
        pos_weight: Array | None,
        op: str,
        kind: str,
        reduction: str,
        parameter: float,
    ) -> Array:
        lib = lib_of(a)
        a, b = lib.channels_last(a), lib.channels_last(b)
        self.saved = a, b, weight, pos_weight
        self.args = op, kind, reduction, parameter
        return lib.pointwise_loss_forward(op, kind, *self.saved, reduction, parameter)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        op, kind, reduction, parameter = self.args
        da, db = lib_of(dy).pointwise_loss_backward(
            op, kind, dy, *self.saved, reduction, parameter, *self.needs[:2]
        )
        return da, db, None, None


def _pointwise(
    op: str, kind: str, input: Tensor, target: Tensor, reduction: str, parameter: float = 0.0
) -> Tensor:
    return Pointwise.apply(
        (input, target, None, None), op, kind, reduction, _number(op, "margin", parameter)
    )


@in_float32
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2, of equal shapes (else ValueError)."""
    return _pointwise("mse_loss", "squared", input, target, reduction)


@in_float32
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, of equal shapes (else ValueError)."""
    return _pointwise("l1_loss", "absolute", input, target, reduction)


@in_float32
def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """With d = |input - target|: d^2 / (2 beta) for d < beta, else d - beta / 2."""
    beta = _number("smooth_l1_loss", "beta", beta)
    if not beta >= 0:
        raise ValueError(f"[smooth_l1_loss] beta must be >= 0. Got {beta}.")
    return _pointwise("smooth_l1_loss", "smooth_l1", input, target, reduction, beta)


@in_float32
def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """With d = |input - target|: d^2 / 2 for d < delta, else delta (d - delta / 2)."""
    delta = _number("huber_loss", "delta", delta)
    if not delta > 0:
        raise ValueError(f"[huber_loss] delta must be > 0. Got {delta}.")
    return _pointwise("huber_loss", "huber", input, target, reduction, delta)


def _broadcast(op: str, name: str, weight: Tensor | None, input: Tensor) -> Tensor | None:
    """A weight as one per element of the input."""
    if weight is None or weight.shape == input.shape:
        return weight
    try:
        return Tensor(of(weight.array).xp.broadcast_to(weight.array, input.shape))
    except ValueError:
        raise ValueError(
            f"[{op}] {name} must be broadcastable to the input's shape, {input.shape}. Got "
            f"{weight.shape}."
        ) from None


@in_float32
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(t log y + (1 - t) log(1 - y)) of probabilities y, logarithms no less than -100.

    weight: broadcastable to the input. ValueError for unequal shapes and for y outside [0, 1].
    """
    op = "binary_cross_entropy"
    full = _broadcast(op, "weight", weight, input)
    return Pointwise.apply((input, target, full, None), op, "bce", reduction, 0.0)


@in_float32
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(pos_weight t log s(x) + (1 - t) log(1 - s(x))) of logits x, s the sigmoid.

    weight, pos_weight: broadcastable to the input. ValueError for unequal shapes.
    """
    op = "binary_cross_entropy_with_logits"
    weights = (
        _broadcast(op, "weight", weight, input),
        _broadcast(op, "pos_weight", pos_weight, input),
    )
    return Pointwise.apply((input, target, *weights), op, "bce_logits", reduction, 0.0)


@in_float32
def soft_margin_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """log(1 + exp(-t y)), t in {-1, 1}."""
    return _pointwise("soft_margin_loss", "soft_margin", input, target, reduction)


@in_float32
def hinge_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """max(0, 1 - t y), t in {-1, 1} (the lecture's; not in PyTorch)."""
    return _pointwise("hinge_loss", "margin", input, target, reduction, 1.0)


@in_float32
def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """x where t is 1, max(0, margin - x) where t is -1."""
    return _pointwise("hinge_embedding_loss", "hinge_embedding", input, target, reduction, margin)


class MarginRanking(Pointwise):
    """max(0, margin - t (x1 - x2)): the margin loss of the difference."""

    def forward(  # type: ignore[override]
        self, x1: Array, x2: Array, target: Array, reduction: str, margin: float
    ) -> Array:
        if not x1.shape == x2.shape == target.shape:
            raise ValueError(
                "[margin_ranking_loss] input1, input2 and target must have one shape. Got "
                f"{x1.shape}, {x2.shape} and {target.shape}."
            )
        difference = lib_of(x1).empty_like(x1)
        of(x1).xp.subtract(x1, x2, out=difference)
        return super().forward(
            difference, target, None, None, "margin_ranking_loss", "margin", reduction, margin
        )

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        op, kind, reduction, margin = self.args
        need_1, need_2, need_target = self.needs
        dx, dtarget = lib_of(dy).pointwise_loss_backward(
            op, kind, dy, *self.saved, reduction, margin, need_1 or need_2, need_target
        )
        opposite = None
        if need_2:
            opposite = lib_of(dx).empty_like(dx)
            of(dx).xp.negative(dx, out=opposite)
        return dx if need_1 else None, opposite, dtarget


@in_float32
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """max(0, margin - t (x1 - x2)): x1 should rank higher where t is 1, x2 where it is -1."""
    return MarginRanking.apply(
        (input1, input2, target), reduction, _number("margin_ranking_loss", "margin", margin)
    )


# ---- row by row ----


class MultiMargin(Op):
    """Per row: weight[y] / C * the sum over i != y of max(0, margin - x[y] + x[i])^p."""

    fresh = True

    def forward(self, x: Array, target: Array, weight: Array | None, *args: Any) -> Array:
        lib = lib_of(x)
        self.saved = lib.contiguous(x), _c_order(target), weight
        self.args = args
        return lib.multi_margin_forward(*self.saved, *args)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return lib_of(dy).multi_margin_backward(dy, *self.saved, *self.args), None, None


@in_float32
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Multi-class hinge loss of scores (N, C) or (C) and int64 classes (N) or (): per row
    weight[y] / C * sum over i != y of max(0, margin - x[y] + x[i])^p, p 1 or 2.

    ValueError for shapes that do not fit and for a class outside [0, C).
    """
    return MultiMargin.apply(
        (input, target, weight), p, _number("multi_margin_loss", "margin", margin), reduction
    )


class Dice(Op):
    """1 - the mean over samples and channels of the soft Dice overlap."""

    fresh = True

    def forward(self, x: Array, target: Array, smooth: float) -> Array:
        target = _c_order(target)
        loss, p, slopes = lib_of(x).dice_forward(x, target, smooth)
        self.saved = target, p, slopes
        return loss

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return lib_of(dy).dice_backward(dy, *self.saved), None


@in_float32
def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - mean over n, c of (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), sums over positions
    (Milletari et al. 2016, with probabilities to the first power).

    Args:
        logits: (N, C, ...)
        target: int64 classes (N, ...), with p = softmax(logits) over channels and t one-hot; or
            floats of the logits' shape, with p = sigmoid(logits). No gradient goes to it.

    ValueError for shapes that do not fit and for a class outside [0, C).
    """
    return Dice.apply((logits, target), _number("dice_loss", "smooth", smooth))
