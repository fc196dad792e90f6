"""Normalisation by means and variances: of a batch, of a sample, of groups of channels, of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convgrad.autograd import Op
from convgrad.backend import lib_of, of
from convgrad.deferred import Pending
from convgrad.tensor import Deferred, Tensor

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm"]

Array = Any


class Norm(Op):
    """y = (x - mean) / sqrt(var + eps) * w + b, with statistics per channel of the batch, or per
    sample and group of channels; of x itself, or fixed ones."""

    fresh = True

    def forward(
        self,
        x: Array,
        w: Array | None,
        b: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        op: str,
        per_sample: bool,
        groups: int,
        training: bool,
        momentum: Any,
        eps: float,
    ) -> Any:
        lib = lib_of(x)
        x = lib.channels_last(x)
        self.args = op, per_sample, groups, not training, eps
        if training and running_mean is not None and isinstance(momentum, float):
            momentum = of(x).constant(momentum)
        if training and any(self.needs):  # x is kept for backward as it is
            mean, var = lib.norm_statistics(
                op, x, w, b, running_mean, running_var, per_sample, groups, momentum, eps
            )
            # To be computed with what follows; the optimizer may change w and b before that.
            kept = [None if a is None else a.copy() for a in (w, b)]
            args = op, x, *kept, mean, var, per_sample, groups, eps
            y = Pending(x.shape, x.dtype, lib.norm_apply, args)
        else:
            y, mean, var = lib.norm_forward(
                op, x, w, b, running_mean, running_var, per_sample, groups, training, momentum, eps
            )
        self.saved = x, w, mean, var
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w, mean, var = self.saved
        op, *args = self.args
        grads = lib_of(dy).norm_backward(op, dy, x, w, mean, var, *args, *self.needs[:3])
        return *grads[:3], None, None


class LayerNorm(Op):
    """y = (x - mean) / sqrt(var + eps) * w + b, with statistics over the last axes."""

    fresh = True

    def forward(
        self, x: Array, w: Array | None, b: Array | None, shape: tuple[int, ...], eps: float
    ) -> Array:
        lib = lib_of(x)
        x = lib.contiguous(x)
        y, mean, inv_std = lib.layer_norm_forward(x, shape, w, b, eps)
        self.saved = x, w, mean, inv_std
        self.shape = shape
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return lib_of(dy).layer_norm_backward(dy, *self.saved, self.shape, *self.needs)


def _norm(
    op: str,
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    per_sample: bool,
    groups: int,
    training: bool,
    momentum: Any,
    eps: float,
) -> Tensor:
    y = Norm.apply(
        (x, w, b, running_mean, running_var), op, per_sample, groups, training, momentum, eps
    )
    if type(y) is Deferred:
        y.pending.watch(x.version)
    if training and running_mean is not None and running_var is not None:
        running_mean.version[0] += 1
        running_var.version[0] += 1
    return y


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of x (N, C, ...) over the batch and all positions (Ioffe and Szegedy
    2015).

    Training: by x's own mean and biased variance; running_mean and running_var (C), where given,
    become (1 - momentum) old + momentum new, in place, of the unbiased variance. Else by the
    running ones. weight, bias: (C). ValueError for shapes that do not fit and, in training, for
    one value per channel.
    """
    return _norm(
        "batch_norm",
        input,
        weight,
        bias,
        running_mean,
        running_var,
        False,
        0,
        training,
        momentum,
        eps,
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of each sample of x (N, C, ...) over its positions (Ulyanov et al.
    2016).

    Arguments as :func:`batch_norm`, ``use_input_stats`` being its ``training``; the running
    statistics take the mean over samples.
    """
    return _norm(
        "instance_norm",
        input,
        weight,
        bias,
        running_mean,
        running_var,
        use_input_stats,
        0,
        use_input_stats,
        momentum,
        eps,
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each group of C / num_groups channels of each sample of x (N, C, ...) over its
    positions (Wu and He 2018). weight, bias: (C). ValueError for shapes that do not fit."""
    if isinstance(num_groups, (tuple, list, str)) or num_groups < 1:
        raise ValueError(f"[group_norm] num_groups must be an int >= 1. Got {num_groups}.")
    return _norm("group_norm", input, weight, bias, None, None, True, num_groups, True, 0.0, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises x over its last axes, which must be normalized_shape (Ba et al. 2016). weight,
    bias: of that shape. ValueError for shapes that do not fit."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    return LayerNorm.apply((input, weight, bias), shape, eps)
